//! The files of a task that has succeeded, with ranges and validators (RFC 9110).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures_util::TryStreamExt;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, HeaderName, IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::lease::Fence;
use rayreel_domain::task::{Outcome, Output, State as TaskState, Task};
use rayreel_domain::wire::api::{ErrorBody, TASKS_PATH};
use rayreel_domain::wire::engine::Role;

use super::error::Error;
use super::links::Viewer;
use super::openapi::{File, Variant};
use super::{Api, Id, query};
use crate::artifacts::{Key, Shown};

/// Downloads the result.
///
/// GET and HEAD; `Range` takes one range of bytes, the ETag is the SHA-256 of the file.
#[utoipa::path(get, path = "/v1/video/generations/{id}/content", tag = "generations", operation_id = "generation_content",
    params(
        ("id" = String, Path, description = "Id of the task."),
        ("variant" = inline(Option<Variant>), Query, description = "`thumbnail`: the still instead of the video."),
        ("expires" = Option<u64>, Query, description = "Of a link that needs no key: its end."),
        ("signature" = Option<String>, Query, description = "Of a link that needs no key."),
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
        (status = 403, description = "`link_invalid`: the link was changed, or has expired. `scope_missing`: the key is not good for this. `forbidden`: the Host header is foreign.", body = ErrorBody),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
        (status = 409, description = "`not_finished`: the task is queued or running.", body = ErrorBody),
        (status = 410, description = "The task ended without a result; the code says how.", body = ErrorBody),
        (status = 416, description = "`range_not_satisfiable`", body = ErrorBody),
    ))]
pub(super) async fn content(
    State(api): State<Arc<Api>>,
    Viewer { tenant, left }: Viewer,
    Id(id): Id,
    method: Method,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Error> {
    // Those of a link have been looked at; beside a key they mean nothing.
    let [variant, expires, _] = query::read(&uri, ["variant", "expires", "signature"])?;
    query::number("expires", expires, 0..=i64::MAX.unsigned_abs())?;
    let thumbnail = is_thumbnail(variant.as_deref())?;
    let view = api.app.components.store.get(&tenant, id).await?.ok_or_else(Error::no_task)?;
    let mut response = send(&api, &view.task, thumbnail, &method, &headers, left).await?;
    if left.is_some() {
        // For the access log: nobody has said it before.
        response.extensions_mut().insert(tenant);
    }
    Ok(response)
}

/// Sends a file of a task: its thumbnail, or the result; or sends the caller where it is. Of a link,
/// `left` is how many seconds it is still good.
pub(super) async fn send(
    api: &Api,
    task: &Task,
    thumbnail: bool,
    method: &Method,
    headers: &HeaderMap,
    left: Option<u64>,
) -> Result<Response, Error> {
    let components = &api.app.components;
    let output = output(task, thumbnail)?;
    let etag = format!("\"{}\"", output.sha256);
    let mut response = Response::new(Body::empty());
    describe(response.headers_mut(), task, output, thumbnail, &etag)?;
    if let Some(left) = left {
        // Whoever goes on showing it after that has not got it from here.
        put(response.headers_mut(), CACHE_CONTROL, format!("private, max-age={left}"))?;
    }
    if headers.get_all(IF_NONE_MATCH).iter().any(|given| names(given, &etag)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        if *method == Method::HEAD {
            // Without it the length would be told as 0; it must be that of the 200 (RFC 9110, 8.6).
            response.headers_mut().insert(CONTENT_LENGTH, output.bytes.into());
        }
        return Ok(response);
    }
    let asked = headers
        .get(RANGE)
        .filter(|_| headers.get(IF_RANGE).is_none_or(|given| given.as_bytes() == etag.as_bytes()));
    let range = match asked.map_or(Asked::Whole, |value| Asked::read(value, output.bytes)) {
        Asked::Whole => 0..output.bytes,
        Asked::Part(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let (first, last) = (range.start, range.end - 1);
            let value = format!("bytes {first}-{last}/{}", output.bytes);
            put(response.headers_mut(), CONTENT_RANGE, value)?;
            range
        }
        Asked::Beyond => {
            let value = format!("bytes */{}", output.bytes);
            let value = HeaderValue::try_from(value).map_err(Error::internal)?;
            let message = format!("the file has {} bytes", output.bytes);
            return Err(Error::new(Code::RangeNotSatisfiable, message)
                .param("Range")
                .header(CONTENT_RANGE, value));
        }
    };
    response.headers_mut().insert(CONTENT_LENGTH, (range.end - range.start).into());
    let key = key(task, output)?;
    if *method == Method::HEAD {
        components.artifacts.head(&key).await?;
        return Ok(response);
    }
    if let Some(address) = address(api, &key, response.headers(), left).await? {
        return moved(&address, &etag);
    }
    let stream = components.artifacts.get(&key, range).await?;
    let served = api.app.metrics.served_bytes.clone();
    *response.body_mut() = Body::from_stream(stream.inspect_ok(move |bytes| {
        served.inc_by(bytes.len() as u64);
    }));
    Ok(response)
}

/// Where the caller gets the file itself, with these headers.
async fn address(
    api: &Api,
    key: &Key,
    headers: &HeaderMap,
    left: Option<u64>,
) -> Result<Option<String>, Error> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let shown = Shown {
        media_type: text(CONTENT_TYPE),
        disposition: text(CONTENT_DISPOSITION),
        cache_control: text(CACHE_CONTROL),
        life: left.map(Duration::from_secs),
    };
    Ok(api.app.components.artifacts.address(key, shown).await?)
}

/// Sends the caller to the file. The tag tells its checksum, which the store's own does not.
fn moved(address: &str, etag: &str) -> Result<Response, Error> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    put(response.headers_mut(), LOCATION, address.to_owned())?;
    put(response.headers_mut(), ETAG, etag.to_owned())?;
    // It is good for a short time, and for whoever has it.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Name of the variant that is a still.
pub(super) const THUMBNAIL: &str = "thumbnail";

/// Is the still asked for?
pub(super) fn is_thumbnail(variant: Option<&str>) -> Result<bool, Error> {
    match variant {
        None => Ok(false),
        Some(THUMBNAIL) => Ok(true),
        Some(_) => Err(Error::invalid("variant", "`variant` can be `thumbnail`")),
    }
}

/// The whole result of a task.
pub(super) async fn whole(api: &Api, task: &Task) -> Result<Vec<u8>, Error> {
    let output = output(task, false)?;
    let mut stream = api.app.components.artifacts.get(&key(task, output)?, 0..output.bytes).await?;
    let mut whole = Vec::with_capacity(usize::try_from(output.bytes).unwrap_or(0));
    while let Some(bytes) = stream.try_next().await.map_err(Error::internal)? {
        whole.extend_from_slice(&bytes);
    }
    api.app.metrics.served_bytes.inc_by(output.bytes);
    Ok(whole)
}

/// The file that is asked for, if the task has one.
pub(super) fn output(task: &Task, thumbnail: bool) -> Result<&Output, Error> {
    match (task.state, &task.error) {
        (TaskState::Succeeded, _) => {}
        (TaskState::Queued | TaskState::Running, _) => {
            let message = format!(
                "the task is {}; there is no content yet: `{TASKS_PATH}/{}/events` tells when",
                task.state, task.id
            );
            return Err(Error::new(Code::NotFinished, message));
        }
        (state, Some(failure)) => {
            let why = if state == TaskState::Failed {
                "the task failed and has no content"
            } else {
                "there is no content"
            };
            // Some codes also refuse requests; a result that will never be is gone.
            return Err(Error::new(failure.code, format!("{why}: {}", failure.message))
                .with_status(StatusCode::GONE));
        }
        (state, None) => return Err(Error::internal(format!("{} is {state}, why?", task.id))),
    }
    let mut outputs = task.outputs.iter();
    if thumbnail {
        return outputs
            .find(|output| output.role == Role::Thumbnail)
            .ok_or_else(|| Error::invalid("variant", "this task has no thumbnail"));
    }
    outputs.next().ok_or_else(|| Error::internal(format!("{} succeeded without files", task.id)))
}

fn key(task: &Task, output: &Output) -> Result<Key, Error> {
    let winner = task.attempts.iter().find(|a| a.outcome == Some(Outcome::Succeeded));
    winner
        .map(|attempt| Fence { task: task.id, attempt: attempt.number, nonce: attempt.nonce })
        .and_then(|fence| Key::output(&fence, output.index, &output.sha256))
        .ok_or_else(|| Error::internal(format!("{} has files of no attempt", task.id)))
}

fn describe(
    headers: &mut HeaderMap,
    task: &Task,
    output: &Output,
    thumbnail: bool,
    etag: &str,
) -> Result<(), Error> {
    let extension = extension(&output.media_type);
    let variant = if thumbnail { "-thumbnail" } else { "" };
    let name = format!("inline; filename=\"{}{variant}.{extension}\"", task.id);
    put(headers, CONTENT_TYPE, output.media_type.clone())?;
    put(headers, CONTENT_DISPOSITION, name)?;
    put(headers, ETAG, etag.to_owned())?;
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // A result never changes; it belongs to its tenant.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(())
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: String) -> Result<(), Error> {
    headers.insert(name, HeaderValue::try_from(value).map_err(Error::internal)?);
    Ok(())
}

/// Media types that an output may have, and what its file name ends with.
pub(super) const MEDIA_TYPES: &[(&str, &str)] = &[
    ("video/mp4", "mp4"),
    ("video/webm", "webm"),
    ("image/png", "png"),
    ("image/jpeg", "jpg"),
    ("image/webp", "webp"),
];

fn extension(media_type: &str) -> &'static str {
    MEDIA_TYPES.iter().find(|(name, _)| *name == media_type).map_or("bin", |(_, ends)| ends)
}

/// Does this If-None-Match name the tag? Weakly: a changed transfer is still the same file.
fn names(given: &HeaderValue, etag: &str) -> bool {
    let Ok(text) = given.to_str() else { return false };
    text.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

/// What a Range header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Everything: no range, or none that can be understood, or several.
    Whole,
    Part(Range<u64>),
    Beyond,
}

impl Asked {
    fn read(value: &HeaderValue, length: u64) -> Self {
        let set = value.to_str().ok().and_then(|text| text.split_once('='));
        let Some((_, set)) = set.filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"))
        else {
            return Self::Whole;
        };
        // Several ranges may be answered with the whole; nobody asks for several of a video.
        let Some((first, last)) = set.trim().split_once('-') else { return Self::Whole };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            // More digits than fit are still a number, and beyond every file.
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        let range = match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => first..last.saturating_add(1),
            (Some(first), None) if last.is_empty() => first..u64::MAX,
            (None, Some(0)) if first.is_empty() => return Self::Beyond,
            (None, Some(suffix)) if first.is_empty() => length.saturating_sub(suffix)..length,
            _ => return Self::Whole,
        };
        if range.start >= length {
            return Self::Beyond;
        }
        Self::Part(range.start..range.end.min(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood_in_its_three_forms() {
        let read = |text: &'static str| Asked::read(&HeaderValue::from_static(text), 10);
        assert_eq!(read("bytes=0-3"), Asked::Part(0..4));
        assert_eq!(read("bytes=9-"), Asked::Part(9..10));
        assert_eq!(read("bytes=-3"), Asked::Part(7..10));
        assert_eq!(read("bytes=2-99999999999999999999"), Asked::Part(2..10));
        assert_eq!(read("bytes=-99"), Asked::Part(0..10));
        assert_eq!(read("Bytes=0-0"), Asked::Part(0..1));
        for beyond in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(read(beyond), Asked::Beyond, "{beyond}");
        }
        for other in ["bytes=3-1", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes"] {
            assert_eq!(read(other), Asked::Whole, "{other}");
        }
    }

    #[test]
    fn a_validator_may_be_weak_or_one_of_several() {
        let given = |text: &'static str| names(&HeaderValue::from_static(text), "\"a\"");
        for same in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert!(given(same), "{same}");
        }
        assert!(!given("\"b\"") && !given("a"));
    }
}
