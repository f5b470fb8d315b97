//! Tasks that were read lately. Clients ask for the same few again and again, and between two
//! questions seldom has anything changed: so they are answered without the database.
//!
//! The writer forgets what it has changed after the commit and before it answers, so whoever knows
//! of a change reads it. A read that overlaps with a commit is not kept: its place in the cache,
//! taken before the row is read, is gone by then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::{Cache, GuardResult};
use rayreel_domain::id::TaskId;
use rayreel_domain::task::Task;

use super::memory::Place;

/// Bytes of tasks that are kept, as they are stored; in memory each takes about twice that.
const KEPT_BYTES: u64 = 4 << 20;
/// What a task takes besides.
const OVERHEAD: usize = 512;

pub(super) struct Recent {
    tasks: Cache<TaskId, Arc<Seen>, Bytes>,
    /// Counts what may have changed positions in the queue.
    moves: AtomicU64,
}

/// A task as it was read.
pub(super) struct Seen {
    pub(super) task: Arc<Task>,
    pub(super) place: Place,
    /// Length of the stored task.
    pub(super) bytes: usize,
    /// Its position, and after which move that was.
    position: Mutex<Option<(u64, u64)>>,
}

impl Seen {
    pub(super) fn new(task: Task, place: Place, bytes: usize) -> Self {
        Self { task: Arc::new(task), place, bytes, position: Mutex::new(None) }
    }
}

#[derive(Clone)]
struct Bytes;

impl Weighter<TaskId, Arc<Seen>> for Bytes {
    fn weight(&self, _: &TaskId, seen: &Arc<Seen>) -> u64 {
        (seen.bytes + OVERHEAD) as u64
    }
}

impl Recent {
    pub(super) fn new() -> Self {
        let typical = KEPT_BYTES as usize / (2 * OVERHEAD);
        Self { tasks: Cache::with_weighter(typical, KEPT_BYTES, Bytes), moves: AtomicU64::new(0) }
    }

    /// The task, from memory or as `read` finds it.
    pub(super) fn get<E>(
        &self,
        id: TaskId,
        read: impl FnOnce() -> Result<Option<Seen>, E>,
    ) -> Result<Option<Arc<Seen>>, E> {
        match self.tasks.get_value_or_guard(&id, Some(Duration::ZERO)) {
            GuardResult::Value(seen) => Ok(Some(seen)),
            GuardResult::Guard(guard) => {
                let seen = read()?.map(Arc::new);
                if let Some(seen) = &seen {
                    // Refused if the task was forgotten meanwhile.
                    let _ = guard.insert(Arc::clone(seen));
                }
                Ok(seen)
            }
            // Another reader is at it.
            GuardResult::Timeout => Ok(read()?.map(Arc::new)),
        }
    }

    /// The task's position, counted anew if something has moved since it was counted last.
    pub(super) fn position<E>(
        &self,
        seen: &Seen,
        count: impl FnOnce() -> Result<u64, E>,
    ) -> Result<u64, E> {
        let known = || seen.position.lock().expect("nothing panics while it holds this lock");
        let moves = self.moves.load(Ordering::Acquire);
        if let Some((at, position)) = *known()
            && at == moves
        {
            return Ok(position);
        }
        let position = count()?;
        *known() = Some((moves, position));
        Ok(position)
    }

    /// These tasks have changed, and with them the queue.
    pub(super) fn forget(&self, changed: &[TaskId]) {
        for id in changed {
            self.tasks.remove(id);
        }
        self.moves.fetch_add(1, Ordering::AcqRel);
    }

    /// Nobody knows what has changed.
    pub(super) fn forget_all(&self) {
        self.tasks.clear();
        self.moves.fetch_add(1, Ordering::AcqRel);
    }
}
