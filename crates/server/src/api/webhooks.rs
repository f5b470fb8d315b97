//! Webhooks: where a task's end is told, how that went, once more, and with which secret.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::header::CACHE_CONTROL;
use http::{HeaderValue, StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::webhook::Webhook;
use rayreel_domain::wire::api::{ErrorBody, TASKS_PATH};
use rayreel_domain::wire::delivery::{OldSecret, SecretBody, WebhookBody, WebhookTarget};

use super::base::Base;
use super::error::Error;
use super::{Api, Id, Tenant, json, query};
use crate::outbound;
use crate::signing::{self, Secret};

impl Api {
    /// What a submit says of its webhook, if that may be called at all. Where the name leads is
    /// found out when it is called.
    pub(super) fn webhook(&self, target: &WebhookTarget, base: &Base) -> Result<Webhook, Error> {
        match self.app.components.outbound.check(&target.url) {
            Ok(()) => {}
            Err(outbound::Error::Refused(why)) => {
                return Err(Error::invalid("webhook", format!("`webhook`: {why}")));
            }
            Err(error) => return Err(Error::internal(error)),
        }
        Ok(Webhook { url: target.url.clone(), base: base.as_str().to_owned() })
    }
}

/// Delivers a webhook once more.
///
/// However it stands, it is called at once, and again as long as it fails. Its `webhook-id` is the
/// one that it had before.
#[utoipa::path(post, path = "/v1/video/generations/{id}/webhook/redeliver", tag = "webhooks", operation_id = "redeliver_webhook",
    params(("id" = String, Path, description = "Id of the task.")),
    responses(
        (status = 202, description = "It will be called.", body = WebhookBody),
        (status = 400, description = "`unknown_field`: there are no query parameters here.", body = ErrorBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
        (status = 409, description = "`not_finished`: there is nothing to tell yet. `no_webhook`: the submit named none.", body = ErrorBody),
    ))]
pub(super) async fn redeliver(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    let store = &api.app.components.store;
    let view = store.get(&tenant, id).await?.ok_or_else(Error::no_task)?;
    let task = &view.task;
    if task.webhook.is_none() {
        let message = "the submit of this task named no `webhook`, so there is nobody to tell";
        return Err(Error::new(Code::NoWebhook, message));
    }
    if !task.state.is_terminal() {
        let message = format!(
            "the task is {}; its webhook is called when it has ended: see `{TASKS_PATH}/{id}`",
            task.state
        );
        return Err(Error::new(Code::NotFinished, message));
    }
    let delivery = store.redeliver(&tenant, id).await?;
    json(StatusCode::ACCEPTED, &WebhookBody::new(task, Some(&delivery)))
}

/// Shows the secret with which your webhooks are signed.
///
/// It is made when it is first needed. Verify with any library of Standard Webhooks.
#[utoipa::path(get, path = "/v1/webhooks/secret", tag = "webhooks", operation_id = "webhook_secret", responses(
    (status = 200, description = "The secret.", body = SecretBody),
    (status = 400, description = "`unknown_field`: there are no query parameters here.", body = ErrorBody),
))]
pub(super) async fn secret(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    let name = signing::webhooks_of(&tenant);
    shown(&api, &api.app.components.store.secret(&name, fresh(&api)).await?)
}

/// Replaces the secret with which your webhooks are signed.
///
/// For 24 hours the old one signs beside it: `webhook-signature` has a signature of each. Put the
/// new one into your receiver within that time.
#[utoipa::path(post, path = "/v1/webhooks/secret/rotate", tag = "webhooks", operation_id = "rotate_webhook_secret", responses(
    (status = 200, description = "The new secret.", body = SecretBody),
    (status = 400, description = "`unknown_field`: there are no query parameters here.", body = ErrorBody),
))]
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    let name = signing::webhooks_of(&tenant);
    let store = &api.app.components.store;
    let secret = store.rotate_secret(&name, fresh(&api), signing::OVERLAP_MS).await?;
    tracing::info!(%tenant, "webhook secret rotated");
    shown(&api, &secret)
}

fn fresh(api: &Api) -> Secret {
    let components = &api.app.components;
    Secret::new(&components.random, components.clock.wall())
}

fn shown(api: &Api, secret: &Secret) -> Result<Response, Error> {
    let now = api.app.components.clock.wall();
    let old = |until: rayreel_domain::Timestamp| OldSecret { expires_at: until.unix_seconds() };
    let body = SecretBody {
        secret: secret.text(),
        created_at: secret.created_at.unix_seconds(),
        previous: secret.overlaps(now).map(old).collect(),
    };
    let mut response = json(StatusCode::OK, &body)?;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
