//! What may be asked of a model, and a request in which every default is filled in.

mod lora;

#[cfg(test)]
mod tests;

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::code::Code;
use crate::id::{LoraName, ModelName, PoolName, TenantName};
use crate::time::Timestamp;
use crate::wire::api::SubmitBody;
use crate::wire::engine::{EngineRequest, Format, Lora};
pub use lora::{MAX_LORAS, MAX_MODEL_LORAS};

/// Longest prompt and negative prompt, in characters.
pub const MAX_PROMPT: usize = 10_000;
/// Most metadata entries; keys up to 64 and values up to 512 characters.
pub const MAX_METADATA: usize = 16;
/// Largest seed: what every JSON reader holds exactly.
pub const MAX_SEED: u64 = (1 << 53) - 1;
/// Most tasks of one submit.
pub const MAX_TASKS: u32 = 8;

/// Width and height in pixels; `WxH` or `W*H` in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once(['x', '*'])
            .and_then(|(w, h)| Some(Self { width: side(w)?, height: side(h)? }))
            .ok_or_else(|| {
                format!("`{}` is not a size; write it as 832x480 or 832*480", short(text))
            })
    }
}

/// Digits only: `u32::from_str` would also take a sign.
fn side(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <alloc::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a model can do; every bound is inclusive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ModelLimits))]
pub struct Limits {
    pub min_side: u32,
    pub max_side: u32,
    pub max_pixels: u32,
    /// Each side is a multiple of this.
    pub multiple: u32,
    /// Frames are 4n+1 up to this.
    pub max_frames: u32,
    pub max_fps: u32,
    pub max_steps: u32,
}

impl Limits {
    /// What a number of a request may be, whatever else is wrong with the one that was sent.
    pub fn allowed(&self, param: &str) -> Option<String> {
        let whole = |from: u64, to: u64| format!("a whole number from {from} to {to}");
        Some(match param {
            "frames" => {
                format!("{} of the form 4n+1 (1, 5, 9 …)", whole(1, self.max_frames.into()))
            }
            "fps" => whole(1, self.max_fps.into()),
            "steps" => whole(1, self.max_steps.into()),
            "seed" => whole(0, MAX_SEED),
            "priority" => whole(1, 5),
            "n" => whole(1, MAX_TASKS.into()),
            "width" | "height" => {
                let Self { min_side, max_side, multiple, .. } = *self;
                format!("a multiple of {multiple} from {min_side} to {max_side}")
            }
            "seconds" | "duration" => "a number above 0".to_string(),
            "guidance" | "guidance_2" => "a number from 0 to 100".to_string(),
            _ if lora::is_scale(param) => lora::allowed_scale(),
            "deadline" => "a Unix time in seconds, in the future".to_string(),
            _ => return None,
        })
    }

    /// Refuses a number.
    fn refuse(&self, param: impl Into<Cow<'static, str>>, value: impl fmt::Display) -> Invalid {
        let param = param.into();
        let allowed = self.allowed(&param).unwrap_or_default();
        let message = format!("`{param}` must be {allowed}, not {value}");
        invalid(param, message)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_side: 64,
            max_side: 1920,
            max_pixels: 1920 * 1088,
            multiple: 2,
            max_frames: 321,
            max_fps: 60,
            max_steps: 100,
        }
    }
}

/// What is filled in where a request is silent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ModelDefaults))]
pub struct Defaults {
    /// `WxH` in pixels.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "832x480"))]
    pub size: Size,
    pub frames: u32,
    pub fps: u32,
    pub steps: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Of the second expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_2: Option<f64>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            size: Size { width: 832, height: 480 },
            frames: 49,
            fps: 16,
            steps: 20,
            guidance: None,
            guidance_2: None,
        }
    }
}

/// The images that a model takes with a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = ModelImages))]
pub enum Images {
    /// None: it makes videos of text alone.
    None,
    /// `image`, the first frame.
    #[default]
    First,
    /// `image`, and with it `last_image`, the last frame.
    FirstLast,
}

/// A model as the API knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    pub name: ModelName,
    pub pool: PoolName,
    pub images: Images,
    /// It makes videos of images: none without one.
    pub image_required: bool,
    pub loras: Vec<LoraName>,
    pub limits: Limits,
    pub defaults: Defaults,
}

impl ModelSpec {
    /// What a worker tests the model's engine with: as its users ask by default, since an engine may do
    /// no other size, but short.
    pub fn self_test(&self) -> EngineRequest {
        let Defaults { size, frames, fps, steps, guidance, guidance_2 } = self.defaults;
        let still = self.limits.max_frames == 1;
        EngineRequest {
            prompt: "self-test".into(),
            negative_prompt: String::new(),
            width: size.width,
            height: size.height,
            frames: frames.min(5),
            fps,
            steps: steps.min(2),
            guidance,
            guidance_2,
            seed: 1,
            format: if still { Format::Png } else { Format::Mp4 },
            image: None,
            last_image: None,
            loras: Vec::new(),
        }
    }

    /// Checks that the model takes the images that come with a request, which is valid otherwise.
    pub fn check_images(
        &self,
        request: &Request,
        image: bool,
        last_image: bool,
    ) -> Result<(), Invalid> {
        let Self { name, images, .. } = self;
        if image && *images == Images::None {
            let message = format!("`image`: the model `{name}` takes no image; leave it out");
            return Err(invalid("image", message));
        }
        if self.image_required && !image {
            return Err(Invalid {
                code: Code::MissingField,
                param: "image".into(),
                message: format!("`image` is missing: the model `{name}` makes videos of images"),
            });
        }
        if !last_image {
            return Ok(());
        }
        if *images != Images::FirstLast {
            let message = format!(
                "`last_image`: the model `{name}` can't be given its last frame; leave it out"
            );
            return Err(invalid("last_image", message));
        }
        if !image {
            return Err(Invalid {
                code: Code::MissingField,
                param: "image".into(),
                message: "`last_image` needs the first frame beside it: give `image` as well"
                    .to_string(),
            });
        }
        if request.frames == 1 {
            let message = "`last_image`: what is asked for has 1 frame, which `image` is already";
            return Err(invalid("last_image", message));
        }
        Ok(())
    }
}

/// An input file, already stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Number that the store has given it: one for each content of a tenant, never given again.
    /// None if it lies with its task, as the first versions had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<u64>,
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub media_type: String,
    pub bytes: u64,
}

impl Input {
    /// The folder of its place, if it has one. It leads nowhere else, whatever the tenant's name.
    pub fn folder(&self, tenant: &TenantName) -> Option<String> {
        Some(format!("tenant-{tenant}/{}-{}", self.sha256, self.place?))
    }
}

/// A validated request: what an attempt needs to give the same video again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub prompt: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    pub size: Size,
    pub frames: u32,
    pub fps: u32,
    pub steps: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_2: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<Lora>,
    pub seed: u64,
    pub format: Format,
    /// First frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Input>,
    /// Last frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_image: Option<Input>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    pub code: Code,
    /// The field at fault.
    pub param: Cow<'static, str>,
    pub message: String,
}

fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Invalid {
    Invalid { code: Code::InvalidValue, param: param.into(), message: message.into() }
}

impl Request {
    /// The requests of a submit: as many as it asks for, alike but for their seeds, which follow one
    /// another from `seed` on if none was asked for.
    pub fn resolve_all(
        body: &SubmitBody,
        model: &ModelSpec,
        seed: u64,
    ) -> Result<Vec<Self>, Invalid> {
        let n = body.n.unwrap_or(1);
        if !(1..=MAX_TASKS).contains(&n) {
            return Err(model.limits.refuse("n", n));
        }
        let largest = MAX_SEED - u64::from(n - 1);
        let first = Self::resolve(body, model, (seed & MAX_SEED).min(largest))?;
        if first.seed > largest {
            let message = format!("`seed` must be at most {largest} if `n` is {n}");
            return Err(invalid("seed", message));
        }
        let with = |offset| Self { seed: first.seed + u64::from(offset), ..first.clone() };
        Ok((0..n).map(with).collect())
    }

    /// Checks a request against its model and fills in the defaults; `seed` is used if none was
    /// asked for. The images are the caller's to decode and store.
    pub fn resolve(body: &SubmitBody, model: &ModelSpec, seed: u64) -> Result<Self, Invalid> {
        let (limits, defaults) = (&model.limits, &model.defaults);
        let prompt = match &body.prompt {
            None => {
                return Err(Invalid {
                    code: Code::MissingField,
                    param: "prompt".into(),
                    message: "`prompt` is required: say what the video should show".to_string(),
                });
            }
            Some(text) => checked_text("prompt", text)?,
        };
        if prompt.trim().is_empty() {
            return Err(invalid("prompt", "`prompt` is empty; say what the video should show"));
        }
        let negative_prompt = match &body.negative_prompt {
            Some(text) => checked_text("negative_prompt", text)?,
            None => String::new(),
        };
        let size = size(body, limits, defaults)?;
        // A model of one frame makes stills.
        let unasked = if limits.max_frames == 1 { Format::Png } else { Format::Mp4 };
        let format = body.format.unwrap_or(unasked);
        let bounded = |param, asked: Option<u32>, default, max| match asked {
            Some(value) if !(1..=max).contains(&value) => Err(limits.refuse(param, value)),
            asked => Ok(asked.unwrap_or(default)),
        };
        let fps = bounded("fps", body.fps, defaults.fps, limits.max_fps)?;
        let frames = frames(body, format, fps, limits, defaults)?;
        let steps = bounded("steps", body.steps, defaults.steps, limits.max_steps)?;
        let scale = |param, asked: Option<f64>, default: Option<f64>| match asked.or(default) {
            Some(scale) if !(0.0..=100.0).contains(&scale) => Err(limits.refuse(param, scale)),
            scale => Ok(scale),
        };
        let guidance = scale("guidance", body.guidance, defaults.guidance)?;
        let guidance_2 = scale("guidance_2", body.guidance_2, defaults.guidance_2)?;
        let loras = lora::check(body.loras.as_deref().unwrap_or_default(), model)?;
        let seed = body.seed.unwrap_or(seed & MAX_SEED);
        if seed > MAX_SEED {
            return Err(limits.refuse("seed", seed));
        }
        let metadata = body.metadata.clone().unwrap_or_default();
        check_metadata(&metadata)?;
        Ok(Self {
            prompt,
            negative_prompt,
            size,
            frames,
            fps,
            steps,
            guidance,
            guidance_2,
            loras,
            seed,
            format,
            image: None,
            last_image: None,
            metadata,
        })
    }

    /// What the engine is told; the images are the paths at which the worker has put them.
    pub fn for_engine(&self, image: Option<String>, last_image: Option<String>) -> EngineRequest {
        EngineRequest {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            width: self.size.width,
            height: self.size.height,
            frames: self.frames,
            fps: self.fps,
            steps: self.steps,
            guidance: self.guidance,
            guidance_2: self.guidance_2,
            seed: self.seed,
            format: self.format,
            image,
            last_image,
            loras: self.loras.clone(),
        }
    }

    /// The amount of work, in megapixel-frame-steps rounded up: what running times are learned by.
    pub fn work(&self) -> u64 {
        let pixels = u64::from(self.size.width) * u64::from(self.size.height);
        (pixels * u64::from(self.frames) * u64::from(self.steps)).div_ceil(1_000_000).max(1)
    }
}

/// No deadline is so far away, in Unix seconds: the year 5138, or this century in milliseconds.
const NO_DEADLINE: u64 = 100_000_000_000;

/// The moment until which a task may wait, from the asked Unix seconds.
pub fn deadline(body: &SubmitBody) -> Result<Option<Timestamp>, Invalid> {
    match body.deadline {
        Some(seconds) if seconds >= NO_DEADLINE => Err(invalid(
            "deadline",
            format!("`deadline` is a Unix time in seconds; {seconds} looks like milliseconds"),
        )),
        seconds => Ok(seconds.map(|seconds| Timestamp(seconds * 1000))),
    }
}

/// Refuses a deadline that has passed.
pub fn past_deadline(now: Timestamp) -> Invalid {
    let now = now.unix_seconds();
    let message = format!("`deadline` must be a Unix time in seconds, in the future; now is {now}");
    invalid("deadline", message)
}

fn checked_text(param: &'static str, text: &str) -> Result<String, Invalid> {
    let length = text.chars().count();
    if length > MAX_PROMPT {
        return Err(invalid(
            param,
            format!("`{param}` has {length} characters; at most {MAX_PROMPT} are allowed"),
        ));
    }
    if text.contains('\0') {
        return Err(invalid(param, format!("`{param}` contains a NUL character")));
    }
    Ok(text.to_string())
}

/// The size, in either of its spellings.
fn size(body: &SubmitBody, limits: &Limits, defaults: &Defaults) -> Result<Size, Invalid> {
    let fits = |side: u32| {
        (limits.min_side..=limits.max_side).contains(&side) && side.is_multiple_of(limits.multiple)
    };
    let (size, param) = match (&body.size, body.width, body.height) {
        (None, None, None) => (defaults.size, "size"),
        (Some(text), None, None) => {
            let size: Size = text.parse().map_err(|message: String| invalid("size", message))?;
            if !fits(size.width) || !fits(size.height) {
                let sides = limits.allowed("width").unwrap_or_default();
                let message = format!("`size` {size} is not allowed: each side is {sides}");
                return Err(invalid("size", message));
            }
            (size, "size")
        }
        (None, Some(width), Some(height)) => {
            for (param, side) in [("width", width), ("height", height)] {
                if !fits(side) {
                    return Err(limits.refuse(param, side));
                }
            }
            (Size { width, height }, "width")
        }
        (Some(_), width, _) => {
            let param = if width.is_some() { "width" } else { "height" };
            return Err(invalid(param, "give `size`, or `width` and `height`, not both"));
        }
        (None, width, _) => {
            let missing = if width.is_some() { "height" } else { "width" };
            return Err(Invalid {
                code: Code::MissingField,
                param: missing.into(),
                message: "`width` and `height` belong together: give both, or `size`".to_string(),
            });
        }
    };
    let pixels = u64::from(size.width) * u64::from(size.height);
    if pixels > u64::from(limits.max_pixels) {
        let most = limits.max_pixels;
        let message = format!("the size {size} has {pixels} pixels; at most {most} are allowed");
        return Err(invalid(param, message));
    }
    Ok(size)
}

/// The asked length in seconds, and how it was spelt.
fn seconds(body: &SubmitBody) -> Result<Option<(&'static str, f64)>, Invalid> {
    match (body.seconds, body.duration) {
        (Some(_), Some(_)) => {
            Err(invalid("duration", "`duration` is the same as `seconds`; give one of them"))
        }
        (Some(seconds), None) => Ok(Some(("seconds", seconds))),
        (None, Some(seconds)) => Ok(Some(("duration", seconds))),
        (None, None) => Ok(None),
    }
}

fn frames(
    body: &SubmitBody,
    format: Format,
    fps: u32,
    limits: &Limits,
    defaults: &Defaults,
) -> Result<u32, Invalid> {
    let seconds = seconds(body)?;
    if format.is_still() {
        let still = format!("a still (`format` {})", format.name());
        return match (body.frames, seconds) {
            (None | Some(1), None) => Ok(1),
            (None, Some((spelt, _))) => Err(invalid(spelt, format!("{still} has no `{spelt}`"))),
            (Some(_), _) => Err(invalid("frames", format!("{still} has exactly 1 frame"))),
        };
    }
    match (body.frames, seconds) {
        (Some(_), Some((spelt, _))) => {
            Err(invalid(spelt, format!("give `frames` or `{spelt}`, not both")))
        }
        (None, None) => Ok(defaults.frames),
        (Some(frames), None) => {
            if frames == 0 || frames > limits.max_frames || frames % 4 != 1 {
                return Err(limits.refuse("frames", frames));
            }
            Ok(frames)
        }
        (None, Some((spelt, seconds))) => {
            // In hundredths and rounded up: what the message names is allowed, and nothing above.
            let most = f64::from((limits.max_frames * 100).div_ceil(fps)) / 100.0;
            if !(seconds > 0.0 && seconds <= most) {
                return Err(invalid(
                    spelt,
                    format!(
                        "`{spelt}` must be a number above 0 and at most {most} at {fps} frames a \
                         second, not {seconds}"
                    ),
                ));
            }
            Ok(nearest_4n1(seconds * f64::from(fps)).min(limits.max_frames))
        }
    }
}

/// The nearest number of the form 4n+1; halfway rounds up. `frames` is positive and small.
fn nearest_4n1(frames: f64) -> u32 {
    let n = ((frames - 1.0) / 4.0 + 0.5).max(0.0) as u32;
    4 * n + 1
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if metadata.len() > MAX_METADATA {
        return Err(invalid(
            "metadata",
            format!("`metadata` has {} entries; at most {MAX_METADATA} are kept", metadata.len()),
        ));
    }
    for (key, value) in metadata {
        if key.is_empty() || key.chars().count() > 64 || value.chars().count() > 512 {
            return Err(invalid(
                "metadata",
                format!(
                    "`metadata.{}`: keys have 1 to 64 characters, values up to 512",
                    short(key)
                ),
            ));
        }
    }
    Ok(())
}
