//! The HTTP API: the public one for tasks, the one for workers, and the probes.
//!
//! [`serve`] owns the connections. Each request passes the gate ([`gate`]: who may call, request
//! id, access log, panics, the one form of every refusal) and then the router below. Handlers know
//! nothing of status codes: they answer, or refuse with an [`error::Error`] from the code table.

mod admin;
mod base;
mod body;
mod budget;
mod content;
mod cors;
mod crowd;
mod error;
mod events;
mod files;
mod form;
mod gate;
mod generate;
mod input;
mod links;
mod models;
mod openai;
mod openapi;
mod probes;
mod query;
mod reference;
mod serve;
mod socket;
mod tasks;
mod turns;
mod uploads;
mod wait;
mod webhooks;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Path};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use rayreel_domain::Code;
use rayreel_domain::id::{ModelName, TaskId, TenantName};
use rayreel_domain::request::ModelSpec;
use serde::Serialize;
use tokio::sync::Mutex;

pub use openapi::document;
pub use serve::serve;

use crate::App;
use crate::keyring::Caller;
use error::Error;

/// What the handlers share.
struct Api {
    app: Arc<App>,
    models: BTreeMap<ModelName, ModelSpec>,
    fetching: Arc<turns::Turns>,
    decoding: Arc<turns::Turns>,
    bodies: Arc<budget::Budget>,
    roster: worker::Roster,
    /// When the artifact store was last seen to take a file.
    written: Mutex<Option<Duration>>,
    openapi: String,
}

impl Api {
    fn new(app: Arc<App>) -> Self {
        let names = app.settings.models.keys();
        Self {
            models: names
                .filter_map(|name| Some((name.clone(), app.settings.model_spec(name)?)))
                .collect(),
            fetching: turns::Turns::new(input::MAX_FETCHES),
            decoding: turns::Turns::new(input::MAX_DECODERS),
            bodies: budget::Budget::new(app.settings.max_bodies_bytes, app.metrics.bodies.clone()),
            roster: worker::Roster::default(),
            written: Mutex::default(),
            openapi: document(),
            app,
        }
    }
}

fn router(app: Arc<App>) -> Router {
    // `gate::pattern` names these for the metrics.
    Router::new()
        .route("/v1/video/generations", get(tasks::list).post(tasks::submit))
        .route("/v1/video/generations/{id}", get(tasks::show).delete(tasks::delete))
        .route("/v1/video/generations/{id}/cancel", post(tasks::cancel))
        .route("/v1/video/generations/{id}/events", get(events::events))
        .route("/v1/video/generations/{id}/content", get(content::content))
        .route("/v1/video/generations/{id}/link", post(links::link))
        .route("/v1/video/generations/{id}/webhook/redeliver", post(webhooks::redeliver))
        .route("/v1/webhooks/secret", get(webhooks::secret))
        .route("/v1/webhooks/secret/rotate", post(webhooks::rotate))
        .route("/generate", post(generate::generate))
        .route("/v1/videos", get(openai::videos::list).post(openai::videos::create))
        .route("/v1/videos/{id}", get(openai::videos::show).delete(openai::videos::delete))
        .route("/v1/videos/{id}/content", get(openai::videos::content))
        .route("/v1/videos/{id}/remix", post(openai::videos::remix))
        .route("/v1/images/generations", post(openai::images::generate))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::show))
        .route("/v1/files", get(files::list).post(files::upload))
        .route("/v1/files/{id}", get(files::show).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .route("/openapi.json", get(probes::openapi))
        .route("/docs", get(reference::page))
        .route("/docs/reference.js", get(reference::script))
        .route("/docs/reference.css", get(reference::style))
        .route("/v1/admin/keys", get(admin::keys::list).post(admin::keys::create))
        .route("/v1/admin/keys/{id}", delete(admin::keys::revoke))
        .route("/v1/admin/tenants", get(admin::tenants::list))
        .route("/v1/admin/tenants/{name}", get(admin::tenants::show))
        .route("/v1/admin/workers", get(admin::workers::list))
        .route("/v1/admin/workers/{name}/drain", post(admin::workers::drain))
        .route("/v1/admin/pools", get(admin::pools::list))
        .route("/v1/admin/pools/{name}/drain", post(admin::pools::drain))
        .route("/v1/admin/pools/{name}/resume", post(admin::pools::resume))
        .route("/v1/worker/register", post(worker::register))
        .route("/v1/worker/deregister", post(worker::deregister))
        .route("/v1/worker/claim", post(worker::claim))
        .route("/v1/worker/control", post(worker::control))
        .route("/v1/worker/beat", post(worker::beat))
        .route("/v1/worker/fail", post(worker::fail))
        .route("/v1/worker/release", post(worker::release))
        .route("/v1/worker/uploads", post(uploads::announce))
        .route("/v1/worker/uploads/{task}/{attempt}/{nonce}/{index}", put(uploads::upload))
        .route("/v1/worker/parts", post(uploads::parts))
        .route("/v1/worker/commit", post(uploads::commit))
        .route("/v1/worker/inputs/{task}/{attempt}/{nonce}", get(uploads::input))
        .route("/v1/worker/inputs/{task}/{attempt}/{nonce}/last", get(uploads::last_input))
        .fallback(async || Error::new(Code::RouteNotFound, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Error::new(Code::MethodNotAllowed, "this path does not have that method; see `Allow`")
        })
        .with_state(Arc::new(Api::new(app)))
}

/// The tenant that asks.
struct Tenant(TenantName);

impl FromRequestParts<Arc<Api>> for Tenant {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Error> {
        Ok(Self(caller(parts)?.tenant.clone()))
    }
}

/// Whom the gate has let in.
fn caller(parts: &Parts) -> Result<&Caller, Error> {
    let caller = parts.extensions.get::<Arc<Caller>>();
    caller.map(|caller| &**caller).ok_or_else(|| Error::internal("a request came past the gate"))
}

/// The task that the path names. What is no id names no task.
struct Id(TaskId);

impl FromRequestParts<Arc<Api>> for Id {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Error> {
        let path = Path::<String>::from_request_parts(parts, api).await;
        path.ok().and_then(|Path(text)| text.parse().ok()).map(Self).ok_or_else(Error::no_task)
    }
}

/// An answer in JSON.
fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, Error> {
    let text = serde_json::to_vec(value).map_err(Error::internal)?;
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
