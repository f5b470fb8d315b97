//! The submit: what is new, what was there already, and what is too much.

use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::task::{Idempotency, Task};
use rayreel_domain::tenant::{self, Minute};
use rayreel_domain::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::memory::{NameId, Place, Queue, Slot, format_number, millis, parse, signed};
use super::ops::{DAY_MS, Done, KEY_MS, task_and_place};
use super::read::{self, Readers};
use super::writer::Tx;
use super::{Demand, Error, Submitted, View};

impl Tx<'_> {
    /// Adds a task with its stored form.
    pub(super) fn submit(&mut self, (body, task): (Vec<u8>, Task)) -> Done<Submitted> {
        match self.same_key(&task.tenant, task.idempotency.as_ref(), task.created_at)? {
            Some(Known::Task(task, place)) => return self.found(*task, &place),
            Some(Known::Deleted(grave)) => return Err(Error::Deleted { task: grave.id }.into()),
            None => {}
        }
        self.admit(&task, 1, task.estimate_ms)?;
        self.insert(task, &body)
    }

    /// Adds tasks of one tenant, or finds those that were submitted under the first one's key.
    pub(super) fn submit_all(&mut self, tasks: Vec<(Vec<u8>, Task)>) -> Done<Vec<Submitted>> {
        let Some((_, first)) = tasks.first() else { return Ok(Vec::new()) };
        if let Some(known) =
            self.same_key(&first.tenant, first.idempotency.as_ref(), first.created_at)?
        {
            let (id, siblings) = known.family();
            let mut all = Vec::new();
            if let Known::Task(task, place) = known {
                all.push(self.found(*task, &place)?);
            }
            for id in siblings {
                let Some((task, place)) = self.load(id)? else { continue };
                all.push(self.found(task, &place)?);
            }
            return if all.is_empty() { Err(Error::Deleted { task: id }.into()) } else { Ok(all) };
        }
        let work_ms = tasks.iter().map(|(_, task)| task.estimate_ms).sum();
        self.admit(first, tasks.len() as u64, work_ms)?;
        let tenant = self.name(first.tenant.as_str())?;
        for (_, task) in &tasks {
            // What is refused does not undo what was written before.
            self.input_of(tenant, task.request.image.as_ref())?;
            self.input_of(tenant, task.request.last_image.as_ref())?;
        }
        tasks.into_iter().map(|(body, task)| self.insert(task, &body)).collect()
    }

    /// Would so much be refused now? It is not counted, and what was submitted before is welcome.
    pub(super) fn admits(&mut self, demand: &Demand) -> Done<()> {
        let Demand { tenant, idempotency, tasks, work_ms } = demand;
        if self.same_key(tenant, idempotency.as_ref(), self.now())?.is_some() {
            return Ok(());
        }
        self.room(tenant, *tasks, *work_ms)
    }

    /// Is it not too late for a new task, and is there room for so many like it? They are counted.
    fn admit(&mut self, task: &Task, tasks: u64, work_ms: u64) -> Done<()> {
        if task.deadline.is_some_and(|deadline| deadline <= task.created_at) {
            return Err(Error::DeadlinePassed { now: task.created_at }.into());
        }
        let tenant = &task.tenant;
        self.room(tenant, tasks, work_ms)?;
        let mono = millis(self.ctx.clock.monotonic());
        let tenant = self.name(tenant.as_str())?;
        self.memory().minutes.entry(tenant).or_default().add(tasks, mono);
        Ok(())
    }

    /// Is there room for so many tasks, in the queue and within the tenant's limits?
    fn room(&self, tenant: &TenantName, tasks: u64, work_ms: u64) -> Done<()> {
        let queued = self.memory().queued;
        if queued + tasks > self.ctx.max_queued {
            return Err(Error::QueueFull { queued }.into());
        }
        let terms = self.ctx.tenancy.of(tenant);
        if terms.per_minute.is_none() && terms.queued.is_none() && terms.day_ms.is_none() {
            return Ok(());
        }
        let (mono, wall) = (millis(self.ctx.clock.monotonic()), self.now().0);
        let memory = self.memory();
        let known = memory.tenant_id(tenant);
        let usage = known.map(|tenant| memory.usage(tenant, wall / DAY_MS));
        let minute = known.and_then(|tenant| memory.minutes.get(&tenant));
        tenant::admit(
            &terms,
            &usage.unwrap_or_default(),
            minute.unwrap_or(&Minute::default()),
            (tasks, work_ms),
            (mono, wall),
        )
        .map_err(|exceeded| Error::Limit(exceeded).into())
    }

    /// A task that was there already.
    fn found(&self, task: Task, place: &Place) -> Done<Submitted> {
        let ready = place.slot == Slot::Ready;
        // Not by what others have read: this transaction sees further.
        let ahead = |id, count| Ok(read::line(self.db, id, count)?.ahead(place.seq));
        let position = ready.then(|| read::position(&self.ctx.memory, place, ahead)).transpose()?;
        Ok(Submitted { task, existed: true, position })
    }

    /// Writes a new task. Its row comes last: names and a lifted account may stand without it.
    fn insert(&mut self, task: Task, body: &[u8]) -> Done<Submitted> {
        self.written += body.len();
        let tenant = self.name(task.tenant.as_str())?;
        let input = self.input_of(tenant, task.request.image.as_ref())?;
        let last_input = self.input_of(tenant, task.request.last_image.as_ref())?;
        let pool = self.name(task.pool.as_str())?;
        let model = self.name(task.model.as_str())?;
        let rank = 5 - task.priority.get();
        let lift = self.memory().lift(pool, tenant);
        if let Some(virtual_ms) = lift {
            self.memory().account(pool, tenant).virtual_ms = virtual_ms;
            self.store_account(pool, tenant)?;
        }
        let seq = self.memory().next_seq();
        self.db
            .prepare_cached(
                "INSERT INTO tasks (seq, id, tenant, pool, model, state, slot, rank, estimate_ms,
                 not_before, deadline, key, created_at, input, last_input, format, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, 1, ?6, ?7, 0, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?
            .execute(params![
                seq,
                task.id.as_bytes(),
                tenant,
                pool,
                model,
                rank,
                signed(task.estimate_ms),
                task.deadline.map(|at| signed(at.0)),
                task.idempotency.as_ref().map(|i| i.key.as_str()),
                signed(task.created_at.0),
                input,
                last_input,
                format_number(task.request.format),
                body,
            ])?;
        let place = Place {
            seq,
            pool,
            tenant,
            model,
            rank,
            slot: Slot::Ready,
            estimate_ms: task.estimate_ms,
        };
        let position = {
            let mut memory = self.memory();
            let account = memory.account(pool, tenant);
            let sooner = |q: &Queue| q.ready[..=usize::from(rank)].iter().sum::<u64>();
            let ahead = account.queues.values().map(sooner).sum();
            memory.enqueue(&place);
            memory.position(&place, ahead)
        };
        if task.deadline.is_some() {
            self.wakes.timers = true;
        }
        self.changed(&task, true, None);
        Ok(Submitted { task, existed: false, position: Some(position) })
    }

    /// What was submitted under the same key within a day.
    fn same_key(
        &mut self,
        tenant: &TenantName,
        asked: Option<&Idempotency>,
        now: Timestamp,
    ) -> Done<Option<Known>> {
        let Some(asked) = asked else { return Ok(None) };
        let Some(tenant) = self.memory().tenant_id(tenant) else { return Ok(None) };
        let stored = self
            .db
            .prepare_cached(
                "SELECT seq, pool, tenant, model, rank, slot, estimate_ms, body FROM tasks
                 WHERE tenant = ?1 AND key = ?2",
            )?
            .query_row(params![tenant, asked.key], task_and_place)
            .optional()?;
        let known = match stored {
            Some((old, place)) if now.ms_since(old.created_at) >= KEY_MS => {
                self.db
                    .prepare_cached("UPDATE tasks SET key = NULL WHERE seq = ?1")?
                    .execute([place.seq])?;
                None
            }
            Some((old, place)) => Some(Known::Task(Box::new(old), place)),
            None => grave(self.db, tenant, &asked.key, now)?.map(Known::Deleted),
        };
        match known {
            Some(known) if known.asked() != Some(&asked.request) => {
                Err(Error::IdempotencyMismatch.into())
            }
            known => Ok(known),
        }
    }

    /// Remembers the key of a task that is deleted, unless a newer task has it already. What was
    /// asked for is not kept.
    pub(super) fn bury(&mut self, task: &Task, seq: i64) -> rusqlite::Result<()> {
        let Some(idempotency) = task.idempotency.clone() else { return Ok(()) };
        let grave = Grave { id: task.id, idempotency, siblings: task.siblings.clone() };
        let body = serde_json::to_vec(&grave).expect("ids and strings");
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO tombstones (tenant, key, until, body)
                 SELECT tenant, key, ?2, ?3 FROM tasks WHERE seq = ?1 AND key IS NOT NULL",
            )?
            .execute(params![seq, signed(task.created_at.plus_ms(KEY_MS).0), body])
            .map(drop)
    }
}

impl Readers {
    pub(super) fn repeated(
        &self,
        tenant: &TenantName,
        asked: &Idempotency,
        now: Timestamp,
    ) -> Result<Option<Vec<View>>, Error> {
        let Some(tenant) = self.memory().tenant_id(tenant) else { return Ok(None) };
        let id = self.with(|db| {
            db.prepare_cached("SELECT id FROM tasks WHERE tenant = ?1 AND key = ?2")?
                .query_row(params![tenant, asked.key], |row| row.get(0).map(TaskId::from_bytes))
                .optional()
        })?;
        let first = id.map(|id| self.get(id)).transpose()?.flatten();
        let (request, id, siblings) = match &first {
            Some(old) if now.ms_since(old.task.created_at) >= KEY_MS => return Ok(None),
            Some(View { task, .. }) => {
                let request = task.idempotency.as_ref().map(|known| known.request.clone());
                (request, task.id, task.siblings.clone())
            }
            // Not there, or deleted in this moment.
            None => match self.with(|db| grave(db, tenant, &asked.key, now))? {
                None => return Ok(None),
                Some(grave) => (Some(grave.idempotency.request), grave.id, grave.siblings),
            },
        };
        if request.as_ref() != Some(&asked.request) {
            return Err(Error::IdempotencyMismatch);
        }
        let others = siblings.iter().filter_map(|id| self.get(*id).transpose());
        let others = others.collect::<Result<Vec<_>, _>>()?;
        let all: Vec<View> = first.into_iter().chain(others).collect();
        if all.is_empty() { Err(Error::Deleted { task: id }) } else { Ok(Some(all)) }
    }
}

/// What was submitted under a key.
enum Known {
    Task(Box<Task>, Place),
    Deleted(Grave),
}

impl Known {
    /// Hash of the request.
    fn asked(&self) -> Option<&String> {
        match self {
            Self::Task(task, _) => task.idempotency.as_ref().map(|known| &known.request),
            Self::Deleted(grave) => Some(&grave.idempotency.request),
        }
    }

    /// The first task, and those that were submitted with it.
    fn family(&self) -> (TaskId, Vec<TaskId>) {
        match self {
            Self::Task(task, _) => (task.id, task.siblings.clone()),
            Self::Deleted(grave) => (grave.id, grave.siblings.clone()),
        }
    }
}

/// What is left of a deleted task while its key counts. Named as in the task, which stood here
/// whole in older versions.
#[derive(Serialize, Deserialize)]
struct Grave {
    id: TaskId,
    idempotency: Idempotency,
    #[serde(default)]
    siblings: Vec<TaskId>,
}

/// The deleted task whose key still counts.
fn grave(
    db: &Connection,
    tenant: NameId,
    key: &str,
    now: Timestamp,
) -> rusqlite::Result<Option<Grave>> {
    db.prepare_cached("SELECT body FROM tombstones WHERE tenant = ?1 AND key = ?2 AND until > ?3")?
        .query_row(params![tenant, key, signed(now.0)], |row| parse(row.get_ref(0)?.as_bytes()?))
        .optional()
}
