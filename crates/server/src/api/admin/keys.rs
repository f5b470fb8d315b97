//! Keys: who may call.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::id::{PoolName, TenantName};
use rayreel_domain::key::{MAX_KEY_NAME, Scope};
use rayreel_domain::wire::admin::{CreateKey, KeyBody, KeyList};
use rayreel_domain::wire::api::ErrorBody;

use crate::api::error::Error;
use crate::api::{Api, body, json, query};
use crate::keyring::{DEFAULT_TENANT, NewKey};

const MAX_BODY: u64 = 64 * 1024;
const DAY_MS: u64 = 86_400_000;
const MAX_DAYS: u32 = 36_500;

/// Makes an API key.
///
/// The key stands in the answer and is shown nowhere else: only a hash of it is stored. From the
/// first key on, every request needs one.
#[utoipa::path(post, path = "/v1/admin/keys", tag = "admin", operation_id = "create_key",
    request_body(content = CreateKey, example = json!({"name": "studio", "tenant": "acme", "scopes": ["submit", "read"]})),
    responses(
        (status = 201, description = "The key; store it now.", body = KeyBody),
        (status = 400, description = "`invalid_json`, `unknown_field` or `invalid_value`.", body = ErrorBody),
    ))]
pub(in crate::api) async fn create(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response, Error> {
    let (parts, asked): (_, CreateKey) = body::json(&api.bodies, request, MAX_BODY).await?;
    query::none(&parts.uri)?;
    let name = asked.name.trim();
    if name.chars().count() > MAX_KEY_NAME || asked.name.chars().any(char::is_control) {
        let message = format!("`name` has at most {MAX_KEY_NAME} characters, none of control");
        return Err(Error::invalid("name", message));
    }
    let tenant: TenantName = asked
        .tenant
        .as_deref()
        .unwrap_or(DEFAULT_TENANT)
        .parse()
        .map_err(|error| Error::invalid("tenant", format!("`tenant`: {error}")))?;
    let scopes = asked.scopes.unwrap_or_else(|| vec![Scope::Submit, Scope::Read]);
    if scopes.is_empty() {
        return Err(Error::invalid(
            "scopes",
            "`scopes` names at least one of submit, read, admin, worker",
        ));
    }
    let pool = asked.pool.map(|pool| -> Result<PoolName, Error> {
        let invalid = |message: String| Error::invalid("pool", message);
        if !scopes.contains(&Scope::Worker) {
            return Err(invalid("`pool` is for keys with the scope `worker`".to_owned()));
        }
        let pool = pool.parse().map_err(|error| invalid(format!("`pool`: {error}")))?;
        api.has_pool(&pool)?;
        Ok(pool)
    });
    let pool = pool.transpose()?;
    let components = &api.app.components;
    let expires_at = match asked.expires_in_days {
        None => None,
        Some(days) if (1..=MAX_DAYS).contains(&days) => {
            Some(components.clock.wall().plus_ms(u64::from(days) * DAY_MS))
        }
        Some(_) => {
            let message = format!("`expires_in_days` must be a whole number from 1 to {MAX_DAYS}");
            return Err(Error::invalid("expires_in_days", message));
        }
    };
    let scopes = scopes.into_iter().collect();
    let wanted = NewKey { name: name.to_owned(), tenant, scopes, pool, expires_at };
    let app = Arc::clone(&api.app);
    // A task of its own, which goes on if the caller hangs up.
    let made = tokio::spawn(async move { app.keyring.create(&app.components, wanted).await });
    let (key, record) = made.await.map_err(Error::internal)??;
    tracing::info!(key = record.id, tenant = %record.tenant, "key created");
    let body = KeyBody { key: Some(key.text().to_owned()), ..KeyBody::from(&record) };
    json(StatusCode::CREATED, &body)
}

/// Lists the keys, without their text.
#[utoipa::path(get, path = "/v1/admin/keys", tag = "admin", operation_id = "list_keys", responses(
    (status = 200, description = "Every key, revoked ones too.", body = KeyList),
))]
pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    request: Request,
) -> Result<Response, Error> {
    query::none(request.uri())?;
    let keyring = &api.app.keyring;
    let data = keyring.list().iter().map(KeyBody::from).collect();
    json(StatusCode::OK, &KeyList { data, locked: keyring.is_locked() })
}

/// Revokes a key, at once and for good.
#[utoipa::path(delete, path = "/v1/admin/keys/{id}", tag = "admin", operation_id = "revoke_key",
    params(("id" = String, Path, description = "Id of the key.")),
    responses(
        (status = 200, description = "The key, which is refused from now on.", body = KeyBody),
        (status = 404, description = "`key_not_found`", body = ErrorBody),
    ))]
pub(in crate::api) async fn revoke(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Error> {
    let no_key = || Error::new(Code::KeyNotFound, "there is no key with this id");
    let Path(id) = path.map_err(|_| no_key())?;
    query::none(&uri)?;
    let app = Arc::clone(&api.app);
    // A task of its own: a key that is revoked in the store only would go on until the next start.
    let revoked = tokio::spawn(async move { app.keyring.revoke(&app.components, &id).await });
    let revoked = revoked.await.map_err(Error::internal)??;
    let record = revoked.ok_or_else(no_key)?;
    tracing::info!(key = record.id, tenant = %record.tenant, "key revoked");
    json(StatusCode::OK, &KeyBody::from(&record))
}
