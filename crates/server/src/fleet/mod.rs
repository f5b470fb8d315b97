//! How many workers there are, and where they come from.
//!
//! One loop looks at what is there, asks [`rayreel_domain::scale`] what should be, and starts what
//! is missing. It takes no input, may run at any moment, and wakes when the backlog changes and on
//! a timer. A worker that is not needed is told to go by the answer to its own claim.
//!
//! Every launch is a durable row, written before the provider is called, so that a server that was
//! killed finds again what it has started. A launch that dies before its worker has asked for work
//! delays the next one; three in a row open the breaker: the pool's tasks stay queued, and say why.

mod breaker;
mod census;
pub mod local;
pub mod process;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use rayreel_domain::id::{ModelName, PoolName};
use rayreel_domain::scale::{self, Policy, Snapshot};
use rayreel_domain::task::End;
use tokio_util::sync::CancellationToken;

use crate::App;
use crate::config;
use crate::duties::Lead;
use crate::store::{self, Activity, Identity, Launch, WorkerView};
use breaker::Breaker;

/// Starts worker processes somewhere.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Starts the worker of this launch, or finds it running, and completes the row.
    async fn launch(&self, launch: Launch, server: &str) -> Result<Launch, String>;

    /// Is the worker's process there? If not, what it said last.
    async fn probe(&self, launch: &Launch) -> Result<(), Death>;

    /// Asks the worker to finish and go, or ends it at once.
    async fn stop(&self, launch: &Launch, at_once: bool);

    /// Forgets a launch that is over.
    async fn forget(&self, launch: &Launch);

    /// Where its workers run; of those that run elsewhere it knows nothing. Empty if there is only
    /// one place.
    fn place(&self) -> &str {
        ""
    }
}

/// How a worker process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// `exit status: 1`, and the last lines of its log.
    pub reason: String,
    /// It exited with status 0: it was told to.
    pub clean: bool,
}

/// What the fleet has decided for each pool; read by claims and by the API.
#[derive(Debug, Default)]
pub struct Targets(RwLock<HashMap<PoolName, Decision>>);

#[derive(Debug, Default, Clone)]
struct Decision {
    target: Option<u32>,
    blocked: Option<String>,
    /// Why nothing is started for now.
    breaker: Option<String>,
    /// Closed to claims by an operator.
    drained: bool,
    /// Models that no worker of the pool may have tasks of, and why.
    barred: HashMap<ModelName, String>,
}

impl Targets {
    /// How many workers the pool should have. None, so that nobody is told to go, until the fleet
    /// has decided, and where it starts none: those pools live on workers that others start.
    pub fn of(&self, pool: &PoolName) -> Option<u32> {
        self.read().get(pool).and_then(|decision| decision.target)
    }

    /// Why tasks of the model wait although it would be their turn.
    pub fn blocked(&self, pool: &PoolName, model: &ModelName) -> Option<String> {
        let decisions = self.read();
        let decision = decisions.get(pool)?;
        match decision.barred.get(model) {
            Some(reason) if !decision.drained => Some(reason.clone()),
            _ => decision.waits(pool),
        }
    }

    /// Why tasks of the pool wait, and why it starts no workers for now.
    pub fn obstacles(&self, pool: &PoolName) -> (Option<String>, Option<String>) {
        let decisions = self.read();
        let Some(decision) = decisions.get(pool) else { return (None, None) };
        // Of several models that are barred one says enough; the workers say the rest.
        let barred = decision.barred.values().min().cloned();
        (decision.waits(pool).or(barred), decision.breaker.clone())
    }

    /// The pool was closed or opened a moment ago; the next look finds that, too.
    pub fn drained(&self, pool: &PoolName, drained: bool) {
        let mut decisions = self.0.write().expect("nothing panics while it holds this lock");
        decisions.entry(pool.clone()).or_default().drained = drained;
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<PoolName, Decision>> {
        self.0.read().expect("nothing panics while it holds this lock")
    }

    fn set(&self, pool: &PoolName, decision: Decision) {
        let mut decisions = self.0.write().expect("nothing panics while it holds this lock");
        decisions.insert(pool.clone(), decision);
    }
}

impl Decision {
    fn waits(&self, pool: &PoolName) -> Option<String> {
        if self.drained {
            return Some(format!(
                "pool `{pool}` is drained: its tasks wait until an operator resumes it"
            ));
        }
        self.blocked.clone()
    }
}

/// The loop that keeps every pool at its target.
pub struct Fleet {
    app: Arc<App>,
    /// Address under which workers of this machine reach the server.
    server: String,
    breakers: HashMap<PoolName, Breaker>,
    /// Whether this server starts workers; what it has started it looks after in any case.
    lead: Lead,
}

/// Looks are this far apart at least, whatever happens in between.
const PACE: Duration = Duration::from_millis(20);
/// And this far at most: processes die without telling.
const TICK: Duration = Duration::from_millis(500);
/// A launch of which no worker is registered is forgotten after so long where nobody can tell whether
/// it lives.
const FORGOTTEN_MS: u64 = 86_400_000;
/// A worker that is asked to go when the server stops gets so long.
const FAREWELL: Duration = Duration::from_secs(3);

impl Fleet {
    pub fn new(app: Arc<App>, server: String) -> Self {
        Self { app, server, breakers: HashMap::new(), lead: Lead::always() }
    }

    /// Starts workers only while it leads.
    pub fn led_by(self, lead: Lead) -> Self {
        Self { lead, ..self }
    }

    /// Runs until the server stops. An error of the store is logged and the next look is a new try.
    pub async fn run(mut self, stopping: CancellationToken) {
        loop {
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "the fleet could not look at its pools");
            }
            let feed = &self.app.components.feed;
            tokio::select! {
                () = stopping.cancelled() => break,
                () = tokio::time::sleep(TICK) => {}
                () = async {
                    tokio::time::sleep(PACE).await;
                    feed.backlog.notified().await;
                } => {}
            }
        }
        self.leave().await;
    }

    /// One look at every pool.
    pub async fn look(&mut self) -> Result<(), store::Error> {
        let store = &self.app.components.store;
        let workers = store.workers().await?;
        let mut launches: HashMap<PoolName, Vec<Launch>> = HashMap::new();
        let mut elsewhere = Vec::new();
        for launch in store.launches().await? {
            if !self.is_own(&launch) {
                elsewhere.push(launch);
                continue;
            }
            launches.entry(launch.pool.clone()).or_default().push(launch);
        }
        let backlog = store.backlog().await?;
        let closed = store.drained_pools().await?;
        let app = Arc::clone(&self.app);
        for (pool, config) in &app.settings.pools {
            let start_timeout = config.start_timeout_seconds.duration();
            let mut live = Vec::new();
            for launch in launches.remove(pool).unwrap_or_default() {
                if let Some(launch) = self.examine(launch, &workers, start_timeout).await? {
                    live.push(launch);
                }
            }
            let crew: Vec<&WorkerView> =
                workers.iter().filter(|w| w.pool == *pool && w.silent_ms < SILENT_MS).collect();
            let drained = closed.contains(pool);
            let mut policy = config.policy();
            if drained {
                // Whom it has may stay for a while; nobody comes.
                policy.min = 0;
            }
            // What may not be claimed needs nobody.
            let work = backlog.iter().find(|b| b.pool == *pool && !drained);
            let ready = work.map(|work| &work.ready);
            let ready = ready.cloned().unwrap_or_default();
            let mut snapshot = census::snapshot(&crew, &ready, app.settings.terms().lease_ms);
            let now = app.components.clock.wall();
            let starts = |launch: &&Launch| {
                let age = Duration::from_millis(now.ms_since(launch.created_at));
                launch.pool == *pool && !launch.claimed && age < start_timeout
            };
            let starting = live.iter().filter(|launch| !launch.claimed).count()
                + elsewhere.iter().filter(starts).count();
            snapshot.starting = u32::try_from(starting).unwrap_or(u32::MAX);
            let barred = census::barred(&crew);
            let decision = Decision { drained, barred, ..Decision::default() };
            let mut gpus = Gpus::new(config, &live);
            self.reconcile(pool, policy, &snapshot, decision, &mut gpus).await?;
            let idle = |w: &&&WorkerView| matches!(w.activity, Activity::Idle { .. });
            let surplus = app.targets.of(pool).is_some_and(|target| snapshot.live() > target);
            if surplus && crew.iter().filter(idle).any(|worker| worker.launch.is_some()) {
                // Parked claims of idle workers come back and learn that they are not needed.
                app.components.feed.wake_all(pool);
            }
        }
        // Pools that are configured no more: what was started for them is stopped.
        for launch in launches.into_values().flatten() {
            self.app.components.provider.stop(&launch, false).await;
            let _ = self.examine(launch, &workers, Duration::MAX).await?;
        }
        if self.lead.held() {
            self.forget_places(&elsewhere, &workers).await?;
        }
        Ok(())
    }

    /// May this server judge whether the launch lives?
    fn is_own(&self, launch: &Launch) -> bool {
        launch.place.is_empty() || launch.place == self.app.components.provider.place()
    }

    /// Forgets launches of servers that have not come back to look after them for long.
    async fn forget_places(
        &self,
        elsewhere: &[Launch],
        workers: &[WorkerView],
    ) -> Result<(), store::Error> {
        let components = &self.app.components;
        for launch in elsewhere {
            let age = components.clock.wall().ms_since(launch.created_at);
            let known = workers.iter().any(|worker| worker.by.worker.as_str() == launch.id);
            if age > FORGOTTEN_MS && !known {
                components.store.remove_launch(&launch.id).await?;
            }
        }
        Ok(())
    }

    /// Follows one launch; gone if it is over.
    async fn examine(
        &mut self,
        mut launch: Launch,
        workers: &[WorkerView],
        start_timeout: Duration,
    ) -> Result<Option<Launch>, store::Error> {
        let app = Arc::clone(&self.app);
        let components = &app.components;
        let (store, provider) = (&components.store, &components.provider);
        let now = components.clock.monotonic();
        let worker = workers.iter().find(|worker| worker.by.worker.as_str() == launch.id);
        let asked = worker.is_some_and(|worker| worker.activity != Activity::Starting);
        if asked && !launch.claimed {
            launch.claimed = true;
            store.put_launch(launch.clone()).await?;
            self.breaker(&launch.pool).succeeded();
        }
        let age = components.clock.wall().ms_since(launch.created_at);
        let death = match provider.probe(&launch).await {
            Ok(()) if launch.claimed || Duration::from_millis(age) < start_timeout => {
                return Ok(Some(launch));
            }
            Ok(()) => {
                provider.stop(&launch, true).await;
                Death {
                    reason: format!("it did not ask for work within {} s", start_timeout.as_secs()),
                    clean: false,
                }
            }
            Err(death) => death,
        };
        if !launch.claimed && !death.clean {
            tracing::warn!(worker = launch.id, pool = %launch.pool, reason = death.reason, "a worker died before it asked for work");
            self.breaker(&launch.pool).died(death.reason, now);
        } else if !death.clean {
            tracing::warn!(worker = launch.id, pool = %launch.pool, reason = death.reason, "a worker died");
        }
        // Its process is known to be dead, so there is nothing to wait for.
        for lease in store.leases().await? {
            if lease.worker.as_str() == launch.id {
                store.reclaim(lease.fence, u64::MAX, End::Vanish).await?;
            }
        }
        if let Some(worker) = worker {
            store.deregister(&worker.by).await?;
        }
        // In this order: what is left undone when the server is killed in between, the next one does.
        provider.forget(&launch).await;
        store.remove_launch(&launch.id).await?;
        Ok(None)
    }

    /// Sets the target of a pool and starts what is missing.
    async fn reconcile(
        &mut self,
        pool: &PoolName,
        policy: Policy,
        snapshot: &Snapshot,
        mut decision: Decision,
        gpus: &mut Gpus<'_>,
    ) -> Result<(), store::Error> {
        let plan = scale::plan(policy, snapshot);
        let components = self.app.components.clone();
        let now = components.clock.monotonic();
        let leads = self.lead.held();
        let breaker = self.breaker(pool);
        decision.breaker = breaker.blocked(now);
        decision.blocked = decision.breaker.clone().filter(|_| plan.launch > 0);
        let starts = decision.blocked.is_none() && leads;
        let allowed = if starts { breaker.allowed(plan.launch) } else { 0 };
        decision.target = (policy.max > 0).then_some(plan.target);
        if policy.max == 0 && snapshot.live() == 0 {
            decision.blocked = Some(format!(
                "pool `{pool}` starts no workers of its own (max = 0), and none has come"
            ));
        }
        self.app.targets.set(pool, decision);
        for _ in 0..allowed {
            // Those of a worker that is on its way out come back when it is gone.
            let Some(gpus) = gpus.take() else { break };
            let launch = Launch {
                id: format!("{pool:.40}-{:012x}", components.random.number() >> 16),
                pool: pool.clone(),
                created_at: components.clock.wall(),
                pid: None,
                pid_started: None,
                place: components.provider.place().to_owned(),
                claimed: false,
                gpus,
            };
            components.store.put_launch(launch.clone()).await?;
            tracing::info!(worker = launch.id, %pool, queued = snapshot.queued, "starting a worker");
            match components.provider.launch(launch.clone(), &self.server).await {
                Ok(launched) => components.store.put_launch(launched).await?,
                Err(reason) => {
                    tracing::warn!(%pool, reason, "a worker could not be started");
                    self.breaker(pool).died(reason, now);
                    components.store.remove_launch(&launch.id).await?;
                    break;
                }
            }
        }
        Ok(())
    }

    fn breaker(&mut self, pool: &PoolName) -> &mut Breaker {
        self.breakers.entry(pool.clone()).or_default()
    }

    /// The server stops: workers without a task go with it. One that has a task keeps it, and
    /// comes back when the server does.
    async fn leave(&self) {
        // Asked twice: one that a cancel has not reached would first finish what is nobody's.
        for _ in 0..2 {
            let going = self.dismiss().await;
            // Bounded: what does not go now is found at the next start.
            if tokio::time::timeout(FAREWELL, self.see_off(&going)).await.is_ok() {
                return;
            }
        }
        tracing::warn!("some workers have not gone yet");
    }

    /// Asks the workers that hold nothing to go.
    async fn dismiss(&self) -> Vec<Launch> {
        let components = &self.app.components;
        let (Ok(mut launches), Ok(leases)) =
            (components.store.launches().await, components.store.leases().await)
        else {
            return Vec::new();
        };
        launches.retain(|launch| {
            if !self.is_own(launch) {
                return false;
            }
            let busy = leases.iter().any(|lease| lease.worker.as_str() == launch.id);
            if busy {
                let worker = &launch.id;
                tracing::info!(worker, "left at work; it reconnects when the server is back");
            }
            !busy
        });
        for launch in &launches {
            components.provider.stop(launch, false).await;
        }
        launches
    }

    /// Waits until these workers have gone, and forgets them.
    async fn see_off(&self, going: &[Launch]) {
        let components = &self.app.components;
        for launch in going {
            while components.provider.probe(launch).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let by = components.store.workers().await.ok().and_then(|workers| {
                workers.into_iter().find(|w| w.by.worker.as_str() == launch.id).map(|w| w.by)
            });
            self.forget(launch, by).await;
        }
    }

    async fn forget(&self, launch: &Launch, by: Option<Identity>) {
        let components = &self.app.components;
        if let Some(by) = by {
            let _ = components.store.deregister(&by).await;
        }
        components.provider.forget(launch).await;
        let _ = components.store.remove_launch(&launch.id).await;
    }
}

/// The GPUs of a pool that no worker has.
struct Gpus<'a> {
    free: Vec<&'a String>,
    each: usize,
    handed_out: bool,
}

impl<'a> Gpus<'a> {
    fn new(pool: &'a config::Pool, live: &[Launch]) -> Self {
        let taken = |gpu: &String| live.iter().any(|launch| launch.gpus.contains(gpu));
        Self {
            free: pool.gpus.iter().filter(|gpu| !taken(gpu)).collect(),
            each: pool.gpus_per_worker as usize,
            handed_out: !pool.gpus.is_empty(),
        }
    }

    /// Those of the next worker, if there are enough.
    fn take(&mut self) -> Option<Vec<String>> {
        if !self.handed_out {
            return Some(Vec::new());
        }
        let enough = self.free.len() >= self.each;
        enough.then(|| self.free.drain(..self.each).cloned().collect())
    }
}

/// Every worker calls at least each half minute; one that has been silent for longer than this is
/// not counted on.
pub const SILENT_MS: u64 = 90_000;
