//! Points in time, as numbers that somebody else read from a clock.

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, on the wall clock of the server. It may jump: only users'
/// deadlines, retention and records are decided by it, never a lease.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    pub const ZERO: Self = Self(0);

    /// Whole seconds since the epoch, rounded down: the unit of the public API.
    pub fn unix_seconds(self) -> u64 {
        self.0 / 1000
    }

    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to `self`; 0 if the clock went backwards.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
