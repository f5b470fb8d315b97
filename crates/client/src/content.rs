//! Files of tasks, as they come.

use bytes::Bytes;
use rayreel_domain::TaskId;
use rayreel_domain::wire::api::TASKS_PATH;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::Client;
use crate::error::{Error, TransportKind, cause};
use crate::retry::Repeat;

/// Which file of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Variant {
    /// The video, or the still that was asked for.
    #[default]
    Main,
    /// A small still.
    Thumbnail,
}

/// A file on its way. It is whole, and the one that was announced, when there are no more pieces.
#[derive(Debug)]
pub struct Content {
    client: Client,
    id: TaskId,
    variant: Variant,
    media_type: String,
    /// Names the bytes; without one, a broken transfer can't go on.
    etag: Option<HeaderValue>,
    expected: Option<String>,
    /// None while the transfer is broken.
    response: Option<Response>,
    hash: Sha256,
    received: u64,
    /// Tries to go on since the last piece.
    tries: u32,
}

/// What was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Downloaded {
    /// How many bytes.
    pub bytes: u64,
    /// Of what type, such as `video/mp4`.
    pub media_type: String,
    /// Their SHA-256, in hexadecimal digits.
    pub sha256: String,
}

impl Content {
    pub(crate) async fn open(client: Client, id: TaskId, variant: Variant) -> Result<Self, Error> {
        let mut content = Self {
            client,
            id,
            variant,
            media_type: String::new(),
            etag: None,
            expected: None,
            response: None,
            hash: Sha256::new(),
            received: 0,
            tries: 0,
        };
        let (response, tag) = loop {
            match content.ask().await {
                Ok(response) => break response,
                Err(error) => content.pause(error).await?,
            }
        };
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        content.media_type = text(CONTENT_TYPE).unwrap_or_default().to_owned();
        let tag = tag.as_ref().and_then(|tag| tag.to_str().ok());
        let sha256 = tag.and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"'));
        content.expected = sha256.filter(|it| is_sha256(it)).map(str::to_owned);
        content.etag = response.headers().get(ETAG).cloned();
        content.response = Some(response);
        Ok(content)
    }

    /// Its type, such as `video/mp4`.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The SHA-256 that the file must have, in hexadecimal digits, beside what the server announces
    /// with it: that of the task's `result`, say.
    #[must_use]
    pub fn expect(mut self, sha256: &str) -> Self {
        self.expected = Some(sha256.to_owned());
        self
    }

    /// The next piece; none at the end. A transfer that breaks goes on where it broke.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let error = match &mut self.response {
                Some(response) => match response.chunk().await {
                    Ok(Some(piece)) => {
                        self.tries = 0;
                        self.received += piece.len() as u64;
                        self.hash.update(&piece);
                        return Ok(Some(piece));
                    }
                    Ok(None) => return self.check().map(|()| None),
                    Err(error) => {
                        self.response = None;
                        self.broken(&cause(&error))
                    }
                },
                None => match self.ask().await {
                    Ok((response, _)) => {
                        self.response = Some(response);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            self.pause(error).await?;
        }
    }

    /// Writes all of it, and flushes.
    pub async fn copy_to(
        mut self,
        writer: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> Result<Downloaded, Error> {
        while let Some(piece) = self.chunk().await? {
            writer.write_all(&piece).await.map_err(Error::Write)?;
        }
        writer.flush().await.map_err(Error::Write)?;
        let sha256 = self.sha256();
        Ok(Downloaded { bytes: self.received, media_type: self.media_type, sha256 })
    }

    /// Asks for the file, or for what is left of it; with the tag that the server gives it. That of a
    /// store to which the server sends us is the store's own: it is what the store knows the file by.
    async fn ask(&self) -> Result<(Response, Option<HeaderValue>), Error> {
        let mut path = format!("{TASKS_PATH}/{}/content", self.id);
        if self.variant == Variant::Thumbnail {
            path.push_str("?variant=thumbnail");
        }
        let call = self.client.call(Method::GET, &path)?;
        let mut headers = HeaderMap::new();
        let Some(etag) = self.etag.as_ref().filter(|_| self.received > 0) else {
            return self.client.open_anywhere(call, headers).await;
        };
        let from = HeaderValue::try_from(format!("bytes={}-", self.received));
        headers.insert(RANGE, from.map_err(|error| self.broken(&error.to_string()))?);
        headers.insert(IF_RANGE, etag.clone());
        let (response, tag) = self.client.open_anywhere(call, headers).await?;
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let from_there = format!("bytes {}-", self.received);
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.starts_with(&from_there));
        if goes_on {
            Ok((response, tag))
        } else {
            Err(self.broken("the file has changed meanwhile"))
        }
    }

    /// Waits until the next try, if there is to be one.
    async fn pause(&mut self, error: Error) -> Result<(), Error> {
        self.tries += 1;
        let can_go_on = self.received == 0 || self.etag.is_some();
        let retry = self.client.limits().retry;
        match retry.pause(self.tries, &error, Repeat::Always).filter(|_| can_go_on) {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(error),
        }
    }

    fn broken(&self, why: &str) -> Error {
        let message = format!("the transfer from {} broke: {why}", self.client.address());
        Error::transport(TransportKind::Broken, message)
    }

    fn sha256(&self) -> String {
        self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn check(&self) -> Result<(), Error> {
        match (&self.expected, self.sha256()) {
            (Some(expected), got) if *expected != got => {
                Err(Error::Checksum { expected: expected.clone(), got })
            }
            _ => Ok(()),
        }
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
