//! The claim: who gets what. The choice is `rayreel_domain::schedule`'s; here its candidates are
//! found without ever loading the queue: counts are in memory, and each head is one index lookup.

use rayreel_domain::id::{PoolName, WorkerName};
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
        let (pool, held, quarantine) = {
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
            (worker.pool.clone(), held, worker.quarantine.clone())
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
        let idle = match self.memory().workers.get_mut(&claim.by.worker) {
            Some(worker) if !matches!(worker.state, WorkerState::IdleSince(_)) => {
                worker.state = WorkerState::IdleSince(now);
                true
            }
            _ => false,
        };
        self.wakes.backlog |= idle;
        if let Some(quarantine) = quarantine
            && !self.self_test(&claim.by, claim.self_test.as_ref())?
        {
            return Ok(Claimed::Quarantine {
                model: quarantine.model,
                message: quarantine.message,
            });
        }
        let pool_id = self.memory().id_of(pool.as_str());
        let mut ready = false;
        if let Some(pool_id) = pool_id {
            if let Some(choice) = self.choose(claim, &pool, pool_id)? {
                return self.assign(claim, choice);
            }
            ready = self
                .memory()
                .pools
                .get(&pool_id)
                .is_some_and(|pool| pool.tenants.values().any(|account| account.ready() > 0));
        }
        if !ready && claim.target.is_some_and(|target| self.surplus(claim, &pool, target)) {
            self.deregister(&claim.by)?;
            return Ok(Claimed::Drain);
        }
        Ok(Claimed::Nothing { ready })
    }

    fn choose(
        &self,
        claim: &Claim,
        pool: &PoolName,
        pool_id: NameId,
    ) -> Done<Option<Choice<NameId>>> {
        let name = &claim.by.worker;
        let (loaded, streak) = {
            let memory = self.memory();
            let loaded = claim.loaded.as_ref().and_then(|model| memory.id_of(model.as_str()));
            let streak = memory.workers.get(name).map_or((0, 0), |worker| worker.streak);
            (loaded, if Some(streak.0) == loaded { streak.1 } else { 0 })
        };
        // A task that failed here goes elsewhere, as long as there is an elsewhere.
        let alone = !self.counted_on(&self.memory(), pool).any(|(other, _)| other != name);
        let avoiding = if alone { Vec::new() } else { self.avoiding(pool_id, name)? };
        let mut heads = Vec::new();
        for Tenant { tenant, virtual_ms, models } in self.tenants(pool_id, loaded, &avoiding) {
            let avoid = avoiding.contains(&tenant).then_some(name.as_str());
            heads.push((tenant, virtual_ms, self.heads(pool_id, tenant, &models, avoid)?));
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

    /// Workers of the pool that are healthy and have called not long ago.
    fn counted_on<'m>(
        &self,
        memory: &'m Memory,
        pool: &PoolName,
    ) -> impl Iterator<Item = (&'m WorkerName, &'m Worker)> {
        let now = self.ctx.clock.monotonic();
        memory.workers.iter().filter(move |(_, worker)| {
            worker.pool == *pool
                && worker.quarantine.is_none()
                && millis(now.saturating_sub(worker.seen)) < self.ctx.worker_silence_ms
        })
    }

    /// Has the pool more workers than it should, and is this the one that has been idle longest?
    fn surplus(&self, claim: &Claim, pool: &PoolName, target: u32) -> bool {
        let memory = self.memory();
        let since = |worker: &Worker| match worker.state {
            WorkerState::IdleSince(since) => Some(since),
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
    /// this worker may have.
    fn tenants(&self, pool: NameId, loaded: Option<NameId>, avoiding: &[NameId]) -> Vec<Tenant> {
        let memory = self.memory();
        let Some(pool) = memory.pools.get(&pool) else { return Vec::new() };
        let ready = || pool.tenants.iter().filter(|(_, account)| account.ready() > 0);
        let plain = || ready().filter(|(tenant, _)| !avoiding.contains(tenant));
        let order = |(tenant, account): &(&NameId, &Account)| (account.virtual_ms, **tenant);
        let fairest = plain().min_by_key(order);
        let nearest = loaded.and_then(|model| {
            plain()
                .filter(|(_, account)| account.next_models().any(|m| m == model))
                .min_by_key(order)
        });
        let nearest = nearest.filter(|near| Some(near.0) != fairest.map(|fair| fair.0));
        let counted = fairest.into_iter().chain(nearest).map(|(tenant, account)| Tenant {
            tenant: *tenant,
            virtual_ms: account.virtual_ms,
            models: account.next_models().collect(),
        });
        let others = ready().filter(|(tenant, _)| avoiding.contains(tenant));
        let others = others.map(|(tenant, account)| Tenant {
            tenant: *tenant,
            virtual_ms: account.virtual_ms,
            models: account.queues.keys().copied().collect(),
        });
        counted.chain(others).collect()
    }

    /// The first ready task of each of these models.
    fn heads(
        &self,
        pool: NameId,
        tenant: NameId,
        models: &[NameId],
        avoid: Option<&str>,
    ) -> Done<Vec<Head<NameId>>> {
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
        let mut heads = Vec::with_capacity(models.len());
        for model in models {
            let found = |row: &Row<'_>| Ok((row.get::<_, u8>(0)?, row.get::<_, i64>(1)?));
            let head = match avoid {
                None => statement.query_row(params![pool, tenant, model], found),
                Some(worker) => statement.query_row(params![pool, tenant, model, worker], found),
            };
            if let Some((rank, seq)) = head.optional()? {
                let priority = Priority::new(5u8.saturating_sub(rank)).unwrap_or_default();
                heads.push(Head { model: *model, priority, seq: unsigned(seq) });
            }
        }
        Ok(heads)
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
        self.store_change(&task, &place, effect, None)?;
        if let Some(worker) = self.memory().workers.get_mut(&claim.by.worker) {
            worker.state = WorkerState::Busy;
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
