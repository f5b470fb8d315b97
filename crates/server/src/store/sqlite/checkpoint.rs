//! Keeps the write-ahead log short without making the writer wait: another thread copies pages
//! into the database while the writer goes on, and only when the log has grown to its cap does the
//! writer itself copy the rest, so that the log starts from its beginning again.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use rusqlite::Connection;

use super::schema;

/// A page in the log, with its header.
const FRAME: u64 = 4096 + 24;
/// The thread is woken when so much of the log is not copied yet.
const STEP: u64 = (4 << 20) / FRAME;
/// The writer copies the rest itself when the log is so long: with the largest transaction on top
/// it stays below 64 MB.
const CAP: u64 = (44 << 20) / FRAME;

pub(super) struct Checkpoints {
    wake: Option<mpsc::SyncSender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    /// One checkpoint at a time: a second one would be refused.
    turn: Arc<Mutex<()>>,
    /// Length of the log at which the thread was last woken, in frames.
    woken_at: u64,
    /// The writer tries from here on; later, if a reader did not let it.
    cap: u64,
}

/// How far the log is, in frames.
struct Log {
    written: u64,
    copied: u64,
}

impl Checkpoints {
    pub(super) fn start(path: &Path) -> Self {
        let (wake, woken) = mpsc::sync_channel::<()>(1);
        let turn = Arc::new(Mutex::new(()));
        let (database, turns) = (path.to_owned(), Arc::clone(&turn));
        let thread = thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn(move || {
                while woken.recv().is_ok() {
                    let _turn = turns.lock().expect("nothing panics while it holds this lock");
                    // A connection of its own for each turn: it holds no pages while idle.
                    let done = schema::open_other(&database, true).and_then(|db| {
                        checkpoint(&db, "PRAGMA wal_checkpoint(PASSIVE)").map_err(schema::failed)
                    });
                    if let Err(error) = done {
                        tracing::warn!(%error, "a checkpoint of the store failed; it is tried again");
                    }
                }
            })
            .ok();
        Self { wake: Some(wake), thread, turn, woken_at: 0, cap: CAP }
    }

    /// Looks at the log.
    pub(super) fn after_commit(&mut self, db: &Connection) {
        // Copies nothing and waits for nobody.
        let Ok(Some(log)) = checkpoint(db, "PRAGMA wal_checkpoint(NOOP)") else { return };
        if log.written < self.woken_at {
            // The log has started again.
            (self.woken_at, self.cap) = (0, CAP);
        }
        if log.written >= self.cap {
            let _turn = self.turn.lock().expect("nothing panics while it holds this lock");
            // Waits for readers that need the log; they are short.
            match checkpoint(db, "PRAGMA wal_checkpoint(RESTART)") {
                Ok(Some(_)) => self.cap = CAP,
                // Somebody reads for long, a backup perhaps: not again at each commit.
                Ok(None) => self.cap = log.written + STEP,
                Err(error) => {
                    tracing::warn!(%error, "the store's log could not be shortened; it is tried again");
                    self.cap = log.written + STEP;
                }
            }
        } else if log.written >= log.copied.max(self.woken_at) + STEP {
            self.woken_at = log.written;
            if let Some(wake) = &self.wake {
                // Full: the thread has not yet seen the last one.
                let _ = wake.try_send(());
            }
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// None if somebody was in the way.
fn checkpoint(db: &Connection, pragma: &str) -> rusqlite::Result<Option<Log>> {
    db.prepare_cached(pragma)?.query_row([], |row| {
        let (busy, written, copied): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let frames = |n: i64| u64::try_from(n).unwrap_or(0);
        Ok((busy == 0).then(|| Log { written: frames(written), copied: frames(copied) }))
    })
}
