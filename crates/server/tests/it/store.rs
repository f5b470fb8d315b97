//! The SQLite store: what every store promises, and what concerns only files.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rayreel_server::feed::Feed;
use rayreel_server::store::Store;
use rayreel_server::store::sqlite::{Options, SqliteStore};

use crate::conformance::{self, Setup, Stores};

/// Stores in temporary folders.
struct Sqlite;

/// In memory where there is such a place: conformance is not about the disk.
fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("rayreel-").tempdir_in(place).expect("a folder")
}

fn options(setup: &Setup) -> Options {
    Options {
        clock: setup.clock.clone(),
        random: setup.random.clone(),
        feed: Arc::new(Feed::default()),
        rules: setup.rules,
        locality: setup.locality,
        max_queued: setup.max_queued,
        garbage_after_ms: setup.garbage_after_ms,
        worker_silence_ms: setup.worker_silence_ms,
    }
}

#[async_trait]
impl Stores for Sqlite {
    type Home = tempfile::TempDir;

    fn home(&self) -> tempfile::TempDir {
        folder()
    }

    async fn open(&self, home: &tempfile::TempDir, setup: &Setup) -> Arc<dyn Store> {
        let path = home.path().join("tasks.db");
        Arc::new(SqliteStore::open(path, options(setup)).expect("it opens"))
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
