//! OpenAI's shapes of the public API: bodies of `/v1/videos` and `/v1/images/generations`.
//!
//! Options that OpenAI has not are spelt as the inference engines that speak the same shape spell
//! them. Fields whose effect nobody would miss are taken and ignored, by a list; all others are
//! refused, as everywhere.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::api::{SubmitBody, percent, unique_strings};
use super::delivery::WebhookTarget;
use super::engine::{Format, Lora};
use super::worker::Progress;
use crate::task::{Priority, State, Task};

/// Where videos live.
pub const VIDEOS_PATH: &str = "/v1/videos";

/// Names that differ from those of the native API, each with the native one.
pub const SPELLINGS: [(&str, &str); 5] = [
    ("num_frames", "frames"),
    ("num_inference_steps", "steps"),
    ("guidance_scale", "guidance"),
    ("guidance_scale_2", "guidance_2"),
    ("input_reference", "image"),
];

/// Fields of [`CreateVideo`] that are numbers or lists: text in a form, read as JSON.
pub const TYPED: &[&str] = &[
    "fps",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "loras",
    "seed",
    "priority",
    "deadline",
];

/// A field that clients of OpenAI send and that has no effect here, whatever is in it.
#[derive(Debug, Clone, Copy)]
pub struct Ignored;

impl Serialize for Ignored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Always: what has no effect is no part of what a request asks for.
fn is_ignored(_: &Option<Ignored>) -> bool {
    true
}

/// A length as it was asked for: a number, and the text that tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seconds {
    pub text: String,
    pub number: f64,
}

/// Longest text of a length, in bytes.
const MAX_SECONDS: usize = 16;

/// Above 0: in text of at most 16 characters, as OpenAI has it, or as a number.
#[cfg(feature = "openapi")]
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[schema(as = Seconds, example = "4")]
#[expect(dead_code, reason = "it only describes what is read")]
enum SecondsForms {
    Text(String),
    Number(f64),
}

impl Serialize for Seconds {
    /// However it was written, it asks for the same.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.number)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Asked {
            Number(f64),
            Text(String),
        }
        let wrong = || serde::de::Error::custom("must be a length in seconds, such as \"4\"");
        match Asked::deserialize(deserializer).map_err(|_| wrong())? {
            Asked::Number(number) => Ok(Self { text: number.to_string(), number }),
            Asked::Text(text) => {
                // Plain decimals: `f64::from_str` would also take `inf` and `1e3`.
                let plain = text.len() <= MAX_SECONDS
                    && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
                let number = plain.then(|| text.parse().ok()).flatten();
                number.map(|number| Self { text, number }).ok_or_else(wrong)
            }
        }
    }
}

/// Body of `POST /v1/videos`, as JSON or as a form (`multipart/form-data`).
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateVideo {
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
    /// Name or alias of a model; the configured default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// First frame, a PNG, JPEG or WebP. In a form, the file itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_reference: Option<InputReference>,
    /// Length in seconds, as a string or a number; becomes the nearest 4n+1 frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<SecondsForms>))]
    pub seconds: Option<Seconds>,
    /// Pixels, `832x480`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "832x480"))]
    pub size: Option<String>,
    /// What not to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 10_000))]
    pub negative_prompt: Option<String>,
    /// Frames a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub fps: Option<u32>,
    /// Number of frames, 4n+1. Give this or `seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub num_frames: Option<u32>,
    /// Denoising steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub num_inference_steps: Option<u32>,
    /// Classifier-free guidance scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 100))]
    pub guidance_scale: Option<f64>,
    /// Guidance scale of the second expert, that of low noise, of models that have two; others ignore
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 100))]
    pub guidance_scale_2: Option<f64>,
    /// LoRAs to apply, all at once, none twice: those that the model has (`loras` in `/v1/models`). In
    /// a form, the same list as JSON text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_items = 4))]
    pub loras: Option<Vec<Lora>>,
    /// Up to 2^53 - 1; chosen at random when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
    pub seed: Option<u64>,
    /// 1 (last) to 5 (first) among your own tasks; 3 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u8>, minimum = 1, maximum = 5))]
    pub priority: Option<Priority>,
    /// Unix time in seconds; a video that is still queued then fails as `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// Told, signed, when the task has ended: an https URL, or `{"url": …}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = Option<crate::wire::delivery::WebhookForms>)
    )]
    pub webhook: Option<WebhookTarget>,
    /// Up to 16 strings of your own, kept with the task; in a form, `metadata[key]`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "unique_strings")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub user: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub quality: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub style: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub background: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub moderation: Option<Ignored>,
}

impl CreateVideo {
    /// The native request that is meant, without its image.
    pub fn native(&self) -> SubmitBody {
        SubmitBody {
            model: self.model.clone(),
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            size: self.size.clone(),
            frames: self.num_frames,
            seconds: self.seconds.as_ref().map(|seconds| seconds.number),
            fps: self.fps,
            steps: self.num_inference_steps,
            guidance: self.guidance_scale,
            guidance_2: self.guidance_scale_2,
            loras: self.loras.clone(),
            seed: self.seed,
            priority: self.priority,
            deadline: self.deadline,
            webhook: self.webhook.clone(),
            metadata: self.metadata.clone(),
            format: Some(Format::Mp4),
            ..SubmitBody::default()
        }
    }
}

/// An image that a request names: one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InputReference {
    /// An https:// URL, or a data URI (`data:image/png;base64,…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_url: Option<String>,
    /// Id of an uploaded file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_id: Option<String>,
}

/// Body of `POST /v1/videos/{id}/remix`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemixVideo {
    /// What to show instead. Required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            value_type = String, required = true, min_length = 1, max_length = 10_000,
            example = "the same fox, at night"
        )
    )]
    pub prompt: Option<String>,
    /// Told, signed, when the new video has ended: an https URL, or `{"url": …}`. That of the source
    /// is not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = Option<crate::wire::delivery::WebhookForms>)
    )]
    pub webhook: Option<WebhookTarget>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub user: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub quality: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub style: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub background: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub moderation: Option<Ignored>,
}

impl RemixVideo {
    /// The request of the source with this prompt, without its image.
    pub fn native(&self, source: &Task) -> SubmitBody {
        let request = &source.request;
        SubmitBody {
            model: Some(source.model.to_string()),
            prompt: self.prompt.clone(),
            negative_prompt: Some(request.negative_prompt.clone()),
            size: Some(request.size.to_string()),
            frames: Some(request.frames),
            fps: Some(request.fps),
            steps: Some(request.steps),
            guidance: request.guidance,
            guidance_2: request.guidance_2,
            loras: Some(request.loras.clone()),
            seed: Some(request.seed),
            format: Some(request.format),
            priority: Some(source.priority),
            metadata: Some(request.metadata.clone()),
            webhook: self.webhook.clone(),
            ..SubmitBody::default()
        }
    }
}

/// Where a video is, in the only words that clients of this shape know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum VideoStatus {
    Queued,
    InProgress,
    Completed,
    /// Also cancelled or expired: `error.code` says so.
    Failed,
}

impl From<State> for VideoStatus {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::InProgress,
            State::Succeeded => Self::Completed,
            State::Failed | State::Cancelled | State::Expired => Self::Failed,
        }
    }
}

/// A task, as `/v1/videos` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoBody {
    /// The same as in the native API.
    #[cfg_attr(feature = "openapi", schema(example = "task_018bcfe5680070707070707070707070"))]
    pub id: String,
    /// Always `video`.
    pub object: String,
    pub model: String,
    pub status: VideoStatus,
    /// Per cent, 0 to 100; 100 only when completed.
    pub progress: u8,
    /// Unix seconds, like every time here.
    pub created_at: u64,
    pub completed_at: Option<u64>,
    /// When the video is deleted.
    pub expires_at: Option<u64>,
    pub error: Option<VideoError>,
    pub prompt: String,
    pub remixed_from_video_id: Option<String>,
    /// The length as it was asked for, else the one that the frames make.
    #[cfg_attr(feature = "openapi", schema(example = "4"))]
    pub seconds: String,
    /// `WxH` in pixels.
    #[cfg_attr(feature = "openapi", schema(example = "832x480"))]
    pub size: String,
}

/// Why a video failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoError {
    /// A name from the table of error codes: `cancelled`, `expired`, `engine_failed` …
    pub code: String,
    pub message: String,
}

impl VideoBody {
    pub fn new(task: &Task, progress: Option<&Progress>) -> Self {
        let request = &task.request;
        let frames = f64::from(request.frames) / f64::from(request.fps);
        // To hundredths: a third of a second has no end.
        let seconds = task.seconds.clone().unwrap_or_else(|| hundredths(frames).to_string());
        let error = task.error.as_ref().map(|failure| VideoError {
            code: failure.code.to_string(),
            message: failure.message.clone(),
        });
        Self {
            id: task.id.to_string(),
            object: "video".to_string(),
            model: task.model.to_string(),
            status: task.state.into(),
            progress: percent(task.state, progress),
            created_at: task.created_at.unix_seconds(),
            completed_at: task
                .finished_at
                .filter(|_| task.state == State::Succeeded)
                .map(|at| at.unix_seconds()),
            expires_at: task.delete_at.map(|at| at.unix_seconds()),
            error,
            prompt: request.prompt.clone(),
            remixed_from_video_id: task.remixed_from.map(|id| id.to_string()),
            seconds,
            size: request.size.to_string(),
        }
    }
}

fn hundredths(number: f64) -> f64 {
    // Positive and small; `f64::round` needs the standard library.
    (number * 100.0 + 0.5) as u64 as f64 / 100.0
}

/// A page of videos.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoList {
    /// Always `list`.
    pub object: String,
    pub data: Vec<VideoBody>,
    pub first_id: Option<String>,
    /// What the next page's `after` is.
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// Answer to a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VideoDeleted {
    pub id: String,
    /// Always true.
    pub deleted: bool,
    /// Always `video.deleted`.
    pub object: String,
}

/// Body of `POST /v1/images/generations`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GenerateImages {
    /// What to show; up to 10,000 characters. Required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            value_type = String, required = true, min_length = 1, max_length = 10_000,
            example = "a red fox in snow"
        )
    )]
    pub prompt: Option<String>,
    /// Name or alias of a model; the configured default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// So many images; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 8))]
    pub n: Option<u32>,
    /// Pixels; `auto` and absent mean `1024x1024`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "1024x1024"))]
    pub size: Option<String>,
    /// The images themselves when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// `png` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_format: Option<OutputFormat>,
    /// What not to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_length = 10_000))]
    pub negative_prompt: Option<String>,
    /// Denoising steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub num_inference_steps: Option<u32>,
    /// Classifier-free guidance scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 100))]
    pub guidance_scale: Option<f64>,
    /// LoRAs to apply, all at once, none twice: those that the model has (`loras` in `/v1/models`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(max_items = 4))]
    pub loras: Option<Vec<Lora>>,
    /// Of the first image; those after it take the numbers that follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 9_007_199_254_740_991_u64))]
    pub seed: Option<u64>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub user: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub quality: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub style: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub background: Option<Ignored>,
    /// Taken and ignored.
    #[serde(default, skip_serializing_if = "is_ignored")]
    #[cfg_attr(feature = "openapi", schema(value_type = Value))]
    pub moderation: Option<Ignored>,
}

impl GenerateImages {
    /// The native request that is meant.
    pub fn native(&self) -> SubmitBody {
        let size = self.size.as_deref().filter(|size| *size != "auto");
        SubmitBody {
            model: self.model.clone(),
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            size: Some(size.unwrap_or("1024x1024").to_string()),
            steps: self.num_inference_steps,
            guidance: self.guidance_scale,
            loras: self.loras.clone(),
            seed: self.seed,
            n: self.n,
            format: Some(self.output_format.unwrap_or_default().into()),
            ..SubmitBody::default()
        }
    }
}

/// How images come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ResponseFormat {
    B64Json,
    Url,
}

/// What kind of file an image is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OutputFormat {
    #[default]
    Png,
    Jpeg,
    Webp,
}

impl From<OutputFormat> for Format {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Png => Self::Png,
            OutputFormat::Jpeg => Self::Jpeg,
            OutputFormat::Webp => Self::Webp,
        }
    }
}

/// Finished images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImagesBody {
    /// Unix seconds.
    pub created: u64,
    pub data: Vec<ImageBody>,
    pub output_format: OutputFormat,
    /// `WxH` in pixels.
    pub size: String,
}

/// An image, in the form that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageBody {
    /// The file in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b64_json: Option<String>,
    /// Absolute; needs no key, and is good for an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    fn asked(seconds: &str) -> Option<Option<Seconds>> {
        let body = format!("{{\"seconds\":{seconds}}}");
        serde_json::from_str::<CreateVideo>(&body).map(|body| body.seconds).ok()
    }

    #[test]
    fn seconds_are_plain_decimals_in_text_or_as_a_number() {
        for (json, number, text) in [
            ("\"4\"", 4.0, "4"),
            ("\"04\"", 4.0, "04"),
            ("\"2.50\"", 2.5, "2.50"),
            ("8", 8.0, "8"),
            ("0.5", 0.5, "0.5"),
        ] {
            let expected = Seconds { text: text.to_string(), number };
            assert_eq!(asked(json), Some(Some(expected)), "{json}");
        }
        assert_eq!(asked("null"), Some(None));
        let long = format!("\"4.{}\"", "0".repeat(15));
        for wrong in
            ["\"four\"", "\"1e3\"", "\"inf\"", "\"-4\"", "\"\"", "\".\"", "[4]", "true", &long]
        {
            assert_eq!(asked(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_ignored_is_no_part_of_what_is_asked_for() {
        let with =
            r#"{"prompt":"a","user":{"any":[1]},"quality":"hd","style":null,"moderation":0}"#;
        for (with, without) in [
            (canonical::<CreateVideo>(with), canonical::<CreateVideo>(r#"{"prompt":"a"}"#)),
            (canonical::<GenerateImages>(with), canonical::<GenerateImages>(r#"{"prompt":"a"}"#)),
            (canonical::<RemixVideo>(with), canonical::<RemixVideo>(r#"{"prompt":"a"}"#)),
        ] {
            assert_eq!(with, without);
        }
    }

    fn canonical<T: Serialize + serde::de::DeserializeOwned>(text: &str) -> String {
        let asked: T = serde_json::from_str(text).expect("a body");
        serde_json::to_string(&asked).expect("JSON")
    }

    #[test]
    fn every_state_has_a_word_that_clients_know() {
        let words = State::ALL.map(|state| {
            serde_json::to_value(VideoStatus::from(state)).expect("a word").to_string()
        });
        let known = ["queued", "in_progress", "completed", "failed", "failed", "failed"];
        assert_eq!(words, known.map(|word| format!("\"{word}\"")));
    }

    #[test]
    fn a_length_is_told_to_hundredths() {
        for (frames, fps, told) in [(49.0, 16.0, 3.06), (81.0, 16.0, 5.06), (1.0, 60.0, 0.02)] {
            assert_eq!(hundredths(frames / fps), told);
        }
    }
}
