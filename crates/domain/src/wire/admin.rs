//! The admin API: bodies of `/v1/admin/…`.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::key::{KeyRecord, Scope};

/// Where keys are made.
pub const KEYS_PATH: &str = "/v1/admin/keys";
/// Where tenants are seen.
pub const TENANTS_PATH: &str = "/v1/admin/tenants";
/// Where workers are seen and drained.
pub const WORKERS_PATH: &str = "/v1/admin/workers";
/// Where pools are seen, drained and resumed.
pub const POOLS_PATH: &str = "/v1/admin/pools";

/// Body of `POST /v1/admin/keys`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateKey {
    /// What it is for, in your words; up to 100 characters.
    #[serde(default)]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "the web shop", max_length = 100, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")
    )]
    pub name: String,
    /// Whose tasks it makes and sees; `default` when absent. Workers serve every tenant: of a key
    /// that is good for `worker` alone it is only a note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "acme", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    )]
    pub tenant: Option<String>,
    /// `submit` and `read` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_items = 1))]
    pub scopes: Option<Vec<Scope>>,
    /// The only pool whose workers it is good for; only with the scope `worker`. Every pool when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "local", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    )]
    pub pool: Option<String>,
    /// Days from now on after which it is refused; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 36500))]
    pub expires_in_days: Option<u32>,
}

/// A key without its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyBody {
    /// The part of the key after `rr_`, up to the next `_`.
    pub id: String,
    pub name: String,
    pub tenant: String,
    pub scopes: Vec<Scope>,
    /// The only pool whose workers it is good for.
    #[serde(default)]
    pub pool: Option<String>,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds.
    pub expires_at: Option<u64>,
    /// Unix seconds; a revoked key stays in the list and is refused.
    pub revoked_at: Option<u64>,
    /// The key itself, in the answer to its creation and never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl From<&KeyRecord> for KeyBody {
    fn from(record: &KeyRecord) -> Self {
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            tenant: record.tenant.as_str().into(),
            scopes: record.scopes.iter().copied().collect(),
            pool: record.pool.as_ref().map(|pool| pool.as_str().into()),
            created_at: record.created_at.0 / 1000,
            expires_at: record.expires_at.map(|at| at.0 / 1000),
            revoked_at: record.revoked_at.map(|at| at.0 / 1000),
            key: None,
        }
    }
}

/// Answer to `GET /v1/admin/keys`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyList {
    /// Oldest first. The key of RAYREEL_ADMIN_KEY is not among them.
    pub data: Vec<KeyBody>,
    /// Does every request need a key? So it is from the first one on, whatever became of it.
    #[serde(default)]
    pub locked: bool,
}

/// A tenant: its terms, and what it uses now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantBody {
    pub name: String,
    /// Has it terms of its own, `[tenants.NAME]`? Without, it has those of `default`.
    pub configured: bool,
    pub limits: TenantLimits,
    pub usage: TenantUsage,
}

/// What a tenant may use, as it stands in the configuration; null is without a limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantLimits {
    /// Its share of a pool: twice the weight gets twice the GPU time.
    pub weight: f64,
    pub tasks_per_minute: Option<u32>,
    pub max_queued: Option<u64>,
    pub max_running: Option<u64>,
    pub gpu_seconds_per_day: Option<u64>,
    /// Tasks that have ended are deleted after so many days.
    pub keep_days: Option<f64>,
    /// Bytes that its uploaded files may take.
    pub max_file_bytes: u64,
}

/// What a tenant uses now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantUsage {
    pub queued: u64,
    pub running: u64,
    /// Estimate of what is queued.
    pub queued_gpu_seconds: f64,
    /// Charged today (UTC): the estimate while a task runs, what it took afterwards.
    pub gpu_seconds_today: f64,
    /// Tasks submitted within the last minute, since the server's start.
    pub tasks_last_minute: u64,
    /// Bytes of its uploaded files, as their limit counts them.
    pub file_bytes: u64,
    /// Keys that are in force.
    pub keys: u64,
}

/// Answer to `GET /v1/admin/tenants`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantList {
    /// By their names.
    pub data: Vec<TenantBody>,
}

/// What a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum WorkerState {
    /// It has not asked for work yet.
    Starting,
    Idle,
    /// It has a task, or has not asked for the next one yet.
    Busy,
    /// It finishes what it has, gets nothing more, and goes.
    Draining,
    /// Idle, and may not have tasks of some model until a self-test has passed.
    Quarantined,
    /// Not heard of for so long that nobody counts on it.
    Silent,
}

impl WorkerState {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
            Self::Silent => "silent",
        }
    }
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerBody {
    pub name: String,
    pub pool: String,
    pub state: WorkerState,
    /// The model that it has loaded, or loads for its task.
    pub model: Option<String>,
    /// What it works on.
    pub task: Option<WorkerTask>,
    /// Models of which it gets no tasks until a self-test has passed.
    pub quarantined: Vec<QuarantinedModel>,
    /// Unix seconds of its last call; null if there was none.
    pub last_seen_at: Option<u64>,
    /// Of its build.
    pub version: Option<String>,
    /// How the server started it; null if somebody else has.
    pub launch: Option<LaunchBody>,
}

/// What a worker works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerTask {
    pub id: String,
    pub attempt: u32,
    /// Unix seconds of the claim.
    pub started_at: u64,
}

/// A model that does not work on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QuarantinedModel {
    pub model: String,
    /// The failure that decided it.
    pub reason: String,
}

/// A worker process that the server has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LaunchBody {
    /// Process id on the server's machine.
    pub pid: Option<u32>,
    /// Unix seconds.
    pub created_at: u64,
}

/// Answer to `GET /v1/admin/workers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerList {
    /// By their pools and names.
    pub data: Vec<WorkerBody>,
}

/// A pool, its workers and its work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolBody {
    pub name: String,
    /// Who starts its workers.
    #[cfg_attr(feature = "openapi", schema(example = "local"))]
    pub provider: String,
    pub min: u32,
    pub max: u32,
    /// Workers that it should have now; null if it starts none (`max` = 0).
    pub target: Option<u32>,
    /// Is it closed to claims until it is resumed?
    pub drained: bool,
    pub workers: WorkerCounts,
    /// Tasks that wait, also those that may not start yet.
    pub queued: u64,
    pub running: u64,
    /// Estimate of what is queued.
    pub queued_gpu_seconds: f64,
    pub breaker: BreakerBody,
    /// Why its tasks wait although it would be their turn.
    pub waiting_reason: Option<String>,
}

/// Workers by their states.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkerCounts {
    /// All but the silent ones.
    pub live: u32,
    pub starting: u32,
    pub idle: u32,
    pub busy: u32,
    pub draining: u32,
    pub quarantined: u32,
    pub silent: u32,
}

impl WorkerCounts {
    /// One more.
    pub fn add(&mut self, state: WorkerState) {
        let count = match state {
            WorkerState::Starting => &mut self.starting,
            WorkerState::Idle => &mut self.idle,
            WorkerState::Busy => &mut self.busy,
            WorkerState::Draining => &mut self.draining,
            WorkerState::Quarantined => &mut self.quarantined,
            WorkerState::Silent => &mut self.silent,
        };
        *count += 1;
        self.live += u32::from(state != WorkerState::Silent);
    }
}

/// Whether the pool starts workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BreakerBody {
    /// Workers have died before they asked for work: none is started for a while.
    pub open: bool,
    /// What the last of them said.
    pub reason: Option<String>,
}

/// Answer to `GET /v1/admin/pools`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolList {
    /// By their names.
    pub data: Vec<PoolBody>,
}
