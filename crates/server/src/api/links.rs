//! Links to a task's files that need no key: signed here, and good until their time is over.
//!
//! A link says its task, its file and its end, and the signature says that this server has written
//! them. Nothing of the tenant stands in it: a task has one tenant for ever, who is found by the
//! task once the signature is proved, so that a made-up link tells nothing of what there is.

use std::sync::Arc;

use axum::body::HttpBody;
use axum::extract::{FromRequestParts, Request, State};
use axum::response::Response;
use http::request::Parts;
use http::{StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::wire::api::{ErrorBody, TASKS_PATH};
use rayreel_domain::wire::delivery::{LinkAnswer, LinkBody};

use super::base::Base;
use super::content::{self, THUMBNAIL};
use super::error::Error;
use super::{Api, Id, Tenant, body, gate, json, query};
use crate::signing::{LINKS, Secret};

const MAX_BODY: u64 = 16 * 1024;
/// Seconds.
pub(super) const DEFAULT_TIME: u64 = 3_600;
const MAX_TIME: u64 = 7 * 86_400;

/// Makes a link to the result that needs no key.
///
/// Whoever has it can load the file, also in parts, until it expires or the task is deleted. An empty
/// body makes a link for an hour.
#[utoipa::path(post, path = "/v1/video/generations/{id}/link", tag = "generations", operation_id = "link_generation",
    params(("id" = String, Path, description = "Id of the task.")),
    request_body(content = LinkBody, example = json!({"expires_in": 3600})),
    responses(
        (status = 200, description = "The link.", body = LinkAnswer),
        (status = 400, description = "`invalid_json`, `unknown_field` or `invalid_value`.", body = ErrorBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
        (status = 409, description = "`not_finished`: the task is queued or running.", body = ErrorBody),
        (status = 410, description = "The task ended without a result; the code says how.", body = ErrorBody),
    ))]
pub(super) async fn link(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    base: Base,
    request: Request,
) -> Result<Response, Error> {
    query::none(request.uri())?;
    let asked = match request.body().size_hint().exact() {
        Some(0) => LinkBody::default(),
        _ => body::json(&api.bodies, request, MAX_BODY).await?.1,
    };
    let seconds = asked.expires_in.unwrap_or(DEFAULT_TIME);
    if !(1..=MAX_TIME).contains(&seconds) {
        let message = format!("`expires_in` must be a whole number from 1 to {MAX_TIME}");
        return Err(Error::invalid("expires_in", message));
    }
    let thumbnail = content::is_thumbnail(asked.variant.as_deref())?;
    let view = api.app.components.store.get(&tenant, id).await?.ok_or_else(Error::no_task)?;
    content::output(&view.task, thumbnail)?;
    json(StatusCode::OK, &make(&api, &base, id, thumbnail, seconds).await?)
}

/// A link to a file that is there.
pub(super) async fn make(
    api: &Api,
    base: &Base,
    id: TaskId,
    thumbnail: bool,
    seconds: u64,
) -> Result<LinkAnswer, Error> {
    let expires_at = api.app.components.clock.wall().unix_seconds() + seconds;
    let variant = if thumbnail { THUMBNAIL } else { "" };
    let signature = secret(api).await?.sign_link(id, variant, expires_at);
    let mut url = format!("{}{TASKS_PATH}/{id}/content?", base.as_str());
    if thumbnail {
        url.push_str(&format!("variant={THUMBNAIL}&"));
    }
    url.push_str(&format!("expires={expires_at}&signature={signature}"));
    Ok(LinkAnswer { url, expires_at })
}

/// Does this address come with a signature? Then [`Viewer`] proves it, and no key is asked for.
pub(super) fn is_signed(uri: &Uri) -> bool {
    gate::pattern(uri.path()) == "/v1/video/generations/{id}/content"
        && uri.query().is_some_and(|query| {
            form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "signature")
        })
}

/// Who may see the file that the path names: its tenant, or whoever has a link to it.
pub(super) struct Viewer {
    pub(super) tenant: TenantName,
    /// Seconds for which the link is still good.
    pub(super) left: Option<u64>,
}

impl FromRequestParts<Arc<Api>> for Viewer {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Error> {
        if !is_signed(&parts.uri) {
            let Tenant(tenant) = Tenant::from_request_parts(parts, api).await?;
            return Ok(Self { tenant, left: None });
        }
        let Id(id) = Id::from_request_parts(parts, api).await?;
        let [variant, expires, signature] =
            query::read(&parts.uri, ["variant", "expires", "signature"])?;
        let expires = query::number("expires", expires, 0..=u64::MAX)?.unwrap_or(0);
        let variant = variant.unwrap_or_default();
        let signature = signature.unwrap_or_default();
        let invalid = |message: &'static str| Error::new(Code::LinkInvalid, message);
        if !secret(api).await?.signed_link(id, &variant, expires, &signature) {
            return Err(invalid("this link was not made by this server, or was changed"));
        }
        let left = expires.saturating_sub(api.app.components.clock.wall().unix_seconds());
        if left == 0 {
            return Err(invalid("this link has expired"));
        }
        let tenant = api.app.components.store.owner(id).await?.ok_or_else(Error::no_task)?;
        Ok(Self { tenant, left: Some(left) })
    }
}

async fn secret(api: &Api) -> Result<Secret, Error> {
    let components = &api.app.components;
    let fresh = Secret::new(&components.random, components.clock.wall());
    Ok(components.store.secret(LINKS, fresh).await?)
}
