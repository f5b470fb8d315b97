//! The worker: takes tasks from a server, keeps their leases, has an engine process generate, and
//! delivers the files.
//!
//! ```text
//!        claim ──▶ attempt ──▶ engine (child process) ──▶ outputs ──▶ upload ──▶ commit
//!                     │
//!                  keeper (a thread of its own: beats, cancel, drain)
//! ```
//!
//! A worker never decides that a task is its own: every report carries the attempt's fence, and the
//! server compares. So the worker may go on while the server is away, and stops only when it is
//! told, refused, or out of patience. What the two say is in [`rayreel_domain::wire::worker`], what
//! worker and engine say in [`rayreel_domain::wire::engine`].

mod api;
mod attempt;
mod backoff;
mod claim;
mod engine;
mod keeper;
mod outputs;
mod scratch;
mod self_test;
mod upload;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rayreel_domain::{Code, PoolName, WorkerName};
use tokio_util::sync::CancellationToken;

/// Who a worker is and how it behaves.
#[derive(Clone)]
pub struct Options {
    /// Base URL of the server.
    pub server: String,
    /// Worker token.
    pub token: String,
    pub pool: PoolName,
    /// Of this worker alone: registering a name ends the worker that has it.
    pub name: WorkerName,
    /// The fleet's launch that started this worker, if one did.
    pub launch: Option<String>,
    /// Data directory of a server on this machine: its `server.json` tells where the server is
    /// after a restart.
    pub home: Option<PathBuf>,
    /// Directory for unfinished files; workers with different names may share it.
    pub scratch: PathBuf,
    /// The binary whose `engine NAME` runs a built-in engine.
    pub engine_program: PathBuf,
    /// This process has no children but engines. On Linux it adopts whatever they have started, and
    /// ends it with them; without this, who has cleared its environment may outlive its engine.
    pub alone: bool,
    /// How long an attempt goes on, and its files are kept, while no server answers.
    pub outage_keep: Duration,
    /// A worker that a fleet launched exits when it is idle and no server has answered for so long.
    pub orphan_idle: Duration,
    /// How long the running task may take to finish after the first signal; then it is given back.
    pub drain_grace: Duration,
}

impl Options {
    pub const OUTAGE_KEEP: Duration = Duration::from_secs(30 * 60);
    pub const ORPHAN_IDLE: Duration = Duration::from_secs(60);
    pub const DRAIN_GRACE: Duration = Duration::from_secs(30);
}

impl fmt::Debug for Options {
    /// Everything but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("server", &self.server)
            .field("pool", &self.pool)
            .field("name", &self.name)
            .field("launch", &self.launch)
            .field("home", &self.home)
            .field("scratch", &self.scratch)
            .field("engine_program", &self.engine_program)
            .field("alone", &self.alone)
            .field("outage_keep", &self.outage_keep)
            .field("orphan_idle", &self.orphan_idle)
            .field("drain_grace", &self.drain_grace)
            .finish_non_exhaustive()
    }
}

/// How a worker is asked to go; who calls [`run`] ties these to SIGTERM and SIGINT.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// First signal: claim nothing more, finish or give back, exit.
    pub drain: CancellationToken,
    /// Second signal: exit at once.
    pub abort: CancellationToken,
}

/// Why a worker ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to go, by a signal or by the server, and holds nothing.
    Drained,
    /// The second signal.
    Aborted,
    /// A fleet had launched it, and there is no server any more.
    Orphaned,
}

/// Why a worker can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{url}` is not the address of a server: {reason}")]
    Address { url: String, reason: String },
    #[error(
        "this worker was replaced: another one has registered as `{name}`, or the server has \
         forgotten it; give each worker a name of its own"
    )]
    Replaced { name: WorkerName },
    #[error("the server at {url} does not accept the worker token: {message}")]
    Unauthorized { url: String, message: String },
    #[error("the server at {url} refused the call `{call}` with status {status}: {message}")]
    Refused { url: String, call: &'static str, status: u16, code: Option<Code>, message: String },
    #[error("the scratch directory {} can't be used: {error}", path.display())]
    Scratch { path: PathBuf, error: io::Error },
    #[error("the HTTP client can't be set up: {0}")]
    Http(#[from] reqwest::Error),
    #[error("the thread that keeps leases can't be started: {0}")]
    Keeper(io::Error),
}

impl Error {
    /// Row of the code table, which has the exit status.
    pub fn code(&self) -> Code {
        match self {
            Self::Address { .. } => Code::InvalidConfig,
            Self::Replaced { .. } => Code::StaleWorker,
            Self::Unauthorized { .. } => Code::Unauthorized,
            Self::Refused { code, .. } => code.unwrap_or(Code::Internal),
            Self::Scratch { error, .. } if is_full(error) => Code::StorageFull,
            Self::Scratch { .. } | Self::Http(_) | Self::Keeper(_) => Code::Internal,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Works until a signal, the server or an error ends it. Whenever this returns, or is dropped, the
/// engine process and everything that it has started are dead or being killed.
pub async fn run(options: Options, signals: Signals) -> Result<Exit, Error> {
    claim::run(options, signals).await
}
