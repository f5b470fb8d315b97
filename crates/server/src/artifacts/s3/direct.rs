//! Addresses that are given away: a worker puts its files there, a client gets them.

use http::header::{CONTENT_TYPE, IF_NONE_MATCH};
use http::{HeaderValue, Method};

use super::super::{Error, Key, Put, Shown};
use super::S3;
use super::request::{CHECKSUM, Request, checksum, sign};

/// Longer files go through the server, which sends them on in parts.
pub(super) const MAX_WHOLE: u64 = 64 << 20;

impl S3 {
    /// Where a worker puts a file; none if it had better be given to the server.
    pub(in super::super) async fn place(
        &self,
        key: &Key,
        bytes: u64,
        sha256: &str,
        media_type: &str,
    ) -> Result<Option<Put>, Error> {
        let abilities = self.abilities().await?;
        if !abilities.direct() || bytes > MAX_WHOLE {
            return Ok(None);
        }
        let mut request = Request::default();
        let value = |text: &str| HeaderValue::try_from(text).map_err(|_| Error::Other(text.into()));
        let sum = checksum(sha256).ok_or_else(|| Error::Other("no checksum".to_owned()))?;
        request.headers.insert(CHECKSUM, sum);
        request.headers.insert(CONTENT_TYPE, value(media_type)?);
        if abilities.create_only {
            request.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let life = self.bucket.signed_life;
        let url = sign(&self.store, Method::PUT, &self.at(&key.0), &request, life).await?;
        Ok(Some(Put { url: url.into(), headers: request.headers }))
    }

    /// Where a client gets a file; none if it gets it from the server.
    pub(in super::super) async fn address(
        &self,
        key: &Key,
        shown: Shown<'_>,
    ) -> Result<Option<String>, Error> {
        if !self.bucket.redirect {
            return Ok(None);
        }
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let query = vec![
            pair("response-cache-control", shown.cache_control),
            pair("response-content-disposition", shown.disposition),
            pair("response-content-type", shown.media_type),
        ];
        let life = shown.life.map_or(self.bucket.signed_life, |it| it.min(self.bucket.signed_life));
        let request = Request { query, ..Request::default() };
        let url = sign(&self.public, Method::GET, &self.at(&key.0), &request, life).await?;
        Ok(Some(url.into()))
    }
}
