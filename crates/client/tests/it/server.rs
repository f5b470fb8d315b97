//! The real server on a runtime of its own, so that it can die, and a worker that does as it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc;

use rayreel_client::domain::Fence;
use rayreel_client::domain::task::Output;
use rayreel_client::domain::wire::engine::Role;
use rayreel_client::domain::wire::worker::{Claimed, Progress, Registered, UploadTargets};
use rayreel_client::{Builder, Client, SubmitBody};
use rayreel_server::Components;
use rayreel_server::clock::Random;
use rayreel_server::config::{Settings, Sources};
use rayreel_server::home::Home;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

pub(crate) struct Server {
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
    pub(crate) address: SocketAddr,
    runtime: Option<Runtime>,
    client_token: String,
    worker_token: String,
    http: reqwest::Client,
}

impl Server {
    /// Settings are given as environment variables.
    pub(crate) fn start(variables: &[(&str, &str)]) -> Self {
        let mut server = Self {
            folder: tempfile::tempdir().unwrap(),
            variables: variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            address: "127.0.0.1:0".parse().unwrap(),
            runtime: None,
            client_token: String::new(),
            worker_token: String::new(),
            http: connections(),
        };
        server.come_back();
        server
    }

    /// Dies, with every connection.
    pub(crate) fn die(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Starts at the same address, on the same data.
    pub(crate) fn come_back(&mut self) {
        let data = self.folder.path().join("data");
        // Who has died may still be about to let go of it.
        let home = loop {
            match Home::open(&data, &Random::from_system()) {
                Ok(home) => break home,
                Err(rayreel_server::home::Error::InUse { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        let sources = Sources {
            data: Some(data.clone()),
            directory: self.folder.path().to_owned(),
            variables: self.variables.iter().map(|(k, v)| (k.into(), v.into())).collect(),
            ..Sources::default()
        };
        let mut settings = Settings::load(&sources).unwrap();
        for pool in settings.pools.values_mut() {
            // The test is the worker.
            (pool.min, pool.max) = (0, 0);
        }
        self.client_token = home.client_token().to_owned();
        self.worker_token = home.worker_token().to_owned();
        // Connections to who has died are of no use.
        self.http = connections();
        let runtime = Runtime::new().unwrap();
        let address = self.address;
        let (tell, told) = mpsc::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let components = Components::open(&settings, &home, vec!["none".to_owned()]).await;
            let components = components.unwrap();
            let shutdown = CancellationToken::new();
            rayreel_server::run(settings, components, listener, shutdown).await.unwrap();
            drop(home);
        });
        self.address = told.recv().unwrap();
        self.runtime = Some(runtime);
    }

    pub(crate) fn builder(&self) -> Builder {
        Client::builder(&format!("http://{}", self.address))
    }

    pub(crate) fn client(&self) -> Client {
        // Of the same user: it may do everything.
        self.builder().key(&self.client_token).build().unwrap()
    }

    pub(crate) async fn worker(&self) -> Worker<'_> {
        let mut worker = Worker { server: self, incarnation: 0, seq: 0 };
        let message = json!({"worker": "w", "pool": "local", "version": "test"});
        worker.incarnation = worker.send::<Registered>("register", message).await.incarnation;
        worker
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn connections() -> reqwest::Client {
    rayreel_client::http::client(&"http://127.0.0.1".parse().unwrap()).build().unwrap()
}

pub(crate) struct Worker<'s> {
    server: &'s Server,
    incarnation: u64,
    seq: u64,
}

impl Worker<'_> {
    async fn send<T: DeserializeOwned>(&self, call: &str, body: Value) -> T {
        let url = format!("http://{}/v1/worker/{call}", self.server.address);
        let request = self.server.http.request(Method::POST, url);
        let request = request.bearer_auth(&self.server.worker_token);
        let request = request.header("content-type", "application/json").body(body.to_string());
        let answer = request.send().await.unwrap();
        let (status, bytes) = (answer.status(), answer.bytes().await.unwrap());
        assert_eq!(status, 200, "{call}: {}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }

    async fn call<T: DeserializeOwned>(&self, call: &str, mut body: Value) -> T {
        body["worker"] = json!("w");
        body["incarnation"] = json!(self.incarnation);
        self.send(call, body).await
    }

    /// Takes the next task.
    pub(crate) async fn take(&mut self) -> Fence {
        self.seq += 1;
        match self.call("claim", json!({"seq": self.seq, "wait_ms": 20_000})).await {
            Claimed::Task(assignment) => assignment.fence,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn beat(&self, fence: Fence, step: u32) {
        let progress = Progress { stage: "denoise".to_owned(), step, steps: 10 };
        let body = json!({"fence": fence, "progress": progress});
        let answer: BTreeMap<String, String> = self.call("beat", body).await;
        assert_eq!(answer["answer"], "continue");
    }

    /// Delivers these bytes as the video, and a thumbnail.
    pub(crate) async fn finish(&self, fence: Fence, video: &[u8]) {
        let files = [(Role::Video, "video/mp4", video), (Role::Thumbnail, "image/png", b"still")];
        let manifest: Vec<Output> = (0..)
            .zip(files)
            .map(|(index, (role, media_type, bytes))| Output {
                index,
                role,
                media_type: media_type.to_owned(),
                bytes: bytes.len() as u64,
                sha256: rayreel_server::artifacts::sha256(bytes),
                width: 64,
                height: 64,
                frames: 5,
                fps: 16,
            })
            .collect();
        let body = json!({"fence": fence, "manifest": manifest});
        let targets: UploadTargets = self.call("uploads", body.clone()).await;
        for (target, (.., bytes)) in targets.targets.iter().zip(files) {
            let url = format!("http://{}{}", self.server.address, target.url);
            let put = self.server.http.put(url).bearer_auth(&self.server.worker_token);
            assert_eq!(put.body(bytes.to_vec()).send().await.unwrap().status(), 200);
        }
        let _: Value = self.call("commit", body).await;
    }
}

/// A request for a small video.
pub(crate) fn small(prompt: &str) -> SubmitBody {
    SubmitBody {
        prompt: Some(prompt.to_owned()),
        size: Some("64x64".to_owned()),
        frames: Some(5),
        steps: Some(1),
        ..SubmitBody::default()
    }
}
