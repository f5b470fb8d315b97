//! Workers: what they are at, and letting one go.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::Timestamp;
use rayreel_domain::id::WorkerName;
use rayreel_domain::wire::admin::{
    LaunchBody, QuarantinedModel, WorkerBody, WorkerList, WorkerState, WorkerTask,
};
use rayreel_domain::wire::api::ErrorBody;

use crate::api::error::Error;
use crate::api::{Api, json, query};
use crate::fleet::SILENT_MS;
use crate::store::{Activity, Launch, LeaseView, WorkerView};

/// Lists the workers: those that have registered, and those that the server has just started.
#[utoipa::path(get, path = "/v1/admin/workers", tag = "admin", operation_id = "list_workers",
    responses(
        (status = 200, description = "By their pools and names.", body = WorkerList),
    ))]
pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response, Error> {
    query::none(request.uri())?;
    json(StatusCode::OK, &WorkerList { data: api.workers().await? })
}

/// Lets a worker go: it finishes its task, gets no other, and exits.
///
/// This costs the task nothing. One that the server has started is replaced, if there is work. A
/// worker that is draining may be drained again; when it has gone, there is none of its name.
#[utoipa::path(post, path = "/v1/admin/workers/{name}/drain", tag = "admin",
    operation_id = "drain_worker",
    params(("name" = String, Path, description = "Name of the worker.")),
    responses(
        (status = 200, description = "The worker, which goes.", body = WorkerBody),
        (status = 404, description = "`worker_not_found`", body = ErrorBody),
        (status = 409, description = "`worker_starting`", body = ErrorBody),
        (status = 503, description = "`store_unavailable` or `outcome_unknown`.", body = ErrorBody),
    ))]
pub(in crate::api) async fn drain(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Error> {
    let none = || Error::new(Code::WorkerNotFound, "there is no worker of this name");
    let Path(name) = path.map_err(|_| none())?;
    query::none(&uri)?;
    let name: WorkerName = name.parse().map_err(|_| none())?;
    let mut workers = api.workers().await?.into_iter();
    let mut worker = workers.find(|worker| worker.name == name.as_str()).ok_or_else(none)?;
    if api.app.components.store.drain_worker(&name).await? {
        tracing::info!(worker = %name, "drained");
    } else if worker.state == WorkerState::Starting && worker.last_seen_at.is_none() {
        let message = "this worker has not registered yet; try again in a moment";
        return Err(Error::new(Code::WorkerStarting, message));
    }
    worker.state = WorkerState::Draining;
    json(StatusCode::OK, &worker)
}

impl Api {
    pub(super) async fn workers(&self) -> Result<Vec<WorkerBody>, Error> {
        let components = &self.app.components;
        // Leases first: a task that is taken in between makes nobody idle who is busy.
        let leases = components.store.leases().await?;
        let registered = components.store.workers().await?;
        let mut launches: HashMap<String, Launch> = HashMap::new();
        for launch in components.store.launches().await? {
            launches.insert(launch.id.clone(), launch);
        }
        let now = components.clock.wall();
        let mut bodies = Vec::with_capacity(registered.len());
        for worker in registered {
            let launch = launches.remove(worker.by.worker.as_str());
            let lease = leases.iter().find(|lease| lease.worker == worker.by.worker);
            bodies.push(body(worker, lease, launch, now));
        }
        bodies.extend(launches.into_values().map(unregistered));
        bodies.sort_by(|a, b| (&a.pool, &a.name).cmp(&(&b.pool, &b.name)));
        Ok(bodies)
    }
}

fn body(
    worker: WorkerView,
    lease: Option<&LeaseView>,
    launch: Option<Launch>,
    now: Timestamp,
) -> WorkerBody {
    let ago = |ms: u64| now.0.saturating_sub(ms) / 1000;
    let state = match worker.activity {
        _ if worker.silent_ms >= SILENT_MS => WorkerState::Silent,
        _ if worker.draining => WorkerState::Draining,
        _ if lease.is_some() => WorkerState::Busy,
        Activity::Starting => WorkerState::Starting,
        Activity::Busy => WorkerState::Busy,
        Activity::Idle { .. } if !worker.quarantined.is_empty() => WorkerState::Quarantined,
        Activity::Idle { .. } => WorkerState::Idle,
    };
    let quarantined = worker.quarantined.into_iter();
    WorkerBody {
        name: worker.by.worker.to_string(),
        pool: worker.pool.to_string(),
        state,
        model: worker.loaded.map(|model| model.to_string()),
        task: lease.map(|lease| WorkerTask {
            id: lease.fence.task.to_string(),
            attempt: lease.fence.attempt,
            started_at: ago(lease.held_ms),
        }),
        quarantined: quarantined
            .map(|(model, reason)| QuarantinedModel { model: model.to_string(), reason })
            .collect(),
        last_seen_at: Some(ago(worker.silent_ms)),
        version: Some(worker.version).filter(|version| !version.is_empty()),
        launch: launch.map(|launch| launched(&launch)),
    }
}

/// One whose process is known, and nothing else: it has not come yet, or is about to exit.
fn unregistered(launch: Launch) -> WorkerBody {
    WorkerBody {
        state: if launch.claimed { WorkerState::Draining } else { WorkerState::Starting },
        launch: Some(launched(&launch)),
        name: launch.id,
        pool: launch.pool.to_string(),
        model: None,
        task: None,
        quarantined: Vec::new(),
        last_seen_at: None,
        version: None,
    }
}

fn launched(launch: &Launch) -> LaunchBody {
    LaunchBody { pid: launch.pid, created_at: launch.created_at.0 / 1000 }
}
