//! The claim: who gets what. The choice is `rayreel_domain::schedule`'s; here its candidates are
//! found without ever loading the queue: counts are in memory, and each head is one index lookup.

use rayreel_domain::id::{ModelName, PoolName, WorkerName};
use rayreel_domain::schedule::{self, Candidate, Choice, Head};
use rayreel_domain::task::{Claimant, End, Priority};
use rusqlite::{OptionalExtension, Row, params};

use super::memory::{Account, Memory, NameId, Worker, WorkerState, millis, signed, unsigned};
use super::writer::{Failure, Tx};
use super::{Claim, Claimed, Error};

type Done<T> = Result<T, Failure>;

impl Tx<'_> {
    pub(super) fn claim(&mut self, claim: &Claim) -> Done<Claimed> {
        let now = self.ctx.clock.monotonic();
        let (pool, held) = {
            let mut memory = self.memory();
            let held = memory.lease_of(&claim.by.worker).map(|l| (l.fence, l.incarnation, l.seq));
            let Some(worker) = memory.worker(&claim.by, now) else {
                return Err(Error::StaleWorker.into());
            };
            if claim.seq < worker.last_seq {
                // An older request that was held up on its way; nobody waits for its answer.
                return Ok(Claimed::Nothing { ready: false });
            }
            worker.last_seq = claim.seq;
            (worker.pool.clone(), held)
        };
        if let Some((fence, incarnation, seq)) = held {
            if claim.holding.contains(&fence) {
                return Ok(Claimed::Nothing { ready: false });
            }
            if (incarnation, seq) == (claim.by.incarnation, claim.seq)
                && let Some((task, _)) = self.load(fence.task)?
            {
                return Ok(Claimed::Task(Box::new(task)));
            }
            // The answer never arrived, or the worker has lost its memory.
            self.end(fence, End::Vanish, false)?;
        }
        let (idle, draining) = match self.memory().workers.get_mut(&claim.by.worker) {
            Some(worker) => {
                worker.loaded.clone_from(&claim.loaded);
                let idle = !matches!(worker.state, WorkerState::IdleSince(_));
                if idle {
                    worker.state = WorkerState::IdleSince(now);
                }
                (idle, worker.draining)
            }
            None => (false, false),
        };
        self.wakes.backlog |= idle;
        if draining {
            self.deregister(&claim.by)?;
            return Ok(Claimed::Drain);
        }
        if let Some(test) = &claim.self_test {
            self.self_test(&claim.by, test)?;
        }
        let pool_id = {
            let memory = self.memory();
            // Of what is closed nobody has anything.
            memory.id_of(pool.as_str()).filter(|_| !memory.drained.contains(&pool))
        };
        let barred = self.barred(&claim.by.worker);
        let mut ready = Vec::new();
        if let Some(pool_id) = pool_id {
            if let Some(choice) = self.choose(claim, &pool, pool_id, &barred)? {
                return self.assign(claim, choice);
            }
            ready = self.memory().ready_models(pool_id);
        }
        let none_for_it = ready.iter().all(|model| barred.contains(model));
        if none_for_it && claim.target.is_some_and(|target| self.surplus(claim, &pool, target)) {
            self.deregister(&claim.by)?;
            return Ok(Claimed::Drain);
        }
        if let Some((model, message)) = self.due_test(&claim.by.worker, &ready) {
            return Ok(Claimed::Quarantine { model, message });
        }
        Ok(Claimed::Nothing { ready: !ready.is_empty() })
    }

    /// The models of which the worker may not have tasks.
    fn barred(&self, worker: &WorkerName) -> Vec<NameId> {
        let memory = self.memory();
        let quarantine = memory.workers.get(worker).map(|worker| &worker.quarantine[..]);
        let ids = quarantine.unwrap_or_default().iter().map(|q| memory.id_of(q.model.as_str()));
        ids.flatten().collect()
    }

    /// A barred model for which tasks wait, and which may be tested again.
    fn due_test(&self, worker: &WorkerName, ready: &[NameId]) -> Option<(ModelName, String)> {
        let now = self.ctx.clock.monotonic();
        let memory = self.memory();
        let waits = |model: &ModelName| {
            memory.id_of(model.as_str()).is_some_and(|model| ready.contains(&model))
        };
        let mut quarantine = memory.workers.get(worker)?.quarantine.iter();
        let due = quarantine.find(|q| q.due <= now && waits(&q.model))?;
        Some((due.model.clone(), due.message.clone()))
    }

    fn choose(
        &self,
        claim: &Claim,
        pool: &PoolName,
        pool_id: NameId,
        barred: &[NameId],
    ) -> Done<Option<Choice<NameId>>> {
        let name = &claim.by.worker;
        let (loaded, streak) = {
            let memory = self.memory();
            let loaded = claim.loaded.as_ref().and_then(|model| memory.id_of(model.as_str()));
            let streak = memory.workers.get(name).map_or((0, 0), |worker| worker.streak);
            (loaded, if Some(streak.0) == loaded { streak.1 } else { 0 })
        };
        // A task that failed here goes elsewhere, as long as there is an elsewhere.
        let alone = !self.others(&self.memory(), pool, name).any(|_| true);
        let avoiding = if alone { Vec::new() } else { self.avoiding(pool_id, name)? };
        let tenants = self.tenants(pool_id, loaded, &avoiding, barred);
        let mut heads = Vec::new();
        for Tenant { tenant, virtual_ms, models } in tenants {
            let avoided = avoiding.contains(&tenant);
            let mut found = Vec::with_capacity(models.len());
            for model in models {
                let avoid = avoided && self.elsewhere(name, pool, model);
                let avoid = avoid.then_some(name.as_str());
                found.extend(self.head(pool_id, tenant, model, avoid)?);
            }
            heads.push((tenant, virtual_ms, found));
        }
        let candidates: Vec<_> = heads
            .iter()
            .map(|(tenant, virtual_ms, heads)| Candidate {
                tenant: *tenant,
                virtual_ms: *virtual_ms,
                heads,
            })
            .collect();
        Ok(schedule::choose(&candidates, loaded, streak, self.ctx.locality))
    }

    /// May another worker of the pool have tasks of this model?
    fn elsewhere(&self, name: &WorkerName, pool: &PoolName, model: NameId) -> bool {
        let memory = self.memory();
        let Some(model) = memory.names.get(&model) else { return false };
        let takes = |worker: &Worker| worker.quarantine.iter().all(|q| q.model.as_str() != model);
        self.others(&memory, pool, name).any(takes)
    }

    /// Workers of the pool that may take what this one leaves to others.
    fn others<'m>(
        &self,
        memory: &'m Memory,
        pool: &PoolName,
        name: &WorkerName,
    ) -> impl Iterator<Item = &'m Worker> {
        let counted = self.counted_on(memory, pool);
        counted
            .filter(move |(other, worker)| *other != name && !worker.draining)
            .map(|(_, worker)| worker)
    }

    /// Workers of the pool that have called not long ago.
    fn counted_on<'m>(
        &self,
        memory: &'m Memory,
        pool: &PoolName,
    ) -> impl Iterator<Item = (&'m WorkerName, &'m Worker)> {
        let now = self.ctx.clock.monotonic();
        memory.workers.iter().filter(move |(_, worker)| {
            worker.pool == *pool
                && millis(now.saturating_sub(worker.seen)) < self.ctx.worker_silence_ms
        })
    }

    /// Has the pool more workers than it should, and is this the one that has been idle longest of
    /// those that the fleet has started? Who has come by himself stays.
    fn surplus(&self, claim: &Claim, pool: &PoolName, target: u32) -> bool {
        let memory = self.memory();
        let since = |worker: &Worker| match worker.state {
            WorkerState::IdleSince(since) if worker.launch.is_some() => Some(since),
            _ => None,
        };
        let own = memory.workers.get(&claim.by.worker).and_then(since);
        let first = self.counted_on(&memory, pool).filter_map(|(_, worker)| since(worker)).min();
        own.is_some() && own <= first && self.counted_on(&memory, pool).count() > target as usize
    }

    /// Tenants with a ready task that is not for this worker, if there are others.
    fn avoiding(&self, pool: NameId, worker: &WorkerName) -> Done<Vec<NameId>> {
        let mut statement = self.db.prepare_cached(
            "SELECT DISTINCT tenant FROM tasks INDEXED BY tasks_avoid
             WHERE slot = 1 AND avoid = ?1 AND pool = ?2",
        )?;
        let rows = statement.query_map(params![worker.as_str(), pool], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Tenants of whom one is chosen for certain: the one with the least virtual time, the least of
    /// those whose next task is of the loaded model, and those of whom counts can't tell which task
    /// this worker may have. Tasks of barred models, and of tenants who may run no more, are as if
    /// they were not there.
    fn tenants(
        &self,
        pool: NameId,
        loaded: Option<NameId>,
        avoiding: &[NameId],
        barred: &[NameId],
    ) -> Vec<Tenant> {
        let memory = self.memory();
        let Some(pool) = memory.pools.get(&pool) else { return Vec::new() };
        let has_some = |(tenant, account): &(&NameId, &Account)| {
            account.next_models(barred).next().is_some()
                && memory.vacancies(**tenant, account) != Some(0)
        };
        let ready = || pool.tenants.iter().filter(has_some);
        let plain = || ready().filter(|(tenant, _)| !avoiding.contains(tenant));
        let order = |(tenant, account): &(&NameId, &Account)| (account.virtual_ms, **tenant);
        let fairest = plain().min_by_key(order);
        let nearest = loaded.and_then(|model| {
            plain()
                .filter(|(_, account)| account.next_models(barred).any(|m| m == model))
                .min_by_key(order)
        });
        let nearest = nearest.filter(|near| Some(near.0) != fairest.map(|fair| fair.0));
        let counted = fairest.into_iter().chain(nearest).map(|(tenant, account)| Tenant {
            tenant: *tenant,
            virtual_ms: account.virtual_ms,
            models: account.next_models(barred).collect(),
        });
        let others = ready().filter(|(tenant, _)| avoiding.contains(tenant));
        let others = others.map(|(tenant, account)| Tenant {
            tenant: *tenant,
            virtual_ms: account.virtual_ms,
            models: account
                .queues
                .keys()
                .copied()
                .filter(|model| !barred.contains(model))
                .collect(),
        });
        counted.chain(others).collect()
    }

    /// The first ready task of a model.
    fn head(
        &self,
        pool: NameId,
        tenant: NameId,
        model: NameId,
        avoid: Option<&str>,
    ) -> Done<Option<Head<NameId>>> {
        let mut statement = self.db.prepare_cached(match avoid {
            None => {
                "SELECT rank, seq FROM tasks INDEXED BY tasks_ready
                 WHERE slot = 1 AND pool = ?1 AND tenant = ?2 AND model = ?3
                 ORDER BY rank, seq LIMIT 1"
            }
            Some(_) => {
                "SELECT rank, seq FROM tasks INDEXED BY tasks_ready
                 WHERE slot = 1 AND pool = ?1 AND tenant = ?2 AND model = ?3
                 AND avoid IS NOT ?4 ORDER BY rank, seq LIMIT 1"
            }
        })?;
        let head = |row: &Row<'_>| {
            let priority = Priority::new(5u8.saturating_sub(row.get(0)?)).unwrap_or_default();
            Ok(Head { model, priority, seq: unsigned(row.get(1)?) })
        };
        let found = match avoid {
            None => statement.query_row(params![pool, tenant, model], head),
            Some(worker) => statement.query_row(params![pool, tenant, model, worker], head),
        };
        Ok(found.optional()?)
    }

    fn assign(&mut self, claim: &Claim, choice: Choice<NameId>) -> Done<Claimed> {
        let Some((mut task, place)) = self.load_row(signed(choice.head.seq))? else {
            return Err(Error::Corrupt("a task in the index is not in the table".to_owned()).into());
        };
        let by = Claimant {
            worker: claim.by.worker.clone(),
            incarnation: claim.by.incarnation,
            seq: claim.seq,
        };
        let nonce = self.ctx.random.nonce();
        let effect = task.claim(by, nonce, self.now()).map_err(|refusal| {
            // The index says ready and the body does not: the check of the store tells more.
            Error::Corrupt(format!("task {} is listed as ready: {refusal}", task.id))
        })?;
        self.memory().raise_floor(place.pool);
        self.store_change(&mut task, &place, effect, None)?;
        if let Some(worker) = self.memory().workers.get_mut(&claim.by.worker) {
            worker.state = WorkerState::Busy;
            worker.loaded = Some(task.model.clone());
            let (model, times) = worker.streak;
            worker.streak = (place.model, if model == place.model { times + 1 } else { 1 });
        }
        Ok(Claimed::Task(Box::new(task)))
    }
}

/// A tenant that may be chosen, with the models of which it may get a task.
struct Tenant {
    tenant: NameId,
    virtual_ms: u64,
    models: Vec<NameId>,
}
