//! Images: tasks like all others, whose caller waits for them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderName;
use http::{HeaderValue, StatusCode};
use rayreel_domain::Code;
use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::task::{State as TaskState, Task};
use rayreel_domain::wire::api::{ErrorBody, SubmitBody};
use rayreel_domain::wire::openai::{
    GenerateImages, ImageBody, ImagesBody, OutputFormat, ResponseFormat,
};
use tokio::runtime::Handle;

use super::super::base::Base;
use super::super::error::Error;
use super::super::input::Sources;
use super::super::tasks::Submission;
use super::super::{Api, Tenant, body, content, json, links, query, tasks, wait};
use super::{native, spelt};
use crate::store::View;

/// Tells OpenAI's clients, which would repeat the call by themselves, not to.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Generates images and answers with them.
///
/// Each is a task like any other. A caller who hangs up cancels them. `user`, `quality`, `style`,
/// `background` and `moderation` are ignored; any other field that is not listed is refused.
#[utoipa::path(post, path = "/v1/images/generations", tag = "images", operation_id = "generate_images",
    request_body(content = GenerateImages, example = json!({"prompt": "a red fox in snow", "size": "1024x1024", "n": 1})),
    responses(
        (status = 200, description = "The images.", body = ImagesBody),
        (status = 400, description = "`invalid_json`, `missing_field`, `unknown_field`, `invalid_value` or `unknown_model`.", body = ErrorBody),
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
    // With what the body took: the wait may be long.
    drop((parts, bytes));
    let submit = Awaited::submit(Arc::clone(&api), tenant.clone(), base.clone(), asked.native());
    // A task of its own: what it has submitted when the caller hangs up, it takes back.
    let mut awaited = tokio::spawn(submit).await.map_err(Error::internal)??;
    let limit = api.app.settings.max_wait_seconds.duration();
    let ended = wait::ended(&api, &tenant, &mut awaited.views, limit).await;
    let made: Vec<Arc<Task>> = awaited.views.iter().map(|view| Arc::clone(&view.task)).collect();
    if !ended {
        awaited.cancel().await;
        let ids: Vec<String> = made.iter().map(|task| task.id.to_string()).collect();
        let (ids, seconds) = (ids.join(", "), limit.as_secs_f64());
        let message = if api.app.stopping.is_cancelled() {
            format!("the server is about to stop; {ids} was cancelled")
        } else {
            format!(
                "not ready within the {seconds} seconds that a call may wait; {ids} was cancelled"
            )
        };
        return Err(Error::new(Code::WaitExceeded, message)
            .header(SHOULD_RETRY, HeaderValue::from_static("false")));
    }
    awaited.views.clear();
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
            output_format: OutputFormat::Png,
            size: made.first().map(|task| task.request.size.to_string()).unwrap_or_default(),
        },
    )
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
    ) -> Result<Self, Error> {
        let images = Sources::default();
        let submission =
            Submission { asked: &asked, images, idempotency: None, remixed: None, seconds: None };
        let made = tasks::accept(&api, tenant.clone(), &base, submission).await;
        Ok(Self { api, tenant, views: made.map_err(spelt)? })
    }

    async fn cancel(&mut self) {
        // One by one: whatever is dropped in the middle still knows the rest.
        while let Some(view) = self.views.last() {
            cancel(&self.api, &self.tenant, view.task.id).await;
            self.views.pop();
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if self.views.is_empty() {
            return;
        }
        let (api, tenant) = (Arc::clone(&self.api), self.tenant.clone());
        let views = std::mem::take(&mut self.views);
        // Without a runtime the process is about to end.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                for view in views {
                    cancel(&api, &tenant, view.task.id).await;
                }
            });
        }
    }
}

async fn cancel(api: &Api, tenant: &TenantName, id: TaskId) {
    if let Err(error) = api.app.components.store.cancel(tenant, id).await {
        tracing::warn!(%error, task = %id, "an image that nobody waits for was not cancelled");
    }
}
