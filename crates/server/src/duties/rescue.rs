//! The rescuer: decides when a lease is lost, by watching beat counters on its own monotonic clock.
//!
//! It believes nobody's wall clock. A lease that it sees for the first time, after a restart for
//! instance, has its full time ahead of it; see [`rayreel_domain::lease::lost`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::code::Code;
use rayreel_domain::lease::{self, Fence, Terms};
use rayreel_domain::task::{End, Failure};

use super::lead::Lead;
use crate::App;
use crate::clock::Clock;
use crate::store::{self, Store};

/// An attempt that its worker should have stopped for its length is stopped by the server after
/// this long.
const OVERTIME_MS: u64 = 60_000;
/// A worker that has not called for so long is forgotten.
const FORGET_MS: u64 = 86_400_000;

/// Watches leases.
#[derive(Debug, Default)]
pub struct Rescuer {
    seen: HashMap<Fence, (u64, Duration)>,
}

impl Rescuer {
    /// One look at every lease. Gives back how many it has taken away.
    pub async fn look(
        &mut self,
        store: &dyn Store,
        clock: &dyn Clock,
        terms: Terms,
        max_run_ms: u64,
    ) -> Result<usize, store::Error> {
        let now = clock.monotonic();
        let leases = store.leases().await?;
        let mut taken = 0;
        let mut seen = HashMap::with_capacity(leases.len());
        for lease in leases {
            let first = match self.seen.get(&lease.fence) {
                Some((beats, since)) if *beats == lease.beats => *since,
                _ => now,
            };
            let unchanged = u64::try_from((now - first).as_millis()).unwrap_or(u64::MAX);
            let end = if lease::lost(terms, lease.confirmed, lease.graces, unchanged) {
                tracing::warn!(task = %lease.fence.task, attempt = lease.fence.attempt, worker = %lease.worker, confirmed = lease.confirmed, "lease lost: no beat for {unchanged} ms");
                End::Lose
            } else if lease.held_ms > max_run_ms.saturating_add(OVERTIME_MS) {
                End::Fail(Failure::new(
                    Code::MaxRunExceeded,
                    format!("the attempt ran for more than {} s", max_run_ms / 1000),
                ))
            } else {
                seen.insert(lease.fence, (lease.beats, first));
                continue;
            };
            // Unless it has beaten since the look.
            taken += usize::from(store.reclaim(lease.fence, lease.beats, end).await?);
        }
        self.seen = seen;
        Ok(taken)
    }
}

pub(super) async fn run(app: Arc<App>, mut lead: Lead) {
    let components = &app.components;
    let terms = app.settings.terms();
    let max_run_ms = app.settings.max_run_seconds.ms();
    // Late by a tenth of the shortest term at most.
    let tick = Duration::from_millis((terms.lease_ms.min(terms.first_ms) / 10).clamp(20, 1000));
    let mut rescuer = Rescuer::default();
    loop {
        if !lead.held() {
            tokio::select! {
                () = app.stopping.cancelled() => return,
                () = lead.won() => {}
            }
            // What it has seen is long ago: every lease has its full time ahead of it.
            rescuer = Rescuer::default();
        }
        let look = rescuer.look(&*components.store, &*components.clock, terms, max_run_ms).await;
        if let Err(error) = look {
            tracing::warn!(%error, "the rescuer could not look at the leases");
        }
        if let Err(error) = forget_workers(&*components.store).await {
            tracing::warn!(%error, "workers that are long gone could not be forgotten");
        }
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(tick) => {}
        }
    }
}

async fn forget_workers(store: &dyn Store) -> Result<(), store::Error> {
    for worker in store.workers().await? {
        if worker.silent_ms > FORGET_MS {
            store.deregister(&worker.by).await?;
        }
    }
    Ok(())
}
