//! A worker without an engine, call by call: it can do what a real one never would.

use rayreel_domain::PoolName;
use rayreel_domain::lease::Fence;
use rayreel_domain::task::Output;
use rayreel_domain::wire::engine::Role;
use rayreel_domain::wire::worker::{
    Assignment, Beat, BeatAnswer, Beaten, Claim, Claimed, Commit, Done, Register, Registered,
    UploadTargets, Uploads,
};
use serde_json::Value;

use super::{Api, Refusal, Server, sha256};

/// A registered worker.
#[derive(Debug)]
pub(crate) struct RawWorker {
    api: Api,
    pub(crate) token: String,
    name: String,
    incarnation: u64,
    seq: u64,
}

impl RawWorker {
    pub(crate) fn register(server: &Server, name: &str) -> Self {
        let mut worker = Self {
            api: server.api(),
            token: server.announced().worker_token,
            name: name.to_owned(),
            incarnation: 0,
            seq: 0,
        };
        let register = Register {
            worker: worker.name.parse().expect("a name"),
            pool: "local".parse::<PoolName>().expect("a name"),
            launch: None,
            version: "test".to_owned(),
        };
        let registered: Registered =
            worker.call("register", &register).expect("the token is right");
        worker.incarnation = registered.incarnation;
        worker
    }

    /// The next claim; the server may hold it for so long.
    pub(crate) fn claim(&mut self, wait_ms: u64) -> Option<Assignment> {
        self.seq += 1;
        self.claim_again(wait_ms)
    }

    /// The claim of before once more, as when its answer was lost.
    pub(crate) fn claim_again(&self, wait_ms: u64) -> Option<Assignment> {
        let claim = Claim {
            worker: self.name.parse().expect("a name"),
            incarnation: self.incarnation,
            seq: self.seq,
            holding: Vec::new(),
            loaded: None,
            self_test: None,
            wait_ms,
        };
        match self.call("claim", &claim).expect("the worker is known") {
            Claimed::Task(task) => Some(*task),
            Claimed::Nothing => None,
            other => panic!("{other:?}"),
        }
    }

    /// The text of a claim request, for those who send it themselves.
    pub(crate) fn claim_text(&mut self, wait_ms: u64) -> String {
        self.seq += 1;
        serde_json::json!({
            "worker": self.name, "incarnation": self.incarnation, "seq": self.seq, "wait_ms": wait_ms,
        })
        .to_string()
    }

    pub(crate) fn beat(&self, fence: Fence) -> Result<Beaten, Refusal> {
        let beat = Beat {
            worker: self.name.parse().expect("a name"),
            incarnation: self.incarnation,
            fence,
            progress: None,
        };
        self.call::<BeatAnswer>("beat", &beat).map(|answer| answer.answer)
    }

    /// What is announced for a file with these bytes.
    pub(crate) fn manifest(&self, task: &Assignment, bytes: &[u8]) -> Vec<Output> {
        vec![Output {
            index: 0,
            role: Role::Video,
            media_type: "video/mp4".to_owned(),
            bytes: bytes.len() as u64,
            sha256: sha256(bytes),
            width: task.request.size.width,
            height: task.request.size.height,
            frames: task.request.frames,
            fps: task.request.fps,
        }]
    }

    /// Announces a file; says where it goes.
    pub(crate) fn announce(&self, fence: Fence, manifest: &[Output]) -> Result<String, Refusal> {
        let uploads = Uploads {
            worker: self.name.parse().expect("a name"),
            incarnation: self.incarnation,
            fence,
            manifest: manifest.to_vec(),
        };
        self.call::<UploadTargets>("uploads", &uploads).map(|mut to| to.targets.remove(0).url)
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8]) -> Result<Value, Refusal> {
        self.api.put(path, &self.token, bytes)
    }

    pub(crate) fn commit(&self, fence: Fence, manifest: &[Output]) -> Result<Done, Refusal> {
        let commit = Commit {
            worker: self.name.parse().expect("a name"),
            incarnation: self.incarnation,
            fence,
            manifest: manifest.to_vec(),
            metrics: Default::default(),
            test_pattern: true,
        };
        self.call("commit", &commit)
    }

    fn call<T: serde::de::DeserializeOwned>(
        &self,
        call: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Refusal> {
        self.api.worker_call(call, &self.token, body)
    }
}
