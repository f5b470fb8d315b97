//! The clock that the servers of one store share: that of Redis.
//!
//! A server whose own wall clock is wrong, or jumps, would expire other servers' tasks and forget
//! their workers. So each asks Redis for its time now and then, and counts on from there by its own
//! steady clock. If the clock of Redis jumps, all servers follow it together.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rayreel_domain::time::Timestamp;

use super::address::Address;
use super::link::{self, Link};
use crate::clock::Clock;
use crate::store::Error;

/// Between two looks at the clock of Redis: two machines drift apart by less than a millisecond.
const PERIOD: Duration = Duration::from_secs(5);
/// A look that took longer says too little.
const LONGEST: Duration = Duration::from_millis(500);

/// A clock set after Redis'.
#[derive(Debug)]
pub struct SharedClock {
    local: Arc<dyn Clock>,
    set: Mutex<Setting>,
}

#[derive(Debug, Clone, Copy)]
struct Setting {
    /// Unix time in microseconds when the local steady clock stood at zero.
    base_us: i128,
    /// The latest time that was told: it does not go back because Redis' clock was set back a little.
    told: Duration,
}

impl SharedClock {
    /// The clock of the Redis at this address, which is asked now, and again and again.
    pub async fn of(address: &Address, local: Arc<dyn Clock>) -> Result<Arc<Self>, Error> {
        let link = Link::new(address)?;
        let clock = Arc::new(Self::new(local));
        clock.ask(&link).await.map_err(link::failed)?;
        let follower = Arc::downgrade(&clock);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PERIOD).await;
                let Some(clock) = follower.upgrade() else { return };
                // While Redis is away, the local clock goes on.
                let _ = clock.ask(&link).await;
            }
        });
        Ok(clock)
    }

    /// Set after the local wall clock, until Redis has been asked.
    fn new(local: Arc<dyn Clock>) -> Self {
        let base_us = i128::from(local.wall().0) * 1000 - micros(local.monotonic());
        Self { local, set: Mutex::new(Setting { base_us, told: Duration::ZERO }) }
    }

    /// Sets it after a time that Redis has told, and how long the answer took.
    fn adjust(&self, (seconds, micros_of): (u64, u64), took: Duration) {
        let told = i128::from(seconds) * 1_000_000 + i128::from(micros_of) + micros(took) / 2;
        let base_us = told - micros(self.local.monotonic());
        self.set.lock().expect("nothing panics while it holds this lock").base_us = base_us;
    }

    async fn ask(&self, link: &Link) -> Result<(), redis::RedisError> {
        let before = self.local.monotonic();
        let time: (u64, u64) = link.send(&redis::cmd("TIME")).await?;
        let took = self.local.monotonic().saturating_sub(before);
        if took < LONGEST {
            self.adjust(time, took);
        }
        Ok(())
    }
}

impl Clock for SharedClock {
    fn wall(&self) -> Timestamp {
        let base = self.set.lock().expect("nothing panics while it holds this lock").base_us;
        let now = (base + micros(self.local.monotonic())) / 1000;
        Timestamp(u64::try_from(now).unwrap_or(0))
    }

    /// Since 1970 by Redis' clock, and never less than before.
    fn monotonic(&self) -> Duration {
        let mut set = self.set.lock().expect("nothing panics while it holds this lock");
        let now = set.base_us + micros(self.local.monotonic());
        let now = Duration::from_micros(u64::try_from(now).unwrap_or(0));
        set.told = set.told.max(now);
        set.told
    }
}

fn micros(duration: Duration) -> i128 {
    i128::try_from(duration.as_micros()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_server_whose_wall_clock_jumps_goes_on_by_the_clock_of_redis() {
        let local = Arc::new(ManualClock::at(Timestamp(5_000_000)));
        let clock = SharedClock::new(local.clone());
        assert_eq!(clock.wall(), Timestamp(5_000_000));
        clock.adjust((8_000, 0), Duration::from_millis(2));
        assert_eq!(clock.wall(), Timestamp(8_000_001));
        local.jump(Timestamp(1));
        local.advance(Duration::from_millis(10));
        assert_eq!(clock.wall(), Timestamp(8_000_011));
        assert_eq!(clock.monotonic(), Duration::from_millis(8_000_011));
    }

    #[test]
    fn the_steady_clock_never_goes_back() {
        let local = Arc::new(ManualClock::at(Timestamp(5_000)));
        let clock = SharedClock::new(local.clone());
        let before = clock.monotonic();
        clock.adjust((1, 0), Duration::ZERO);
        assert_eq!(clock.wall(), Timestamp(1_000), "users' time follows");
        assert_eq!(clock.monotonic(), before);
    }
}
