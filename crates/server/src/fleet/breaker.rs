//! Keeps a pool whose workers die at once from being started over and over.

use std::time::Duration;

/// Deaths in a row after which nothing is started for [`OPEN`].
const LIMIT: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const OPEN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Breaker {
    deaths: u32,
    until: Duration,
    reason: String,
}

impl Breaker {
    /// A worker died before it asked for work, at this moment of the monotonic clock.
    pub(super) fn died(&mut self, reason: String, now: Duration) {
        self.deaths = self.deaths.saturating_add(1);
        let wait = if self.deaths >= LIMIT { OPEN } else { FIRST_WAIT * (1 << (self.deaths - 1)) };
        self.until = now + wait;
        self.reason = reason;
    }

    /// A worker has asked for work.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Why nothing may be started now.
    pub(super) fn blocked(&self, now: Duration) -> Option<String> {
        (self.deaths > 0 && now < self.until).then(|| {
            format!(
                "{} worker(s) in a row died before they asked for work; the next try is in {} s; \
                 the last one: {}",
                self.deaths,
                (self.until - now).as_secs() + 1,
                self.reason
            )
        })
    }

    /// After a death one worker at a time is tried.
    pub(super) fn allowed(&self, wanted: u32) -> u32 {
        if self.deaths > 0 { wanted.min(1) } else { wanted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_death_delays_the_next_try_and_the_third_opens_the_breaker() {
        let mut breaker = Breaker::default();
        let now = Duration::from_secs(100);
        assert_eq!(breaker.blocked(now), None);
        for (death, wait) in [(1, 1), (2, 2), (3, 60), (4, 60)] {
            breaker.died(format!("death {death}"), now);
            let last = now + Duration::from_secs(wait) - Duration::from_millis(1);
            let reason = breaker.blocked(last).expect("blocked");
            assert!(reason.contains(&format!("death {death}")), "shows why: {reason}");
            assert_eq!(breaker.blocked(now + Duration::from_secs(wait)), None);
            assert_eq!(breaker.allowed(5), 1, "one probe");
        }
        breaker.succeeded();
        assert_eq!((breaker.blocked(now), breaker.allowed(5)), (None, 5));
    }
}
