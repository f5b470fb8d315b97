//! What each engine server speaks, without the speaking: an [`Adapter`] writes requests and reads
//! answers, and nothing else. What is sent when, how often and for how long, is the engine's.

mod lightx2v;
mod openai;
mod sd_server;

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rayreel_domain::wire::engine::{EngineRequest, Format};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::talk::Failure;

/// Largest picture that is sent along with a request, in bytes.
const MAX_PICTURE: u64 = 64 << 20;

/// Most characters of a server's own words in a message.
const MAX_WORDS: usize = 600;

/// One kind of engine server.
pub(super) trait Adapter {
    /// A path that answers with 2xx once the server can take work.
    fn health(&self) -> &'static str;

    /// How this server is asked for a job. `id` is new and names the job where the caller may do so.
    fn submit(&self, id: &str, wish: &EngineRequest) -> Result<Call, Failure>;

    /// The handle of the job `id`, from the answer to [`Self::submit`], which may have been sent before.
    fn submitted(&self, id: &str, answer: &Answer) -> Result<String, Fault>;

    /// The handle of a job that was handed in as `id`, where it is known before the answer.
    fn handle_of(&self, id: &str) -> Option<String> {
        let _ = id;
        None
    }

    /// How the job is asked after.
    fn poll(&self, handle: &str) -> Call;

    /// May use the answer's own room for the file that it brings.
    fn polled(&self, answer: Answer) -> Result<State, Fault>;

    /// How the server is asked what it computes, where that may be a job that it calls cancelled.
    fn at_work(&self) -> Option<Call> {
        None
    }

    /// Is it this job?
    fn is_at(&self, handle: &str, answer: &Answer) -> bool {
        let _ = (handle, answer);
        false
    }

    /// Where the file of a completed job is; none if it came with the poll.
    fn content(&self, handle: &str) -> Option<Call>;

    /// How a job is stopped, where the server can.
    fn cancel(&self, handle: &str) -> Option<Call>;

    /// How an ended job is removed, where the server can.
    fn forget(&self, handle: &str) -> Option<Call>;
}

/// The servers there are, by the name of the setting.
pub(super) const ADAPTERS: &[&str] = &["sglang", "vllm-omni", "lightx2v", "sd-server"];

/// Those whose files come inside an answer, and so lie in memory as a whole.
pub(super) const INLINE: &[&str] = &["sd-server"];

/// Those that can stop a job that runs.
pub(super) const CANCELLING: &[&str] = &["vllm-omni"];

pub(super) fn named(name: &str) -> Option<Box<dyn Adapter>> {
    Some(match name {
        "sglang" => Box::new(openai::OpenAi(openai::Dialect::Sglang)),
        "vllm-omni" => Box::new(openai::OpenAi(openai::Dialect::VllmOmni)),
        "lightx2v" => Box::new(lightx2v::LightX2v),
        "sd-server" => Box::new(sd_server::SdServer),
        _ => return None,
    })
}

/// One request to a server.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// Absolute, without the server's address.
    pub(super) path: String,
    pub(super) body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Delete,
}

#[derive(Debug)]
pub(super) enum Body {
    Nothing,
    Json(Value),
    /// multipart/form-data
    Form(Vec<Field>),
}

/// A field of a form.
#[derive(Debug)]
pub(super) enum Field {
    Text { name: &'static str, value: String },
    File { name: &'static str, picture: Picture },
}

impl Call {
    fn new(method: Method, path: impl Into<String>) -> Call {
        Call { method, path: path.into(), body: Body::Nothing }
    }

    fn post(path: impl Into<String>, body: Body) -> Call {
        Call { method: Method::Post, path: path.into(), body }
    }
}

/// What a server has answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// How a job stands.
#[derive(Debug, PartialEq)]
pub(super) enum State {
    /// It waits or runs; per cent, where the server tells.
    Running(Option<f64>),
    Completed(Completed),
    Failed(Failure),
    /// The server does not know the job (any more).
    Unknown,
    /// Somebody has stopped it.
    Cancelled,
}

/// What came with the news that a job is done.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Completed {
    /// The file, where it came along, and whether it is an AVI of JPEG frames instead of MP4.
    pub(super) file: Option<Vec<u8>>,
    pub(super) avi: bool,
}

/// An answer that is not the one hoped for.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// The server has not taken it and may do so later.
    Busy(String),
    Failure(Failure),
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body, which must be a JSON object.
    fn object(&self) -> Result<Map<String, Value>, Fault> {
        self.read()
    }

    /// The same, without what `T` does not ask for.
    fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Fault> {
        serde_json::from_slice(&self.body).map_err(|_| {
            let status = self.status;
            let message = format!(
                "the server answered with status {status} and what is no JSON object: {}",
                words(&String::from_utf8_lossy(&self.body))
            );
            Fault::Failure(Failure::failed(message))
        })
    }

    /// The object of a 2xx answer; anything else is a fault.
    fn expected(&self) -> Result<Map<String, Value>, Fault> {
        if self.is_success() { self.object() } else { Err(self.fault()) }
    }

    /// What an answer that is none of 2xx means, unless the job's state says more.
    pub(super) fn fault(&self) -> Fault {
        let said = self.said();
        let said = said.as_deref().map_or_else(String::new, |said| format!(": {said}"));
        let status = self.status;
        let final_one = |message: String| {
            Fault::Failure(Failure { retryable: false, ..Failure::failed(message) })
        };
        match status {
            429 | 503 => Fault::Busy(format!("the server takes no work (status {status}){said}")),
            400 | 413 | 415 | 422 => {
                Fault::Failure(Failure::invalid(format!("the server refuses the request{said}")))
            }
            401 | 403 => final_one(format!(
                "the server does not let rayreel in (status {status}){said}; see the setting `headers`"
            )),
            404 | 405 => final_one(format!(
                "the server has no such address (status {status}){said}; is `adapter` right?"
            )),
            300..400 => final_one(format!(
                "the server answers with a redirect (status {status}), which is not followed; is \
                 `url` right?"
            )),
            _ => Fault::Failure(Failure::failed(format!(
                "the server answered with status {status}{said}"
            ))),
        }
    }

    /// What the server says in words: FastAPI's `detail`, OpenAI's `error.message`, or an `error`.
    fn said(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = match (&body["detail"], &body["error"]) {
            (Value::String(detail), _) => detail.clone(),
            // One object for each field that is wrong: where it is, and what is wrong with it.
            (Value::Array(wrongs), _) => {
                let wrongs = wrongs.iter().map(|wrong| {
                    let at = wrong["loc"].as_array().and_then(|at| at.last()).map(plain);
                    let why = wrong["msg"].as_str().unwrap_or("wrong");
                    at.map_or_else(|| why.to_owned(), |at| format!("{at}: {why}"))
                });
                wrongs.collect::<Vec<_>>().join("; ")
            }
            (_, Value::String(error)) => error.clone(),
            (_, Value::Object(error)) => error.get("message")?.as_str()?.to_owned(),
            _ if body.is_null() => String::from_utf8_lossy(&self.body).into_owned(),
            _ => return None,
        };
        let text = words(&text);
        (!text.is_empty()).then_some(text)
    }
}

/// A value in plain text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A text of unknown length and content, as it may stand in a message.
pub(super) fn words(text: &str) -> String {
    let text = text.trim();
    let mut kept: String = text.chars().take(MAX_WORDS).collect();
    if kept.len() < text.len() {
        kept.push('…');
    }
    kept
}

/// The text of a key that has to be there.
fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str, Fault> {
    let text = object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    text.ok_or_else(|| missing(key))
}

fn missing(key: &str) -> Fault {
    let message = format!("the server's answer has no `{key}`: is `adapter` right?");
    Fault::Failure(Failure { retryable: false, ..Failure::failed(message) })
}

/// May it stand in a path as it is?
pub(super) fn is_plain(handle: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=200).contains(&handle.len()) && handle.chars().all(plain) && !handle.starts_with('.')
}

/// A handle that may stand in a path.
fn handle(object: &Map<String, Value>, key: &str) -> Result<String, Fault> {
    let handle = text(object, key)?;
    if is_plain(handle) {
        return Ok(handle.to_owned());
    }
    let message = format!("the server gave its job the odd name `{}`", words(handle));
    Err(Fault::Failure(Failure { retryable: false, ..Failure::failed(message) }))
}

/// Per cent, as far as the server makes sense.
fn percent(value: Option<&Value>) -> Option<f64> {
    value.and_then(Value::as_f64).filter(|percent| (0.0..=100.0).contains(percent))
}

/// A state that this build has never heard of.
fn odd_state(state: &str) -> Fault {
    let message =
        format!("the server says that the job is `{}`, which means nothing", words(state));
    Fault::Failure(Failure { retryable: false, ..Failure::failed(message) })
}

/// A job that the server says has failed, in its words.
fn failed(message: Option<&str>) -> Failure {
    let said = message.map(words).filter(|said| !said.is_empty());
    let said = said.unwrap_or_else(|| "it does not say why".to_owned());
    let message = format!("the server failed to generate: {said}");
    let lower = said.to_lowercase();
    if ["out of memory", "outofmemory", "can't allocate memory"]
        .iter()
        .any(|oom| lower.contains(oom))
    {
        Failure::out_of_memory(message)
    } else {
        Failure::failed(message)
    }
}

/// What a server of this kind can't be asked for.
fn unable(server: &str, what: &str) -> Failure {
    Failure::invalid(format!("{server} {what}"))
}

/// Refuses LoRAs: the servers load theirs by paths and names of their own.
fn no_loras(server: &str, wish: &EngineRequest) -> Result<(), Failure> {
    if wish.loras.is_empty() {
        return Ok(());
    }
    Err(unable(server, "is sent no LoRAs: start it with those that it shall have"))
}

/// Refuses stills where a server makes only videos.
fn only_videos(server: &str, wish: &EngineRequest) -> Result<(), Failure> {
    if wish.format == Format::Mp4 {
        return Ok(());
    }
    Err(unable(server, "makes videos: ask for the format mp4"))
}

/// An image that goes with a request.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) file_name: &'static str,
    pub(super) media_type: &'static str,
    pub(super) bytes: Vec<u8>,
}

impl Picture {
    fn read(field: &str, path: &str) -> Result<Picture, Failure> {
        let lost = |error| Failure::failed(format!("`{field}` can't be read: {error}"));
        let length = std::fs::metadata(Path::new(path)).map_err(lost)?.len();
        if length > MAX_PICTURE {
            let message =
                format!("`{field}` has {length} bytes; at most {MAX_PICTURE} can be sent");
            return Err(Failure::invalid(message));
        }
        let bytes = std::fs::read(path).map_err(lost)?;
        let (file_name, media_type) = match bytes.as_slice() {
            [0x89, b'P', b'N', b'G', ..] => ("image.png", "image/png"),
            [0xff, 0xd8, 0xff, ..] => ("image.jpg", "image/jpeg"),
            _ => return Err(Failure::invalid(format!("`{field}` is neither PNG nor JPEG"))),
        };
        Ok(Picture { file_name, media_type, bytes })
    }

    fn base64(&self) -> String {
        BASE64_STANDARD.encode(&self.bytes)
    }

    fn data_url(&self) -> String {
        format!("data:{};base64,{}", self.media_type, self.base64())
    }
}

#[cfg(test)]
mod tests {
    use rayreel_domain::wire::engine::Lora;

    use super::lightx2v::LightX2v;
    use super::openai::{Dialect, OpenAi};
    use super::sd_server::SdServer;
    use super::*;

    fn wish() -> EngineRequest {
        serde_json::from_value(serde_json::json!({
            "prompt": "a fox", "width": 832, "height": 480, "frames": 81, "fps": 16, "steps": 40,
            "seed": 7, "format": "mp4",
        }))
        .expect("a request")
    }

    #[test]
    fn the_second_scale_of_guidance_is_that_of_low_noise_everywhere() {
        let wish = EngineRequest { guidance: Some(4.0), guidance_2: Some(3.0), ..wish() };
        for dialect in [Dialect::Sglang, Dialect::VllmOmni] {
            let Body::Form(fields) = OpenAi(dialect).submit("t", &wish).expect("a call").body
            else {
                panic!("a form")
            };
            let said = |wanted: &str| {
                fields.iter().find_map(|field| match field {
                    Field::Text { name, value } if *name == wanted => Some(value.as_str()),
                    _ => None,
                })
            };
            assert_eq!(said("guidance_scale"), Some("4"));
            assert_eq!(said("guidance_scale_2"), Some("3"));
        }
        let Body::Json(job) = SdServer.submit("t", &wish).expect("a call").body else {
            panic!("JSON")
        };
        assert_eq!(job["sample_params"]["guidance"]["txt_cfg"], 3.0);
        assert_eq!(job["high_noise_sample_params"]["guidance"]["txt_cfg"], 4.0);
        let refused = LightX2v.submit("t", &wish).expect_err("it takes none");
        assert!(refused.message.contains("takes no scale of guidance"), "{refused:?}");
    }

    #[test]
    fn what_a_server_would_leave_out_in_silence_is_refused() {
        let lora = Lora { name: "anime".to_owned(), scale: 1.0 };
        let wish = EngineRequest { loras: vec![lora], ..wish() };
        let adapters: [&dyn Adapter; 4] =
            [&OpenAi(Dialect::Sglang), &OpenAi(Dialect::VllmOmni), &LightX2v, &SdServer];
        for adapter in adapters {
            let refused = adapter.submit("t", &wish).expect_err("none takes LoRAs");
            assert!(refused.message.contains("is sent no LoRAs"), "{refused:?}");
        }
    }
}
