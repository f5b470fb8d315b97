//! The LoRAs that a request names.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Invalid, ModelSpec, invalid, short};
use crate::id::LoraName;
use crate::wire::engine::Lora;

/// Most LoRAs of one request.
pub const MAX_LORAS: usize = 4;
/// Most LoRAs of a model.
pub const MAX_MODEL_LORAS: usize = 64;
/// Largest scale, either way. What is trained acts at 1; far beyond it there is nothing but noise.
const MAX_SCALE: f64 = 4.0;

/// Is this the name of a scale: `loras[0].scale`?
pub(super) fn is_scale(param: &str) -> bool {
    param.starts_with("loras[") && param.ends_with("].scale")
}

pub(super) fn allowed_scale() -> String {
    format!("a number from -{MAX_SCALE} to {MAX_SCALE}")
}

/// The model has each, none stands twice, and the scales are within bounds.
pub(super) fn check(asked: &[Lora], model: &ModelSpec) -> Result<Vec<Lora>, Invalid> {
    if asked.len() > MAX_LORAS {
        let message =
            format!("`loras` has {} entries; at most {MAX_LORAS} are allowed", asked.len());
        return Err(invalid("loras", message));
    }
    for (index, Lora { name, scale }) in asked.iter().enumerate() {
        let at = |field| format!("loras[{index}].{field}");
        if !model.loras.iter().any(|known| known.as_str() == name) {
            let (param, there) = (at("name"), there_are(&model.loras));
            let (model, name) = (&model.name, short(name));
            let message = format!("`{param}`: the model `{model}` has no LoRA `{name}`; {there}");
            return Err(invalid(param, message));
        }
        if asked[..index].iter().any(|before| before.name == *name) {
            let param = at("name");
            let message = format!("`{param}`: `{name}` stands twice; give its scale once");
            return Err(invalid(param, message));
        }
        if !(-MAX_SCALE..=MAX_SCALE).contains(scale) {
            return Err(model.limits.refuse(at("scale"), scale));
        }
    }
    Ok(asked.to_vec())
}

fn there_are(known: &[LoraName]) -> String {
    if known.is_empty() {
        return "it has none".into();
    }
    let names: Vec<&str> = known.iter().map(LoraName::as_str).collect();
    format!("there are: {}", names.join(", "))
}
