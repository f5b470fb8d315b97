//! What the writer keeps in memory: fair-share accounts, counts of queued work, live leases and
//! workers. All of it is rebuilt from the database at start, and after a batch that failed; what
//! cannot be (beats, idle times) is allowed to start anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::id::{ModelName, PoolName, TaskId, TenantName, WorkerName};
use rayreel_domain::lease::Fence;
use rayreel_domain::schedule::{self, Rival};
use rayreel_domain::task::{State, Task};
use rayreel_domain::tenant::{Minute, Tenancy, Terms, Usage};
use rayreel_domain::wire::engine::Format;
use rayreel_domain::wire::worker::Progress;
use rusqlite::{Connection, params};
use serde::de::DeserializeOwned;

use super::Identity;

/// The store's number of a name.
pub(super) type NameId = i64;

#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) ids: HashMap<String, NameId>,
    pub(super) names: HashMap<NameId, String>,
    pub(super) pools: HashMap<NameId, Pool>,
    pub(super) live: HashMap<TaskId, Live>,
    pub(super) workers: HashMap<WorkerName, Worker>,
    /// Closed to claims.
    pub(super) drained: BTreeSet<PoolName>,
    pub(super) queued: u64,
    /// The newest task's place in the order of submission; none is given twice.
    last_seq: i64,
    pub(super) tenancy: Arc<Tenancy>,
    /// What each tenant has submitted lately.
    pub(super) minutes: HashMap<NameId, Minute>,
    /// How many hold each content of [`super::inputs`].
    pub(super) holds: HashMap<i64, u32>,
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) floor_ms: u64,
    pub(super) tenants: BTreeMap<NameId, Account>,
}

/// A tenant's share of a pool.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) virtual_ms: u64,
    pub(super) terms: Terms,
    pub(super) running: u64,
    pub(super) queues: BTreeMap<NameId, Queue>,
    /// Day of the newest charge, and what was charged on it.
    pub(super) day: u64,
    pub(super) day_ms: u64,
}

/// Queued tasks of one tenant and model.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Queue {
    /// By rank: index 0 is priority 5.
    pub(super) ready: [u64; 5],
    pub(super) ready_ms: u64,
    pub(super) delayed: u64,
    pub(super) delayed_ms: u64,
}

impl Queue {
    pub(super) fn ready_count(&self) -> u64 {
        self.ready.iter().sum()
    }
}

impl Account {
    fn new(terms: Terms) -> Self {
        Self { virtual_ms: 0, terms, running: 0, queues: BTreeMap::new(), day: 0, day_ms: 0 }
    }

    pub(super) fn queued_ms(&self) -> u64 {
        self.queues.values().map(|q| q.ready_ms + q.delayed_ms).sum()
    }

    pub(super) fn queued(&self) -> u64 {
        self.queues.values().map(|q| q.ready_count() + q.delayed).sum()
    }

    pub(super) fn ready(&self) -> u64 {
        self.queues.values().map(Queue::ready_count).sum()
    }

    fn ready_ms(&self) -> u64 {
        self.queues.values().map(|q| q.ready_ms).sum()
    }

    /// The models of the ready tasks of the highest priority, but for those that are barred: one of
    /// these is next.
    pub(super) fn next_models(&self, barred: &[NameId]) -> impl Iterator<Item = NameId> {
        let allowed = || self.queues.iter().filter(|(model, _)| !barred.contains(model));
        let rank = (0..5).find(|rank| allowed().any(|(_, q)| q.ready[*rank] > 0));
        allowed()
            .filter(move |(_, q)| rank.is_some_and(|rank| q.ready[rank] > 0))
            .map(|(model, _)| *model)
    }
}

/// Where a task stands in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) seq: i64,
    pub(super) pool: NameId,
    pub(super) tenant: NameId,
    pub(super) model: NameId,
    pub(super) rank: u8,
    pub(super) slot: Slot,
    pub(super) estimate_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Running or ended.
    None = 0,
    Ready = 1,
    Backoff = 2,
}

impl Slot {
    pub(super) fn from_number(number: i64) -> Self {
        match number {
            1 => Self::Ready,
            2 => Self::Backoff,
            _ => Self::None,
        }
    }
}

/// A live lease.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) fence: Fence,
    pub(super) worker: WorkerName,
    pub(super) incarnation: u64,
    pub(super) seq: u64,
    pub(super) beats: u64,
    pub(super) confirmed: bool,
    pub(super) graces: u32,
    pub(super) progress: Option<Progress>,
    since: Duration,
    held_before_ms: u64,
}

impl Live {
    pub(super) fn new(
        task: &Task,
        graces: u32,
        now: Duration,
        held_before_ms: u64,
    ) -> Option<Self> {
        let lease = task.lease.as_ref()?;
        Some(Self {
            fence: task.fence()?,
            worker: lease.worker.clone(),
            incarnation: lease.incarnation,
            seq: lease.seq,
            beats: 0,
            confirmed: lease.confirmed,
            graces,
            progress: None,
            since: now,
            held_before_ms,
        })
    }

    pub(super) fn held_ms(&self, now: Duration) -> u64 {
        millis(now.saturating_sub(self.since)).saturating_add(self.held_before_ms)
    }
}

/// A registered worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) incarnation: u64,
    pub(super) pool: PoolName,
    pub(super) launch: Option<String>,
    pub(super) version: String,
    pub(super) draining: bool,
    /// The model that it has loaded, or loads for its task.
    pub(super) loaded: Option<ModelName>,
    pub(super) quarantine: Vec<Quarantine>,
    /// For each model, attempts that failed in a row through the engine, of different tasks.
    pub(super) failures: HashMap<ModelName, Vec<Fence>>,
    pub(super) seen: Duration,
    pub(super) last_seq: u64,
    pub(super) state: WorkerState,
    /// The model of its newest claims, and how many in a row.
    pub(super) streak: (NameId, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerState {
    Starting,
    Busy,
    IdleSince(Duration),
}

/// A model of which a worker may not have tasks, and why.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Quarantine {
    pub(super) model: ModelName,
    pub(super) message: String,
    /// Self-tests that failed, and when the next one is due, on the monotonic clock: at once after
    /// a restart.
    #[serde(skip)]
    pub(super) failed_tests: u32,
    #[serde(skip)]
    pub(super) due: Duration,
}

impl Quarantine {
    /// As a worker's are stored.
    pub(super) fn text(all: &[Self]) -> Option<String> {
        (!all.is_empty()).then(|| serde_json::to_string(all).expect("strings"))
    }

    /// Its test has failed: the next one is later.
    pub(super) fn postpone(&mut self, now: Duration) {
        let pause = RETEST.saturating_mul(1 << self.failed_tests.min(16)).min(RETEST_MAX);
        self.failed_tests += 1;
        self.due = now + pause;
    }
}

/// Between two self-tests of a model: doubled with each that fails, up to the most.
const RETEST: Duration = Duration::from_millis(250);
const RETEST_MAX: Duration = Duration::from_secs(60);

impl Worker {
    pub(super) fn new(
        incarnation: u64,
        pool: PoolName,
        launch: Option<String>,
        version: String,
        now: Duration,
    ) -> Self {
        Self {
            incarnation,
            pool,
            launch,
            version,
            draining: false,
            loaded: None,
            quarantine: Vec::new(),
            failures: HashMap::new(),
            seen: now,
            last_seq: 0,
            state: WorkerState::Starting,
            streak: (0, 0),
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Memory {
    /// Reads everything from the database.
    pub(super) fn load(
        db: &Connection,
        tenancy: Arc<Tenancy>,
        now: Duration,
        wall_ms: u64,
    ) -> rusqlite::Result<Self> {
        let last_seq = db.query_row(
            "SELECT max(ifnull((SELECT max(seq) FROM tasks), 0),
                        ifnull((SELECT max(seq) FROM places), 0))",
            [],
            |row| row.get(0),
        )?;
        let mut memory = Self { tenancy, last_seq, ..Self::default() };
        let mut names = db.prepare("SELECT id, name FROM names")?;
        let mut rows = names.query([])?;
        while let Some(row) = rows.next()? {
            memory.remember(row.get(0)?, row.get(1)?);
        }
        let mut accounts =
            db.prepare("SELECT pool, tenant, virtual_ms, floor_ms, day, day_ms FROM accounts")?;
        let mut rows = accounts.query([])?;
        while let Some(row) = rows.next()? {
            let pool = row.get(0)?;
            let account = memory.account(pool, row.get(1)?);
            account.virtual_ms = unsigned(row.get(2)?);
            account.day = unsigned(row.get(4)?);
            account.day_ms = unsigned(row.get(5)?);
            let pool = memory.pools.entry(pool).or_default();
            pool.floor_ms = pool.floor_ms.max(unsigned(row.get(3)?));
        }
        // Answered from the index alone.
        let mut ready = db.prepare(
            "SELECT pool, tenant, model, rank, count(*), sum(estimate_ms) FROM tasks
             INDEXED BY tasks_ready WHERE slot = 1 GROUP BY pool, tenant, model, rank",
        )?;
        let mut rows = ready.query([])?;
        while let Some(row) = rows.next()? {
            let queue = memory.queue(row.get(0)?, row.get(1)?, row.get(2)?);
            let (rank, count): (usize, i64) = (row.get::<_, u8>(3)?.into(), row.get(4)?);
            queue.ready[rank.min(4)] += unsigned(count);
            queue.ready_ms += unsigned(row.get(5)?);
            memory.queued += unsigned(count);
        }
        let mut delayed = db.prepare(
            "SELECT pool, tenant, model, count(*), sum(estimate_ms) FROM tasks
             INDEXED BY tasks_backoff WHERE slot = 2 GROUP BY pool, tenant, model",
        )?;
        let mut rows = delayed.query([])?;
        while let Some(row) = rows.next()? {
            let count = unsigned(row.get(3)?);
            let queue = memory.queue(row.get(0)?, row.get(1)?, row.get(2)?);
            queue.delayed += count;
            queue.delayed_ms += unsigned(row.get(4)?);
            memory.queued += count;
        }
        memory.load_workers(db, now)?;
        memory.load_leases(db, now, wall_ms)?;
        Ok(memory)
    }

    pub(super) fn next_seq(&mut self) -> i64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Takes over what only memory knows, where it still fits: beats, and what workers are at.
    pub(super) fn adopt(&mut self, mut old: Memory) {
        self.minutes = std::mem::take(&mut old.minutes);
        self.holds = std::mem::take(&mut old.holds);
        for (name, worker) in &mut self.workers {
            if let Some(known) = old.workers.remove(name)
                && known.incarnation == worker.incarnation
            {
                let quarantine = std::mem::take(&mut worker.quarantine);
                *worker = Worker { quarantine, draining: worker.draining, ..known };
            }
        }
        for (id, live) in &mut self.live {
            if let Some(known) = old.live.remove(id)
                && known.fence == live.fence
            {
                let (confirmed, graces) = (live.confirmed, live.graces);
                *live = Live { confirmed, graces, ..known };
            }
            if let Some(worker) = self.workers.get_mut(&live.worker) {
                worker.state = WorkerState::Busy;
            }
        }
    }

    fn load_workers(&mut self, db: &Connection, now: Duration) -> rusqlite::Result<()> {
        let mut drained = db.prepare("SELECT name FROM drained_pools")?;
        let mut rows = drained.query([])?;
        while let Some(row) = rows.next()? {
            self.drained.extend(row.get::<_, String>(0)?.parse::<PoolName>().ok());
        }
        let mut workers = db.prepare(
            "SELECT name, incarnation, pool, launch, quarantine, version, draining FROM workers",
        )?;
        let mut rows = workers.query([])?;
        while let Some(row) = rows.next()? {
            let (name, pool): (String, String) = (row.get(0)?, row.get(2)?);
            let (Ok(name), Ok(pool)) = (name.parse::<WorkerName>(), pool.parse()) else { continue };
            let mut worker =
                Worker::new(unsigned(row.get(1)?), pool, row.get(3)?, row.get(5)?, now);
            worker.draining = row.get(6)?;
            let quarantine: Option<String> = row.get(4)?;
            worker.quarantine =
                quarantine.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            self.workers.insert(name, worker);
        }
        Ok(())
    }

    fn load_leases(
        &mut self,
        db: &Connection,
        now: Duration,
        wall_ms: u64,
    ) -> rusqlite::Result<()> {
        const DAY_MS: u64 = 86_400_000;
        let mut running = db.prepare(
            "SELECT pool, tenant, graces, body FROM tasks INDEXED BY tasks_running WHERE state = 1",
        )?;
        let mut rows = running.query([])?;
        while let Some(row) = rows.next()? {
            let task: Task = parse(row.get_ref(3)?.as_bytes()?)?;
            let started = task.started_at.map_or(wall_ms, |at| at.0);
            let held = wall_ms.saturating_sub(started).min(DAY_MS);
            let Some(live) = Live::new(&task, row.get(2)?, now, held) else { continue };
            if let Some(worker) = self.workers.get_mut(&live.worker) {
                worker.state = WorkerState::Busy;
                worker.loaded = Some(task.model.clone());
                if worker.incarnation == live.incarnation {
                    // An older claim that was held up on its way must not end this one.
                    worker.last_seq = live.seq;
                }
            }
            self.live.insert(task.id, live);
            self.account(row.get(0)?, row.get(1)?).running += 1;
        }
        Ok(())
    }

    pub(super) fn remember(&mut self, id: NameId, name: String) {
        self.ids.insert(name.clone(), id);
        self.names.insert(id, name);
    }

    pub(super) fn account(&mut self, pool: NameId, tenant: NameId) -> &mut Account {
        let (tenancy, names) = (&self.tenancy, &self.names);
        let new = || {
            let name = names.get(&tenant).and_then(|name| name.parse().ok());
            Account::new(name.map_or(tenancy.common, |name| tenancy.of(&name)))
        };
        self.pools.entry(pool).or_default().tenants.entry(tenant).or_insert_with(new)
    }

    /// The tenant's accounts in all pools.
    fn accounts(&self, tenant: NameId) -> impl Iterator<Item = &Account> {
        self.pools.values().filter_map(move |pool| pool.tenants.get(&tenant))
    }

    pub(super) fn usage(&self, tenant: NameId, today: u64) -> Usage {
        Usage {
            queued: self.accounts(tenant).map(Account::queued).sum(),
            queued_ms: self.accounts(tenant).map(Account::queued_ms).sum(),
            day_ms: self.accounts(tenant).filter(|a| a.day == today).map(|a| a.day_ms).sum(),
        }
    }

    /// How many more tasks of the account's tenant may run; none for any number.
    pub(super) fn vacancies(&self, tenant: NameId, account: &Account) -> Option<u64> {
        let most = account.terms.running?;
        let running: u64 = self.accounts(tenant).map(|account| account.running).sum();
        Some(most.saturating_sub(running))
    }

    /// Pools in which the tenant has ready tasks.
    pub(super) fn pools_of(&self, tenant: NameId) -> Vec<PoolName> {
        let waiting = self.pools.iter().filter(|(_, pool)| {
            pool.tenants.get(&tenant).is_some_and(|account| account.ready() > 0)
        });
        waiting.filter_map(|(pool, _)| self.names.get(pool)?.parse().ok()).collect()
    }

    fn queue(&mut self, pool: NameId, tenant: NameId, model: NameId) -> &mut Queue {
        self.account(pool, tenant).queues.entry(model).or_default()
    }

    /// The account's new virtual time if the tenant becomes active with its next task.
    pub(super) fn lift(&self, pool: NameId, tenant: NameId) -> Option<u64> {
        let pool = self.pools.get(&pool)?;
        match pool.tenants.get(&tenant) {
            Some(account) if account.running + account.queued() > 0 => None,
            Some(account) if account.virtual_ms >= pool.floor_ms => None,
            None if pool.floor_ms == 0 => None,
            _ => Some(pool.floor_ms),
        }
    }

    /// A task of the pool is claimed: the floor follows the smallest counter of those with work.
    pub(super) fn raise_floor(&mut self, pool: NameId) {
        let tenants = self.pools.get(&pool).into_iter().flat_map(|pool| &pool.tenants);
        let ready = tenants.filter(|(tenant, account)| {
            account.ready() > 0 && self.vacancies(**tenant, account) != Some(0)
        });
        let smallest = ready.map(|(_, account)| account.virtual_ms).min();
        if let (Some(smallest), Some(pool)) = (smallest, self.pools.get_mut(&pool)) {
            pool.floor_ms = pool.floor_ms.max(smallest);
        }
    }

    pub(super) fn enqueue(&mut self, place: &Place) {
        if place.slot == Slot::None {
            return;
        }
        let queue = self.queue(place.pool, place.tenant, place.model);
        if place.slot == Slot::Ready {
            queue.ready[usize::from(place.rank.min(4))] += 1;
            queue.ready_ms += place.estimate_ms;
        } else {
            queue.delayed += 1;
            queue.delayed_ms += place.estimate_ms;
        }
        self.queued += 1;
    }

    pub(super) fn dequeue(&mut self, place: &Place) {
        if place.slot == Slot::None {
            return;
        }
        let account = self.account(place.pool, place.tenant);
        let queue = account.queues.entry(place.model).or_default();
        if place.slot == Slot::Ready {
            let count = &mut queue.ready[usize::from(place.rank.min(4))];
            *count = count.saturating_sub(1);
            queue.ready_ms = queue.ready_ms.saturating_sub(place.estimate_ms);
        } else {
            queue.delayed = queue.delayed.saturating_sub(1);
            queue.delayed_ms = queue.delayed_ms.saturating_sub(place.estimate_ms);
        }
        if queue.ready_count() + queue.delayed == 0 {
            account.queues.remove(&place.model);
        }
        self.queued = self.queued.saturating_sub(1);
    }

    /// The models of which the pool has ready tasks that may run.
    pub(super) fn ready_models(&self, pool: NameId) -> Vec<NameId> {
        let tenants = self.pools.get(&pool).into_iter().flat_map(|pool| &pool.tenants);
        let free = tenants.filter(|(tenant, account)| self.vacancies(**tenant, account) != Some(0));
        let queues = free.flat_map(|(_, account)| &account.queues);
        let mut models: Vec<NameId> =
            queues.filter(|(_, queue)| queue.ready_count() > 0).map(|(model, _)| *model).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// Tasks that probably start before one that has `ahead` of its own tenant in front of it.
    pub(super) fn position(&self, place: &Place, ahead: u64) -> u64 {
        let Some(pool) = self.pools.get(&place.pool) else { return ahead };
        let Some(own) = pool.tenants.get(&place.tenant) else { return ahead };
        let rivals: Vec<Rival> = pool
            .tenants
            .iter()
            .filter(|(tenant, account)| **tenant != place.tenant && account.ready() > 0)
            .map(|(_, account)| Rival {
                virtual_ms: account.virtual_ms,
                weight: account.terms.weight,
                queued: account.ready(),
                queued_ms: account.ready_ms(),
            })
            .collect();
        let each = own.ready_ms() / own.ready().max(1);
        schedule::position(
            own.virtual_ms,
            own.terms.weight,
            ahead,
            ahead.saturating_mul(each),
            &rivals,
        )
    }

    pub(super) fn lease_of(&self, worker: &WorkerName) -> Option<&Live> {
        self.live.values().find(|live| live.worker == *worker)
    }

    /// The registration, if it is the newest of its name.
    pub(super) fn worker(&mut self, by: &Identity, now: Duration) -> Option<&mut Worker> {
        let worker = self.workers.get_mut(&by.worker)?;
        if worker.incarnation != by.incarnation {
            return None;
        }
        worker.seen = now;
        Some(worker)
    }

    /// The store's number of a name that it knows.
    pub(super) fn id_of(&self, name: &str) -> Option<NameId> {
        self.ids.get(name).copied()
    }

    pub(super) fn tenant_id(&self, tenant: &TenantName) -> Option<NameId> {
        self.id_of(tenant.as_str())
    }
}

/// Reads what is stored as JSON.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> rusqlite::Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(error))
    })
}

/// SQLite's integers are signed; none of ours is negative.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn state_number(state: State) -> i64 {
    state as i64
}

/// As it stands in the column `format`.
pub(super) fn format_number(format: Format) -> i64 {
    match format {
        Format::Mp4 => 0,
        Format::Png => 1,
        Format::Jpeg => 2,
        Format::Webp => 3,
    }
}

/// Every running lease has survived one more start of the server without a beat.
pub(super) fn count_graces(db: &Connection) -> rusqlite::Result<()> {
    db.execute(
        "UPDATE tasks INDEXED BY tasks_running SET graces = graces + 1 WHERE state = 1",
        params![],
    )
    .map(|_| ())
}
