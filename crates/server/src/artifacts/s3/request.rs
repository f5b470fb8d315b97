//! Requests on one key that carry their signature in their address: whoever has it can send it, and no
//! other. The server sends such itself where `object_store` has no call of its own.

use std::time::Duration;

use axum::body::Bytes;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_LENGTH, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use url::Url;

use super::super::{Error, Found, Key};
use super::{S3, failed, hex, told};

/// A whole request of the server's own.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Its signature is good for so long.
const LIFE: Duration = Duration::from_secs(300);
/// The longest answer that is read.
const MAX_ANSWER: usize = 4 << 20;

pub(super) const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-sha256");
const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");

/// A SHA-256 in hexadecimal, as S3 writes it.
pub(super) fn checksum(sha256: &str) -> Result<HeaderValue, Error> {
    let digit = |text: &[u8]| u8::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = sha256.as_bytes().chunks(2).map(digit).collect();
    let bytes = bytes.ok_or_else(|| Error::Mismatch(format!("`{sha256}` is no checksum")))?;
    value(&STANDARD.encode(bytes))
}

pub(super) fn value(text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::try_from(text).map_err(|_| Error::Other(format!("`{text}` is no header")))
}

/// A request before it is signed.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) query: Vec<(String, String)>,
    /// Whoever sends it must send these, as they are.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// What it says if it is not what was hoped for: status, and the begin of the body.
    pub(super) fn shown(&self) -> String {
        let text: String = self.text().chars().take(500).collect();
        format!("{}: {text}", self.status)
    }

    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

pub(super) async fn sign(
    store: &AmazonS3,
    method: Method,
    path: &Path,
    request: &Request,
    life: Duration,
) -> Result<Url, Error> {
    let mut options = SignedUrlOptions::default();
    options.extra_query.clone_from(&request.query);
    options.signed_headers.clone_from(&request.headers);
    store.signed_url_opts(method, path, life, &options).await.map_err(failed)
}

impl S3 {
    /// Sends a request and reads its answer, whatever it is.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &Path,
        request: Request,
    ) -> Result<Answer, Error> {
        let url = sign(&self.store, method.clone(), path, &request, LIFE).await?;
        self.send_to(url, method, request).await
    }

    pub(super) async fn send_to(
        &self,
        url: Url,
        method: Method,
        request: Request,
    ) -> Result<Answer, Error> {
        let length = HeaderValue::from(request.body.len());
        let mut call = self.http.request(method.clone(), url).headers(request.headers);
        if method == Method::PUT || method == Method::POST {
            call = call.header(CONTENT_LENGTH, length).body(request.body);
        }
        // The address is a secret for as long as it is good.
        let unavailable = |error: reqwest::Error| Error::Unavailable(told(&error.without_url()));
        let mut response = call.send().await.map_err(unavailable)?;
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Error::Unavailable("the store's answer is too long".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        let answer = Answer { status, headers, body };
        if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
            || status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT
        {
            return Err(Error::Unavailable(answer.shown()));
        }
        Ok(answer)
    }

    pub(in super::super) async fn head(&self, key: &Key) -> Result<Found, Error> {
        let mut request = Request::default();
        request.headers.insert(CHECKSUM_MODE, HeaderValue::from_static("ENABLED"));
        let answer = self.send(Method::HEAD, &self.at(&key.0), request).await?;
        match answer.status {
            StatusCode::NOT_FOUND => return Err(Error::NotFound),
            status if status.is_success() => {}
            _ => return Err(Error::Unavailable(answer.shown())),
        }
        let bytes = answer.header(&CONTENT_LENGTH).and_then(|text| text.parse().ok());
        let bytes = bytes
            .ok_or_else(|| Error::Unavailable("the store told no length of a file".to_owned()))?;
        // That of a file that came in parts is one of their checksums, and says so by its form.
        let sha256 = answer.header(&CHECKSUM).and_then(|text| STANDARD.decode(text).ok());
        Ok(Found { bytes, sha256: sha256.filter(|it| it.len() == 32).map(|it| hex(&it)) })
    }
}
