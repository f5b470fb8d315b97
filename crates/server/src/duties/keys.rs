//! Ends what is open with a key that expires, and follows what other servers do to keys.

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
            () = app.components.feed.keys.notified() => {
                if let Err(error) = app.keyring.follow(&app.components).await {
                    tracing::warn!(%error, "the API keys could not be read anew; trying again");
                    app.components.feed.keys.notify_one();
                    sleep(Some(LONGEST)).await;
                }
            }
            () = sleep(wait) => {}
        }
    }
}
