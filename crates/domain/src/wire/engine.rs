//! The engine protocol: one line of JSON each way between a worker and its engine process.
//!
//! The worker writes [`ToEngine`] on the engine's standard input, the engine writes [`FromEngine`]
//! on its standard output; standard error is free text for the log. Version 1. Each message has a
//! golden file under `golden/engine/`, which engines written in other languages test against too.
//! An engine handles one `generate` at a time and reads `cancel` while it works.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::LoraName;

/// The protocol version that this build speaks.
pub const PROTOCOL: u32 = 1;

/// The longest line either side may write, in bytes, newline included.
pub const MAX_LINE: usize = 1 << 20;

/// What the worker tells the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToEngine {
    /// First message, once: load the model. Answered by [`FromEngine::Ready`] or an error.
    Load(Load),
    /// Generate one output. Answered by progress, then exactly one `done` or `error` with its id.
    Generate(Generate),
    /// Stop the generation with this id within one step; its answer is an `error` of code
    /// `cancelled`. Unknown ids are ignored: the generation may just have ended.
    Cancel { id: String },
    /// Leave with exit status 0.
    Exit,
}

/// Which model to load, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// [`PROTOCOL`] of the worker; an engine that speaks another one answers an error.
    pub protocol: u32,
    /// Public name of the model.
    pub model: String,
    /// Directory of the checkpoint, absolute; none for engines without weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// The engine's own settings, from the model's configuration.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// The LoRAs that requests may name. Absent if the model has none: engines that do not know the
    /// field never see it then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loras: BTreeMap<LoraName, LoraFiles>,
}

/// Where the weights of a LoRA lie: files on the worker's machine, by their absolute paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum LoraFiles {
    /// One file for the whole model.
    Whole { path: String },
    /// A file for each expert of a model that has two: that of high noise, and that of low.
    Experts { high: String, low: String },
}

/// A LoRA to apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Lora {
    /// Its name with the model.
    #[cfg_attr(feature = "openapi", schema(example = "anime"))]
    pub name: String,
    /// How strongly it acts: 1 as it was trained, 0 not at all; up to 4 either way.
    #[serde(default = "as_trained")]
    #[cfg_attr(feature = "openapi", schema(minimum = -4, maximum = 4, default = 1.0))]
    pub scale: f64,
}

fn as_trained() -> f64 {
    1.0
}

/// One output to generate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Names this generation in every answer; opaque to the engine.
    pub id: String,
    /// Directory, absolute and empty, into which the engine writes its files.
    pub output_dir: String,
    pub request: EngineRequest,
}

/// A validated request, every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineRequest {
    pub prompt: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// 4n+1 for videos, 1 for a still.
    pub frames: u32,
    /// Frames a second.
    pub fps: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Classifier-free guidance scale; the engine's own default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Guidance scale of the second expert, that of low noise, where a model has one; the engine's
    /// own default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_2: Option<f64>,
    /// Same seed, same request, same machine and build: same bytes.
    pub seed: u64,
    pub format: Format,
    /// First frame: a path, absolute, to a PNG or JPEG file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Last frame, in the same way; never without `image`. Only models whose configuration says
    /// `images = "first-last"` are sent it: engines that do not know it never see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_image: Option<String>,
    /// LoRAs to apply, all at once: names that came with `load`, none twice. Absent if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<Lora>,
}

/// What kind of file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// H.264 in MP4, index first, so that it plays while it downloads.
    #[default]
    Mp4,
    /// A still, as all that follow.
    Png,
    Jpeg,
    Webp,
}

impl Format {
    pub const ALL: [Self; 4] = [Self::Mp4, Self::Png, Self::Jpeg, Self::Webp];

    /// As it is written in requests.
    pub fn name(self) -> &'static str {
        match self {
            Format::Mp4 => "mp4",
            Format::Png => "png",
            Format::Jpeg => "jpeg",
            Format::Webp => "webp",
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Format::Mp4 => "video/mp4",
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Webp => "image/webp",
        }
    }

    /// What the name of such a file ends with.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Jpeg => "jpg",
            other => other.name(),
        }
    }

    /// Is it a picture, of one frame?
    pub fn is_still(self) -> bool {
        match self {
            Format::Mp4 => false,
            Format::Png | Format::Jpeg | Format::Webp => true,
        }
    }
}

/// What the engine answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromEngine {
    /// The model is loaded; `generate` may come.
    Ready {
        protocol: u32,
        /// Name of the engine, for logs.
        engine: String,
        version: String,
    },
    /// A step has ended.
    Progress {
        id: String,
        /// Steps done in this stage, 0 to `steps`.
        step: u32,
        steps: u32,
        /// What the engine is at: `encode_prompt`, `denoise`, `decode`, `encode` …
        stage: String,
    },
    /// The files are written and closed.
    Done(Done),
    /// The generation with this id failed, or, without an id, the load did.
    Error(EngineError),
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    pub id: String,
    /// The main output first.
    pub files: Vec<OutputFile>,
    /// Milliseconds per stage and the like, by name; kept with the attempt.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// True if this is a synthetic pattern and no model ran.
    #[serde(default)]
    pub test_pattern: bool,
}

/// One file that the engine wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputFile {
    /// Relative to `output_dir`, a regular file, no `..`, no links.
    pub path: String,
    pub role: Role,
    /// `video/mp4`, `image/png` …
    pub media_type: String,
    pub width: u32,
    pub height: u32,
    pub frames: u32,
    pub fps: u32,
}

/// What an output is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Video,
    Image,
    Thumbnail,
}

/// Why a load or a generation ended without files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineError {
    /// The generation's id; absent if the load failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub code: EngineErrorCode,
    /// For people; shown to the task's owner, at most 2,000 characters are kept.
    pub message: String,
    /// Whether the same request may succeed on another try.
    pub retryable: bool,
}

/// Typed reasons an engine can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineErrorCode {
    /// Asked to stop, and stopped.
    Cancelled,
    /// GPU or host memory ran out; the engine has freed the pipeline and lives on.
    OutOfMemory,
    /// The request can't be done by this model, whoever tries.
    InvalidRequest,
    /// The model could not be loaded.
    LoadFailed,
    /// Anything else.
    Failed,
}
