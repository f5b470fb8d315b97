//! Videos: create, show, list, download, remix, delete.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::TryStreamExt;
use http::header::HeaderName;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::task::{State as TaskState, Task};
use rayreel_domain::wire::api::ErrorBody;
use rayreel_domain::wire::engine::Format;
use rayreel_domain::wire::openai::{
    CreateVideo, InputReference, RemixVideo, TYPED, VideoBody, VideoDeleted, VideoList,
};

use super::super::base::Base;
use super::super::error::Error;
use super::super::form::{self, Form};
use super::super::input::{Source, Sources};
use super::super::openapi::{self, File, VideoVariant};
use super::super::tasks::{Keyed, Submission};
use super::super::{Api, Id, Tenant, body, content, json, query, tasks};
use super::{native, spelt};
use crate::artifacts::{self, Key};
use crate::store::{self, After, ListQuery, Order, View};

/// When to ask again, in milliseconds: OpenAI's clients heed it.
const POLL_AFTER: HeaderName = HeaderName::from_static("openai-poll-after-ms");
const DEFAULT_PAGE: u64 = 20;
const MAX_PAGE: u64 = 100;

/// Creates a video.
///
/// The task is stored durably before the answer. `user`, `quality`, `style`, `background` and
/// `moderation` are ignored; any other field that is not listed is refused.
#[utoipa::path(post, path = "/v1/videos", tag = "videos", operation_id = "create_video",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters.")),
    request_body(description = "In JSON, or as a form (`multipart/form-data`) with the same fields, in which `input_reference` is a file, `metadata[key]` is an entry, and `loras` is JSON text.",
        content(
            (CreateVideo = "application/json", example = json!({"prompt": "a red fox running through snow", "seconds": "4", "size": "832x480", "seed": 42})),
            (CreateVideo = "multipart/form-data", example = json!({"prompt": "she turns and smiles", "input_reference": "@first.png"})),
        )),
    responses(
        (status = 200, description = "Queued, or there already under the same key.", body = VideoBody,
            headers(("openai-poll-after-ms" = u64, description = "When to ask for it."))),
        (status = 400, description = "`invalid_json`, `invalid_request`, `missing_field`, `unknown_field`, `invalid_value` or `unknown_model`.", body = ErrorBody),
        (status = 409, description = "`idempotency_mismatch`: the key was used with another request. `task_deleted`: what it made is gone.", body = ErrorBody),
        (status = 429, description = "`queue_full` or `limit_reached`; come back after Retry-After.", body = ErrorBody),
        (status = 507, description = "`storage_full`: there is no room for the image.", body = ErrorBody),
    ))]
pub(in crate::api) async fn create(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    base: Base,
    request: Request,
) -> Result<Response, Error> {
    let (parts, mut asked, sent) = read(&api, request).await?;
    query::none(&parts.uri)?;
    // The file is a part of what is asked for.
    let canonical = (&asked, sent.as_ref().map(|bytes| artifacts::sha256(bytes)));
    let idempotency = match tasks::keyed(&api, &tenant, &parts.headers, &canonical).await? {
        Keyed::Before(views) => return answer(&api, only(views)?),
        Keyed::New(idempotency) => idempotency,
    };
    let image = match (sent, asked.input_reference.take()) {
        (Some(bytes), _) => Some(Source::Sent(bytes)),
        (None, Some(reference)) => Some(named(reference)?),
        (None, None) => None,
    };
    let native = asked.native();
    let images = Sources { image, last_image: None };
    let seconds = asked.seconds.map(|seconds| seconds.text);
    let submission = Submission { asked: &native, images, idempotency, remixed: None, seconds };
    let made = tasks::accept(&api, tenant, &base, submission).await;
    answer(&api, only(made.map_err(spelt)?)?)
}

/// Reads what is asked for, from JSON or from a form, and the file if the form brings it.
async fn read(api: &Api, request: Request) -> Result<(Parts, CreateVideo, Option<Bytes>), Error> {
    let limit = api.app.settings.max_body_bytes;
    if !form::is_form(request.headers()) {
        let (parts, bytes) = body::whole(&api.bodies, request, limit).await?;
        let asked = body::parse(&bytes, |field| allowed(api, field, &bytes))?;
        return Ok((parts, asked, None));
    }
    let (parts, mut form) = Form::read(&api.bodies, request, limit, TYPED).await?;
    let sent = form.take_file("input_reference").map(|file| file.bytes);
    let asked = form.into_body(|field, text| allowed(api, field, text))?;
    Ok((parts, asked, sent))
}

/// What a field may be.
fn allowed(api: &Api, field: &str, asked: &[u8]) -> Option<String> {
    match field {
        // Text, here.
        "seconds" => Some("a number above 0, such as \"4\"".to_owned()),
        _ => api.allowed(native(field), asked),
    }
}

/// The image that a reference names: as the native `image` does, in one text.
fn named(reference: InputReference) -> Result<Source, Error> {
    match (reference.image_url, reference.file_id) {
        (Some(text), None) | (None, Some(text)) => Ok(Source::Named(text)),
        _ => Err(Error::invalid(
            "input_reference",
            "`input_reference` has either `image_url` or `file_id`",
        )),
    }
}

/// The one task of a submit that asked for one.
fn only(views: Vec<View>) -> Result<View, Error> {
    views.into_iter().next().ok_or_else(|| Error::internal("a submit made no task"))
}

fn answer(api: &Api, view: View) -> Result<Response, Error> {
    let mut response = json(StatusCode::OK, &show_view(&view))?;
    if !view.task.state.is_terminal() {
        // Often enough to see it move, seldom enough for a long wait.
        let eta_ms = api.eta_ms(&view, api.app.components.clock.wall()).unwrap_or(4_000);
        let after_ms = (eta_ms / 4).clamp(250, 5_000);
        response.headers_mut().insert(POLL_AFTER, HeaderValue::from(after_ms));
    }
    Ok(response)
}

fn show_view(view: &View) -> VideoBody {
    VideoBody::new(&view.task, view.progress.as_ref())
}

/// A task that is a video.
async fn find(api: &Api, tenant: &TenantName, id: TaskId) -> Result<View, Error> {
    let found = api.app.components.store.get(tenant, id).await?;
    found.filter(|view| view.task.request.format == Format::Mp4).ok_or_else(Error::no_task)
}

/// Shows a video.
#[utoipa::path(get, path = "/v1/videos/{id}", tag = "videos", operation_id = "show_video",
    params(("id" = String, Path, description = "Id of the video.")),
    responses(
        (status = 200, description = "The video.", body = VideoBody,
            headers(("openai-poll-after-ms" = u64, description = "When to ask again, unless it has ended."))),
        (status = 400, description = "`unknown_field`: there are no query parameters here.", body = ErrorBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
    ))]
pub(in crate::api) async fn show(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    answer(&api, find(&api, &tenant, id).await?)
}

/// Lists videos, whichever way they were submitted.
#[utoipa::path(get, path = "/v1/videos", tag = "videos", operation_id = "list_videos",
    params(
        ("after" = Option<String>, Query, description = "Only those behind this video: `last_id` of the page before. It may have been deleted within the last 24 hours."),
        ("limit" = Option<u32>, Query, description = "1 to 100; 20 if absent.", minimum = 1, maximum = 100),
        ("order" = inline(Option<openapi::Order>), Query, description = "`desc` (newest first) or `asc`; `desc` if absent."),
    ),
    responses(
        (status = 200, description = "A page.", body = VideoList),
        (status = 400, description = "`invalid_value`, `unknown_field` or `invalid_cursor`.", body = ErrorBody),
    ))]
pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    uri: Uri,
) -> Result<Response, Error> {
    let [after, limit, order] = query::read(&uri, ["after", "limit", "order"])?;
    let no_place = || {
        let message = "`after` is not the id of a video of yours, nor of one that was deleted within \
                       the last 24 hours";
        Error::new(Code::InvalidCursor, message).param("after")
    };
    let after = after.map(|id| id.parse().map(After::Task).map_err(|_| no_place()));
    let limit = query::number("limit", limit, 1..=MAX_PAGE)?.unwrap_or(DEFAULT_PAGE);
    let order = match order.as_deref() {
        None | Some("desc") => Order::NewestFirst,
        Some("asc") => Order::OldestFirst,
        Some(_) => return Err(Error::invalid("order", "`order` is `asc` or `desc`")),
    };
    let query = ListQuery {
        format: Some(Format::Mp4),
        order,
        after: after.transpose()?,
        ..ListQuery::of(tenant, limit as u32)
    };
    let page = api.app.components.store.list(&query).await.map_err(|error| match error {
        store::Error::NotFound => no_place(),
        error => error.into(),
    })?;
    let data: Vec<VideoBody> = page.tasks.iter().map(show_view).collect();
    json(
        StatusCode::OK,
        &VideoList {
            object: "list".to_owned(),
            first_id: data.first().map(|video| video.id.clone()),
            last_id: data.last().map(|video| video.id.clone()),
            has_more: page.next.is_some(),
            data,
        },
    )
}

/// Deletes a video with its record; cancels it first if it has not ended.
#[utoipa::path(delete, path = "/v1/videos/{id}", tag = "videos", operation_id = "delete_video",
    params(("id" = String, Path, description = "Id of the video.")),
    responses(
        (status = 200, description = "It is gone.", body = VideoDeleted),
        (status = 400, description = "`unknown_field`: there are no query parameters here.", body = ErrorBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
    ))]
pub(in crate::api) async fn delete(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    find(&api, &tenant, id).await?;
    let store = &api.app.components.store;
    let mut deleted = store.delete(&tenant, id).await?.deleted;
    if !deleted {
        // The first call has cancelled it: now it has ended.
        deleted = match store.delete(&tenant, id).await {
            Ok(done) => done.deleted,
            Err(store::Error::NotFound) => true,
            Err(error) => return Err(error.into()),
        };
    }
    if !deleted {
        return Err(Error::internal(format!("{id} was cancelled and has not ended")));
    }
    let object = "video.deleted".to_owned();
    json(StatusCode::OK, &VideoDeleted { id: id.to_string(), deleted, object })
}

/// Downloads a video.
///
/// GET and HEAD; `Range` takes one range of bytes, the ETag is the SHA-256 of the file.
#[utoipa::path(get, path = "/v1/videos/{id}/content", tag = "videos", operation_id = "video_content",
    params(
        ("id" = String, Path, description = "Id of the video."),
        ("variant" = inline(Option<VideoVariant>), Query, description = "`video`, which is the default, or `thumbnail`. There are no spritesheets."),
        ("Range" = Option<String>, Header, description = "One range of bytes."),
        ("If-None-Match" = Option<String>, Header, description = "304 if the file is still this one."),
        ("If-Range" = Option<String>, Header, description = "The range only if the file is still this one."),
    ),
    responses(
        (status = 200, description = "The file.", content((File = "video/mp4"), (File = "video/webm"), (File = "image/png"), (File = "image/jpeg"), (File = "image/webp"))),
        (status = 206, description = "The range that was asked for.", content((File = "video/mp4"), (File = "video/webm"), (File = "image/png"), (File = "image/jpeg"), (File = "image/webp"))),
        (status = 304, description = "Unchanged."),
        (status = 307, description = "The file is at the address in `Location`, for a short time: ask for it there, without your key. Only of servers that keep files in a bucket."),
        (status = 400, description = "`invalid_value`: there is no such variant.", body = ErrorBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
        (status = 409, description = "`not_finished`: the video is queued or in progress.", body = ErrorBody),
        (status = 410, description = "The video failed; the code says how.", body = ErrorBody),
        (status = 416, description = "`range_not_satisfiable`", body = ErrorBody),
    ))]
pub(in crate::api) async fn content(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    method: Method,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Error> {
    let [variant] = query::read(&uri, ["variant"])?;
    let thumbnail = match variant.as_deref() {
        None | Some("video") => false,
        Some("thumbnail") => true,
        Some("spritesheet") => {
            let message = "no spritesheets are made here; `variant` can be `video` or `thumbnail`";
            return Err(Error::invalid("variant", message));
        }
        Some(_) => {
            return Err(Error::invalid("variant", "`variant` can be `video` or `thumbnail`"));
        }
    };
    let view = find(&api, &tenant, id).await?;
    content::send(&api, &view.task, thumbnail, &method, &headers, None).await
}

/// Makes a completed video again, with another prompt.
///
/// All else is as it was: model, size, length, seed, images; but only a `webhook` that is given here
/// is told. `user`, `quality`, `style`, `background` and `moderation` are ignored.
#[utoipa::path(post, path = "/v1/videos/{id}/remix", tag = "videos", operation_id = "remix_video",
    params(
        ("id" = String, Path, description = "Id of the source."),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters."),
    ),
    request_body(content = RemixVideo, example = json!({"prompt": "the same fox, at night"})),
    responses(
        (status = 200, description = "A new video, queued.", body = VideoBody,
            headers(("openai-poll-after-ms" = u64, description = "When to ask for it."))),
        (status = 400, description = "`invalid_json`, `missing_field`, `unknown_field`, `unknown_model`, or `invalid_value`: the source has not completed.", body = ErrorBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
        (status = 409, description = "`idempotency_mismatch`: the key was used with another request. `task_deleted`: what it made is gone.", body = ErrorBody),
        (status = 429, description = "`queue_full` or `limit_reached`; come back after Retry-After.", body = ErrorBody),
        (status = 507, description = "`storage_full`: there is no room for the image.", body = ErrorBody),
    ))]
pub(in crate::api) async fn remix(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    base: Base,
    request: Request,
) -> Result<Response, Error> {
    let limit = api.app.settings.max_body_bytes;
    let (parts, asked) = body::json::<RemixVideo>(&api.bodies, request, limit).await?;
    query::none(&parts.uri)?;
    // A repetition finds its video, whatever has become of the source.
    let idempotency = match tasks::keyed(&api, &tenant, &parts.headers, &(id, &asked)).await? {
        Keyed::Before(views) => return answer(&api, only(views)?),
        Keyed::New(idempotency) => idempotency,
    };
    let source = find(&api, &tenant, id).await?.task;
    if source.state != TaskState::Succeeded {
        let message =
            format!("only a completed video can be remixed; this one is {}", source.state);
        return Err(Error::invalid("id", message));
    }
    let images = Sources {
        image: image_of(&api, &source).await?,
        last_image: source.request.last_image.clone().map(Source::Kept),
    };
    let native = asked.native(&source);
    let remixed = Some(&*source);
    let submission = Submission { asked: &native, images, idempotency, remixed, seconds: None };
    let made = tasks::accept(&api, tenant, &base, submission).await;
    answer(&api, only(made.map_err(spelt)?)?)
}

/// The image that a task starts from.
async fn image_of(api: &Api, task: &Task) -> Result<Option<Source>, Error> {
    let Some(input) = &task.request.image else { return Ok(None) };
    if input.place.is_some() {
        return Ok(Some(Source::Kept(input.clone())));
    }
    // The first versions kept it with the task.
    let key = Key::input(task).ok_or_else(|| Error::internal("an image is nowhere"))?;
    let stream = api.app.components.artifacts.get(&key, 0..input.bytes).await?;
    let bytes = stream.try_fold(Vec::new(), async |mut whole, piece| {
        whole.extend_from_slice(&piece);
        Ok(whole)
    });
    Ok(Some(Source::Sent(bytes.await.map_err(Error::internal)?.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_of_a_video_is_none_in_a_form_too() {
        let document: serde_json::Value =
            serde_json::from_str(&crate::api::document()).expect("JSON");
        let fields = document["components"]["schemas"]["CreateVideo"]["properties"].clone();
        let fields = fields.as_object().expect("properties").iter();
        let is_typed = |schema: &serde_json::Value| {
            let text = schema.to_string();
            ["integer", "number", "boolean", "array"]
                .iter()
                .any(|kind| text.contains(&format!("\"{kind}\"")))
        };
        let typed: Vec<&str> =
            fields.filter(|(_, schema)| is_typed(schema)).map(|(name, _)| &**name).collect();
        let mut known = TYPED.to_vec();
        known.sort_unstable();
        assert_eq!(typed, known);
    }
}
