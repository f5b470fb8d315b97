//! Settings whose text has a form of its own.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use http::Uri;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::store::redis;

/// The address of a server, without a slash at its end.
pub(super) fn public_url<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let web = |url: &Uri| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.authority().is_some_and(|authority| !authority.as_str().contains('@'))
    };
    if text.contains(['?', '#']) || !text.parse().is_ok_and(|url| web(&url)) {
        return Err(serde::de::Error::custom(format_args!(
            "`{text}` is not the address of a server; write it as https://video.example.com"
        )));
    }
    Ok(Some(text.trim_end_matches('/').to_owned()))
}

/// A folder of pictures that requests may name by their paths; `/named=/directory` in text, or one
/// path for both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRoot {
    /// As requests write it.
    pub named: PathBuf,
    /// Where it lies on this machine.
    pub directory: PathBuf,
}

impl FromStr for InputRoot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (named, directory) = match text.find("=/") {
            Some(at) => (&text[..at], &text[at + 1..]),
            None => (text, text),
        };
        let folder = |path: &str| {
            let path = Path::new(path);
            let below = |part| matches!(part, Component::RootDir | Component::Normal(_));
            let fits =
                path.is_absolute() && path.components().all(below) && path.file_name().is_some();
            fits.then(|| path.to_owned()).ok_or_else(|| {
                format!(
                    "`{text}` is not a folder; write its whole path, or what requests call it \
                     before that: /path/in/pod=/srv/pictures"
                )
            })
        };
        Ok(Self { named: folder(named)?, directory: folder(directory)? })
    }
}

impl fmt::Display for InputRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.named != self.directory {
            write!(f, "{}=", self.named.display())?;
        }
        write!(f, "{}", self.directory.display())
    }
}

impl Serialize for InputRoot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InputRoot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where tasks are kept: `sqlite`, in the data directory, or the address of a Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAt {
    Sqlite,
    Redis(redis::Address),
}

impl FromStr for StoreAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sqlite" => Ok(Self::Sqlite),
            // An address may hold a password: it is not repeated.
            _ => text
                .parse()
                .map(Self::Redis)
                .map_err(|error| format!("a store is `sqlite` or the address of a Redis; {error}")),
        }
    }
}

impl Serialize for StoreAt {
    /// Without the password.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Sqlite => serializer.serialize_str("sqlite"),
            Self::Redis(address) => serializer.collect_str(address),
        }
    }
}

impl<'de> Deserialize<'de> for StoreAt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
