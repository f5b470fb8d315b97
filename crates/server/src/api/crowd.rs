//! All connections together: how many there may be, and which make room when there are too many.
//!
//! A connection is busy from the head of a request to the last byte of its answer, and otherwise
//! idle: it has not said what it wants, or has been answered. When a new one finds no room, those
//! that have been idle for the longest are closed; one that is busy never is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Files that are left to everything else: the store, artifacts, calls, workers' logs.
const OTHERS: std::ops::RangeInclusive<u64> = 64..=1_024;
/// Most connections, unless somebody wants more: an idle one takes some ten kilobytes.
const MOST: u64 = 20_000;
/// Fewest connections, however few files there may be.
const FEWEST: u64 = 16;
/// Of so many connections one is closed at once, so that a rush is not a search each.
const SHARE: usize = 64;

/// How many connections a process may have that may have so many files.
pub(super) fn room(files: u64, wanted: Option<u32>) -> usize {
    let room = files.saturating_sub((files / 8).clamp(*OTHERS.start(), *OTHERS.end())).max(FEWEST);
    let room = room.min(wanted.map_or(MOST, u64::from));
    usize::try_from(room).unwrap_or(usize::MAX)
}

/// The connections that are open.
#[derive(Debug)]
pub(super) struct Crowd {
    most: usize,
    begun: Instant,
    open: Mutex<Open>,
    shown: Gauge,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    guests: HashMap<u64, Arc<Guest>>,
}

impl Crowd {
    pub(super) fn new(most: usize, shown: Gauge) -> Arc<Self> {
        Arc::new(Self { most, begun: Instant::now(), open: Mutex::default(), shown })
    }

    /// A place for one more, if there is one or can be made.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open();
        if open.guests.len() >= self.most {
            self.thin(&mut open);
        }
        if open.guests.len() >= self.most {
            return None;
        }
        let number = open.next;
        open.next += 1;
        let guest = Arc::new(Guest {
            begun: self.begun,
            state: AtomicU64::new(idle_since(self.begun)),
            blocked: AtomicBool::new(false),
            dismissed: Notify::new(),
        });
        open.guests.insert(number, Arc::clone(&guest));
        self.shown.set(open.guests.len() as i64);
        drop(open);
        Some(Place { crowd: Arc::clone(self), number, guest })
    }

    /// Closes some of the connections that have been idle for the longest.
    pub(super) fn make_room(&self) {
        self.thin(&mut self.open());
    }

    fn thin(&self, open: &mut Open) {
        let mut idle: Vec<(u64, u64)> = open
            .guests
            .iter()
            .filter_map(|(number, guest)| Some((guest.idle_since()?, *number)))
            .collect();
        let some = (self.most / SHARE).max(1).min(idle.len());
        if some == 0 {
            return;
        }
        idle.select_nth_unstable(some - 1);
        for (since, number) in &idle[..some] {
            if open.guests.get(number).is_some_and(|guest| guest.dismiss(*since)) {
                open.guests.remove(number);
            }
        }
        self.shown.set(open.guests.len() as i64);
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("nothing panics while it holds this lock")
    }
}

/// The place of a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    number: u64,
    pub(super) guest: Arc<Guest>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.crowd.open();
        open.guests.remove(&self.number);
        self.crowd.shown.set(open.guests.len() as i64);
    }
}

const BUSY: u64 = 0;
const DISMISSED: u64 = 1;

/// A time as an idle guest's state.
fn idle_since(begun: Instant) -> u64 {
    let since = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    since.saturating_add(DISMISSED + 1)
}

/// What a connection is at.
#[derive(Debug)]
pub(super) struct Guest {
    begun: Instant,
    /// [`BUSY`], [`DISMISSED`], or since when it is idle.
    state: AtomicU64,
    /// The last of an answer waits for the client to take it.
    blocked: AtomicBool,
    dismissed: Notify,
}

impl Guest {
    /// A request begins; none if the connection is being closed.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Busy> {
        let begin = |state| (state != DISMISSED).then_some(BUSY);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, begin).ok()?;
        Some(Busy(Arc::clone(self)))
    }

    /// Tells whether what was written waits for the client.
    pub(super) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Release);
    }

    /// Waits until the connection is to be closed.
    pub(super) async fn dismissed(&self) {
        self.dismissed.notified().await;
    }

    fn idle_since(&self) -> Option<u64> {
        let since = self.state.load(Ordering::Acquire);
        (since > DISMISSED && !self.blocked.load(Ordering::Acquire)).then_some(since)
    }

    /// Has it closed, unless a request has begun meanwhile.
    fn dismiss(&self, since: u64) -> bool {
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let dismissed = self.state.compare_exchange(since, DISMISSED, order.0, order.1).is_ok();
        if dismissed {
            self.dismissed.notify_one();
        }
        dismissed
    }
}

/// A request in progress, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<Guest>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state.store(idle_since(self.0.begun), Ordering::Release);
    }
}

/// A message that would be repeated without end: it passes once in a while, with how often it has
/// not.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    next: Option<Instant>,
    held: u64,
}

impl Seldom {
    const PAUSE: Duration = Duration::from_secs(10);

    /// How many were held back since the last one, if this one may pass.
    pub(super) fn pass(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            self.held += 1;
            return None;
        }
        self.next = Some(now + Self::PAUSE);
        Some(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_to_everything_else() {
        for (files, wanted, room) in [
            (1_048_576, None, 20_000),
            (1_048_576, Some(200_000), 200_000),
            (65_536, Some(200_000), 64_512),
            (4_096, None, 3_584),
            (1_024, None, 896),
            (256, None, 192),
            (256, Some(100), 100),
            (20, None, 16),
        ] {
            assert_eq!(super::room(files, wanted), room, "{files} {wanted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_been_idle_for_the_longest_makes_room() {
        let crowd = Crowd::new(3, Gauge::default());
        let step = || tokio::time::advance(Duration::from_millis(1));
        let enter = || crowd.enter();
        let first = enter().expect("room");
        step().await;
        let second = enter().expect("room");
        step().await;
        let third = enter().expect("room");
        step().await;
        // The first has asked and was answered: now the second is the oldest.
        drop(first.guest.begin().expect("it is welcome"));
        let fourth = enter().expect("room is made");
        second.guest.dismissed().await;
        assert!(second.guest.begin().is_none(), "what it asks now comes too late");
        let busy = [&first, &third, &fourth].map(|place| place.guest.begin().expect("welcome"));
        assert!(enter().is_none(), "nobody who is busy is closed");
        let [one, ..] = busy;
        first.guest.set_blocked(true);
        drop(one);
        assert!(enter().is_none(), "nor one whose answer is still on its way");
        first.guest.set_blocked(false);
        assert!(enter().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_said_again_and_again_is_said_seldom() {
        let mut seldom = Seldom::default();
        let passed: Vec<_> = (0..100).map(|_| seldom.pass()).collect();
        assert_eq!(passed.iter().flatten().collect::<Vec<_>>(), [&0]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(seldom.pass(), Some(99));
    }
}
