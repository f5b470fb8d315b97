//! The writer: one thread, one connection, many operations to a commit.
//!
//! Operations queue up while a commit waits for the disk, and the next transaction takes all of
//! them, and those that come while it runs: so the cost of an fsync is shared by whoever came at
//! the same time, and a lone caller waits for nobody. An answer leaves only after the commit.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use rayreel_domain::id::TaskId;
use rayreel_domain::task::Rules;
use rayreel_domain::tenant::Tenancy;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::memory::Memory;
use super::recent::Recent;
use super::{Error, checkpoint, schema};
use crate::clock::{Clock, Random};
use crate::feed::{Change, Feed};

/// Most operations in one transaction: bounds what one failure takes with it.
const MAX_BATCH: usize = 512;
/// Bytes to write after which a transaction takes no further operation: bounds the log.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// What the writer and its operations work with.
pub(super) struct Context {
    pub(super) path: PathBuf,
    pub(super) epoch: u64,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) random: Arc<Random>,
    pub(super) feed: Arc<Feed>,
    pub(super) rules: Rules,
    pub(super) locality: rayreel_domain::schedule::Locality,
    pub(super) max_queued: u64,
    pub(super) tenancy: Arc<Tenancy>,
    pub(super) garbage_after_ms: u64,
    /// A worker that has not called for so long is not counted on.
    pub(super) worker_silence_ms: u64,
    pub(super) memory: Arc<Mutex<Memory>>,
    pub(super) recent: Recent,
}

/// Why an operation ended without its result.
pub(super) enum Failure {
    /// A decision; what the operation has written so far stands.
    Refused(Error),
    /// The database failed; what the operation has written is undone.
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// What an operation sees. It may change memory as it goes: if it is undone, memory is read anew.
pub(super) struct Tx<'a> {
    pub(super) db: &'a Connection,
    pub(super) ctx: &'a Context,
    pub(super) changes: Vec<Change>,
    /// Tasks that are stored otherwise than before.
    pub(super) rewritten: Vec<TaskId>,
    /// Whom to wake after the commit, besides those whom the changes concern.
    pub(super) wakes: Wakes,
    /// Bytes of tasks so far.
    pub(super) written: usize,
}

/// Who is woken after a commit; waking earlier would let them find nothing.
#[derive(Default)]
pub(super) struct Wakes {
    pub(super) timers: bool,
    pub(super) garbage: bool,
    pub(super) webhooks: bool,
    pub(super) backlog: bool,
    pub(super) pools: Vec<rayreel_domain::PoolName>,
    /// Pools of which every parked claim is woken.
    pub(super) crowds: Vec<rayreel_domain::PoolName>,
    pub(super) workers: Vec<rayreel_domain::WorkerName>,
    /// Workers that are forgotten.
    pub(super) gone: Vec<rayreel_domain::WorkerName>,
}

impl Wakes {
    fn publish(&self, feed: &Feed) {
        for (wanted, notify) in [
            (self.timers, &feed.timers),
            (self.garbage, &feed.garbage),
            (self.webhooks, &feed.webhooks),
            (self.backlog, &feed.backlog),
        ] {
            if wanted {
                notify.notify_one();
            }
        }
        self.pools.iter().for_each(|pool| feed.wake_one(pool));
        self.crowds.iter().for_each(|pool| feed.wake_all(pool));
        self.workers.iter().for_each(|worker| feed.control(worker).notify_waiters());
        self.gone.iter().for_each(|worker| feed.forget(worker));
    }
}

impl Tx<'_> {
    pub(super) fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.ctx.memory.lock().expect("nothing panics while it holds this lock")
    }
}

/// An operation that waits for its turn.
pub(super) trait Job: Send {
    /// Does it; an error means that the whole batch is lost.
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), rusqlite::Error>;
    /// Tells the caller.
    fn finish(self: Box<Self>, batch: Result<(), Error>);
}

struct Call<F, T> {
    work: Option<F>,
    /// It writes in several statements, which must be undone together.
    savepoint: bool,
    answer: Option<Result<T, Error>>,
    reply: oneshot::Sender<Result<T, Error>>,
}

impl<F, T> Job for Call<F, T>
where
    F: FnOnce(&mut Tx<'_>) -> Result<T, Failure> + Send,
    T: Send,
{
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), rusqlite::Error> {
        // Whoever has hung up is not served: a claim without a caller would only run out.
        let Some(work) = self.work.take().filter(|_| !self.reply.is_closed()) else {
            return Ok(());
        };
        if self.savepoint {
            tx.db.prepare_cached("SAVEPOINT op")?.execute([])?;
        }
        let changes = tx.changes.len();
        let answer = match work(tx) {
            Ok(value) => Ok(value),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Sql(error)) if schema::is_fatal(&error) => return Err(error),
            Err(Failure::Sql(error)) => {
                tracing::error!(%error, "an operation on the store failed and was undone");
                tx.changes.truncate(changes);
                if self.savepoint {
                    tx.db.prepare_cached("ROLLBACK TO op")?.execute([])?;
                }
                // Memory may be ahead of the database; the next operation must not build on that.
                reload(tx.db, tx.ctx)?;
                Err(schema::failed(error))
            }
        };
        if self.savepoint {
            tx.db.prepare_cached("RELEASE op")?.execute([])?;
        }
        self.answer = Some(answer);
        Ok(())
    }

    fn finish(self: Box<Self>, batch: Result<(), Error>) {
        let answer = match (batch, self.answer) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(answer)) => answer,
            (Ok(()), None) => return,
        };
        // The caller may have hung up meanwhile; the change stands.
        let _ = self.reply.send(answer);
    }
}

/// Where operations are handed in.
pub(super) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(db: Connection, ctx: Arc<Context>) -> Result<Self, Error> {
        let (jobs, queue) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || work(db, &ctx, &queue))
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `work` in the next transaction and answers once that is on the disk.
    pub(super) async fn call<T, F>(&self, work: F) -> Result<T, Error>
    where
        F: FnOnce(&mut Tx<'_>) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        self.hand_in(true, work).await
    }

    /// Like [`Writer::call`], for an operation of which each statement may stand without the later
    /// ones: it needs no savepoint, which costs a copy of every page that it changes.
    pub(super) async fn append<T, F>(&self, work: F) -> Result<T, Error>
    where
        F: FnOnce(&mut Tx<'_>) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        self.hand_in(false, work).await
    }

    async fn hand_in<T, F>(&self, savepoint: bool, work: F) -> Result<T, Error>
    where
        F: FnOnce(&mut Tx<'_>) -> Result<T, Failure> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Unavailable("the store has stopped".to_owned());
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        let call = Call { work: Some(work), savepoint, answer: None, reply };
        jobs.send(Box::new(call)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The thread ends when it has done what was handed in.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(db: Connection, ctx: &Context, queue: &mpsc::Receiver<Box<dyn Job>>) {
    let mut checkpoints = checkpoint::Checkpoints::start(&ctx.path);
    let mut db = Some(db);
    let mut batch: Vec<Box<dyn Job>> = Vec::with_capacity(MAX_BATCH);
    while let Ok(first) = queue.recv() {
        batch.push(first);
        let done = db.take().map_or_else(|| reopen(ctx), Ok).and_then(|connection| {
            let done = transact(&connection, ctx, &mut batch, queue)?;
            Ok((done, connection))
        });
        match done {
            Ok(((changes, wakes), connection)) => {
                batch.drain(..).for_each(|job| job.finish(Ok(())));
                ctx.feed.publish(&changes);
                wakes.publish(&ctx.feed);
                checkpoints.after_commit(&connection);
                db = Some(connection);
            }
            Err(error) => {
                // Those who wait would meet the same.
                batch.extend(queue.try_iter().take(MAX_BATCH));
                tracing::error!(%error, operations = batch.len(), "the store could not write; the connection is opened anew");
                batch.drain(..).for_each(|job| job.finish(Err(error.clone())));
                // Memory may be ahead of the disk: the next batch starts from the disk again.
                ctx.recent.forget_all();
                db = reopen(ctx).ok();
            }
        }
    }
}

/// One transaction over what is in the batch and who comes while it runs.
fn transact(
    db: &Connection,
    ctx: &Context,
    batch: &mut Vec<Box<dyn Job>>,
    queue: &mpsc::Receiver<Box<dyn Job>>,
) -> Result<(Vec<Change>, Wakes), Error> {
    db.prepare_cached("BEGIN IMMEDIATE")
        .and_then(|mut begin| begin.execute([]))
        .map_err(schema::failed)?;
    let mut tx = Tx {
        db,
        ctx,
        changes: Vec::new(),
        rewritten: Vec::new(),
        wakes: Wakes::default(),
        written: 0,
    };
    let mut next = 0;
    while let Some(job) = batch.get_mut(next) {
        job.run(&mut tx).map_err(schema::failed)?;
        next += 1;
        if next < MAX_BATCH && tx.written < MAX_BATCH_BYTES {
            batch.extend(queue.try_recv());
        }
    }
    let Tx { changes, rewritten, wakes, .. } = tx;
    db.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])).map_err(|error| {
        if schema::is_write_failure(&error) {
            // The end of the transaction could not be written, so the log has none.
            return schema::failed(error);
        }
        // It may still be found on the disk after a crash.
        Error::OutcomeUnknown(error.to_string())
    })?;
    if !changes.is_empty() || !rewritten.is_empty() {
        ctx.recent.forget(&rewritten);
    }
    Ok((changes, wakes))
}

/// A fresh connection to the same file, and memory read from what is on the disk.
fn reopen(ctx: &Context) -> Result<Connection, Error> {
    let db = schema::open_writer(&ctx.path, false)?;
    if schema::epoch(&db).map_err(schema::failed)? != ctx.epoch {
        return Err(Error::Unavailable("its file was replaced by another".to_owned()));
    }
    reload(&db, ctx).map_err(schema::failed)?;
    Ok(db)
}

/// Memory as a restart would find it, and what only memory knows. If it can't be read, memory stays
/// as it is: workers that beat in the meantime must not be told that nobody knows them.
fn reload(db: &Connection, ctx: &Context) -> rusqlite::Result<()> {
    let mut fresh =
        Memory::load(db, Arc::clone(&ctx.tenancy), ctx.clock.monotonic(), ctx.clock.wall().0)?;
    let mut memory = ctx.memory.lock().expect("nothing panics while it holds this lock");
    fresh.adopt(std::mem::take(&mut *memory));
    *memory = fresh;
    drop(memory);
    ctx.recent.forget_all();
    Ok(())
}
