//! The worker API: what `rayreel worker` and the server say to each other over HTTP.
//!
//! All calls are POST with a JSON body under `/v1/worker/`, with a worker token, and idempotent for
//! the same fence; but for `GET /v1/worker/inputs/{task}/{attempt}/{nonce}`, which gives the image
//! of a request that has one, the same with `/last` behind it, which gives its last frame, and the
//! PUTs of [`UploadTarget`]. A fence that is no longer live gets 409 `stale_lease`; a registration
//! that was replaced gets 409 `stale_worker`.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::{LoraName, ModelName, PoolName, WorkerName};
use crate::lease::Fence;
use crate::request::Request;
use crate::task::{Failure, Output};
use crate::wire::engine::{EngineRequest, LoraFiles};

/// `POST /v1/worker/register`: a worker says that it exists, at its start and whenever the server
/// does not know it any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    pub worker: WorkerName,
    pub pool: PoolName,
    /// The launch that started this worker, if the fleet did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<String>,
    /// Version of the worker's build, for the log.
    pub version: String,
}

/// Answer to [`Register`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// Goes with every later call; a newer registration of the name ends this one.
    pub incarnation: u64,
    /// A lease that is not renewed for so long is lost.
    pub lease_ms: u64,
    /// How often to beat.
    pub beat_ms: u64,
}

/// `POST /v1/worker/claim`: asks for a task, and waits for one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    pub worker: WorkerName,
    pub incarnation: u64,
    /// Rises by one with each new claim; a repeated claim repeats it and gets the same answer.
    pub seq: u64,
    /// Attempts that the worker still holds. A live lease of its that is not among them is released.
    #[serde(default)]
    pub holding: Vec<Fence>,
    /// The model that is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<ModelName>,
    /// Result of the self-test that the worker was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_test: Option<SelfTest>,
    /// How long the server may hold the call; at most 30,000.
    pub wait_ms: u64,
}

/// How a self-test went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfTest {
    /// What was tested.
    pub model: ModelName,
    /// Why it failed; none if it passed, or if the engine works but does not do the test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Answer to [`Claim`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Claimed {
    Task(alloc::boxed::Box<Assignment>),
    /// Nothing within the wait; ask again.
    Nothing,
    /// The worker is not needed: it has been deregistered and exits with status 0.
    Drain,
    /// Too many tasks of `model` failed in a row on this worker: restart the engine, have it do `test`,
    /// and claim again with the result.
    Quarantine {
        model: alloc::boxed::Box<ModelSetup>,
        test: alloc::boxed::Box<EngineRequest>,
        message: String,
    },
}

/// A task to work on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    pub fence: Fence,
    pub request: Request,
    pub model: ModelSetup,
    /// An attempt that takes longer is stopped and fails with `max_run_exceeded`.
    pub max_run_ms: u64,
}

/// How to run a model: what the worker needs to start an engine and load it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSetup {
    pub name: ModelName,
    pub engine: EngineSetup,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// Absent if there are none, so that workers of an older version go on with such models.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loras: BTreeMap<LoraName, LoraFiles>,
    /// The engine is taken for dead if it says nothing for so long while it generates or loads.
    pub silence_ms: u64,
    /// How long the engine may take to stop when asked.
    pub grace_ms: u64,
}

/// What to start as the engine process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EngineSetup {
    /// `rayreel engine NAME`, of the worker's own binary.
    BuiltIn(String),
    /// A program and its arguments; never a shell.
    Command(Vec<String>),
}

/// `POST /v1/worker/control`: hangs until one of the attempts is no longer the worker's, or the
/// worker should drain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub worker: WorkerName,
    pub incarnation: u64,
    /// The attempts that the worker works on.
    pub holding: Vec<Fence>,
    /// At most 30,000.
    pub wait_ms: u64,
}

/// Answer to [`Control`]: for each attempt that is no longer live, why.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Controlled {
    #[serde(default)]
    pub cancelled: Vec<Fence>,
    #[serde(default)]
    pub lost: Vec<Fence>,
    /// Finish what you hold, claim nothing more, exit.
    #[serde(default)]
    pub drain: bool,
}

/// `POST /v1/worker/beat`: renews the lease of one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beat {
    pub worker: WorkerName,
    pub incarnation: u64,
    pub fence: Fence,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// How far an attempt is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// What the engine is at: `denoise`, `encode` …; at most 64 characters are kept.
    pub stage: String,
    /// Steps done in this stage.
    pub step: u32,
    /// Steps of this stage.
    pub steps: u32,
}

/// Answer to [`Beat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beaten {
    /// Go on.
    Continue,
    /// The task was cancelled: stop.
    Cancelled,
    /// The lease is lost: stop.
    Lost,
}

/// The answer's body, so that it is a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeatAnswer {
    pub answer: Beaten,
}

/// `POST /v1/worker/uploads`: announces the files of an attempt and asks where to put them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploads {
    pub worker: WorkerName,
    pub incarnation: u64,
    pub fence: Fence,
    pub manifest: Vec<Output>,
}

/// Answer to [`Uploads`], one target a file, in the order of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadTargets {
    pub targets: Vec<UploadTarget>,
}

/// Where one file goes, with PUT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadTarget {
    pub index: u32,
    /// Absolute, or a path on this server. A path is called with the worker token, an absolute
    /// address only with `headers`.
    pub url: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// A worker that knows [`Parts`] may put the file in parts instead, each of so many bytes but for
    /// the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_bytes: Option<u64>,
}

/// `POST /v1/worker/parts`: asks where to put those parts of a file that are not there yet, and so until
/// none is named: then the file is put together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    pub worker: WorkerName,
    pub incarnation: u64,
    pub fence: Fence,
    pub output: Output,
    /// Of each part.
    pub sha256: Vec<String>,
    /// What the last answer called the upload; none at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
}

/// Answer to [`Parts`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTargets {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
    /// Some that are missing, in their order. None is missing if it is empty.
    pub parts: Vec<PartTarget>,
}

/// Where one part goes, with PUT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTarget {
    /// The first one is 0.
    pub part: u32,
    /// Absolute.
    pub url: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// `POST /v1/worker/commit`: the files are uploaded, the task has succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    pub worker: WorkerName,
    pub incarnation: u64,
    pub fence: Fence,
    pub manifest: Vec<Output>,
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    #[serde(default)]
    pub test_pattern: bool,
}

/// `POST /v1/worker/fail`: the attempt has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fail {
    pub worker: WorkerName,
    pub incarnation: u64,
    pub fence: Fence,
    pub failure: Failure,
}

/// `POST /v1/worker/release`: the worker gives the task back because it must go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    pub worker: WorkerName,
    pub incarnation: u64,
    pub fence: Fence,
}

/// `POST /v1/worker/deregister`: the worker is about to exit and holds nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deregister {
    pub worker: WorkerName,
    pub incarnation: u64,
}

/// Answer to calls that have nothing else to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub ok: bool,
}
