//! The outbox of webhooks, and the secrets with which they are signed.

use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::task::Task;
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::{Delivery, HORIZON_MS, Report};
use rusqlite::{Connection, OptionalExtension, params};

use super::memory::{NameId, Place, parse, signed, unsigned};
use super::ops::Done;
use super::read::Readers;
use super::writer::Tx;
use super::{Error, Room};
use crate::signing::Secret;

/// The delivery of a task's end.
pub(super) fn of(db: &Connection, task: TaskId) -> rusqlite::Result<Option<Delivery>> {
    db.prepare_cached("SELECT body FROM deliveries WHERE task = ?1")?
        .query_row([task.as_bytes()], |row| parse(row.get_ref(0)?.as_bytes()?))
        .optional()
}

pub(super) fn secret(db: &Connection, name: &str) -> rusqlite::Result<Option<Secret>> {
    db.prepare_cached("SELECT body FROM secrets WHERE name = ?1")?
        .query_row([name], |row| parse(row.get_ref(0)?.as_bytes()?))
        .optional()
}

impl Readers {
    /// Deliveries that are due and for which there is room, and when the next one is due. It goes
    /// from tenant to tenant by the index, never through one tenant's heap.
    pub(super) fn due_deliveries(
        &self,
        room: &Room,
        now: Timestamp,
    ) -> Result<(Vec<TaskId>, Option<Timestamp>), Error> {
        let tenants = self.with(tenants)?;
        // No tenant is always the first.
        let start = match tenants.len() {
            0 => 0,
            count => (self.ctx.random.number() % count as u64) as usize,
        };
        let (mut found, mut next) = (Vec::new(), None::<Timestamp>);
        for tenant in tenants[start..].iter().chain(&tenants[..start]) {
            let free = room.total - found.len();
            if free == 0 {
                break;
            }
            let name = self.memory().names.get(tenant).and_then(|name| name.parse().ok());
            let busy = name.and_then(|name: TenantName| room.busy.get(&name).copied());
            let free = free.min(room.per_tenant.saturating_sub(busy.unwrap_or(0)));
            if free == 0 {
                // It is looked at again when one of its calls has ended.
                continue;
            }
            let (due, later) = self.with(|db| due_of(db, *tenant, now, free))?;
            found.extend(due);
            next = next.into_iter().chain(later).min();
        }
        Ok((found, next))
    }
}

/// Tenants with something to deliver, now or later.
fn tenants(db: &Connection) -> rusqlite::Result<Vec<NameId>> {
    let mut next = db.prepare_cached(
        "SELECT min(tenant) FROM deliveries INDEXED BY deliveries_due
         WHERE due IS NOT NULL AND tenant > ?1",
    )?;
    let (mut found, mut last) = (Vec::new(), -1);
    while let Some(tenant) = next.query_row([last], |row| row.get::<_, Option<NameId>>(0))? {
        found.push(tenant);
        last = tenant;
    }
    Ok(found)
}

/// What is due of one tenant, and when the next one is.
fn due_of(
    db: &Connection,
    tenant: NameId,
    now: Timestamp,
    limit: usize,
) -> rusqlite::Result<(Vec<TaskId>, Option<Timestamp>)> {
    let (now, horizon) = (signed(now.0), signed(now.plus_ms(HORIZON_MS).0));
    let mut found = Vec::new();
    // Beyond the horizon is what was written before the clock fell back.
    for (after, until) in [(i64::MIN, now), (horizon, i64::MAX)] {
        let limit = limit - found.len();
        let mut statement = db.prepare_cached(
            "SELECT task FROM deliveries INDEXED BY deliveries_due
             WHERE due IS NOT NULL AND tenant = ?1 AND due > ?2 AND due <= ?3
             ORDER BY due LIMIT ?4",
        )?;
        let rows = statement.query_map(params![tenant, after, until, limit as i64], |row| {
            row.get(0).map(TaskId::from_bytes)
        })?;
        found.extend(rows.collect::<Result<Vec<_>, _>>()?);
    }
    let next: Option<i64> = db
        .prepare_cached(
            "SELECT min(due) FROM deliveries INDEXED BY deliveries_due
             WHERE due IS NOT NULL AND tenant = ?1 AND due > ?2",
        )?
        .query_row(params![tenant, now], |row| row.get(0))?;
    Ok((found, next.map(|at| Timestamp(unsigned(at)))))
}

impl Tx<'_> {
    /// A task that has ended is told of, in the transaction that ends it.
    pub(super) fn announce(&mut self, task: &Task, place: &Place) -> Done<()> {
        if task.webhook.is_none() || !task.state.is_terminal() {
            return Ok(());
        }
        let delivery = Delivery::new(task.id, task.tenant.clone(), self.now());
        self.write_delivery(&delivery, place.tenant)?;
        self.wakes.webhooks = true;
        Ok(())
    }

    /// Whoever deletes a task is told no more of it.
    pub(super) fn forget_delivery(&mut self, task: &Task) -> Done<()> {
        if task.webhook.is_some() {
            self.db
                .prepare_cached("DELETE FROM deliveries WHERE task = ?1")?
                .execute([task.id.as_bytes()])?;
        }
        Ok(())
    }

    pub(super) fn take_deliveries(
        &mut self,
        found: &[TaskId],
        hold_ms: u64,
    ) -> Done<Vec<Delivery>> {
        let now = self.now();
        let mut taken = Vec::with_capacity(found.len());
        for id in found {
            // Somebody else may have been faster.
            let Some(mut delivery) = of(self.db, *id)?.filter(|delivery| delivery.is_due(now))
            else {
                continue;
            };
            delivery.take(hold_ms, now);
            self.rewrite_delivery(&delivery)?;
            taken.push(delivery);
        }
        Ok(taken)
    }

    pub(super) fn report_delivery(&mut self, id: TaskId, number: u32, report: Report) -> Done<()> {
        let Some(mut delivery) = of(self.db, id)? else { return Ok(()) };
        delivery.report(number, report, self.ctx.random.number(), self.now());
        self.rewrite_delivery(&delivery)
    }

    pub(super) fn redeliver(&mut self, tenant: &TenantName, id: TaskId) -> Done<Delivery> {
        let ours = |(task, _): &(Task, Place)| task.tenant == *tenant && task.webhook.is_some();
        let Some((task, place)) = self.load(id)?.filter(ours) else {
            return Err(Error::NotFound.into());
        };
        if !task.state.is_terminal() {
            return Err(Error::NotFound.into());
        }
        let now = self.now();
        let mut delivery =
            of(self.db, id)?.unwrap_or_else(|| Delivery::new(id, tenant.clone(), now));
        delivery.restart(now);
        self.write_delivery(&delivery, place.tenant)?;
        self.wakes.webhooks = true;
        Ok(delivery)
    }

    fn write_delivery(&mut self, delivery: &Delivery, tenant: NameId) -> Done<()> {
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO deliveries (task, tenant, due, body)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![delivery.task.as_bytes(), tenant, due(delivery), body(delivery)])?;
        Ok(())
    }

    fn rewrite_delivery(&mut self, delivery: &Delivery) -> Done<()> {
        self.db
            .prepare_cached("UPDATE deliveries SET due = ?2, body = ?3 WHERE task = ?1")?
            .execute(params![delivery.task.as_bytes(), due(delivery), body(delivery)])?;
        Ok(())
    }

    pub(super) fn secret(&mut self, name: &str, fresh: Secret) -> Done<Secret> {
        match secret(self.db, name)? {
            Some(secret) => Ok(secret),
            None => self.write_secret(name, fresh),
        }
    }

    pub(super) fn rotate_secret(&mut self, name: &str, fresh: Secret, ms: u64) -> Done<Secret> {
        let fresh = match secret(self.db, name)? {
            Some(old) => fresh.after(old, ms),
            None => fresh,
        };
        self.write_secret(name, fresh)
    }

    fn write_secret(&mut self, name: &str, secret: Secret) -> Done<Secret> {
        let body = serde_json::to_string(&secret).expect("a secret is strings and numbers");
        self.db
            .prepare_cached("INSERT OR REPLACE INTO secrets (name, body) VALUES (?1, ?2)")?
            .execute(params![name, body])?;
        Ok(secret)
    }
}

fn due(delivery: &Delivery) -> Option<i64> {
    delivery.due.map(|at| signed(at.0))
}

fn body(delivery: &Delivery) -> String {
    serde_json::to_string(delivery).expect("a delivery is strings and numbers")
}
