//! The worker API: registration, claims, control, beats, and the ends of attempts. Files are in
//! [`super::uploads`]. The gate has checked the worker token; whether it is good for the pool is
//! checked here, by [`Bound`].

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::response::Response;
use http::StatusCode;
use http::request::Parts;
use rayreel_domain::Code;
use rayreel_domain::id::{PoolName, WorkerName};
use rayreel_domain::lease::Fence;
use rayreel_domain::task::{End, Failure, Task};
use rayreel_domain::wire::worker::{
    Assignment, Beat, BeatAnswer, Beaten, Claim, Claimed, Control, Controlled, Deregister, Done,
    Fail, Register, Registered, Release, SelfTest,
};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::error::Error;
use super::events::Open;
use super::{Api, body, json};
use crate::feed::Parked;
use crate::store::{self, Identity, Registration};

/// Longest body of a worker's call; files come another way.
pub(super) const MAX_BODY: u64 = 1 << 20;
/// Longest time that a call may hang.
const MAX_WAIT_MS: u64 = 30_000;
/// Most attempts that one worker can hold.
const MAX_HOLDING: usize = 64;
/// Most registrations that are remembered.
const MAX_ROSTER: usize = 10_000;
/// Longest id of a launch and longest version, in characters.
const MAX_WORD: usize = 128;
/// Longest stage name that is kept, in characters.
const MAX_STAGE: usize = 64;
/// Pause of a worker that has left a task to others: they may be leaving it to others, too.
const PASS_ON_PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn read<T: DeserializeOwned>(api: &Api, request: Request) -> Result<T, Error> {
    let (_, call) = body::json(&api.bodies, request, MAX_BODY).await?;
    Ok(call)
}

pub(super) fn done() -> Result<Response, Error> {
    json(StatusCode::OK, &Done { ok: true })
}

/// The only pool that the caller's key is for; none if it is for all.
pub(super) struct Bound(Option<PoolName>);

impl FromRequestParts<Arc<Api>> for Bound {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Error> {
        Ok(Self(super::caller(parts)?.pool.clone()))
    }
}

impl Bound {
    /// May the caller work for this pool?
    pub(super) fn admits(&self, pool: &PoolName) -> Result<(), Error> {
        match &self.0 {
            Some(own) if own != pool => {
                let message = format!("your key is for workers of the pool `{own}`, not `{pool}`");
                Err(Error::new(Code::ScopeMissing, message).param("pool"))
            }
            _ => Ok(()),
        }
    }

    /// May it speak for this attempt? One that is not live any more changes nothing.
    pub(super) async fn holds(&self, api: &Api, fence: Fence) -> Result<(), Error> {
        if self.0.is_none() {
            return Ok(());
        }
        match api.app.components.store.leased(fence).await {
            Ok(task) => self.admits(&task.pool),
            Err(store::Error::StaleLease { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// May it take this name? Whoever does ends the worker that has it.
    async fn may_be(&self, api: &Api, worker: &WorkerName) -> Result<(), Error> {
        if self.0.is_none() {
            return Ok(());
        }
        let workers = api.app.components.store.workers().await?;
        match workers.iter().find(|other| other.by.worker == *worker) {
            Some(other) => self.admits(&other.pool),
            None => Ok(()),
        }
    }
}

/// Which pool a registered worker is in, remembered so that a claim need not ask the store.
#[derive(Default)]
pub(super) struct Roster(RwLock<HashMap<WorkerName, (u64, PoolName)>>);

impl Roster {
    /// The worker's pool; refuses a registration that is not the newest.
    async fn pool(&self, api: &Api, by: &Identity) -> Result<PoolName, Error> {
        self.find(api, by).await?.ok_or_else(|| store::Error::StaleWorker.into())
    }

    async fn find(&self, api: &Api, by: &Identity) -> Result<Option<PoolName>, Error> {
        if let Some(pool) = self.known(by) {
            return Ok(Some(pool));
        }
        // It registered with this server before a restart, or not at all.
        let workers = api.app.components.store.workers().await?;
        let found = workers.into_iter().find(|worker| worker.by == *by);
        Ok(found.map(|found| {
            self.remember(by.clone(), found.pool.clone());
            found.pool
        }))
    }

    fn known(&self, by: &Identity) -> Option<PoolName> {
        let known = self.0.read().expect("nothing panics while it holds this lock");
        let (incarnation, pool) = known.get(&by.worker)?;
        (*incarnation == by.incarnation).then(|| pool.clone())
    }

    fn remember(&self, by: Identity, pool: PoolName) {
        let mut known = self.0.write().expect("nothing panics while it holds this lock");
        // Workers that die say nothing; what is forgotten here is only asked for again.
        if known.len() >= MAX_ROSTER {
            known.clear();
        }
        known.insert(by.worker, (by.incarnation, pool));
    }

    fn forget(&self, by: &Identity) {
        let mut known = self.0.write().expect("nothing panics while it holds this lock");
        if known.get(&by.worker).is_some_and(|(incarnation, _)| *incarnation == by.incarnation) {
            known.remove(&by.worker);
        }
    }
}

pub(super) async fn register(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Register = read(&api, request).await?;
    let app = &api.app;
    for (param, text) in [("launch", call.launch.as_ref()), ("version", Some(&call.version))] {
        if text.is_some_and(|text| text.chars().count() > MAX_WORD) {
            let message = format!("`{param}` has at most {MAX_WORD} characters");
            return Err(Error::invalid(param, message));
        }
    }
    bound.admits(&call.pool)?;
    api.has_pool(&call.pool)?;
    bound.may_be(&api, &call.worker).await?;
    let incarnation = app
        .components
        .store
        .register(Registration {
            worker: call.worker.clone(),
            pool: call.pool.clone(),
            launch: call.launch,
            version: call.version.clone(),
        })
        .await?;
    tracing::info!(worker = %call.worker, pool = %call.pool, version = call.version, "worker registered");
    api.roster.remember(Identity { worker: call.worker, incarnation }, call.pool);
    let lease_ms = app.settings.terms().lease_ms;
    // Two beats may be lost before the lease is.
    let beat_ms = (lease_ms / 3).max(1);
    json(StatusCode::OK, &Registered { incarnation, lease_ms, beat_ms })
}

pub(super) async fn deregister(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Deregister = read(&api, request).await?;
    let by = Identity { worker: call.worker, incarnation: call.incarnation };
    if let Some(pool) = api.roster.find(&api, &by).await? {
        bound.admits(&pool)?;
    }
    api.app.components.store.deregister(&by).await?;
    api.roster.forget(&by);
    done()
}

/// Waits for a task. If the connection goes, so does the call: nothing is claimed for nobody.
pub(super) async fn claim(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Claim = read(&api, request).await?;
    check_holding(&call.holding)?;
    let app = &api.app;
    let (store, feed, clock) = (&app.components.store, &app.components.feed, &app.components.clock);
    let by = Identity { worker: call.worker, incarnation: call.incarnation };
    let pool = api.roster.pool(&api, &by).await?;
    bound.admits(&pool)?;
    let mut claim = store::Claim {
        by: by.clone(),
        seq: call.seq,
        holding: call.holding,
        loaded: call.loaded,
        self_test: call.self_test,
        target: None,
    };
    let answer = |answer: Claimed| json(StatusCode::OK, &answer);
    let _hanging = Open::count(&app.metrics.hanging);
    let mut timeout = pin!(sleep(Duration::from_millis(call.wait_ms.min(MAX_WAIT_MS))));
    let mut woken: Option<Parked> = None;
    loop {
        if app.stopping.is_cancelled() {
            return answer(Claimed::Nothing);
        }
        // Parked before the store is asked, so that no wake-up falls between.
        let mut parked = feed.park(&pool);
        claim.target = app.targets.of(&pool);
        let started = clock.monotonic();
        let claimed = store.claim(claim.clone()).await?;
        // It was told, once.
        claim.self_test = None;
        let ready = match claimed {
            store::Claimed::Task(task) => {
                app.metrics.claim.observe((clock.monotonic() - started).as_secs_f64());
                if let Some(parked) = woken.take() {
                    parked.served();
                }
                match api.assignment(&task) {
                    Some(assignment) => {
                        if task.attempt == 1 {
                            let waited = task.started_at.unwrap_or_default();
                            let waited = waited.ms_since(task.created_at);
                            app.metrics.queue_wait.observe(waited as f64 / 1000.0);
                        }
                        return answer(Claimed::Task(Box::new(assignment)));
                    }
                    None => {
                        api.refuse(&by, &task).await?;
                        continue;
                    }
                }
            }
            store::Claimed::Drain => {
                api.roster.forget(&by);
                return answer(Claimed::Drain);
            }
            store::Claimed::Quarantine { model, message } => {
                let settings = &app.settings;
                match (settings.model_setup(&model), settings.model_spec(&model)) {
                    (Some(setup), Some(spec)) => {
                        let (model, test) = (Box::new(setup), Box::new(spec.self_test()));
                        return answer(Claimed::Quarantine { model, test, message });
                    }
                    _ => {
                        // It is not configured any more: its tasks are refused one by one.
                        claim.self_test = Some(SelfTest { model, failure: None });
                        continue;
                    }
                }
            }
            store::Claimed::Nothing { ready } => ready,
        };
        if ready {
            // There is work that this worker should leave to others: the wake-up is theirs.
            drop((parked, woken.take()));
            feed.wake_one(&pool);
            tokio::select! {
                () = app.stopping.cancelled() => return answer(Claimed::Nothing),
                () = &mut timeout => return answer(Claimed::Nothing),
                () = sleep(PASS_ON_PAUSE) => continue,
            }
        }
        if let Some(parked) = woken.take() {
            parked.served();
        }
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => return answer(Claimed::Nothing),
            () = parked.woken() => woken = Some(parked),
            () = &mut timeout => return answer(Claimed::Nothing),
        }
    }
}

impl Api {
    /// Refuses a pool that is not configured.
    pub(super) fn has_pool(&self, pool: &PoolName) -> Result<(), Error> {
        let pools = &self.app.settings.pools;
        if pools.contains_key(pool) {
            return Ok(());
        }
        let names: Vec<&str> = pools.keys().map(PoolName::as_str).collect();
        let message = format!("there is no pool `{pool}`; there are: {}", names.join(", "));
        Err(Error::invalid("pool", message))
    }

    /// What the worker is told of its task; none if the model is not configured any more.
    fn assignment(&self, task: &Task) -> Option<Assignment> {
        let settings = &self.app.settings;
        Some(Assignment {
            fence: task.fence()?,
            request: task.request.clone(),
            model: settings.model_setup(&task.model)?,
            max_run_ms: settings.max_run_seconds.ms(),
        })
    }

    /// Ends an attempt at a task whose model is gone.
    async fn refuse(&self, by: &Identity, task: &Task) -> Result<(), Error> {
        let fence = task
            .fence()
            .ok_or_else(|| Error::internal(format!("{} was claimed without a lease", task.id)))?;
        let message = format!("the model `{}` is not configured any more", task.model);
        let end = End::Fail(Failure::new(Code::UnknownModel, message));
        match self.app.components.store.end(by, fence, end).await {
            Ok(_) | Err(store::Error::StaleLease { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Waits until one of the attempts is not the worker's any more.
pub(super) async fn control(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Control = read(&api, request).await?;
    check_holding(&call.holding)?;
    let app = &api.app;
    let by = Identity { worker: call.worker, incarnation: call.incarnation };
    let _hanging = Open::count(&app.metrics.hanging);
    let mut timeout = pin!(sleep(Duration::from_millis(call.wait_ms.min(MAX_WAIT_MS))));
    let mut last = false;
    loop {
        // Listening before the store is asked, so that no wake-up falls between; but only for
        // workers that exist, because the feed remembers whom it should wake.
        bound.admits(&api.roster.pool(&api, &by).await?)?;
        let wake_ups = app.components.feed.control(&by.worker);
        let mut woken = pin!(wake_ups.notified());
        woken.as_mut().enable();
        let mut controlled = Controlled::default();
        for fence in &call.holding {
            match app.components.store.held(*fence).await? {
                Beaten::Continue => {}
                Beaten::Cancelled => controlled.cancelled.push(*fence),
                Beaten::Lost => controlled.lost.push(*fence),
            }
        }
        if !controlled.cancelled.is_empty() || !controlled.lost.is_empty() {
            return json(StatusCode::OK, &controlled);
        }
        if last {
            return json(StatusCode::OK, &controlled);
        }
        tokio::select! {
            () = woken => {}
            // One more look: a cancel right before the server stops must still be told, or the
            // worker goes on with a task that is nobody's.
            () = app.stopping.cancelled() => last = true,
            () = &mut timeout => return json(StatusCode::OK, &controlled),
        }
    }
}

pub(super) async fn beat(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Beat = read(&api, request).await?;
    bound.holds(&api, call.fence).await?;
    let by = Identity { worker: call.worker, incarnation: call.incarnation };
    let mut progress = call.progress;
    if let Some(progress) = &mut progress
        && let Some((end, _)) = progress.stage.char_indices().nth(MAX_STAGE)
    {
        progress.stage.truncate(end);
    }
    let answer = api.app.components.store.beat(&by, call.fence, progress).await?;
    json(StatusCode::OK, &BeatAnswer { answer })
}

pub(super) async fn fail(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Fail = read(&api, request).await?;
    bound.holds(&api, call.fence).await?;
    let by = Identity { worker: call.worker, incarnation: call.incarnation };
    api.app.components.store.end(&by, call.fence, End::Fail(call.failure)).await?;
    done()
}

pub(super) async fn release(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Release = read(&api, request).await?;
    bound.holds(&api, call.fence).await?;
    let by = Identity { worker: call.worker, incarnation: call.incarnation };
    api.app.components.store.end(&by, call.fence, End::Release).await?;
    done()
}

fn check_holding(holding: &[Fence]) -> Result<(), Error> {
    if holding.len() > MAX_HOLDING {
        let message = format!("`holding` has {} attempts; at most {MAX_HOLDING}", holding.len());
        return Err(Error::invalid("holding", message));
    }
    Ok(())
}
