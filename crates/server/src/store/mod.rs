//! Where tasks live. Decisions are made in `rayreel_domain`; a store executes them as guarded
//! writes and answers queries.
//!
//! What every store promises, asserted by [`conformance`] and checked on a live store by
//! [`Store::check`]:
//!
//! 1. an acknowledged submit never vanishes;
//! 2. a task has at most one live lease;
//! 3. attempts only rise;
//! 4. a terminal state is final;
//! 5. a succeeded task names its files with their checksums (that they exist is the artifact
//!    store's half of the promise);
//! 6. a queued task is found by a claim of its pool, once its backoff has passed;
//! 7. the same tenant and idempotency key give the same task;
//! 8. tenants share by virtual time, so that none starves.

mod check;
pub mod redis;
pub mod sqlite;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use rayreel_domain::file::FileRecord;
use rayreel_domain::id::{FileId, ModelName, PoolName, TaskId, TenantName, WorkerName};
use rayreel_domain::key::KeyRecord;
use rayreel_domain::lease::Fence;
use rayreel_domain::request::Input;
use rayreel_domain::schedule::Locality;
use rayreel_domain::task::{End, Idempotency, Rules, State, Task};
use rayreel_domain::tenant::{Exceeded, Tenancy, Usage};
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::{Delivery, Report};
use rayreel_domain::wire::engine::Format;
use rayreel_domain::wire::worker::{Beaten, Progress, SelfTest};

use crate::clock::{Clock, Random};
use crate::feed::Feed;
use crate::signing::Secret;

/// What a store needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<Random>,
    /// Told of every change after its commit.
    pub feed: Arc<Feed>,
    pub rules: Rules,
    pub locality: Locality,
    /// Most queued tasks.
    pub max_queued: u64,
    pub tenancy: Arc<Tenancy>,
    /// Files of an attempt without success are garbage after so long: an upload may be under way.
    pub garbage_after_ms: u64,
    /// A worker that has not called for so long is not counted on.
    pub worker_silence_ms: u64,
}

/// The store of one server, or of many.
///
/// Every method is atomic. A change is durable before the call returns; a call that is dropped may
/// or may not take effect.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Random number of this store's history: positions in event streams hold only within it.
    fn epoch(&self) -> u64;

    /// Adds a queued task, or finds the one that was submitted under the same idempotency key. A new
    /// one is refused if its deadline is not after its creation, and beyond the tenant's limits
    /// ([`rayreel_domain::tenant::admit`]).
    async fn submit(&self, task: Task) -> Result<Submitted, Error>;

    /// Adds several tasks of one tenant, all or none. The first one, which names its siblings,
    /// bears the idempotency key; repeated, the call finds those of them that still are, and is
    /// refused when none is.
    async fn submit_all(&self, tasks: Vec<Task>) -> Result<Vec<Submitted>, Error>;

    /// Refuses what a submit of so much would be refused for now: the queue is full, a limit of the
    /// tenant is reached, the key was another request's. Counts nothing; the submit decides anew.
    async fn admits(&self, demand: Demand) -> Result<(), Error>;

    /// The tasks that were submitted under this key within a day, if there are any; refuses the key
    /// if it was another request. A submit decides once more: two may come at the same moment.
    async fn repeated(
        &self,
        tenant: &TenantName,
        asked: &Idempotency,
    ) -> Result<Option<Vec<View>>, Error>;

    /// Gives the worker its next task, or says why not.
    async fn claim(&self, claim: Claim) -> Result<Claimed, Error>;

    /// Renews a lease and keeps the progress. The first beat confirms the claim durably.
    async fn beat(
        &self,
        by: &Identity,
        fence: Fence,
        progress: Option<Progress>,
    ) -> Result<Beaten, Error>;

    /// Is this attempt live? Writes nothing, renews nothing.
    async fn held(&self, fence: Fence) -> Result<Beaten, Error>;

    /// Ends an attempt: commit, fail, release … A repetition of the same end answers the task.
    async fn end(&self, by: &Identity, fence: Fence, end: End) -> Result<Task, Error>;

    /// Ends a live attempt without its worker: the lease ran out ([`End::Lose`]), the worker is
    /// known to be dead ([`End::Vanish`]), or it does not stop by itself ([`End::Fail`]). Does
    /// nothing if the attempt has beaten more than `beats` times or is not live any more; answers
    /// whether it did something.
    async fn reclaim(&self, fence: Fence, beats: u64, end: End) -> Result<bool, Error>;

    /// Cancels a task that has not ended.
    async fn cancel(&self, tenant: &TenantName, id: TaskId) -> Result<Cancelled, Error>;

    /// Takes back a submit whose caller does not wait any more: cancels those of its tasks that have
    /// not ended. If there were any, its idempotency key is free: a repetition makes them anew.
    async fn withdraw(&self, tenant: &TenantName, ids: Vec<TaskId>) -> Result<(), Error>;

    /// Deletes a task that has ended; its files become garbage. Cancels one that has not.
    async fn delete(&self, tenant: &TenantName, id: TaskId) -> Result<Cancelled, Error>;

    async fn get(&self, tenant: &TenantName, id: TaskId) -> Result<Option<View>, Error>;

    /// Reads a task for a worker, which has no tenant, if the fence is live.
    async fn leased(&self, fence: Fence) -> Result<Task, Error>;

    /// A page of a tenant's tasks.
    async fn list(&self, query: &ListQuery) -> Result<Page, Error>;

    /// Makes the name's newest incarnation, which ends the older one; its leases stay until the
    /// first claim says what it still holds, and so does its quarantine, unless it has changed the
    /// pool. Pruned workers may come back the same way.
    async fn register(&self, worker: Registration) -> Result<u64, Error>;

    /// Forgets a worker that exits; a lease it still has is given back. Unknown ones are ignored.
    async fn deregister(&self, by: &Identity) -> Result<(), Error>;

    /// Every registered worker.
    async fn workers(&self) -> Result<Vec<WorkerView>, Error>;

    /// Lets a worker go: it finishes what it has, gets nothing more, and its next claim tells it to
    /// exit. It costs its task nothing, and is kept until then, over restarts and a new registration
    /// of the name in the same pool. Answers whether there is such a worker.
    async fn drain_worker(&self, worker: &WorkerName) -> Result<bool, Error>;

    /// Closes a pool to claims, or opens it again. What runs goes on, what is queued stays.
    async fn drain_pool(&self, pool: &PoolName, drained: bool) -> Result<(), Error>;

    /// The pools that are closed to claims.
    async fn drained_pools(&self) -> Result<BTreeSet<PoolName>, Error>;

    /// Every live lease, for the rescuer.
    async fn leases(&self) -> Result<Vec<LeaseView>, Error>;

    /// Ends tasks past their deadline, makes those ready whose backoff has passed, and deletes tasks,
    /// files and contents that were kept long enough. Answers when there is something to do again.
    async fn advance(&self) -> Result<Option<Timestamp>, Error>;

    /// Queued and running work of every pool that has some, or had.
    async fn backlog(&self) -> Result<Vec<Backlog>, Error>;

    /// What each tenant uses that uses something.
    async fn usage(&self) -> Result<Vec<TenantUse>, Error>;

    /// Writes an API key, new or changed.
    async fn put_key(&self, key: KeyRecord) -> Result<(), Error>;

    /// Every key, revoked ones too.
    async fn keys(&self) -> Result<Vec<KeyRecord>, Error>;

    /// Gives what a tenant sends a place, the same one for the same bytes. It is kept for an hour;
    /// beyond that, as long as a task or a file names it. Then its file becomes garbage.
    async fn hold_input(&self, tenant: &TenantName, input: Input) -> Result<Input, Error>;

    /// Whoever has held it does not need it any more. When nobody else holds it and nothing names it,
    /// it is garbage at once.
    async fn release_input(&self, tenant: &TenantName, input: Input) -> Result<(), Error>;

    /// Refuses a file of so many bytes if the tenant's files would now have more than `most`.
    /// [`Self::put_file`] decides anew.
    async fn admits_file(&self, tenant: &TenantName, bytes: u64, most: u64) -> Result<(), Error>;

    /// Adds a file, unless the tenant's files would have more than `most` bytes.
    async fn put_file(&self, file: FileRecord, most: u64) -> Result<(), Error>;

    /// A file that has not expired.
    async fn file(&self, tenant: &TenantName, id: FileId) -> Result<Option<FileRecord>, Error>;

    /// A page of a tenant's files; `NotFound` if there is none to go on after.
    async fn files(&self, query: &FileQuery) -> Result<FilePage, Error>;

    /// Deletes a file; answers whether it was there. Tasks that name its content keep it.
    async fn delete_file(&self, tenant: &TenantName, id: FileId) -> Result<bool, Error>;

    /// Takes deliveries that are due, each for the caller alone until [`Room::hold_ms`] have passed,
    /// and says when the next one is due of those tenants that had room.
    async fn take_deliveries(&self, room: &Room) -> Result<Taken, Error>;

    /// What the call of a taken delivery came to. Ignored if the task has been deleted.
    async fn report_delivery(&self, id: TaskId, number: u32, report: Report) -> Result<(), Error>;

    /// Sets the delivery of a task that has ended going anew; `NotFound` if it has no webhook or has
    /// not ended.
    async fn redeliver(&self, tenant: &TenantName, id: TaskId) -> Result<Delivery, Error>;

    /// Whose task this is.
    async fn owner(&self, id: TaskId) -> Result<Option<TenantName>, Error>;

    /// The secret of this name; the fresh one becomes it if there is none.
    async fn secret(&self, name: &str, fresh: Secret) -> Result<Secret, Error>;

    /// Replaces the secret of this name by a fresh one, beside which the old ones go on for so long.
    async fn rotate_secret(&self, name: &str, fresh: Secret, ms: u64) -> Result<Secret, Error>;

    /// Writes a launch of the fleet, new or changed.
    async fn put_launch(&self, launch: Launch) -> Result<(), Error>;

    async fn remove_launch(&self, id: &str) -> Result<(), Error>;

    async fn launches(&self) -> Result<Vec<Launch>, Error>;

    /// Folders that may be deleted now, at most `limit`.
    async fn garbage(&self, limit: u32) -> Result<Vec<Garbage>, Error>;

    /// Forgets garbage that is deleted.
    async fn collected(&self, ids: &[i64]) -> Result<(), Error>;

    /// Takes a duty that one server has at a time, or renews it, for so many milliseconds; gives it
    /// back if that is 0. Answers whether this server has it now. Where a rescuer takes the place of
    /// another, a start is counted on every lease ([`LeaseView::graces`]).
    async fn lead(&self, duty: &str, server: &str, ms: u64) -> Result<bool, Error>;

    /// May other servers have it open, too?
    fn is_shared(&self) -> bool;

    /// Checks the invariants on what is stored and says what breaks them; empty if all is well.
    async fn check(&self) -> Result<Vec<String>, Error>;
}

/// Why a store did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no such task")]
    NotFound,
    #[error("the attempt does not hold the task any more")]
    StaleLease { cancelled: bool },
    #[error("the worker's registration was replaced or is unknown")]
    StaleWorker,
    #[error("the idempotency key was used with another request")]
    IdempotencyMismatch,
    /// What was submitted under the key has been deleted.
    #[error("{task} was submitted under the idempotency key, and deleted")]
    Deleted { task: TaskId },
    #[error("the deadline of a new task has passed")]
    DeadlinePassed { now: Timestamp },
    #[error("the queue is full: {queued} tasks")]
    QueueFull { queued: u64 },
    #[error("the tenant's limit is reached: {0:?}")]
    Limit(Exceeded),
    #[error("the tenant's files have {allowed} bytes")]
    /// When it may be tried again; none if this one alone is too much.
    FilesFull { allowed: u64, retry_ms: Option<u64> },
    /// The image of a request is not kept any more.
    #[error("the input is gone")]
    InputGone,
    /// Nothing was written.
    #[error("the task store is not available: {0}")]
    Unavailable(String),
    /// It may or may not have been written.
    #[error("the task store failed while it wrote: {0}")]
    OutcomeUnknown(String),
    #[error(
        "the database was written by a newer version of rayreel (schema {found}, this build knows {known})"
    )]
    TooNew { found: u32, known: u32 },
    #[error("the database is damaged: {0}")]
    Corrupt(String),
}

/// Which registration speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub worker: WorkerName,
    pub incarnation: u64,
}

/// What a submit would add.
#[derive(Debug, Clone)]
pub struct Demand {
    pub tenant: TenantName,
    pub idempotency: Option<Idempotency>,
    pub tasks: u64,
    /// Their estimates, in GPU-milliseconds.
    pub work_ms: u64,
}

/// Answer to a submit.
#[derive(Debug, Clone)]
pub struct Submitted {
    pub task: Task,
    /// True if the task was there already, under the same idempotency key.
    pub existed: bool,
    /// Tasks that will probably start before it; none if it is not queued (any more).
    pub position: Option<u64>,
}

/// A worker asks for a task.
#[derive(Debug, Clone)]
pub struct Claim {
    pub by: Identity,
    pub seq: u64,
    pub holding: Vec<Fence>,
    pub loaded: Option<ModelName>,
    pub self_test: Option<SelfTest>,
    /// Workers that the pool should have; an idle one above it is told to go. None: nobody is.
    pub target: Option<u32>,
}

/// Answer to a claim.
#[derive(Debug, Clone)]
pub enum Claimed {
    Task(Box<Task>),
    /// `ready` tells that the pool has tasks which this worker can't have, or leaves to others.
    Nothing {
        ready: bool,
    },
    /// The worker is not needed, or was drained: it has been deregistered and exits.
    Drain,
    /// The model is in quarantine on this worker, tasks wait for it, and a test is due.
    Quarantine {
        model: ModelName,
        message: String,
    },
}

/// What a cancel or delete did.
#[derive(Debug, Clone)]
pub struct Cancelled {
    /// The task after the call (before, if it was deleted).
    pub task: Task,
    /// This call ended it.
    pub cancelled: bool,
    pub deleted: bool,
}

/// A task with what is known only while it lives.
#[derive(Debug, Clone)]
pub struct View {
    pub task: Arc<Task>,
    pub progress: Option<Progress>,
    /// Tasks that will probably start before it, if it is queued.
    pub position: Option<u64>,
    /// How its webhook is told of its end, if it has one and has ended.
    pub delivery: Option<Delivery>,
}

/// How many deliveries may be taken.
#[derive(Debug, Clone)]
pub struct Room {
    pub total: usize,
    /// Most at once for one tenant, and what is under way: one tenant's slow receivers keep nobody
    /// else waiting.
    pub per_tenant: usize,
    pub busy: BTreeMap<TenantName, usize>,
    pub hold_ms: u64,
}

/// Deliveries that were taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    pub deliveries: Vec<Delivery>,
    pub next: Option<Timestamp>,
}

/// Which tasks to list.
#[derive(Debug, Clone)]
pub struct ListQuery {
    pub tenant: TenantName,
    pub state: Option<State>,
    pub model: Option<ModelName>,
    /// Only results of this format.
    pub format: Option<Format>,
    pub order: Order,
    /// Only tasks behind this place in the list.
    pub after: Option<After>,
    /// Only tasks created from / before this moment on.
    pub created_from: Option<Timestamp>,
    pub created_before: Option<Timestamp>,
    pub limit: u32,
}

impl ListQuery {
    /// All tasks of a tenant, newest first.
    pub fn of(tenant: TenantName, limit: u32) -> Self {
        Self {
            tenant,
            state: None,
            model: None,
            format: None,
            order: Order::NewestFirst,
            after: None,
            created_from: None,
            created_before: None,
            limit,
        }
    }
}

/// How a list is sorted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
}

/// How long a list can go on behind a task that was deleted.
pub const PLACE_MS: u64 = 24 * 3_600_000;

/// A place in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// [`Page::next`] of the page before.
    Position(u64),
    /// This task, also if it was deleted within [`PLACE_MS`]; a list behind one that the tenant
    /// never had is [`Error::NotFound`].
    Task(TaskId),
}

/// One page.
#[derive(Debug, Clone)]
pub struct Page {
    pub tasks: Vec<View>,
    /// Position to go on from, if there is more.
    pub next: Option<u64>,
}

/// Which files to list.
#[derive(Debug, Clone)]
pub struct FileQuery {
    pub tenant: TenantName,
    pub purpose: Option<String>,
    /// Only those that come after this one.
    pub after: Option<FileId>,
    /// Oldest first.
    pub ascending: bool,
    pub limit: u32,
}

/// One page.
#[derive(Debug, Clone)]
pub struct FilePage {
    pub files: Vec<FileRecord>,
    pub more: bool,
}

/// A worker registers.
#[derive(Debug, Clone)]
pub struct Registration {
    pub worker: WorkerName,
    pub pool: PoolName,
    pub launch: Option<String>,
    /// Of its build.
    pub version: String,
}

/// A registered worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerView {
    pub by: Identity,
    pub pool: PoolName,
    pub launch: Option<String>,
    /// Milliseconds since its last call, on the server's monotonic clock.
    pub silent_ms: u64,
    pub activity: Activity,
    /// The model that it has loaded, or loads for its task; none if it has not said since a restart.
    pub loaded: Option<ModelName>,
    /// Of its build; empty if an older server has registered it.
    pub version: String,
    /// It goes when it has finished what it has.
    pub draining: bool,
    /// Models that the worker gets no tasks of, and the failure that decided it.
    pub quarantined: Vec<(ModelName, String)>,
}

/// What a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Registered, but has not asked for work yet.
    Starting,
    /// Has a task, or has not asked for the next one yet.
    Busy,
    Idle {
        for_ms: u64,
    },
}

/// A live lease, as the rescuer watches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    pub fence: Fence,
    pub worker: WorkerName,
    pub beats: u64,
    pub confirmed: bool,
    /// Starts of the server, or of the one that rescues, since the last beat.
    pub graces: u32,
    /// How long the attempt has run.
    pub held_ms: u64,
}

/// Tasks that could start now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    pub tasks: u64,
    /// Their estimated GPU-milliseconds.
    pub ms: u64,
}

/// Work of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backlog {
    pub pool: PoolName,
    /// Tasks that could start now, by model.
    pub ready: BTreeMap<ModelName, Ready>,
    /// Tasks that wait for their next try.
    pub delayed: u64,
    pub running: u64,
    /// All that is queued, also what may not start yet.
    pub queued: u64,
    /// Its estimated GPU-milliseconds.
    pub queued_ms: u64,
}

/// What a tenant uses now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantUse {
    pub tenant: TenantName,
    pub usage: Usage,
    pub running: u64,
    /// Tasks submitted within the last minute, as far as this process has seen it.
    pub last_minute: u64,
    /// Bytes of its files, as their limit counts them.
    pub file_bytes: u64,
}

/// A worker process that the fleet has started or is about to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Launch {
    /// Also the name of the worker.
    pub id: String,
    pub pool: PoolName,
    pub created_at: Timestamp,
    /// Process id, once started by the local provider.
    pub pid: Option<u32>,
    /// Start time of that process in clock ticks since boot: a reused pid has another.
    pub pid_started: Option<u64>,
    /// Where it runs: only a server that starts workers there can tell whether it lives. Empty: the
    /// store is of one server.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// The worker has asked for work at least once.
    pub claimed: bool,
    /// GPUs that are the worker's alone; none listed: it sees those that the server sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
}

/// A folder of the artifact store that nobody refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    pub id: i64,
    /// `task_…`, `task_…/attempt` or `tenant-…/content`.
    pub folder: String,
}
