//! Files that a tenant has uploaded, to be named in requests.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::id::{FileId, TenantName};
use crate::request::Input;
use crate::time::Timestamp;

/// Longest name of a file, in characters.
pub const MAX_FILENAME: usize = 255;

/// An uploaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub id: FileId,
    pub tenant: TenantName,
    /// As the caller has named it; never a path of ours.
    pub filename: String,
    pub purpose: String,
    pub input: Input,
    pub created_at: Timestamp,
    /// From then on it does not exist; tasks that were submitted with it keep their image.
    pub expires_at: Timestamp,
}
