//! The OpenAPI document of the public API, generated from the handlers and the wire types. It is
//! committed as `docs/api/openapi.json`; a test compares the two.

use rayreel_domain::wire::api::{ErrorBody, EventBody};
use rayreel_domain::wire::delivery::WebhookEvent;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, ContentBuilder, Ref, RefOr, Required, Response};
use utoipa::{Modify, OpenApi};

use super::admin::{keys, pools, tenants, workers};
use super::examples::Examples;
use super::openai::{images, videos};
use super::{
    content, events, files, gate, generate, links, models, probes, reference, tasks, webhooks,
};

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
                       of ErrorBody; its codes are explained under docs/errors/. Every answer has \
                       the header `x-request-id`.",
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
    modifiers(&Examples, &Refusals),
)]
struct Document;

/// Name of the way in which callers prove who they are.
const KEY: &str = "key";

/// What every operation can answer, and which of them need a key.
struct Refusals;

impl Modify for Refusals {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut key = Http::new(HttpAuthScheme::Bearer);
        key.description = Some(
            "An API key, `rr_…`. Needed as soon as there is one; a link that is signed needs none."
                .to_owned(),
        );
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(KEY, SecurityScheme::Http(key));
        let body: Content =
            ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let refusal = |description: &str| {
            let mut response = Response::new(description);
            response.content.insert("application/json".to_owned(), RefOr::T(body.clone()));
            RefOr::T(response)
        };
        for (path, item) in &mut document.paths.paths {
            let operations = [&mut item.get, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                let responses = &mut operation.responses.responses;
                responses.entry("403".to_owned()).or_insert_with(|| {
                    refusal(
                        "`forbidden`: the Host or the Origin header is foreign. `scope_missing`: \
                         the key is not good for this.",
                    )
                });
                if path.ends_with("/link")
                    && let Some(RefOr::T(body)) = &mut operation.request_body
                {
                    // Everything in it has a default.
                    body.required = Some(Required::False);
                }
                if !gate::is_open(path) {
                    let none = path.ends_with("/content").then(SecurityRequirement::default);
                    let key = SecurityRequirement::new(KEY, [""; 0]);
                    operation.security = Some([key].into_iter().chain(none).collect());
                    responses.entry("401".to_owned()).or_insert_with(|| {
                        refusal(
                            "`unauthorized`: a key is needed, and this is none that is in force.",
                        )
                    });
                }
                responses.entry("400".to_owned()).or_insert_with(|| {
                    refusal(
                        "`invalid_request`: not HTTP as this server reads it. `unknown_field`: \
                         there is no such query parameter here.",
                    )
                });
                responses
                    .entry("500".to_owned())
                    .or_insert_with(|| refusal("`internal`; the log has it under the request id."));
                if path.starts_with("/v1/") {
                    responses.entry("503".to_owned()).or_insert_with(|| {
                        refusal("`store_unavailable`; come back after Retry-After.")
                    });
                }
            }
        }
    }
}

/// The document, as pretty JSON with a newline at its end.
pub fn document() -> String {
    let mut text =
        Document::openapi().to_pretty_json().expect("a document of strings has a JSON form");
    text.push('\n');
    text
}
