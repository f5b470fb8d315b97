//! Uploaded files, in OpenAI's shape.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::file::FileRecord;

/// Path of the files.
pub const FILES_PATH: &str = "/v1/files";

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileBody {
    /// Name it as `image` of a request.
    #[cfg_attr(feature = "openapi", schema(example = "file_018bcfe5680070707070707070707070"))]
    pub id: String,
    /// `file`.
    #[cfg_attr(feature = "openapi", schema(example = "file"))]
    pub object: String,
    /// Of the image as it is stored.
    pub bytes: u64,
    /// Unix time in seconds.
    pub created_at: u64,
    /// Unix time in seconds.
    pub expires_at: u64,
    /// As it was sent.
    #[cfg_attr(feature = "openapi", schema(example = "fox.jpg"))]
    pub filename: String,
    /// As it was sent.
    #[cfg_attr(feature = "openapi", schema(example = "vision"))]
    pub purpose: String,
    /// `processed`.
    #[cfg_attr(feature = "openapi", schema(example = "processed"))]
    pub status: String,
}

impl FileBody {
    pub fn new(file: &FileRecord) -> Self {
        Self {
            id: file.id.to_string(),
            object: "file".to_string(),
            bytes: file.input.bytes,
            created_at: file.created_at.unix_seconds(),
            expires_at: file.expires_at.unix_seconds(),
            filename: file.filename.clone(),
            purpose: file.purpose.clone(),
            status: "processed".to_string(),
        }
    }
}

/// A page of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileList {
    /// `list`.
    pub object: String,
    pub data: Vec<FileBody>,
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub first_id: Option<String>,
    /// `after` of the next page.
    #[cfg_attr(feature = "openapi", schema(required = true))]
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// Says that a file is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileDeleted {
    pub id: String,
    /// `file`.
    pub object: String,
    pub deleted: bool,
}

/// The form of an upload, for the documentation.
#[derive(Debug)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileForm {
    /// A PNG, JPEG or WebP.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Binary))]
    pub file: Vec<u8>,
    /// What it is for, in a word; `vision` when absent.
    pub purpose: Option<String>,
    /// When it is deleted, if not after the time that the operator sets; never later than that.
    pub expires_after: Option<ExpiresAfter>,
}

/// A time to live. In the form, `expires_after[anchor]` and `expires_after[seconds]`.
#[derive(Debug)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExpiresAfter {
    pub anchor: Anchor,
    /// From 3600 up to the time that the operator sets.
    #[cfg_attr(feature = "openapi", schema(example = 86_400, minimum = 1))]
    pub seconds: u64,
}

/// What a time to live counts from.
#[derive(Debug)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(rename_all = "snake_case"))]
pub enum Anchor {
    CreatedAt,
}
