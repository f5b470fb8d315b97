//! Workers: who is there, and who may not have tasks for now.

use rayreel_domain::ModelName;
use rayreel_domain::id::WorkerName;
use rayreel_domain::lease::Fence;
use rayreel_domain::task::End;
use rayreel_domain::wire::worker::SelfTest;
use rusqlite::params;

use super::memory::{Quarantine, Worker, WorkerState, signed};
use super::ops::{Done, avoided, body};
use super::writer::Tx;
use super::{Identity, Registration};

/// Failures on so many different tasks in a row quarantine a worker.
const QUARANTINE_AFTER: usize = 3;

impl Tx<'_> {
    pub(super) fn register(&mut self, worker: &Registration) -> Done<u64> {
        let incarnation = self.ctx.random.number() >> 12;
        let now = self.ctx.clock.monotonic();
        let mut record = Worker::new(incarnation, worker.pool.clone(), worker.launch.clone(), now);
        {
            let memory = self.memory();
            if memory.lease_of(&worker.worker).is_some() {
                record.state = WorkerState::Busy;
            }
            // To come back is not to be healthy again.
            let known = memory.workers.get(&worker.worker).filter(|w| w.pool == worker.pool);
            record.quarantine = known.and_then(|w| w.quarantine.clone());
        }
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO workers (name, incarnation, pool, launch, quarantine)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                worker.worker.as_str(),
                signed(incarnation),
                worker.pool.as_str(),
                worker.launch,
                record.quarantine.as_ref().map(Quarantine::text),
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

    /// Takes a worker's self-test; true if it may have tasks now.
    pub(super) fn self_test(&mut self, by: &Identity, test: Option<&SelfTest>) -> Done<bool> {
        if test != Some(&SelfTest::Passed) {
            return Ok(false);
        }
        self.db
            .prepare_cached("UPDATE workers SET quarantine = NULL WHERE name = ?1")?
            .execute([by.worker.as_str()])?;
        tracing::info!(worker = %by.worker, "worker out of quarantine: its self-test passed");
        if let Some(worker) = self.memory().workers.get_mut(&by.worker) {
            worker.quarantine = None;
        }
        Ok(true)
    }

    /// Keeps the worker's record of failures in a row. At the third it is quarantined, and they are
    /// counted as losses: true then.
    pub(super) fn judge(
        &mut self,
        worker: &WorkerName,
        fence: Fence,
        succeeded: bool,
        blamed: Option<(ModelName, String)>,
    ) -> Done<bool> {
        let (failures, quarantine) = {
            let mut memory = self.memory();
            let Some(record) = memory.workers.get_mut(worker) else { return Ok(false) };
            if succeeded {
                record.failures.clear();
            }
            let Some((model, message)) = blamed else { return Ok(false) };
            record.failures.retain(|f| f.task != fence.task);
            record.failures.push(fence);
            if record.failures.len() < QUARANTINE_AFTER || record.quarantine.is_some() {
                return Ok(false);
            }
            (record.failures.clone(), Quarantine { model, message })
        };
        for failed in failures {
            let Some((mut task, place)) = self.load(failed.task)? else { continue };
            if task.recount(failed) {
                self.db
                    .prepare_cached("UPDATE tasks SET avoid = ?2, body = ?3 WHERE seq = ?1")?
                    .execute(params![place.seq, avoided(&task), body(&task)])?;
            }
        }
        self.db
            .prepare_cached("UPDATE workers SET quarantine = ?2 WHERE name = ?1")?
            .execute(params![worker.as_str(), quarantine.text()])?;
        tracing::warn!(%worker, message = quarantine.message, "worker quarantined: its engine failed on {QUARANTINE_AFTER} tasks in a row");
        if let Some(record) = self.memory().workers.get_mut(worker) {
            record.failures.clear();
            record.quarantine = Some(quarantine);
        }
        Ok(true)
    }
}
