//! The worker's calls to the server.
//!
//! Each is one try; [`Server::insist`] repeats one until it is answered. After a failure the
//! address is looked up again in the data directory of a local server, which may have come back
//! elsewhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use rayreel_client::http;
use rayreel_domain::wire::api::ErrorBody;
use rayreel_domain::{Code, Fence};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Client, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Options;
use crate::backoff::Outage;

/// Which image of a task is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Frame {
    First,
    Last,
}

/// How long a call that does not wait for anything may take.
pub(crate) const CALL: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const MAX_ANSWER: usize = 4 << 20;
/// The longest `server.json` that is read.
const MAX_ANNOUNCEMENT: u64 = 1 << 16;

/// Why a call has no answer that helps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The attempt is not ours any more.
    #[error("the attempt has lost its lease")]
    StaleLease,
    /// The worker is not known any more.
    #[error("the registration was replaced")]
    StaleWorker,
    /// The server has understood and says no; asking again will not help.
    #[error("refused with status {status}: {message}")]
    Refused { status: u16, code: Option<Code>, message: String },
    #[error("the worker token is not accepted: {0}")]
    Unauthorized(String),
    /// The server answers, but can't do it now.
    #[error("status {status}: {message}")]
    Unable { status: u16, message: String },
    #[error("{0}")]
    Unreachable(String),
}

impl Error {
    /// May the same call succeed later?
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unauthorized(_) | Self::Unable { .. } | Self::Unreachable(_))
    }

    /// Why the server refuses for good, if it said so in our words.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => *code,
            _ => None,
        }
    }
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        // The cause says more than reqwest's own words; the URL is known, or a signed secret.
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Self::Unreachable(text)
    }
}

/// Where the server is and what opens it.
#[derive(Clone, PartialEq)]
struct Endpoint {
    /// Without a slash at the end.
    base: String,
    bearer: HeaderValue,
}

impl Endpoint {
    fn new(url: &str, token: &str) -> Result<(Self, Url), String> {
        let parsed: Url = url.parse().map_err(|error| format!("{error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
            return Err("it must be an http or https URL".into());
        }
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| "the token has characters that a header can't carry".to_owned())?;
        bearer.set_sensitive(true);
        Ok((Self { base: url.trim_end_matches('/').to_owned(), bearer }, parsed))
    }
}

struct Link {
    home: Option<PathBuf>,
    endpoint: RwLock<Endpoint>,
}

/// The part of `server.json` that concerns workers.
#[derive(Deserialize)]
struct Announcement {
    url: String,
    worker_token: String,
}

impl Link {
    fn endpoint(&self) -> Endpoint {
        self.endpoint.read().expect("nothing panics while it holds this lock").clone()
    }

    /// Reads again where the local server is. Whatever is wrong with the file, the address that is
    /// known stays.
    fn look_up(&self) {
        let Some(found) = self.announced() else {
            return;
        };
        let mut endpoint = self.endpoint.write().expect("nothing panics while it holds this lock");
        if *endpoint != found {
            tracing::info!(url = found.base, "the server has a new address");
            *endpoint = found;
        }
    }

    fn announced(&self) -> Option<Endpoint> {
        let file = File::open(self.home.as_ref()?.join("server.json")).ok()?;
        // Its writer holds a lock until it dies. A dead one's port may be anybody's now.
        if !matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)) {
            return None;
        }
        let mut text = String::new();
        file.take(MAX_ANNOUNCEMENT).read_to_string(&mut text).ok()?;
        let announcement: Announcement = serde_json::from_str(&text).ok()?;
        let (endpoint, url) = Endpoint::new(&announcement.url, &announcement.worker_token).ok()?;
        http::is_loopback(&url).then_some(endpoint)
    }
}

/// The server, over connections of this value's own.
pub(crate) struct Server {
    link: Arc<Link>,
    http: Client,
    /// For addresses outside the server; made when one comes.
    storage: OnceLock<Client>,
}

impl Server {
    pub(crate) fn new(options: &Options) -> Result<Self, crate::Error> {
        let (endpoint, url) = Endpoint::new(&options.server, &options.token)
            .map_err(|reason| crate::Error::Address { url: options.server.clone(), reason })?;
        let link = Link { home: options.home.clone(), endpoint: RwLock::new(endpoint) };
        Ok(Self {
            link: Arc::new(link),
            http: http::client(&url).build()?,
            storage: OnceLock::new(),
        })
    }

    /// The same server over other connections, for another runtime: connections are served by the
    /// runtime that opened them, and must not stall with it.
    pub(crate) fn apart(&self) -> Result<Self, crate::Error> {
        let (_, url) = Endpoint::new(&self.url(), "")
            .map_err(|reason| crate::Error::Address { url: self.url(), reason })?;
        Ok(Self {
            link: Arc::clone(&self.link),
            http: http::client(&url).build()?,
            storage: OnceLock::new(),
        })
    }

    pub(crate) fn url(&self) -> String {
        self.link.endpoint().base
    }

    /// One call, tried once.
    pub(crate) async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        question: &Q,
        limit: Duration,
    ) -> Result<A, Error> {
        let body = serde_json::to_vec(question).expect("wire messages are JSON");
        let endpoint = self.link.endpoint();
        let request = self
            .http
            .post(format!("{}/v1/worker/{call}", endpoint.base))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .timeout(limit)
            .body(body);
        let answer = async {
            let response = self.send(request, &endpoint).await?;
            let status = response.status().as_u16();
            let body = bounded(response).await?;
            serde_json::from_slice(&body).map_err(|error| Error::Unable {
                status,
                message: format!("the answer to `{call}` can't be read: {error}"),
            })
        };
        self.learn(answer.await)
    }

    /// Calls until there is an answer, but not for longer than `patience`.
    pub(crate) async fn insist<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        question: &Q,
        patience: Duration,
    ) -> Result<A, Error> {
        self.insist_slowly(call, question, CALL, patience).await
    }

    /// The same for a call that takes its time, up to `limit`.
    pub(crate) async fn insist_slowly<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: &'static str,
        question: &Q,
        limit: Duration,
        patience: Duration,
    ) -> Result<A, Error> {
        let mut outage = Outage::new(call);
        loop {
            match self.call(call, question, limit).await {
                Err(error) if error.is_passing() => {
                    let wait = outage.failed(&error);
                    if outage.lasts() + wait > patience {
                        return Err(error);
                    }
                    tokio::time::sleep(wait).await;
                }
                answer => {
                    outage.over();
                    return answer;
                }
            }
        }
    }

    /// An image of a task, the first frame or the last, as a stream.
    pub(crate) async fn input(
        &self,
        fence: Fence,
        frame: Frame,
        limit: Duration,
    ) -> Result<Response, Error> {
        let Fence { task, attempt, nonce } = fence;
        let endpoint = self.link.endpoint();
        let last = match frame {
            Frame::First => "",
            Frame::Last => "/last",
        };
        let url = format!("{}/v1/worker/inputs/{task}/{attempt}/{nonce}{last}", endpoint.base);
        let sent = self.send(self.http.get(url).timeout(limit), &endpoint).await;
        self.learn(sent)
    }

    /// Puts a file where the server said.
    pub(crate) async fn put(
        &self,
        url: &str,
        given: &BTreeMap<String, String>,
        bytes: u64,
        body: Body,
        limit: Duration,
    ) -> Result<(), Error> {
        let endpoint = self.link.endpoint();
        let on_server = url.starts_with('/') && !url.starts_with("//");
        let request = if on_server {
            self.http.put(format!("{}{url}", endpoint.base))
        } else {
            let url: Url = url.parse().map_err(|_| bad_target("its URL is none"))?;
            self.storage()?.put(url)
        };
        let request = request
            .headers(headers(given)?)
            .header(CONTENT_LENGTH, HeaderValue::from(bytes))
            .timeout(limit)
            .body(body);
        if on_server {
            let sent = self.send(request, &endpoint).await;
            return self.learn(sent).map(drop);
        }
        answered(request.send().await?).await.map(drop)
    }

    async fn send(&self, request: RequestBuilder, endpoint: &Endpoint) -> Result<Response, Error> {
        let bearer = endpoint.bearer.clone();
        answered(request.header(reqwest::header::AUTHORIZATION, bearer).send().await?).await
    }

    /// After a failure that a move of the server explains, asks where it is.
    fn learn<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if matches!(answer, Err(Error::Unreachable(_) | Error::Unauthorized(_))) {
            self.link.look_up();
        }
        answer
    }

    fn storage(&self) -> Result<&Client, Error> {
        if let Some(client) = self.storage.get() {
            return Ok(client);
        }
        let client = http::any_client().build()?;
        Ok(self.storage.get_or_init(|| client))
    }
}

pub(crate) fn bad_target(why: &str) -> Error {
    let message = format!("the server named an upload target that can't be used: {why}");
    Error::Refused { status: 200, code: None, message }
}

fn headers(given: &BTreeMap<String, String>) -> Result<HeaderMap, Error> {
    let pairs = given.iter().map(|(name, value)| {
        let name = HeaderName::try_from(name).map_err(|_| bad_target("a header's name is none"))?;
        let value =
            HeaderValue::try_from(value).map_err(|_| bad_target("a header's value is none"))?;
        Ok((name, value))
    });
    pairs.collect()
}

/// A response of success, or what it says instead.
async fn answered(response: Response) -> Result<Response, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = bounded(response).await.unwrap_or_default();
    Err(refusal(status.as_u16(), &body))
}

fn refusal(status: u16, body: &[u8]) -> Error {
    let detail = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.error);
    let code = detail.as_ref().and_then(|detail| Code::from_name(&detail.code));
    let message = match detail {
        Some(detail) => detail.message,
        None => {
            let text = String::from_utf8_lossy(body);
            match storage_code(&text) {
                Some(code) => format!("the store of files says `{code}`"),
                // Not ours: a proxy's page, say.
                None => text.chars().take(300).collect(),
            }
        }
    };
    match (status, code) {
        (409, Some(Code::StaleLease)) => Error::StaleLease,
        (409, Some(Code::StaleWorker)) => Error::StaleWorker,
        (401, _) => Error::Unauthorized(message),
        (408 | 425 | 429 | 500.., _) => Error::Unable { status, message },
        _ => Error::Refused { status, code, message },
    }
}

/// The code in a storage service's error, in XML. What else stands there is not for users: whose key it
/// was, and what was signed with it.
fn storage_code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Error>")?;
    let (code, _) = rest.split_once("<Code>")?.1.split_once("</Code>")?;
    let plain = |code: &&str| code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    Some(code).filter(plain)
}

async fn bounded(mut response: Response) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            let status = response.status().as_u16();
            let message = format!("the answer is longer than {MAX_ANSWER} bytes");
            return Err(Error::Unable { status, message });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(home: &std::path::Path) -> Link {
        let (endpoint, _) = Endpoint::new("http://127.0.0.1:1/", "old").unwrap();
        Link { home: Some(home.to_owned()), endpoint: RwLock::new(endpoint) }
    }

    fn announce(home: &std::path::Path, text: &str) -> File {
        let path = home.join("server.json");
        std::fs::write(&path, text).unwrap();
        let file = File::open(path).unwrap();
        file.lock().unwrap();
        file
    }

    #[test]
    fn a_server_that_has_moved_is_found_by_its_announcement() {
        let home = tempfile::tempdir().unwrap();
        let link = link(home.path());
        link.look_up();
        assert_eq!(link.endpoint().base, "http://127.0.0.1:1");
        let text = r#"{"url":"http://127.0.0.1:2","token":"t","worker_token":"new","pid":7}"#;
        let _lock = announce(home.path(), text);
        link.look_up();
        assert_eq!(link.endpoint().base, "http://127.0.0.1:2");
        assert_eq!(link.endpoint().bearer, "Bearer new");
    }

    #[test]
    fn an_announcement_that_is_dead_broken_or_foreign_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let link = link(home.path());
        let good = r#"{"url":"http://127.0.0.1:2","worker_token":"new"}"#;
        drop(announce(home.path(), good));
        link.look_up();
        assert_eq!(link.endpoint().base, "http://127.0.0.1:1", "its writer is dead");
        for text in [
            "",
            "{}",
            r#"{"url":"http://10.0.0.1:2","worker_token":"new"}"#,
            r#"{"url":"file:///etc/passwd","worker_token":"new"}"#,
            r#"{"url":"http://127.0.0.1:2","worker_token":"a\nb"}"#,
        ] {
            let _lock = announce(home.path(), text);
            link.look_up();
            assert_eq!(link.endpoint().base, "http://127.0.0.1:1", "{text}");
        }
    }

    #[test]
    fn refusals_are_told_apart_by_status_and_code() {
        let ours = |code: &str| {
            format!(
                r#"{{"error":{{"code":"{code}","message":"m","param":null,"type":"t","request_id":"r"}}}}"#
            )
        };
        assert!(matches!(refusal(409, ours("stale_lease").as_bytes()), Error::StaleLease));
        assert!(matches!(refusal(409, ours("stale_worker").as_bytes()), Error::StaleWorker));
        assert!(matches!(refusal(401, b""), Error::Unauthorized(_)));
        for status in [408, 429, 500, 503, 507] {
            assert!(refusal(status, b"").is_passing(), "{status}");
        }
        let Error::Refused { code, .. } = refusal(422, ours("upload_mismatch").as_bytes()) else {
            panic!("422 is definite");
        };
        assert_eq!(code, Some(Code::UploadMismatch));
        let store = b"<?xml version=\"1.0\"?>\n<Error><Code>SignatureDoesNotMatch</Code>\
            <AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>";
        let Error::Refused { message, .. } = refusal(403, store) else {
            panic!("403 is definite");
        };
        assert_eq!(message, "the store of files says `SignatureDoesNotMatch`");
        let Error::Refused { status, message, .. } = refusal(403, b"<html>no</html>") else {
            panic!("403 is definite");
        };
        assert_eq!((status, message.as_str()), (403, "<html>no</html>"));
    }
}
