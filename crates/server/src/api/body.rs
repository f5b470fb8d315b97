//! Request bodies: read once, within a limit, and refused with the place of the fault.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode, request::Parts};
use http_body_util::BodyExt;
use rayreel_domain::Code;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::budget::{Budget, Share};
use super::error::Error;
use super::gate;
use crate::keyring::Caller;

/// Longest silence in the middle of a body.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Fewest bytes a second of a body that is read as a whole, beyond that.
const SLOWEST: u64 = 16 * 1024;
/// Longest name that is compared with those that exist.
const MAX_NAME: usize = 64;

/// Reads a JSON object. As of every body here, the memory that it takes counts until the parts of
/// its request are dropped: what was read of it is in use until then.
pub(super) async fn json<T: DeserializeOwned>(
    budget: &Arc<Budget>,
    request: Request,
    limit: u64,
) -> Result<(Parts, T), Error> {
    let (parts, bytes) = whole(budget, request, limit).await?;
    Ok((parts, parse(&bytes, |_| None)?))
}

/// Reads a body that says that it is JSON.
pub(super) async fn whole(
    budget: &Arc<Budget>,
    request: Request,
    limit: u64,
) -> Result<(Parts, Bytes), Error> {
    require_json(request.headers())?;
    read(budget, request, limit).await
}

fn require_json(headers: &HeaderMap) -> Result<(), Error> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = given.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Error::new(Code::UnsupportedMediaType, "send `Content-Type: application/json`")
        .param("Content-Type"))
}

/// Reads a body, of at most `limit` bytes, that does not drip in.
pub(super) async fn read(
    budget: &Arc<Budget>,
    request: Request,
    limit: u64,
) -> Result<(Parts, Bytes), Error> {
    let (mut parts, body) = request.into_parts();
    let caller = parts.extensions.get::<Arc<Caller>>();
    let caller = caller.ok_or_else(|| Error::internal("a body came past the gate"))?;
    let caller = Arc::clone(caller);
    let mut share = budget.share(Arc::clone(&caller));
    let bytes = body.size_hint().upper().unwrap_or(limit).min(limit);
    let patience = PATIENCE + Duration::from_secs(bytes / SLOWEST);
    let bytes = tokio::time::timeout(patience, read_all(body, limit, &mut share)).await;
    let bytes = bytes.map_err(|_| {
        let message = format!("the body did not come within {} seconds", patience.as_secs());
        Error::new(Code::InvalidRequest, message).with_status(StatusCode::REQUEST_TIMEOUT)
    })??;
    if caller.is_over() {
        // While the body came: what it asks for is not done.
        return Err(gate::over(&caller));
    }
    if !share.is_empty() {
        parts.extensions.insert(Arc::new(share));
    }
    Ok((parts, bytes))
}

async fn read_all(mut body: Body, limit: u64, share: &mut Share) -> Result<Bytes, Error> {
    let too_large = || {
        let message = format!("the body is longer than {limit} bytes");
        Error::new(Code::BodyTooLarge, message)
    };
    let announced = body.size_hint().lower();
    if announced > limit {
        return Err(too_large());
    }
    share.grow(announced)?;
    // Most bodies arrive as one piece, which is taken as it is.
    let mut whole = Bytes::new();
    let mut pieces = Vec::new();
    while let Some(frame) = next(&mut body).await? {
        let length = whole.len().max(pieces.len()) + frame.len();
        if length as u64 > limit {
            return Err(too_large());
        }
        if whole.is_empty() && pieces.is_empty() {
            whole = frame;
            continue;
        }
        if length as u64 > share.room() {
            share.grow((2 * length as u64).min(limit))?;
        }
        if pieces.capacity() < length {
            // As much as is taken, and what is small anyway. Touched only as it fills.
            let room = usize::try_from(share.room().min(limit)).unwrap_or(length);
            pieces.reserve_exact(room.max(length) - pieces.len());
        }
        if pieces.is_empty() {
            pieces.extend_from_slice(&std::mem::take(&mut whole));
        }
        pieces.extend_from_slice(&frame);
    }
    Ok(if pieces.is_empty() { whole } else { pieces.into() })
}

/// The next piece of a body that is not empty.
pub(super) async fn next(body: &mut Body) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
        let stopped = |cause: &dyn std::fmt::Display| {
            Error::new(Code::InvalidJson, "the body stopped in the middle").because(cause)
        };
        match frame {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
            Ok(Some(Err(error))) => return Err(stopped(&error)),
            Err(elapsed) => return Err(stopped(&elapsed)),
        }
    }
}

/// Reads a JSON object from its text. `allowed` says what a field may be, where its type does not
/// say enough.
pub(super) fn parse<T: DeserializeOwned>(
    bytes: &[u8],
    allowed: impl FnOnce(&str) -> Option<String>,
) -> Result<T, Error> {
    // A struct would also be read from an array.
    if bytes.trim_ascii_start().first() == Some(&b'{')
        && let Ok(value) = serde_json::from_slice(bytes)
    {
        return Ok(value);
    }
    Err(fault::<T>(bytes, allowed))
}

/// Why the bytes are not what is asked for; reads them again to find out.
fn fault<T: DeserializeOwned>(bytes: &[u8], allowed: impl FnOnce(&str) -> Option<String>) -> Error {
    let broken = |message: String| Error::new(Code::InvalidJson, message);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            return broken(format!("the body is not UTF-8 from byte {} on", error.valid_up_to()));
        }
    };
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        return broken(format!("the body is not JSON: {error}"));
    }
    if !text.trim_ascii_start().starts_with('{') {
        return broken("the body is not a JSON object".to_owned());
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let Err(error) = serde_path_to_error::deserialize::<_, T>(&mut reader) else {
        return Error::internal("a body was refused and then read");
    };
    let path = error.path().to_string();
    let error = error.inner();
    let message = error.to_string();
    if message.starts_with("expected value") {
        // Of a field that takes a name out of a list.
        let allowed = allowed(&path).unwrap_or_else(|| "a string".to_owned());
        return Error::invalid(path.clone(), format!("`{path}` must be {allowed}"));
    }
    if !error.is_data() {
        return broken(format!("the body is not JSON: {message}"));
    }
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    // Serde tells the kinds of faults apart by their words only, and quotes names in backticks.
    let mut quoted = message.split('`').skip(1).step_by(2);
    let name = quoted.next().unwrap_or_default().to_owned();
    let within = path.rsplit_once('.').map_or("", |(outer, _)| outer);
    let inner = if within.is_empty() { name.clone() } else { format!("{within}.{name}") };
    if message.starts_with("unknown field") {
        let hint = nearest(&name, quoted);
        let message = format!("there is no field `{name}`{hint}");
        return Error::new(Code::UnknownField, message).param(inner);
    }
    if message.starts_with("duplicate field") {
        return broken(format!("`{name}` stands twice{place}")).param(inner);
    }
    if message.starts_with("missing field") {
        // The path ends at the object that lacks it; that of the whole body is a dot.
        let name = if path == "." { name } else { format!("{path}.{name}") };
        return Error::new(Code::MissingField, format!("`{name}` is required")).param(name);
    }
    let message = match message.rsplit_once(", expected ") {
        Some((found, expected)) => {
            let allowed = allowed(&path).unwrap_or_else(|| in_json(expected));
            format!("`{path}` must be {allowed}, not {}", found_in_json(found))
        }
        // Types of ours say it in words of their own.
        None => match allowed(&path) {
            Some(allowed) => format!("`{path}` must be {allowed}"),
            None => format!("`{path}`: {message}"),
        },
    };
    Error::invalid(path, message)
}

/// What serde expects, in the words of JSON instead of Rust's.
fn in_json(expected: &str) -> String {
    let whole = |to: u64| format!("a whole number from 0 to {to}");
    match expected {
        "u8" => whole(u8::MAX.into()),
        "u16" => whole(u16::MAX.into()),
        "u32" => whole(u32::MAX.into()),
        "u64" | "usize" => whole(u64::MAX),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a borrowed string" | "string or map" | "variant identifier" => "a string".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a map" => "an object".to_owned(),
        _ if expected.starts_with("struct ") || expected.contains("tagged enum") => {
            "an object".to_owned()
        }
        _ if expected.starts_with("enum ") => "one of its names".to_owned(),
        _ => expected.to_owned(),
    }
}

/// What serde has found, in the same words.
fn found_in_json(found: &str) -> String {
    let found = found
        .strip_prefix("invalid type: ")
        .or_else(|| found.strip_prefix("invalid value: "))
        .unwrap_or(found);
    for number in ["integer `", "floating point `"] {
        if let Some(number) = found.strip_prefix(number) {
            return number.trim_end_matches('`').to_owned();
        }
    }
    if let Some(value) = found.strip_prefix("boolean ").or(found.strip_prefix("unknown variant ")) {
        return value.to_owned();
    }
    match found {
        "map" => "an object",
        "sequence" => "an array",
        "unit value" => "null",
        _ if found.starts_with("string ") => "a string",
        _ => found,
    }
    .to_owned()
}

/// `; did you mean …?` if something known is spelt alike, else what there is.
pub(super) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.collect();
    // What is longer than any name is compared with none: that costs by the length.
    let name = if name.len() <= MAX_NAME { name } else { "" };
    let alike = |known: &&str| strsim::normalized_damerau_levenshtein(name, known);
    let best = known.iter().copied().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match best {
        Some(best) if alike(&best) >= 0.5 => format!("; did you mean `{best}`?"),
        Some(_) => format!("; there are `{}`", known.join("`, `")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayreel_domain::wire::api::SubmitBody;
    use rayreel_domain::wire::worker::Beat;

    fn refused<T: DeserializeOwned + std::fmt::Debug>(
        bytes: &[u8],
    ) -> (String, Option<String>, String) {
        let error = parse::<T>(bytes, |_| None).expect_err("refused");
        let body = futures_util::FutureExt::now_or_never(error.render("id").into_body().collect())
            .expect("at once")
            .expect("whole")
            .to_bytes();
        let body: rayreel_domain::wire::api::ErrorBody =
            serde_json::from_slice(&body).expect("an error");
        (body.error.code, body.error.param, body.error.message)
    }

    #[test]
    fn what_is_not_one_json_object_is_refused_with_its_place() {
        for (text, told) in [
            (&b""[..], "EOF"),
            (b"{\"prompt\":", "line 1 column 10"),
            (b"{\"prompt\":\"a\"} x", "column 16"),
            (b"[]", "object"),
            (b"[\"t2v\", \"a prompt\"]", "object"),
            (b"null", "object"),
            (b"{\"prompt\":\"\xff\"}", "byte 11"),
            (b"{\"prompt\":\"\\ud800\"}", "hex escape"),
            (b"\xef\xbb\xbf{}", "line 1"),
        ] {
            let (code, _, message) = refused::<SubmitBody>(text);
            assert_eq!(code, "invalid_json", "{message}");
            assert!(message.contains(told), "{message}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_named() {
        let (code, param, _) = refused::<SubmitBody>(br#"{"prompt":"a","prompt":"b"}"#);
        assert_eq!((code.as_str(), param.as_deref()), ("invalid_json", Some("prompt")));
        let (code, ..) = refused::<SubmitBody>(br#"{"metadata":{"a":"1","a":"2"}}"#);
        assert_eq!(code, "invalid_json");
    }

    #[test]
    fn an_unknown_field_is_named_with_the_nearest_that_exists() {
        let (code, param, message) = refused::<SubmitBody>(br#"{"promt":"a"}"#);
        assert_eq!((code.as_str(), param.as_deref()), ("unknown_field", Some("promt")));
        assert!(message.contains("`prompt`?"), "{message}");
        let (_, _, message) = refused::<SubmitBody>(br#"{"qqqqqqqqqqqq":1}"#);
        assert!(message.contains("`negative_prompt`"), "lists what there is: {message}");
        let nested = br#"{"worker":"w","incarnation":1,"fence":{"tusk":1}}"#;
        let (code, param, _) = refused::<Beat>(nested);
        assert_eq!((code.as_str(), param.as_deref()), ("unknown_field", Some("fence.tusk")));
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        for (text, field) in [
            (r#"{"prompt":1}"#, "prompt"),
            (r#"{"frames":5.5}"#, "frames"),
            (r#"{"frames":-1}"#, "frames"),
            (r#"{"steps":"20"}"#, "steps"),
            (r#"{"priority":9}"#, "priority"),
            (r#"{"format":"avi"}"#, "format"),
            (r#"{"metadata":{"a":1}}"#, "metadata.a"),
            (r#"{"metadata":[1]}"#, "metadata"),
        ] {
            let (code, param, message) = refused::<SubmitBody>(text.as_bytes());
            assert_eq!((code.as_str(), param.as_deref()), ("invalid_value", Some(field)), "{text}");
            assert!(message.contains(field), "{message}");
        }
        for (text, field) in [
            (r#"{"worker":"w"}"#, "incarnation"),
            (r#"{"worker":"w","incarnation":1,"fence":{}}"#, "fence.task"),
        ] {
            let (code, param, _) = refused::<Beat>(text.as_bytes());
            assert_eq!((code.as_str(), param.as_deref()), ("missing_field", Some(field)));
        }
    }

    /// How alike two words are takes memory and time by the product of their lengths: a name as long
    /// as a body would take a gigabyte.
    #[test]
    fn a_name_that_is_no_word_is_like_nothing() {
        let (long, known) = ("x".repeat(65), "x".repeat(64));
        assert_eq!(nearest(&known, [&*known].into_iter()), format!("; did you mean `{known}`?"));
        assert_eq!(nearest(&long, [&*known].into_iter()), format!("; there are `{known}`"));
    }

    #[test]
    fn what_the_caller_wrote_is_quoted_briefly() {
        let text = format!(r#"{{"{}":1}}"#, "x".repeat(100_000));
        let (_, param, message) = refused::<SubmitBody>(text.as_bytes());
        assert!(message.len() <= 1_000 && param.is_some_and(|param| param.len() <= 100));
    }
}
