//! Who gets what, chosen among all.

use std::time::Duration;

use rayreel_domain::id::{ModelName, Nonce, PoolName, TaskId};
use rayreel_domain::schedule::{self, Candidate, Head};
use rayreel_domain::task::{Claimant, End, Outcome, Task};
use rayreel_domain::wire::worker::SelfTest;
use rayreel_server::store::{Claim, Error};

use super::{Held, Model, Told, Worker};

impl Model {
    /// `nonce` is the store's, if it has given a task.
    pub(in super::super) fn claim(
        &mut self,
        claim: &Claim,
        nonce: Option<Nonce>,
    ) -> Result<Told, Error> {
        let now = self.now();
        let name = &claim.by.worker;
        let worker = self.caller(&claim.by)?;
        if claim.seq < worker.last_seq {
            return Ok(Told::Nothing { ready: false });
        }
        worker.last_seq = claim.seq;
        let held = self.lease_of(name).map(|held| held.fence);
        if let Some(fence) = held {
            if claim.holding.contains(&fence) {
                return Ok(Told::Nothing { ready: false });
            }
            let task = &self.tasks[self.entry(fence.task).expect("leased")].task;
            let lease = task.lease.as_ref().expect("leased");
            if (lease.incarnation, lease.seq) == (claim.by.incarnation, claim.seq) {
                return Ok(Told::Task(Box::new(task.clone())));
            }
            self.finish(fence, End::Vanish, 0).expect("a live lease");
        }
        let worker = self.caller(&claim.by)?;
        worker.started = true;
        worker.idle_since.get_or_insert(now);
        worker.loaded.clone_from(&claim.loaded);
        if worker.draining {
            self.deregister(&claim.by);
            return Ok(Told::Drain);
        }
        let pool = worker.pool.clone();
        if let Some(SelfTest { model, failure }) = &claim.self_test {
            if failure.is_none() {
                worker.quarantine.retain(|barred| barred.model != *model);
            }
            for barred in worker.quarantine.iter_mut().filter(|barred| barred.model == *model) {
                // A quarter of a second, a half, and so on to a minute.
                let pause = (250u64 << barred.failed.min(10)).min(60_000);
                barred.failed += 1;
                barred.due = now + Duration::from_millis(pause);
            }
        }
        let open = !self.drained.contains(&pool);
        if open && let Some(id) = self.choose(claim, &pool) {
            return Ok(Told::Task(Box::new(self.assign(claim, id, nonce))));
        }
        let ready: Vec<&ModelName> = self
            .tasks
            .iter()
            .filter(|_| open)
            .filter(|e| e.ready && e.task.pool == pool && self.vacant(&e.task.tenant))
            .map(|e| &e.task.model)
            .collect();
        let worker = &self.workers[name];
        let for_it = ready.iter().any(|model| !worker.bars(model));
        let test = worker.quarantine.iter().find(|b| b.due <= now && ready.contains(&&b.model));
        let test = test.map(|b| (b.model.clone(), b.message.clone()));
        let ready = !ready.is_empty();
        let launched = |worker: &Worker| worker.idle_since.filter(|_| worker.launch.is_some());
        let counted = self.counted(&pool);
        let idle = counted.into_iter().filter_map(|(_, worker)| launched(worker)).min();
        let longest = idle.is_some() && idle == launched(&self.workers[name]);
        let surplus = claim.target.is_some_and(|t| self.counted(&pool).len() > t as usize);
        if surplus && longest && !for_it {
            self.deregister(&claim.by);
            return Ok(Told::Drain);
        }
        if let Some((model, message)) = test {
            return Ok(Told::Quarantine { model, message });
        }
        Ok(Told::Nothing { ready })
    }

    fn choose(&mut self, claim: &Claim, pool: &PoolName) -> Option<TaskId> {
        let name = &claim.by.worker;
        let counted = self.counted(pool);
        // A task that this worker has just failed is for others, if there are any.
        let allowed = |task: &Task| {
            let others = counted
                .iter()
                .any(|(other, w)| *other != name && !w.draining && !w.bars(&task.model));
            let last = task.attempts.last().filter(|a| a.outcome == Some(Outcome::Failed));
            let refused = others && last.is_some_and(|a| a.worker == *name);
            !refused && !self.workers[name].bars(&task.model) && self.vacant(&task.tenant)
        };
        let number = |model: &ModelName| self.models.iter().position(|m| m == model);
        let heads: Vec<Vec<Head<usize>>> = self
            .tenants
            .iter()
            .map(|tenant| {
                let mut ready: Vec<_> =
                    self.ready_of(pool, tenant).filter(|e| allowed(&e.task)).collect();
                ready.sort_by_key(|e| (std::cmp::Reverse(e.task.priority), e.seq));
                let mut heads: Vec<Head<usize>> = Vec::new();
                for entry in ready {
                    let model = number(&entry.task.model).expect("submitted");
                    if !heads.iter().any(|head| head.model == model) {
                        let priority = entry.task.priority;
                        heads.push(Head { model, priority, seq: entry.seq });
                    }
                }
                heads
            })
            .collect();
        let candidates: Vec<_> = (0..self.tenants.len())
            .map(|tenant| Candidate {
                tenant,
                virtual_ms: self.account(pool, &self.tenants[tenant]),
                heads: &heads[tenant],
            })
            .collect();
        let loaded = claim.loaded.as_ref().and_then(number);
        let streak = match &self.workers[name].streak {
            Some((model, times)) if Some(model) == claim.loaded.as_ref() => *times,
            _ => 0,
        };
        let choice = schedule::choose(&candidates, loaded, streak, self.setup.locality)?;
        // The floor: the largest counter that was ever the smallest of those with work.
        let smallest = self
            .tenants
            .iter()
            .filter(|tenant| self.vacant(tenant) && self.ready_of(pool, tenant).next().is_some())
            .map(|tenant| self.account(pool, tenant))
            .min();
        let floor = self.floors.entry(pool.clone()).or_default();
        *floor = (*floor).max(smallest.unwrap_or(0));
        self.tasks.iter().find(|e| e.seq == choice.head.seq).map(|e| e.task.id)
    }

    fn assign(&mut self, claim: &Claim, id: TaskId, nonce: Option<Nonce>) -> Task {
        let (now, wall) = (self.now(), self.wall());
        let fresh = nonce.is_none_or(|nonce| self.nonces.insert(nonce));
        assert!(fresh, "a nonce is never used twice");
        let by = Claimant {
            worker: claim.by.worker.clone(),
            incarnation: claim.by.incarnation,
            seq: claim.seq,
        };
        let index = self.entry(id).expect("chosen");
        let effect = self.tasks[index].task.claim(by, nonce.unwrap_or(Nonce(0)), wall);
        let effect = effect.expect("queued");
        self.apply(index, effect);
        let task = self.tasks[index].task.clone();
        let worker = self.workers.get_mut(&claim.by.worker).expect("it claims");
        worker.loaded = Some(task.model.clone());
        let fence = task.fence().expect("running");
        self.leases.insert(
            id,
            Held {
                fence,
                worker: claim.by.worker.clone(),
                beats: 0,
                graces: 0,
                progress: None,
                since: now,
                before_ms: 0,
            },
        );
        let worker = self.caller(&claim.by).expect("checked");
        worker.idle_since = None;
        worker.streak = match worker.streak.take() {
            Some((model, times)) if model == task.model => Some((model, times + 1)),
            _ => Some((task.model.clone(), 1)),
        };
        task
    }
}
