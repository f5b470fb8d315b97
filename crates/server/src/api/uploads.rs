//! Files of workers: inputs out, outputs in, and the commit that makes them a result.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::lease::Fence;
use rayreel_domain::request::Input;
use rayreel_domain::task::{self, End, Outcome, Output, Task};
use rayreel_domain::wire::engine::Role;
use rayreel_domain::wire::worker::{
    Commit, PartTarget, PartTargets, Parts, UploadTarget, UploadTargets, Uploads,
};

use super::content::MEDIA_TYPES;
use super::error::Error;
use super::worker::Bound;
use super::{Api, body, json, query, worker};
use crate::artifacts::{self, Key, Pieces, Place, Put, is_sha256};
use crate::store::{self, Identity};

/// Most files of one attempt.
const MAX_OUTPUTS: usize = 16;
/// Largest file.
const MAX_OUTPUT_BYTES: u64 = 8 << 30;
/// Largest side, length and rate that an output may claim.
const MAX_SIDE: u32 = 16_384;
const MAX_FRAMES: u32 = 100_000;
const MAX_FPS: u32 = 1_000;
/// Longest name that a store of files gives an upload.
const MAX_UPLOAD: usize = 2048;
/// Most measurements of an attempt, and the longest name of one.
const MAX_METRICS: usize = 64;
const MAX_METRIC_NAME: usize = 64;

/// Answers where the files of an attempt go.
pub(super) async fn announce(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Uploads = worker::read(&api, request).await?;
    check(&call.manifest)?;
    let fence = call.fence;
    bound.admits(&api.app.components.store.leased(fence).await?.pool)?;
    let mut targets = Vec::with_capacity(call.manifest.len());
    for output in &call.manifest {
        targets.push(target(&api, fence, output).await?);
    }
    json(StatusCode::OK, &UploadTargets { targets })
}

/// Where a file goes: to the store of files itself, if that checks what it is given, or to us.
async fn target(api: &Api, fence: Fence, output: &Output) -> Result<UploadTarget, Error> {
    let Output { index, bytes, sha256, media_type, .. } = output;
    let (artifacts, index) = (&api.app.components.artifacts, *index);
    let here = |part_bytes| {
        let Fence { task, attempt, nonce } = fence;
        let url = format!(
            "/v1/worker/uploads/{task}/{attempt}/{nonce}/{index}?sha256={sha256}&bytes={bytes}"
        );
        UploadTarget { index, url, headers: BTreeMap::new(), part_bytes }
    };
    Ok(match artifacts.place(&key(fence, output)?, *bytes, sha256, media_type).await? {
        Place::Here => here(None),
        Place::InParts(part) => here(Some(part)),
        Place::There(put) => {
            let headers = headers(&put)?;
            UploadTarget { index, url: put.url, headers, part_bytes: None }
        }
    })
}

fn headers(put: &Put) -> Result<BTreeMap<String, String>, Error> {
    let headers = put.headers.iter().map(|(name, value)| {
        let value = value.to_str().map_err(Error::internal)?;
        Ok((name.to_string(), value.to_owned()))
    });
    headers.collect()
}

/// Answers where the missing parts of a file go, or puts it together if none is missing.
pub(super) async fn parts(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Parts = worker::read(&api, request).await?;
    let (fence, output) = (call.fence, &call.output);
    check_output(output)?;
    if output.index as usize >= MAX_OUTPUTS {
        let message = format!("an attempt has at most {MAX_OUTPUTS} outputs");
        return Err(Error::invalid("output", message));
    }
    if call.upload.as_ref().is_some_and(|upload| upload.len() > MAX_UPLOAD) {
        return Err(Error::invalid("upload", "this is no name that an upload was given here"));
    }
    bound.admits(&api.app.components.store.leased(fence).await?.pool)?;
    let artifacts = &api.app.components.artifacts;
    let (key, sums) = (key(fence, output)?, &call.sha256);
    let place = artifacts.place(&key, output.bytes, &output.sha256, &output.media_type).await?;
    let Place::InParts(part) = place else {
        return Err(Error::invalid("output", "this file does not go in parts; announce it again"));
    };
    let expected = output.bytes.div_ceil(part);
    if sums.len() as u64 != expected || !sums.iter().all(|sum| is_sha256(sum)) {
        let message = format!(
            "{} bytes are {expected} parts of {part}, each with its SHA-256 in 64 lower-case \
             hexadecimal digits",
            output.bytes
        );
        return Err(Error::invalid("sha256", message));
    }
    let pieces = Pieces {
        bytes: output.bytes,
        media_type: &output.media_type,
        sha256: sums,
        upload: call.upload.as_deref(),
    };
    let Some(missing) = artifacts.parts(&key, pieces).await? else {
        return json(StatusCode::OK, &PartTargets { upload: None, parts: Vec::new() });
    };
    let parts = missing
        .parts
        .into_iter()
        .map(|(part, put)| Ok(PartTarget { part, headers: headers(&put)?, url: put.url }));
    let parts = parts.collect::<Result<_, Error>>()?;
    json(StatusCode::OK, &PartTargets { upload: Some(missing.upload), parts })
}

fn key(fence: Fence, output: &Output) -> Result<Key, Error> {
    Key::output(&fence, output.index, &output.sha256)
        .ok_or_else(|| Error::internal("the manifest was checked"))
}

/// Takes one file. Repeating it is harmless: the same bytes go to the same place.
pub(super) async fn upload(
    State(api): State<Arc<Api>>,
    bound: Bound,
    path: Result<Path<(String, String, String, String)>, PathRejection>,
    uri: Uri,
    body: Body,
) -> Result<Response, Error> {
    let components = &api.app.components;
    let Path((task, attempt, nonce, index)) = path.map_err(|_| no_attempt())?;
    let fence = fence(&task, &attempt, &nonce)?;
    let [sha256, bytes] = query::read(&uri, ["sha256", "bytes"])?;
    let sha256 = sha256.unwrap_or_default();
    let bytes = query::number("bytes", bytes, 1..=MAX_OUTPUT_BYTES)?
        .ok_or_else(|| Error::new(Code::MissingField, "`bytes` is required").param("bytes"))?;
    let index = index.parse().ok().filter(|index| (*index as usize) < MAX_OUTPUTS);
    let key = index.and_then(|index: u32| Key::output(&fence, index, &sha256));
    let key = key.ok_or_else(|| Error::invalid("sha256", "this is no place for an output"))?;
    if let Some(announced) = body.size_hint().exact()
        && announced != bytes
    {
        let message = format!("{announced} bytes come, {bytes} were announced");
        return Err(Error::new(Code::UploadMismatch, message).param("Content-Length"));
    }
    let holder = components.store.leased(fence).await?;
    bound.admits(&holder.pool)?;
    let chunks = Box::pin(stream::unfold(body, async |mut body| {
        let chunk = body::next(&mut body).await.transpose()?;
        Some((chunk.map_err(|error| error.cause().to_owned()), body))
    }));
    components.artifacts.put_stream(&key, chunks, bytes, &sha256).await?;
    // The lease may have ended meanwhile, and the garbage been collected: then nobody would ever
    // delete this file.
    if let Err(stale) = components.store.leased(fence).await {
        if matches!(stale, store::Error::StaleLease { .. }) && !won(&api, &holder, fence).await? {
            components.artifacts.delete(&key).await?;
        }
        return Err(stale.into());
    }
    api.app.metrics.uploaded_bytes.inc_by(bytes);
    worker::done()
}

/// Has this attempt succeeded? Then its files are the result, and this was a late repetition.
async fn won(api: &Api, holder: &Task, fence: Fence) -> Result<bool, Error> {
    let view = api.app.components.store.get(&holder.tenant, fence.task).await?;
    Ok(view.is_some_and(|view| {
        view.task.attempts.iter().any(|attempt| {
            (attempt.number, attempt.nonce) == (fence.attempt, fence.nonce)
                && attempt.outcome == Some(Outcome::Succeeded)
        })
    }))
}

/// Ends the attempt with success, if every file of the manifest is there.
pub(super) async fn commit(
    State(api): State<Arc<Api>>,
    bound: Bound,
    request: Request,
) -> Result<Response, Error> {
    let call: Commit = worker::read(&api, request).await?;
    bound.holds(&api, call.fence).await?;
    check(&call.manifest)?;
    check_metrics(&call)?;
    let components = &api.app.components;
    let (artifacts, store) = (&components.artifacts, &components.store);
    let mut keys = Vec::with_capacity(call.manifest.len());
    for output in &call.manifest {
        // The checksum is part of the name, and was right when the file got it; a store that has
        // computed one as well is asked what it is.
        let key = key(call.fence, output)?;
        let found = match artifacts.head(&key).await {
            Ok(found) => Some(found),
            Err(artifacts::Error::NotFound) => None,
            Err(error) => return Err(error.into()),
        };
        let wrong = match &found {
            None => Some(format!("output {} has not been uploaded", output.index)),
            Some(found) if found.bytes != output.bytes => Some(format!(
                "output {} has {} bytes, not {}",
                output.index, found.bytes, output.bytes
            )),
            Some(found) => found.sha256.as_ref().filter(|it| **it != output.sha256).map(|it| {
                format!("output {} has the checksum {it}, not {}", output.index, output.sha256)
            }),
        };
        if let Some(message) = wrong {
            // If the lease is lost, so are the files; then that is the answer.
            store.leased(call.fence).await?;
            return Err(Error::new(Code::UploadMismatch, message).param("manifest"));
        }
        keys.push(key);
    }
    let by = Identity { worker: call.worker, incarnation: call.incarnation };
    let end = End::Commit(task::Commit {
        outputs: call.manifest,
        metrics: call.metrics,
        test_pattern: call.test_pattern,
    });
    let task = store.end(&by, call.fence, end).await?;
    if let Some(attempt) = task.attempts.last()
        && let Some(ended) = attempt.ended_at
    {
        let held = ended.ms_since(attempt.started_at);
        api.app.estimates.observe(&task.model, &task.request, held);
    }
    if let Err(error) = artifacts.keep_only(&call.fence, &keys).await {
        tracing::warn!(%error, task = %task.id, "leftovers of an upload were not deleted");
    }
    worker::done()
}

/// What names an attempt in a path.
type AttemptPath = Result<Path<(String, String, String)>, PathRejection>;

/// Gives the holder of an attempt the image of its request.
pub(super) async fn input(
    State(api): State<Arc<Api>>,
    bound: Bound,
    path: AttemptPath,
) -> Result<Response, Error> {
    let task = leased(&api, &bound, path).await?;
    give(&api, task.request.image.as_ref(), Key::input(&task)).await
}

/// Gives the holder of an attempt the last frame of its request.
pub(super) async fn last_input(
    State(api): State<Arc<Api>>,
    bound: Bound,
    path: AttemptPath,
) -> Result<Response, Error> {
    let task = leased(&api, &bound, path).await?;
    give(&api, task.request.last_image.as_ref(), Key::last_input(&task)).await
}

async fn leased(api: &Api, bound: &Bound, path: AttemptPath) -> Result<Task, Error> {
    let Path((task, attempt, nonce)) = path.map_err(|_| no_attempt())?;
    let task = api.app.components.store.leased(fence(&task, &attempt, &nonce)?).await?;
    bound.admits(&task.pool)?;
    Ok(task)
}

async fn give(api: &Api, input: Option<&Input>, key: Option<Key>) -> Result<Response, Error> {
    let components = &api.app.components;
    let (Some(input), Some(key)) = (input, key) else {
        return Err(Error::new(Code::RouteNotFound, "the task has no such input"));
    };
    let stream = components.artifacts.get(&key, 0..input.bytes).await?;
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, input.bytes.into());
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::try_from(input.media_type.clone()).map_err(Error::internal)?,
    );
    Ok(response)
}

fn fence(task: &str, attempt: &str, nonce: &str) -> Result<Fence, Error> {
    match (task.parse(), attempt.parse(), nonce.parse()) {
        (Ok(task), Ok(attempt), Ok(nonce)) => Ok(Fence { task, attempt, nonce }),
        _ => Err(no_attempt()),
    }
}

fn no_attempt() -> Error {
    Error::new(Code::RouteNotFound, "this names no attempt")
}

/// Is this a manifest that could be?
fn check(manifest: &[Output]) -> Result<(), Error> {
    let wrong = |message: String| Err(Error::invalid("manifest", message));
    if !(1..=MAX_OUTPUTS).contains(&manifest.len()) {
        return wrong(format!("a manifest has 1 to {MAX_OUTPUTS} outputs"));
    }
    if manifest[0].role == Role::Thumbnail {
        return wrong("the first output is the main one, not a thumbnail".to_owned());
    }
    for (place, output) in manifest.iter().enumerate() {
        if output.index as usize != place {
            return wrong(format!("output {place} has the index {}", output.index));
        }
        check_output(output)?;
    }
    Ok(())
}

/// Is this an output that could be?
fn check_output(output: &Output) -> Result<(), Error> {
    let place = output.index;
    let wrong = |message: String| Err(Error::invalid("manifest", message));
    if !is_sha256(&output.sha256) {
        return wrong(format!("output {place}: `sha256` is 64 lower-case hexadecimal digits"));
    }
    if !(1..=MAX_OUTPUT_BYTES).contains(&output.bytes) {
        return wrong(format!("output {place}: `bytes` is from 1 to {MAX_OUTPUT_BYTES}"));
    }
    if !MEDIA_TYPES.iter().any(|(name, _)| *name == output.media_type) {
        let names: Vec<&str> = MEDIA_TYPES.iter().map(|(name, _)| *name).collect();
        return wrong(format!("output {place}: `media_type` is one of {}", names.join(", ")));
    }
    let sides = 1..=MAX_SIDE;
    if !sides.contains(&output.width) || !sides.contains(&output.height) {
        return wrong(format!("output {place}: sides are from 1 to {MAX_SIDE} pixels"));
    }
    if !(1..=MAX_FRAMES).contains(&output.frames) || output.fps > MAX_FPS {
        return wrong(format!(
            "output {place}: 1 to {MAX_FRAMES} frames, at most {MAX_FPS} a second"
        ));
    }
    Ok(())
}

fn check_metrics(call: &Commit) -> Result<(), Error> {
    let short = |name: &String| name.chars().count() <= MAX_METRIC_NAME;
    if call.metrics.len() > MAX_METRICS || !call.metrics.keys().all(short) {
        let message = format!(
            "at most {MAX_METRICS} metrics, with names of up to {MAX_METRIC_NAME} characters"
        );
        return Err(Error::invalid("metrics", message));
    }
    Ok(())
}
