//! Waiting for a condition, with a bound. There is no waiting for a time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// What is expected to take moments has failed if it takes so long, however slow the machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `look` finds something.
#[track_caller]
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(LONG, what, look)
}

/// Waits until `look` finds something, for this long.
#[track_caller]
pub(crate) fn within<T>(bound: Duration, what: &str, look: impl FnMut() -> Option<T>) -> T {
    found_within(bound, look).unwrap_or_else(|| panic!("not within {bound:?}: {what}"))
}

/// What `look` finds within this time, if anything.
pub(crate) fn found_within<T>(bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() >= bound {
            return None;
        }
        std::thread::park_timeout(PAUSE);
    }
}

/// The only element; fails if there are others, or none.
#[track_caller]
pub(crate) fn only<T: Debug>(mut items: Vec<T>) -> T {
    assert_eq!(items.len(), 1, "exactly one of {items:#?}");
    items.remove(0)
}
