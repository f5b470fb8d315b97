//! How long to wait before the next try while a server does not answer.

use std::time::Duration;

use tokio::time::Instant;

/// Exponential, with jitter on the upper half, so that a thousand workers don't come back in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    pub(crate) fn wait(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.most);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A stretch of calls without an answer: how long it lasts, when to try again, and a line in the
/// log at its start and its end instead of one a try.
#[derive(Debug)]
pub(crate) struct Outage {
    what: &'static str,
    since: Option<Instant>,
    backoff: Backoff,
}

impl Outage {
    /// `what` is being tried, for the log.
    pub(crate) fn new(what: &'static str) -> Self {
        // The cap lets a worker be back within a few seconds of its server.
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        Self { what, since: None, backoff }
    }

    /// Notes a failed try; says how long to wait before the next.
    pub(crate) fn failed(&mut self, error: &dyn std::error::Error) -> Duration {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::warn!(call = self.what, %error, "no answer from the server, trying on");
        } else {
            tracing::debug!(call = self.what, %error, "still no answer from the server");
        }
        self.backoff.wait()
    }

    /// Notes an answer.
    pub(crate) fn over(&mut self) {
        if let Some(since) = self.since.take() {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(call = self.what, seconds, "the server answers again");
        }
        self.backoff.reset();
    }

    pub(crate) fn is_on(&self) -> bool {
        self.since.is_some()
    }

    pub(crate) fn lasts(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_most_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        for full in [50, 100, 200, 400, 800, 1600, 2000, 2000] {
            let wait = backoff.wait().as_millis();
            assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
        }
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(50));
    }
}
