//! The invariants, checked on what is stored.

use std::collections::HashSet;
use std::sync::Arc;

use rayreel_domain::task::{State, Task};
use rusqlite::Row;

use super::Error;
use super::memory::{Account, Memory, NameId, Queue, Slot, format_number, parse, signed};
use super::ops::place;
use super::read::Readers;
use super::writer::Tx;
use crate::store::check;

/// Rows that are looked at in one go: a reader that stays for long keeps the log from starting
/// again.
const STEP: i64 = 1_000;

impl Readers {
    /// Says what is wrong with the rows after this one, of which it looks at some; and which was
    /// the last, if there may be more.
    pub(super) fn check(&self, after: i64) -> Result<(Vec<String>, Option<i64>), Error> {
        self.with(|db| {
            let mut faults = Vec::new();
            let (mut last, mut seen) = (after, 0);
            let mut statement = db.prepare_cached(
                "SELECT seq, pool, tenant, model, rank, slot, estimate_ms, body,
                 state, id, not_before, deadline, key, created_at, format, input, last_input
                 FROM tasks WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            )?;
            let mut rows = statement.query([after, STEP])?;
            while let Some(row) = rows.next()? {
                last = row.get(0)?;
                seen += 1;
                match parse::<Task>(row.get_ref(7)?.as_bytes()?) {
                    Ok(task) => {
                        let mut fault = |text: &str| faults.push(format!("{}: {text}", task.id));
                        self.check_columns(row, &task, &mut fault)?;
                        check::task(&task, &mut fault);
                    }
                    Err(error) => {
                        faults.push(format!("row {last}: the task can't be read: {error}"));
                    }
                }
            }
            Ok((faults, (seen == STEP).then_some(last)))
        })
    }

    /// The columns say what the body says.
    fn check_columns(
        &self,
        row: &Row<'_>,
        task: &Task,
        fault: &mut impl FnMut(&str),
    ) -> rusqlite::Result<()> {
        let place = place(row)?;
        if *task.id.as_bytes() != row.get::<_, [u8; 16]>(9)? {
            fault("its row has another id");
        }
        if task.state as i64 != row.get::<_, i64>(8)? {
            fault("its column and its body are in different states");
        }
        if (task.state == State::Queued) != (place.slot != Slot::None) {
            fault("its place in the queue does not fit its state");
        }
        let not_before = signed(task.not_before.0);
        if row.get::<_, i64>(10)? != not_before || (place.slot == Slot::Backoff && not_before == 0)
        {
            fault("it does not wait for the time that it should");
        }
        let memory = self.memory();
        let named = |id: NameId, name: &str| memory.names.get(&id).is_some_and(|n| n == name);
        if !named(place.tenant, task.tenant.as_str())
            || !named(place.pool, task.pool.as_str())
            || !named(place.model, task.model.as_str())
        {
            fault("its row has another tenant, pool or model");
        }
        if place.rank != 5 - task.priority.get() || place.estimate_ms != task.estimate_ms {
            fault("its row has another priority or estimate");
        }
        let deadline = task.deadline.map(|at| signed(at.0));
        if row.get::<_, Option<i64>>(11)? != deadline
            || row.get::<_, i64>(13)? != signed(task.created_at.0)
        {
            fault("its row has another deadline or time of creation");
        }
        if row.get::<_, i64>(14)? != format_number(task.request.format) {
            fault("its row has another format");
        }
        let request = &task.request;
        for (column, input) in [(15, &request.image), (16, &request.last_image)] {
            let place = input.as_ref().and_then(|input| input.place).map(signed);
            if row.get::<_, Option<i64>>(column)? != place {
                fault("its row names another input");
            }
        }
        // A key that has run out is no longer in the row.
        let key: Option<String> = row.get(12)?;
        if key.is_some() && key.as_ref() != task.idempotency.as_ref().map(|i| &i.key) {
            fault("its row has another idempotency key");
        }
        Ok(())
    }
}

impl Tx<'_> {
    /// What is kept in memory is what a restart would find: says what is not. On the writer, so
    /// that both are seen at one moment.
    pub(super) fn check_memory(&self) -> rusqlite::Result<Vec<String>> {
        let mut faults = Vec::new();
        let now = self.ctx.clock.monotonic();
        let stored =
            Memory::load(self.db, Arc::clone(&self.ctx.tenancy), now, self.ctx.clock.wall().0)?;
        let memory = self.memory();
        if memory.queued != stored.queued {
            let (known, queued) = (memory.queued, stored.queued);
            faults.push(format!("{known} tasks are counted, {queued} are queued"));
        }
        let fences = |m: &Memory| m.live.values().map(|l| l.fence).collect::<HashSet<_>>();
        if fences(&memory) != fences(&stored) {
            faults.push("the live leases in memory are not those in the database".to_owned());
        }
        if memory.names != stored.names || memory.ids != stored.ids {
            faults.push("the names in memory are not those in the database".to_owned());
        }
        for id in memory.pools.keys().chain(stored.pools.keys()).collect::<HashSet<_>>() {
            let floors = [&memory, &stored].map(|m| m.pools.get(id).map_or(0, |p| p.floor_ms));
            if floors[0] != floors[1] {
                faults.push(format!(
                    "pool {id} has floor {} in memory, {} stored",
                    floors[0], floors[1]
                ));
            }
            let tenants = |m: &Memory| -> HashSet<NameId> {
                m.pools.get(id).into_iter().flat_map(|pool| pool.tenants.keys()).copied().collect()
            };
            for tenant in tenants(&memory).union(&tenants(&stored)) {
                let [known, found] = [&memory, &stored].map(|m| {
                    let account = m.pools.get(id).and_then(|pool| pool.tenants.get(tenant));
                    account.map_or_else(Standing::default, standing)
                });
                if known != found {
                    faults.push(format!(
                        "tenant {tenant} in pool {id}: {known:?} in memory, {found:?} stored"
                    ));
                }
            }
        }
        Ok(faults)
    }
}

/// Virtual time, running tasks, the day's charges and queues.
type Standing = (u64, u64, (u64, u64), Vec<(NameId, Queue)>);

fn standing(account: &Account) -> Standing {
    let queues = account.queues.iter().map(|(model, queue)| (*model, queue.clone()));
    (account.virtual_ms, account.running, (account.day, account.day_ms), queues.collect())
}
