//! A lease is an attempt's right to report; its fence is the proof of it.
//!
//! Safety rests on the fence alone: whatever a worker sends is compared with the stored (attempt,
//! nonce), so a worker that comes back from the dead changes nothing. When a lease is lost is
//! decided by the rescuer, on its own monotonic clock: see [`lost`].

use alloc::format;
use alloc::string::String;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::{Nonce, TaskId, WorkerName};
use crate::time::Timestamp;

/// Names one attempt of one task. The counter only rises; the nonce is random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Fence {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub task: TaskId,
    pub attempt: u32,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub nonce: Nonce,
}

impl Fence {
    /// Folder of the attempt's files in the artifact store: no two attempts share one, and the
    /// name, which a client may see, does not give the nonce away.
    pub fn folder(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.attempt.to_be_bytes());
        hash.update(self.nonce.0.to_be_bytes());
        let digest = hash.finalize();
        let name = digest[..8].iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        format!("{}/{name:016x}", self.task)
    }
}

/// Who holds a running task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub nonce: Nonce,
    pub worker: WorkerName,
    /// Registration of the worker that claimed.
    pub incarnation: u64,
    /// Number of the claim in that registration; the same number gets the same answer again.
    pub seq: u64,
    pub claimed_at: Timestamp,
    /// True once the worker has beaten: it did receive the task.
    pub confirmed: bool,
    /// Virtual GPU-milliseconds charged to the tenant at the claim.
    pub charged_ms: u64,
}

/// How long a lease may stay without a beat before it is lost, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// After the first beat.
    pub lease_ms: u64,
    /// Before it: the answer to the claim may never have arrived.
    pub first_ms: u64,
    /// Starts of the server that a lease may survive without a beat in between.
    pub max_graces: u32,
}

impl Default for Terms {
    fn default() -> Self {
        Self { lease_ms: 30_000, first_ms: 5_000, max_graces: 5 }
    }
}

/// Is a lease lost whose beat counter the rescuer itself has watched unchanged for `unchanged_ms`
/// of its own monotonic clock? A rescuer that has just started has watched for 0 ms, so every
/// lease gets a full grace period after a restart; `graces` counts the restarts since the last
/// beat, so that a server in a crash loop cannot extend a lease for ever.
pub fn lost(terms: Terms, confirmed: bool, graces: u32, unchanged_ms: u64) -> bool {
    let allowed = if confirmed && graces <= terms.max_graces {
        terms.lease_ms
    } else {
        terms.first_ms.min(terms.lease_ms)
    };
    unchanged_ms >= allowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_has_a_folder_of_its_own() {
        let task = TaskId::new(1, [1; 10]);
        let fence = Fence { task, attempt: 1, nonce: Nonce(7) };
        let folder = fence.folder();
        assert!(folder.starts_with(&format!("{task}/")));
        assert!(!folder.contains("0000000000000007"), "the nonce stays secret");
        assert_ne!(folder, Fence { attempt: 2, ..fence }.folder());
        assert_ne!(folder, Fence { nonce: Nonce(8), ..fence }.folder());
    }

    const TERMS: Terms = Terms { lease_ms: 30_000, first_ms: 5_000, max_graces: 5 };

    #[test]
    fn a_confirmed_lease_lives_for_its_full_length() {
        assert!(!lost(TERMS, true, 0, 29_999));
        assert!(lost(TERMS, true, 0, 30_000));
    }

    #[test]
    fn a_claim_whose_answer_was_lost_is_given_back_after_five_seconds() {
        assert!(!lost(TERMS, false, 0, 4_999));
        assert!(lost(TERMS, false, 0, 5_000));
    }

    #[test]
    fn a_crash_loop_does_not_extend_a_lease_for_ever() {
        assert!(!lost(TERMS, true, 5, 5_000));
        assert!(lost(TERMS, true, 6, 5_000));
    }

    #[test]
    fn a_short_lease_is_never_lengthened_by_the_first_term() {
        let terms = Terms { lease_ms: 300, ..TERMS };
        assert!(lost(terms, false, 0, 300));
    }
}
