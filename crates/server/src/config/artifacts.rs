//! Where files are kept, if not in the data directory.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::check::Place;
use super::{Error, Seconds};
use crate::artifacts::{Bucket, Variables};

/// The store of files; a bucket if `url` is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifacts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<BucketUrl>,
    /// Without a slash at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    pub allow_http: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    pub redirect: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_endpoint: Option<Endpoint>,
    pub signed_seconds: Seconds,
    pub part_bytes: u64,
}

impl Artifacts {
    /// `garbage_after`: how long files that nobody wants are kept.
    pub(super) fn check(&self, garbage_after: Seconds, at: &Place<'_>) -> Result<(), Error> {
        let endpoints = [("endpoint", &self.endpoint), ("public_endpoint", &self.public_endpoint)];
        for (key, endpoint) in endpoints {
            let encrypted = |endpoint: &Endpoint| endpoint.0.starts_with("https://");
            if !self.allow_http && !endpoint.as_ref().is_none_or(encrypted) {
                return Err(at.key(key).wrong(
                    "begins with `http://`: files and signed addresses would go over the network \
                     for everybody to read; set `artifacts.allow_http = true` if they may",
                ));
            }
        }
        at.key("part_bytes").within(self.part_bytes, 5 << 20..=5 << 30)?;
        at.key("signed_seconds").within(self.signed_seconds.0, 1.0..=86_400.0)?;
        // What a worker puts there after the garbage has been collected would stay for ever.
        if self.url.is_some() && self.signed_seconds > garbage_after {
            return Err(at.key("signed_seconds").wrong(format_args!(
                "{} is above `garbage_after_seconds`, {garbage_after}",
                self.signed_seconds
            )));
        }
        Ok(())
    }

    /// The bucket, if there is one.
    pub fn bucket(&self, variables: Variables) -> Option<Bucket> {
        let BucketUrl { bucket, prefix } = self.url.clone()?;
        Some(Bucket {
            name: bucket,
            prefix,
            path_style: self.path_style.unwrap_or(self.endpoint.is_some()),
            endpoint: self.endpoint.as_ref().map(|endpoint| endpoint.0.clone()),
            region: self.region.clone(),
            allow_http: self.allow_http,
            redirect: self.redirect,
            public_endpoint: self.public_endpoint.as_ref().map(|endpoint| endpoint.0.clone()),
            signed_life: self.signed_seconds.duration(),
            part_bytes: self.part_bytes,
            variables,
        })
    }
}

/// `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl {
    pub bucket: String,
    /// Without slashes at its ends; may be empty.
    pub prefix: String,
}

impl FromStr for BucketUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("s3://").unwrap_or_default();
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        let word = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.=".contains(&b);
            !matches!(part, "" | "." | "..") && part.bytes().all(plain)
        };
        let fits = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(name)
            && (prefix.is_empty() || prefix.split('/').all(word));
        fits.then(|| Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() }).ok_or_else(
            || {
                format!(
                    "`{text}` is not the address of a bucket; write it as s3://bucket or \
                 s3://bucket/prefix, of letters, digits, `-`, `.` and `_`"
                )
            },
        )
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl Serialize for BucketUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BucketUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Address of a service: `https://host:port`, with a path or none, and without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Endpoint(pub String);

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let web = |url: &Uri| {
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        };
        if text.contains(['?', '#']) || !text.parse().is_ok_and(|url| web(&url)) {
            return Err(serde::de::Error::custom(format_args!(
                "`{text}` is not the address of a service; write it as https://s3.example.com"
            )));
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}
