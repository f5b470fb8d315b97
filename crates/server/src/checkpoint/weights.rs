//! Weights in safetensors: eight bytes for the length of a header, the header in JSON, and the
//! numbers, of which the header says where each tensor lies. So a file's right length is known.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{AGAIN, Fault, files};

/// Longest header, in bytes: the format's own limit.
pub const MAX_HEADER: u64 = 100_000_000;

/// What diffusers and transformers call weights.
const STEMS: &[&str] = &["diffusion_pytorch_model", "model"];

/// Bytes and numbers of the weights in a model's directory, of those files that would be loaded.
pub(super) fn inspect(path: &Path, names: &[String]) -> Result<(u64, u64), Vec<Fault>> {
    let has = |name: &str| names.iter().any(|there| there == name);
    for stem in STEMS {
        let index = format!("{stem}.safetensors.index.json");
        if has(&index) {
            return sharded(path, &index);
        }
        let whole = format!("{stem}.safetensors");
        if has(&whole) {
            let header = Header::read(&path.join(whole)).map_err(|fault| vec![fault])?;
            return Ok((header.bytes, header.elements));
        }
    }
    Err(vec![missing(path, names)])
}

/// Is one file whole?
pub(super) fn check(path: &Path) -> Result<(), Fault> {
    Header::read(path).map(drop)
}

/// There are none that would be loaded: what is there instead?
fn missing(path: &Path, names: &[String]) -> Fault {
    let ends = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    if let Some(name) = ends(&[".safetensors"]) {
        let stem = if name.starts_with(STEMS[0]) { STEMS[0] } else { STEMS[1] };
        if name.contains("-of-") {
            let what = format!("has no {stem}.safetensors.index.json, which lists its shards");
            return Fault::new(path, what, AGAIN);
        }
        let what = format!("has {name}, but no {stem}.safetensors");
        return Fault::new(path, what, "rename it, or download the weights of full precision");
    }
    if let Some(name) = ends(&[".bin", ".ckpt", ".pt", ".pth"]) {
        let what = format!("has {name}, but nothing in safetensors");
        return Fault::new(path, what, "other formats are not loaded: get the weights in that one");
    }
    Fault::new(path, "has no weights: no .safetensors file", AGAIN)
}

/// Weights in several files, and an index of which tensor is in which.
fn sharded(path: &Path, index: &str) -> Result<(u64, u64), Vec<Fault>> {
    let at = path.join(index);
    let wrong = |what: &str| vec![Fault::new(&at, what, AGAIN)];
    let index = files::json(&at).map_err(|fault| vec![fault])?;
    let Some(Value::Object(map)) = index.get("weight_map") else {
        return Err(wrong("has no `weight_map`"));
    };
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in map {
        match shard.as_str() {
            Some(shard) if files::is_name(shard) => shards.entry(shard).or_default().push(tensor),
            _ => return Err(wrong("names a shard that is no file beside it")),
        }
    }
    if shards.is_empty() {
        return Err(wrong("names no shards"));
    }
    let (mut bytes, mut elements, mut faults) = (0, 0, Vec::new());
    for (shard, tensors) in shards {
        let at = path.join(shard);
        match Header::read(&at) {
            Ok(header) => {
                let lacks: Vec<&str> =
                    tensors.into_iter().filter(|name| !header.names.contains(*name)).collect();
                if let Some(first) = lacks.first() {
                    let others = match lacks.len() {
                        1 => String::new(),
                        count => format!(" and {} more", count - 1),
                    };
                    let first = files::shown(first);
                    let what = format!("lacks {first}{others}, which the index has in it");
                    faults.push(Fault::new(&at, what, AGAIN));
                }
                bytes += header.bytes;
                elements += header.elements;
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok((bytes, elements)) } else { Err(faults) }
}

/// What a file of weights says of itself, and keeps.
#[derive(Debug)]
struct Header {
    /// Of the whole file.
    bytes: u64,
    elements: u64,
    names: HashSet<String>,
}

impl Header {
    fn read(path: &Path) -> Result<Self, Fault> {
        let (mut file, bytes) = files::open(path)?;
        if let Some(fault) = files::placeholder(path) {
            return Err(fault);
        }
        let cut = |whole: u64| {
            let what = format!("is cut off: it has {bytes} of {whole} bytes");
            Fault::new(path, what, AGAIN)
        };
        if bytes == 0 {
            return Err(Fault::new(path, "is empty", AGAIN));
        }
        if bytes < 8 {
            return Err(Fault::new(path, "is too short to be weights", AGAIN));
        }
        let length = files::read(&mut file, path, 8)?;
        let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
        let wrong = |why: &str| Fault::new(path, format!("is no safetensors file: {why}"), AGAIN);
        if length > MAX_HEADER {
            return Err(wrong(&format!("its header would have {length} bytes")));
        }
        if 8 + length > bytes {
            return Err(cut(8 + length));
        }
        let header = files::read(&mut file, path, length)?;
        let tensors: Tensors = serde_json::from_slice(&header)
            .map_err(|error| wrong(&format!("its header can't be read: {error}")))?;
        let data = bytes - 8 - length;
        if tensors.end > data {
            return Err(cut((8 + length).saturating_add(tensors.end)));
        }
        if tensors.end < data {
            let what = format!("has {} bytes too many", data - tensors.end);
            return Err(Fault::new(path, what, AGAIN));
        }
        Ok(Self { bytes, elements: tensors.elements, names: tensors.names })
    }
}

/// The header's JSON, of which no more is kept than is needed.
#[derive(Debug, Default)]
struct Tensors {
    /// Where the last tensor ends.
    end: u64,
    elements: u64,
    names: HashSet<String>,
}

#[derive(serde::Deserialize)]
struct Tensor {
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Tensors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
                let wrong = |name: &str, what: &str| {
                    serde::de::Error::custom(format_args!("{} {what}", files::shown(name)))
                };
                let mut tensors = Tensors::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let tensor: Tensor = map.next_value()?;
                    let (begin, end) = tensor.data_offsets;
                    if begin > end {
                        return Err(wrong(&name, "ends before it begins"));
                    }
                    let elements =
                        tensor.shape.iter().try_fold(1u64, |all, side| all.checked_mul(*side));
                    let all = elements.and_then(|count| tensors.elements.checked_add(count));
                    tensors.elements = all.ok_or_else(|| wrong(&name, "is too large"))?;
                    tensors.end = tensors.end.max(end);
                    tensors.names.insert(name);
                }
                Ok(tensors)
            }
        }

        deserializer.deserialize_map(Entries)
    }
}
