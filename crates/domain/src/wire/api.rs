//! The public API: bodies of `/v1/video/generations` and of errors.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::code::Code;
use crate::task::{Attempt, Failure, Outcome, Priority, State, Task};
use crate::wire::delivery::{WebhookBody, WebhookTarget};
use crate::wire::engine::{Format, Lora, Role};
use crate::wire::worker::Progress;

/// Where tasks live.
pub const TASKS_PATH: &str = "/v1/video/generations";

/// Body of `POST /v1/video/generations`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SubmitBody {
    /// Public name of a model; the configured default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to show; up to 10,000 characters. Required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            value_type = String, required = true, min_length = 1, max_length = 10_000,
            example = "a red fox running through snow"
        )
    )]
    pub prompt: Option<String>,
    /// What not to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 10_000))]
    pub negative_prompt: Option<String>,
    /// First frame, a PNG, JPEG or WebP: an https:// URL, a data URI (`data:image/png;base64,…`), or
    /// the id of an uploaded file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Last frame, in the same ways; only beside `image`, and of models that take it (`images` in
    /// `/v1/models`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_image: Option<String>,
    /// Pixels, `832x480` or `832*480`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "832x480"))]
    pub size: Option<String>,
    /// With `height`, the same as `size`; 0 is as if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// With `width`, the same as `size`; 0 is as if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Number of frames, 4n+1. Give this or `seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, example = 49))]
    pub frames: Option<u32>,
    /// Length in seconds, which becomes the nearest 4n+1 frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(exclusive_minimum = 0.0))]
    pub seconds: Option<f64>,
    /// The same as `seconds`; 0 is as if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// Frames a second; 0 is as if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fps: Option<u32>,
    /// Denoising steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub steps: Option<u32>,
    /// Classifier-free guidance scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 100))]
    pub guidance: Option<f64>,
    /// Guidance scale of the second expert, that of low noise, of models that have two; others ignore
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 100))]
    pub guidance_2: Option<f64>,
    /// LoRAs to apply, all at once, none twice: those that the model has (`loras` in `/v1/models`). In
    /// a form, the same list as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_items = 4))]
    pub loras: Option<Vec<Lora>>,
    /// Up to 2^53 - 1; chosen at random when absent, and told in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
    pub seed: Option<u64>,
    /// So many tasks at once, all or none; they take `seed`, `seed` + 1 and so on. 0 is as if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 8))]
    pub n: Option<u32>,
    /// `mp4` (the default); `png`, `jpeg` or `webp` for a still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// 1 (last) to 5 (first) among your own tasks; 3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u8>, minimum = 1, maximum = 5))]
    pub priority: Option<Priority>,
    /// Unix time in seconds; a task that is still queued then ends as EXPIRED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// Told, signed, when the task has ended: an https URL, or `{"url": …}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = Option<crate::wire::delivery::WebhookForms>)
    )]
    pub webhook: Option<WebhookTarget>,
    /// Up to 16 strings of your own, kept with the task.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "unique_strings")]
    pub metadata: Option<BTreeMap<String, String>>,
}

impl SubmitBody {
    /// Takes what clients send for "not set", whose languages have no absent fields, as not given: 0
    /// where nothing can be 0, an empty text where a name belongs, an empty list. A `seed` or a `guidance` of 0
    /// is one; an empty `prompt` or `webhook` is a mistake.
    pub fn without_unset(mut self) -> Self {
        for number in [&mut self.width, &mut self.height, &mut self.fps, &mut self.n] {
            number.take_if(|number| *number == 0);
        }
        self.duration.take_if(|duration| *duration == 0.0);
        for text in [&mut self.model, &mut self.image, &mut self.last_image, &mut self.size] {
            text.take_if(|text| text.is_empty());
        }
        self.loras.take_if(|loras| loras.is_empty());
        self
    }
}

/// Reads an object of strings in which no key stands twice.
pub(super) fn unique_strings<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Option<BTreeMap<String, String>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                if entries.contains_key(&key) {
                    return Err(serde::de::Error::custom(format_args!("duplicate field `{key}`")));
                }
                entries.insert(key, value);
            }
            Ok(Some(entries))
        }
    }

    deserializer.deserialize_any(Entries)
}

/// A task, as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskBody {
    #[cfg_attr(feature = "openapi", schema(example = "task_018bcfe5680070707070707070707070"))]
    pub id: String,
    /// The same as `id`.
    pub task_id: String,
    /// Always `video.generation`.
    pub object: String,
    pub model: String,
    pub status: State,
    /// Per cent, 0 to 100; 100 only when the task has succeeded.
    pub progress: u8,
    /// What the running attempt is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Progress>,
    /// Tasks that will probably start before this one; null unless queued.
    pub queue_position: Option<u64>,
    /// Why no worker is being started for it; null if there is nothing to tell.
    pub waiting_reason: Option<String>,
    /// Seconds until the result, estimated; null when ended or unknown.
    pub eta_seconds: Option<u64>,
    /// Unix seconds, like every time here.
    pub created_at: u64,
    pub started_at: Option<u64>,
    pub finished_at: Option<u64>,
    /// When the record and its files are deleted; null while it has not ended, or if never.
    pub expires_at: Option<u64>,
    pub request: RequestBody,
    pub attempts: Vec<AttemptBody>,
    pub result: Option<ResultBody>,
    pub error: Option<FailureBody>,
    /// Null if the submit named no webhook.
    pub webhook: Option<WebhookBody>,
    pub urls: Urls,
}

/// The request, every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RequestBody {
    pub prompt: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// `WxH` in pixels.
    pub size: String,
    pub frames: u32,
    pub fps: u32,
    pub steps: u32,
    pub guidance: Option<f64>,
    /// Absent if none was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_2: Option<f64>,
    /// Absent if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<Lora>,
    pub seed: u64,
    pub format: Format,
    /// True if an image came with the request.
    pub image: bool,
    /// True if a last frame came with it, too.
    #[serde(default)]
    pub last_image: bool,
    pub priority: u8,
    pub deadline: Option<u64>,
    pub metadata: BTreeMap<String, String>,
}

/// One try by one worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AttemptBody {
    pub attempt: u32,
    pub worker: String,
    pub started_at: u64,
    pub ended_at: Option<u64>,
    /// Null while it runs.
    pub outcome: Option<Outcome>,
    pub error: Option<FailureBody>,
    /// Milliseconds per stage and the like, as the engine measured them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// The result of a task that has succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResultBody {
    /// Absolute URL of the file.
    pub url: String,
    pub thumbnail_url: Option<String>,
    pub media_type: String,
    pub sha256: String,
    pub bytes: u64,
    pub width: u32,
    pub height: u32,
    pub frames: u32,
    pub fps: u32,
    /// True if no model ran: this is a synthetic test pattern.
    pub test_pattern: bool,
}

/// Why a task or an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FailureBody {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub code: Code,
    pub message: String,
    /// The engine's last lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Where to go on from here; absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Urls {
    pub get: String,
    pub cancel: String,
    pub events: String,
    pub content: String,
}

/// Answer to a submit: the task, or, if `n` was more than 1, the tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SubmitAnswer {
    One(Box<TaskBody>),
    Several(TaskBatch),
}

/// The tasks of one submit, in the order of their seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskBatch {
    /// Always `list`.
    pub object: String,
    pub data: Vec<TaskBody>,
}

/// A page of tasks, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskList {
    /// Always `list`.
    pub object: String,
    pub data: Vec<TaskBody>,
    pub next_cursor: Option<String>,
    pub has_more: bool,
}

/// Answer to cancel and delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CancelBody {
    pub id: String,
    /// State after the call.
    pub status: State,
    /// True if this call ended the task.
    pub cancelled: bool,
    /// True if this call deleted the record and its files.
    pub deleted: bool,
}

/// Body of every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorDetail {
    /// A name from the table of error codes.
    pub code: String,
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Class of the error.
    #[serde(rename = "type")]
    pub kind: String,
    /// The same as the header `x-request-id`.
    pub request_id: String,
}

/// Data of an SSE event. The event's name is `state` or `progress`, or `snapshot` for the first
/// after a position that this server can't resume from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventBody {
    pub task_id: String,
    pub status: State,
    pub progress: u8,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Progress>,
    /// Unix milliseconds of the change; absent on progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<u64>,
    /// Why a task that ran is queued again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub reason: Option<Code>,
    /// With the last event of a task that did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureBody>,
}

/// Per cent of a task from its state and what the running attempt last said. The denoising steps
/// are the bulk of the work; other stages move the figure little.
pub fn percent(state: State, progress: Option<&Progress>) -> u8 {
    match (state, progress) {
        (State::Succeeded, _) => 100,
        (State::Running, Some(progress)) => {
            let share = |from: u64, to: u64| {
                let done = u64::from(progress.step.min(progress.steps));
                (from + (to - from) * done / u64::from(progress.steps.max(1))) as u8
            };
            match progress.stage.as_str() {
                "denoise" => share(2, 90),
                "decode" => share(90, 95),
                "encode" => share(90, 98),
                "upload" => 99,
                _ => 1,
            }
        }
        _ => 0,
    }
}

impl TaskBody {
    /// Shows a task; what only the server knows comes beside it. `base` is where callers reach the
    /// server: `https://host`.
    pub fn new(
        task: &Task,
        base: &str,
        progress: Option<Progress>,
        queue_position: Option<u64>,
        eta_seconds: Option<u64>,
    ) -> Self {
        let id = task.id.to_string();
        let base = format!("{base}{TASKS_PATH}/{id}");
        let request = &task.request;
        Self {
            object: "video.generation".to_string(),
            model: task.model.to_string(),
            status: task.state,
            progress: percent(task.state, progress.as_ref()),
            stage: progress,
            queue_position,
            waiting_reason: None,
            eta_seconds,
            created_at: task.created_at.unix_seconds(),
            started_at: task.started_at.map(|t| t.unix_seconds()),
            finished_at: task.finished_at.map(|t| t.unix_seconds()),
            expires_at: task.delete_at.map(|t| t.unix_seconds()),
            request: RequestBody {
                prompt: request.prompt.clone(),
                negative_prompt: request.negative_prompt.clone(),
                size: request.size.to_string(),
                frames: request.frames,
                fps: request.fps,
                steps: request.steps,
                guidance: request.guidance,
                guidance_2: request.guidance_2,
                loras: request.loras.clone(),
                seed: request.seed,
                format: request.format,
                image: request.image.is_some(),
                last_image: request.last_image.is_some(),
                priority: task.priority.get(),
                deadline: task.deadline.map(|t| t.unix_seconds()),
                metadata: request.metadata.clone(),
            },
            attempts: task.attempts.iter().map(AttemptBody::new).collect(),
            result: ResultBody::new(task, &base),
            error: task.error.as_ref().map(FailureBody::new),
            webhook: WebhookBody::new(task, None),
            urls: Urls {
                get: base.clone(),
                cancel: format!("{base}/cancel"),
                events: format!("{base}/events"),
                content: format!("{base}/content"),
            },
            task_id: id.clone(),
            id,
        }
    }
}

impl AttemptBody {
    fn new(attempt: &Attempt) -> Self {
        Self {
            attempt: attempt.number,
            worker: attempt.worker.to_string(),
            started_at: attempt.started_at.unix_seconds(),
            ended_at: attempt.ended_at.map(|t| t.unix_seconds()),
            outcome: attempt.outcome,
            error: attempt.error.as_ref().map(FailureBody::new),
            metrics: attempt.metrics.clone(),
        }
    }
}

impl FailureBody {
    pub fn new(failure: &Failure) -> Self {
        Self {
            code: failure.code,
            message: failure.message.clone(),
            detail: failure.detail.clone(),
        }
    }
}

impl ResultBody {
    fn new(task: &Task, base: &str) -> Option<Self> {
        let main = task.outputs.first()?;
        let thumbnail = task.outputs.iter().any(|o| o.role == Role::Thumbnail);
        Some(Self {
            url: format!("{base}/content"),
            thumbnail_url: thumbnail.then(|| format!("{base}/content?variant=thumbnail")),
            media_type: main.media_type.clone(),
            sha256: main.sha256.clone(),
            bytes: main.bytes,
            width: main.width,
            height: main.height,
            frames: main.frames,
            fps: main.fps,
            test_pattern: task.test_pattern,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        for body in [r#"{"prompt":"a","prompt":"b"}"#, r#"{"metadata":{"a":"1","a":"2"}}"#] {
            let error = serde_json::from_str::<SubmitBody>(body).expect_err("refused");
            assert!(error.to_string().contains("duplicate field"), "{error}");
        }
    }

    #[test]
    fn progress_only_rises_through_the_stages() {
        let at = |stage: &str, step, steps| {
            percent(State::Running, Some(&Progress { stage: stage.to_string(), step, steps }))
        };
        let seen = [
            at("load", 0, 0),
            at("denoise", 0, 20),
            at("denoise", 10, 20),
            at("denoise", 20, 20),
            at("encode", 0, 9),
            at("encode", 9, 9),
            at("upload", 0, 1),
        ];
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!(percent(State::Succeeded, None), 100);
        assert_eq!(percent(State::Failed, None), 0);
        assert_eq!(at("denoise", 9, 0), 2, "nonsense from an engine does not panic");
    }
}
