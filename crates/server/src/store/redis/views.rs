//! What can be seen of the whole: lists, workers, leases, the pools' work, what tenants use.

use std::collections::{BTreeMap, BTreeSet};

use rayreel_domain::id::{ModelName, PoolName, TenantName};
use rayreel_domain::task::State;
use rayreel_domain::tenant::Usage;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::rows::{Barred, Live, Views, named, number};
use super::scripts::Name;
use crate::store::{
    Activity, After, Backlog, Error, Identity, LeaseView, ListQuery, Order, Page, Ready, TenantUse,
    WorkerView,
};

const DAY_MS: u64 = 24 * 3_600_000;
/// A quarter of a second; a minute has so many, and one.
const SLOT_MS: u64 = 250;
const SLOTS: u64 = 60_000 / SLOT_MS;

#[derive(Serialize)]
struct Survey {
    what: &'static str,
}

#[derive(Serialize)]
struct ListCall<'a> {
    tenant: &'a str,
    lines: Vec<Line>,
    /// The script has answered before that there is more.
    resumed: bool,
    newest_first: bool,
    limit: u32,
    after_seq: Option<u64>,
    after_task: Option<String>,
    model: Option<&'a str>,
    format: Option<&'static str>,
    created_from: Option<u64>,
    created_before: Option<u64>,
}

/// Tasks of one state: how many have been found, and where to go on.
#[derive(Serialize, Deserialize)]
struct Line {
    state: u8,
    taken: u32,
    last: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListReply {
    found: Vec<FoundTask>,
    more: Option<Vec<Line>>,
    after: Option<u64>,
    #[serde(flatten)]
    page: Views,
}

#[derive(Deserialize)]
struct FoundTask {
    seq: u64,
    id: String,
}

/// Queued tasks of one tenant and model in a pool.
#[derive(Debug, Deserialize)]
pub(super) struct Queue {
    /// By rank: the first is priority 5.
    pub(super) n: [u64; 5],
    pub(super) ms: u64,
    pub(super) delayed: u64,
    pub(super) delayed_ms: u64,
}

impl Queue {
    fn ready(&self) -> u64 {
        self.n.iter().sum()
    }
}

/// A tenant's share of a pool.
#[derive(Debug, Deserialize)]
pub(super) struct Account {
    /// Pool and tenant, with a bar between.
    pub(super) name: String,
    pub(super) day: u64,
    pub(super) day_ms: u64,
    pub(super) running: u64,
    #[serde(default)]
    pub(super) queues: BTreeMap<String, Queue>,
}

impl Account {
    pub(super) fn pool_and_tenant(&self) -> Result<(PoolName, TenantName), Error> {
        let (pool, tenant) = self.name.split_once('|').unwrap_or_default();
        Ok((named(pool)?, named(tenant)?))
    }

    fn queued(&self) -> u64 {
        self.queues.values().map(|queue| queue.ready() + queue.delayed).sum()
    }

    fn queued_ms(&self) -> u64 {
        self.queues.values().map(|queue| queue.ms + queue.delayed_ms).sum()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Accounts {
    pub(super) accounts: Vec<Account>,
    minutes: Vec<MinuteOf>,
    files: Vec<FilesOf>,
    /// Models, in the order in which they first had a task.
    models: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct MinuteOf {
    tenant: String,
    slots: Vec<(u64, u64)>,
}

#[derive(Debug, Deserialize)]
struct FilesOf {
    tenant: String,
    bytes: u64,
}

#[derive(Debug, Deserialize)]
struct WorkerRow {
    name: String,
    incarnation: String,
    pool: String,
    launch: Option<String>,
    version: String,
    #[serde(default)]
    draining: Option<bool>,
    loaded: Option<String>,
    #[serde(default)]
    quarantine: Option<Vec<Barred>>,
    seen: u64,
    state: u8,
    idle_since: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Workers {
    workers: Vec<WorkerRow>,
    drained: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Leases {
    leases: Vec<Live>,
}

impl RedisStore {
    pub(super) async fn page(&self, query: &ListQuery) -> Result<Page, Error> {
        let states = query.state.map_or(&State::ALL[..], |s| &State::ALL[s as usize..=s as usize]);
        let (after_seq, after_task) = match query.after {
            None => (None, None),
            Some(After::Position(seq)) => (Some(seq), None),
            Some(After::Task(id)) => (None, Some(id.to_string())),
        };
        let line = |state: &State| Line { state: *state as u8, taken: 0, last: None };
        let mut call = ListCall {
            tenant: query.tenant.as_str(),
            lines: states.iter().map(line).collect(),
            resumed: false,
            newest_first: query.order == Order::NewestFirst,
            limit: query.limit,
            after_seq,
            after_task,
            model: query.model.as_ref().map(ModelName::as_str),
            format: query.format.map(|format| format.extension()),
            created_from: query.created_from.map(|at| at.0),
            created_before: query.created_before.map(|at| at.0),
        };
        let tenancy = &self.options.tenancy;
        let mut found = Vec::new();
        loop {
            let reply: ListReply = self.scripts.run(Name::list, &call).await?;
            if reply.page.missing {
                return Err(Error::NotFound);
            }
            found.extend(reply.found);
            match reply.more {
                Some(lines) => {
                    (call.lines, call.resumed) = (lines, true);
                    (call.after_seq, call.after_task) = (reply.after, None);
                }
                None if call.resumed => break,
                None => {
                    return Ok(Page { tasks: reply.page.shown(tenancy)?, next: reply.page.next });
                }
            }
        }
        // A task that has changed its state meanwhile may have been found twice.
        found.sort_by_key(|task: &FoundTask| task.seq);
        found.dedup_by_key(|task| task.seq);
        if call.newest_first {
            found.reverse();
        }
        let more = found.len() > query.limit as usize;
        found.truncate(query.limit as usize);
        let next = found.last().filter(|_| more).map(|task| task.seq);
        let ids = found.into_iter().map(|task| task.id).collect();
        Ok(Page { tasks: self.views(ids).await?, next })
    }

    pub(super) async fn worker_views(&self) -> Result<Vec<WorkerView>, Error> {
        let now = self.mono();
        let ms = |since: u64| now.saturating_sub(since);
        let all: Workers = self.scripts.run(Name::survey, &Survey { what: "workers" }).await?;
        let view = |row: WorkerRow| {
            Ok(WorkerView {
                by: Identity { worker: named(&row.name)?, incarnation: number(&row.incarnation)? },
                pool: named(&row.pool)?,
                launch: row.launch,
                silent_ms: ms(row.seen),
                activity: match (row.state, row.idle_since) {
                    (0, _) => Activity::Starting,
                    (2, Some(since)) => Activity::Idle { for_ms: ms(since) },
                    _ => Activity::Busy,
                },
                loaded: row.loaded.as_deref().map(named).transpose()?,
                version: row.version,
                draining: row.draining.unwrap_or(false),
                quarantined: row
                    .quarantine
                    .unwrap_or_default()
                    .into_iter()
                    .map(|barred| Ok((named(&barred.model)?, barred.message)))
                    .collect::<Result<_, Error>>()?,
            })
        };
        all.workers.into_iter().map(view).collect()
    }

    pub(super) async fn closed_pools(&self) -> Result<BTreeSet<PoolName>, Error> {
        let all: Workers = self.scripts.run(Name::survey, &Survey { what: "workers" }).await?;
        all.drained.iter().map(|pool| named(pool)).collect()
    }

    pub(super) async fn lease_views(&self) -> Result<Vec<LeaseView>, Error> {
        let now = self.mono();
        let all: Leases = self.scripts.run(Name::survey, &Survey { what: "leases" }).await?;
        let view = |live: Live| {
            Ok(LeaseView {
                fence: live.fence(&live.name)?,
                worker: named(&live.worker)?,
                beats: live.beats,
                confirmed: live.confirmed,
                graces: live.graces,
                held_ms: now.saturating_sub(live.since),
            })
        };
        all.leases.into_iter().map(view).collect()
    }

    pub(super) async fn accounts(&self) -> Result<Accounts, Error> {
        self.scripts.run(Name::survey, &Survey { what: "accounts" }).await
    }

    pub(super) async fn work(&self) -> Result<Vec<Backlog>, Error> {
        let Accounts { accounts, models, .. } = self.accounts().await?;
        let mut running = BTreeMap::<TenantName, u64>::new();
        for account in &accounts {
            *running.entry(account.pool_and_tenant()?.1).or_default() += account.running;
        }
        let mut pools = BTreeMap::<PoolName, Backlog>::new();
        for account in &accounts {
            let (pool, tenant) = account.pool_and_tenant()?;
            let backlog = pools.entry(pool.clone()).or_insert_with(|| Backlog {
                pool,
                ready: BTreeMap::new(),
                delayed: 0,
                running: 0,
                queued: 0,
                queued_ms: 0,
            });
            backlog.running += account.running;
            backlog.queued += account.queued();
            backlog.queued_ms += account.queued_ms();
            let most = self.options.tenancy.of(&tenant).running;
            let taken = running.get(&tenant).copied().unwrap_or(0);
            // Of what may not run yet, no more counts than may: it needs no worker.
            let mut vacancies = most.map_or(u64::MAX, |most| most.saturating_sub(taken));
            for model in &models {
                let Some(queue) = account.queues.get(model) else { continue };
                backlog.delayed += queue.delayed;
                let may_run = queue.ready().min(vacancies);
                if may_run == 0 {
                    continue;
                }
                vacancies -= may_run;
                let sum: &mut Ready = backlog.ready.entry(named(model)?).or_default();
                sum.tasks += may_run;
                let all = queue.ready();
                sum.ms += if may_run < all { queue.ms / all * may_run } else { queue.ms };
            }
        }
        Ok(pools.into_values().collect())
    }

    pub(super) async fn uses(&self) -> Result<Vec<TenantUse>, Error> {
        let Accounts { accounts, minutes, files, .. } = self.accounts().await?;
        let today = self.now().0 / DAY_MS;
        let slot = self.mono() / SLOT_MS;
        let mut uses = BTreeMap::<TenantName, TenantUse>::new();
        let mut of = |tenant: TenantName, change: &dyn Fn(&mut TenantUse)| {
            change(uses.entry(tenant.clone()).or_insert_with(|| TenantUse {
                tenant,
                usage: Usage::default(),
                running: 0,
                last_minute: 0,
                file_bytes: 0,
            }));
        };
        for account in &accounts {
            of(account.pool_and_tenant()?.1, &|sum| {
                sum.usage.queued += account.queued();
                sum.usage.queued_ms += account.queued_ms();
                sum.usage.day_ms += if account.day == today { account.day_ms } else { 0 };
                sum.running += account.running;
            });
        }
        for minute in &minutes {
            let counted = minute.slots.iter().filter(|(at, _)| at + SLOTS >= slot);
            let count: u64 = counted.map(|(_, count)| count).sum();
            of(named(&minute.tenant)?, &|sum| sum.last_minute = count);
        }
        for file in &files {
            of(named(&file.tenant)?, &|sum| sum.file_bytes = file.bytes);
        }
        let used = |sum: &TenantUse| {
            sum.usage != Usage::default() || sum.running + sum.last_minute + sum.file_bytes > 0
        };
        Ok(uses.into_values().filter(used).collect())
    }
}
