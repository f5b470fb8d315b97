//! Reading: on connections of their own, beside the writer.

use std::sync::{Arc, Mutex};

use rayreel_domain::id::TaskId;
use rayreel_domain::task::State;
use rayreel_domain::webhook::Delivery;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::memory::{Memory, NameId, Place, Slot, format_number, signed, state_number, unsigned};
use super::ops::task_and_place;
use super::recent::{Line, LineId, Seen};
use super::writer::Context;
use super::{Error, ListQuery, Page, View, delivery, schema};
use crate::store::{After, Order};

/// Connections that are kept for later.
const KEPT: usize = 4;
/// Most queue entries that are counted exactly for a position; beyond, it is interpolated.
const COUNTED: u64 = 256;

pub(super) struct Readers {
    pub(super) ctx: Arc<Context>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, idle: Mutex::new(Vec::new()) }
    }

    /// Keeps a connection for later, if there are not enough.
    pub(super) fn keep(&self, db: Connection) {
        let mut idle = self.idle.lock().expect("nothing panics while it holds this lock");
        if idle.len() < KEPT {
            idle.push(db);
        }
    }

    /// Runs a query. Each is a few index lookups of microseconds, bounded by its limit, so it runs
    /// where it is asked for: handing it to another thread would cost more than it does.
    pub(super) fn with<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let kept = self.idle.lock().expect("nothing panics while it holds this lock").pop();
        let db = match kept {
            Some(db) => db,
            None => schema::open_other(&self.ctx.path, false)?,
        };
        let result = query(&db);
        if !result.as_ref().err().is_some_and(schema::is_fatal) {
            self.keep(db);
        }
        result.map_err(schema::failed)
    }

    pub(super) fn get(&self, id: TaskId) -> Result<Option<View>, Error> {
        let seen = self.ctx.recent.get(id, || {
            self.with(|db| {
                let mut statement = db.prepare_cached(
                    "SELECT seq, pool, tenant, model, rank, slot, estimate_ms, body FROM tasks
                     WHERE id = ?1",
                )?;
                statement.query_row([id.as_bytes()], seen).optional()
            })
        })?;
        let Some(seen) = seen else { return Ok(None) };
        let recount = || self.with(|db| self.position(db, &seen.place));
        let view = self.view(
            &seen,
            || self.ctx.recent.position(&seen, recount),
            || self.with(|db| delivery::of(db, id)),
        )?;
        Ok(Some(view))
    }

    pub(super) fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.ctx.memory.lock().expect("nothing panics while it holds this lock")
    }

    fn view<E>(
        &self,
        seen: &Seen,
        position: impl FnOnce() -> Result<u64, E>,
        delivery: impl FnOnce() -> Result<Option<Delivery>, E>,
    ) -> Result<View, E> {
        let task = Arc::clone(&seen.task);
        let mut view = View { task, progress: None, position: None, delivery: None };
        match view.task.state {
            State::Running => {
                let fence = view.task.fence();
                let memory = self.memory();
                let live = memory.live.get(&view.task.id);
                view.progress = live
                    .filter(|live| Some(live.fence) == fence)
                    .and_then(|live| live.progress.clone());
            }
            State::Queued if seen.place.slot == Slot::Ready => view.position = Some(position()?),
            State::Queued => {}
            _ if view.task.webhook.is_some() => view.delivery = delivery()?,
            _ => {}
        }
        Ok(view)
    }

    /// A position in lines that are read once between two moves.
    fn position(&self, db: &Connection, place: &Place) -> rusqlite::Result<u64> {
        position(&self.ctx.memory, place, |id, count| {
            let line = self.ctx.recent.line(id, || line(db, id, count))?;
            Ok(line.ahead(place.seq))
        })
    }

    pub(super) fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        let (tenant, model) = {
            let memory = self.memory();
            let model = query.model.as_ref().map(|model| memory.id_of(model.as_str()));
            (memory.tenant_id(&query.tenant), model)
        };
        let empty = Page { tasks: Vec::new(), next: None };
        let Some(tenant) = tenant else {
            // Who has no task has not this one either.
            let found = !matches!(query.after, Some(After::Task(_)));
            return found.then_some(empty).ok_or(Error::NotFound);
        };
        if model == Some(None) {
            return Ok(empty);
        }
        let wanted = i64::from(query.limit) + 1;
        let (behind, direction) = match query.order {
            Order::NewestFirst => (" AND seq < ?", "DESC"),
            Order::OldestFirst => (" AND seq > ?", "ASC"),
        };
        let states = query.state.map_or(&State::ALL[..], |s| &State::ALL[s as usize..=s as usize]);
        self.with(|db| {
            // One moment: a task that changes its state meanwhile is seen once.
            let db = &*db.unchecked_transaction()?;
            let after = match query.after {
                None => None,
                Some(After::Position(position)) => Some(signed(position)),
                Some(After::Task(id)) => {
                    match seq_of(db, tenant, id, query.format.map(format_number))? {
                        None => return Ok(Err(Error::NotFound)),
                        found => found,
                    }
                }
            };
            // The index is sorted within each state: take enough of each, and merge.
            let mut found: Vec<Seen> = Vec::new();
            for state in states {
                let mut sql = String::from(
                    "SELECT seq, pool, tenant, model, rank, slot, estimate_ms, body FROM tasks
                     INDEXED BY tasks_state WHERE tenant = ? AND state = ?",
                );
                let mut values = vec![tenant, state_number(*state)];
                for (clause, value) in [
                    (behind, after),
                    (" AND model = ?", model.flatten()),
                    (" AND format = ?", query.format.map(format_number)),
                    (" AND created_at >= ?", query.created_from.map(|at| signed(at.0))),
                    (" AND created_at < ?", query.created_before.map(|at| signed(at.0))),
                ] {
                    if let Some(value) = value {
                        sql.push_str(clause);
                        values.push(value);
                    }
                }
                sql.push_str(&format!(" ORDER BY seq {direction} LIMIT ?"));
                values.push(wanted);
                let mut statement = db.prepare_cached(&sql)?;
                let rows = statement.query_map(params_from_iter(values), seen)?;
                found.extend(rows.collect::<Result<Vec<_>, _>>()?);
            }
            found.sort_by_key(|seen| seen.place.seq);
            if query.order == Order::NewestFirst {
                found.reverse();
            }
            let more = found.len() > query.limit as usize;
            found.truncate(query.limit as usize);
            let next = found.last().filter(|_| more).map(|seen| unsigned(seen.place.seq));
            let tasks = found
                .iter()
                .map(|seen| {
                    let position = || self.position(db, &seen.place);
                    self.view(seen, position, || delivery::of(db, seen.task.id))
                })
                .collect::<Result<_, _>>()?;
            Ok(Ok(Page { tasks, next }))
        })?
    }
}

/// Where a task of the tenant, of this format if one is given, stands in the order of submission, or
/// stood until it was deleted: of those their format is not kept.
fn seq_of(
    db: &Connection,
    tenant: NameId,
    id: TaskId,
    format: Option<i64>,
) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached(
        "SELECT seq FROM tasks WHERE id = ?1 AND tenant = ?2 AND format = ifnull(?3, format)
         UNION ALL SELECT seq FROM places WHERE id = ?1 AND tenant = ?2",
    )?
    .query_row(params![id.as_bytes(), tenant, format], |row| row.get(0))
    .optional()
}

/// The columns of [`task_and_place`].
fn seen(row: &rusqlite::Row<'_>) -> rusqlite::Result<Seen> {
    let (task, place) = task_and_place(row)?;
    Ok(Seen::new(task, place, row.get_ref(7)?.as_bytes()?.len()))
}

/// Tasks that will probably start before a ready one, given how many are ahead of it in a line of so
/// many.
pub(super) fn position(
    memory: &Mutex<Memory>,
    place: &Place,
    ahead_in: impl Fn(LineId, u64) -> rusqlite::Result<u64>,
) -> rusqlite::Result<u64> {
    let memory = || memory.lock().expect("nothing panics while it holds this lock");
    let rank = usize::from(place.rank.min(4));
    let (mut ahead, same): (u64, Vec<(NameId, u64)>) = {
        let memory = memory();
        let queues = || {
            let tenants = memory.pools.get(&place.pool).map(|pool| &pool.tenants);
            tenants.and_then(|t| t.get(&place.tenant)).into_iter().flat_map(|a| &a.queues)
        };
        let higher = queues().flat_map(|(_, q)| &q.ready[..rank]).sum();
        let same = queues().map(|(model, q)| (*model, q.ready[rank]));
        (higher, same.filter(|(_, count)| *count > 0).collect())
    };
    for (model, count) in same {
        let id = (place.pool, place.tenant, model, place.rank);
        ahead += ahead_in(id, count)?;
    }
    Ok(memory().position(place, ahead))
}

pub(super) fn line(db: &Connection, id: LineId, count: u64) -> rusqlite::Result<Line> {
    let sorted = |sql: &str| -> rusqlite::Result<Vec<i64>> {
        let mut statement = db.prepare_cached(&format!(
            "SELECT seq FROM tasks INDEXED BY tasks_ready WHERE slot = 1
             AND pool = ?1 AND tenant = ?2 AND model = ?3 AND rank = ?4 ORDER BY seq {sql}"
        ))?;
        let (pool, tenant, model, rank) = id;
        statement.query_map(params![pool, tenant, model, rank], |row| row.get(0))?.collect()
    };
    if count <= COUNTED {
        return sorted(&format!("LIMIT {}", 2 * COUNTED)).map(Line::Few);
    }
    // Two lookups, one at each end of the index range.
    let ends = (sorted("LIMIT 1")?.pop(), sorted("DESC LIMIT 1")?.pop());
    let (Some(first), Some(last)) = ends else { return Ok(Line::Few(Vec::new())) };
    Ok(Line::Many { first, last, count })
}
