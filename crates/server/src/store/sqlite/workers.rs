//! Workers: who is there, and of which models one may not have tasks for now.

use rayreel_domain::ModelName;
use rayreel_domain::id::{PoolName, WorkerName};
use rayreel_domain::lease::Fence;
use rayreel_domain::task::End;
use rayreel_domain::wire::worker::SelfTest;
use rusqlite::params;

use super::memory::{Quarantine, Worker, WorkerState, signed};
use super::ops::{Done, avoided, body};
use super::writer::Tx;
use super::{Identity, Registration};

/// Failures on so many different tasks of a model in a row quarantine it on the worker.
const QUARANTINE_AFTER: usize = 3;

impl Tx<'_> {
    pub(super) fn register(&mut self, worker: &Registration) -> Done<u64> {
        let incarnation = self.ctx.random.number() >> 12;
        let now = self.ctx.clock.monotonic();
        let (pool, launch) = (worker.pool.clone(), worker.launch.clone());
        let mut record = Worker::new(incarnation, pool, launch, worker.version.clone(), now);
        {
            let memory = self.memory();
            if memory.lease_of(&worker.worker).is_some() {
                record.state = WorkerState::Busy;
            }
            // To come back is neither to be healthy again nor to be wanted again.
            let known = memory.workers.get(&worker.worker).filter(|w| w.pool == worker.pool);
            record.quarantine = known.map(|w| w.quarantine.clone()).unwrap_or_default();
            record.draining = known.is_some_and(|w| w.draining);
        }
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO workers
                 (name, incarnation, pool, launch, quarantine, version, draining)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                worker.worker.as_str(),
                signed(incarnation),
                worker.pool.as_str(),
                worker.launch,
                Quarantine::text(&record.quarantine),
                record.version,
                record.draining,
            ])?;
        self.memory().workers.insert(worker.worker.clone(), record);
        self.wakes.workers.push(worker.worker.clone());
        self.wakes.backlog = true;
        Ok(incarnation)
    }

    pub(super) fn deregister(&mut self, by: &Identity) -> Done<()> {
        let now = self.ctx.clock.monotonic();
        let fence = {
            let mut memory = self.memory();
            if memory.worker(by, now).is_none() {
                return Ok(());
            }
            memory.lease_of(&by.worker).map(|live| live.fence)
        };
        if let Some(fence) = fence {
            self.end(fence, End::Vanish, false)?;
        }
        self.db
            .prepare_cached("DELETE FROM workers WHERE name = ?1 AND incarnation = ?2")?
            .execute(params![by.worker.as_str(), signed(by.incarnation)])?;
        let pool = self.memory().workers.remove(&by.worker).map(|worker| worker.pool);
        self.wakes.gone.push(by.worker.clone());
        self.wakes.backlog = true;
        if let Some(pool) = pool {
            // What avoided this worker may now be free for another.
            self.wakes.pools.push(pool);
        }
        Ok(())
    }

    pub(super) fn drain_worker(&mut self, name: &WorkerName) -> Done<bool> {
        let pool = match self.memory().workers.get_mut(name) {
            None => return Ok(false),
            Some(worker) => {
                worker.draining = true;
                worker.pool.clone()
            }
        };
        self.db
            .prepare_cached("UPDATE workers SET draining = 1 WHERE name = ?1")?
            .execute([name.as_str()])?;
        // Its claim, if one is parked, is answered; and what avoids it has no elsewhere any more.
        self.wakes.crowds.push(pool);
        self.wakes.backlog = true;
        Ok(true)
    }

    pub(super) fn drain_pool(&mut self, pool: &PoolName, drained: bool) -> Done<()> {
        let sql = match drained {
            true => "INSERT OR IGNORE INTO drained_pools (name) VALUES (?1)",
            false => "DELETE FROM drained_pools WHERE name = ?1",
        };
        self.db.prepare_cached(sql)?.execute([pool.as_str()])?;
        if drained {
            self.memory().drained.insert(pool.clone());
        } else {
            self.memory().drained.remove(pool);
            self.wakes.crowds.push(pool.clone());
        }
        self.wakes.backlog = true;
        Ok(())
    }

    /// Takes a worker's self-test: the model is free again, or is tested again later.
    pub(super) fn self_test(&mut self, by: &Identity, test: &SelfTest) -> Done<()> {
        let now = self.ctx.clock.monotonic();
        let text = {
            let mut memory = self.memory();
            let Some(worker) = memory.workers.get_mut(&by.worker) else { return Ok(()) };
            let tested = worker.quarantine.iter().position(|q| q.model == test.model);
            let Some(tested) = tested else { return Ok(()) };
            if test.failure.is_some() {
                worker.quarantine[tested].postpone(now);
                return Ok(());
            }
            worker.quarantine.remove(tested);
            Quarantine::text(&worker.quarantine)
        };
        tracing::info!(worker = %by.worker, model = %test.model, "out of quarantine after a self-test");
        self.store_quarantine(&by.worker, text)
    }

    fn store_quarantine(&self, worker: &WorkerName, text: Option<String>) -> Done<()> {
        self.db
            .prepare_cached("UPDATE workers SET quarantine = ?2 WHERE name = ?1")?
            .execute(params![worker.as_str(), text])?;
        Ok(())
    }

    /// Keeps the worker's record of failures in a row. At the third of a model, the model is
    /// quarantined on this worker, and they are excused: true then.
    pub(super) fn judge(
        &mut self,
        worker: &WorkerName,
        model: &ModelName,
        fence: Fence,
        verdict: Verdict,
    ) -> Done<bool> {
        let now = self.ctx.clock.monotonic();
        let (failures, text) = {
            let mut memory = self.memory();
            let Some(record) = memory.workers.get_mut(worker) else { return Ok(false) };
            let message = match verdict {
                Verdict::Neither => return Ok(false),
                Verdict::Works => {
                    record.failures.remove(model);
                    return Ok(false);
                }
                Verdict::Broken(message) => message,
            };
            let failures = record.failures.entry(model.clone()).or_default();
            failures.retain(|failed| failed.task != fence.task);
            failures.push(fence);
            let known = record.quarantine.iter().any(|q| q.model == *model);
            if failures.len() < QUARANTINE_AFTER || known {
                return Ok(false);
            }
            tracing::warn!(%worker, %model, message, "quarantined: the engine failed on {QUARANTINE_AFTER} tasks in a row");
            let model = model.clone();
            let failures = record.failures.remove(&model).unwrap_or_default();
            record.quarantine.push(Quarantine { model, message, failed_tests: 0, due: now });
            (failures, Quarantine::text(&record.quarantine))
        };
        for failed in failures {
            let Some((mut task, place)) = self.load(failed.task)? else { continue };
            if task.excuse(failed) {
                self.rewritten.push(task.id);
                self.db
                    .prepare_cached("UPDATE tasks SET avoid = ?2, body = ?3 WHERE seq = ?1")?
                    .execute(params![place.seq, avoided(&task), body(&task)])?;
            }
        }
        self.store_quarantine(worker, text)?;
        Ok(true)
    }
}

/// What the end of an attempt says of the engine that made it.
pub(super) enum Verdict {
    Works,
    Broken(String),
    Neither,
}
