//! The operations that change the store, each within the writer's transaction.

use rayreel_domain::id::{TaskId, TenantName, WorkerName};
use rayreel_domain::lease::Fence;
use rayreel_domain::task::{Effect, End, Outcome, Refusal, State, Task};
use rayreel_domain::time::Timestamp;
use rusqlite::{OptionalExtension, params};

use super::memory::{Live, NameId, Place, Slot, parse, signed, state_number, unsigned};
use super::workers::Verdict;
use super::writer::{Failure, Tx};
use super::{Cancelled, Error, Identity};
use crate::feed::Change;

/// How long an idempotency key finds its task.
pub(super) const KEY_MS: u64 = 24 * 3_600_000;
pub(super) const DAY_MS: u64 = 24 * 3_600_000;

pub(super) type Done<T> = Result<T, Failure>;

impl Tx<'_> {
    pub(super) fn now(&self) -> Timestamp {
        self.ctx.clock.wall()
    }

    /// Ends the attempt that `by` holds.
    pub(super) fn end_by(&mut self, by: &Identity, fence: Fence, end: End) -> Done<Task> {
        let now = self.ctx.clock.monotonic();
        if self.memory().worker(by, now).is_none() {
            return Err(Error::StaleWorker.into());
        }
        self.end(fence, end, true)
    }

    /// Ends an attempt whose beat counter is still `beats`.
    pub(super) fn reclaim(&mut self, fence: Fence, beats: u64, end: End) -> Done<bool> {
        let unmoved = self
            .memory()
            .live
            .get(&fence.task)
            .is_some_and(|l| l.fence == fence && l.beats <= beats);
        if unmoved {
            self.end(fence, end, false)?;
        }
        Ok(unmoved)
    }

    /// Ends an attempt; its worker is told, unless it does it itself.
    pub(super) fn end(&mut self, fence: Fence, end: End, by_worker: bool) -> Done<Task> {
        let Some((mut task, place)) = self.load(fence.task)? else {
            return Err(Error::StaleLease { cancelled: false }.into());
        };
        let verdict = match &end {
            End::Fail(failure) if failure.code.blames_engine() => {
                Verdict::Broken(failure.message.clone())
            }
            End::Commit(_) => Verdict::Works,
            _ => Verdict::Neither,
        };
        let held = self.held_ms(&task);
        let worker = task.lease.as_ref().map(|lease| lease.worker.clone());
        let jitter = self.ctx.random.number();
        let effect = match task.end(fence, end, &self.ctx.rules, held, jitter, self.now()) {
            Ok(effect) => effect,
            Err(Refusal::Repeated) => return Ok(task),
            Err(Refusal::Stale { cancelled }) => return Err(Error::StaleLease { cancelled }.into()),
            Err(Refusal::State(_)) => return Err(Error::StaleLease { cancelled: false }.into()),
        };
        self.store_change(&mut task, &place, effect, worker.clone().filter(|_| !by_worker))?;
        let Some(worker) = worker else { return Ok(task) };
        if self.judge(&worker, &task.model, fence, verdict)?
            && let Some((excused, _)) = self.load(fence.task)?
        {
            task = excused;
        }
        Ok(task)
    }

    pub(super) fn cancel(
        &mut self,
        tenant: &TenantName,
        id: TaskId,
        delete: bool,
    ) -> Done<Cancelled> {
        let Some((mut task, place)) = self.load(id)?.filter(|(task, _)| task.tenant == *tenant)
        else {
            return Err(Error::NotFound.into());
        };
        let held = self.held_ms(&task);
        let worker = task.lease.as_ref().map(|lease| lease.worker.clone());
        match task.cancel(held, self.now()) {
            Ok(effect) => {
                self.store_change(&mut task, &place, effect, worker)?;
                Ok(Cancelled { task, cancelled: true, deleted: false })
            }
            Err(_) if delete => {
                self.delete(&task, &place)?;
                Ok(Cancelled { task, cancelled: false, deleted: true })
            }
            Err(_) => Ok(Cancelled { task, cancelled: false, deleted: false }),
        }
    }

    /// Cancels what has not ended of these, and frees their key if there was any of it.
    pub(super) fn withdraw(&mut self, tenant: &TenantName, ids: &[TaskId]) -> Done<()> {
        let mut any = false;
        for id in ids {
            match self.cancel(tenant, *id, false) {
                Ok(done) => any |= done.cancelled,
                // Deleted meanwhile.
                Err(Failure::Refused(_)) => {}
                Err(failed) => return Err(failed),
            }
        }
        for id in ids.iter().filter(|_| any) {
            self.db
                .prepare_cached("UPDATE tasks SET key = NULL WHERE id = ?1")?
                .execute([id.as_bytes()])?;
        }
        Ok(())
    }

    fn delete(&mut self, task: &Task, place: &Place) -> Done<()> {
        let now = self.now();
        self.bury(task, place.seq)?;
        self.db
            .prepare_cached("INSERT INTO places (seq, id, tenant, until) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![
                place.seq,
                task.id.as_bytes(),
                place.tenant,
                signed(now.plus_ms(crate::store::PLACE_MS).0)
            ])?;
        self.rewritten.push(task.id);
        self.release_inputs(task)?;
        self.forget_delivery(task)?;
        self.db.prepare_cached("DELETE FROM tasks WHERE seq = ?1")?.execute([place.seq])?;
        // Its files are nobody's at once, but an upload may still be under way.
        self.discard(&task.id.to_string(), now)?;
        self.discard(&task.id.to_string(), now.plus_ms(self.ctx.garbage_after_ms))?;
        self.touched(task, false);
        Ok(())
    }

    pub(super) fn discard(&mut self, folder: &str, not_before: Timestamp) -> Done<()> {
        self.db
            .prepare_cached("INSERT INTO garbage (folder, not_before) VALUES (?1, ?2)")?
            .execute(params![folder, signed(not_before.0)])?;
        self.wakes.garbage = true;
        Ok(())
    }

    /// Confirms a claim: the worker has beaten.
    pub(super) fn confirm(&mut self, fence: Fence) -> Done<()> {
        let Some((mut task, place)) = self.load(fence.task)? else {
            return Err(Error::StaleLease { cancelled: false }.into());
        };
        task.confirm(fence).map_err(|refusal| match refusal {
            Refusal::Stale { cancelled } => Error::StaleLease { cancelled },
            _ => Error::StaleLease { cancelled: false },
        })?;
        self.write_row(&task, place.seq, place.slot)?;
        if let Some(live) = self.memory().live.get_mut(&fence.task) {
            live.confirmed = true;
            live.graces = 0;
        }
        Ok(())
    }

    /// Wakes what has waited long enough, ends what has waited too long, deletes what was kept long
    /// enough.
    pub(super) fn advance(&mut self) -> Done<Option<Timestamp>> {
        const STEP: i64 = 256;
        let now = self.now();
        let mut due = self.ids(
            "SELECT id FROM tasks WHERE slot = 2 AND not_before <= ?1 LIMIT ?2",
            params![signed(now.0), STEP],
        )?;
        // After a jump of the wall clock backwards no backoff lasts longer than the longest one.
        let horizon = now.plus_ms(self.ctx.rules.max_backoff_ms);
        due.extend(self.ids(
            "SELECT id FROM tasks WHERE slot = 2 AND not_before > ?1 LIMIT ?2",
            params![signed(horizon.0), STEP],
        )?);
        let mut more = due.len() as i64 >= STEP;
        for id in due {
            let Some((task, place)) = self.load(id)? else { continue };
            self.write_row(&task, place.seq, Slot::Ready)?;
            let mut memory = self.memory();
            memory.dequeue(&place);
            memory.enqueue(&Place { slot: Slot::Ready, ..place });
            drop(memory);
            self.touched(&task, true);
        }
        let late = self.ids(
            "SELECT id FROM tasks INDEXED BY tasks_deadline
             WHERE state = 0 AND deadline IS NOT NULL AND deadline <= ?1 LIMIT ?2",
            params![signed(now.0), STEP],
        )?;
        more |= late.len() as i64 == STEP;
        for id in late {
            let Some((mut task, place)) = self.load(id)? else { continue };
            if let Ok(effect) = task.expire(now) {
                self.store_change(&mut task, &place, effect, None)?;
            }
        }
        let kept = self.ids(
            "SELECT id FROM tasks INDEXED BY tasks_delete
             WHERE delete_at IS NOT NULL AND delete_at <= ?1 LIMIT ?2",
            params![signed(now.0), STEP],
        )?;
        more |= kept.len() as i64 == STEP;
        for id in kept {
            let Some((task, place)) = self.load(id)? else { continue };
            self.delete(&task, &place)?;
        }
        more |= self.advance_inputs(now, STEP)?;
        for outdated in
            ["DELETE FROM tombstones WHERE until <= ?1", "DELETE FROM places WHERE until <= ?1"]
        {
            self.db.prepare_cached(outdated)?.execute([signed(now.0)])?;
        }
        if more {
            return Ok(Some(now));
        }
        let next: Option<i64> = self
            .db
            .prepare_cached(
                "SELECT min(at) FROM (SELECT min(not_before) AS at FROM tasks WHERE slot = 2
                 UNION ALL SELECT min(deadline) FROM tasks INDEXED BY tasks_deadline
                 WHERE state = 0 AND deadline IS NOT NULL
                 UNION ALL SELECT min(delete_at) FROM tasks INDEXED BY tasks_delete
                 WHERE delete_at IS NOT NULL
                 UNION ALL SELECT min(look_at) FROM inputs INDEXED BY inputs_look
                 WHERE look_at IS NOT NULL
                 UNION ALL SELECT min(expires_at) FROM files)",
            )?
            .query_row([], |row| row.get(0))?;
        Ok(next.map(|at| Timestamp(unsigned(at))))
    }

    fn ids(&self, sql: &str, values: impl rusqlite::Params) -> Done<Vec<TaskId>> {
        let mut statement = self.db.prepare_cached(sql)?;
        let rows = statement.query_map(values, |row| row.get(0).map(TaskId::from_bytes))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Writes a changed task with its effects, keeps memory in step, and tells who waits.
    pub(super) fn store_change(
        &mut self,
        task: &mut Task,
        place: &Place,
        effect: Effect,
        revoked_from: Option<WorkerName>,
    ) -> Done<()> {
        let slot = match task.state {
            State::Queued if task.not_before > Timestamp::ZERO => Slot::Backoff,
            State::Queued => Slot::Ready,
            _ => Slot::None,
        };
        let terms = self.memory().account(place.pool, place.tenant).terms;
        task.keep(terms.keep_ms);
        self.write_row(task, place.seq, slot)?;
        self.announce(task, place)?;
        if let Some(fence) = effect.garbage {
            let after = self.now().plus_ms(self.ctx.garbage_after_ms);
            self.discard(&fence.folder(), after)?;
        }
        self.charge(place, effect.charge_ms);
        // With a claim the floor may have risen, whatever is charged.
        if effect.charge_ms != 0 || task.state == State::Running {
            self.store_account(place.pool, place.tenant)?;
        }
        let now = self.ctx.clock.monotonic();
        {
            let mut memory = self.memory();
            let was_running = memory.live.remove(&task.id).is_some();
            memory.dequeue(place);
            memory.enqueue(&Place { slot, ..*place });
            let account = memory.account(place.pool, place.tenant);
            account.running = account.running.saturating_sub(u64::from(was_running));
            if let Some(live) = Live::new(task, 0, now, 0) {
                account.running += 1;
                memory.live.insert(task.id, live);
            }
        }
        if slot == Slot::Backoff || task.delete_at.is_some() {
            self.wakes.timers = true;
        }
        if terms.running.is_some() && task.state != State::Running {
            // There may be a vacancy, for which others of the tenant's tasks wait.
            let pools = self.memory().pools_of(place.tenant);
            self.wakes.pools.extend(pools);
        }
        self.changed(task, slot == Slot::Ready, revoked_from);
        Ok(())
    }

    /// Charges the tenant's account, or gives back if negative.
    fn charge(&mut self, place: &Place, charge_ms: i64) {
        let today = self.now().0 / DAY_MS;
        let mut memory = self.memory();
        let account = memory.account(place.pool, place.tenant);
        let amount =
            rayreel_domain::schedule::virtual_ms(charge_ms.unsigned_abs(), account.terms.weight);
        account.virtual_ms = if charge_ms < 0 {
            account.virtual_ms.saturating_sub(amount)
        } else {
            account.virtual_ms.saturating_add(amount)
        };
        if charge_ms != 0 {
            let so_far = if account.day == today { account.day_ms } else { 0 };
            (account.day, account.day_ms) = (today, so_far.saturating_add_signed(charge_ms));
        }
    }

    pub(super) fn changed(&mut self, task: &Task, ready: bool, revoked_from: Option<WorkerName>) {
        self.changes.push(Change {
            task: task.id,
            pool: task.pool.clone(),
            entered: Some(task.state),
            ready,
            revoked_from,
        });
    }

    /// Something has changed that is not its state.
    fn touched(&mut self, task: &Task, ready: bool) {
        self.changes.push(Change {
            task: task.id,
            pool: task.pool.clone(),
            entered: None,
            ready,
            revoked_from: None,
        });
    }

    /// Writes a task whose state has changed, or whose worker has beaten.
    pub(super) fn write_row(&mut self, task: &Task, seq: i64, slot: Slot) -> Done<()> {
        let body = body(task);
        self.written += body.len();
        self.rewritten.push(task.id);
        self.db
            .prepare_cached(
                "UPDATE tasks SET state = ?2, slot = ?3, not_before = ?4, avoid = ?5, graces = 0,
                 delete_at = ?6, body = ?7 WHERE seq = ?1",
            )?
            .execute(params![
                seq,
                state_number(task.state),
                slot as i64,
                signed(task.not_before.0),
                avoided(task),
                task.delete_at.map(|at| signed(at.0)),
                body,
            ])?;
        Ok(())
    }

    /// Writes an account as it is in memory.
    pub(super) fn store_account(&self, pool: NameId, tenant: NameId) -> Done<()> {
        let (floor, account) = {
            let mut memory = self.memory();
            let floor = memory.pools.get(&pool).map_or(0, |pool| pool.floor_ms);
            let account = memory.account(pool, tenant);
            (floor, [account.virtual_ms, account.day, account.day_ms])
        };
        let [virtual_ms, day, day_ms] = account.map(signed);
        self.db
            .prepare_cached(
                "INSERT INTO accounts (pool, tenant, virtual_ms, floor_ms, day, day_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE
                 SET virtual_ms = ?3, floor_ms = ?4, day = ?5, day_ms = ?6",
            )?
            .execute(params![pool, tenant, virtual_ms, signed(floor), day, day_ms])?;
        Ok(())
    }

    /// Reads a task and where it stands.
    pub(super) fn load(&self, id: TaskId) -> Done<Option<(Task, Place)>> {
        let mut statement = self.db.prepare_cached(
            "SELECT seq, pool, tenant, model, rank, slot, estimate_ms, body FROM tasks WHERE id = ?1",
        )?;
        Ok(statement.query_row([id.as_bytes()], task_and_place).optional()?)
    }

    pub(super) fn load_row(&self, seq: i64) -> Done<Option<(Task, Place)>> {
        let mut statement = self.db.prepare_cached(
            "SELECT seq, pool, tenant, model, rank, slot, estimate_ms, body FROM tasks WHERE seq = ?1",
        )?;
        Ok(statement.query_row([seq], task_and_place).optional()?)
    }

    fn held_ms(&self, task: &Task) -> u64 {
        let now = self.ctx.clock.monotonic();
        self.memory().live.get(&task.id).map_or(0, |live| live.held_ms(now))
    }

    /// The number of a name, new ones included.
    pub(super) fn name(&mut self, name: &str) -> Done<NameId> {
        let known = self.memory().id_of(name);
        if let Some(id) = known {
            return Ok(id);
        }
        self.db
            .prepare_cached("INSERT INTO names (name) VALUES (?1) ON CONFLICT DO NOTHING")?
            .execute([name])?;
        let id = self
            .db
            .prepare_cached("SELECT id FROM names WHERE name = ?1")?
            .query_row([name], |row| row.get(0))?;
        self.memory().remember(id, name.to_owned());
        Ok(id)
    }
}

/// The columns `seq, pool, tenant, model, rank, slot, estimate_ms`, in this order.
pub(super) fn place(row: &rusqlite::Row<'_>) -> rusqlite::Result<Place> {
    Ok(Place {
        seq: row.get(0)?,
        pool: row.get(1)?,
        tenant: row.get(2)?,
        model: row.get(3)?,
        rank: row.get(4)?,
        slot: Slot::from_number(row.get(5)?),
        estimate_ms: unsigned(row.get(6)?),
    })
}

/// The columns of [`place`], and `body`.
pub(super) fn task_and_place(row: &rusqlite::Row<'_>) -> rusqlite::Result<(Task, Place)> {
    Ok((parse(row.get_ref(7)?.as_bytes()?)?, place(row)?))
}

/// The worker that should not get a queued task again: the one that has just failed it.
pub(super) fn avoided(task: &Task) -> Option<&str> {
    let last = task.attempts.last().filter(|_| task.state == State::Queued);
    last.filter(|a| a.outcome == Some(Outcome::Failed)).map(|a| a.worker.as_str())
}

/// A task as it is stored.
pub(super) fn body(task: &Task) -> Vec<u8> {
    serde_json::to_vec(task).expect("a task has string keys and finite numbers")
}
