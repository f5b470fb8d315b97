//! The admin API: bodies of `/v1/admin/…`.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::key::{KeyRecord, Scope};

/// Where keys are made.
pub const KEYS_PATH: &str = "/v1/admin/keys";
/// Where tenants are seen.
pub const TENANTS_PATH: &str = "/v1/admin/tenants";

/// Body of `POST /v1/admin/keys`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateKey {
    /// What it is for, in your words; up to 100 characters.
    #[serde(default)]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "the web shop", max_length = 100, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")
    )]
    pub name: String,
    /// Whose tasks it makes and sees; `default` when absent. Workers serve every tenant: of a key
    /// that is good for `worker` alone it is only a note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "acme", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    )]
    pub tenant: Option<String>,
    /// `submit` and `read` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(min_items = 1))]
    pub scopes: Option<Vec<Scope>>,
    /// The only pool whose workers it is good for; only with the scope `worker`. Every pool when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "local", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    )]
    pub pool: Option<String>,
    /// Days from now on after which it is refused; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 36500))]
    pub expires_in_days: Option<u32>,
}

/// A key without its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyBody {
    /// The part of the key after `rr_`, up to the next `_`.
    pub id: String,
    pub name: String,
    pub tenant: String,
    pub scopes: Vec<Scope>,
    /// The only pool whose workers it is good for.
    #[serde(default)]
    pub pool: Option<String>,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds.
    pub expires_at: Option<u64>,
    /// Unix seconds; a revoked key stays in the list and is refused.
    pub revoked_at: Option<u64>,
    /// The key itself, in the answer to its creation and never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl From<&KeyRecord> for KeyBody {
    fn from(record: &KeyRecord) -> Self {
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            tenant: record.tenant.as_str().into(),
            scopes: record.scopes.iter().copied().collect(),
            pool: record.pool.as_ref().map(|pool| pool.as_str().into()),
            created_at: record.created_at.0 / 1000,
            expires_at: record.expires_at.map(|at| at.0 / 1000),
            revoked_at: record.revoked_at.map(|at| at.0 / 1000),
            key: None,
        }
    }
}

/// Answer to `GET /v1/admin/keys`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyList {
    /// Oldest first. The key of RAYREEL_ADMIN_KEY is not among them.
    pub data: Vec<KeyBody>,
    /// Does every request need a key? So it is from the first one on, whatever became of it.
    #[serde(default)]
    pub locked: bool,
}

/// A tenant: its terms, and what it uses now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantBody {
    pub name: String,
    /// Has it terms of its own, `[tenants.NAME]`? Without, it has those of `default`.
    pub configured: bool,
    pub limits: TenantLimits,
    pub usage: TenantUsage,
}

/// What a tenant may use, as it stands in the configuration; null is without a limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantLimits {
    /// Its share of a pool: twice the weight gets twice the GPU time.
    pub weight: f64,
    pub tasks_per_minute: Option<u32>,
    pub max_queued: Option<u64>,
    pub max_running: Option<u64>,
    pub gpu_seconds_per_day: Option<u64>,
    /// Tasks that have ended are deleted after so many days.
    pub keep_days: Option<f64>,
    /// Bytes that its uploaded files may take.
    pub max_file_bytes: u64,
}

/// What a tenant uses now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantUsage {
    pub queued: u64,
    pub running: u64,
    /// Estimate of what is queued.
    pub queued_gpu_seconds: f64,
    /// Charged today (UTC): the estimate while a task runs, what it took afterwards.
    pub gpu_seconds_today: f64,
    /// Tasks submitted within the last minute, since the server's start.
    pub tasks_last_minute: u64,
    /// Bytes of its uploaded files, as their limit counts them.
    pub file_bytes: u64,
    /// Keys that are in force.
    pub keys: u64,
}

/// Answer to `GET /v1/admin/tenants`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantList {
    /// By their names.
    pub data: Vec<TenantBody>,
}
