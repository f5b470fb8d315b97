//! What operators and machines ask: is it alive, is it ready, how is it, what can it do.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use rayreel_domain::Code;
use rayreel_domain::id::TaskId;
use rayreel_domain::wire::api::ErrorBody;
use serde_json::json;

use super::error::Error;
use super::{Api, json};
use crate::artifacts;
use crate::metrics::CONTENT_TYPE as METRICS_TYPE;

const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Says that the process is alive.
#[utoipa::path(get, path = "/healthz", tag = "probes", operation_id = "alive", responses(
    (status = 200, description = "The process is alive."),
))]
pub(super) async fn healthz() -> Result<Response, Error> {
    json(StatusCode::OK, &json!({"status": "alive"}))
}

/// Says whether requests can be served: the task store answers, and there is room to write.
#[utoipa::path(get, path = "/readyz", tag = "probes", operation_id = "ready", responses(
    (status = 200, description = "Requests can be served."),
    (status = 503, description = "`store_unavailable`; the message says why.", body = ErrorBody),
))]
pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Result<Response, Error> {
    let components = &api.app.components;
    // There is no task with this id: a read of the index, and nothing else.
    let nobody = api.app.keyring.owner();
    components.store.get(&nobody.tenant, TaskId::from_bytes([0; 16])).await?;
    // The writer answers too, although it has nothing to write.
    components.store.collected(&[]).await?;
    // Whoever asks may be nobody: it writes a file once a second at most.
    let mut written = api.written.lock().await;
    let now = components.clock.monotonic();
    if written.is_none_or(|at| now.saturating_sub(at) >= PROBE_EVERY) {
        components.artifacts.probe().await.map_err(|fault| {
            let message = match fault {
                artifacts::Error::Full => "the disk of the data directory is full; free some space",
                artifacts::Error::Unavailable(_) | artifacts::Error::Unusable(_) => {
                    "the artifact store is not available; the log says why"
                }
                _ => "the data directory can't be written to; the log says why",
            };
            Error::new(Code::StoreUnavailable, message).because(fault)
        })?;
        *written = Some(now);
    }
    drop(written);
    json(StatusCode::OK, &json!({"status": "ready"}))
}

/// Counters and gauges in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics", tag = "probes", operation_id = "metrics", responses(
    (status = 200, description = "For Prometheus.", content_type = "application/openmetrics-text", body = String),
))]
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let components = &api.app.components;
    let text = api.app.metrics.render(&*components.store, &components.feed).await;
    typed(METRICS_TYPE, text)
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "probes", operation_id = "openapi_document", responses(
    (status = 200, description = "OpenAPI 3.1.", content_type = "application/json"),
))]
pub(super) async fn openapi(State(api): State<Arc<Api>>) -> Response {
    typed("application/json", api.openapi.clone())
}

fn typed(content_type: &'static str, text: String) -> Response {
    let mut response = Response::new(text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
