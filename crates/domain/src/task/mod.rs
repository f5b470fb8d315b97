//! A task and its only transitions.
//!
//! ```text
//! queued ──claim──▶ running ──commit──▶ succeeded
//!   ▲ │ │              │ │ ├─fail, no try left──▶ failed
//!   │ │ └─expire──▶ expired│ └─cancel──▶ cancelled ◀──cancel── queued
//!   │ └────────────────┘ │
//!   └──fail, lose, release, unconfirmed
//! ```
//!
//! A [`Task`] reads like its [`Record`] and changes only by the methods here. Each method either
//! refuses and changes nothing, or answers with the [`Effect`] that the store must write in the
//! same transaction. Failures that a worker reports and losses (a lease that ran out) are counted
//! apart, each with its own limit; being given back costs nothing, up to a bound.

mod record;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::code::Code;
use crate::id::{Nonce, WorkerName};
use crate::lease::{Fence, Lease};
use crate::time::Timestamp;

pub use record::{
    Attempt, Change, Failure, Idempotency, MAX_DETAIL, MAX_MESSAGE, Outcome, Output, Priority,
    Record, State,
};

/// How often a task is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Failures reported by workers until the task is `failed`.
    pub max_failures: u32,
    /// Leases that ran out until the task is `failed`.
    pub max_losses: u32,
    /// Times that workers may give the task back uncharged.
    pub max_releases: u32,
    /// Wait before the second try; it doubles with each failure.
    pub backoff_ms: u64,
    pub max_backoff_ms: u64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_failures: 3,
            max_losses: 5,
            max_releases: 20,
            backoff_ms: 1_000,
            max_backoff_ms: 60_000,
        }
    }
}

impl Rules {
    /// Exponential backoff with full jitter on its upper half; `jitter` is any random number.
    fn backoff(&self, failures: u32, jitter: u64) -> u64 {
        let doubled = self.backoff_ms.saturating_mul(1 << failures.saturating_sub(1).min(20));
        let full = doubled.min(self.max_backoff_ms);
        full / 2 + jitter % (full / 2 + 1)
    }
}

/// How an attempt ended, as the store is told.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Commit(Commit),
    Fail(Failure),
    /// The worker gives the task back, uncharged, because it must go.
    Release,
    /// The lease ran out; uncharged and uncounted if it was never confirmed.
    Lose,
    /// The answer to the claim never reached the worker, or the worker is known to be gone.
    /// Uncharged, like a release.
    Vanish,
}

/// A finished attempt's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    pub outputs: Vec<Output>,
    pub metrics: BTreeMap<String, f64>,
    pub test_pattern: bool,
}

/// Who claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    pub worker: WorkerName,
    pub incarnation: u64,
    pub seq: u64,
}

/// What a store writes besides the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effect {
    /// To add to the tenant's account in GPU-milliseconds.
    pub charge_ms: i64,
    /// The attempt whose files are now garbage.
    pub garbage: Option<Fence>,
}

/// Why a transition is refused; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The very same call was made before and took effect.
    #[error("already done")]
    Repeated,
    /// The fence is not that of the live attempt.
    #[error("the attempt does not hold the task any more")]
    Stale {
        /// True if that is because the task was cancelled.
        cancelled: bool,
    },
    /// The task is in a state in which this can't be.
    #[error("the task is {0}")]
    State(State),
}

/// A task: a [`Record`] that only this module can change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Task(Record);

impl Deref for Task {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.0
    }
}

impl Task {
    /// A new task, queued.
    pub fn new(mut record: Record) -> Self {
        record.state = State::Queued;
        record.note(record.created_at, None);
        Self(record)
    }

    /// Gives the task to a worker.
    pub fn claim(&mut self, by: Claimant, nonce: Nonce, now: Timestamp) -> Result<Effect, Refusal> {
        let task = &mut self.0;
        if task.state != State::Queued {
            return Err(Refusal::State(task.state));
        }
        task.attempt += 1;
        task.state = State::Running;
        task.started_at = Some(now);
        task.not_before = Timestamp::ZERO;
        task.attempts.push(Attempt {
            number: task.attempt,
            nonce,
            worker: by.worker.clone(),
            started_at: now,
            ended_at: None,
            outcome: None,
            error: None,
            metrics: BTreeMap::new(),
        });
        task.lease = Some(Lease {
            nonce,
            worker: by.worker,
            incarnation: by.incarnation,
            seq: by.seq,
            claimed_at: now,
            confirmed: false,
            charged_ms: task.estimate_ms,
        });
        task.note(now, None);
        Ok(Effect { charge_ms: i64::try_from(task.estimate_ms).unwrap_or(i64::MAX), garbage: None })
    }

    /// The first beat: the worker has the task.
    pub fn confirm(&mut self, fence: Fence) -> Result<(), Refusal> {
        self.check(fence)?;
        if let Some(lease) = &mut self.0.lease {
            lease.confirmed = true;
        }
        Ok(())
    }

    /// Keeps a task that has ended for so long, and no longer.
    pub fn keep(&mut self, keep_ms: Option<u64>) {
        if let Some(ended) = self.0.finished_at {
            self.0.delete_at = keep_ms.map(|ms| ended.plus_ms(ms));
        }
    }

    /// Ends the attempt that holds `fence`, which it has held for `held_ms`.
    pub fn end(
        &mut self,
        fence: Fence,
        end: End,
        rules: &Rules,
        held_ms: u64,
        jitter: u64,
        now: Timestamp,
    ) -> Result<Effect, Refusal> {
        if self.repeats(fence, &end) {
            return Err(Refusal::Repeated);
        }
        self.check(fence)?;
        let task = &mut self.0;
        let Some(lease) = task.lease.take() else {
            return Err(Refusal::Stale { cancelled: false });
        };
        let charged = i64::try_from(lease.charged_ms).unwrap_or(i64::MAX);
        let settle = i64::try_from(held_ms).unwrap_or(i64::MAX).saturating_sub(charged);
        let refund = Effect { charge_ms: -charged, garbage: Some(fence) };
        match end {
            End::Commit(commit) => {
                task.close(Outcome::Succeeded, None, now);
                if let Some(attempt) = task.attempts.last_mut() {
                    attempt.metrics = commit.metrics;
                }
                task.outputs = commit.outputs;
                task.test_pattern = commit.test_pattern;
                task.finish(State::Succeeded, None, now);
                Ok(Effect { charge_ms: settle, garbage: None })
            }
            End::Fail(failure) => {
                let failure = failure.bounded();
                task.close(Outcome::Failed, Some(failure.clone()), now);
                task.failures += 1;
                if failure.retryable && task.failures < rules.max_failures {
                    let wait = rules.backoff(task.failures, jitter);
                    task.requeue(now.plus_ms(wait), now, Some(failure.code));
                } else {
                    task.finish(State::Failed, Some(failure), now);
                }
                Ok(Effect { charge_ms: settle, garbage: Some(fence) })
            }
            End::Lose if lease.confirmed => {
                task.close(Outcome::Lost, None, now);
                task.losses += 1;
                if task.losses < rules.max_losses {
                    task.requeue(Timestamp::ZERO, now, Some(Code::WorkersLost));
                } else {
                    let failure = Failure::new(
                        Code::WorkersLost,
                        alloc::format!("{} workers vanished while they held the task", task.losses),
                    );
                    task.finish(State::Failed, Some(failure), now);
                }
                Ok(refund)
            }
            End::Lose | End::Vanish if !lease.confirmed => {
                // The worker never had it, so there is no attempt to tell of.
                task.attempts.pop();
                task.requeue(Timestamp::ZERO, now, None);
                Ok(refund)
            }
            End::Lose | End::Vanish | End::Release => {
                task.close(Outcome::Released, None, now);
                task.releases += 1;
                if task.releases <= rules.max_releases {
                    task.requeue(Timestamp::ZERO, now, Some(Code::Interrupted));
                } else {
                    let failure = Failure::new(
                        Code::Interrupted,
                        alloc::format!("workers gave the task back {} times", task.releases),
                    );
                    task.finish(State::Failed, Some(failure), now);
                }
                Ok(refund)
            }
        }
    }

    /// Cancels what has not ended. Terminal at once; the worker learns of it by its fence.
    pub fn cancel(&mut self, held_ms: u64, now: Timestamp) -> Result<Effect, Refusal> {
        let task = &mut self.0;
        let mut effect = Effect::default();
        match task.state {
            State::Queued => {}
            State::Running => {
                if let Some(lease) = task.lease.take() {
                    effect.garbage =
                        Some(Fence { task: task.id, attempt: task.attempt, nonce: lease.nonce });
                    effect.charge_ms = i64::try_from(held_ms)
                        .unwrap_or(i64::MAX)
                        .saturating_sub(i64::try_from(lease.charged_ms).unwrap_or(i64::MAX));
                }
                task.close(Outcome::Cancelled, None, now);
            }
            ended => return Err(Refusal::State(ended)),
        }
        let failure = Failure::new(Code::Cancelled, "the task was cancelled");
        task.finish(State::Cancelled, Some(failure), now);
        Ok(effect)
    }

    /// Ends a queued task whose deadline has passed.
    pub fn expire(&mut self, now: Timestamp) -> Result<Effect, Refusal> {
        let task = &mut self.0;
        let due = task.deadline.is_some_and(|deadline| deadline <= now);
        if task.state != State::Queued || !due {
            return Err(Refusal::State(task.state));
        }
        let failure = Failure::new(Code::Expired, "the deadline passed before a worker was free");
        task.finish(State::Expired, Some(failure), now);
        Ok(Effect::default())
    }

    /// Forgives a failed attempt: it may have been the worker's fault. Says whether anything
    /// changed; a task that has ended stays as it ended. Once in a task's life: an engine that
    /// works on other requests and fails on this one would otherwise be excused for ever.
    pub fn excuse(&mut self, fence: Fence) -> bool {
        let task = &mut self.0;
        let before = task.attempts.iter().any(|a| a.outcome == Some(Outcome::Excused));
        if task.state.is_terminal() || before {
            return false;
        }
        let Some(attempt) = task.attempts.iter_mut().find(|a| {
            a.number == fence.attempt
                && a.nonce == fence.nonce
                && a.outcome == Some(Outcome::Failed)
        }) else {
            return false;
        };
        attempt.outcome = Some(Outcome::Excused);
        task.failures = task.failures.saturating_sub(1);
        true
    }

    /// The fence of the live attempt.
    pub fn fence(&self) -> Option<Fence> {
        let lease = self.lease.as_ref()?;
        Some(Fence { task: self.id, attempt: self.attempt, nonce: lease.nonce })
    }

    /// Does this attempt hold the task?
    pub fn check(&self, fence: Fence) -> Result<(), Refusal> {
        if self.fence() == Some(fence) {
            return Ok(());
        }
        let cancelled = self.state == State::Cancelled
            && self.attempts.iter().any(|a| {
                a.number == fence.attempt
                    && a.nonce == fence.nonce
                    && a.outcome == Some(Outcome::Cancelled)
            });
        Err(Refusal::Stale { cancelled })
    }

    /// Was this end already applied for this fence? Then the worker missed the answer.
    fn repeats(&self, fence: Fence, end: &End) -> bool {
        let Some(attempt) =
            self.attempts.iter().find(|a| a.number == fence.attempt && a.nonce == fence.nonce)
        else {
            return false;
        };
        match (end, attempt.outcome) {
            (End::Commit(commit), Some(Outcome::Succeeded)) => commit.outputs == self.outputs,
            (End::Fail(_), Some(Outcome::Failed | Outcome::Excused))
            | (End::Release, Some(Outcome::Released)) => true,
            _ => false,
        }
    }
}
