//! Makes tasks ready whose backoff has passed, and ends those whose deadline has.

use std::sync::Arc;
use std::time::Duration;

use super::lead::Lead;
use crate::App;

/// The wall clock may jump, so a moment far away is looked at again before it comes.
const LONGEST: Duration = Duration::from_secs(1);

pub(super) async fn run(app: Arc<App>, mut lead: Lead) {
    let components = &app.components;
    loop {
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = lead.won() => {}
        }
        let wait = match components.store.advance().await {
            Ok(None) => None,
            Ok(Some(at)) => {
                let ms = at.ms_since(components.clock.wall());
                // A millisecond at least, so that a full batch does not starve others.
                Some(Duration::from_millis(ms.max(1)).min(LONGEST))
            }
            Err(error) => {
                tracing::warn!(%error, "waiting tasks could not be looked at");
                Some(LONGEST)
            }
        };
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = components.feed.timers.notified() => {}
            () = lead.lost() => {}
            () = sleep(wait) => {}
        }
    }
}

pub(super) async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
