//! The reference: what a store should answer, in the simplest form that can be read and believed.
//! Nothing is indexed, nothing is counted ahead; the next task is chosen among all.
//!
//! What is random in a store (incarnations, nonces, the jitter of a backoff) the model takes from
//! the store's answer.

mod claim;
mod submit;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use rayreel_domain::id::{ModelName, Nonce, PoolName, TaskId, TenantName, WorkerName};
use rayreel_domain::lease::Fence;
use rayreel_domain::schedule;
use rayreel_domain::task::{Effect, End, Refusal, State, Task};
use rayreel_domain::tenant::Minute;
use rayreel_domain::time::Timestamp;
use rayreel_domain::wire::worker::{Beaten, Progress};
use rayreel_server::clock::Clock;
use rayreel_server::store::{Claimed, Error, Identity, Launch, Registration};

use super::Setup;

const DAY_MS: u64 = 24 * 3_600_000;

#[derive(Debug)]
pub(super) struct Model {
    setup: Setup,
    /// In the order of submission.
    pub(super) tasks: Vec<Entry>,
    submitted: u64,
    /// Keys of deleted tasks: until when, and what was deleted.
    tombstones: BTreeMap<(TenantName, String), (Timestamp, Task)>,
    /// In the order in which they first had a task: this breaks ties.
    tenants: Vec<TenantName>,
    models: Vec<ModelName>,
    virtual_ms: BTreeMap<(PoolName, TenantName), u64>,
    floors: BTreeMap<PoolName, u64>,
    /// GPU-milliseconds charged on the day of the newest charge.
    used: BTreeMap<(PoolName, TenantName), (u64, u64)>,
    /// What each tenant has submitted lately.
    minutes: BTreeMap<TenantName, Minute>,
    pub(super) workers: BTreeMap<WorkerName, Worker>,
    pub(super) drained: BTreeSet<PoolName>,
    pub(super) leases: BTreeMap<TaskId, Held>,
    garbage: Vec<(String, Timestamp)>,
    pub(super) launches: BTreeMap<String, Launch>,
    nonces: HashSet<Nonce>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) task: Task,
    seq: u64,
    /// Queued, and not waiting for its next try.
    ready: bool,
    /// Found by its idempotency key.
    keyed: bool,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) incarnation: u64,
    pool: PoolName,
    launch: Option<String>,
    version: String,
    draining: bool,
    loaded: Option<ModelName>,
    last_seq: u64,
    idle_since: Option<Duration>,
    started: bool,
    seen: Duration,
    streak: Option<(ModelName, u32)>,
    failures: BTreeMap<ModelName, Vec<Fence>>,
    pub(super) quarantine: Vec<Barred>,
}

/// A model that a worker gets no tasks of.
#[derive(Debug, Clone)]
pub(super) struct Barred {
    pub(super) model: ModelName,
    pub(super) message: String,
    /// Self-tests that failed, and from when on the next one may be asked for.
    failed: u32,
    due: Duration,
}

impl Worker {
    fn bars(&self, model: &ModelName) -> bool {
        self.quarantine.iter().any(|barred| barred.model == *model)
    }
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) fence: Fence,
    pub(super) worker: WorkerName,
    pub(super) beats: u64,
    graces: u32,
    progress: Option<Progress>,
    since: Duration,
    before_ms: u64,
}

/// An answer to a claim that can be compared.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    Task(Box<Task>),
    Nothing { ready: bool },
    Drain,
    Quarantine { model: ModelName, message: String },
}

impl From<Claimed> for Told {
    fn from(claimed: Claimed) -> Self {
        match claimed {
            Claimed::Task(task) => Self::Task(task),
            Claimed::Nothing { ready } => Self::Nothing { ready },
            Claimed::Drain => Self::Drain,
            Claimed::Quarantine { model, message } => Self::Quarantine { model, message },
        }
    }
}

impl Model {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            setup,
            tasks: Vec::new(),
            submitted: 0,
            tombstones: BTreeMap::new(),
            tenants: Vec::new(),
            models: Vec::new(),
            virtual_ms: BTreeMap::new(),
            floors: BTreeMap::new(),
            used: BTreeMap::new(),
            minutes: BTreeMap::new(),
            workers: BTreeMap::new(),
            drained: BTreeSet::new(),
            leases: BTreeMap::new(),
            garbage: Vec::new(),
            launches: BTreeMap::new(),
            nonces: HashSet::new(),
        }
    }

    fn wall(&self) -> Timestamp {
        self.setup.clock.wall()
    }

    fn now(&self) -> Duration {
        self.setup.clock.monotonic()
    }

    fn entry(&self, id: TaskId) -> Option<usize> {
        self.tasks.iter().position(|entry| entry.task.id == id)
    }

    fn account(&self, pool: &PoolName, tenant: &TenantName) -> u64 {
        self.virtual_ms.get(&(pool.clone(), tenant.clone())).copied().unwrap_or(0)
    }

    /// How many more tasks of the tenant may run.
    fn vacancies(&self, tenant: &TenantName) -> u64 {
        let own = self.tasks.iter().filter(|e| e.task.tenant == *tenant);
        let running = own.filter(|e| e.task.state == State::Running).count() as u64;
        self.setup.tenancy.of(tenant).running.map_or(u64::MAX, |most| most.saturating_sub(running))
    }

    fn vacant(&self, tenant: &TenantName) -> bool {
        self.vacancies(tenant) > 0
    }

    fn ready_of<'a>(
        &'a self,
        pool: &'a PoolName,
        tenant: &'a TenantName,
    ) -> impl Iterator<Item = &'a Entry> {
        self.tasks
            .iter()
            .filter(move |e| e.ready && e.task.pool == *pool && e.task.tenant == *tenant)
    }

    /// A call of a registered worker.
    fn caller(&mut self, by: &Identity) -> Result<&mut Worker, Error> {
        let now = self.now();
        let worker = self.workers.get_mut(&by.worker).ok_or(Error::StaleWorker)?;
        if worker.incarnation != by.incarnation {
            return Err(Error::StaleWorker);
        }
        worker.seen = now;
        Ok(worker)
    }

    pub(super) fn lease_of(&self, worker: &WorkerName) -> Option<&Held> {
        self.leases.values().find(|held| held.worker == *worker)
    }

    pub(super) fn register(&mut self, worker: &Registration, incarnation: u64) {
        let kept = self.workers.get(&worker.worker).filter(|old| old.pool == worker.pool);
        let record = Worker {
            incarnation,
            pool: worker.pool.clone(),
            launch: worker.launch.clone(),
            version: worker.version.clone(),
            draining: kept.is_some_and(|old| old.draining),
            loaded: None,
            last_seq: 0,
            idle_since: None,
            started: self.lease_of(&worker.worker).is_some(),
            seen: self.now(),
            streak: None,
            failures: BTreeMap::new(),
            quarantine: kept.map(|old| old.quarantine.clone()).unwrap_or_default(),
        };
        self.workers.insert(worker.worker.clone(), record);
    }

    pub(super) fn deregister(&mut self, by: &Identity) {
        if self.caller(by).is_err() {
            return;
        }
        if let Some(fence) = self.lease_of(&by.worker).map(|held| held.fence) {
            self.finish(fence, End::Vanish, 0).expect("a live lease");
        }
        self.workers.remove(&by.worker);
    }

    pub(super) fn drain_worker(&mut self, name: &WorkerName) -> bool {
        let worker = self.workers.get_mut(name);
        worker.map(|worker| worker.draining = true).is_some()
    }

    pub(super) fn drain_pool(&mut self, pool: &PoolName, drained: bool) {
        match drained {
            true => self.drained.insert(pool.clone()),
            false => self.drained.remove(pool),
        };
    }

    /// Workers of the pool that are alive.
    fn counted(&self, pool: &PoolName) -> Vec<(&WorkerName, &Worker)> {
        let now = self.now();
        let silence = Duration::from_millis(self.setup.worker_silence_ms);
        self.workers.iter().filter(|(_, w)| w.pool == *pool && now - w.seen < silence).collect()
    }

    /// What follows from a transition.
    fn apply(&mut self, index: usize, effect: Effect) {
        let wall = self.wall();
        let entry = &mut self.tasks[index];
        let terms = self.setup.tenancy.of(&entry.task.tenant);
        entry.task.keep(terms.keep_ms);
        let task = &entry.task;
        entry.ready = task.state == State::Queued && task.not_before == Timestamp::ZERO;
        let key = (task.pool.clone(), task.tenant.clone());
        let account = self.virtual_ms.entry(key.clone()).or_default();
        let charge = schedule::virtual_ms(effect.charge_ms.unsigned_abs(), terms.weight);
        *account = match effect.charge_ms < 0 {
            true => account.saturating_sub(charge),
            false => account.saturating_add(charge),
        };
        if effect.charge_ms != 0 {
            let today = wall.0 / DAY_MS;
            let (day, used) = self.used.entry(key).or_default();
            let so_far = if *day == today { *used } else { 0 };
            (*day, *used) = (today, so_far.saturating_add_signed(effect.charge_ms));
        }
        if task.state != State::Running {
            self.leases.remove(&task.id);
        }
        if let Some(fence) = effect.garbage {
            self.garbage.push((fence.folder(), wall.plus_ms(self.setup.garbage_after_ms)));
        }
    }

    fn held_ms(&self, id: TaskId) -> u64 {
        let now = self.now();
        self.leases.get(&id).map_or(0, |h| (now - h.since).as_millis() as u64 + h.before_ms)
    }

    pub(super) fn beat(
        &mut self,
        by: &Identity,
        fence: Fence,
        progress: Option<Progress>,
    ) -> Result<Beaten, Error> {
        self.caller(by)?;
        let Some(held) = self.leases.get_mut(&fence.task).filter(|held| held.fence == fence) else {
            return Ok(self.held(fence));
        };
        held.beats += 1;
        held.graces = 0;
        held.progress = progress.or(held.progress.take());
        let index = self.entry(fence.task).expect("leased");
        self.tasks[index].task.confirm(fence).expect("leased");
        Ok(Beaten::Continue)
    }

    /// `not_before` is the store's, if the task goes back into the queue.
    pub(super) fn end(
        &mut self,
        by: &Identity,
        fence: Fence,
        end: End,
        not_before: Option<Timestamp>,
    ) -> Result<Task, Error> {
        self.caller(by)?;
        let jitter = self.jitter(fence, not_before);
        self.finish(fence, end, jitter)
    }

    pub(super) fn reclaim(&mut self, fence: Fence, beats: u64, end: End) -> bool {
        let live = self.leases.get(&fence.task).filter(|held| held.fence == fence);
        if live.is_none_or(|held| held.beats > beats) {
            return false;
        }
        self.finish(fence, end, 0).expect("a live lease");
        true
    }

    /// The jitter with which a failure of this task gives that time, if there is one: the upper
    /// half of the backoff.
    fn jitter(&self, fence: Fence, not_before: Option<Timestamp>) -> u64 {
        let (Some(at), Some(index)) = (not_before, self.entry(fence.task)) else { return 0 };
        let failures = self.tasks[index].task.failures;
        let rules = &self.setup.rules;
        let full = (rules.backoff_ms << failures.min(20)).min(rules.max_backoff_ms);
        at.ms_since(self.wall()).saturating_sub(full / 2)
    }

    fn finish(&mut self, fence: Fence, end: End, jitter: u64) -> Result<Task, Error> {
        let stale = Error::StaleLease { cancelled: false };
        let index = self.entry(fence.task).ok_or(stale.clone())?;
        let (wall, held) = (self.wall(), self.held_ms(fence.task));
        let lease = self.tasks[index].task.lease.clone();
        let succeeded = matches!(end, End::Commit(_));
        let blamed = match &end {
            End::Fail(failure) if failure.code.blames_engine() => Some(failure.message.clone()),
            _ => None,
        };
        let rules = self.setup.rules;
        match self.tasks[index].task.end(fence, end, &rules, held, jitter, wall) {
            Ok(effect) => self.apply(index, effect),
            Err(Refusal::Repeated) => return Ok(self.tasks[index].task.clone()),
            Err(Refusal::Stale { cancelled }) => return Err(Error::StaleLease { cancelled }),
            Err(Refusal::State(_)) => return Err(stale),
        }
        let answer = self.tasks[index].task.clone();
        let Some(worker) = lease.and_then(|lease| self.workers.get_mut(&lease.worker)) else {
            return Ok(answer);
        };
        let model = answer.model.clone();
        if succeeded {
            worker.failures.remove(&model);
        }
        if let Some(message) = blamed {
            let barred = worker.bars(&model);
            let failures = worker.failures.entry(model.clone()).or_default();
            failures.retain(|failed| failed.task != fence.task);
            failures.push(fence);
            if failures.len() >= 3 && !barred {
                let failures = std::mem::take(failures);
                worker.quarantine.push(Barred { model, message, failed: 0, due: Duration::ZERO });
                for failed in failures {
                    if let Some(index) = self.entry(failed.task) {
                        self.tasks[index].task.excuse(failed);
                    }
                }
            }
        }
        // What the caller is told is the task after everything.
        Ok(self.tasks[index].task.clone())
    }

    /// The task, cancelled?, deleted?
    pub(super) fn cancel(
        &mut self,
        tenant: &TenantName,
        id: TaskId,
        delete: bool,
    ) -> Result<(Task, bool, bool), Error> {
        let index = self.entry(id).filter(|i| self.tasks[*i].task.tenant == *tenant);
        let index = index.ok_or(Error::NotFound)?;
        let (wall, held) = (self.wall(), self.held_ms(id));
        if let Ok(effect) = self.tasks[index].task.cancel(held, wall) {
            self.apply(index, effect);
            return Ok((self.tasks[index].task.clone(), true, false));
        }
        if !delete {
            return Ok((self.tasks[index].task.clone(), false, false));
        }
        Ok((self.remove(index), false, true))
    }

    /// Deletes a task that has ended.
    fn remove(&mut self, index: usize) -> Task {
        let wall = self.wall();
        let Entry { task, keyed, .. } = self.tasks.remove(index);
        if let Some(idempotency) = task.idempotency.as_ref().filter(|_| keyed) {
            let key = (task.tenant.clone(), idempotency.key.clone());
            let until = task.created_at.plus_ms(DAY_MS);
            self.tombstones.insert(key, (until, task.clone()));
        }
        // Once now, and once more when no upload can be under way any longer.
        self.garbage.push((task.id.to_string(), wall));
        self.garbage.push((task.id.to_string(), wall.plus_ms(self.setup.garbage_after_ms)));
        task
    }

    pub(super) fn advance(&mut self) -> Option<Timestamp> {
        let now = self.wall();
        let horizon = now.plus_ms(self.setup.rules.max_backoff_ms);
        for index in 0..self.tasks.len() {
            let entry = &mut self.tasks[index];
            let at = entry.task.not_before;
            let waits = entry.task.state == State::Queued && !entry.ready;
            // No backoff lasts longer than the longest, even if the clock has gone back.
            entry.ready |= waits && (at <= now || at > horizon);
            if entry.task.state == State::Queued && entry.task.deadline.is_some_and(|d| d <= now) {
                let effect = entry.task.expire(now).expect("queued and late");
                self.apply(index, effect);
            }
        }
        while let Some(index) =
            self.tasks.iter().position(|e| e.task.delete_at.is_some_and(|at| at <= now))
        {
            self.remove(index);
        }
        self.tombstones.retain(|_, (until, _)| *until > now);
        let next = |entry: &Entry| {
            let task = &entry.task;
            let queued = task.state == State::Queued;
            [
                task.deadline.filter(|_| queued),
                queued.then_some(task.not_before).filter(|_| !entry.ready),
                task.delete_at,
            ]
        };
        self.tasks.iter().flat_map(next).flatten().min()
    }

    /// What a stop of the server forgets: beats, and what workers were at.
    pub(super) fn restart(&mut self) {
        self.minutes.clear();
        let (now, wall) = (self.now(), self.wall());
        for held in self.leases.values_mut() {
            let task = self.tasks.iter().find(|e| e.task.id == held.fence.task).expect("leased");
            let started = task.task.started_at.expect("running");
            held.beats = 0;
            held.graces += 1;
            held.progress = None;
            held.since = now;
            held.before_ms = wall.ms_since(started).min(DAY_MS);
        }
        for (name, worker) in &mut self.workers {
            let held = self.leases.values().find(|held| held.worker == *name);
            let entry = held
                .and_then(|held| self.tasks.iter().find(|entry| entry.task.id == held.fence.task));
            let lease = entry.and_then(|entry| entry.task.lease.as_ref());
            worker.loaded = entry.map(|entry| entry.task.model.clone());
            worker.started = lease.is_some();
            worker.idle_since = None;
            worker.seen = now;
            worker.streak = None;
            worker.failures.clear();
            for barred in &mut worker.quarantine {
                (barred.failed, barred.due) = (0, Duration::ZERO);
            }
            worker.last_seq = lease
                .filter(|lease| lease.incarnation == worker.incarnation)
                .map_or(0, |lease| lease.seq);
        }
    }

    /// A folder is deleted: one of its entries that are due is forgotten.
    pub(super) fn collected(&mut self, folder: &str) {
        let now = self.wall();
        let index = self.garbage.iter().position(|(f, at)| f == folder && *at <= now);
        self.garbage.remove(index.expect("it was due"));
    }
}
