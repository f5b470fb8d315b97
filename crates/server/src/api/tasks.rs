//! Tasks: submit, show, list, cancel, delete.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{HeaderName, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::id::{Malformed, ModelName, TaskId, TenantName};
use rayreel_domain::request::{self, Request as Generation};
use rayreel_domain::task::{Idempotency, Record, State as TaskState, Task};
use rayreel_domain::time::Timestamp;
use rayreel_domain::wire::api::{
    CancelBody, ErrorBody, SubmitAnswer, SubmitBody, TaskBatch, TaskBody, TaskList,
};
use rayreel_domain::wire::delivery::WebhookBody;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::base::Base;
use super::error::Error;
use super::form::{self, Form};
use super::input::{Source, Sources, Taken};
use super::openapi::Only;
use super::{Api, Id, Tenant, body, json, query, wait};
use crate::artifacts;
use crate::estimate::eta_ms;
use crate::store::{self, After, Cancelled, Demand, ListQuery, Order, Submitted, View};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TEST_PATTERN: HeaderName = HeaderName::from_static("x-rayreel-test-pattern");
const DEFAULT_PAGE: u64 = 20;
const MAX_PAGE: u64 = 100;
/// Unix seconds beyond which a filter makes no sense: the year 9999.
const LATEST: u64 = 253_402_300_799;

/// Submits a generation, or `n` of them.
///
/// The task is stored durably before the answer. Repeated within 24 hours with the same
/// `Idempotency-Key` and the same body, the call answers the task that the first one made. With `n`
/// above 1, the answer has all tasks in `data`, and either all of them are stored or none.
#[utoipa::path(post, path = "/v1/video/generations", tag = "generations", operation_id = "submit_generation",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: answer when the task has ended, or after N seconds, at most `max_wait_seconds`; `wait` alone is 60."),
    ),
    request_body(description = "In JSON, or as a form (`multipart/form-data`) with the same fields, in which `image` and `last_image` may be files, `metadata[key]` is an entry, and `loras` is JSON text.",
        content(
            (SubmitBody = "application/json", examples(
                ("text" = (summary = "a video of a text", value = json!({"prompt": "a red fox running through snow", "size": "832x480", "seconds": 3, "seed": 42}))),
                ("image" = (summary = "from a first frame, and told when it is done", value = json!({"prompt": "she turns and smiles", "image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4YSQHAALeARlA67ihAAAAAElFTkSuQmCC", "webhook": {"url": "https://hooks.example.com/rayreel"}, "metadata": {"order": "1234"}}))),
            )),
            (SubmitBody = "multipart/form-data", example = json!({"prompt": "she turns and smiles", "image": "@first.png"})),
        )),
    responses(
        (status = 200, description = "Ended within the wait that was asked for, well or not.", body = SubmitAnswer),
        (status = 202, description = "Queued, or there already under the same key.", body = SubmitAnswer,
            headers(
                ("Location" = String, description = "Path of the task, if it is one."),
                ("x-rayreel-test-pattern" = String, description = "`true` if the model is the built-in test card: the result is a synthetic pattern."),
            )),
        (status = 400, description = "`invalid_json`, `missing_field`, `unknown_field`, `invalid_value` or `unknown_model`.", body = ErrorBody),
        (status = 409, description = "`idempotency_mismatch`: the key was used with another request. `task_deleted`: what it made is gone.", body = ErrorBody),
        (status = 429, description = "`queue_full` or `limit_reached`; come back after Retry-After.", body = ErrorBody),
        (status = 507, description = "`storage_full`: there is no room for the images.", body = ErrorBody),
    ))]
pub(super) async fn submit(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    base: Base,
    request: Request,
) -> Result<Response, Error> {
    let (parts, mut asked, sent) = read(&api, request).await?;
    query::none(&parts.uri)?;
    let mut views = match keyed(&api, &tenant, &parts.headers, &asked).await? {
        Keyed::Before(views) => views,
        Keyed::New(idempotency) => {
            let images = Sources {
                image: sent.image.or(asked.image.take().map(Source::Named)),
                last_image: sent.last_image.or(asked.last_image.take().map(Source::Named)),
            };
            let submission =
                Submission { asked: &asked, images, idempotency, remixed: None, seconds: None };
            accept(&api, tenant.clone(), &base, submission).await?
        }
    };
    let several = asked.n.is_some_and(|n| n > 1);
    let Some(seconds) = wait::asked(&parts.headers) else {
        return answer(&api, StatusCode::ACCEPTED, &views, several, &base);
    };
    // With what the body took.
    drop(parts);
    let most = api.app.settings.max_wait_seconds.duration();
    let limit = Duration::from_secs(seconds).min(most);
    let ended = wait::ended(&api, &tenant, &mut views, limit).await;
    let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = answer(&api, status, &views, several, &base)?;
    let applied =
        HeaderValue::try_from(format!("wait={}", limit.as_secs())).map_err(Error::internal)?;
    response.headers_mut().insert(wait::PREFERENCE_APPLIED, applied);
    Ok(response)
}

/// The answer to a submit.
pub(super) fn answer(
    api: &Api,
    status: StatusCode,
    views: &[View],
    several: bool,
    base: &Base,
) -> Result<Response, Error> {
    let now = api.app.components.clock.wall();
    let mut shown = views.iter().map(|view| api.show(view, base, now));
    let answer = match shown.next() {
        Some(task) if !several => SubmitAnswer::One(Box::new(task)),
        first => SubmitAnswer::Several(TaskBatch {
            object: "list".to_owned(),
            data: first.into_iter().chain(shown).collect(),
        }),
    };
    let mut response = json(status, &answer)?;
    let headers = response.headers_mut();
    if let SubmitAnswer::One(task) = &answer {
        // Whole, for a proxy may serve it below a path.
        let here = HeaderValue::try_from(&task.urls.get).map_err(Error::internal)?;
        headers.insert(LOCATION, here);
    }
    let pattern = |view: &View| {
        let model = api.app.settings.models.get(&view.task.model);
        model.is_some_and(|model| model.is_test_pattern())
    };
    if views.first().is_some_and(pattern) {
        headers.insert(TEST_PATTERN, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// What a submit asks for, whichever shape it came in.
pub(super) struct Submission<'a> {
    pub(super) asked: &'a SubmitBody,
    pub(super) images: Sources,
    pub(super) idempotency: Option<Idempotency>,
    /// The task whose request it repeats with another prompt.
    pub(super) remixed: Option<&'a Task>,
    /// Its length as the caller wrote it, if that is to be told so.
    pub(super) seconds: Option<String>,
}

/// Makes the tasks that a submit asks for, or finds those that it made before: the one way in, for
/// every shape of the API.
pub(super) async fn accept(
    api: &Arc<Api>,
    tenant: TenantName,
    base: &Base,
    submission: Submission<'_>,
) -> Result<Vec<View>, Error> {
    let Submission { asked, images, mut idempotency, remixed, seconds } = submission;
    let app = &api.app;
    let components = &app.components;
    let model = api.model(asked.model.as_deref())?;
    let now = components.clock.wall();
    let mut requests = Generation::resolve_all(asked, model, components.random.number())?;
    if let Some(request) = requests.first() {
        model.check_images(request, images.image.is_some(), images.last_image.is_some())?;
    }
    let deadline = request::deadline(asked)?;
    // With a key it may be a repetition of a submit that was in time: the store finds out.
    if idempotency.is_none() && deadline.is_some_and(|at| at <= now) {
        return Err(request::past_deadline(now).into());
    }
    let webhook = asked.webhook.as_ref().map(|target| api.webhook(target, base)).transpose()?;
    let estimates: Vec<u64> =
        requests.iter().map(|request| app.estimates.estimate_ms(&model.name, request)).collect();
    if images.image.is_some() || images.last_image.is_some() {
        // Nothing is fetched, decoded or stored for what would be refused.
        let demand = Demand {
            tenant: tenant.clone(),
            idempotency: idempotency.clone(),
            tasks: estimates.len() as u64,
            work_ms: estimates.iter().sum(),
        };
        components.store.admits(demand).await?;
    }
    // First the images, then the tasks: one that a worker can claim has its inputs.
    let mut holds = Vec::new();
    if let Some(source) = images.image {
        let Taken { input, hold } = api.take_image(&tenant, "image", source).await?;
        holds.push(hold);
        requests.iter_mut().for_each(|request| request.image = Some(input.clone()));
    }
    if let Some(source) = images.last_image {
        let Taken { input, hold } = api.take_image(&tenant, "last_image", source).await?;
        holds.push(hold);
        requests.iter_mut().for_each(|request| request.last_image = Some(input.clone()));
    }
    let number = || asked.seconds.or(asked.duration).map(|number| number.to_string());
    let seconds = seconds.or_else(number);
    let seconds = seconds.or_else(|| remixed.and_then(|source| source.seconds.clone()));
    let ids: Vec<TaskId> = requests.iter().map(|_| components.random.task_id(now)).collect();
    let mut siblings = ids[1..].to_vec();
    let tasks = ids.iter().zip(requests).zip(estimates).map(|((id, request), estimate_ms)| {
        let (pool, name) = (model.pool.clone(), model.name.clone());
        Task::new(Record {
            priority: asked.priority.unwrap_or_default(),
            // The first one speaks for all.
            idempotency: idempotency.take(),
            siblings: std::mem::take(&mut siblings),
            remixed_from: remixed.map(|source| source.id),
            seconds: seconds.clone(),
            estimate_ms,
            deadline,
            webhook: webhook.clone(),
            ..Record::new(*id, tenant.clone(), pool, name, request, now)
        })
    });
    let tasks: Vec<Task> = tasks.collect();
    let started = components.clock.monotonic();
    let submitted = store(api, tasks).await?;
    drop(holds);
    app.metrics.submit.observe((components.clock.monotonic() - started).as_secs_f64());
    let mut views = Vec::with_capacity(submitted.len());
    for Submitted { task, existed, position } in submitted {
        // How far one that was there already has come is told by the store.
        let old = existed && task.webhook.is_some();
        let found = if old { components.store.get(&tenant, task.id).await? } else { None };
        let new = || View { task: Arc::new(task), progress: None, position, delivery: None };
        views.push(found.unwrap_or_else(new));
    }
    Ok(views)
}

/// Fields of a submit that are numbers or lists: text in a form, read as JSON.
const TYPED: &[&str] = &[
    "frames",
    "seconds",
    "fps",
    "steps",
    "guidance",
    "guidance_2",
    "loras",
    "seed",
    "priority",
    "deadline",
    "n",
    "width",
    "height",
    "duration",
];

/// Reads what is asked for, from JSON or from a form, and the images if the form brings them. They
/// are named by their hashes then, so that an idempotency key stands for the images as well.
async fn read(api: &Api, request: Request) -> Result<(Parts, SubmitBody, Sources), Error> {
    let limit = api.app.settings.max_body_bytes;
    if !form::is_form(request.headers()) {
        let (parts, bytes) = body::whole(&api.bodies, request, limit).await?;
        let asked: SubmitBody = body::parse(&bytes, |field| api.allowed(field, &bytes))?;
        return Ok((parts, asked.without_unset(), Sources::default()));
    }
    let (parts, mut form) = Form::read(&api.bodies, request, limit, TYPED).await?;
    let image = form.take_file("image").map(|file| file.bytes);
    let last_image = form.take_file("last_image").map(|file| file.bytes);
    let asked: SubmitBody = form.into_body(|field, text| api.allowed(field, text))?;
    let mut asked = asked.without_unset();
    let hash = |bytes: &Bytes| artifacts::sha256(bytes);
    asked.image = image.as_ref().map(hash).or(asked.image);
    asked.last_image = last_image.as_ref().map(hash).or(asked.last_image);
    let sent = Sources { image: image.map(Source::Sent), last_image: last_image.map(Source::Sent) };
    Ok((parts, asked, sent))
}

/// What a submit's idempotency key tells of it.
pub(super) enum Keyed {
    /// It was made before, and these are its tasks. What it names is neither fetched nor read again.
    Before(Vec<View>),
    /// It is new, or has no key. Of several that come at once, the store decides which is the first.
    New(Option<Idempotency>),
}

/// Finds out whether a submit was made before. `asked` is all that it asks for, as the caller wrote
/// it: names of images, not what they lead to.
pub(super) async fn keyed(
    api: &Api,
    tenant: &TenantName,
    headers: &HeaderMap,
    asked: &impl Serialize,
) -> Result<Keyed, Error> {
    let Some(key) = idempotency(headers, asked)? else { return Ok(Keyed::New(None)) };
    let before = api.app.components.store.repeated(tenant, &key).await?;
    Ok(before.map_or(Keyed::New(Some(key)), Keyed::Before))
}

/// The caller's key with the hash of what it asks for. The body is hashed as it was understood, so
/// that neither spaces nor the order of its fields matter, nor the boundaries of a form.
fn idempotency(headers: &HeaderMap, asked: &impl Serialize) -> Result<Option<Idempotency>, Error> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let visible = key.as_bytes().iter().all(u8::is_ascii_graphic);
    match key.to_str() {
        Ok(text) if visible && (1..=255).contains(&text.len()) && keys.next().is_none() => {
            let text = text.to_owned();
            let canonical = serde_json::to_vec(asked).map_err(Error::internal)?;
            Ok(Some(Idempotency { key: text, request: artifacts::sha256(&canonical) }))
        }
        _ => Err(Error::invalid(
            "Idempotency-Key",
            "send one Idempotency-Key of 1 to 255 visible ASCII characters",
        )),
    }
}

async fn store(api: &Api, mut tasks: Vec<Task>) -> Result<Vec<Submitted>, store::Error> {
    let store = &api.app.components.store;
    match tasks.pop() {
        Some(task) if tasks.is_empty() => Ok(vec![store.submit(task).await?]),
        last => {
            tasks.extend(last);
            store.submit_all(tasks).await
        }
    }
}

/// Shows a task.
#[utoipa::path(get, path = "/v1/video/generations/{id}", tag = "generations", operation_id = "show_generation",
    params(("id" = String, Path, description = "Id of the task.")),
    responses(
        (status = 200, description = "The task.", body = TaskBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
    ))]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    base: Base,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    let components = &api.app.components;
    let view = components.store.get(&tenant, id).await?.ok_or_else(Error::no_task)?;
    json(StatusCode::OK, &api.show(&view, &base, components.clock.wall()))
}

/// Lists tasks, newest first.
#[utoipa::path(get, path = "/v1/video/generations", tag = "generations", operation_id = "list_generations",
    params(
        ("state" = Option<TaskState>, Query, description = "Only tasks in this state; upper or lower case."),
        ("model" = Option<String>, Query, description = "Only tasks of this model, by its name or an alias.", pattern = "^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$"),
        ("limit" = Option<u32>, Query, description = "1 to 100; 20 if absent.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before."),
        ("created_after" = Option<u64>, Query, description = "Only tasks created at this Unix second or later."),
        ("created_before" = Option<u64>, Query, description = "Only tasks created before this Unix second."),
    ),
    responses(
        (status = 200, description = "A page.", body = TaskList),
        (status = 400, description = "`invalid_value`, `unknown_field` or `invalid_cursor`.", body = ErrorBody),
    ))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    base: Base,
    uri: Uri,
) -> Result<Response, Error> {
    let [state, model, limit, cursor, after, before] = query::read(
        &uri,
        ["state", "model", "limit", "cursor", "created_after", "created_before"],
    )?;
    let state = state.map(|text| {
        TaskState::from_text(&text).ok_or_else(|| {
            let names = TaskState::ALL.map(TaskState::as_str).join(", ");
            Error::invalid("state", format!("`state` is one of {names}"))
        })
    });
    let model = model.map(|text| -> Result<ModelName, Error> {
        let called = text.parse().map_err(|error: Malformed| Error::invalid("model", error.0))?;
        // A model that is not configured any more still has tasks.
        Ok(api.app.settings.canonical(&called).cloned().unwrap_or(called))
    });
    let limit = query::number("limit", limit, 1..=MAX_PAGE)?.unwrap_or(DEFAULT_PAGE);
    let seconds = |seconds: u64| Timestamp(seconds * 1000);
    let components = &api.app.components;
    let epoch = components.store.epoch();
    let cursor = cursor.map(|text| {
        read_cursor(epoch, &text).ok_or_else(|| {
            Error::new(Code::InvalidCursor, "`cursor` was not made by this server").param("cursor")
        })
    });
    let query = ListQuery {
        tenant,
        state: state.transpose()?,
        model: model.transpose()?,
        format: None,
        order: Order::NewestFirst,
        after: cursor.transpose()?.map(After::Position),
        created_from: query::number("created_after", after, 0..=LATEST)?.map(seconds),
        created_before: query::number("created_before", before, 0..=LATEST)?.map(seconds),
        limit: limit as u32,
    };
    let page = components.store.list(&query).await?;
    let now = components.clock.wall();
    json(
        StatusCode::OK,
        &TaskList {
            object: "list".to_owned(),
            data: page.tasks.iter().map(|view| api.show(view, &base, now)).collect(),
            has_more: page.next.is_some(),
            next_cursor: page.next.map(|position| write_cursor(epoch, position)),
        },
    )
}

/// Cancels a task that is queued or running. Never deletes; repeating it changes nothing.
#[utoipa::path(post, path = "/v1/video/generations/{id}/cancel", tag = "generations", operation_id = "cancel_generation",
    params(("id" = String, Path, description = "Id of the task.")),
    responses(
        (status = 200, description = "How the task stands now.", body = CancelBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
    ))]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    cancelled(&api.app.components.store.cancel(&tenant, id).await?)
}

/// Cancels a task that is queued or running; deletes one that has ended, with its files.
#[utoipa::path(delete, path = "/v1/video/generations/{id}", tag = "generations", operation_id = "delete_generation",
    params(
        ("id" = String, Path, description = "Id of the task."),
        ("only" = inline(Option<Only>), Query, description = "`cancel` refuses to delete."),
    ),
    responses(
        (status = 200, description = "Which of both was done.", body = CancelBody),
        (status = 400, description = "`invalid_value` or `unknown_field`.", body = ErrorBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
    ))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    uri: Uri,
) -> Result<Response, Error> {
    let store = &api.app.components.store;
    let [only] = query::read(&uri, ["only"])?;
    match only.as_deref() {
        None => cancelled(&store.delete(&tenant, id).await?),
        Some("cancel") => cancelled(&store.cancel(&tenant, id).await?),
        Some(_) => Err(Error::invalid("only", "`only` can be `cancel`")),
    }
}

fn cancelled(done: &Cancelled) -> Result<Response, Error> {
    json(
        StatusCode::OK,
        &CancelBody {
            id: done.task.id.to_string(),
            status: done.task.state,
            cancelled: done.cancelled,
            deleted: done.deleted,
        },
    )
}

impl Api {
    /// What a field of a submit may be, by the limits of the model that it asks for.
    pub(super) fn allowed(&self, field: &str, submit: &[u8]) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct Asked {
            model: Option<String>,
        }
        let asked: Asked = serde_json::from_slice(submit).ok()?;
        self.model(asked.model.as_deref()).ok()?.limits.allowed(field)
    }

    /// Milliseconds until the result, estimated.
    pub(super) fn eta_ms(&self, view: &View, now: Timestamp) -> Option<u64> {
        let task = &view.task;
        let queued = task.state == TaskState::Queued;
        let workers = if queued { self.app.targets.of(&task.pool).unwrap_or(1) } else { 1 };
        eta_ms(task, view.position, view.progress.as_ref(), workers, now)
    }

    /// A task as the caller sees it.
    pub(super) fn show(&self, view: &View, base: &Base, now: Timestamp) -> TaskBody {
        let targets = &self.app.targets;
        let task = &view.task;
        let queued = task.state == TaskState::Queued;
        let mut shown = TaskBody::new(
            task,
            base.as_str(),
            view.progress.clone(),
            view.position,
            self.eta_ms(view, now).map(|ms| ms.div_ceil(1000)),
        );
        if view.delivery.is_some() {
            shown.webhook = WebhookBody::new(task, view.delivery.as_ref());
        }
        if queued {
            shown.waiting_reason = targets.blocked(&task.pool, &task.model);
        }
        if shown.waiting_reason.is_some() {
            // Nobody knows when that ends.
            shown.eta_seconds = None;
        }
        shown
    }
}

/// A position in the list as text: with a checksum, so that what was not made here is refused,
/// and bound to the store's history, in which alone it means anything.
fn write_cursor(epoch: u64, position: u64) -> String {
    format!("{position:016x}{:08x}", cursor_sum(epoch, position))
}

fn read_cursor(epoch: u64, text: &str) -> Option<u64> {
    let position = u64::from_str_radix(text.get(..16)?, 16).ok()?;
    (write_cursor(epoch, position) == text).then_some(position)
}

fn cursor_sum(epoch: u64, position: u64) -> u32 {
    let mut hash = Sha256::new();
    hash.update(b"cursor");
    hash.update(epoch.to_be_bytes());
    hash.update(position.to_be_bytes());
    let digest = hash.finalize();
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_of_a_submit_is_none_in_a_form_too() {
        let document: serde_json::Value =
            serde_json::from_str(&crate::api::document()).expect("JSON");
        let fields = document["components"]["schemas"]["SubmitBody"]["properties"].clone();
        let is_text = |schema: &serde_json::Value| {
            let text = schema.to_string();
            !["integer", "number", "boolean", "array"]
                .iter()
                .any(|kind| text.contains(&format!("\"{kind}\"")))
        };
        let fields = fields.as_object().expect("properties").iter();
        let typed: Vec<&str> =
            fields.filter(|(_, schema)| !is_text(schema)).map(|(name, _)| name.as_str()).collect();
        let mut known = TYPED.to_vec();
        known.sort_unstable();
        assert_eq!(typed, known);
    }

    #[test]
    fn a_cursor_is_read_back_only_in_its_own_history() {
        for position in [0, 1, u64::MAX] {
            let text = write_cursor(7, position);
            assert_eq!(read_cursor(7, &text), Some(position));
            assert_eq!(read_cursor(8, &text), None);
        }
        let good = write_cursor(7, 42);
        for bad in
            ["", "42", "+", &good[1..], &good.to_uppercase(), &format!("{good}0"), "ééééééééééééé"]
        {
            assert_eq!(read_cursor(7, bad), None, "{bad}");
        }
    }
}
