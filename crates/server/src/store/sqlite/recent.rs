//! Tasks that were read lately. Clients ask for the same few again and again, and between two
//! questions seldom has anything changed: so they are answered without the database.
//!
//! The writer forgets what it has changed after the commit and before it answers, so whoever knows
//! of a change reads it. A read that overlaps with a commit is not kept: its place in the cache,
//! taken before the row is read, is gone by then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::{Cache, GuardResult};
use rayreel_domain::id::TaskId;
use rayreel_domain::task::Task;

use super::memory::{NameId, Place, unsigned};

/// Bytes of tasks that are kept, as they are stored; in memory each takes about twice that.
const KEPT_BYTES: u64 = 4 << 20;
/// What a task takes besides.
const OVERHEAD: usize = 512;

pub(super) struct Recent {
    tasks: Cache<TaskId, Arc<Seen>, Bytes>,
    /// Counts what may have changed positions in the queue.
    moves: AtomicU64,
    /// The lines that were looked at since that move.
    lines: Mutex<(u64, HashMap<LineId, Arc<Line>>)>,
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

/// Ready tasks of one pool, tenant, model and rank: they start in the order of their submission.
pub(super) type LineId = (NameId, NameId, NameId, u8);

/// How a task's place in such a line is found.
pub(super) enum Line {
    /// The order of every task.
    Few(Vec<i64>),
    /// The ends; between them it is interpolated.
    Many { first: i64, last: i64, count: u64 },
}

impl Line {
    /// Tasks of the line that were submitted before this one.
    pub(super) fn ahead(&self, seq: i64) -> u64 {
        match self {
            Self::Few(line) => line.partition_point(|other| *other < seq) as u64,
            Self::Many { first, last, count } => {
                let span = u128::from(unsigned(last - first).max(1));
                let passed = u128::from(unsigned(seq - first)).min(span);
                (u128::from(*count) * passed / span) as u64
            }
        }
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
        Self {
            tasks: Cache::with_weighter(typical, KEPT_BYTES, Bytes),
            moves: AtomicU64::new(0),
            lines: Mutex::default(),
        }
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

    /// The line, as it was `read` after the newest move.
    pub(super) fn line<E>(
        &self,
        id: LineId,
        read: impl FnOnce() -> Result<Line, E>,
    ) -> Result<Arc<Line>, E> {
        let lines = || self.lines.lock().expect("nothing panics while it holds this lock");
        let moves = self.moves.load(Ordering::Acquire);
        let known = Some(lines()).filter(|lines| lines.0 == moves);
        if let Some(line) = known.and_then(|lines| lines.1.get(&id).cloned()) {
            return Ok(line);
        }
        let line = Arc::new(read()?);
        let mut lines = lines();
        if lines.0 < moves {
            *lines = (moves, HashMap::new());
        }
        if lines.0 == moves {
            lines.1.insert(id, Arc::clone(&line));
        }
        Ok(line)
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: LineId = (1, 1, 1, 2);

    fn few(line: &[i64]) -> Result<Line, ()> {
        Ok(Line::Few(line.to_vec()))
    }

    #[test]
    fn a_short_line_is_counted_and_a_long_one_interpolated() {
        let short = Line::Few(vec![10, 20, 40]);
        assert_eq!([5, 10, 20, 21, 99].map(|seq| short.ahead(seq)), [0, 0, 1, 2, 3]);
        let long = Line::Many { first: 1_000, last: 3_000, count: 1_001 };
        assert_eq!([1, 1_000, 2_000, 3_000].map(|seq| long.ahead(seq)), [0, 0, 500, 1_001]);
    }

    #[test]
    fn a_line_is_read_once_between_two_moves() {
        let recent = Recent::new();
        assert_eq!(recent.line(ID, || few(&[1, 2])).map(|line| line.ahead(3)), Ok(2));
        let again = recent.line(ID, || -> Result<Line, ()> { panic!("it is known") });
        assert_eq!(again.map(|line| line.ahead(3)), Ok(2));
        let other = recent.line((1, 1, 2, 2), || few(&[1]));
        assert_eq!(other.map(|line| line.ahead(3)), Ok(1), "another model's");

        recent.forget(&[]);
        assert_eq!(recent.line(ID, || few(&[2])).map(|line| line.ahead(3)), Ok(1));
    }

    #[test]
    fn a_line_that_moved_while_it_was_read_is_read_again() {
        let recent = Recent::new();
        let read = recent.line(ID, || {
            recent.forget(&[]);
            few(&[1, 2])
        });
        assert_eq!(read.map(|line| line.ahead(3)), Ok(2));
        assert_eq!(recent.line(ID, || few(&[2])).map(|line| line.ahead(3)), Ok(1));
    }
}
