//! A served [`World`], and those who call it.

use std::sync::Arc;

use rayreel_domain::id::TaskId;
use rayreel_domain::lease::Fence;
use rayreel_domain::task::Output;
use rayreel_domain::wire::api::{ErrorDetail, TaskBody};
use rayreel_domain::wire::engine::Role;
use rayreel_domain::wire::worker::{
    Assignment, BeatAnswer, Claimed, Progress, Registered, UploadTargets,
};
use rayreel_server::api::serve;
use rayreel_server::{App, artifacts};
use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::documented;
use crate::world::World;

pub(super) const TASKS: &str = "/v1/video/generations";
pub(super) const TOKEN: &str = "secret";
/// The token of clients that can read the data directory.
pub(super) const LOCAL_TOKEN: &str = "client-secret";

/// A server that listens, until it is dropped.
pub(super) struct Server {
    pub(super) world: World,
    pub(super) app: Arc<App>,
    pub(super) address: String,
    pub(super) http: reqwest::Client,
    pub(super) shutdown: CancellationToken,
    pub(super) serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Settings are given as environment variables.
    pub(super) async fn with(settings: &[(&str, &str)]) -> Self {
        let world = World::new(settings);
        let app = Arc::clone(&world.app);
        Self::serve(world, app).await
    }

    /// One whose duties are at work as well.
    pub(super) async fn running(settings: &[(&str, &str)]) -> Self {
        Self::run(World::new(settings)).await
    }

    async fn run(world: World) -> Self {
        let (settings, components) = (world.app.settings.clone(), world.app.components.clone());
        let app = Arc::clone(&world.app);
        Self::listen(world, app, async move |listener, shutdown| {
            let ran = rayreel_server::run(settings, components, listener, shutdown).await;
            ran.map_err(std::io::Error::other)
        })
        .await
    }

    /// Another server on the same data, whose duties are at work.
    pub(super) async fn started_anew(self) -> Self {
        Self::run(self.world.clone()).await
    }

    pub(super) async fn serve(world: World, app: Arc<App>) -> Self {
        let served = Arc::clone(&app);
        Self::listen(world, app, |listener, shutdown| serve(listener, served, shutdown)).await
    }

    async fn listen<S>(
        world: World,
        app: Arc<App>,
        serve: impl FnOnce(TcpListener, CancellationToken) -> S,
    ) -> Self
    where
        S: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, shutdown.clone()));
        // The workspace's one way to build a client: it brings the TLS provider that reqwest lacks
        // when all crates are tested together.
        let http = rayreel_client::http::client(&"http://127.0.0.1".parse().unwrap());
        let http = http.build().unwrap();
        Self { world, app, address, http, shutdown, serving }
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.address))
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(body)).await
    }

    /// Sends a form: fields with their texts, and files with their names and bytes.
    pub(super) async fn form(
        &self,
        path: &str,
        fields: &[(&str, &str)],
        files: &[(&str, &str, &[u8])],
    ) -> Answer {
        let mut body = Vec::new();
        for (name, text) in fields {
            let head = format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
            body.extend_from_slice(format!("{head}{text}\r\n").as_bytes());
        }
        for (name, filename, bytes) in files {
            let head = format!(
                "--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{filename}\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n"
            );
            body.extend([head.as_bytes(), bytes, b"\r\n"].concat());
        }
        body.extend_from_slice(b"--b--\r\n");
        let request = self.request(Method::POST, path);
        Answer::of(request.header("content-type", "multipart/form-data; boundary=b").body(body))
            .await
    }

    pub(super) async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    /// Submits a small task.
    pub(super) async fn submit(&self, prompt: &str) -> TaskBody {
        let answer = self.post(TASKS, &json!({"prompt": prompt, "frames": 5, "steps": 2})).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()
    }

    pub(super) async fn task(&self, id: &str) -> TaskBody {
        let answer = self.get(&format!("{TASKS}/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Tells the server to stop, and waits until it has.
    pub(super) async fn stop(mut self) {
        self.shutdown.cancel();
        (&mut self.serving).await.unwrap().unwrap();
    }

    /// How many tasks there are.
    pub(super) async fn count(&self) -> usize {
        let answer = self.get(&format!("{TASKS}?limit=100")).await;
        answer.json::<Value>()["data"].as_array().unwrap().len()
    }

    /// Registers a worker of the default pool.
    pub(super) async fn worker(&self, name: &str) -> Worker<'_> {
        self.register(name, json!({"worker": name, "pool": "local", "version": "test"})).await
    }

    /// The same, as one that a fleet has started.
    pub(super) async fn launched_worker(&self, name: &str) -> Worker<'_> {
        let message = json!({"worker": name, "pool": "local", "launch": name, "version": "test"});
        self.register(name, message).await
    }

    async fn register(&self, name: &str, message: Value) -> Worker<'_> {
        let registered: Registered = self.call("register", &message).await.json();
        Worker { server: self, name: name.to_owned(), incarnation: registered.incarnation }
    }

    /// A call of the worker API, with the token.
    pub(super) async fn call(&self, call: &str, body: &Value) -> Answer {
        let path = format!("/v1/worker/{call}");
        Answer::of(self.request(Method::POST, &path).bearer_auth(TOKEN).json(body)).await
    }

    /// Sends these bytes as they are, and reads until the server closes or has said it all.
    pub(super) async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut socket = TcpStream::connect(&self.address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let mut text = Vec::new();
        loop {
            if let Some(answer) = Answer::parse(&text) {
                return answer;
            }
            let read = socket.read_buf(&mut text).await.unwrap();
            assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&text));
        }
    }

    /// Value of a metric without labels, or with exactly these.
    pub(super) async fn metric(&self, name: &str) -> Option<f64> {
        // Sent in any case: it is ignored until there are keys.
        let request = self.request(Method::GET, "/metrics").bearer_auth(LOCAL_TOKEN);
        let text = Answer::of(request).await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    /// Waits until the metric has the value.
    pub(super) async fn until_metric(&self, name: &str, value: f64) {
        let reached = async { while self.metric(name).await != Some(value) {} };
        let limit = std::time::Duration::from_secs(20);
        tokio::time::timeout(limit, reached).await.unwrap_or_else(|_| panic!("{name} ≠ {value}"));
    }
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) async fn of(request: RequestBuilder) -> Self {
        let (client, request) = request.build_split();
        let request = request.unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let response = client.execute(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        documented::check(&method, &path, status, &headers);
        Self { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }

    /// A whole answer with a Content-Length, once it is there.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers: HeaderMap = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| {
                (name.parse::<HeaderName>().unwrap(), value.trim().parse().unwrap())
            })
            .collect();
        let length: usize = headers["content-length"].to_str().unwrap().parse().unwrap();
        let body = bytes.get(end + 4..end + 4 + length)?.to_vec();
        Some(Self { status, headers, body })
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The refusal: every one has the form that the documentation promises.
    pub(super) fn refusal(&self) -> ErrorDetail {
        assert!(self.status.is_client_error() || self.status.is_server_error(), "{self:?}");
        assert_eq!(self.header("content-type"), "application/json");
        let body: Value = self.json();
        let keys: Vec<&str> = body["error"].as_object().unwrap().keys().map(|k| &**k).collect();
        assert_eq!(keys, ["code", "message", "param", "request_id", "type"]);
        let detail: ErrorDetail = serde_json::from_value(body["error"].clone()).unwrap();
        assert_eq!(detail.request_id, self.header("x-request-id"));
        assert!(!detail.request_id.is_empty());
        let entry = rayreel_domain::Code::from_name(&detail.code).expect("a code").entry();
        assert_eq!(detail.kind, entry.kind.as_str());
        detail
    }

    /// The status of what is a refusal in the one form.
    pub(super) fn refusal_status(&self) -> u16 {
        self.refusal();
        self.status.as_u16()
    }

    /// Asserts a refusal by its status, code and param.
    pub(super) fn refused(&self, status: u16, code: &str, param: Option<&str>) -> ErrorDetail {
        let refusal = self.refusal();
        let found = (self.status.as_u16(), &*refusal.code, refusal.param.as_deref());
        assert_eq!(found, (status, code, param), "{}", refusal.message);
        refusal
    }
}

/// A registered worker.
pub(super) struct Worker<'s> {
    pub(super) server: &'s Server,
    pub(super) name: String,
    pub(super) incarnation: u64,
}

impl Worker<'_> {
    /// A call that says who calls.
    pub(super) async fn call(&self, call: &str, mut body: Value) -> Answer {
        body["worker"] = json!(self.name);
        body["incarnation"] = json!(self.incarnation);
        self.server.call(call, &body).await
    }

    pub(super) async fn claim(&self, seq: u64, wait_ms: u64) -> Claimed {
        let answer = self.call("claim", json!({"seq": seq, "wait_ms": wait_ms})).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// Claims the task that is there.
    pub(super) async fn take(&self, seq: u64) -> Assignment {
        match self.claim(seq, 0).await {
            Claimed::Task(assignment) => *assignment,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn beat(&self, fence: Fence, progress: Option<Progress>) -> BeatAnswer {
        self.call("beat", json!({"fence": fence, "progress": progress})).await.json()
    }

    pub(super) async fn targets(&self, fence: Fence, manifest: &[Output]) -> Vec<String> {
        let answer = self.call("uploads", json!({"fence": fence, "manifest": manifest})).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json::<UploadTargets>().targets.into_iter().map(|target| target.url).collect()
    }

    pub(super) async fn put(&self, path: &str, bytes: &[u8]) -> Answer {
        let request = self.server.request(Method::PUT, path).bearer_auth(TOKEN);
        Answer::of(request.body(bytes.to_vec())).await
    }

    pub(super) async fn commit(&self, fence: Fence, manifest: &[Output]) -> Answer {
        let body = json!({"fence": fence, "manifest": manifest, "test_pattern": true});
        self.call("commit", body).await
    }

    /// Uploads and commits these files.
    pub(super) async fn finish(&self, fence: Fence, files: &[(Output, &[u8])]) {
        let manifest: Vec<Output> = files.iter().map(|(output, _)| output.clone()).collect();
        let targets = self.targets(fence, &manifest).await;
        for (target, (_, bytes)) in targets.iter().zip(files) {
            let put = self.put(target, bytes).await;
            assert_eq!(put.status, 200, "{}", put.text());
        }
        let commit = self.commit(fence, &manifest).await;
        assert_eq!(commit.status, 200, "{}", commit.text());
    }
}

/// What a manifest says of a file.
pub(super) fn output(index: u32, role: Role, bytes: &[u8]) -> Output {
    Output {
        index,
        role,
        media_type: if role == Role::Video { "video/mp4" } else { "image/png" }.to_owned(),
        bytes: bytes.len() as u64,
        sha256: artifacts::sha256(bytes),
        width: 832,
        height: 480,
        frames: 5,
        fps: 16,
    }
}

pub(super) fn video(bytes: &[u8]) -> Output {
    output(0, Role::Video, bytes)
}

pub(super) fn id(task: &TaskBody) -> TaskId {
    task.id.parse().unwrap()
}
