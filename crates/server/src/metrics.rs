//! What a server counts, for Prometheus.
//!
//! Counters live here and are bumped where things happen; what the store knows already (queue
//! depth, workers) is asked of it when somebody scrapes, so that the two can't disagree.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::feed::Feed;
use crate::store::{self, Activity, Store};

/// What `/metrics` is answered with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    /// Seconds in the store of submits that were accepted.
    pub submit: Histogram,
    /// Seconds in the store of claims that got a task.
    pub claim: Histogram,
    /// Seconds from the submit of a task to its first claim.
    pub queue_wait: Histogram,
    /// Open event streams.
    pub streams: Gauge,
    /// Claims and control requests that hang.
    pub hanging: Gauge,
    /// Open connections.
    pub connections: Gauge,
    /// Bytes that long bodies of requests take.
    pub bodies: Gauge,
    webhooks: Family<Called, Counter>,
    /// Bytes of outputs that workers have uploaded.
    pub uploaded_bytes: Counter<u64, AtomicU64>,
    /// Bytes of outputs that clients have been sent.
    pub served_bytes: Counter<u64, AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Called {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPool {
    pool: String,
    state: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("rayreel");
        let requests = Family::default();
        // From 50 µs to 1.6 s.
        let fast = || Histogram::new(exponential_buckets(0.000_05, 2.0, 16));
        let (submit, claim) = (fast(), fast());
        // From 1 ms to 4 h 40 min.
        let queue_wait = Histogram::new(exponential_buckets(0.001, 4.0, 13));
        let (streams, hanging, bodies) = (Gauge::default(), Gauge::default(), Gauge::default());
        let connections = Gauge::default();
        registry.register("connections", "Open connections", connections.clone());
        let (uploaded_bytes, served_bytes) = (Counter::default(), Counter::default());

        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register_with_unit(
            "submit",
            "Time in the store of submits that were accepted",
            Unit::Seconds,
            submit.clone(),
        );
        registry.register_with_unit(
            "claim",
            "Time in the store of claims that got a task",
            Unit::Seconds,
            claim.clone(),
        );
        registry.register_with_unit(
            "queue_wait",
            "Time from the submit of a task to its first claim",
            Unit::Seconds,
            queue_wait.clone(),
        );
        let webhooks = Family::default();
        registry.register("webhook_calls", "Calls of tenants' receivers", webhooks.clone());
        registry.register("event_streams", "Open event streams", streams.clone());
        registry.register("hanging_calls", "Calls of workers that wait", hanging.clone());
        registry.register_with_unit(
            "bodies",
            "Memory that long bodies of requests take",
            Unit::Bytes,
            bodies.clone(),
        );
        registry.register_with_unit(
            "artifacts_uploaded",
            "Outputs that workers have uploaded",
            Unit::Bytes,
            uploaded_bytes.clone(),
        );
        registry.register_with_unit(
            "artifacts_served",
            "Outputs that clients have been sent",
            Unit::Bytes,
            served_bytes.clone(),
        );
        Self {
            registry,
            requests,
            submit,
            claim,
            queue_wait,
            streams,
            hanging,
            connections,
            bodies,
            webhooks,
            uploaded_bytes,
            served_bytes,
        }
    }
}

impl Metrics {
    /// Counts an answered request. `route` is a pattern, never a path, and methods that are not in
    /// use are `other`: labels must not grow with what callers make up.
    pub fn answered(&self, method: &http::Method, route: &'static str, status: u16) {
        let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"];
        let method = known.into_iter().find(|known| *known == method.as_str()).unwrap_or("other");
        self.requests.get_or_create(&Request { method, route, status }).inc();
    }

    /// Counts a call of a tenant's receiver.
    pub fn webhook(&self, delivered: bool) {
        let outcome = if delivered { "delivered" } else { "failed" };
        self.webhooks.get_or_create(&Called { outcome }).inc();
    }

    /// Everything, as text. What the store can't answer just now is left out, and said so.
    pub async fn render(&self, store: &dyn Store, feed: &Feed) -> String {
        let mut fresh = Registry::with_prefix("rayreel");
        let transitions = Family::<InState, Counter>::default();
        fresh.register("task_transitions", "Changes of state, by the new one", transitions.clone());
        for (state, count) in feed.transitions() {
            transitions.get_or_create(&InState { state: state.as_str() }).inc_by(count);
        }
        let up = Gauge::<i64>::default();
        fresh.register("store_up", "1 if the task store answers", up.clone());
        match ask(store, &mut fresh).await {
            Ok(()) => up.set(1),
            Err(error) => {
                tracing::warn!(%error, "the store does not answer the metrics");
                up.set(0)
            }
        };
        let mut text = String::with_capacity(8 * 1024);
        for registry in [&self.registry, &fresh] {
            encode_registry(&mut text, registry).expect("a string takes everything");
        }
        encode_eof(&mut text).expect("a string takes everything");
        text
    }
}

/// Registers what the store knows.
async fn ask(store: &dyn Store, registry: &mut Registry) -> Result<(), store::Error> {
    let backlog = store.backlog().await?;
    let workers = store.workers().await?;
    let tasks = Family::<InPool, Gauge>::default();
    let queued_work = Family::<InPool, Gauge>::default();
    registry.register("tasks", "Tasks that have not ended", tasks.clone());
    registry.register_with_unit(
        "queued_work",
        "Estimated time of the tasks that could start now",
        Unit::Other("milliseconds".to_owned()),
        queued_work.clone(),
    );
    let gauge = |family: &Family<InPool, Gauge>, pool: &str, state, value: u64| {
        family
            .get_or_create(&InPool { pool: pool.to_owned(), state })
            .set(i64::try_from(value).unwrap_or(i64::MAX));
    };
    for work in &backlog {
        let pool = work.pool.as_str();
        let ready = || work.ready.values();
        gauge(&tasks, pool, "ready", ready().map(|ready| ready.tasks).sum());
        gauge(&tasks, pool, "delayed", work.delayed);
        gauge(&tasks, pool, "running", work.running);
        gauge(&queued_work, pool, "ready", ready().map(|ready| ready.ms).sum());
    }
    let counted = Family::<InPool, Gauge>::default();
    registry.register("workers", "Registered workers", counted.clone());
    for worker in &workers {
        let state = match worker.activity {
            Activity::Starting => "starting",
            Activity::Busy => "busy",
            Activity::Idle { .. } if !worker.quarantined.is_empty() => "quarantined",
            Activity::Idle { .. } => "idle",
        };
        counted.get_or_create(&InPool { pool: worker.pool.to_string(), state }).inc();
    }
    Ok(())
}
