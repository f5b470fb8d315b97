//! Time and randomness come through these seams; clippy bans the rest.

use std::sync::Mutex;
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rayreel_domain::id::{FileId, Nonce, TaskId};
use rayreel_domain::time::Timestamp;

/// Reads the time.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// The wall clock; it may jump.
    fn wall(&self) -> Timestamp;

    /// Time since some fixed moment; it only rises.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam")]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam")]
    fn wall(&self) -> Timestamp {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(0))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<(u64, Duration)>,
}

impl ManualClock {
    pub fn at(wall: Timestamp) -> Self {
        Self { now: Mutex::new((wall.0, Duration::ZERO)) }
    }

    /// Moves both clocks on.
    pub fn advance(&self, by: Duration) {
        let mut now = self.lock();
        now.0 += u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        now.1 += by;
    }

    /// Sets the wall clock, forwards or backwards, as an administrator or NTP does.
    pub fn jump(&self, wall: Timestamp) {
        self.lock().0 = wall.0;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, Duration)> {
        self.now.lock().expect("nothing panics while it holds this lock")
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        Timestamp(self.lock().0)
    }

    fn monotonic(&self) -> Duration {
        self.lock().1
    }
}

/// Random numbers: unguessable from the system, repeatable from a seed in tests.
#[derive(Debug)]
pub struct Random(Mutex<StdRng>);

impl Random {
    pub fn from_system() -> Self {
        Self(Mutex::new(rand::make_rng()))
    }

    pub fn from_seed(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    pub fn number(&self) -> u64 {
        self.0.lock().expect("nothing panics while it holds this lock").random()
    }

    pub fn nonce(&self) -> Nonce {
        Nonce(self.number())
    }

    pub fn file_id(&self, now: Timestamp) -> FileId {
        let random: [u8; 10] =
            self.0.lock().expect("nothing panics while it holds this lock").random();
        FileId::new(now.0, random)
    }

    pub fn task_id(&self, now: Timestamp) -> TaskId {
        let random: [u8; 10] =
            self.0.lock().expect("nothing panics while it holds this lock").random();
        TaskId::new(now.0, random)
    }
}
