//! Images: tasks like all others, whose caller waits for them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, StatusCode};
use rayreel_domain::Code;
use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::task::{Idempotency, State as TaskState, Task};
use rayreel_domain::wire::api::{ErrorBody, SubmitBody};
use rayreel_domain::wire::openai::{GenerateImages, ImageBody, ImagesBody, ResponseFormat};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::base::Base;
use super::super::error::Error;
use super::super::input::Sources;
use super::super::tasks::{Keyed, Submission};
use super::super::{Api, Tenant, body, content, json, links, query, tasks, wait};
use super::{native, spelt};
use crate::store::View;

/// Tells OpenAI's clients, which would repeat the call by themselves, not to.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Generates images and answers with them.
///
/// Each is a task like any other. A caller who hangs up cancels them. Repeated within 24 hours with
/// the same `Idempotency-Key` and the same body, the call answers with the images of the first one,
/// and waits for them if they are still being made; what was cancelled because nobody waited any more
/// is made anew. `user`, `quality`, `style`,
/// `background` and `moderation` are ignored; any other field that is not listed is refused.
#[utoipa::path(post, path = "/v1/images/generations", tag = "images", operation_id = "generate_images",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters.")),
    request_body(content = GenerateImages, example = json!({"prompt": "a red fox in snow", "size": "1024x1024", "n": 1})),
    responses(
        (status = 200, description = "The images.", body = ImagesBody),
        (status = 400, description = "`invalid_json`, `missing_field`, `unknown_field`, `invalid_value` or `unknown_model`.", body = ErrorBody),
        (status = 409, description = "`idempotency_mismatch`: the key was used with another request. `task_deleted`: what it made is gone.", body = ErrorBody),
        (status = 422, description = "An image failed or was cancelled; the code says how.", body = ErrorBody),
        (status = 429, description = "`queue_full` or `limit_reached`; come back after Retry-After.", body = ErrorBody),
        (status = 504, description = "`wait_exceeded`: not made in time, and cancelled.", body = ErrorBody),
    ))]
pub(in crate::api) async fn generate(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    base: Base,
    request: Request,
) -> Result<Response, Error> {
    let (parts, bytes) = body::whole(&api.bodies, request, api.app.settings.max_body_bytes).await?;
    let asked: GenerateImages = body::parse(&bytes, |field| api.allowed(native(field), &bytes))?;
    query::none(&parts.uri)?;
    let headers = parts.headers.clone();
    // With what the body took: the wait may be long.
    drop((parts, bytes));
    let limit = api.app.settings.max_wait_seconds.duration();
    let begun = Instant::now();
    let made = loop {
        // Under a key of its own, whatever other routes make of the same words.
        let key = tasks::keyed(&api, &tenant, &headers, &("images", &asked)).await?;
        let keyed = !matches!(key, Keyed::New(None));
        let (mut views, mut awaited) = match key {
            Keyed::Before(views) => (views, None),
            Keyed::New(idempotency) => {
                let (api, tenant, base) = (Arc::clone(&api), tenant.clone(), base.clone());
                let submit = Awaited::submit(api, tenant, base, asked.native(), idempotency);
                // A task of its own: what it has submitted when the caller hangs up, it takes back.
                let awaited = tokio::spawn(submit).await.map_err(Error::internal)??;
                (awaited.views.clone(), Some(awaited))
            }
        };
        let left = limit.saturating_sub(begun.elapsed());
        let ended = wait::ended(&api, &tenant, &mut views, left).await;
        let made: Vec<Arc<Task>> = views.into_iter().map(|view| view.task).collect();
        if !ended {
            let took_back = match &mut awaited {
                Some(awaited) => awaited.withdraw().await,
                None => false,
            };
            return Err(not_in_time(&api, &made, limit, took_back));
        }
        if let Some(awaited) = &mut awaited {
            awaited.views.clear();
        }
        let cancelled = made.iter().any(|task| task.state == TaskState::Cancelled);
        if keyed && cancelled && !is_known(&api, &tenant, &headers, &asked).await? {
            // Another call under the key made them, and its caller has gone.
            continue;
        }
        break made;
    };
    let several = asked.n.unwrap_or(1) as usize;
    if made.len() < several {
        let message = format!("of the {several} images of this idempotency key some are deleted");
        return Err(Error::new(Code::TaskDeleted, message).param("Idempotency-Key"));
    }
    if let Some(failed) = made.iter().find(|task| task.state != TaskState::Succeeded) {
        return Err(failure(failed));
    }
    let mut data = Vec::with_capacity(made.len());
    for task in &made {
        data.push(match asked.response_format.unwrap_or(ResponseFormat::B64Json) {
            ResponseFormat::Url => {
                let link = links::make(&api, &base, task.id, false, links::DEFAULT_TIME).await?;
                ImageBody { url: Some(link.url), b64_json: None }
            }
            ResponseFormat::B64Json => {
                let bytes = content::whole(&api, task).await?;
                ImageBody { b64_json: Some(STANDARD.encode(bytes)), url: None }
            }
        });
    }
    json(
        StatusCode::OK,
        &ImagesBody {
            created: api.app.components.clock.wall().unix_seconds(),
            data,
            output_format: asked.output_format.unwrap_or_default(),
            size: made.first().map(|task| task.request.size.to_string()).unwrap_or_default(),
        },
    )
}

/// Does the key still lead to tasks?
async fn is_known(
    api: &Api,
    tenant: &TenantName,
    headers: &HeaderMap,
    asked: &GenerateImages,
) -> Result<bool, Error> {
    let key = tasks::keyed(api, tenant, headers, &("images", asked)).await?;
    Ok(matches!(key, Keyed::Before(_)))
}

/// The wait is over, and the images are not there.
fn not_in_time(api: &Api, made: &[Arc<Task>], limit: Duration, took_back: bool) -> Error {
    let ids: Vec<String> = made.iter().map(|task| task.id.to_string()).collect();
    let (ids, seconds) = (ids.join(", "), limit.as_secs_f64());
    let fate = if took_back { "was cancelled" } else { "goes on, for another call waits for it" };
    let message = if api.app.stopping.is_cancelled() {
        format!("the server is about to stop; {ids} {fate}")
    } else {
        format!("not ready within the {seconds} seconds that a call may wait; {ids} {fate}")
    };
    Error::new(Code::WaitExceeded, message).header(SHOULD_RETRY, HeaderValue::from_static("false"))
}

/// Why there is no image.
fn failure(task: &Task) -> Error {
    let (code, message) = match &task.error {
        Some(failure) => (failure.code, &*failure.message),
        None => (Code::Internal, "it has no result"),
    };
    Error::new(code, format!("{} is {}: {message}", task.id, task.state))
        .with_status(StatusCode::UNPROCESSABLE_ENTITY)
}

/// Tasks that nobody wants but the caller who waits for them: dropped, it cancels them.
struct Awaited {
    api: Arc<Api>,
    tenant: TenantName,
    views: Vec<View>,
}

impl Awaited {
    async fn submit(
        api: Arc<Api>,
        tenant: TenantName,
        base: Base,
        asked: SubmitBody,
        idempotency: Option<Idempotency>,
    ) -> Result<Self, Error> {
        let images = Sources::default();
        let submission =
            Submission { asked: &asked, images, idempotency, remixed: None, seconds: None };
        let made = tasks::accept(&api, tenant.clone(), &base, submission).await;
        Ok(Self { api, tenant, views: made.map_err(spelt)? })
    }

    /// Cancels them before the answer leaves; tells that it has tried.
    async fn withdraw(&mut self) -> bool {
        let ids = self.views.iter().map(|view| view.task.id).collect();
        withdraw(&self.api, &self.tenant, ids).await;
        self.views.clear();
        true
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if self.views.is_empty() {
            return;
        }
        let (api, tenant) = (Arc::clone(&self.api), self.tenant.clone());
        let ids = self.views.iter().map(|view| view.task.id).collect();
        // Without a runtime the process is about to end.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { withdraw(&api, &tenant, ids).await });
        }
    }
}

async fn withdraw(api: &Api, tenant: &TenantName, ids: Vec<TaskId>) {
    if let Err(error) = api.app.components.store.withdraw(tenant, ids).await {
        tracing::warn!(%error, "images that nobody waits for were not cancelled");
    }
}
