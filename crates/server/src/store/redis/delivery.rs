//! The outbox of webhooks.

use std::collections::BTreeMap;

use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::{Delivery, HORIZON_MS, Report};
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::rows::parsed;
use super::scripts::Name;
use crate::store::{Error, Room, Taken};

/// How often a delivery is changed anew because somebody else was faster.
const TRIES: u32 = 16;

#[derive(Serialize)]
struct Due {
    now: u64,
    horizon: u64,
    start: u64,
    total: usize,
    per_tenant: usize,
    busy: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct DueReply {
    found: Vec<Found>,
    next: Option<u64>,
}

#[derive(Deserialize)]
struct Found {
    body: String,
}

#[derive(Default, Serialize)]
struct One<'a> {
    task: String,
    tenant: &'a str,
    expected: &'a str,
    body: Option<String>,
    due: Option<u64>,
    wake: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OneReply {
    body: Option<String>,
    conflict: bool,
}

impl RedisStore {
    pub(super) async fn take_due(&self, room: &Room) -> Result<Taken, Error> {
        let now = self.now();
        let busy = room.busy.iter().map(|(tenant, count)| (tenant.to_string(), *count));
        let call = Due {
            now: now.0,
            horizon: now.plus_ms(HORIZON_MS).0,
            start: self.options.random.number() % (1 << 32),
            total: room.total,
            per_tenant: room.per_tenant,
            busy: busy.collect(),
        };
        let due: DueReply = self.scripts.run(Name::delivery, &call).await?;
        let mut deliveries = Vec::with_capacity(due.found.len());
        for found in &due.found {
            let mut delivery: Delivery = parsed(&found.body)?;
            if !delivery.is_due(now) {
                continue;
            }
            delivery.take(room.hold_ms, now);
            // Somebody else may have been faster.
            if self.replace(&delivery, &found.body, false).await? {
                deliveries.push(delivery);
            }
        }
        Ok(Taken { deliveries, next: due.next.map(Timestamp) })
    }

    pub(super) async fn note_report(
        &self,
        id: TaskId,
        number: u32,
        report: Report,
    ) -> Result<(), Error> {
        let random = self.options.random.number();
        for _ in 0..TRIES {
            let Some(old) = self.delivery_of(id).await? else { return Ok(()) };
            let mut delivery: Delivery = parsed(&old)?;
            delivery.report(number, report.clone(), random, self.now());
            if self.replace(&delivery, &old, false).await? {
                return Ok(());
            }
        }
        Err(Error::Unavailable("the delivery is being changed by others".to_owned()))
    }

    pub(super) async fn deliver_again(
        &self,
        tenant: &TenantName,
        id: TaskId,
    ) -> Result<Delivery, Error> {
        for _ in 0..TRIES {
            let view = self.views(vec![id.to_string()]).await?.pop();
            let view = view.filter(|view| view.task.tenant == *tenant);
            let task = view.ok_or(Error::NotFound)?.task;
            if task.webhook.is_none() || !task.state.is_terminal() {
                return Err(Error::NotFound);
            }
            let now = self.now();
            let old = self.delivery_of(id).await?;
            let mut delivery = match &old {
                Some(text) => parsed(text)?,
                None => Delivery::new(id, tenant.clone(), now),
            };
            delivery.restart(now);
            if self.replace(&delivery, old.as_deref().unwrap_or(""), true).await? {
                return Ok(delivery);
            }
        }
        Err(Error::Unavailable("the delivery is being changed by others".to_owned()))
    }

    async fn delivery_of(&self, id: TaskId) -> Result<Option<String>, Error> {
        let one = One { task: id.to_string(), ..One::default() };
        let reply: OneReply = self.scripts.run(Name::delivery, &one).await?;
        Ok(reply.body)
    }

    /// Writes a delivery if it still is as it was read, and its task still there.
    async fn replace(
        &self,
        delivery: &Delivery,
        expected: &str,
        wake: bool,
    ) -> Result<bool, Error> {
        let one = One {
            task: delivery.task.to_string(),
            tenant: delivery.tenant.as_str(),
            expected,
            body: Some(serde_json::to_string(delivery).expect("strings and numbers")),
            due: delivery.due.map(|at| at.0),
            wake,
        };
        let reply: OneReply = self.scripts.run(Name::delivery, &one).await?;
        Ok(!reply.conflict)
    }
}
