//! What is taken into the queue, and what is not.

use rayreel_domain::id::TenantName;
use rayreel_domain::task::{State, Task};
use rayreel_domain::tenant::{self, Usage};
use rayreel_server::store::Error;

use super::{DAY_MS, Entry, Model};

/// A task, whether it was there already, and its position.
type Submitted = (Task, bool, Option<u64>);

impl Model {
    pub(in super::super) fn submit(&mut self, tasks: &[Task]) -> Result<Vec<Submitted>, Error> {
        let first = &tasks[0];
        if let Some(found) = self.same_key(first)? {
            let ids = [found.id].into_iter().chain(found.siblings.clone());
            let entries = ids.filter_map(|id| Some(&self.tasks[self.entry(id)?]));
            let still = entries.map(|e| (e.task.clone(), true, self.position(e)));
            let still: Vec<Submitted> = still.collect();
            return if still.is_empty() {
                Err(Error::Deleted { task: found.id })
            } else {
                Ok(still)
            };
        }
        let queued = self.tasks.iter().filter(|e| e.task.state == State::Queued).count() as u64;
        if queued + tasks.len() as u64 > self.setup.max_queued {
            return Err(Error::QueueFull { queued });
        }
        let terms = self.setup.tenancy.of(&first.tenant);
        let usage = self.usage(&first.tenant);
        let (count, work) = (tasks.len() as u64, tasks.iter().map(|t| t.estimate_ms).sum());
        let (mono, wall) = (self.now().as_millis() as u64, self.wall().0);
        let minute = self.minutes.entry(first.tenant.clone()).or_default();
        tenant::admit(&terms, &usage, minute, (count, work), (mono, wall)).map_err(Error::Limit)?;
        minute.add(count, mono);
        Ok(tasks.iter().map(|task| self.insert(task)).collect())
    }

    pub(super) fn usage(&self, tenant: &TenantName) -> Usage {
        let today = self.wall().0 / DAY_MS;
        let queued = || {
            let own = self.tasks.iter().filter(|e| e.task.tenant == *tenant);
            own.filter(|e| e.task.state == State::Queued)
        };
        let used =
            self.used.iter().filter(|((_, other), (day, _))| other == tenant && *day == today);
        Usage {
            queued: queued().count() as u64,
            queued_ms: queued().map(|e| e.task.estimate_ms).sum(),
            day_ms: used.map(|(_, (_, ms))| ms).sum(),
        }
    }

    /// The task that was submitted under the same key within a day, though it was deleted.
    fn same_key(&mut self, task: &Task) -> Result<Option<Task>, Error> {
        let Some(asked) = &task.idempotency else { return Ok(None) };
        let key = (task.tenant.clone(), asked.key.clone());
        let same = |other: &Task| {
            other.tenant == key.0 && other.idempotency.as_ref().is_some_and(|i| i.key == key.1)
        };
        let holder = self.tasks.iter().position(|entry| entry.keyed && same(&entry.task));
        let found = match holder {
            Some(index) if task.created_at.ms_since(self.tasks[index].task.created_at) < DAY_MS => {
                Some(self.tasks[index].task.clone())
            }
            Some(index) => {
                self.tasks[index].keyed = false;
                None
            }
            None => self
                .tombstones
                .get(&key)
                .filter(|(until, _)| *until > task.created_at)
                .map(|(_, task)| task.clone()),
        };
        let mismatch =
            |found: &Task| found.idempotency.as_ref().is_none_or(|i| i.request != asked.request);
        if found.as_ref().is_some_and(mismatch) {
            return Err(Error::IdempotencyMismatch);
        }
        Ok(found)
    }

    fn insert(&mut self, task: &Task) -> Submitted {
        if !self.tenants.contains(&task.tenant) {
            self.tenants.push(task.tenant.clone());
        }
        if !self.models.contains(&task.model) {
            self.models.push(task.model.clone());
        }
        let active = self.tasks.iter().any(|e| {
            !e.task.state.is_terminal() && e.task.pool == task.pool && e.task.tenant == task.tenant
        });
        let floor = self.floors.get(&task.pool).copied().unwrap_or(0);
        let account = self.virtual_ms.entry((task.pool.clone(), task.tenant.clone())).or_default();
        if !active {
            *account = (*account).max(floor);
        }
        self.submitted += 1;
        self.tasks.push(Entry {
            task: task.clone(),
            seq: self.submitted,
            ready: true,
            keyed: task.idempotency.is_some(),
        });
        let position = self.position(&self.tasks[self.tasks.len() - 1]);
        (task.clone(), false, position)
    }
}
