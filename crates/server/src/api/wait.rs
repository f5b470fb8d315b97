//! Waiting for the end of tasks, on the feed: the one way in which a call waits for a result.
//!
//! `Prefer: wait=N` (RFC 7240) asks a submit for it: it is answered when its tasks have ended, or
//! after N seconds. What is not understood is ignored, as the RFC has it: the answer then comes at once.

use std::pin::pin;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use rayreel_domain::id::TenantName;
use tokio::time::sleep;

use super::Api;
use crate::store::View;

const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// What `wait` means without a number, as at Replicate.
const PLAIN_WAIT: &str = "60";

/// How many seconds the caller would wait.
pub(super) fn asked(headers: &HeaderMap) -> Option<u64> {
    let lines = headers.get_all(PREFER).iter().filter_map(|line| line.to_str().ok());
    let wait = |preference: &str| {
        let preference = preference.split(';').next()?;
        let (name, value) = preference.split_once('=').unwrap_or((preference, PLAIN_WAIT));
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').to_owned())
    };
    // The first one counts.
    let value = lines.flat_map(|line| line.split(',')).find_map(wait)?;
    let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

/// Waits until all tasks have ended, and looks at them again; answers whether they have. That the
/// tasks are stored is already true: whatever goes wrong here only ends the wait.
pub(super) async fn ended(
    api: &Api,
    tenant: &TenantName,
    views: &mut [View],
    limit: Duration,
) -> bool {
    let components = &api.app.components;
    let mut limit = pin!(sleep(limit));
    for view in views {
        // Before the look at the task, so that no change goes unseen.
        let mut watch = components.feed.watch(view.task.id);
        loop {
            match components.store.get(tenant, view.task.id).await {
                Ok(Some(now)) => *view = now,
                Ok(None) | Err(_) => return false,
            }
            if view.task.state.is_terminal() {
                break;
            }
            tokio::select! {
                () = watch.changed() => {}
                () = &mut limit => return false,
                () = api.app.stopping.cancelled() => return false,
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_wait_is_found_among_the_preferences() {
        let asked = |lines: &[&'static str]| {
            let lines = lines.iter().map(|line| (PREFER, HeaderValue::from_static(line)));
            asked(&lines.collect())
        };
        for lines in [
            &["wait=10"][..],
            &["Wait = 10"],
            &["wait=\"10\""],
            &["respond-async, wait=10"],
            &["return=minimal; foo=1, wait=10; x"],
            &["handling=strict", "wait=10, wait=20"],
        ] {
            assert_eq!(asked(lines), Some(10), "{lines:?}");
        }
        for lines in
            [&[][..], &["wait="], &["respond-async"], &["wait=-1"], &["wait=ten"], &["waits=10"]]
        {
            assert_eq!(asked(lines), None, "{lines:?}");
        }
        assert_eq!(asked(&["wait"]), Some(60));
        assert_eq!(asked(&["wait=99999999999999999999999"]), Some(u64::MAX));
    }
}
