//! What changes tasks besides submits and claims: decided by `rayreel_domain` on what was read, and
//! written if nothing has changed since; if it has, it is decided anew.

use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::lease::Fence;
use rayreel_domain::schedule::virtual_ms;
use rayreel_domain::task::{Effect, End, Outcome, Refusal, State, Task};
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::Delivery;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::judge::{Judged, Verdict, judge};
use super::rows::{Barred, FailedAttempt, Seen, Slot, Views, exact};
use super::scripts::Name;
use crate::store::{Cancelled, Error, Identity, View};

pub(super) const DAY_MS: u64 = 24 * 3_600_000;
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

fn busy() -> Error {
    Error::Unavailable(format!("others changed the task {TRIES} times meanwhile"))
}

/// Contents that a task names.
pub(super) fn inputs(task: &Task) -> Vec<u64> {
    let inputs = task.request.image.iter().chain(&task.request.last_image);
    inputs.filter_map(|input| input.place).collect()
}

/// The worker that should not get a queued task again: the one that has just failed it.
pub(super) fn avoided(task: &Task) -> Option<&str> {
    let last = task.attempts.last().filter(|_| task.state == State::Queued);
    last.filter(|a| a.outcome == Some(Outcome::Failed)).map(|a| a.worker.as_str())
}

pub(super) fn body(task: &Task) -> String {
    serde_json::to_string(task).expect("a task has string keys and finite numbers")
}
