//! Checkpoints in diffusers' format: what a directory holds, and what is wrong with it.
//!
//! A checkpoint of hundreds of gigabytes is looked at in milliseconds: of weights, only the headers
//! are read, and no byte of theirs is hashed. That finds what downloads do to checkpoints: a file that
//! is cut off, one that is missing, a pointer where weights should be. Every read is bounded, so that
//! a file that is damaged, or made to harm, costs no more than one that is right.

mod files;
mod weights;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use weights::MAX_HEADER;

/// A checkpoint without a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub kind: Kind,
    /// Its class, as `model_index.json` has it. Whether one of a [`Kind::Still`] is known, diffusers
    /// has to say.
    pub pipeline: String,
    /// Attention heads of the transformer, where it says so.
    pub heads: Option<u64>,
    /// The models in it, by name.
    pub models: Vec<Weights>,
    /// Width and height of the pictures that it was trained on, where it says so.
    pub side: Option<u32>,
}

/// The weights of one of a checkpoint's models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weights {
    /// As `model_index.json` has it, such as `transformer_2`.
    pub name: String,
    /// On the disk, in bytes.
    pub bytes: u64,
    /// Numbers in it.
    pub elements: u64,
}

/// What a checkpoint is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Wan2.2 t2v-A14B: text to video, two experts.
    T2vA14b,
    /// Wan2.2 i2v-A14B: image to video, two experts.
    I2vA14b,
    /// Wan2.2 ti2v-5B: both.
    Ti2v5b,
    /// Text to video with one transformer, as Wan2.1 has it.
    WanT2v,
    /// Image to video with one transformer.
    WanI2v,
    /// Stable Diffusion and its like: stills.
    Still,
}

impl Kind {
    /// The engine that runs it.
    pub fn engine(self) -> &'static str {
        match self {
            Self::Still => "stable-diffusion",
            _ => "wan",
        }
    }

    /// What the authors call it, where they do.
    pub fn task(self) -> Option<&'static str> {
        match self {
            Self::T2vA14b => Some("t2v-A14B"),
            Self::I2vA14b => Some("i2v-A14B"),
            Self::Ti2v5b => Some("ti2v-5B"),
            Self::WanT2v | Self::WanI2v | Self::Still => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::T2vA14b => "Wan2.2 t2v-A14B: text to video",
            Self::I2vA14b => "Wan2.2 i2v-A14B: image to video",
            Self::Ti2v5b => "Wan2.2 ti2v-5B: text, or an image, to video",
            Self::WanT2v => "Wan with one transformer: text to video",
            Self::WanI2v => "Wan with one transformer: image to video",
            Self::Still => "stills: text, or an image, to an image",
        })
    }
}

/// Something that is wrong with a file or directory, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub path: PathBuf,
    pub what: String,
    pub remedy: String,
}

impl Fault {
    fn new(path: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.to_owned(), what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; {}", self.path.display(), self.what, self.remedy)
    }
}

/// What helps where a file is not what it should be.
const AGAIN: &str = "download it again";

/// Pipelines that the engine `wan` runs.
const WAN_PIPELINES: &[&str] = &["WanPipeline", "WanImageToVideoPipeline"];

/// No checkpoint has more models than this.
const MAX_MODELS: usize = 64;

impl Checkpoint {
    /// On the disk, in bytes.
    pub fn bytes(&self) -> u64 {
        self.models.iter().map(|model| model.bytes).sum()
    }

    /// What the weights take on a GPU, in bytes: all at once, and the largest model alone. The engines
    /// load two bytes for each number; of Wan's VAE four.
    pub fn on_gpu(&self) -> (u64, u64) {
        let bytes = |model: &Weights| {
            let wide = model.name == "vae" && self.kind.engine() == "wan";
            model.elements.saturating_mul(if wide { 4 } else { 2 })
        };
        let each = self.models.iter().map(bytes);
        (each.clone().fold(0, u64::saturating_add), each.max().unwrap_or(0))
    }
}

/// Is there a directory?
pub fn directory(path: &Path) -> Result<(), Fault> {
    match files::metadata(path)? {
        Some(metadata) if metadata.is_dir() => Ok(()),
        Some(_) => Err(Fault::new(path, "is no directory", "name the directory of the checkpoint")),
        None => {
            Err(Fault::new(path, "does not exist", "put the checkpoint there, or correct the path"))
        }
    }
}

/// Is there the file of a LoRA? Of one in safetensors the header is read, as of any weights;
/// `only_safetensors` says whether it must be in that format.
pub fn lora(path: &Path, only_safetensors: bool) -> Result<(), Fault> {
    let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
    match files::metadata(path)? {
        None => Err(Fault::new(path, "does not exist", "put the LoRA there, or correct the path")),
        Some(metadata) if !metadata.is_file() => {
            Err(Fault::new(path, "is no file", "name the file of the LoRA"))
        }
        Some(_) if is_safetensors => weights::check(path),
        Some(_) if only_safetensors => {
            let remedy = "other formats are not loaded: get the LoRA in that one";
            Err(Fault::new(path, "is no .safetensors file", remedy))
        }
        Some(_) => files::open(path).map(drop),
    }
}

/// Looks a checkpoint over, for an engine if it is known which. Gives every fault that it finds.
pub fn inspect(path: &Path, engine: Option<&str>) -> Result<Checkpoint, Vec<Fault>> {
    directory(path).map_err(|fault| vec![fault])?;
    let at = path.join("model_index.json");
    let one = |fault| vec![fault];
    if files::metadata(&at).map_err(one)?.is_none() {
        let remedy = "a checkpoint is a directory in diffusers' format, such as those whose names \
                      end in -Diffusers";
        return Err(vec![Fault::new(path, "has no model_index.json", remedy)]);
    }
    let index = files::json(&at).map_err(one)?;
    let kind = kind(&at, &index, engine).map_err(one)?;
    let parts = parts(&at, &index).map_err(one)?;
    let (mut models, mut faults) = (Vec::new(), Vec::new());
    for part in parts {
        match part.inspect(&path.join(part.name)) {
            Ok(weights) => models.extend(weights),
            Err(found) => faults.extend(found),
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let pipeline = index.get("_class_name").and_then(Value::as_str).map(files::shown);
    let transformer = files::json(&path.join("transformer/config.json")).ok();
    let heads = transformer.as_ref().and_then(|config| config.get("num_attention_heads"));
    Ok(Checkpoint {
        kind,
        pipeline: pipeline.unwrap_or_default(),
        heads: heads.and_then(Value::as_u64),
        models,
        side: side(path),
    })
}

/// Denoisers of stills count in latents, of which each stands for eight pixels.
fn side(path: &Path) -> Option<u32> {
    let configs = ["unet", "transformer"].map(|name| path.join(name).join("config.json"));
    let config = configs.iter().find_map(|path| files::json(path).ok())?;
    let latents = config.get("sample_size").and_then(Value::as_u64)?;
    u32::try_from(latents).ok()?.checked_mul(8)
}

/// What the pipeline is, if the engine runs it.
fn kind(at: &Path, index: &Map<String, Value>, engine: Option<&str>) -> Result<Kind, Fault> {
    let Some(class) = index.get("_class_name").and_then(Value::as_str) else {
        return Err(Fault::new(at, "names no pipeline: it has no `_class_name`", AGAIN));
    };
    let present = |name: &str| index.get(name).is_some_and(|part| !part[1].is_null());
    let kind = match class {
        _ if index.get("expand_timesteps").and_then(Value::as_bool) == Some(true) => Kind::Ti2v5b,
        "WanPipeline" if present("transformer_2") => Kind::T2vA14b,
        "WanPipeline" => Kind::WanT2v,
        "WanImageToVideoPipeline" if present("transformer_2") => Kind::I2vA14b,
        "WanImageToVideoPipeline" => Kind::WanI2v,
        _ => Kind::Still,
    };
    let says = format!("is of a {}", files::shown(class));
    let known = WAN_PIPELINES.contains(&class);
    if engine.is_none_or(|engine| engine == "wan") && class.starts_with("Wan") && !known
        || engine == Some("wan") && !known
    {
        let remedy = format!("the engine `wan` runs {}", WAN_PIPELINES.join(" and "));
        return Err(Fault::new(at, says, remedy));
    }
    if engine == Some("stable-diffusion") && class.starts_with("Wan") {
        let remedy = "the engine `stable-diffusion` makes stills; for this one it is `wan`";
        return Err(Fault::new(at, says, remedy));
    }
    if matches!(kind, Kind::T2vA14b | Kind::I2vA14b)
        && index.get("boundary_ratio").is_none_or(Value::is_null)
    {
        let what = "has two transformers, but no `boundary_ratio` to say where the second begins";
        return Err(Fault::new(at, what, AGAIN));
    }
    if kind != Kind::Still {
        let needed = ["text_encoder", "tokenizer", "transformer", "vae", "scheduler"];
        if let Some(missing) = needed.into_iter().find(|name| !present(name)) {
            return Err(Fault::new(at, format!("names no `{missing}`"), AGAIN));
        }
    }
    Ok(kind)
}

/// A directory of a checkpoint.
struct Part<'a> {
    name: &'a str,
    class: &'a str,
}

/// Those that the index names.
fn parts<'a>(at: &Path, index: &'a Map<String, Value>) -> Result<Vec<Part<'a>>, Fault> {
    let mut parts = Vec::new();
    for (name, value) in index {
        let Some([_, class]) = value.as_array().map(Vec::as_slice) else {
            continue;
        };
        let Some(class) = class.as_str() else {
            continue;
        };
        if !files::is_name(name) {
            let what = format!("names `{}`, which is no directory of it", files::shown(name));
            return Err(Fault::new(at, what, AGAIN));
        }
        parts.push(Part { name, class });
    }
    if parts.is_empty() || parts.len() > MAX_MODELS {
        let what = format!("names {} models", parts.len());
        return Err(Fault::new(at, what, "see that it is the index of a pipeline"));
    }
    Ok(parts)
}

impl Part<'_> {
    /// Its weights, if it has any to have.
    fn inspect(&self, path: &Path) -> Result<Option<Weights>, Vec<Fault>> {
        let names = files::list(path).map_err(|fault| vec![fault])?;
        let mut faults: Vec<Fault> =
            names.iter().filter_map(|name| files::placeholder(&path.join(name))).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let has = |name: &str| names.iter().any(|there| there == name);
        let (configs, has_weights): (&[&str], bool) = match self.class {
            class if class.contains("Scheduler") => (&["scheduler_config.json"], false),
            class if class.contains("Tokenizer") => (&["tokenizer_config.json"], false),
            class if class.contains("Processor") || class.contains("FeatureExtractor") => {
                (&["preprocessor_config.json", "processor_config.json"], false)
            }
            _ => (&["config.json"], true),
        };
        match configs.iter().find(|name| has(name)) {
            Some(name) => faults.extend(files::json(&path.join(name)).err()),
            None => faults.push(Fault::new(path, format!("has no {}", configs[0]), AGAIN)),
        }
        if self.class.contains("Tokenizer") && !names.iter().any(|name| is_vocabulary(name)) {
            faults.push(Fault::new(path, "has no vocabulary, such as a tokenizer.json", AGAIN));
        }
        let weights = if has_weights {
            match weights::inspect(path, &names) {
                Ok((bytes, elements)) => {
                    Some(Weights { name: self.name.to_owned(), bytes, elements })
                }
                Err(found) => {
                    faults.extend(found);
                    None
                }
            }
        } else {
            None
        };
        if faults.is_empty() { Ok(weights) } else { Err(faults) }
    }
}

fn is_vocabulary(name: &str) -> bool {
    name == "tokenizer.json" || name.starts_with("vocab.") || name.ends_with(".model")
}
