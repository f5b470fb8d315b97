//! The public API: bodies of `/v1/models`, in OpenAI's shape and with more to tell.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::request::{Defaults, Images, Limits};

/// A model that requests may name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelBody {
    #[cfg_attr(feature = "openapi", schema(example = "testcard"))]
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// Always 0, as a configured model has no date: the field is part of OpenAI's shape.
    pub created: u64,
    /// Always `rayreel`.
    pub owned_by: String,
    /// Other names by which requests may call it.
    pub aliases: Vec<String>,
    /// True if requests that name no model get this one.
    pub default: bool,
    /// True if no model runs: it draws a synthetic test pattern.
    pub test_pattern: bool,
    /// The images that it takes with a request.
    pub images: Images,
    /// True if it makes videos of images: a request without one is refused.
    #[serde(default)]
    pub image_required: bool,
    /// Names of the LoRAs that requests to it may name.
    #[serde(default)]
    pub loras: Vec<String>,
    /// What may be asked of it.
    pub limits: Limits,
    /// What is taken where a request is silent.
    pub defaults: Defaults,
}

/// Every model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelList {
    /// Always `list`.
    pub object: String,
    pub data: Vec<ModelBody>,
}
