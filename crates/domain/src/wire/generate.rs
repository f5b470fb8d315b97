//! The body of `POST /generate`: the request of Wan2.2's `generate.py`, as services around it take
//! it.

use alloc::string::String;

use serde::{Deserialize, Serialize};

/// Body of `POST /generate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GenerateBody {
    /// Name of a model, or an alias such as `i2v-A14B`; the configured default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What to show; up to 10,000 characters. Required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(required = true, example = "a beautiful cat"))]
    pub prompt: Option<String>,
    /// Name of the same model, or the path of its checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ckpt_dir: Option<String>,
    /// First frame: the path of a PNG or JPEG below one of the server's `input_roots`, or a data URI
    /// (`data:image/png;base64,…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Pixels, `832*480` or `832x480`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "832*480"))]
    pub size: Option<String>,
}
