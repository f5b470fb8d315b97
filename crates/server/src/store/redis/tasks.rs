//! What changes tasks. A claim and a submit are decided by their scripts, in one round trip. All else
//! is decided by `rayreel_domain` on what was read, and written if nothing has changed since; if it
//! has, it is decided anew.

use rayreel_domain::id::{ModelName, TaskId, TenantName};
use rayreel_domain::lease::Fence;
use rayreel_domain::schedule::virtual_ms;
use rayreel_domain::task::{Effect, End, Idempotency, Outcome, Refusal, State, Task};
use rayreel_domain::tenant::{Exceeded, Limit};
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::Delivery;
use rayreel_domain::wire::worker::{Beaten, Progress};
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::rows::{
    Barred, FailedAttempt, FenceText, Rival, Seen, Slot, Standing, Views, WorkerRecord, corrupt,
    exact,
};
use super::scripts::Name;
use crate::store::{Cancelled, Claim, Claimed, Demand, Error, Identity, Submitted, View};

const DAY_MS: u64 = 24 * 3_600_000;
/// Failures on so many different tasks of a model in a row quarantine it on the worker.
const QUARANTINE_AFTER: usize = 3;
/// How often an operation is decided anew because somebody else was faster.
const TRIES: u32 = 64;
/// Tasks that are looked at in one go by what works through many.
const STEP: usize = 64;

/// Which worker speaks.
#[derive(Debug, Serialize)]
pub(super) struct By<'a> {
    worker: &'a str,
    incarnation: String,
}

impl<'a> By<'a> {
    pub(super) fn of(by: &'a Identity) -> Self {
        Self { worker: by.worker.as_str(), incarnation: by.incarnation.to_string() }
    }
}

/// A new task, with what indexes need.
#[derive(Debug, Serialize)]
struct New<'a> {
    id: String,
    pool: &'a str,
    model: &'a str,
    rank: u8,
    estimate_ms: u64,
    format: &'static str,
    created: u64,
    deadline: Option<u64>,
    inputs: Vec<u64>,
    body: String,
}

impl<'a> New<'a> {
    fn of(task: &'a Task) -> Self {
        Self {
            id: task.id.to_string(),
            pool: task.pool.as_str(),
            model: task.model.as_str(),
            rank: 5 - task.priority.get(),
            estimate_ms: task.estimate_ms.min(MOST_MS),
            format: task.request.format.extension(),
            created: task.created_at.0,
            deadline: task.deadline.map(|at| at.0),
            inputs: inputs(task),
            body: body(task),
        }
    }
}

/// Longest estimate that is counted: the sum of many is still exact in Lua's numbers.
pub(super) const MOST_MS: u64 = 1 << 40;

#[derive(Debug, Serialize)]
struct Limits {
    queued: Option<u64>,
    day_ms: Option<u64>,
    per_minute: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Submit<'a> {
    now: u64,
    mono: u64,
    dry: bool,
    tenant: &'a str,
    key: Option<&'a str>,
    request: Option<&'a str>,
    count: u64,
    work_ms: u64,
    max_queued: u64,
    limits: Limits,
    tasks: Vec<New<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SubmitReply {
    known: Option<Known>,
    late: bool,
    full: Option<u64>,
    exceeded: Option<ExceededReply>,
    input_gone: bool,
    standings: Vec<Standing>,
    rivals: Vec<Rival>,
}

/// What was submitted under a key.
#[derive(Debug, Deserialize)]
pub(super) struct Known {
    pub(super) ids: Vec<String>,
    pub(super) request: String,
    pub(super) until_ms: u64,
}

#[derive(Debug, Deserialize)]
struct ExceededReply {
    limit: Limit,
    allowed: u64,
    retry_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ClaimCall<'a> {
    by: By<'a>,
    seq: u64,
    holding: Vec<FenceText>,
    loaded: Option<&'a str>,
    test: Option<Test<'a>>,
    target: Option<u32>,
    now: u64,
    mono: u64,
    day: u64,
    nonce: String,
    max_streak: u32,
    max_lead_ms: u64,
    silence_ms: u64,
}

#[derive(Debug, Serialize)]
struct Test<'a> {
    model: &'a str,
    failed: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClaimReply {
    stale: bool,
    ready: bool,
    drain: bool,
    task: Option<Seen>,
    vanished: Option<FenceText>,
    test: Option<DueTest>,
}

#[derive(Debug, Deserialize)]
struct DueTest {
    model: String,
    message: String,
}

/// A change of one task, upon a revision of it.
#[derive(Debug, Default, Serialize)]
struct Change {
    id: String,
    rev: u64,
    /// Only if the attempt has beaten no more than this.
    beats: Option<u64>,
    deleted: bool,
    /// The idempotency key of a deleted task.
    key: Option<String>,
    /// Contents that a deleted task has named.
    inputs: Vec<u64>,
    body: String,
    state: u8,
    state_name: &'static str,
    slot: u8,
    not_before: u64,
    avoid: Option<String>,
    attempt: u32,
    delete_at: Option<u64>,
    virtual_ms: i64,
    charge_ms: i64,
    garbage: Option<String>,
    delivery: Option<String>,
    /// Its worker is to be told.
    revoked: bool,
}

#[derive(Debug, Serialize)]
struct Free {
    tenant: String,
    key: String,
    id: String,
}

#[derive(Debug, Serialize)]
struct Verdicts<'a> {
    name: &'a str,
    rev: u64,
    quarantine: Vec<Barred>,
    failures: Vec<FailedAttempt>,
}

#[derive(Debug, Default, Serialize)]
struct ChangeCall<'a> {
    now: u64,
    day: u64,
    garbage_after_ms: u64,
    changes: Vec<Change>,
    worker: Option<Verdicts<'a>>,
    free: Vec<Free>,
}

#[derive(Debug, Deserialize)]
struct ChangeReply {
    conflict: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Look<'a> {
    pub(super) ids: Vec<String>,
    pub(super) by: Option<By<'a>>,
    pub(super) mono: u64,
    /// Also who holds the task.
    pub(super) worker: bool,
}

#[derive(Debug, Serialize)]
struct Advance {
    now: u64,
    horizon: u64,
    step: usize,
}

#[derive(Debug, Deserialize)]
struct Advanced {
    late: Vec<String>,
    kept: Vec<String>,
    next: Option<u64>,
}

/// What time has brought about.
enum Due {
    Ended(Effect),
    Deleted,
}

/// Conflicts, and what must not be tried again.
enum Miss {
    Conflict,
    Failed(Error),
}

impl From<Error> for Miss {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl RedisStore {
    pub(super) async fn submit_tasks(&self, tasks: &[Task]) -> Result<Vec<Submitted>, Error> {
        let Some(first) = tasks.first() else { return Ok(Vec::new()) };
        let call = self.submit_call(&first.tenant, first.idempotency.as_ref(), tasks);
        let accepted = |reply: &SubmitReply| reply.known.is_some() || !reply.standings.is_empty();
        let reply = self.scripts.promise(Name::submit, &call, accepted).await?;
        if let Some(known) = &reply.known {
            let views = self.known(known, first.idempotency.as_ref()).await?;
            return Ok(views.into_iter().map(found).collect());
        }
        refused(&reply, first.created_at)?;
        let tenancy = &self.options.tenancy;
        let position = |own: &Standing| own.position(&first.tenant, &reply.rivals, tenancy);
        let positions = reply.standings.iter().map(position);
        let added = |(task, position): (&Task, u64)| Submitted {
            task: task.clone(),
            existed: false,
            position: Some(position),
        };
        Ok(tasks.iter().zip(positions).map(added).collect())
    }

    fn submit_call<'a>(
        &self,
        tenant: &'a TenantName,
        asked: Option<&'a Idempotency>,
        tasks: &'a [Task],
    ) -> Submit<'a> {
        let terms = self.options.tenancy.of(tenant);
        Submit {
            now: tasks.first().map_or_else(|| self.now(), |task| task.created_at).0,
            mono: self.mono(),
            dry: false,
            tenant: tenant.as_str(),
            key: asked.map(|asked| asked.key.as_str()),
            request: asked.map(|asked| asked.request.as_str()),
            count: tasks.len() as u64,
            work_ms: tasks.iter().map(|task| task.estimate_ms).sum(),
            max_queued: exact(self.options.max_queued),
            limits: Limits {
                queued: terms.queued.map(exact),
                day_ms: terms.day_ms.map(exact),
                per_minute: terms.per_minute,
            },
            tasks: tasks.iter().map(New::of).collect(),
        }
    }

    pub(super) async fn would_admit(&self, demand: &Demand) -> Result<(), Error> {
        let Demand { tenant, idempotency, tasks, work_ms } = demand;
        let call = Submit {
            dry: true,
            count: *tasks,
            work_ms: *work_ms,
            ..self.submit_call(tenant, idempotency.as_ref(), &[])
        };
        let reply: SubmitReply = self.scripts.run(Name::submit, &call).await?;
        match (&reply.known, idempotency) {
            (Some(known), Some(asked)) if known.request != asked.request => {
                Err(Error::IdempotencyMismatch)
            }
            (Some(_), _) => Ok(()),
            (None, _) => refused(&reply, self.now()),
        }
    }

    pub(super) async fn submitted_before(
        &self,
        tenant: &TenantName,
        asked: &Idempotency,
    ) -> Result<Option<Vec<View>>, Error> {
        #[derive(Serialize)]
        struct Key<'a> {
            key: String,
            ids: [&'a str; 0],
        }
        #[derive(Deserialize)]
        struct Reply {
            known: Option<Known>,
        }
        let key = Key { key: format!("{tenant}|{}", asked.key), ids: [] };
        let reply: Reply = self.scripts.run(Name::look, &key).await?;
        match reply.known.filter(|known| known.until_ms > self.now().0) {
            Some(known) => self.known(&known, Some(asked)).await.map(Some),
            None => Ok(None),
        }
    }

    /// Those that are left of what was submitted under a key.
    pub(super) async fn known(
        &self,
        known: &Known,
        asked: Option<&Idempotency>,
    ) -> Result<Vec<View>, Error> {
        if asked.is_none_or(|asked| asked.request != known.request) {
            return Err(Error::IdempotencyMismatch);
        }
        let views = self.views(known.ids.clone()).await?;
        if views.is_empty() {
            let first = known.ids.first().ok_or_else(|| corrupt("a key without tasks"))?;
            return Err(Error::Deleted { task: super::rows::named(first)? });
        }
        Ok(views)
    }

    pub(super) async fn claim_task(&self, claim: &Claim) -> Result<Claimed, Error> {
        let call = ClaimCall {
            by: By::of(&claim.by),
            seq: exact(claim.seq),
            holding: claim.holding.iter().map(|fence| FenceText::from(*fence)).collect(),
            loaded: claim.loaded.as_ref().map(ModelName::as_str),
            test: claim
                .self_test
                .as_ref()
                .map(|test| Test { model: test.model.as_str(), failed: test.failure.is_some() }),
            target: claim.target,
            now: self.now().0,
            mono: self.mono(),
            day: self.now().0 / DAY_MS,
            nonce: self.options.random.nonce().to_string(),
            max_streak: self.options.locality.max_streak,
            max_lead_ms: exact(self.options.locality.max_lead_ms),
            silence_ms: self.options.worker_silence_ms,
        };
        loop {
            let gives = |reply: &ClaimReply| reply.task.is_some() || reply.drain;
            let reply = self.scripts.promise(Name::claim, &call, gives).await?;
            if let Some(lost) = &reply.vanished {
                self.give_up(lost.fence()?).await?;
                continue;
            }
            return Ok(match reply {
                ClaimReply { stale: true, .. } => return Err(Error::StaleWorker),
                ClaimReply { drain: true, .. } => Claimed::Drain,
                ClaimReply { task: Some(seen), .. } => Claimed::Task(Box::new(seen.task()?)),
                ClaimReply { test: Some(test), .. } => Claimed::Quarantine {
                    model: super::rows::named(&test.model)?,
                    message: test.message,
                },
                ClaimReply { ready, .. } => Claimed::Nothing { ready },
            });
        }
    }

    /// Ends an attempt of which nobody knows any more, unless it has ended meanwhile.
    pub(super) async fn give_up(&self, fence: Fence) -> Result<(), Error> {
        match self.end_attempt(None, fence, End::Vanish, None).await {
            Ok(_) | Err(Error::StaleLease { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn renew(
        &self,
        by: &Identity,
        fence: Fence,
        progress: Option<&Progress>,
    ) -> Result<Option<Beaten>, Error> {
        #[derive(Serialize)]
        struct Beat<'a> {
            by: By<'a>,
            fence: FenceText,
            progress: Option<String>,
            mono: u64,
        }
        #[derive(Deserialize)]
        struct Reply {
            #[serde(default)]
            stale: bool,
            #[serde(default)]
            gone: bool,
        }
        let progress = progress
            .map(|progress| serde_json::to_string(progress).expect("a text and two numbers"));
        let call = Beat { by: By::of(by), fence: fence.into(), progress, mono: self.mono() };
        let reply: Reply = self.scripts.run(Name::beat, &call).await?;
        match reply {
            Reply { stale: true, .. } => Err(Error::StaleWorker),
            Reply { gone: true, .. } => Ok(None),
            Reply { .. } => Ok(Some(Beaten::Continue)),
        }
    }

    /// Ends an attempt; its worker is told, unless it (`by`) does it itself.
    pub(super) async fn end_attempt(
        &self,
        by: Option<&Identity>,
        fence: Fence,
        end: End,
        beats: Option<u64>,
    ) -> Result<Task, Error> {
        let jitter = self.options.random.number();
        for _ in 0..TRIES {
            match self.try_end(by, fence, end.clone(), beats, jitter).await {
                Ok(task) => return Ok(task),
                Err(Miss::Conflict) => {}
                Err(Miss::Failed(error)) => return Err(error),
            }
        }
        Err(busy())
    }

    async fn try_end(
        &self,
        by: Option<&Identity>,
        fence: Fence,
        end: End,
        beats: Option<u64>,
        jitter: u64,
    ) -> Result<Task, Miss> {
        let ids = vec![fence.task.to_string()];
        let look = Look { ids, by: by.map(By::of), mono: self.mono(), worker: true };
        let seen: Views = self.scripts.run(Name::look, &look).await?;
        if seen.stale {
            return Err(Error::StaleWorker.into());
        }
        let stale = |cancelled| Miss::from(Error::StaleLease { cancelled });
        let Some(row) = seen.views.first() else { return Err(stale(false)) };
        if let Some(most) = beats
            && row.live.as_ref().is_none_or(|live| live.beats > most)
        {
            return Err(stale(false));
        }
        let mut task = row.task()?;
        let verdict = match &end {
            End::Fail(failure) if failure.code.blames_engine() => {
                Verdict::Broken(failure.message.clone())
            }
            End::Commit(_) => Verdict::Works,
            _ => Verdict::Neither,
        };
        let held = self.held_ms(row);
        let effect = match task.end(fence, end, &self.options.rules, held, jitter, self.now()) {
            Ok(effect) => effect,
            Err(Refusal::Repeated) => {
                self.confirm().await?;
                return Ok(task);
            }
            Err(Refusal::Stale { cancelled }) => return Err(stale(cancelled)),
            Err(Refusal::State(_)) => return Err(stale(false)),
        };
        let judged =
            seen.worker.and_then(|worker| judge(worker, &task, fence, verdict, self.mono()));
        let mut call = self.change_call();
        let mut change = self.change(&mut task, row, effect);
        change.beats = beats.map(exact);
        change.revoked = by.is_none();
        call.changes.push(change);
        let mut name = String::new();
        if let Some(Judged { worker, excused }) = judged {
            for failed in excused {
                let failed = failed.fence()?;
                if failed.task == task.id {
                    // What the caller is told is the task after everything.
                    task.excuse(failed);
                    call.changes[0].body = body(&task);
                    call.changes[0].avoid = avoided(&task).map(str::to_owned);
                    continue;
                }
                let ids = vec![failed.task.to_string()];
                let look = Look { ids, by: None, mono: self.mono(), worker: false };
                let other: Views = self.scripts.run(Name::look, &look).await?;
                let Some(other) = other.views.first() else { continue };
                let mut excused = other.task()?;
                if excused.excuse(failed) {
                    call.changes.push(Change {
                        slot: other.place.slot.into(),
                        not_before: other.place.not_before,
                        ..self.change(&mut excused, other, Effect::default())
                    });
                }
            }
            name.clone_from(&worker.name);
            call.worker = Some(Verdicts {
                name: &name,
                rev: worker.rev,
                quarantine: worker.quarantine,
                failures: worker.failures,
            });
        }
        self.apply(&call).await?;
        Ok(task)
    }

    pub(super) async fn cancel_task(
        &self,
        tenant: &TenantName,
        id: TaskId,
        delete: bool,
    ) -> Result<Cancelled, Error> {
        for _ in 0..TRIES {
            match self.try_cancel(tenant, id, delete).await {
                Err(Miss::Conflict) => {}
                Ok(cancelled) => return Ok(cancelled),
                Err(Miss::Failed(error)) => return Err(error),
            }
        }
        Err(busy())
    }

    async fn try_cancel(
        &self,
        tenant: &TenantName,
        id: TaskId,
        delete: bool,
    ) -> Result<Cancelled, Miss> {
        let seen = self.look(vec![id.to_string()]).await?;
        let row = seen.views.first().filter(|row| row.place.tenant == tenant.as_str());
        let Some(row) = row else { return Err(Error::NotFound.into()) };
        let mut task = row.task()?;
        let held = self.held_ms(row);
        let mut call = self.change_call();
        let cancelled = match task.cancel(held, self.now()) {
            Ok(effect) => {
                let change = self.change(&mut task, row, effect);
                call.changes.push(Change { revoked: true, ..change });
                Cancelled { task, cancelled: true, deleted: false }
            }
            Err(_) if delete => {
                call.changes.push(deletion(&task, row));
                Cancelled { task, cancelled: false, deleted: true }
            }
            Err(_) => {
                self.confirm().await?;
                return Ok(Cancelled { task, cancelled: false, deleted: false });
            }
        };
        self.apply(&call).await?;
        Ok(cancelled)
    }

    /// Cancels what has not ended of these, and frees their key if there was any of it.
    pub(super) async fn withdraw_tasks(
        &self,
        tenant: &TenantName,
        ids: &[TaskId],
    ) -> Result<(), Error> {
        for _ in 0..TRIES {
            match self.try_withdraw(tenant, ids).await {
                Err(Miss::Conflict) => {}
                Ok(()) => return Ok(()),
                Err(Miss::Failed(error)) => return Err(error),
            }
        }
        Err(busy())
    }

    async fn try_withdraw(&self, tenant: &TenantName, ids: &[TaskId]) -> Result<(), Miss> {
        let seen = self.look(ids.iter().map(TaskId::to_string).collect()).await?;
        let mut call = self.change_call();
        for row in seen.views.iter().filter(|row| row.place.tenant == tenant.as_str()) {
            let mut task = row.task()?;
            let key = task.idempotency.as_ref().map(|asked| asked.key.clone());
            let held = self.held_ms(row);
            if let Ok(effect) = task.cancel(held, self.now()) {
                let change = self.change(&mut task, row, effect);
                call.changes.push(Change { revoked: true, ..change });
            }
            if let Some(key) = key {
                let (tenant, id) = (tenant.to_string(), task.id.to_string());
                call.free.push(Free { tenant, key, id });
            }
        }
        if call.changes.is_empty() {
            return Ok(());
        }
        self.apply(&call).await
    }

    /// Wakes what has waited long enough, ends what has waited too long, deletes what was kept long
    /// enough.
    pub(super) async fn advance_tasks(&self) -> Result<Option<Timestamp>, Error> {
        let now = self.now();
        let horizon = now.plus_ms(self.options.rules.max_backoff_ms).0;
        loop {
            let call = Advance { now: now.0, horizon, step: STEP };
            let advanced: Advanced = self.scripts.run(Name::advance, &call).await?;
            let mut moved = false;
            for id in &advanced.late {
                moved |= self.settle(id, |task| task.expire(now).ok().map(Due::Ended)).await?;
            }
            let kept_enough = |task: &mut Task| {
                task.delete_at.is_some_and(|at| at <= now).then_some(Due::Deleted)
            };
            for id in &advanced.kept {
                moved |= self.settle(id, kept_enough).await?;
            }
            if !moved {
                return Ok(advanced.next.map(Timestamp));
            }
        }
    }

    /// Does what is due for one task, if it still is. Says whether something has changed.
    async fn settle(
        &self,
        id: &str,
        decide: impl Fn(&mut Task) -> Option<Due>,
    ) -> Result<bool, Error> {
        let seen = self.look(vec![id.to_owned()]).await?;
        let Some(row) = seen.views.first() else { return Ok(false) };
        let mut task = row.task()?;
        let change = match decide(&mut task) {
            None => return Ok(false),
            Some(Due::Ended(effect)) => self.change(&mut task, row, effect),
            Some(Due::Deleted) => deletion(&task, row),
        };
        let mut call = self.change_call();
        call.changes.push(change);
        match self.apply(&call).await {
            // Whoever was faster has changed what there was to do.
            Ok(()) | Err(Miss::Conflict) => Ok(true),
            Err(Miss::Failed(error)) => Err(error),
        }
    }

    fn held_ms(&self, row: &Seen) -> u64 {
        row.live.as_ref().map_or(0, |live| self.mono().saturating_sub(live.since))
    }

    fn change_call(&self) -> ChangeCall<'static> {
        let now = self.now().0;
        let garbage_after_ms = self.options.garbage_after_ms;
        ChangeCall { now, day: now / DAY_MS, garbage_after_ms, ..ChangeCall::default() }
    }

    /// A task as a transition has left it, which is kept for as long as its tenant's terms say.
    fn change(&self, task: &mut Task, row: &Seen, effect: Effect) -> Change {
        let terms = self.options.tenancy.of(&task.tenant);
        task.keep(terms.keep_ms);
        let charged = virtual_ms(effect.charge_ms.unsigned_abs(), terms.weight);
        let charged = i64::try_from(charged).unwrap_or(i64::MAX);
        let ends = task.state.is_terminal() && row.place.state != task.state as u8;
        let delivery = (ends && task.webhook.is_some())
            .then(|| Delivery::new(task.id, task.tenant.clone(), self.now()));
        Change {
            id: task.id.to_string(),
            rev: row.place.rev,
            body: body(task),
            state: task.state as u8,
            state_name: task.state.as_str(),
            slot: Slot::of(task).into(),
            not_before: task.not_before.0,
            avoid: avoided(task).map(str::to_owned),
            attempt: task.attempt,
            delete_at: task.delete_at.map(|at| at.0),
            virtual_ms: if effect.charge_ms < 0 { -charged } else { charged },
            charge_ms: effect.charge_ms,
            garbage: effect.garbage.map(|fence| fence.folder()),
            delivery: delivery.map(|delivery| {
                serde_json::to_string(&delivery).expect("a delivery is strings and numbers")
            }),
            ..Change::default()
        }
    }

    async fn apply(&self, call: &ChangeCall<'_>) -> Result<(), Miss> {
        let changes = |reply: &ChangeReply| !reply.conflict;
        let reply = self.scripts.promise(Name::change, call, changes).await?;
        if reply.conflict { Err(Miss::Conflict) } else { Ok(()) }
    }

    /// Waits until what was read is had by all who shall have it: who is told that something has
    /// been done before is promised it, too.
    async fn confirm(&self) -> Result<(), Error> {
        if !self.link.waits() {
            return Ok(());
        }
        let look = Look { ids: Vec::new(), by: None, mono: self.mono(), worker: false };
        let _: Views = self.scripts.promise(Name::look, &look, |_| true).await?;
        Ok(())
    }

    pub(super) async fn look(&self, ids: Vec<String>) -> Result<Views, Error> {
        let look = Look { ids, by: None, mono: self.mono(), worker: false };
        self.scripts.run(Name::look, &look).await
    }

    pub(super) async fn views(&self, ids: Vec<String>) -> Result<Vec<View>, Error> {
        self.look(ids).await?.shown(&self.options.tenancy)
    }
}

fn deletion(task: &Task, row: &Seen) -> Change {
    Change {
        id: task.id.to_string(),
        rev: row.place.rev,
        deleted: true,
        key: task.idempotency.as_ref().map(|asked| asked.key.clone()),
        inputs: inputs(task),
        ..Change::default()
    }
}

fn refused(reply: &SubmitReply, now: Timestamp) -> Result<(), Error> {
    match reply {
        SubmitReply { late: true, .. } => Err(Error::DeadlinePassed { now }),
        SubmitReply { full: Some(queued), .. } => Err(Error::QueueFull { queued: *queued }),
        SubmitReply { exceeded: Some(limit), .. } => Err(Error::Limit(Exceeded {
            limit: limit.limit,
            allowed: limit.allowed,
            retry_ms: limit.retry_ms,
        })),
        SubmitReply { input_gone: true, .. } => Err(Error::InputGone),
        _ => Ok(()),
    }
}

fn found(view: View) -> Submitted {
    let task = std::sync::Arc::unwrap_or_clone(view.task);
    Submitted { task, existed: true, position: view.position }
}

fn busy() -> Error {
    Error::Unavailable(format!("others changed the task {TRIES} times meanwhile"))
}

/// Contents that a task names.
fn inputs(task: &Task) -> Vec<u64> {
    let inputs = task.request.image.iter().chain(&task.request.last_image);
    inputs.filter_map(|input| input.place).collect()
}

/// The worker that should not get a queued task again: the one that has just failed it.
pub(super) fn avoided(task: &Task) -> Option<&str> {
    let last = task.attempts.last().filter(|_| task.state == State::Queued);
    last.filter(|a| a.outcome == Some(Outcome::Failed)).map(|a| a.worker.as_str())
}

fn body(task: &Task) -> String {
    serde_json::to_string(task).expect("a task has string keys and finite numbers")
}

/// What the end of an attempt says of the engine that made it.
enum Verdict {
    Works,
    Broken(String),
    Neither,
}

/// What becomes of the worker's record, and the attempts that are forgiven.
struct Judged {
    worker: WorkerRecord,
    excused: Vec<FenceText>,
}

/// Keeps the record of failures in a row. At the third of a model, the model is quarantined on this
/// worker, and they are excused. None if nothing changes.
fn judge(
    mut worker: WorkerRecord,
    task: &Task,
    fence: Fence,
    verdict: Verdict,
    mono: u64,
) -> Option<Judged> {
    let model = task.model.as_str();
    let message = match verdict {
        Verdict::Neither => return None,
        Verdict::Works => {
            let before = worker.failures.len();
            worker.failures.retain(|failed| failed.model != model);
            let changed = worker.failures.len() != before;
            return changed.then_some(Judged { worker, excused: Vec::new() });
        }
        Verdict::Broken(message) => message,
    };
    let FenceText { task: id, attempt, nonce } = fence.into();
    worker.failures.retain(|failed| failed.model != model || failed.task != id);
    worker.failures.push(FailedAttempt { model: model.to_owned(), task: id, attempt, nonce });
    let known = worker.quarantine.iter().any(|barred| barred.model == model);
    let count = worker.failures.iter().filter(|failed| failed.model == model).count();
    if known || count < QUARANTINE_AFTER {
        return Some(Judged { worker, excused: Vec::new() });
    }
    tracing::warn!(
        worker = worker.name,
        model,
        message,
        "quarantined: the engine failed on {QUARANTINE_AFTER} tasks in a row"
    );
    let (of_it, others) = worker.failures.into_iter().partition(|failed| failed.model == model);
    worker.failures = others;
    let barred = Barred { model: model.to_owned(), message, failed_tests: 0, due: mono };
    worker.quarantine.push(barred);
    let excused = |failed: FailedAttempt| FenceText {
        task: failed.task,
        attempt: failed.attempt,
        nonce: failed.nonce,
    };
    let of_it: Vec<FailedAttempt> = of_it;
    Some(Judged { worker, excused: of_it.into_iter().map(excused).collect() })
}
