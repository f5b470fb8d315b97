//! The SQLite store: what every store promises, and what concerns only files and threads.

mod busy;
mod disk;
mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rayreel_domain::TaskId;
use rayreel_domain::id::WorkerName;
use rayreel_domain::lease::Fence;
use rayreel_domain::task::{End, Task};
use rayreel_server::feed::Feed;
use rayreel_server::store::Options;
use rayreel_server::store::sqlite::SqliteStore;
use rayreel_server::store::{Claim, Claimed, Error, Identity, Registration, Store};

use crate::conformance::{self, Setup, Stores};

/// Stores in temporary folders.
struct Sqlite;

#[async_trait]
impl Stores for Sqlite {
    type Home = tempfile::TempDir;

    fn home(&self) -> tempfile::TempDir {
        folder()
    }

    async fn open(&self, home: &tempfile::TempDir, setup: &Setup) -> Arc<dyn Store> {
        Arc::new(open(home.path(), setup))
    }
}

#[test]
fn sqlite_does_what_every_store_does() {
    conformance::conforms(&Sqlite);
}

#[test]
fn sqlite_shares_fairly() {
    conformance::runtime().block_on(conformance::shares_fairly(&Sqlite));
}

#[test]
fn sqlite_keeps_keys() {
    conformance::runtime().block_on(conformance::keeps_keys(&Sqlite));
}

#[test]
fn sqlite_lets_contents_go() {
    conformance::runtime().block_on(conformance::lets_contents_go(&Sqlite));
}

#[test]
fn sqlite_keeps_both_frames() {
    conformance::runtime().block_on(conformance::keeps_both_frames(&Sqlite));
}

#[test]
fn sqlite_keeps_places() {
    conformance::runtime().block_on(conformance::keeps_places(&Sqlite));
}

#[test]
fn sqlite_keeps_contents() {
    conformance::runtime().block_on(conformance::keeps_contents(&Sqlite));
}

#[test]
fn sqlite_keeps_files() {
    conformance::runtime().block_on(conformance::keeps_files(&Sqlite));
}

#[test]
fn sqlite_keeps_an_outbox() {
    conformance::runtime().block_on(conformance::keeps_an_outbox(&Sqlite));
}

#[test]
fn sqlite_quarantines() {
    conformance::runtime().block_on(conformance::quarantines(&Sqlite));
}

#[test]
fn sqlite_drains() {
    conformance::runtime().block_on(conformance::drains(&Sqlite));
}

/// A folder in memory, where there is such a place: few tests are about the disk itself.
fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("rayreel-").tempdir_in(place).expect("a folder")
}

fn database(folder: &Path) -> PathBuf {
    folder.join("tasks.db")
}

fn options(setup: &Setup) -> Options {
    Options {
        clock: setup.clock.clone(),
        random: setup.random.clone(),
        feed: Arc::new(Feed::default()),
        rules: setup.rules,
        locality: setup.locality,
        max_queued: setup.max_queued,
        tenancy: Arc::clone(&setup.tenancy),
        garbage_after_ms: setup.garbage_after_ms,
        worker_silence_ms: setup.worker_silence_ms,
    }
}

fn try_open(folder: &Path, setup: &Setup) -> Result<SqliteStore, Error> {
    SqliteStore::open(database(folder), options(setup))
}

fn open(folder: &Path, setup: &Setup) -> SqliteStore {
    try_open(folder, setup).expect("it opens")
}

/// Submits as many tasks at once, and tells which were accepted.
async fn submit(store: &dyn Store, setup: &Setup, count: usize) -> Vec<TaskId> {
    let submits = (0..count).map(|_| store.submit(conformance::task(setup, |_| {})));
    let answers = futures_util::future::join_all(submits).await;
    answers.into_iter().map(|answer| answer.expect("accepted").task.id).collect()
}

async fn has(store: &dyn Store, id: TaskId) -> bool {
    store.get(&conformance::tenant("anna"), id).await.expect("answered").is_some()
}

async fn register(store: &dyn Store, name: &str) -> Identity {
    let worker: WorkerName = conformance::worker(name);
    let pool = conformance::pool("local");
    let registration =
        Registration { worker: worker.clone(), pool, launch: None, version: String::new() };
    Identity { worker, incarnation: store.register(registration).await.expect("registered") }
}

fn asks(by: &Identity, seq: u64) -> Claim {
    Claim { by: by.clone(), seq, holding: Vec::new(), loaded: None, self_test: None, target: None }
}

async fn claim(store: &dyn Store, by: &Identity, seq: u64) -> Option<(Task, Fence)> {
    match store.claim(asks(by, seq)).await.expect("answered") {
        Claimed::Task(task) => {
            let fence = task.fence().expect("running");
            Some((*task, fence))
        }
        _ => None,
    }
}

fn done() -> End {
    End::Commit(conformance::commit(0))
}
