//! The calls of the API.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use rayreel_domain::wire::admin::{CreateKey, KEYS_PATH, KeyBody, KeyList};
use rayreel_domain::wire::api::{
    CancelBody, ErrorBody, ErrorDetail, SubmitAnswer, SubmitBody, TASKS_PATH, TaskBody, TaskList,
};
use rayreel_domain::wire::files::{FILES_PATH, FileBody, FileDeleted, FileList};
use rayreel_domain::wire::models::ModelList;
use rayreel_domain::{Code, TaskId};
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::multipart::{Form, Part};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWrite;

use crate::content::{Content, Downloaded, Variant};
use crate::error::{AddressFault, ApiError, Error, TransportKind, cause, code_of};
use crate::events::{Connection, Events};
use crate::http;
use crate::pages::{Filter, Tasks};
use crate::retry::{Repeat, Retry};

/// With it the server says that the model of a submitted task is a test pattern.
const TEST_PATTERN: HeaderName = HeaderName::from_static("x-rayreel-test-pattern");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const MODELS_PATH: &str = "/v1/models";

/// Until a server has shown that it lives.
const PROBE: Duration = Duration::from_secs(5);

/// Longest answer but files; a page of a hundred tasks with long prompts is a few megabytes.
const MAX_ANSWER: usize = 64 << 20;

/// One server, and the right to call it. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    limits: Limits,
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Until a call is answered whole.
    answer: Duration,
    /// Until what is sent is on the server, and answered.
    upload: Duration,
    silence: Duration,
    pub(crate) outage: Duration,
    pub(crate) retry: Retry,
}

/// Makes a [`Client`].
#[derive(Debug, Clone)]
pub struct Builder {
    address: String,
    key: Option<HeaderValue>,
    is_key_wrong: bool,
    limits: Limits,
}

/// What the server has taken.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Submitted {
    /// Id of `task`.
    pub id: TaskId,
    /// The task, or the first of them.
    pub task: TaskBody,
    /// The rest of them, if the request's `n` was more than 1.
    pub others: Vec<TaskBody>,
    /// True if their model is a test pattern.
    pub test_pattern: bool,
}

/// A new idempotency key, for [`Client::submit_with_key`].
pub fn idempotency_key() -> String {
    format!("rayreel-{}", uuid::Uuid::new_v4().simple())
}

impl Builder {
    /// The API key. A server on this machine needs none as long as it has none.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        let value = HeaderValue::try_from(format!("Bearer {key}")).ok();
        self.is_key_wrong = value.is_none();
        self.key = value.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        self
    }

    /// How long a call may take until it is answered whole; 30 s. Streams of events and files have
    /// no such limit.
    #[must_use]
    pub fn answer_timeout(mut self, limit: Duration) -> Self {
        self.limits.answer = limit;
        self
    }

    /// The same for a submit, with a picture it may carry, and for an upload; 120 s.
    #[must_use]
    pub fn upload_timeout(mut self, limit: Duration) -> Self {
        self.limits.upload = limit;
        self
    }

    /// Without a byte for so long a stream is dead; 60 s. The server shows every 15 s that it lives.
    #[must_use]
    pub fn silence_timeout(mut self, limit: Duration) -> Self {
        self.limits.silence = limit;
        self
    }

    /// How often a call is made again after the server was busy (429, 503) or away; 4. Only what may
    /// be repeated is: a submit carries an idempotency key, but a key or a deletion is not made twice.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.limits.retry.retries = retries;
        self
    }

    /// The longest pause before another try; 30 s. When the server's `Retry-After` is longer, its
    /// refusal is the answer.
    #[must_use]
    pub fn longest_pause(mut self, limit: Duration) -> Self {
        self.limits.retry.longest_pause = limit;
        self
    }

    /// For how long [`Events`] tries to reach a server that is away; half an hour.
    #[must_use]
    pub fn outage(mut self, limit: Duration) -> Self {
        self.limits.outage = limit;
        self
    }

    /// The client; no call is made yet.
    pub fn build(self) -> Result<Client, Error> {
        let Self { address, key, is_key_wrong, limits } = self;
        let wrong = |fault| Error::Address { address: address.clone(), fault };
        let mut base = Url::parse(&address)
            .map_err(|error| wrong(AddressFault::Malformed(error.to_string())))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(wrong(AddressFault::Scheme));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong(AddressFault::Credentials));
        }
        // A proxy may serve it below a path.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        base.set_query(None);
        base.set_fragment(None);
        if is_key_wrong {
            return Err(Error::Key);
        }
        let headers: HeaderMap = key.map(|key| (AUTHORIZATION, key)).into_iter().collect();
        let http = http::client(&base)
            .default_headers(headers)
            .read_timeout(limits.silence)
            .build()
            .map_err(|error| Error::Setup(cause(&error)))?;
        Ok(Client { http, base, limits })
    }
}

impl Client {
    /// A client for the server at this address, such as `http://127.0.0.1:8088`; a proxy may serve
    /// it below a path.
    pub fn builder(address: &str) -> Builder {
        Builder {
            address: address.to_owned(),
            key: None,
            is_key_wrong: false,
            limits: Limits {
                answer: Duration::from_secs(30),
                upload: Duration::from_secs(120),
                silence: Duration::from_secs(60),
                outage: Duration::from_secs(1800),
                retry: Retry { retries: 4, longest_pause: Duration::from_secs(30) },
            },
        }
    }

    /// The server's address, without a slash at its end.
    pub fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Does a server answer? One try, of 5 seconds at most.
    pub async fn is_alive(&self) -> Result<(), Error> {
        let call = self.call(Method::GET, "/healthz")?.timeout(PROBE);
        self.send(call).await.map(drop)
    }

    /// Submits a request. However often it has to be sent, it makes its task (or its `n` tasks) once.
    pub async fn submit(&self, request: &SubmitBody) -> Result<Submitted, Error> {
        self.submit_with_key(request, &idempotency_key()).await
    }

    /// The same with an idempotency key of your own: within 24 hours, the same key makes no second
    /// task, but answers with the first.
    pub async fn submit_with_key(
        &self,
        request: &SubmitBody,
        key: &str,
    ) -> Result<Submitted, Error> {
        let body = json(request);
        let (headers, bytes) = self
            .exchange(Repeat::Always, || {
                let call = self.call(Method::POST, TASKS_PATH)?.header(IDEMPOTENCY_KEY, key);
                Ok(with_json(call, &body).timeout(self.limits.upload))
            })
            .await?;
        let mut tasks = match self.decode(&bytes)? {
            SubmitAnswer::One(task) => vec![*task],
            SubmitAnswer::Several(batch) => batch.data,
        };
        if tasks.is_empty() {
            return Err(self.foreign(200, "it names no task"));
        }
        let task = tasks.remove(0);
        let id = task.id.parse().map_err(|_| {
            let id: String = task.id.chars().take(60).collect();
            let message = format!("the server names a task `{id}`");
            Error::Answer { status: 200, message, retry_after: None }
        })?;
        let test_pattern = headers.get(TEST_PATTERN).is_some_and(|value| value == "true");
        Ok(Submitted { id, task, others: tasks, test_pattern })
    }

    /// A task as it is now.
    pub async fn task(&self, id: TaskId) -> Result<TaskBody, Error> {
        self.get(|| self.call(Method::GET, &format!("{TASKS_PATH}/{id}"))).await
    }

    /// Waits until a task has ended, across lost connections and restarts of the server, and gives
    /// it as it is then. It may have failed: see its `status` and its `error`.
    pub async fn wait(&self, id: TaskId) -> Result<TaskBody, Error> {
        let mut events = self.events(id);
        while let Some(event) = events.next().await {
            event?;
        }
        self.task(id).await
    }

    /// A page of tasks, newest first; [`tasks`](Self::tasks) follows the pages.
    pub async fn list(&self, filter: &Filter) -> Result<TaskList, Error> {
        self.get(|| {
            let mut url = self.url(TASKS_PATH)?;
            for (name, value) in filter.parameters() {
                url.query_pairs_mut().append_pair(name, &value);
            }
            Ok(self.http.get(url))
        })
        .await
    }

    /// Every task, newest first, page by page. The filter's `limit` is the size of a page.
    pub fn tasks(&self, filter: Filter) -> Tasks {
        Tasks::new(self.clone(), filter)
    }

    /// Cancels a task that is queued or running; one that has ended stays as it is.
    pub async fn cancel(&self, id: TaskId) -> Result<CancelBody, Error> {
        let path = format!("{TASKS_PATH}/{id}/cancel");
        self.get(|| self.call(Method::POST, &path)).await
    }

    /// Deletes a task that has ended, with its files; cancels one that has not. The answer says
    /// which.
    pub async fn delete(&self, id: TaskId) -> Result<CancelBody, Error> {
        let path = format!("{TASKS_PATH}/{id}");
        self.answer(Repeat::IfWithoutEffect, || self.call(Method::DELETE, &path)).await
    }

    /// What happens to a task, from its beginning to its end, across lost connections and restarts
    /// of the server.
    pub fn events(&self, id: TaskId) -> Events {
        Events::new(self.clone(), id)
    }

    /// One connection of a stream of events, from behind the event with the id `after` on; it ends
    /// with the connection. For those who decide themselves when to connect again.
    pub async fn connect(&self, id: TaskId, after: Option<&str>) -> Result<Connection, Error> {
        Connection::open(self, id, after).await
    }

    /// The file of a task that has succeeded, to be read piece by piece.
    pub async fn content(&self, id: TaskId, variant: Variant) -> Result<Content, Error> {
        Content::open(self.clone(), id, variant).await
    }

    /// Writes the file of a task that has succeeded, and flushes. An error may come after a part of
    /// it was written: use the file only after this has said that it is whole.
    pub async fn download(
        &self,
        id: TaskId,
        variant: Variant,
        writer: &mut (impl AsyncWrite + Unpin + ?Sized),
    ) -> Result<Downloaded, Error> {
        self.content(id, variant).await?.copy_to(writer).await
    }

    /// Uploads a PNG, JPEG or WebP file; name its `id` as `image` of a request.
    pub async fn upload(&self, name: &str, file: impl Into<Bytes>) -> Result<FileBody, Error> {
        let file = file.into();
        // A repetition leaves a second record of the same bytes, which expires.
        let (_, bytes) = self
            .exchange(Repeat::Always, || {
                let part = Part::stream_with_length(file.clone(), file.len() as u64);
                let form = Form::new().part("file", part.file_name(name.to_owned()));
                let call = self.call(Method::POST, FILES_PATH)?;
                Ok(call.multipart(form).timeout(self.limits.upload))
            })
            .await?;
        self.decode(&bytes)
    }

    /// The newest uploaded files, from behind the file with the id `after` on.
    pub async fn files(&self, after: Option<&str>) -> Result<FileList, Error> {
        self.get(|| {
            let mut url = self.url(FILES_PATH)?;
            if let Some(after) = after {
                url.query_pairs_mut().append_pair("after", after);
            }
            Ok(self.http.get(url))
        })
        .await
    }

    /// Deletes an uploaded file.
    pub async fn delete_file(&self, id: &str) -> Result<FileDeleted, Error> {
        let call = || Ok(self.http.delete(self.below(FILES_PATH, id)?));
        self.answer(Repeat::IfWithoutEffect, call).await
    }

    /// The models that requests may name.
    pub async fn models(&self) -> Result<ModelList, Error> {
        self.get(|| self.call(Method::GET, MODELS_PATH)).await
    }

    /// Makes an API key, which needs one with the scope `admin`. Its text is in this answer and
    /// never shown again.
    pub async fn create_key(&self, key: &CreateKey) -> Result<KeyBody, Error> {
        let body = json(key);
        let call = || Ok(with_json(self.call(Method::POST, KEYS_PATH)?, &body));
        self.answer(Repeat::IfWithoutEffect, call).await
    }

    /// All API keys, without their texts.
    pub async fn keys(&self) -> Result<KeyList, Error> {
        self.get(|| self.call(Method::GET, KEYS_PATH)).await
    }

    /// Revokes the API key with this id.
    pub async fn revoke_key(&self, id: &str) -> Result<KeyBody, Error> {
        self.get(|| Ok(self.http.delete(self.below(KEYS_PATH, id)?))).await
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    fn url(&self, path: &str) -> Result<Url, Error> {
        self.base.join(path.trim_start_matches('/')).map_err(|error| Error::Address {
            address: self.address().to_owned(),
            fault: AddressFault::Malformed(error.to_string()),
        })
    }

    /// What has this id, whatever characters are in it.
    pub(crate) fn below(&self, path: &str, id: &str) -> Result<Url, Error> {
        let mut url = self.url(path)?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(id);
        }
        Ok(url)
    }

    /// The answer to a GET of this path.
    pub(crate) async fn see<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.get(|| self.call(Method::GET, path)).await
    }

    /// The answer to a call without a body at this place, which may be repeated.
    pub(crate) async fn at<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
    ) -> Result<T, Error> {
        self.get(|| Ok(self.http.request(method.clone(), url.clone()))).await
    }

    pub(crate) fn call(&self, method: Method, path: &str) -> Result<RequestBuilder, Error> {
        Ok(self.http.request(method, self.url(path)?))
    }

    /// The answer to a call that changes nothing, or nothing more when it is repeated.
    async fn get<T: DeserializeOwned>(
        &self,
        call: impl Fn() -> Result<RequestBuilder, Error>,
    ) -> Result<T, Error> {
        self.answer(Repeat::Always, call).await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        repeat: Repeat,
        call: impl Fn() -> Result<RequestBuilder, Error>,
    ) -> Result<T, Error> {
        let call = || Ok(call()?.timeout(self.limits.answer));
        let (_, bytes) = self.exchange(repeat, call).await?;
        self.decode(&bytes)
    }

    /// Headers and body of an answer, after as many tries as are due.
    async fn exchange(
        &self,
        repeat: Repeat,
        call: impl Fn() -> Result<RequestBuilder, Error>,
    ) -> Result<(HeaderMap, Vec<u8>), Error> {
        let mut tries = 1;
        loop {
            let error = match self.once(call()?).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = self.limits.retry.pause(tries, &error, repeat) else {
                return Err(error);
            };
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }

    async fn once(&self, call: RequestBuilder) -> Result<(HeaderMap, Vec<u8>), Error> {
        let mut response = self.send(call).await?;
        let headers = std::mem::take(response.headers_mut());
        Ok((headers, self.bytes(response).await?))
    }

    /// Opens what has no limit in time once it has begun.
    pub(crate) async fn open(&self, call: RequestBuilder) -> Result<Response, Error> {
        let answer = tokio::time::timeout(self.limits.answer, self.send(call)).await;
        answer.map_err(|_| self.mute())?
    }

    /// A stream, from wherever the server sends its callers; with the tag that the server itself gives.
    /// These headers go there as well, and no key.
    pub(crate) async fn open_anywhere(
        &self,
        call: RequestBuilder,
        headers: HeaderMap,
    ) -> Result<(Response, Option<HeaderValue>), Error> {
        let open = async {
            let sent = call.headers(headers.clone()).send().await;
            let response = sent.map_err(|error| self.unreachable(&error))?;
            let tag = response.headers().get(ETAG).cloned();
            let Some(place) = self.moved(&response)? else {
                return Ok((self.answered(response).await?, tag));
            };
            let broken = |why: String| {
                let message = format!("the files of {} can't be read: {why}", self.address());
                Error::transport(TransportKind::Broken, message)
            };
            // What the address contains is a secret for as long as it is good.
            let failed = |error: reqwest::Error| broken(cause(&error.without_url()));
            let elsewhere = http::client(&place).read_timeout(self.limits.silence);
            let elsewhere = elsewhere.build().map_err(failed)?;
            let response = elsewhere.get(place).headers(headers).send().await.map_err(failed)?;
            // One that has expired meanwhile is replaced when the server is asked again.
            match response.status() {
                status if status.is_success() => Ok((response, tag)),
                status => Err(broken(format!("their place answers {status}"))),
            }
        };
        tokio::time::timeout(self.limits.answer, open).await.map_err(|_| self.mute())?
    }

    /// Where the server sends the caller, if it does.
    fn moved(&self, response: &Response) -> Result<Option<Url>, Error> {
        if response.status() != StatusCode::TEMPORARY_REDIRECT {
            return Ok(None);
        }
        let place = response.headers().get(LOCATION).and_then(|place| place.to_str().ok());
        let url = place.and_then(|place| self.base.join(place).ok());
        url.map(Some).ok_or_else(|| self.foreign(307, "it sends to a place that is none"))
    }

    /// Sends; an answer that is an error is one.
    async fn send(&self, call: RequestBuilder) -> Result<Response, Error> {
        self.answered(call.send().await.map_err(|error| self.unreachable(&error))?).await
    }

    async fn answered(&self, response: Response) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = retry_after.map(Duration::from_secs);
        let bytes = self.bytes(response).await?;
        Err(match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(ErrorBody { error: ErrorDetail { code, message, param, request_id, .. } }) => {
                Error::Api(Box::new(ApiError {
                    status: status.as_u16(),
                    code: Code::from_name(&code).unwrap_or_else(|| code_of(status.as_u16())),
                    name: code,
                    message,
                    param,
                    request_id: Some(request_id).filter(|id| !id.is_empty()),
                    retry_after,
                }))
            }
            Err(_) => Error::Answer {
                status: status.as_u16(),
                message: format!(
                    "{} answers {status}, and not as a rayreel server does",
                    self.address()
                ),
                retry_after,
            },
        })
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| self.foreign(200, &error.to_string()))
    }

    /// An answer that a rayreel server does not give.
    pub(crate) fn foreign(&self, status: u16, why: &str) -> Error {
        let message = format!("{} does not answer as a rayreel server does: {why}", self.address());
        Error::Answer { status, message, retry_after: None }
    }

    async fn bytes(&self, mut response: Response) -> Result<Vec<u8>, Error> {
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if bytes.len() + piece.len() > MAX_ANSWER {
                let message =
                    format!("{} answers with more than {MAX_ANSWER} bytes", self.address());
                return Err(Error::Answer { status, message, retry_after: None });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// It is there, and says nothing.
    fn mute(&self) -> Error {
        let message = format!("{} takes calls, but does not answer", self.address());
        Error::transport(TransportKind::Silent, message)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        if error.is_builder() {
            return Error::Address {
                address: self.address().to_owned(),
                fault: AddressFault::Malformed(cause(error)),
            };
        }
        if error.is_timeout() && !error.is_connect() {
            return self.mute();
        }
        if io_cause(error) == Some(io::ErrorKind::ConnectionRefused) {
            let message = format!("nothing listens at {}", self.address());
            return Error::transport(TransportKind::Refused, message);
        }
        let message = format!("{} does not answer: {}", self.address(), cause(error));
        Error::transport(TransportKind::Broken, message)
    }
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body).expect("requests are plain data").into()
}

fn with_json(call: RequestBuilder, body: &Bytes) -> RequestBuilder {
    call.header(CONTENT_TYPE, "application/json").body(body.clone())
}

/// Which kind of I/O error is behind it, if one is.
fn io_cause(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind).last()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(address: &str) -> Result<Client, Error> {
        Client::builder(address).build()
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        for address in ["", "localhost:8088", "ftp://x", "unix:/x", "http://me:pw@x", "http://"] {
            let error = build(address).expect_err("wrong");
            assert_eq!(error.code(), Code::InvalidValue, "{address}");
            assert!(error.to_string().contains("write it as"), "{address}: {error}");
        }
    }

    #[test]
    fn a_server_may_live_below_a_path() {
        for (address, expected) in [
            ("http://127.0.0.1:8088", "http://127.0.0.1:8088/v1/video/generations"),
            ("http://gpu.example/video/?x#y", "http://gpu.example/video/v1/video/generations"),
        ] {
            let client = build(address).expect("right");
            assert_eq!(client.url(TASKS_PATH).expect("joins").as_str(), expected);
        }
    }

    #[test]
    fn an_id_is_one_step_of_a_path() {
        let url = build("http://x").expect("right").below(KEYS_PATH, "a/../b?c").expect("joins");
        assert_eq!(url.path(), "/v1/admin/keys/a%2F..%2Fb%3Fc");
    }

    #[test]
    fn a_key_is_checked_and_does_not_show() {
        let wrong = Client::builder("http://x").key("a\nb").build();
        assert!(matches!(wrong, Err(Error::Key)), "{wrong:?}");
        let builder = Client::builder("http://x").key("secret");
        assert!(!format!("{builder:?}").contains("secret"), "{builder:?}");
        let client = builder.build().expect("right");
        assert!(!format!("{client:?}").contains("secret"), "{client:?}");
    }

    #[test]
    fn an_idempotency_key_is_new() {
        assert_ne!(idempotency_key(), idempotency_key());
    }
}
