//! Forms: `multipart/form-data` with text fields and files, for every route that takes one.
//!
//! A form is read as a whole, within the limit of every body, and then taken apart without a copy:
//! an image is decoded in memory anyway, and a body that drips in is refused in one place.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Request;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, request::Parts};
use rayreel_domain::Code;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::body;
use super::budget::Budget;
use super::error::Error;

/// Most parts of a form.
const MAX_PARTS: usize = 64;
/// Longest name of a field, in bytes.
const MAX_NAME: usize = 100;
/// Longest boundary (RFC 2046).
const MAX_BOUNDARY: usize = 70;

/// A form that was taken apart.
#[derive(Debug, Default)]
pub(super) struct Form {
    fields: Map<String, Value>,
    files: Vec<Upload>,
    /// Fields that were looked for among the files.
    known: Vec<&'static str>,
}

/// A part that was sent as a file.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) field: String,
    /// As the caller says, with the folders that some send cut off.
    pub(super) filename: String,
    pub(super) bytes: Bytes,
}

/// Does this request bring a form?
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    let given = headers.get(CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
    let form = b"multipart/";
    given.get(..form.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(form))
}

impl Form {
    /// Reads a form. What stands in `typed` is a number, a truth value or a list if its text is one in
    /// JSON; the rest is text. `name[key]` is an entry of the object `name`.
    pub(super) async fn read(
        budget: &Arc<Budget>,
        request: Request,
        limit: u64,
        typed: &[&str],
    ) -> Result<(Parts, Self), Error> {
        let boundary = boundary(request.headers())?;
        let (parts, bytes) = body::read(budget, request, limit).await?;
        Ok((parts, Self::parse(bytes, boundary, typed).await?))
    }

    async fn parse(bytes: Bytes, boundary: String, typed: &[&str]) -> Result<Self, Error> {
        let whole = stream::iter([Ok::<_, std::convert::Infallible>(bytes)]);
        let mut form = Self::default();
        let mut reader = multer::Multipart::new(whole, boundary);
        let mut parts = 0;
        while let Some(part) = reader.next_field().await.map_err(|error| broken(&error))? {
            parts += 1;
            if parts > MAX_PARTS {
                return Err(malformed(format!("the form has more than {MAX_PARTS} parts")));
            }
            let name = part.name().map(str::to_owned).filter(|name| !name.is_empty());
            let name = name
                .filter(|name| name.len() <= MAX_NAME && !name.contains(char::is_control))
                .ok_or_else(|| {
                    let message = "each part of the form needs a `name` of at most 100 bytes";
                    malformed(message.to_owned())
                })?;
            let filename = part.file_name().map(|name| base_name(name).to_owned());
            let json = part.content_type().is_some_and(|of| of.essence_str() == "application/json");
            let bytes = part.bytes().await.map_err(|error| broken(&error))?;
            match filename {
                Some(filename) => {
                    if form.has(&name) {
                        return Err(twice(&name));
                    }
                    form.files.push(Upload { field: name, filename, bytes });
                }
                // Objects, as OpenAPI has them in a form that says nothing else.
                None if json => form.insert_json(name, &bytes)?,
                None => form.insert(&name, &bytes, typed)?,
            }
        }
        Ok(form)
    }

    fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name) || self.files.iter().any(|file| file.field == name)
    }

    fn insert_json(&mut self, name: String, bytes: &[u8]) -> Result<(), Error> {
        if self.has(&name) {
            return Err(twice(&name));
        }
        let value = serde_json::from_slice(bytes).map_err(|error| {
            let message = format!("`{name}` says that it is JSON, and is not: {error}");
            Error::new(Code::InvalidJson, message).param(name.clone())
        })?;
        self.fields.insert(name, value);
        Ok(())
    }

    fn insert(&mut self, name: &str, bytes: &[u8], typed: &[&str]) -> Result<(), Error> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Error::invalid(name.to_owned(), format!("`{name}` is not UTF-8")))?;
        let Some((object, rest)) = name.split_once('[') else {
            if self.has(name) {
                return Err(twice(name));
            }
            self.fields.insert(name.to_owned(), value(text, typed.contains(&name)));
            return Ok(());
        };
        let key = rest
            .strip_suffix(']')
            .filter(|key| !key.is_empty() && !key.contains(['[', ']']) && !object.is_empty())
            .ok_or_else(|| {
                let hint = if typed.contains(&object) {
                    format!("`{object}` is one field, its value as in JSON")
                } else if rest == "]" && !object.is_empty() {
                    format!("did you mean `{object}`?")
                } else {
                    "write an object's key as `name[key]`".to_owned()
                };
                let message = format!("`{name}` is no field; {hint}");
                Error::new(Code::UnknownField, message).param(name.to_owned())
            })?;
        if self.files.iter().any(|file| file.field == object) {
            return Err(twice(object));
        }
        let entry =
            self.fields.entry(object.to_owned()).or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(entries) = entry else { return Err(twice(object)) };
        if entries.insert(key.to_owned(), Value::String(text.to_owned())).is_some() {
            return Err(twice(name));
        }
        Ok(())
    }

    /// Takes out the file that was sent as this field.
    pub(super) fn take_file(&mut self, field: &'static str) -> Option<Upload> {
        self.known.push(field);
        let at = self.files.iter().position(|file| file.field == field)?;
        Some(self.files.swap_remove(at))
    }

    /// The fields, as if they had come in JSON. A file that nobody has taken is refused.
    pub(super) fn into_body<T: DeserializeOwned>(
        self,
        allowed: impl FnOnce(&str, &[u8]) -> Option<String>,
    ) -> Result<T, Error> {
        if let Some(file) = self.files.first() {
            let hint = body::nearest(&file.field, self.known.iter().copied());
            let message = format!("`{}` is not sent as a file here{hint}", file.field);
            return Err(Error::new(Code::UnknownField, message).param(file.field.clone()));
        }
        let text = serde_json::to_vec(&self.fields).map_err(Error::internal)?;
        body::parse(&text, |field| allowed(field, &text)).map_err(|error: Error| {
            // An object in one piece of text, as curl sends it, or a list that is none.
            let mut texts = self.fields.iter().filter(|(_, value)| value.is_string());
            let hint = texts.find_map(|(name, _)| {
                let must = error.cause().strip_prefix(&format!("`{name}` must be an "))?;
                let hint = if must.starts_with("object") {
                    format!("each entry of it is a field `{name}[key]`")
                } else if must.starts_with("array") {
                    "it is one text, in JSON".to_owned()
                } else {
                    return None;
                };
                Some((name.clone(), hint))
            });
            match hint {
                Some((name, hint)) => {
                    Error::invalid(name, format!("{}; in a form, {hint}", error.cause()))
                }
                None => error,
            }
        })
    }
}

/// A field's text, or the number, truth value or list that it is.
fn value(text: &str, typed: bool) -> Value {
    let meant = |value: &Value| value.is_number() || value.is_boolean() || value.is_array();
    let read = typed.then(|| serde_json::from_str(text.trim()).ok()).flatten();
    read.filter(meant).unwrap_or_else(|| Value::String(text.to_owned()))
}

/// What stands behind the folders of a name, whichever way these are written.
fn base_name(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or_default()
}

fn boundary(headers: &HeaderMap) -> Result<String, Error> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = given.and_then(|given| multer::parse_boundary(given).ok());
    boundary.filter(|boundary| (1..=MAX_BOUNDARY).contains(&boundary.len())).ok_or_else(|| {
        let message = "send `Content-Type: multipart/form-data` with a boundary of 1 to 70 bytes";
        Error::new(Code::UnsupportedMediaType, message).param("Content-Type")
    })
}

fn malformed(message: String) -> Error {
    Error::new(Code::InvalidRequest, message)
}

fn broken(error: &multer::Error) -> Error {
    malformed("the body is not a whole form: a part or the last boundary is missing".to_owned())
        .because(error)
}

fn twice(name: &str) -> Error {
    malformed(format!("`{name}` stands twice in the form")).param(name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rayreel_domain::wire::api::SubmitBody;

    use super::*;

    const TYPED: &[&str] = &["steps", "seed", "guidance", "loras"];

    async fn parse(text: &str) -> Result<Form, Error> {
        let bytes = Bytes::from(text.replace('\n', "\r\n"));
        Form::parse(bytes, "b".to_owned(), TYPED).await
    }

    fn part(name: &str, text: &str) -> String {
        format!("--b\nContent-Disposition: form-data; name=\"{name}\"\n\n{text}\n")
    }

    async fn body(parts: &[(&str, &str)]) -> Result<SubmitBody, String> {
        let parts: String = parts.iter().map(|(name, text)| part(name, text)).collect();
        let form = parse(&format!("{parts}--b--\n")).await;
        form.and_then(|form| form.into_body(|_, _| None)).map_err(|error| error.cause().to_owned())
    }

    #[tokio::test]
    async fn fields_are_read_like_json() {
        let asked = body(&[
            ("prompt", "7"),
            ("steps", "20"),
            ("seed", " 7 "),
            ("guidance", "4.5"),
            ("loras", r#"[{"name": "anime", "scale": 0.5}]"#),
            ("metadata[a]", "1"),
            ("metadata[b c]", "true"),
        ]);
        let asked = asked.await.expect("a body");
        assert_eq!(asked.prompt.as_deref(), Some("7"), "text stays text");
        assert_eq!((asked.steps, asked.seed, asked.guidance), (Some(20), Some(7), Some(4.5)));
        let lora = asked.loras.as_ref().and_then(|loras| loras.first()).expect("a LoRA");
        assert_eq!((&*lora.name, lora.scale), ("anime", 0.5));
        let metadata = [("a", "1"), ("b c", "true")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(asked.metadata, Some(BTreeMap::from(metadata)));
    }

    #[tokio::test]
    async fn a_form_that_can_not_be_meant_is_refused() {
        for (parts, told) in [
            (&[("prompt", "a"), ("prompt", "b")][..], "`prompt` stands twice"),
            (&[("metadata[a]", "1"), ("metadata[a]", "2")], "`metadata[a]` stands twice"),
            (&[("metadata", "x"), ("metadata[a]", "1")], "`metadata` stands twice"),
            (&[("metadata[a]", "1"), ("metadata", "x")], "`metadata` stands twice"),
            (&[("metadata[]", "1")], "did you mean `metadata`?"),
            (&[("metadata", r#"{"a":"b"}"#)], "each entry of it is a field `metadata[key]`"),
            (&[("metadata[a", "1")], "`name[key]`"),
            (&[("metadata[a][b]", "1")], "`name[key]`"),
            (&[("[a]", "1")], "`name[key]`"),
            (&[("", "1")], "needs a `name`"),
            (
                &[("loras", "anime")],
                "`loras` must be an array, not a string; in a form, it is one text",
            ),
            (&[("loras[][name]", "anime")], "`loras` is one field, its value as in JSON"),
            (&[("loras", r#"[{"name":1}]"#)], "`loras[0].name` must be a string"),
            (&[("steps", "many")], "`steps` must be"),
            (&[("steps", "null")], "`steps` must be"),
            (&[("steps", "{}")], "`steps` must be"),
            (&[("promt", "a")], "`prompt`?"),
        ] {
            let error = body(parts).await.expect_err("refused");
            assert!(error.contains(told), "{parts:?}: {error}");
        }
        let many: Vec<_> = (0..65).map(|n| (n.to_string(), "")).collect();
        let many: Vec<_> = many.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        assert!(body(&many).await.expect_err("refused").contains("more than 64"));
    }

    #[tokio::test]
    async fn a_file_is_a_part_with_a_file_name() {
        let head = "--b\nContent-Disposition: form-data; name=\"image\"; filename=";
        for (sent, kept) in [
            ("\"a.png\"", "a.png"),
            ("\"../../etc/passwd\"", "passwd"),
            ("\"C:\\\\photos\\\\a.png\"", "a.png"),
            ("\"\"", ""),
        ] {
            let mut form = parse(&format!("{head}{sent}\n\nbytes\n--b--\n")).await.expect("a form");
            let file = form.take_file("image").expect("a file");
            assert_eq!((&*file.filename, &*file.bytes), (kept, &b"bytes"[..]));
            assert!(form.take_file("image").is_none());
        }
        let form = parse(&format!("{head}\"a\"\n\nx\n--b--\n")).await.expect("a form");
        let refused = form.into_body::<SubmitBody>(|_, _| None).expect_err("refused");
        assert!(refused.cause().contains("not sent as a file"));
        let both = format!("{}{head}\"a\"\n\nx\n--b--\n", part("image", "y"));
        assert!(parse(&both).await.expect_err("refused").cause().contains("twice"));
    }

    #[tokio::test]
    async fn a_file_under_another_name_is_told_the_right_one() {
        let head = "--b\nContent-Disposition: form-data; name=\"image[]\"; filename=";
        let mut form = parse(&format!("{head}\"a\"\n\nx\n--b--\n")).await.expect("a form");
        assert!(form.take_file("image").is_none());
        let refused = form.into_body::<SubmitBody>(|_, _| None).expect_err("refused");
        assert!(refused.cause().ends_with("did you mean `image`?"), "{}", refused.cause());
    }

    #[tokio::test]
    async fn a_part_may_be_json_if_it_says_so() {
        let part = |text: &str| {
            let head = "--b\nContent-Disposition: form-data; name=\"metadata\"\n";
            format!("{head}Content-Type: application/json\n\n{text}\n--b--\n")
        };
        let form = parse(&part(r#"{"a":"b"}"#)).await.expect("a form");
        let asked: SubmitBody = form.into_body(|_, _| None).expect("a body");
        let metadata = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert_eq!(asked.metadata, Some(metadata));
        let refused = parse(&part("{")).await.expect_err("refused");
        assert!(refused.cause().contains("`metadata` says that it is JSON"));
    }

    #[tokio::test]
    async fn half_a_form_is_refused() {
        let whole = format!("{}--b--\n", part("prompt", "a fox"));
        for cut in 0..whole.len() - 3 {
            assert!(parse(&whole[..cut]).await.is_err(), "{:?}", &whole[..cut]);
        }
        assert!(parse(&whole).await.is_ok());
        let binary =
            b"--b\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\n\xff\r\n--b--\r\n";
        let refused = Form::parse(Bytes::from_static(binary), "b".to_owned(), &[]).await;
        assert!(refused.expect_err("refused").cause().contains("not UTF-8"));
    }

    #[test]
    fn a_form_says_its_boundary() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, text.parse().expect("a value"));
            (is_form(&headers), boundary(&headers).ok())
        };
        assert_eq!(of("multipart/form-data; boundary=b"), (true, Some("b".to_owned())));
        assert_eq!(of("Multipart/Form-Data; boundary=\"a b\""), (true, Some("a b".to_owned())));
        let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
        for text in ["multipart/form-data", "multipart/mixed; boundary=b", &long] {
            assert_eq!(of(text), (true, None), "{text}");
        }
        assert!(!of("application/json").0);
    }
}
