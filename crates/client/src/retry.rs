//! When a call is made again.

use std::time::Duration;

use crate::Error;

/// Between the first two tries, unless the server says how long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Between any two tries, unless the server says how long.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Which failures of a call are followed by another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// All that pass: a repetition changes nothing.
    Always,
    /// Those after which the call is known to have had no effect.
    IfWithoutEffect,
}

/// How often, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retry {
    /// Tries after the first one.
    pub retries: u32,
    /// A server that wants a longer pause is not waited for.
    pub longest_pause: Duration,
}

impl Retry {
    /// How long to wait before try number `tries` + 1; none if there is to be none.
    pub(crate) fn pause(self, tries: u32, error: &Error, repeat: Repeat) -> Option<Duration> {
        let again = tries <= self.retries
            && error.is_passing()
            && (repeat == Repeat::Always || error.is_without_effect());
        again
            .then(|| error.retry_after().unwrap_or_else(|| backoff(tries)))
            .filter(|pause| *pause <= self.longest_pause)
    }
}

/// Doubles with each failure, with jitter on its upper half, so that clients don't come back in step.
pub(crate) fn backoff(failures: u32) -> Duration {
    let full = FIRST_PAUSE * (1 << failures.saturating_sub(1).min(10));
    full.min(LONGEST_PAUSE).mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use rayreel_domain::Code;

    use super::*;
    use crate::error::TransportKind;
    use crate::{ApiError, Transport};

    const RETRY: Retry = Retry { retries: 2, longest_pause: Duration::from_secs(30) };

    fn refusal(code: Code, retry_after: Option<u64>) -> Error {
        Error::Api(Box::new(ApiError {
            status: code.status(),
            code,
            name: code.name().to_owned(),
            message: String::new(),
            param: None,
            request_id: None,
            retry_after: retry_after.map(Duration::from_secs),
        }))
    }

    fn transport(kind: TransportKind) -> Error {
        Error::Transport(Transport { kind, message: String::new() })
    }

    #[test]
    fn a_pause_is_as_long_as_the_server_says_or_doubles() {
        let pause = |tries, error: &Error| RETRY.pause(tries, error, Repeat::Always);
        assert_eq!(pause(1, &refusal(Code::QueueFull, Some(10))), Some(Duration::from_secs(10)));
        assert_eq!(pause(1, &refusal(Code::QueueFull, Some(31))), None, "too long");
        for (tries, full) in [(1, 200), (2, 400)] {
            let pause = pause(tries, &transport(TransportKind::Broken)).unwrap().as_millis();
            assert!((full / 2..=full).contains(&pause), "{tries}: {pause}");
        }
        assert_eq!(pause(3, &transport(TransportKind::Broken)), None, "that was the last try");
        assert!(backoff(40) <= LONGEST_PAUSE);
    }

    #[test]
    fn only_what_passes_and_is_safe_is_repeated() {
        let answer = |status| Error::Answer { status, message: String::new(), retry_after: None };
        for (error, freely, carefully) in [
            (refusal(Code::LimitReached, None), true, true),
            (refusal(Code::StoreUnavailable, None), true, true),
            (refusal(Code::OutcomeUnknown, None), true, false),
            (refusal(Code::InvalidValue, None), false, false),
            (refusal(Code::Internal, None), false, false),
            (refusal(Code::NotFinished, None), false, false),
            (transport(TransportKind::Refused), true, true),
            (transport(TransportKind::Silent), true, false),
            (transport(TransportKind::Broken), true, false),
            (answer(503), true, true),
            (answer(502), true, false),
            (answer(200), false, false),
        ] {
            let again = |repeat| RETRY.pause(1, &error, repeat).is_some();
            assert_eq!(
                (again(Repeat::Always), again(Repeat::IfWithoutEffect)),
                (freely, carefully),
                "{error:?}"
            );
        }
    }
}
