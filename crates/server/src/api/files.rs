//! Files that requests can name, in OpenAI's shape.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::response::Response;
use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderValue, StatusCode, Uri};
use rayreel_domain::Code;
use rayreel_domain::file::{FileRecord, MAX_FILENAME};
use rayreel_domain::id::FileId;
use rayreel_domain::wire::api::ErrorBody;
use rayreel_domain::wire::files::{FileBody, FileDeleted, FileForm, FileList};
use serde::Deserialize;

use super::error::Error;
use super::form::Form;
use super::input::{Raw, Taken};
use super::openapi::{File, Order};
use super::{Api, Tenant, json, query};
use crate::artifacts::Key;
use crate::store::{self, FileQuery};

const DEFAULT_PAGE: u64 = 100;
const MAX_PAGE: u64 = 1_000;
/// Shortest life of a file that may be asked for, in seconds: OpenAI's.
const SHORTEST_LIFE: u64 = 3_600;
/// Longest word that says what a file is for.
const MAX_PURPOSE: usize = 64;

/// The text fields of an upload.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    purpose: Option<String>,
    expires_after: Option<ExpiresAfter>,
}

/// Times of a form are text; a part of it in JSON has numbers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpiresAfter {
    anchor: String,
    seconds: Seconds,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Text(String),
    Number(u64),
}

/// Uploads an image, to be named in requests by its id.
///
/// It is decoded and written anew as a PNG: upright and without metadata. It expires after a time
/// that the operator sets, or earlier if `expires_after` says so; tasks that were submitted with it
/// keep it. The same picture is stored once, however often it is uploaded; each upload makes a file
/// with an id of its own, also under the same `Idempotency-Key`, which is not looked at here.
#[utoipa::path(post, path = "/v1/files", tag = "files", operation_id = "upload_file",
    request_body(content = FileForm, content_type = "multipart/form-data",
        example = json!({"file": "@first.png", "purpose": "vision"})),
    responses(
        (status = 200, description = "Stored.", body = FileBody),
        (status = 400, description = "`invalid_request`, `missing_field`, `unknown_field` or `invalid_value`.", body = ErrorBody),
        (status = 415, description = "`unsupported_media_type`: send a form.", body = ErrorBody),
        (status = 429, description = "`limit_reached`: your files take as much room as they may.", body = ErrorBody),
        (status = 507, description = "`storage_full`", body = ErrorBody),
    ))]
pub(super) async fn upload(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    request: Request,
) -> Result<Response, Error> {
    let settings = &api.app.settings;
    let (parts, mut form) = Form::read(&api.bodies, request, settings.max_body_bytes, &[]).await?;
    query::none(&parts.uri)?;
    let file = form.take_file("file").ok_or_else(|| {
        let message = "`file` is required, sent as a file: `curl -F file=@fox.png`";
        Error::new(Code::MissingField, message).param("file")
    })?;
    let fields: Fields = form.into_body(|_, _| None)?;
    let purpose = fields.purpose.unwrap_or_else(|| "vision".to_owned());
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    if !(1..=MAX_PURPOSE).contains(&purpose.len()) || !purpose.bytes().all(plain) {
        let message =
            "`purpose` is a word of 1 to 64 letters, digits, `_` and `-`, such as `vision`";
        return Err(Error::invalid("purpose", message));
    }
    let filename = filename(&file.filename)?;
    let lives_ms = match fields.expires_after {
        Some(asked) => time_to_live(&asked, settings.inputs.file_seconds.ms() / 1000)? * 1000,
        None => settings.inputs.file_seconds.ms(),
    };
    let components = &api.app.components;
    let most = settings.inputs.max_tenant_bytes;
    // Before it is decoded and before it is written; whether it fits is decided at the end.
    components.store.admits_file(&tenant, 0, most).await?;
    let png = api.decode(&tenant, "file", Raw::Bytes(file.bytes)).await?;
    components.store.admits_file(&tenant, png.len() as u64, most).await?;
    let Taken { input, hold } = api.keep(&tenant, png).await?;
    let now = components.clock.wall();
    let record = FileRecord {
        id: components.random.file_id(now),
        tenant,
        filename,
        purpose,
        input,
        created_at: now,
        expires_at: now.plus_ms(lives_ms),
    };
    components.store.put_file(record.clone(), most).await?;
    drop(hold);
    json(StatusCode::OK, &FileBody::new(&record))
}

/// The seconds that a file shall live: at most so many as the operator lets it.
fn time_to_live(asked: &ExpiresAfter, most: u64) -> Result<u64, Error> {
    if asked.anchor != "created_at" {
        let message = "`expires_after[anchor]` can be `created_at`";
        return Err(Error::invalid("expires_after.anchor", message));
    }
    let least = SHORTEST_LIFE.min(most);
    let seconds = match &asked.seconds {
        Seconds::Number(seconds) => Some(*seconds),
        Seconds::Text(text) => {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        }
    };
    seconds.filter(|seconds| (least..=most).contains(seconds)).ok_or_else(|| {
        let message = format!(
            "`expires_after[seconds]` is a whole number from {least} to {most}; no file is kept \
             longer here"
        );
        Error::invalid("expires_after.seconds", message)
    })
}

fn filename(given: &str) -> Result<String, Error> {
    if given.chars().count() > MAX_FILENAME || given.contains(char::is_control) {
        let message = format!(
            "the name of `file` has at most {MAX_FILENAME} characters, none of them a control character"
        );
        return Err(Error::invalid("file", message));
    }
    Ok(if given.is_empty() { "upload".to_owned() } else { given.to_owned() })
}

/// Lists your files, newest first.
#[utoipa::path(get, path = "/v1/files", tag = "files", operation_id = "list_files",
    params(
        ("limit" = Option<u32>, Query, description = "1 to 1000; 100 if absent.", minimum = 1, maximum = 1000),
        ("after" = Option<String>, Query, description = "`last_id` of the page before."),
        ("order" = inline(Option<Order>), Query, description = "`desc` (newest first) or `asc`."),
        ("purpose" = Option<String>, Query, description = "Only files of this purpose."),
    ),
    responses(
        (status = 200, description = "A page.", body = FileList),
        (status = 400, description = "`invalid_value`, `unknown_field` or `invalid_cursor`.", body = ErrorBody),
    ))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    uri: Uri,
) -> Result<Response, Error> {
    let [limit, after, order, purpose] = query::read(&uri, ["limit", "after", "order", "purpose"])?;
    let unknown = || {
        Error::new(Code::InvalidCursor, "`after` is the id of none of your files").param("after")
    };
    let query = FileQuery {
        tenant,
        purpose: purpose.map(|purpose| purpose.into_owned()),
        after: after.map(|id| id.parse().map_err(|_| unknown())).transpose()?,
        ascending: match order.as_deref() {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => return Err(Error::invalid("order", "`order` is `desc` or `asc`")),
        },
        limit: query::number("limit", limit, 1..=MAX_PAGE)?.unwrap_or(DEFAULT_PAGE) as u32,
    };
    let page = match api.app.components.store.files(&query).await {
        Err(store::Error::NotFound) => return Err(unknown()),
        page => page?,
    };
    let data: Vec<FileBody> = page.files.iter().map(FileBody::new).collect();
    let id = |file: Option<&FileBody>| file.map(|file| file.id.clone());
    json(
        StatusCode::OK,
        &FileList {
            object: "list".to_owned(),
            first_id: id(data.first()),
            last_id: id(data.last()),
            data,
            has_more: page.more,
        },
    )
}

/// Shows a file.
#[utoipa::path(get, path = "/v1/files/{id}", tag = "files", operation_id = "show_file",
    params(("id" = String, Path, description = "Id of the file.")),
    responses(
        (status = 200, description = "The file.", body = FileBody),
        (status = 404, description = "`file_not_found`", body = ErrorBody),
    ))]
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    FileName(id): FileName,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    let file = api.app.components.store.file(&tenant, id).await?.ok_or_else(no_file)?;
    json(StatusCode::OK, &FileBody::new(&file))
}

/// Deletes a file. Tasks that were submitted with it keep their image.
#[utoipa::path(delete, path = "/v1/files/{id}", tag = "files", operation_id = "delete_file",
    params(("id" = String, Path, description = "Id of the file.")),
    responses(
        (status = 200, description = "It is gone.", body = FileDeleted),
        (status = 404, description = "`file_not_found`", body = ErrorBody),
    ))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    FileName(id): FileName,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    if !api.app.components.store.delete_file(&tenant, id).await? {
        return Err(no_file());
    }
    let deleted = FileDeleted { id: id.to_string(), object: "file".to_owned(), deleted: true };
    json(StatusCode::OK, &deleted)
}

/// Downloads a file as it is stored.
#[utoipa::path(get, path = "/v1/files/{id}/content", tag = "files", operation_id = "file_content",
    params(("id" = String, Path, description = "Id of the file.")),
    responses(
        (status = 200, description = "The image.", content_type = "image/png", body = File),
        (status = 404, description = "`file_not_found`", body = ErrorBody),
    ))]
pub(super) async fn content(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    FileName(id): FileName,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    let components = &api.app.components;
    let file = components.store.file(&tenant, id).await?.ok_or_else(no_file)?;
    let key = Key::content(&tenant, &file.input).ok_or_else(no_file)?;
    let stream = components.artifacts.get(&key, 0..file.input.bytes).await?;
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    let value = |text: String| HeaderValue::try_from(text).map_err(Error::internal);
    headers.insert(CONTENT_LENGTH, file.input.bytes.into());
    headers.insert(CONTENT_TYPE, value(file.input.media_type)?);
    // By its id: the name that it was sent with says nothing about what it is now.
    headers.insert(CONTENT_DISPOSITION, value(format!("attachment; filename=\"{id}.png\""))?);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn no_file() -> Error {
    Error::new(Code::FileNotFound, "there is no file with this id, or it has expired")
}

/// The file that the path names. What is no id names no file.
pub(super) struct FileName(FileId);

impl FromRequestParts<Arc<Api>> for FileName {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Error> {
        let path = Path::<String>::from_request_parts(parts, api).await;
        path.ok().and_then(|Path(text)| text.parse().ok()).map(Self).ok_or_else(no_file)
    }
}
