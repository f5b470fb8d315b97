//! Ends what is open with a key that expires.

use std::sync::Arc;
use std::time::Duration;

use super::timers::sleep;
use crate::App;

/// The wall clock may jump, so a moment far away is looked at again before it comes.
const LONGEST: Duration = Duration::from_secs(1);

pub(super) async fn run(app: Arc<App>) {
    loop {
        let next = app.keyring.expire(app.components.clock.wall());
        let wait = next.map(|ms| Duration::from_millis(ms).min(LONGEST));
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = app.keyring.expiring.notified() => {}
            () = sleep(wait) => {}
        }
    }
}
