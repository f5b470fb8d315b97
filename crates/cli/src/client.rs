//! The API, as a client calls it.

use std::io;
use std::time::Duration;

use rayreel_domain::wire::admin::{CreateKey, KEYS_PATH, KeyBody, KeyList};
use rayreel_domain::wire::api::{
    CancelBody, ErrorBody, SubmitBody, TASKS_PATH, TaskBody, TaskList,
};
use rayreel_domain::{Code, TaskId};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::sse::{self, Event};

/// With it the server says that the model of a submitted task is a test pattern.
const TEST_PATTERN: HeaderName = HeaderName::from_static("x-rayreel-test-pattern");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Until a server has shown that it lives.
const PROBE: Duration = Duration::from_secs(5);
/// Until a call is answered whole; streams and files have no such limit.
const ANSWER: Duration = Duration::from_secs(30);
/// Until a request is on the server, with a picture it may carry.
const SUBMIT: Duration = Duration::from_secs(120);
/// Without a byte for so long, a stream is dead: the server sends signs of life more often.
const SILENCE: Duration = Duration::from_secs(60);

/// Longest answer but files; a page of a hundred tasks with long prompts is a few megabytes.
const MAX_ANSWER: usize = 64 << 20;

/// One server, and the right to call it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
}

/// A task that the server has taken.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub task: TaskBody,
    /// True if its model is a test pattern.
    pub test_pattern: bool,
}

/// Which tasks to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub state: Option<String>,
    pub model: Option<String>,
    pub limit: Option<u8>,
    pub cursor: Option<String>,
}

impl Client {
    pub(crate) fn new(address: &str, token: Option<&str>) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::value(
                "server",
                format!(
                    "`{address}` is not the address of a server ({why}); write it as http://127.0.0.1:8088"
                ),
            )
        };
        let mut base = Url::parse(address).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(wrong("it must begin with http:// or https://"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong("the token goes into RAYREEL_TOKEN"));
        }
        // A proxy may serve it below a path.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        base.set_query(None);
        base.set_fragment(None);
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                Failure::value("RAYREEL_TOKEN", "the token has characters that no token has")
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = rayreel_worker::http::client(&base)
            .default_headers(headers)
            .read_timeout(SILENCE)
            .build()
            .map_err(|error| Failure::new(Code::Internal, cause(&error)))?;
        Ok(Self { http, base })
    }

    pub(crate) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Does a server answer?
    pub(crate) async fn is_alive(&self) -> Result<(), Failure> {
        let call = self.call(Method::GET, "/healthz")?.timeout(PROBE);
        self.send(call).await.map(drop)
    }

    /// Submits a task; the same key makes no second one.
    pub(crate) async fn submit(&self, body: &SubmitBody, key: &str) -> Result<Submitted, Failure> {
        let body = serde_json::to_vec(body).expect("a request is plain data");
        let call = self
            .call(Method::POST, TASKS_PATH)?
            .timeout(SUBMIT)
            .header(CONTENT_TYPE, "application/json")
            .header(IDEMPOTENCY_KEY, key)
            .body(body);
        let response = self.send(call).await?;
        let test_pattern =
            response.headers().get(TEST_PATTERN).is_some_and(|value| value == "true");
        Ok(Submitted { task: self.read(response).await?, test_pattern })
    }

    pub(crate) async fn task(&self, id: TaskId) -> Result<TaskBody, Failure> {
        self.answer(self.call(Method::GET, &format!("{TASKS_PATH}/{id}"))?).await
    }

    pub(crate) async fn list(&self, filter: &Filter) -> Result<TaskList, Failure> {
        let mut url = self.url(TASKS_PATH)?;
        let limit = filter.limit.map(|limit| limit.to_string());
        let parameters = [
            ("state", &filter.state),
            ("model", &filter.model),
            ("limit", &limit),
            ("cursor", &filter.cursor),
        ];
        for (name, value) in parameters {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        self.answer(self.http.get(url)).await
    }

    pub(crate) async fn cancel(&self, id: TaskId) -> Result<CancelBody, Failure> {
        self.answer(self.call(Method::POST, &format!("{TASKS_PATH}/{id}/cancel"))?).await
    }

    /// Deletes a task that has ended; cancels one that has not.
    pub(crate) async fn delete(&self, id: TaskId) -> Result<CancelBody, Failure> {
        self.answer(self.call(Method::DELETE, &format!("{TASKS_PATH}/{id}"))?).await
    }

    /// What happens to a task, from the position after an event on.
    pub(crate) async fn events(&self, id: TaskId, after: Option<&str>) -> Result<Events, Failure> {
        let mut call = self.call(Method::GET, &format!("{TASKS_PATH}/{id}/events"))?;
        if let Some(after) = after {
            call = call.header(LAST_EVENT_ID, after);
        }
        let answer = tokio::time::timeout(ANSWER, self.send(call)).await;
        let response = answer.map_err(|_| self.mute())??;
        Ok(Events { response, parser: sse::Parser::default(), ready: Vec::new().into_iter() })
    }

    /// The file of a task that has succeeded.
    pub(crate) async fn content(&self, id: TaskId, thumbnail: bool) -> Result<Response, Failure> {
        let mut url = self.url(&format!("{TASKS_PATH}/{id}/content"))?;
        if thumbnail {
            url.query_pairs_mut().append_pair("variant", "thumbnail");
        }
        self.send(self.http.get(url)).await
    }

    /// Makes an API key.
    pub(crate) async fn create_key(&self, body: &CreateKey) -> Result<KeyBody, Failure> {
        let body = serde_json::to_vec(body).expect("plain data");
        let call = self.call(Method::POST, KEYS_PATH)?.header(CONTENT_TYPE, "application/json");
        self.answer(call.body(body)).await
    }

    pub(crate) async fn keys(&self) -> Result<KeyList, Failure> {
        self.answer(self.call(Method::GET, KEYS_PATH)?).await
    }

    pub(crate) async fn revoke_key(&self, id: &str) -> Result<KeyBody, Failure> {
        let mut url = self.url(KEYS_PATH)?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(id);
        }
        self.answer(self.http.delete(url)).await
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        self.base
            .join(path.trim_start_matches('/'))
            .map_err(|error| Failure::new(Code::Internal, error.to_string()))
    }

    fn call(&self, method: Method, path: &str) -> Result<RequestBuilder, Failure> {
        Ok(self.http.request(method, self.url(path)?))
    }

    async fn answer<T: DeserializeOwned>(&self, call: RequestBuilder) -> Result<T, Failure> {
        let response = self.send(call.timeout(ANSWER)).await?;
        self.read(response).await
    }

    /// Sends; an answer that is an error is one.
    async fn send(&self, call: RequestBuilder) -> Result<Response, Failure> {
        let response = call.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = self.bytes(response).await?;
        Err(match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(ErrorBody { error }) => Failure {
                param: error.param,
                request_id: Some(error.request_id).filter(|id| !id.is_empty()),
                ..Failure::new(
                    Code::from_name(&error.code).unwrap_or_else(|| code_of(status)),
                    error.message,
                )
            },
            Err(_) => Failure::new(
                code_of(status),
                format!("{} answers {status}, and not as a rayreel server does", self.address()),
            ),
        })
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let bytes = self.bytes(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let text =
                format!("{} does not answer as a rayreel server does: {error}", self.address());
            Failure::new(Code::Internal, text)
        })
    }

    async fn bytes(&self, mut response: Response) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if bytes.len() + piece.len() > MAX_ANSWER {
                let text = format!("{} answers with more than {MAX_ANSWER} bytes", self.address());
                return Err(Failure::new(Code::Internal, text));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// It is there, and says nothing.
    fn mute(&self) -> Failure {
        let message = format!("{} takes calls, but does not answer", self.address());
        Failure::new(Code::ServerUnreachable, message).helped(
            "It hangs or is overloaded: its log may say why. Stop it if it does not recover.",
        )
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        if error.is_builder() {
            return Failure::value("server", format!("{}: {}", self.address(), cause(error)));
        }
        if error.is_timeout() && !error.is_connect() {
            return self.mute();
        }
        let message = match io_cause(error) {
            Some(io::ErrorKind::ConnectionRefused) => {
                format!("nothing listens at {}", self.address())
            }
            _ => format!("{} does not answer: {}", self.address(), cause(error)),
        };
        Failure::new(Code::ServerUnreachable, message)
    }
}

/// The innermost reason, which is the one that says something.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Which kind of I/O error is behind it, if one is.
fn io_cause(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind).last()
}

/// What a status means when no code came with it.
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        401 => Code::Unauthorized,
        403 => Code::Forbidden,
        404 => Code::RouteNotFound,
        429 => Code::QueueFull,
        413 => Code::BodyTooLarge,
        502..=504 => Code::ServerUnreachable,
        _ => Code::Internal,
    }
}

/// A stream of events.
#[derive(Debug)]
pub(crate) struct Events {
    response: Response,
    parser: sse::Parser,
    ready: std::vec::IntoIter<Event>,
}

impl Events {
    /// The next event; none when the server has ended the stream or is gone. May be dropped while
    /// it waits.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.next() {
                return Some(event);
            }
            let piece = self.response.chunk().await.ok()??;
            self.ready = self.parser.push(&piece).ok()?.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_refused() {
        for address in ["", "localhost:8088", "ftp://x", "unix:/x", "http://me:pw@x", "http://"] {
            let failure = Client::new(address, None).expect_err("wrong");
            assert_eq!(failure.code, Code::InvalidValue, "{address}");
            assert!(failure.message.contains("write it as"), "{address}: {}", failure.message);
        }
        assert_eq!(
            Client::new("http://x", Some("a\nb")).expect_err("wrong").param.as_deref(),
            Some("RAYREEL_TOKEN")
        );
    }

    #[test]
    fn a_server_may_live_below_a_path() {
        for (address, expected) in [
            ("http://127.0.0.1:8088", "http://127.0.0.1:8088/v1/video/generations"),
            ("http://gpu.example/video/?x#y", "http://gpu.example/video/v1/video/generations"),
        ] {
            let client = Client::new(address, Some("t")).expect("right");
            assert_eq!(client.url(TASKS_PATH).expect("joins").as_str(), expected);
        }
    }

    #[test]
    fn a_token_does_not_show() {
        let client = Client::new("http://x", Some("secret")).expect("right");
        assert!(!format!("{client:?}").contains("secret"), "{client:?}");
    }
}
