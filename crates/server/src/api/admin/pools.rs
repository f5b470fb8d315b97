//! Pools: their workers and their work, and closing one to claims.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::id::PoolName;
use rayreel_domain::wire::admin::{BreakerBody, PoolBody, PoolList, WorkerCounts};
use rayreel_domain::wire::api::ErrorBody;

use crate::api::error::Error;
use crate::api::{Api, json, query};
use crate::config::Provider;

/// Lists the pools, with their workers and their work.
#[utoipa::path(get, path = "/v1/admin/pools", tag = "admin", operation_id = "list_pools",
    responses(
        (status = 200, description = "By their names.", body = PoolList),
    ))]
pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response, Error> {
    query::none(request.uri())?;
    json(StatusCode::OK, &PoolList { data: api.pools().await? })
}

/// Closes a pool: nothing of it is claimed and no worker is started, until it is resumed.
///
/// Running tasks finish; the others stay queued, and say why in `waiting_reason`. It lasts over a
/// restart of the server. Done twice, it is as done once.
#[utoipa::path(post, path = "/v1/admin/pools/{name}/drain", tag = "admin",
    operation_id = "drain_pool",
    params(("name" = String, Path, description = "Name of the pool.")),
    responses(
        (status = 200, description = "The pool, which is closed.", body = PoolBody),
        (status = 404, description = "`pool_not_found`", body = ErrorBody),
        (status = 503, description = "`store_unavailable` or `outcome_unknown`.", body = ErrorBody),
    ))]
pub(in crate::api) async fn drain(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Error> {
    api.close(path, &uri, true).await
}

/// Opens a pool again that was drained.
#[utoipa::path(post, path = "/v1/admin/pools/{name}/resume", tag = "admin",
    operation_id = "resume_pool",
    params(("name" = String, Path, description = "Name of the pool.")),
    responses(
        (status = 200, description = "The pool, which is open.", body = PoolBody),
        (status = 404, description = "`pool_not_found`", body = ErrorBody),
        (status = 503, description = "`store_unavailable` or `outcome_unknown`.", body = ErrorBody),
    ))]
pub(in crate::api) async fn resume(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Error> {
    api.close(path, &uri, false).await
}

impl Api {
    async fn close(
        &self,
        path: Result<Path<String>, PathRejection>,
        uri: &Uri,
        drained: bool,
    ) -> Result<Response, Error> {
        let none = || Error::new(Code::PoolNotFound, "no pool of this name is configured");
        let Path(name) = path.map_err(|_| none())?;
        query::none(uri)?;
        let name: PoolName = name.parse().map_err(|_| none())?;
        if !self.app.settings.pools.contains_key(&name) {
            return Err(none());
        }
        self.app.components.store.drain_pool(&name, drained).await?;
        self.app.targets.drained(&name, drained);
        tracing::info!(pool = %name, "{}", if drained { "drained" } else { "resumed" });
        let mut pools = self.pools().await?.into_iter();
        json(StatusCode::OK, &pools.find(|pool| pool.name == name.as_str()).ok_or_else(none)?)
    }

    async fn pools(&self) -> Result<Vec<PoolBody>, Error> {
        let store = &self.app.components.store;
        let mut counts: BTreeMap<String, WorkerCounts> = BTreeMap::new();
        for worker in self.workers().await? {
            counts.entry(worker.pool).or_default().add(worker.state);
        }
        let backlog = store.backlog().await?;
        let closed = store.drained_pools().await?;
        let body = |(name, config): (&PoolName, &crate::config::Pool)| {
            let work = backlog.iter().find(|work| work.pool == *name);
            let (waiting_reason, breaker) = self.app.targets.obstacles(name);
            PoolBody {
                name: name.to_string(),
                provider: match config.provider {
                    Provider::Local => "local".to_owned(),
                },
                min: config.min,
                max: config.max,
                target: self.app.targets.of(name),
                drained: closed.contains(name),
                workers: counts.remove(name.as_str()).unwrap_or_default(),
                queued: work.map_or(0, |work| work.queued),
                running: work.map_or(0, |work| work.running),
                queued_gpu_seconds: work.map_or(0.0, |work| work.queued_ms as f64 / 1000.0),
                breaker: BreakerBody { open: breaker.is_some(), reason: breaker },
                waiting_reason,
            }
        };
        Ok(self.app.settings.pools.iter().map(body).collect())
    }
}
