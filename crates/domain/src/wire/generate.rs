//! The body of `POST /generate`: the request of Wan2.2's `generate.py`, as services around it take
//! it.

use alloc::string::String;

use serde::{Deserialize, Serialize};

/// Body of `POST /generate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GenerateBody {
    /// Name of a model, or an alias such as `i2v-A14B` if the server's configuration gives a model
    /// that one; the configured default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What to show; up to 10,000 characters. Required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(
            value_type = String, required = true, min_length = 1, max_length = 10_000,
            example = "a beautiful cat"
        )
    )]
    pub prompt: Option<String>,
    /// Name of the same model, or the path of its checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ckpt_dir: Option<String>,
    /// First frame, a PNG, JPEG or WebP: its path below one of the server's `input_roots`, an
    /// https:// URL, a data URI (`data:image/png;base64,…`), or the id of an uploaded file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Pixels, `832*480` or `832x480`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "832*480"))]
    pub size: Option<String>,
}
