//! The embedded store: SQLite in WAL mode with `synchronous = FULL`, one writer thread with group
//! commit, reads on their own connections.
//!
//! One row a task, no event rows: the history of states lies in the task. A claim reads an index
//! and never loads the queue. See `docs/design/store.md` for what each decision bought.

mod check;
mod checkpoint;
mod claim;
mod delivery;
mod inputs;
mod log;
mod memory;
mod ops;
mod read;
mod recent;
mod schema;
mod submit;
#[cfg(test)]
mod tests;
mod views;
mod workers;
mod writer;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rayreel_domain::file::FileRecord;
use rayreel_domain::id::{FileId, PoolName, TaskId, TenantName, WorkerName};
use rayreel_domain::key::KeyRecord;
use rayreel_domain::lease::Fence;
use rayreel_domain::request::Input;
use rayreel_domain::task::{End, Idempotency, Task};
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::{Delivery, Report};
use rayreel_domain::wire::worker::{Beaten, Progress};
use rusqlite::{Connection, params};
use serde::de::DeserializeOwned;

use super::{
    Activity, Backlog, Cancelled, Claim, Claimed, Demand, Error, FilePage, FileQuery, Garbage,
    Identity, Launch, LeaseView, ListQuery, Options, Page, Ready, Registration, Room, Store,
    Submitted, Taken, TenantUse, View, WorkerView,
};
use crate::signing::Secret;
use memory::Memory;
use read::Readers;
use recent::Recent;
use writer::{Context, Writer};

/// A store in one file.
pub struct SqliteStore {
    ctx: Arc<Context>,
    // Dropped before the writer: the connection that is closed last folds the log into the file,
    // and those that only read may not.
    readers: Readers,
    writer: Writer,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.ctx.path).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens the file, creating or migrating it. Only one process may have it open: see
    /// [`crate::home`].
    pub fn open(path: impl Into<PathBuf>, options: Options) -> Result<Self, Error> {
        let path = path.into();
        let db = schema::open_writer(&path, true)?;
        Self::start(db, path, options)
    }

    fn start(db: Connection, path: PathBuf, options: Options) -> Result<Self, Error> {
        schema::begin_epoch(&db, options.random.number() >> 12).map_err(schema::failed)?;
        let epoch = schema::epoch(&db).map_err(schema::failed)?;
        memory::count_graces(&db).map_err(schema::failed)?;
        let (now, wall) = (options.clock.monotonic(), options.clock.wall());
        let memory =
            Memory::load(&db, Arc::clone(&options.tenancy), now, wall.0).map_err(schema::failed)?;
        let memory = Arc::new(Mutex::new(memory));
        let ctx = Arc::new(Context {
            path: path.clone(),
            epoch,
            clock: options.clock,
            random: options.random,
            feed: options.feed,
            rules: options.rules,
            locality: options.locality,
            max_queued: options.max_queued,
            tenancy: options.tenancy,
            garbage_after_ms: options.garbage_after_ms,
            worker_silence_ms: options.worker_silence_ms,
            memory: Arc::clone(&memory),
            recent: Recent::new(),
        });
        let writer = Writer::start(db, Arc::clone(&ctx))?;
        Ok(Self { readers: Readers::new(Arc::clone(&ctx)), ctx, writer })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.ctx.memory.lock().expect("nothing panics while it holds this lock")
    }

    /// Rows that are JSON, all of them.
    fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<serde_json::Result<T>>, Error> {
        self.readers.with(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|text| Ok(serde_json::from_str(&text?))).collect()
        })
    }

    /// Why a fence is not live: cancelled, or lost.
    fn gone(&self, fence: Fence) -> Result<Beaten, Error> {
        let task = self.readers.get(fence.task)?.map(|view| view.task);
        Ok(match task.map(|task| task.check(fence)) {
            Some(Ok(())) => Beaten::Continue,
            Some(Err(rayreel_domain::task::Refusal::Stale { cancelled: true })) => {
                Beaten::Cancelled
            }
            _ => Beaten::Lost,
        })
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn epoch(&self) -> u64 {
        self.ctx.epoch
    }

    async fn submit(&self, task: Task) -> Result<Submitted, Error> {
        let task = (ops::body(&task), task);
        self.writer.append(move |tx| tx.submit(task)).await
    }

    async fn submit_all(&self, tasks: Vec<Task>) -> Result<Vec<Submitted>, Error> {
        let tasks = tasks.into_iter().map(|task| (ops::body(&task), task)).collect();
        self.writer.call(move |tx| tx.submit_all(tasks)).await
    }

    async fn admits(&self, demand: Demand) -> Result<(), Error> {
        // Among the submits, so that it counts those which are about to be written.
        self.writer.call(move |tx| tx.admits(&demand)).await
    }

    async fn repeated(
        &self,
        tenant: &TenantName,
        asked: &Idempotency,
    ) -> Result<Option<Vec<View>>, Error> {
        self.readers.repeated(tenant, asked, self.ctx.clock.wall())
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, Error> {
        self.writer.call(move |tx| tx.claim(&claim)).await
    }

    async fn beat(
        &self,
        by: &Identity,
        fence: Fence,
        progress: Option<Progress>,
    ) -> Result<Beaten, Error> {
        let now = self.ctx.clock.monotonic();
        let settled = {
            let mut memory = self.memory();
            if memory.worker(by, now).is_none() {
                return Err(Error::StaleWorker);
            }
            match memory.live.get_mut(&fence.task).filter(|live| live.fence == fence) {
                None => None,
                Some(live) => {
                    live.beats += 1;
                    if progress.is_some() {
                        live.progress = progress;
                    }
                    Some(live.confirmed && live.graces == 0)
                }
            }
        };
        match settled {
            None => return self.gone(fence),
            Some(true) => {}
            Some(false) => match self.writer.call(move |tx| tx.confirm(fence)).await {
                Err(Error::StaleLease { .. }) => return self.gone(fence),
                other => other?,
            },
        }
        self.ctx.feed.progress(fence.task);
        Ok(Beaten::Continue)
    }

    async fn held(&self, fence: Fence) -> Result<Beaten, Error> {
        if self.memory().live.get(&fence.task).is_some_and(|live| live.fence == fence) {
            return Ok(Beaten::Continue);
        }
        self.gone(fence)
    }

    async fn end(&self, by: &Identity, fence: Fence, end: End) -> Result<Task, Error> {
        let by = by.clone();
        self.writer.call(move |tx| tx.end_by(&by, fence, end)).await
    }

    async fn reclaim(&self, fence: Fence, beats: u64, end: End) -> Result<bool, Error> {
        self.writer.call(move |tx| tx.reclaim(fence, beats, end)).await
    }

    async fn cancel(&self, tenant: &TenantName, id: TaskId) -> Result<Cancelled, Error> {
        let tenant = tenant.clone();
        self.writer.call(move |tx| tx.cancel(&tenant, id, false)).await
    }

    async fn withdraw(&self, tenant: &TenantName, ids: Vec<TaskId>) -> Result<(), Error> {
        let tenant = tenant.clone();
        self.writer.call(move |tx| tx.withdraw(&tenant, &ids)).await
    }

    async fn delete(&self, tenant: &TenantName, id: TaskId) -> Result<Cancelled, Error> {
        let tenant = tenant.clone();
        self.writer.call(move |tx| tx.cancel(&tenant, id, true)).await
    }

    async fn get(&self, tenant: &TenantName, id: TaskId) -> Result<Option<View>, Error> {
        Ok(self.readers.get(id)?.filter(|view| view.task.tenant == *tenant))
    }

    async fn leased(&self, fence: Fence) -> Result<Task, Error> {
        let task = self.readers.get(fence.task)?.map(|view| view.task);
        let task = task.ok_or(Error::StaleLease { cancelled: false })?;
        match task.check(fence) {
            Ok(()) => Ok(Arc::unwrap_or_clone(task)),
            Err(rayreel_domain::task::Refusal::Stale { cancelled }) => {
                Err(Error::StaleLease { cancelled })
            }
            Err(_) => Err(Error::StaleLease { cancelled: false }),
        }
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        self.readers.list(query)
    }

    async fn register(&self, worker: Registration) -> Result<u64, Error> {
        self.writer.call(move |tx| tx.register(&worker)).await
    }

    async fn deregister(&self, by: &Identity) -> Result<(), Error> {
        let by = by.clone();
        self.writer.call(move |tx| tx.deregister(&by)).await
    }

    async fn workers(&self) -> Result<Vec<WorkerView>, Error> {
        Ok(self.memory().worker_views(self.ctx.clock.monotonic()))
    }

    async fn drain_worker(&self, worker: &WorkerName) -> Result<bool, Error> {
        let worker = worker.clone();
        self.writer.call(move |tx| tx.drain_worker(&worker)).await
    }

    async fn drain_pool(&self, pool: &PoolName, drained: bool) -> Result<(), Error> {
        let pool = pool.clone();
        self.writer.call(move |tx| tx.drain_pool(&pool, drained)).await
    }

    async fn drained_pools(&self) -> Result<BTreeSet<PoolName>, Error> {
        Ok(self.memory().drained.clone())
    }

    async fn leases(&self) -> Result<Vec<LeaseView>, Error> {
        Ok(self.memory().leases(self.ctx.clock.monotonic()))
    }

    async fn advance(&self) -> Result<Option<Timestamp>, Error> {
        self.writer.call(|tx| tx.advance()).await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, Error> {
        Ok(self.memory().backlog())
    }

    async fn usage(&self) -> Result<Vec<TenantUse>, Error> {
        let files = self.readers.with(views::file_bytes)?;
        let mono_ms = memory::millis(self.ctx.clock.monotonic());
        let today = self.ctx.clock.wall().0 / ops::DAY_MS;
        let memory = self.memory();
        let mut uses = memory.uses(mono_ms, today);
        for (tenant, bytes) in files {
            uses.entry(tenant).or_default().file_bytes = bytes;
        }
        Ok(memory.named(uses))
    }

    async fn put_key(&self, key: KeyRecord) -> Result<(), Error> {
        self.writer
            .call(move |tx| {
                let body = serde_json::to_string(&key).unwrap_or_default();
                tx.db
                    .prepare_cached("INSERT OR REPLACE INTO keys (id, body) VALUES (?1, ?2)")?
                    .execute(params![key.id, body])?;
                Ok(())
            })
            .await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, Error> {
        // One that is left out might be the only one, and without keys the door is open.
        let rows = self.rows("SELECT body FROM keys ORDER BY id")?.into_iter();
        rows.collect::<Result<_, _>>().map_err(|error| Error::Corrupt(format!("a key: {error}")))
    }

    async fn hold_input(&self, tenant: &TenantName, input: Input) -> Result<Input, Error> {
        let tenant = tenant.clone();
        self.writer.call(move |tx| tx.hold_input(&tenant, input)).await
    }

    async fn release_input(&self, tenant: &TenantName, input: Input) -> Result<(), Error> {
        let tenant = tenant.clone();
        self.writer.call(move |tx| tx.release_input(&tenant, &input)).await
    }

    async fn admits_file(&self, tenant: &TenantName, bytes: u64, most: u64) -> Result<(), Error> {
        self.readers.admits_file(tenant, bytes, most, self.ctx.clock.wall())
    }

    async fn put_file(&self, file: FileRecord, most: u64) -> Result<(), Error> {
        self.writer.call(move |tx| tx.put_file(&file, most)).await
    }

    async fn file(&self, tenant: &TenantName, id: FileId) -> Result<Option<FileRecord>, Error> {
        self.readers.file(tenant, id, self.ctx.clock.wall())
    }

    async fn files(&self, query: &FileQuery) -> Result<FilePage, Error> {
        self.readers.files(query, self.ctx.clock.wall())
    }

    async fn delete_file(&self, tenant: &TenantName, id: FileId) -> Result<bool, Error> {
        let tenant = tenant.clone();
        self.writer.call(move |tx| tx.delete_file(&tenant, id)).await
    }

    async fn take_deliveries(&self, room: &Room) -> Result<Taken, Error> {
        let now = self.ctx.clock.wall();
        let (found, next) = self.readers.due_deliveries(room, now)?;
        if found.is_empty() {
            return Ok(Taken { deliveries: Vec::new(), next });
        }
        let hold_ms = room.hold_ms;
        let deliveries = self.writer.call(move |tx| tx.take_deliveries(&found, hold_ms)).await?;
        Ok(Taken { deliveries, next })
    }

    async fn report_delivery(&self, id: TaskId, number: u32, report: Report) -> Result<(), Error> {
        self.writer.call(move |tx| tx.report_delivery(id, number, report)).await
    }

    async fn redeliver(&self, tenant: &TenantName, id: TaskId) -> Result<Delivery, Error> {
        let tenant = tenant.clone();
        self.writer.call(move |tx| tx.redeliver(&tenant, id)).await
    }

    async fn owner(&self, id: TaskId) -> Result<Option<TenantName>, Error> {
        Ok(self.readers.get(id)?.map(|view| view.task.tenant.clone()))
    }

    async fn secret(&self, name: &str, fresh: Secret) -> Result<Secret, Error> {
        if let Some(secret) = self.readers.with(|db| delivery::secret(db, name))? {
            return Ok(secret);
        }
        let name = name.to_owned();
        self.writer.call(move |tx| tx.secret(&name, fresh)).await
    }

    async fn rotate_secret(&self, name: &str, fresh: Secret, ms: u64) -> Result<Secret, Error> {
        let name = name.to_owned();
        self.writer.call(move |tx| tx.rotate_secret(&name, fresh, ms)).await
    }

    async fn put_launch(&self, launch: Launch) -> Result<(), Error> {
        self.writer
            .call(move |tx| {
                let body = serde_json::to_string(&launch).unwrap_or_default();
                tx.db
                    .prepare_cached("INSERT OR REPLACE INTO launches (id, body) VALUES (?1, ?2)")?
                    .execute(params![launch.id, body])?;
                Ok(())
            })
            .await
    }

    async fn remove_launch(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.writer
            .call(move |tx| {
                tx.db.prepare_cached("DELETE FROM launches WHERE id = ?1")?.execute([id])?;
                Ok(())
            })
            .await
    }

    async fn launches(&self) -> Result<Vec<Launch>, Error> {
        let readable = |row: serde_json::Result<Launch>| {
            row.inspect_err(|error| tracing::error!(%error, "a stored launch can't be read")).ok()
        };
        Ok(self
            .rows("SELECT body FROM launches ORDER BY id")?
            .into_iter()
            .filter_map(readable)
            .collect())
    }

    async fn garbage(&self, limit: u32) -> Result<Vec<Garbage>, Error> {
        let now = memory::signed(self.ctx.clock.wall().0);
        self.readers.with(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, folder FROM garbage WHERE not_before <= ?1
                 ORDER BY not_before LIMIT ?2",
            )?;
            let rows = statement.query_map(params![now, limit], |row| {
                Ok(Garbage { id: row.get(0)?, folder: row.get(1)? })
            })?;
            rows.collect()
        })
    }

    async fn collected(&self, ids: &[i64]) -> Result<(), Error> {
        let ids = ids.to_vec();
        self.writer
            .call(move |tx| {
                let mut delete = tx.db.prepare_cached("DELETE FROM garbage WHERE id = ?1")?;
                for id in ids {
                    delete.execute([id])?;
                }
                Ok(())
            })
            .await
    }

    async fn lead(&self, _duty: &str, _server: &str, _ms: u64) -> Result<bool, Error> {
        Ok(true)
    }

    fn is_shared(&self) -> bool {
        false
    }

    async fn check(&self) -> Result<Vec<String>, Error> {
        let (mut faults, mut more) = self.readers.check(0)?;
        while let Some(last) = more {
            tokio::task::yield_now().await;
            let (next, rest) = self.readers.check(last)?;
            faults.extend(next);
            more = rest;
        }
        faults.extend(self.writer.call(|tx| Ok(tx.check_memory()?)).await?);
        Ok(faults)
    }
}
