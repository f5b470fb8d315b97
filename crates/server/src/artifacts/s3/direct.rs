//! Addresses that are given away: a worker puts its files there, a client gets them.

use http::header::{CONTENT_TYPE, IF_NONE_MATCH};
use http::{HeaderValue, Method};

use super::super::{Error, Key, Place, Put, Shown};
use super::S3;
use super::request::{CHECKSUM, Request, checksum, sign, value};

impl S3 {
    pub(in super::super) async fn place(
        &self,
        key: &Key,
        bytes: u64,
        sha256: &str,
        media_type: &str,
    ) -> Result<Place, Error> {
        let abilities = self.abilities().await?;
        let part = self.bucket.part_bytes;
        if !abilities.direct() || bytes > part && !abilities.parts {
            return Ok(Place::Here);
        }
        if bytes > part {
            return Ok(Place::InParts(part));
        }
        let mut request = Request::default();
        request.headers.insert(CHECKSUM, checksum(sha256)?);
        request.headers.insert(CONTENT_TYPE, value(media_type)?);
        if abilities.create_only {
            request.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let life = self.bucket.signed_life;
        let url = sign(&self.store, Method::PUT, &self.at(&key.0), &request, life).await?;
        Ok(Place::There(Put { url: url.into(), headers: request.headers }))
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
