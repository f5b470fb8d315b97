//! `POST /generate`: the request of Wan2.2's `generate.py` over HTTP, for clients of services that
//! were built around it. The task is one like any other, and is followed at
//! `/v1/video/generations/{task_id}`.

mod file;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use rayreel_domain::id::FileId;
use rayreel_domain::request::ModelSpec;
use rayreel_domain::wire::api::{ErrorBody, SubmitBody, TaskBody};
use rayreel_domain::wire::generate::GenerateBody;

use super::base::Base;
use super::error::Error;
use super::input::{Source, Sources};
use super::tasks::{Keyed, Submission};
use super::{Api, Tenant, body, query, tasks};

/// Longest piece of a request that a message quotes, in characters.
const MAX_QUOTE: usize = 200;

/// Submits a generation in the shape of Wan2.2's `generate.py`.
///
/// Answers the task at once; it is stored durably before. Follow it at
/// `/v1/video/generations/{task_id}`.
#[utoipa::path(post, path = "/generate", tag = "generations", operation_id = "generate",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters.")),
    request_body(content = GenerateBody, example = json!({"task": "testcard", "size": "1280*720", "prompt": "two anthropomorphic cats box on a lit stage"})),
    responses(
        (status = 200, description = "Queued, or there already under the same key.", body = TaskBody,
            headers(
                ("Location" = String, description = "Path of the task."),
                ("x-rayreel-test-pattern" = String, description = "`true` if the model is the built-in test card: the result is a synthetic pattern."),
            )),
        (status = 400, description = "`invalid_json`, `missing_field`, `unknown_field`, `invalid_value` or `unknown_model`.", body = ErrorBody),
        (status = 409, description = "`idempotency_mismatch`: the key was used with another request. `task_deleted`: what it made is gone.", body = ErrorBody),
        (status = 429, description = "`queue_full` or `limit_reached`; come back after Retry-After.", body = ErrorBody),
        (status = 507, description = "`storage_full`: there is no room for the image.", body = ErrorBody),
    ))]
pub(super) async fn generate(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    base: Base,
    request: Request,
) -> Result<Response, Error> {
    let (parts, asked) =
        body::json::<GenerateBody>(&api.bodies, request, api.app.settings.max_body_bytes).await?;
    query::none(&parts.uri)?;
    let idempotency = match tasks::keyed(&api, &tenant, &parts.headers, &asked).await? {
        Keyed::Before(views) => return tasks::answer(&api, StatusCode::OK, &views, false, &base),
        Keyed::New(idempotency) => idempotency,
    };
    let model = model(&api, &asked)?;
    let body = SubmitBody {
        model: model.map(|model| model.name.to_string()),
        prompt: asked.prompt,
        size: asked.size,
        ..SubmitBody::default()
    };
    let image = asked.image.map(source).transpose()?;
    let images = Sources { image, last_image: None };
    let submission = Submission { asked: &body, images, idempotency, remixed: None, seconds: None };
    let views = tasks::accept(&api, tenant, &base, submission).await?;
    // What a service that answers with an object says by default, and such clients expect.
    tasks::answer(&api, StatusCode::OK, &views, false, &base)
}

/// The model that `task` and `ckpt_dir` mean, if they name one.
fn model<'a>(api: &'a Api, asked: &GenerateBody) -> Result<Option<&'a ModelSpec>, Error> {
    let by_task = asked.task.as_deref().map(|task| api.model(Some(task))).transpose();
    let by_task = by_task.map_err(|error| error.param("task"))?;
    let Some(given) = &asked.ckpt_dir else { return Ok(by_task) };
    let meant = with_checkpoint(api, given);
    let wrong = |message| Err(Error::invalid("ckpt_dir", message));
    match (by_task, meant.first()) {
        (None, Some(first)) => Ok(Some(first)),
        (Some(model), _) if meant.iter().any(|meant| meant.name == model.name) => Ok(Some(model)),
        (Some(model), Some(other)) => wrong(format!(
            "`task` means the model `{}`, but `ckpt_dir` the model `{}`",
            model.name, other.name
        )),
        (by_task, None) => {
            let given: String = given.chars().take(MAX_QUOTE).collect();
            let task = by_task.map(|model| format!("; `task` means `{}`", model.name));
            wrong(format!(
                "`ckpt_dir` `{given}` is neither the name nor the checkpoint of a model{}; there \
                 are: {}",
                task.unwrap_or_default(),
                api.model_names()
            ))
        }
    }
}

/// The models that are called so, or whose checkpoint has this path. The path is compared, never
/// opened: no caller chooses what is loaded.
fn with_checkpoint<'a>(api: &'a Api, given: &str) -> Vec<&'a ModelSpec> {
    let settings = &api.app.settings;
    if let Some(name) = given.parse().ok().and_then(|called| settings.canonical(&called)) {
        return api.models.get(name).into_iter().collect();
    }
    let path = normalised(given);
    let same = |checkpoint: &String| path.is_some() && normalised(checkpoint) == path;
    let models = settings.models.iter();
    models
        .filter(|(_, model)| model.checkpoint.as_ref().is_some_and(same))
        .filter_map(|(name, _)| api.models.get(name))
        .collect()
}

/// An absolute path without `.`, `..` and needless slashes.
fn normalised(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            // Above the root is the root.
            Component::ParentDir => _ = plain.pop(),
            other => plain.push(other),
        }
    }
    path.is_absolute().then_some(plain)
}

/// An image by its path, or named as in a submit.
fn source(image: String) -> Result<Source, Error> {
    if image.starts_with('/') {
        return Ok(Source::AtPath(image));
    }
    if !image.contains(':') && !image.starts_with(FileId::PREFIX) {
        return Err(Error::invalid(
            "image",
            "`image` must be a whole path, from `/` on, a URL, a data URI or the id of a file",
        ));
    }
    Ok(Source::Named(image))
}

/// Reads a file of this machine below `input_roots`.
pub(super) async fn read(api: &Api, path: String) -> Result<Bytes, Error> {
    let (roots, limit) = (api.app.settings.input_roots.clone(), api.app.settings.max_body_bytes);
    let read = move || file::read(&roots, &path, limit);
    let bytes = tokio::task::spawn_blocking(read).await.map_err(Error::internal)??;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_paths_are_normalised_to_the_same() {
        for same in ["/data/W", "/data/W/", "//data/./W", "/data/x/../W", "/../data/W/."] {
            assert_eq!(normalised(same), Some(PathBuf::from("/data/W")), "{same}");
        }
        for other in ["data/W", "./data/W", "", "~/data/W"] {
            assert_eq!(normalised(other), None, "{other}");
        }
        assert_ne!(normalised("/data/w"), normalised("/data/W"));
    }
}
