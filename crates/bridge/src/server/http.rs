//! Asking a server: bounded in time and in size, without proxies and without redirects.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Response, Url};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, timeout, timeout_at};

use super::adapter::{Answer, Body, Call, Field, Method};

/// Longest pause in the middle of a file.
const PAUSE: Duration = Duration::from_secs(30);

/// Largest answer that is kept of an error, in bytes.
const MAX_ERROR: u64 = 64 << 10;

/// An answer is long when it has more than this, in bytes.
const LONG: usize = 1 << 20;

/// One server's address, and how it is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Client {
    inner: reqwest::Client,
    url: Url,
    headers: HeaderMap,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Broken {
    /// The server has not heard the question.
    Unheard(String),
    /// It may have heard it.
    Lost(String),
    /// The answer is longer than it may be.
    TooLong(u64),
}

impl Broken {
    pub(super) fn text(&self) -> String {
        match self {
            Broken::Unheard(why) => format!("the server can't be reached: {why}"),
            Broken::Lost(why) => format!("the server gave no answer: {why}"),
            Broken::TooLong(limit) => {
                format!("the server's answer is longer than the {limit} bytes that are allowed")
            }
        }
    }
}

/// Why there is no file.
#[derive(Debug)]
pub(super) enum NoFile {
    Broken(Broken),
    /// The server gave this instead.
    Answer(Answer),
    /// It can't be written.
    Disk(io::Error),
}

impl Client {
    pub(super) fn new(url: Url, headers: HeaderMap) -> Result<Client, String> {
        let builder = rayreel_client::http::client(&url)
            .no_proxy()
            // Servers close connections that idle just when they are used again.
            .pool_max_idle_per_host(0);
        let inner = builder.build().map_err(|error| described(&error))?;
        Ok(Client { inner, url, headers })
    }

    pub(super) fn port(&self) -> Option<u16> {
        self.url.port()
    }

    /// Asks, and reads an answer of at most `limit` bytes within `time`.
    pub(super) async fn call(
        &self,
        call: &Call,
        limit: u64,
        time: Duration,
    ) -> Result<Answer, Broken> {
        let answer = async {
            let response = self.request(call).send().await.map_err(broken)?;
            answer(response, limit, Instant::now() + time, time, || {}).await
        };
        timeout(time, answer).await.unwrap_or_else(|_| Err(nothing_for(time)))
    }

    /// The same for an answer that may bring a file along: a long one may take its time, as long as no
    /// pause in it is longer than `pause`, and calls `arrives` while it comes. A short one has `pause`
    /// for all of it.
    pub(super) async fn call_slowly(
        &self,
        call: &Call,
        limit: u64,
        pause: Duration,
        arrives: impl FnMut(),
    ) -> Result<Answer, Broken> {
        let late = Instant::now() + pause;
        let asked = timeout_at(late, self.request(call).send()).await;
        let response = asked.map_err(|_| nothing_for(pause))?.map_err(broken)?;
        answer(response, limit, late, pause, arrives).await
    }

    /// Writes what the server sends into a new file. Calls `arrives` while it comes.
    pub(super) async fn download(
        &self,
        call: &Call,
        to: &Path,
        limit: u64,
        time: Duration,
        mut arrives: impl FnMut(),
    ) -> Result<(), NoFile> {
        let silent = || NoFile::Broken(Broken::Lost("it stopped in the middle".to_owned()));
        let asked = timeout(time, self.request(call).send()).await.map_err(|_| silent())?;
        let mut response = asked.map_err(|error| NoFile::Broken(broken(error)))?;
        if !response.status().is_success() {
            let answer = answer(response, MAX_ERROR, Instant::now() + PAUSE, PAUSE, || {}).await;
            return Err(answer.map_or_else(NoFile::Broken, NoFile::Answer));
        }
        let options = tokio::fs::OpenOptions::new().write(true).create_new(true).open(to).await;
        let mut file = options.map_err(NoFile::Disk)?;
        let mut length = 0;
        loop {
            let chunk = timeout(PAUSE, response.chunk()).await.map_err(|_| silent())?;
            let Some(chunk) = chunk.map_err(|error| NoFile::Broken(broken(error)))? else {
                break;
            };
            arrives();
            length += chunk.len() as u64;
            if length > limit {
                return Err(NoFile::Broken(Broken::TooLong(limit)));
            }
            file.write_all(&chunk).await.map_err(NoFile::Disk)?;
        }
        file.flush().await.map_err(NoFile::Disk)
    }

    fn request(&self, call: &Call) -> RequestBuilder {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{}", call.path));
        let request = match call.method {
            Method::Get => self.inner.get(url),
            Method::Post => self.inner.post(url),
            Method::Delete => self.inner.delete(url),
        };
        let request = request.headers(self.headers.clone());
        match &call.body {
            Body::Nothing => request,
            Body::Json(value) => {
                request.header("content-type", "application/json").body(value.to_string())
            }
            Body::Form(fields) => request.multipart(form(fields)),
        }
    }
}

fn form(fields: &[Field]) -> Form {
    fields.iter().fold(Form::new(), |form, field| match field {
        Field::Text { name, value } => form.text(*name, value.clone()),
        Field::File { name, picture } => {
            let part = Part::bytes(picture.bytes.clone()).file_name(picture.file_name);
            // The types are constants, both of them right.
            let part = part.mime_str(picture.media_type).unwrap_or_else(|_| Part::text(""));
            form.part(*name, part)
        }
    })
}

/// Reads an answer: a short one until it is `late`, a long one as long as no pause is longer than
/// `pause`.
async fn answer(
    mut response: Response,
    limit: u64,
    late: Instant,
    pause: Duration,
    mut arrives: impl FnMut(),
) -> Result<Answer, Broken> {
    let status = response.status().as_u16();
    let length = response.content_length().unwrap_or_default();
    if length > limit {
        return Err(Broken::TooLong(limit));
    }
    // Grown bit by bit, a long one would take up to twice its room.
    let mut body = Vec::with_capacity(length as usize);
    loop {
        let is_long = length > LONG as u64 || body.len() > LONG;
        let by = if is_long { Instant::now() + pause } else { late };
        let chunk = timeout_at(by, response.chunk())
            .await
            .map_err(|_| if body.is_empty() { nothing_for(pause) } else { unfinished(pause) })?;
        let Some(chunk) = chunk.map_err(broken)? else {
            return Ok(Answer { status, body });
        };
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(Broken::TooLong(limit));
        }
        body.extend_from_slice(&chunk);
        if body.len() > LONG {
            arrives();
        }
    }
}

fn nothing_for(time: Duration) -> Broken {
    Broken::Lost(format!("nothing for {} s", time.as_secs_f64()))
}

fn unfinished(time: Duration) -> Broken {
    Broken::Lost(format!("it was not at its end after {} s", time.as_secs_f64()))
}

fn broken(error: reqwest::Error) -> Broken {
    let why = described(&error);
    if error.is_connect() || error.is_builder() { Broken::Unheard(why) } else { Broken::Lost(why) }
}

/// An error with its causes, without the address, which is the operator's business.
fn described(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, "{}{error}", if text.is_empty() { "" } else { ": " });
        cause = error.source();
    }
    if text.is_empty() { "it broke off".to_owned() } else { text }
}
