//! Tenants: `[tenants.NAME]`.

use rayreel_domain::schedule::UNIT_WEIGHT;
use rayreel_domain::tenant::{Tenancy, Terms};
use serde::{Deserialize, Serialize};

use super::Settings;
use super::tree::Node;
use crate::keyring::DEFAULT_TENANT;

/// Who shares the GPUs with others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub weight: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks_per_minute: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queued: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_seconds_per_day: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_days: Option<f64>,
}

impl Tenant {
    fn terms(&self) -> Terms {
        Terms {
            weight: (self.weight * f64::from(UNIT_WEIGHT)).round() as u32,
            per_minute: self.tasks_per_minute,
            queued: self.max_queued,
            running: self.max_running,
            day_ms: self.gpu_seconds_per_day.map(|seconds| seconds * 1000),
            keep_ms: self.keep_days.map(|days| (days * 86_400_000.0).round() as u64),
        }
    }
}

impl Settings {
    /// The terms of all tenants: those that are not named have the default one's.
    pub fn tenancy(&self) -> Tenancy {
        let own = self.tenants.iter().map(|(name, tenant)| (name.clone(), tenant.terms()));
        let common = self.tenants.iter().find(|(name, _)| name.as_str() == DEFAULT_TENANT);
        Tenancy {
            common: common.map(|(_, tenant)| tenant.terms()).unwrap_or_default(),
            own: own.collect(),
        }
    }
}

/// Gives every tenant what the default one has.
pub(super) fn inherit(tree: &mut Node) {
    let Some(template) = tree.get(&["tenants", DEFAULT_TENANT]).cloned() else { return };
    let tenants = tree.entries_mut().and_then(|entries| entries.get_mut("tenants"));
    if let Some(tenants) = tenants.and_then(Node::entries_mut) {
        tenants.values_mut().for_each(|tenant| tenant.underlay(&template));
    }
}
