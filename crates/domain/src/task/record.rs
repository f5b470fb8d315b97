//! What a task consists of.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::code::Code;
use crate::id::{ModelName, Nonce, PoolName, TaskId, TenantName, WorkerName};
use crate::lease::Lease;
use crate::request::Request;
use crate::time::Timestamp;
use crate::webhook::Webhook;
use crate::wire::engine::Role;

/// Longest message of a failure, in characters.
pub const MAX_MESSAGE: usize = 2_000;
/// Longest detail of a failure (the engine's last lines), in characters.
pub const MAX_DETAIL: usize = 8_000;
/// Newest state changes that are kept with a task.
const MAX_HISTORY: usize = 100;

/// Where a task is. On the wire in upper case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum State {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
}

impl State {
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        }
    }

    /// Reads a state in upper or lower case.
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(text))
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// 1 (last) to 5 (first), within one tenant; 3 unless asked otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(u8);

impl Priority {
    pub fn new(value: u8) -> Option<Self> {
        (1..=5).contains(&value).then_some(Self(value))
    }

    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(3)
    }
}

impl TryFrom<u8> for Priority {
    type Error = &'static str;

    fn try_from(value: u8) -> Result<Self, Self::Error> {
        Self::new(value).ok_or("a priority is 1 to 5")
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> u8 {
        priority.0
    }
}

/// Reads a length, which the first versions kept as a number.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Kept {
        Number(f64),
        Text(String),
    }
    Ok(Option::<Kept>::deserialize(deserializer)?.map(|kept| match kept {
        Kept::Number(number) => number.to_string(),
        Kept::Text(text) => text,
    }))
}

/// Everything known of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: TaskId,
    pub tenant: TenantName,
    pub pool: PoolName,
    pub model: ModelName,
    pub request: Request,
    pub priority: Priority,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Idempotency>,
    /// The tasks that were submitted with this one, if it is the first of several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub siblings: Vec<TaskId>,
    /// The task whose request this one repeats with another prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remixed_from: Option<TaskId>,
    /// The length in seconds as it was asked for; the frames are the nearest that there are.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text_or_number")]
    pub seconds: Option<String>,
    /// GPU-milliseconds that the task is expected to take.
    pub estimate_ms: u64,
    pub created_at: Timestamp,
    /// A task that is still queued then expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Who is told of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    pub state: State,
    /// A queued task waits until then; zero for at once.
    #[serde(default)]
    pub not_before: Timestamp,
    /// Number of the newest attempt; 0 before the first.
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    #[serde(default)]
    pub failures: u32,
    #[serde(default)]
    pub losses: u32,
    #[serde(default)]
    pub releases: u32,
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    #[serde(default)]
    pub history: Vec<Change>,
    #[serde(default)]
    pub outputs: Vec<Output>,
    /// True if no model ran: the result is a synthetic pattern.
    #[serde(default)]
    pub test_pattern: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// Start of the newest attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// When the task, which has ended, is deleted; none for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_at: Option<Timestamp>,
}

impl Record {
    /// A task that is queued, of which nothing is asked beyond its request; no work is estimated.
    pub fn new(
        id: TaskId,
        tenant: TenantName,
        pool: PoolName,
        model: ModelName,
        request: Request,
        created_at: Timestamp,
    ) -> Self {
        Self {
            id,
            tenant,
            pool,
            model,
            request,
            priority: Priority::default(),
            idempotency: None,
            siblings: Vec::new(),
            remixed_from: None,
            seconds: None,
            estimate_ms: 0,
            created_at,
            deadline: None,
            webhook: None,
            state: State::Queued,
            not_before: Timestamp::ZERO,
            attempt: 0,
            lease: None,
            failures: 0,
            losses: 0,
            releases: 0,
            attempts: Vec::new(),
            history: Vec::new(),
            outputs: Vec::new(),
            test_pattern: false,
            error: None,
            started_at: None,
            finished_at: None,
            delete_at: None,
        }
    }
}

/// The caller's key, under which a repeated submit finds its task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    pub key: String,
    /// Hash of the request, hexadecimal: the same key with another request is refused.
    pub request: String,
}

/// One claim of the task by a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub number: u32,
    pub nonce: Nonce,
    pub worker: WorkerName,
    pub started_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Outcome {
    Succeeded,
    Failed,
    /// Failed, and not counted: the worker failed others as well and was quarantined.
    Excused,
    Lost,
    Released,
    Cancelled,
}

/// A change of state. The sequence number rises by one with each and never starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub seq: u32,
    pub at: Timestamp,
    pub state: State,
    pub attempt: u32,
    /// Why a running task was queued again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Code>,
}

/// One file of the result, as the worker uploaded it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Output {
    /// Position among the outputs; the main one is 0.
    pub index: u32,
    pub role: Role,
    pub media_type: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
    pub width: u32,
    pub height: u32,
    pub frames: u32,
    pub fps: u32,
}

/// Why an attempt, or a whole task, failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    /// The engine's last lines, or what else helps to find the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// May another try of the same request succeed?
    #[serde(default)]
    pub retryable: bool,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, retryable: false }
    }

    pub(super) fn bounded(mut self) -> Self {
        truncate_start(&mut self.message, MAX_MESSAGE, false);
        if let Some(detail) = &mut self.detail {
            truncate_start(detail, MAX_DETAIL, true);
        }
        self
    }
}

/// Cuts a text to so many characters; of a log the end is what matters.
fn truncate_start(text: &mut String, max: usize, keep_end: bool) {
    let count = text.chars().count();
    if count <= max {
        return;
    }
    *text = if keep_end {
        text.chars().skip(count - max).collect()
    } else {
        text.chars().take(max).collect()
    };
}

impl Record {
    /// Workers that failed this task: others are preferred for the next try.
    pub fn avoided(&self) -> impl Iterator<Item = &WorkerName> {
        self.attempts.iter().filter(|a| a.outcome == Some(Outcome::Failed)).map(|a| &a.worker)
    }

    /// Sequence number of the newest change.
    pub fn seq(&self) -> u32 {
        self.history.last().map_or(0, |change| change.seq)
    }

    pub(super) fn note(&mut self, at: Timestamp, reason: Option<Code>) {
        let seq = self.seq() + 1;
        if self.history.len() >= MAX_HISTORY {
            self.history.remove(0);
        }
        self.history.push(Change { seq, at, state: self.state, attempt: self.attempt, reason });
    }

    pub(super) fn close(&mut self, outcome: Outcome, error: Option<Failure>, now: Timestamp) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.ended_at = Some(now);
            attempt.outcome = Some(outcome);
            attempt.error = error;
        }
    }

    pub(super) fn requeue(&mut self, not_before: Timestamp, now: Timestamp, reason: Option<Code>) {
        self.state = State::Queued;
        self.not_before = not_before;
        self.started_at = None;
        self.note(now, reason);
    }

    pub(super) fn finish(&mut self, state: State, error: Option<Failure>, now: Timestamp) {
        self.state = state;
        self.error = error;
        self.finished_at = Some(now);
        self.lease = None;
        self.note(now, None);
    }
}
