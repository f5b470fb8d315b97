//! Workers without an engine: they speak the worker API, so that the queue can be measured alone.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use rayreel_domain::code::Code;
use rayreel_domain::lease::Fence;
use rayreel_domain::task::{Failure, Output};
use rayreel_domain::wire::engine::Role;
use rayreel_domain::wire::worker::{
    Beat, BeatAnswer, Beaten, Claim, Claimed, Commit, Fail, Register, Registered, UploadTargets,
    Uploads,
};
use rayreel_domain::{PoolName, WorkerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::http::{Connection, Request};
use crate::server::Server;

/// A registered worker and its connection.
#[derive(Debug)]
pub(crate) struct FakeWorker {
    connection: Connection,
    token: String,
    name: WorkerName,
    incarnation: u64,
    seq: u64,
}

/// What every fake worker uploads.
const FILE: &[u8] = &[0; 1024];

impl FakeWorker {
    pub(crate) async fn register(
        address: SocketAddr,
        token: &str,
        name: &str,
    ) -> anyhow::Result<Self> {
        Self::register_on(Connection::open(address).await?, token, name).await
    }

    /// Registers over a connection that is open already.
    pub(crate) async fn register_on(
        connection: Connection,
        token: &str,
        name: &str,
    ) -> anyhow::Result<Self> {
        let name: WorkerName = name.parse()?;
        let pool: PoolName = "local".parse()?;
        let token = token.to_owned();
        let mut worker = Self { connection, token, name: name.clone(), incarnation: 0, seq: 0 };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let register = Register { worker: name, pool, launch: None, version };
        let registered: Registered = worker.call("register", &register).await?;
        worker.incarnation = registered.incarnation;
        Ok(worker)
    }

    /// The next task, if there is one now.
    pub(crate) async fn claim(&mut self) -> anyhow::Result<Option<Fence>> {
        self.seq += 1;
        let claim = Claim {
            worker: self.name.clone(),
            incarnation: self.incarnation,
            seq: self.seq,
            holding: Vec::new(),
            loaded: None,
            self_test: None,
            wait_ms: 0,
        };
        match self.call("claim", &claim).await? {
            Claimed::Task(assignment) => Ok(Some(assignment.fence)),
            Claimed::Nothing => Ok(None),
            other => bail!("a claim was answered with {other:?}"),
        }
    }

    /// Confirms the claim.
    pub(crate) async fn beat(&mut self, fence: Fence) -> anyhow::Result<()> {
        let (worker, incarnation) = (self.name.clone(), self.incarnation);
        let beat = Beat { worker, incarnation, fence, progress: None };
        match self.call::<BeatAnswer>("beat", &beat).await?.answer {
            Beaten::Continue => Ok(()),
            other => bail!("a beat was answered with {other:?}"),
        }
    }

    /// Ends the task without files.
    pub(crate) async fn fail(&mut self, fence: Fence) -> anyhow::Result<()> {
        let failure = Failure {
            // Not the engine's fault: that would end in quarantine.
            code: Code::InvalidValue,
            message: "ended by the bench".to_owned(),
            detail: None,
            retryable: false,
        };
        let (worker, incarnation) = (self.name.clone(), self.incarnation);
        let fail = Fail { worker, incarnation, fence, failure };
        self.call::<serde_json::Value>("fail", &fail).await.map(|_| ())
    }

    /// Uploads one small file and commits it.
    pub(crate) async fn finish(&mut self, fence: Fence) -> anyhow::Result<()> {
        let sha256 = Sha256::digest(FILE).iter().map(|byte| format!("{byte:02x}")).collect();
        let manifest = vec![Output {
            index: 0,
            role: Role::Video,
            media_type: "video/mp4".to_owned(),
            bytes: FILE.len() as u64,
            sha256,
            width: 832,
            height: 480,
            frames: 49,
            fps: 16,
        }];
        let (worker, incarnation) = (self.name.clone(), self.incarnation);
        let uploads = Uploads { worker, incarnation, fence, manifest: manifest.clone() };
        let targets: UploadTargets = self.call("uploads", &uploads).await?;
        let target = targets.targets.first().context("no target for the file")?;
        let put = Request::put(&target.url, &self.token, FILE);
        let answer = self.connection.call(&put).await?;
        if !(200..300).contains(&answer.status) {
            bail!("the upload was refused: {}", String::from_utf8_lossy(answer.body));
        }
        let worker = self.name.clone();
        let (metrics, test_pattern) = (Default::default(), true);
        let commit = Commit { worker, incarnation, fence, manifest, metrics, test_pattern };
        self.call::<serde_json::Value>("commit", &commit).await.map(|_| ())
    }

    async fn call<T: DeserializeOwned>(
        &mut self,
        name: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let path = format!("/v1/worker/{name}");
        let request = Request::post(&path, Some(&self.token), &serde_json::to_vec(body)?);
        let answer = self.connection.call(&request).await?;
        let body = answer.expect(200).with_context(|| format!("{name} failed"))?;
        serde_json::from_slice(body).with_context(|| format!("the answer to {name} is not known"))
    }
}

/// What a fake worker does with a task that it has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Ends it without files: three operations of the queue.
    Fail,
    /// Uploads a small file, durably, and commits it.
    Finish,
}

/// Lets some workers work until the queue is empty; answers how many tasks that were.
pub(crate) async fn drain(
    server: &Server,
    workers: usize,
    ending: Ending,
) -> anyhow::Result<usize> {
    let mut lanes = tokio::task::JoinSet::new();
    for number in 0..workers {
        let (address, token) = (server.address, server.worker_token.clone());
        lanes.spawn(async move {
            let name = format!("bench-{number}");
            let mut worker = FakeWorker::register(address, &token, &name).await?;
            let mut done = 0;
            while let Some(fence) = worker.claim().await? {
                worker.beat(fence).await?;
                match ending {
                    Ending::Fail => worker.fail(fence).await?,
                    Ending::Finish => worker.finish(fence).await?,
                }
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(lane) = lanes.join_next().await {
        done += lane??;
    }
    Ok(done)
}
