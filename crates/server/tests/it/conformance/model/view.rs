//! What can be seen of the model.

use std::collections::BTreeMap;
use std::time::Duration;

use rayreel_domain::id::{PoolName, TaskId, TenantName, WorkerName};
use rayreel_domain::lease::Fence;
use rayreel_domain::schedule::{self, Rival};
use rayreel_domain::task::{Refusal, State, Task};
use rayreel_domain::tenant::Usage;
use rayreel_domain::wire::worker::{Beaten, Progress};
use rayreel_server::store::{
    Activity, Backlog, Error, Identity, LeaseView, ListQuery, Order, TenantUse, WorkerView,
};

use super::{Entry, Held, Model, Worker};

impl Model {
    pub(in super::super) fn held(&self, fence: Fence) -> Beaten {
        match self.entry(fence.task).map(|index| self.tasks[index].task.check(fence)) {
            Some(Ok(())) => Beaten::Continue,
            Some(Err(Refusal::Stale { cancelled: true })) => Beaten::Cancelled,
            _ => Beaten::Lost,
        }
    }

    pub(in super::super) fn leased(&self, fence: Fence) -> Result<Task, Error> {
        match self.held(fence) {
            Beaten::Continue => Ok(self.tasks[self.entry(fence.task).expect("held")].task.clone()),
            beaten => Err(Error::StaleLease { cancelled: beaten == Beaten::Cancelled }),
        }
    }

    pub(in super::super) fn position(&self, entry: &Entry) -> Option<u64> {
        if !entry.ready {
            return None;
        }
        let (pool, tenant) = (&entry.task.pool, &entry.task.tenant);
        let sum = |entries: &[&Entry]| entries.iter().map(|e| e.task.estimate_ms).sum::<u64>();
        let own: Vec<_> = self.ready_of(pool, tenant).collect();
        let before = |e: &&&Entry| {
            (std::cmp::Reverse(e.task.priority), e.seq)
                < (std::cmp::Reverse(entry.task.priority), entry.seq)
        };
        let ahead = own.iter().filter(before).count() as u64;
        let rivals: Vec<_> = self
            .tenants
            .iter()
            .filter(|other| *other != tenant)
            .map(|other| (other, self.ready_of(pool, other).collect::<Vec<_>>()))
            .filter(|(_, ready)| !ready.is_empty())
            .map(|(other, ready)| Rival {
                virtual_ms: self.account(pool, other),
                weight: self.setup.tenancy.of(other).weight,
                queued: ready.len() as u64,
                queued_ms: sum(&ready),
            })
            .collect();
        let each = sum(&own) / own.len() as u64;
        let virtual_ms = self.account(pool, tenant);
        let weight = self.setup.tenancy.of(tenant).weight;
        Some(schedule::position(virtual_ms, weight, ahead, ahead * each, &rivals))
    }

    pub(in super::super) fn progress(&self, id: TaskId) -> Option<Progress> {
        self.leases.get(&id).and_then(|held| held.progress.clone())
    }

    pub(in super::super) fn list(&self, query: &ListQuery) -> Vec<&Entry> {
        let newest_first = query.order == Order::NewestFirst;
        let mut tasks: Vec<&Entry> = self.tasks.iter().collect();
        if newest_first {
            tasks.reverse();
        }
        tasks
            .into_iter()
            .filter(|e| e.task.tenant == query.tenant)
            .filter(|e| query.state.is_none_or(|state| e.task.state == state))
            .filter(|e| query.model.as_ref().is_none_or(|model| e.task.model == *model))
            .filter(|e| query.format.is_none_or(|format| e.task.request.format == format))
            .filter(|e| query.created_from.is_none_or(|from| e.task.created_at >= from))
            .filter(|e| query.created_before.is_none_or(|before| e.task.created_at < before))
            .collect()
    }

    pub(in super::super) fn lease_views(&self) -> Vec<LeaseView> {
        let view = |held: &Held| LeaseView {
            fence: held.fence,
            worker: held.worker.clone(),
            beats: held.beats,
            confirmed: self
                .leased(held.fence)
                .is_ok_and(|task| task.lease.as_ref().is_some_and(|lease| lease.confirmed)),
            graces: held.graces,
            held_ms: self.held_ms(held.fence.task),
        };
        self.leases.values().map(view).collect()
    }

    pub(in super::super) fn worker_views(&self) -> Vec<WorkerView> {
        let now = self.now();
        let ms = |since: Duration| (now - since).as_millis() as u64;
        let view = |(name, worker): (&WorkerName, &Worker)| WorkerView {
            by: Identity { worker: name.clone(), incarnation: worker.incarnation },
            pool: worker.pool.clone(),
            launch: worker.launch.clone(),
            silent_ms: ms(worker.seen),
            activity: match worker.idle_since {
                Some(since) => Activity::Idle { for_ms: ms(since) },
                None if worker.started => Activity::Busy,
                None => Activity::Starting,
            },
            loaded: worker.loaded.clone(),
            version: worker.version.clone(),
            draining: worker.draining,
            quarantined: worker
                .quarantine
                .iter()
                .map(|barred| (barred.model.clone(), barred.message.clone()))
                .collect(),
        };
        self.workers.iter().map(view).collect()
    }

    pub(in super::super) fn backlog(&self) -> Vec<Backlog> {
        let mut pools: BTreeMap<PoolName, Backlog> = BTreeMap::new();
        for entry in self.tasks.iter().filter(|e| !e.task.state.is_terminal()) {
            let pool = &entry.task.pool;
            let backlog = pools.entry(pool.clone()).or_insert_with(|| Backlog {
                pool: pool.clone(),
                ready: BTreeMap::new(),
                delayed: 0,
                running: 0,
                queued: 0,
                queued_ms: 0,
            });
            if entry.task.state == State::Running {
                backlog.running += 1;
                continue;
            }
            backlog.queued += 1;
            backlog.queued_ms += entry.task.estimate_ms;
            if !entry.ready {
                backlog.delayed += 1;
            }
        }
        for backlog in pools.values_mut() {
            for tenant in &self.tenants {
                // Of what may not run yet, no more counts than may.
                let mut vacancies = self.vacancies(tenant);
                for model in &self.models {
                    let all = self.ready_of(&backlog.pool, tenant);
                    let ms: Vec<u64> = all
                        .filter(|e| e.task.model == *model)
                        .map(|e| e.task.estimate_ms)
                        .collect();
                    let tasks = (ms.len() as u64).min(vacancies);
                    if tasks == 0 {
                        continue;
                    }
                    vacancies -= tasks;
                    let (all, sum) = (ms.len() as u64, ms.iter().sum::<u64>());
                    let ready = backlog.ready.entry(model.clone()).or_default();
                    ready.tasks += tasks;
                    ready.ms += if tasks < all { sum / all * tasks } else { sum };
                }
            }
        }
        pools.into_values().collect()
    }

    /// Of those who use something, sorted; no file is ever sent in a sequence.
    pub(in super::super) fn tenant_uses(&self) -> Vec<TenantUse> {
        let mut tenants = self.tenants.clone();
        tenants.sort();
        let running = |tenant: &TenantName| {
            let own = self.tasks.iter().filter(|e| e.task.tenant == *tenant);
            own.filter(|e| e.task.state == State::Running).count() as u64
        };
        let now = self.now().as_millis() as u64;
        let uses = tenants.into_iter().map(|tenant| TenantUse {
            usage: self.usage(&tenant),
            running: running(&tenant),
            last_minute: self.minutes.get(&tenant).map_or(0, |minute| minute.count(now)),
            file_bytes: 0,
            tenant,
        });
        uses.filter(|u| u.usage != Usage::default() || u.running + u.last_minute > 0).collect()
    }

    /// Folders that may go now, sorted.
    pub(in super::super) fn due_garbage(&self) -> Vec<String> {
        let now = self.wall();
        let due = self.garbage.iter().filter(|(_, at)| *at <= now);
        let mut folders: Vec<_> = due.map(|(folder, _)| folder.clone()).collect();
        folders.sort();
        folders
    }
}
