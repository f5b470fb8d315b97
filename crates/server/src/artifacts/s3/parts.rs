//! Long files that come in parts: the store knows which it has, so nobody else has to remember.
//!
//! `object_store` uploads in parts, too, but neither with the checksum that binds a part that somebody
//! else puts, nor can it ask which are there.

use std::fmt::Write;

use axum::body::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use object_store::path::Path;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::{Error, Key, Missing, Pieces, Put};
use super::S3;
use super::request::{Answer, CHECKSUM, Request, checksum, sign};

/// Most parts that are named at a time: their addresses must not expire while others are sent.
const BATCH: usize = 16;
/// Most uploads of a folder that are ended at a time.
const PAGES: usize = 100;

const ALGORITHM: HeaderName = HeaderName::from_static("x-amz-checksum-algorithm");

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    upload_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(default)]
    part: Vec<Part>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_part_number_marker: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    part_number: u32,
    #[serde(rename = "ETag")]
    etag: String,
    size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Uploads {
    #[serde(default)]
    upload: Vec<Upload>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, Error> {
    if !answer.status.is_success() {
        return Err(Error::Unavailable(answer.shown()));
    }
    quick_xml::de::from_str(&answer.text()).map_err(|error| {
        Error::Unavailable(format!("the store's answer can't be read: {error}: {}", answer.shown()))
    })
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

impl S3 {
    pub(in super::super) async fn parts(
        &self,
        key: &Key,
        pieces: Pieces<'_>,
    ) -> Result<Option<Missing>, Error> {
        self.pieces(&self.at(&key.0), pieces).await
    }

    pub(super) async fn pieces(
        &self,
        path: &Path,
        pieces: Pieces<'_>,
    ) -> Result<Option<Missing>, Error> {
        let (upload, there) = match pieces.upload {
            Some(upload) => (upload.to_owned(), self.listed(path, upload).await?),
            None => (String::new(), None),
        };
        let (upload, there) = match there {
            Some(there) => (upload, there),
            // It was put together before, and the answer was lost; or it never began.
            None if self.has(path, pieces.bytes).await? => return Ok(None),
            None => (self.create(path, pieces.media_type).await?, Vec::new()),
        };
        let mut missing = Vec::new();
        for part in 0..pieces.sha256.len() {
            if missing.len() < BATCH && self.etag(&there, part, &pieces).is_none() {
                missing.push((part as u32, self.put_of(path, &upload, part, &pieces).await?));
            }
        }
        if missing.is_empty() {
            self.complete(path, &upload, &there, &pieces).await?;
            return Ok(None);
        }
        Ok(Some(Missing { upload, parts: missing }))
    }

    /// What the store calls a part, if it is there whole.
    fn etag<'a>(&self, there: &'a [Part], part: usize, pieces: &Pieces<'_>) -> Option<&'a str> {
        let (number, before) = (part as u32 + 1, part as u64 * self.bucket.part_bytes);
        let bytes = (pieces.bytes - before.min(pieces.bytes)).min(self.bucket.part_bytes);
        let found = there.iter().find(|it| it.part_number == number && it.size == bytes);
        found.map(|part| &*part.etag)
    }

    async fn has(&self, path: &Path, bytes: u64) -> Result<bool, Error> {
        let answer = self.send(Method::HEAD, path, Request::default()).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => {
                let length = answer.header(&http::header::CONTENT_LENGTH);
                Ok(length.and_then(|text| text.parse().ok()) == Some(bytes))
            }
            _ => Err(Error::Unavailable(answer.shown())),
        }
    }

    async fn create(&self, path: &Path, media_type: &str) -> Result<String, Error> {
        let mut request = Request { query: vec![pair("uploads", "")], ..Request::default() };
        request.headers.insert(ALGORITHM, HeaderValue::from_static("SHA256"));
        request.headers.insert(CONTENT_TYPE, super::request::value(media_type)?);
        let created: Created = read(&self.send(Method::POST, path, request).await?)?;
        Ok(created.upload_id)
    }

    async fn put_of(
        &self,
        path: &Path,
        upload: &str,
        part: usize,
        pieces: &Pieces<'_>,
    ) -> Result<Put, Error> {
        let number = (part + 1).to_string();
        let query = vec![pair("partNumber", &number), pair("uploadId", upload)];
        let mut request = Request { query, ..Request::default() };
        request.headers.insert(CHECKSUM, checksum(&pieces.sha256[part])?);
        let life = self.bucket.signed_life;
        let url = sign(&self.store, Method::PUT, path, &request, life).await?;
        Ok(Put { url: url.into(), headers: request.headers })
    }

    /// The parts that are there; none if there is no such upload.
    async fn listed(&self, path: &Path, upload: &str) -> Result<Option<Vec<Part>>, Error> {
        let mut parts = Vec::new();
        let mut query = vec![pair("uploadId", upload)];
        loop {
            let request = Request { query: query.clone(), ..Request::default() };
            let answer = self.send(Method::GET, path, request).await?;
            if answer.status == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let listed: Listed = read(&answer)?;
            parts.extend(listed.part);
            match listed.next_part_number_marker {
                Some(marker) if listed.is_truncated => {
                    query.truncate(1);
                    query.push(pair("part-number-marker", &marker));
                }
                _ => return Ok(Some(parts)),
            }
        }
    }

    async fn complete(
        &self,
        path: &Path,
        upload: &str,
        there: &[Part],
        pieces: &Pieces<'_>,
    ) -> Result<(), Error> {
        let mut body = String::from("<CompleteMultipartUpload>");
        for (part, sha256) in pieces.sha256.iter().enumerate() {
            let etag = self.etag(there, part, pieces).unwrap_or_default();
            let etag = quick_xml::escape::escape(etag);
            let sum = checksum(sha256)?;
            let sum = sum.to_str().unwrap_or_default();
            let number = part + 1;
            _ = write!(
                body,
                "<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>\
                 <ChecksumSHA256>{sum}</ChecksumSHA256></Part>"
            );
        }
        body.push_str("</CompleteMultipartUpload>");
        let query = vec![pair("uploadId", upload)];
        let request = Request { query, body: Bytes::from(body), ..Request::default() };
        let answer = self.send(Method::POST, path, request).await?;
        // A store that takes long says first that all is well, and an error later, in the body.
        let refused = answer.text().contains("<Error>");
        match answer.status {
            status if status.is_success() && !refused => Ok(()),
            StatusCode::BAD_REQUEST => Err(Error::Mismatch(
                "the store can't put the parts together; send the file again".to_owned(),
            )),
            _ => Err(Error::Unavailable(answer.shown())),
        }
    }

    /// Ends the uploads of files below a path that were not put together. A store that can't tell which
    /// there are keeps their parts until a rule of its own ends them.
    pub(super) async fn abort_below(&self, folder: &Path) -> Result<(), Error> {
        if !self.abilities().await?.parts {
            return Ok(());
        }
        let prefix = format!("{folder}/");
        for _ in 0..PAGES {
            let query = vec![pair("prefix", &prefix), pair("uploads", "")];
            let request = Request { query, ..Request::default() };
            let answer = self.send(Method::GET, &Path::default(), request).await?;
            if !answer.status.is_success() {
                tracing::debug!(
                    answer = answer.shown(),
                    "the store does not tell which uploads it has"
                );
                return Ok(());
            }
            let Uploads { upload } = read(&answer)?;
            let below = upload.iter().filter(|upload| upload.key.starts_with(&prefix));
            let mut ended = 0;
            for Upload { key, upload_id } in below {
                let query = vec![pair("uploadId", upload_id)];
                let request = Request { query, ..Request::default() };
                let answer = self.send(Method::DELETE, &Path::from(&**key), request).await?;
                if !answer.status.is_success() && answer.status != StatusCode::NOT_FOUND {
                    return Err(Error::Unavailable(answer.shown()));
                }
                ended += 1;
            }
            if ended == 0 {
                return Ok(());
            }
        }
        Ok(())
    }
}
