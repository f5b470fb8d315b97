//! Which of the servers of one store does what only one of them may do. Each such duty has a lease of
//! its own in the store; it is renewed while its holder lives, and moves when he does not.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::App;

/// A duty moves so long after its holder was heard last.
pub const LEASE: Duration = Duration::from_secs(8);
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(2);

/// Does this server have a duty now?
#[derive(Debug, Clone)]
pub struct Lead(watch::Receiver<bool>);

impl Lead {
    /// Has it while it is told so.
    pub fn new(told: watch::Receiver<bool>) -> Self {
        Self(told)
    }

    /// Has it whatever happens: there is no other server.
    pub fn always() -> Self {
        Self(watch::channel(true).1)
    }

    pub fn held(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the duty is this server's.
    pub(super) async fn won(&mut self) {
        wait(&mut self.0, true).await;
    }

    /// Waits until it is no longer.
    pub(super) async fn lost(&mut self) {
        wait(&mut self.0, false).await;
    }
}

async fn wait(told: &mut watch::Receiver<bool>, wanted: bool) {
    if told.wait_for(|held| *held == wanted).await.is_err() && *told.borrow() != wanted {
        // Nobody will ever tell: so it is until the server stops.
        std::future::pending::<()>().await;
    }
}

/// Takes a duty when it is free and keeps it until the server stops. Answers at once.
pub(crate) fn seek(
    app: &Arc<App>,
    duty: &'static str,
    tasks: &mut tokio::task::JoinSet<()>,
) -> Lead {
    if !app.components.store.is_shared() {
        return Lead::always();
    }
    let (tell, told) = watch::channel(false);
    tasks.spawn(keep(Arc::clone(app), duty, tell));
    Lead::new(told)
}

async fn keep(app: Arc<App>, duty: &'static str, tell: watch::Sender<bool>) {
    let components = &app.components;
    let (store, clock) = (&components.store, &components.clock);
    // Another one with each start: who was killed has no duty any more.
    let server = format!("{:016x}", components.random.number());
    let ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
    let mut until = Duration::ZERO;
    loop {
        // From before it is asked for: the others count from later on.
        let asked = clock.monotonic();
        let answer = tokio::time::timeout(RENEW, store.lead(duty, &server, ms)).await;
        if let Ok(Ok(leads)) = answer {
            until = if leads { asked + LEASE } else { Duration::ZERO };
        }
        let leads = clock.monotonic() + RENEW < until;
        let changed = tell.send_if_modified(|held| std::mem::replace(held, leads) != leads);
        if changed && leads {
            tracing::info!(duty, "this server has the duty now");
        } else if changed {
            tracing::warn!(duty, "this server could not keep the duty");
        }
        tokio::select! {
            () = app.stopping.cancelled() => break,
            () = tokio::time::sleep(RENEW) => {}
        }
    }
    // What it is at comes to its end; then another need not wait for the lease to run out.
    tell.closed().await;
    let _ = tokio::time::timeout(RENEW, store.lead(duty, &server, 0)).await;
}
