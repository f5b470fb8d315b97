//! What can be seen of memory: leases, workers, the pools' work, what tenants use. None of it reads
//! the queue.

use std::collections::BTreeMap;
use std::time::Duration;

use rayreel_domain::id::{ModelName, TenantName, WorkerName};
use rayreel_domain::tenant::Usage;
use rusqlite::Connection;

use super::memory::{Account, Live, Memory, NameId, Worker, WorkerState, millis, unsigned};
use super::{Activity, Backlog, Identity, LeaseView, Ready, TenantUse, WorkerView};

impl Memory {
    pub(super) fn leases(&self, now: Duration) -> Vec<LeaseView> {
        let view = |live: &Live| LeaseView {
            fence: live.fence,
            worker: live.worker.clone(),
            beats: live.beats,
            confirmed: live.confirmed,
            graces: live.graces,
            held_ms: live.held_ms(now),
        };
        self.live.values().map(view).collect()
    }

    pub(super) fn worker_views(&self, now: Duration) -> Vec<WorkerView> {
        let view = |(name, worker): (&WorkerName, &Worker)| WorkerView {
            by: Identity { worker: name.clone(), incarnation: worker.incarnation },
            pool: worker.pool.clone(),
            launch: worker.launch.clone(),
            silent_ms: millis(now.saturating_sub(worker.seen)),
            activity: match worker.state {
                WorkerState::Starting => Activity::Starting,
                WorkerState::Busy => Activity::Busy,
                WorkerState::IdleSince(since) => {
                    Activity::Idle { for_ms: millis(now.saturating_sub(since)) }
                }
            },
            loaded: worker.loaded.clone(),
            version: worker.version.clone(),
            draining: worker.draining,
            quarantined: worker
                .quarantine
                .iter()
                .map(|q| (q.model.clone(), q.message.clone()))
                .collect(),
        };
        self.workers.iter().map(view).collect()
    }

    pub(super) fn backlog(&self) -> Vec<Backlog> {
        self.pools
            .iter()
            .filter_map(|(id, pool)| {
                let accounts = || pool.tenants.values();
                let queues = || accounts().flat_map(|account| &account.queues);
                let mut ready: BTreeMap<ModelName, Ready> = BTreeMap::new();
                for (tenant, account) in &pool.tenants {
                    let mut vacancies = self.vacancies(*tenant, account).unwrap_or(u64::MAX);
                    for (model, queue) in &account.queues {
                        let (tasks, ms) = (queue.ready_count(), queue.ready_ms);
                        let may_run = tasks.min(vacancies);
                        if may_run == 0 {
                            continue;
                        }
                        vacancies -= may_run;
                        let sum = ready.entry(self.names.get(model)?.parse().ok()?).or_default();
                        sum.tasks += may_run;
                        // What may not run yet needs no worker.
                        sum.ms += if may_run < tasks { ms / tasks * may_run } else { ms };
                    }
                }
                Some(Backlog {
                    pool: self.names.get(id)?.parse().ok()?,
                    ready,
                    delayed: queues().map(|(_, queue)| queue.delayed).sum(),
                    running: accounts().map(|account| account.running).sum(),
                    queued: accounts().map(Account::queued).sum(),
                    queued_ms: accounts().map(Account::queued_ms).sum(),
                })
            })
            .collect()
    }

    /// What tenants use, by their numbers.
    pub(super) fn uses(&self, mono_ms: u64, today: u64) -> BTreeMap<NameId, Use> {
        let mut uses: BTreeMap<NameId, Use> = BTreeMap::new();
        for (tenant, account) in self.pools.values().flat_map(|pool| &pool.tenants) {
            let sum = uses.entry(*tenant).or_default();
            sum.usage.queued += account.queued();
            sum.usage.queued_ms += account.queued_ms();
            sum.usage.day_ms += if account.day == today { account.day_ms } else { 0 };
            sum.running += account.running;
        }
        for (tenant, minute) in &self.minutes {
            uses.entry(*tenant).or_default().last_minute = minute.count(mono_ms);
        }
        uses
    }

    /// By their names; those who use nothing are left out.
    pub(super) fn named(&self, uses: BTreeMap<NameId, Use>) -> Vec<TenantUse> {
        let used = uses.into_iter().filter(|(_, sum)| *sum != Use::default());
        let mut named: Vec<TenantUse> = used
            .filter_map(|(tenant, sum)| {
                let tenant: TenantName = self.names.get(&tenant)?.parse().ok()?;
                let Use { usage, running, last_minute, file_bytes } = sum;
                Some(TenantUse { tenant, usage, running, last_minute, file_bytes })
            })
            .collect();
        named.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        named
    }
}

/// What one tenant uses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    usage: Usage,
    running: u64,
    last_minute: u64,
    pub(super) file_bytes: u64,
}

/// The bytes of tenants' files, from an index alone.
pub(super) fn file_bytes(db: &Connection) -> rusqlite::Result<Vec<(NameId, u64)>> {
    let mut statement = db.prepare_cached(
        "SELECT tenant, sum(counted) FROM files INDEXED BY files_tenant GROUP BY tenant",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))?;
    rows.collect()
}
