//! The OpenAPI document of the public API, generated from the handlers and the wire types. It is
//! committed as `docs/api/openapi.json`; a test compares the two.
//!
//! What holds for many operations is written in one place each: [`refusals`], [`forms`] and
//! [`examples`]. [`hooks`] has the calls that the server makes, [`codes`] the table of error codes.

mod codes;
mod examples;
mod forms;
mod hooks;
mod refusals;

use rayreel_domain::wire::api::{ErrorBody, EventBody};
use rayreel_domain::wire::delivery::WebhookEvent;
use utoipa::OpenApi;

use codes::Codes;
use examples::Examples;
use forms::Forms;
use hooks::Hooks;
use refusals::Refusals;

use super::admin::{keys, pools, tenants, workers};
use super::openai::{images, videos};
use super::{content, events, files, generate, links, models, probes, reference, tasks, webhooks};

/// The bytes of a file.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it only names a schema")]
pub(super) struct File(Vec<u8>);

/// One event of a stream, read by its lines.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "it only names a schema")]
pub(super) struct ServerSentEvent {
    /// Send it as `Last-Event-ID` to go on behind it; progress has none.
    id: Option<String>,
    /// `state`, `progress` or `snapshot`.
    event: String,
    /// An EventBody in JSON.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// Parameters that take one of a few words.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it only names a schema")]
pub(super) enum Variant {
    Thumbnail,
}

#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it only names a schema")]
pub(super) enum VideoVariant {
    Video,
    Thumbnail,
}

#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it only names a schema")]
pub(super) enum Only {
    Cancel,
}

#[derive(utoipa::ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it only names a schema")]
pub(super) enum Order {
    Asc,
    Desc,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "rayreel",
        description = "Video generation as a service, on your own GPUs. Every refusal has the body \
                       of ErrorBody; its codes are listed under `errors`. Every answer has the \
                       header `x-request-id`. Send JSON as `application/json`; a field that is not \
                       listed is refused, not ignored.",
    ),
    tags(
        (name = "generations", description = "Tasks: one request for a video or a still each."),
        (name = "webhooks", description = "Being told of a task's end."),
        (name = "videos", description = "OpenAI's shape of the same tasks, as far as they are videos."),
        (name = "images", description = "OpenAI's shape of stills: the answer is the image."),
        (name = "admin", description = "For the operator: a key with the scope `admin`."),
        (name = "models", description = "What requests may name."),
        (name = "files", description = "Images that requests can name."),
        (name = "probes", description = "For operators and machines."),
        (name = "errors"),
    ),
    paths(
        tasks::submit, tasks::list, tasks::show, tasks::delete, tasks::cancel,
        videos::create, videos::list, videos::show, videos::delete, videos::content, videos::remix,
        images::generate,
        keys::create, keys::list, keys::revoke, tenants::list, tenants::show,
        workers::list, workers::drain, pools::list, pools::drain, pools::resume,
        events::events, content::content, generate::generate,
        links::link, webhooks::redeliver, webhooks::secret, webhooks::rotate,
        models::list, models::show,
        files::upload, files::list, files::show, files::delete, files::content,
        probes::healthz, probes::readyz, probes::metrics, probes::openapi, reference::page,
    ),
    components(schemas(ErrorBody, EventBody, WebhookEvent)),
    modifiers(&Forms, &Hooks, &Examples, &Refusals, &Codes),
)]
struct Document;

/// The document, as pretty JSON with a newline at its end.
pub fn document() -> String {
    let mut text =
        Document::openapi().to_pretty_json().expect("a document of strings has a JSON form");
    text.push('\n');
    text
}
