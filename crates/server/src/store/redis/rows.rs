//! What stands in Redis and what scripts say, as Rust sees it. Field names are those of the scripts.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayreel_domain::id::{Nonce, TaskId, TenantName};
use rayreel_domain::lease::Fence;
use rayreel_domain::schedule::{self, Rival as DomainRival};
use rayreel_domain::task::{Claimant, State, Task};
use rayreel_domain::tenant::Tenancy;
use rayreel_domain::time::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::{Error, View};

/// Where a queued task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub(super) enum Slot {
    /// Running or ended.
    None = 0,
    Ready = 1,
    Backoff = 2,
}

impl From<u8> for Slot {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Ready,
            2 => Self::Backoff,
            _ => Self::None,
        }
    }
}

impl From<Slot> for u8 {
    fn from(slot: Slot) -> u8 {
        slot as u8
    }
}

impl Slot {
    pub(super) fn of(task: &Task) -> Self {
        match task.state {
            State::Queued if task.not_before > Timestamp::ZERO => Self::Backoff,
            State::Queued => Self::Ready,
            _ => Self::None,
        }
    }
}

/// Where a task stands in the indexes.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Place {
    pub(super) rev: u64,
    pub(super) tenant: String,
    pub(super) pool: String,
    pub(super) model: String,
    pub(super) rank: u8,
    pub(super) estimate_ms: u64,
    pub(super) format: String,
    pub(super) created: u64,
    pub(super) deadline: Option<u64>,
    pub(super) state: u8,
    pub(super) slot: Slot,
    pub(super) not_before: u64,
    pub(super) avoid: Option<String>,
    pub(super) attempt: u32,
    pub(super) delete_at: Option<u64>,
}

/// A claim that the stored task does not contain yet.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Claim {
    worker: String,
    incarnation: String,
    seq: u64,
    nonce: String,
    at: u64,
}

/// A live lease.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Live {
    /// The task's id, where all are listed.
    #[serde(default)]
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) nonce: String,
    pub(super) worker: String,
    pub(super) beats: u64,
    pub(super) confirmed: bool,
    pub(super) graces: u32,
    pub(super) since: u64,
}

impl Live {
    pub(super) fn fence(&self, task: &str) -> Result<Fence, Error> {
        Ok(Fence { task: named(task)?, attempt: self.attempt, nonce: named(&self.nonce)? })
    }
}

/// A tenant's ready tasks in a pool, and how many of them are ahead of one.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Standing {
    virtual_ms: u64,
    tasks: u64,
    ms: u64,
    ahead: u64,
}

impl Standing {
    /// Tasks that will probably start before this one. The tenant itself may be among the rivals.
    pub(super) fn position(&self, own: &TenantName, rivals: &[Rival], tenancy: &Tenancy) -> u64 {
        let rivals = rivals.iter().filter(|rival| rival.tenant != own.as_str());
        let rivals: Vec<DomainRival> = rivals
            .map(|rival| DomainRival {
                virtual_ms: rival.virtual_ms,
                weight: weight(tenancy, &rival.tenant),
                queued: rival.tasks,
                queued_ms: rival.ms,
            })
            .collect();
        let each = self.ms / self.tasks.max(1);
        let ahead_ms = self.ahead.saturating_mul(each);
        let weight = tenancy.of(own).weight;
        schedule::position(self.virtual_ms, weight, self.ahead, ahead_ms, &rivals)
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Rival {
    tenant: String,
    virtual_ms: u64,
    tasks: u64,
    ms: u64,
}

/// A task as the scripts show it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Seen {
    pub(super) body: String,
    pub(super) place: Place,
    pub(super) claim: Option<Claim>,
    pub(super) live: Option<Live>,
    pub(super) progress: Option<String>,
    pub(super) delivery: Option<String>,
    pub(super) standing: Option<Standing>,
}

impl Seen {
    /// The task with the claim that came after it was written.
    pub(super) fn task(&self) -> Result<Task, Error> {
        let mut task: Task = parsed(&self.body)?;
        if let Some(claim) = &self.claim {
            let by = Claimant {
                worker: named(&claim.worker)?,
                incarnation: number(&claim.incarnation)?,
                seq: claim.seq,
            };
            task.claim(by, named(&claim.nonce)?, Timestamp(claim.at))
                .map_err(|refusal| corrupt(&format!("{} is claimed, but {refusal}", task.id)))?;
        }
        if let (Some(live), Some(fence)) = (&self.live, task.fence())
            && live.confirmed
        {
            task.confirm(fence).map_err(|refusal| corrupt(&format!("{}: {refusal}", task.id)))?;
        }
        Ok(task)
    }
}

/// Tasks, and who else has ready ones in their pools.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Views {
    pub(super) views: Vec<Seen>,
    pub(super) rivals: Option<BTreeMap<String, Vec<Rival>>>,
    pub(super) next: Option<u64>,
    /// The task after which to list is unknown.
    pub(super) missing: bool,
    /// The worker that asks is not the registered one.
    pub(super) stale: bool,
    pub(super) worker: Option<WorkerRecord>,
}

impl Views {
    pub(super) fn shown(&self, tenancy: &Tenancy) -> Result<Vec<View>, Error> {
        self.views.iter().map(|seen| self.show(seen, tenancy)).collect()
    }

    fn show(&self, seen: &Seen, tenancy: &Tenancy) -> Result<View, Error> {
        let task = seen.task()?;
        let position = seen.standing.as_ref().map(|own| {
            let rivals = self.rivals.as_ref().and_then(|pools| pools.get(&seen.place.pool));
            own.position(&task.tenant, rivals.map_or(&[], Vec::as_slice), tenancy)
        });
        let progress = match &seen.progress {
            Some(text) if task.state == State::Running => Some(parsed(text)?),
            _ => None,
        };
        let delivery = match &seen.delivery {
            Some(text) if task.webhook.is_some() => Some(parsed(text)?),
            _ => None,
        };
        Ok(View { task: Arc::new(task), progress, position, delivery })
    }
}

fn weight(tenancy: &Tenancy, tenant: &str) -> u32 {
    tenant.parse().map_or(tenancy.common.weight, |tenant| tenancy.of(&tenant).weight)
}

/// How a worker's engine has done, and upon which revision of the worker.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct WorkerRecord {
    pub(super) name: String,
    pub(super) rev: u64,
    #[serde(default)]
    pub(super) quarantine: Vec<Barred>,
    /// Attempts that failed in a row through the engine, of different tasks, with their models.
    #[serde(default)]
    pub(super) failures: Vec<FailedAttempt>,
}

/// A model of which a worker may not have tasks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Barred {
    pub(super) model: String,
    pub(super) message: String,
    pub(super) failed_tests: u32,
    /// When the next self-test is due, on the store's steady clock.
    pub(super) due: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FailedAttempt {
    pub(super) model: String,
    pub(super) task: String,
    pub(super) attempt: u32,
    pub(super) nonce: String,
}

/// Names one attempt, in texts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FenceText {
    pub(super) task: String,
    pub(super) attempt: u32,
    pub(super) nonce: String,
}

impl From<Fence> for FenceText {
    fn from(fence: Fence) -> Self {
        Self {
            task: fence.task.to_string(),
            attempt: fence.attempt,
            nonce: fence.nonce.to_string(),
        }
    }
}

impl FenceText {
    pub(super) fn fence(&self) -> Result<Fence, Error> {
        Ok(Fence {
            task: named::<TaskId>(&self.task)?,
            attempt: self.attempt,
            nonce: named::<Nonce>(&self.nonce)?,
        })
    }
}

/// A number as Lua knows it, exactly. What is more is as good as this.
pub(super) fn exact(number: u64) -> u64 {
    number.min(1 << 53)
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::Corrupt(what.to_owned())
}

/// Reads what is stored as JSON.
pub(super) fn parsed<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Corrupt(error.to_string()))
}

/// Reads an id or a name.
pub(super) fn named<T: std::str::FromStr>(text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::Corrupt(format!("`{text}` is not what should stand there")))
}

pub(super) fn number(text: &str) -> Result<u64, Error> {
    named(text)
}
