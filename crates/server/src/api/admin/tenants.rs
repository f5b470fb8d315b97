//! Tenants: on what terms they are here, and what they use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::id::TenantName;
use rayreel_domain::schedule::UNIT_WEIGHT;
use rayreel_domain::tenant::Terms;
use rayreel_domain::wire::admin::{TenantBody, TenantLimits, TenantList, TenantUsage};
use rayreel_domain::wire::api::ErrorBody;

use crate::api::error::Error;
use crate::api::{Api, json, query};
use crate::keyring::DEFAULT_TENANT;

/// Lists the tenants, with their terms and what they use now.
///
/// A tenant is listed that the configuration names, that has or had a key, or that uses something.
#[utoipa::path(get, path = "/v1/admin/tenants", tag = "admin", operation_id = "list_tenants",
    responses(
        (status = 200, description = "By their names.", body = TenantList),
    ))]
pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response, Error> {
    query::none(request.uri())?;
    json(StatusCode::OK, &TenantList { data: api.tenants().await? })
}

/// Shows a tenant, with its terms and what it uses now.
#[utoipa::path(get, path = "/v1/admin/tenants/{name}", tag = "admin", operation_id = "get_tenant",
    params(("name" = String, Path, description = "Name of the tenant.")),
    responses(
        (status = 200, description = "The tenant.", body = TenantBody),
        (status = 404, description = "`tenant_not_found`", body = ErrorBody),
    ))]
pub(in crate::api) async fn show(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Error> {
    let none = || Error::new(Code::TenantNotFound, "there is no tenant of this name");
    let Path(name) = path.map_err(|_| none())?;
    query::none(&uri)?;
    let mut tenants = api.tenants().await?.into_iter();
    json(StatusCode::OK, &tenants.find(|tenant| tenant.name == name).ok_or_else(none)?)
}

impl Api {
    async fn tenants(&self) -> Result<Vec<TenantBody>, Error> {
        let components = &self.app.components;
        let now = components.clock.wall();
        let tenancy = self.app.settings.tenancy();
        let mut used = BTreeMap::new();
        for one in components.store.usage().await? {
            used.insert(one.tenant.clone(), one);
        }
        let mut keys: BTreeMap<TenantName, u64> = BTreeMap::new();
        for key in self.app.keyring.list() {
            let live = key.revoked_at.is_none()
                && key.expires_at.is_none_or(|expires_at| now < expires_at);
            *keys.entry(key.tenant).or_default() += u64::from(live);
        }
        // Of those who need no key.
        let default: TenantName = DEFAULT_TENANT.parse().map_err(Error::internal)?;
        let mut names: BTreeSet<TenantName> = [default].into();
        names.extend(tenancy.own.keys().chain(used.keys()).chain(keys.keys()).cloned());
        let body = |name: TenantName| {
            let mut usage =
                TenantUsage { keys: keys.get(&name).copied().unwrap_or(0), ..<_>::default() };
            if let Some(one) = used.get(&name) {
                usage.queued = one.usage.queued;
                usage.running = one.running;
                usage.queued_gpu_seconds = one.usage.queued_ms as f64 / 1000.0;
                usage.gpu_seconds_today = one.usage.day_ms as f64 / 1000.0;
                usage.tasks_last_minute = one.last_minute;
                usage.file_bytes = one.file_bytes;
            }
            let limits = limits(&tenancy.of(&name), self.app.settings.inputs.max_tenant_bytes);
            TenantBody {
                configured: tenancy.own.contains_key(&name),
                name: name.to_string(),
                limits,
                usage,
            }
        };
        Ok(names.into_iter().map(body).collect())
    }
}

/// In the words of the configuration.
fn limits(terms: &Terms, max_file_bytes: u64) -> TenantLimits {
    let Terms { weight, per_minute, queued, running, day_ms, keep_ms } = *terms;
    TenantLimits {
        weight: f64::from(weight) / f64::from(UNIT_WEIGHT),
        tasks_per_minute: per_minute,
        max_queued: queued,
        max_running: running,
        gpu_seconds_per_day: day_ms.map(|ms| ms / 1000),
        keep_days: keep_ms.map(|ms| ms as f64 / 86_400_000.0),
        max_file_bytes,
    }
}
