//! Refusals: one way from whatever went wrong to the code that the caller sees.

use std::borrow::Cow;
use std::fmt;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode, header};
use rayreel_domain::Code;
use rayreel_domain::request::{self, Invalid};
use rayreel_domain::tenant::{Exceeded, Limit};
use rayreel_domain::wire::api::{ErrorBody, ErrorDetail};

use crate::{artifacts, store};

/// Longest message and param that are sent, in characters: both may quote the caller.
const MAX_MESSAGE: usize = 1_000;
const MAX_PARAM: usize = 100;

/// When to try again what never fits: after the limits may have changed.
const NEVER_MS: u64 = 3_600_000;

/// Why a request is refused.
#[derive(Debug, Clone)]
pub(super) struct Error(Box<Refusal>);

#[derive(Debug, Clone)]
struct Refusal {
    code: Code,
    status: StatusCode,
    message: Cow<'static, str>,
    param: Option<Cow<'static, str>>,
    header: Option<(HeaderName, HeaderValue)>,
    /// For the log; it never leaves the server.
    internal: Option<String>,
}

impl Error {
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Refusal {
            code,
            status: StatusCode::from_u16(code.status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            message: message.into(),
            param: None,
            header: None,
            internal: None,
        }))
    }

    /// Names the field at fault.
    pub(super) fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.0.param = Some(param.into());
        self
    }

    /// Calls a field by the name that it has in another shape of the API.
    pub(super) fn spelt(mut self, native: &str, name: &'static str) -> Self {
        if self.0.param.as_deref() == Some(native) {
            self.0.param = Some(name.into());
        }
        let quoted = format!("`{native}`");
        if self.0.message.contains(&quoted) {
            self.0.message = self.0.message.replace(&quoted, &format!("`{name}`")).into();
        }
        self
    }

    /// Answers with another status than the code's own: HTTP has some that say more.
    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    /// Sends a header along.
    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    /// Tells the log what the caller isn't told.
    pub(super) fn because(mut self, cause: impl fmt::Display) -> Self {
        self.0.internal = Some(cause.to_string());
        self
    }

    pub(super) fn invalid(
        param: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(Code::InvalidValue, message).param(param)
    }

    pub(super) fn internal(cause: impl fmt::Display) -> Self {
        Self::new(Code::Internal, "something went wrong on the server; its log has the request id")
            .because(cause)
    }

    pub(super) fn no_task() -> Self {
        Self::new(Code::TaskNotFound, "there is no task with this id, or it has been deleted")
    }

    /// A tenant's limit, and when it lets more in.
    fn retry_after_ms(self, ms: u64) -> Self {
        self.header(RETRY_AFTER, ms.div_ceil(1000).max(1).into())
    }

    fn limit(exceeded: Exceeded) -> Self {
        let Exceeded { limit, allowed, retry_ms } = exceeded;
        let (param, message) = match limit {
            Limit::PerMinute => {
                ("tasks_per_minute", format!("your tenant may submit {allowed} tasks a minute"))
            }
            Limit::Queued => ("max_queued", format!("your tenant may have {allowed} tasks queued")),
            Limit::GpuSecondsADay => {
                let seconds = allowed / 1000;
                ("gpu_seconds_per_day", format!("your tenant may use {seconds} GPU-seconds a day"))
            }
        };
        Self::beyond(param, message, retry_ms)
    }

    /// A limit of the tenant's is reached.
    fn beyond(param: &'static str, message: String, retry_ms: Option<u64>) -> Self {
        // Who asks for more than there is must ask for less, or the operator for a higher limit.
        let (retry_ms, message) = match retry_ms {
            Some(retry_ms) => (retry_ms, message),
            None => (NEVER_MS, format!("{message}; this request alone is more")),
        };
        Self::new(Code::LimitReached, message).param(param).retry_after_ms(retry_ms)
    }

    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Is it for the operator to know? That much was sent at once is the callers' affair.
    pub(super) fn is_fault(&self) -> bool {
        let ours = !matches!(self.0.code, Code::ServerBusy | Code::WaitExceeded);
        ours && self.status().is_server_error()
    }

    /// Seconds after which another try makes sense.
    fn retry_after(&self) -> Option<u32> {
        match self.0.code {
            Code::QueueFull | Code::StorageFull => Some(10),
            Code::ServerBusy => Some(1),
            Code::StoreUnavailable | Code::OutcomeUnknown => Some(2),
            _ => None,
        }
    }

    /// What to log.
    pub(super) fn cause(&self) -> &str {
        self.0.internal.as_deref().unwrap_or(&self.0.message)
    }

    /// The answer that the caller gets.
    pub(super) fn render(&self, request_id: &str) -> Response {
        let refusal = &*self.0;
        let bounded = |text: &str, max| text.chars().take(max).collect::<String>();
        let body = ErrorBody {
            error: ErrorDetail {
                code: refusal.code.name().to_owned(),
                message: bounded(&refusal.message, MAX_MESSAGE),
                param: refusal.param.as_deref().map(|param| bounded(param, MAX_PARAM)),
                kind: refusal.code.entry().kind.as_str().to_owned(),
                request_id: request_id.to_owned(),
            },
        };
        let text = serde_json::to_vec(&body).expect("strings are JSON");
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some((name, value)) = &refusal.header {
            headers.insert(name.clone(), value.clone());
        }
        response
    }
}

impl IntoResponse for Error {
    /// The gate writes the body: it knows the request id.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        use store::Error as Store;
        match error {
            Store::NotFound => Self::no_task(),
            Store::StaleLease { cancelled: true } => {
                Self::new(Code::StaleLease, "the task was cancelled")
            }
            Store::StaleLease { cancelled: false } => {
                Self::new(Code::StaleLease, "the attempt does not hold the task any more")
            }
            Store::StaleWorker => Self::new(
                Code::StaleWorker,
                "this registration was replaced by a newer one, or is unknown",
            ),
            Store::IdempotencyMismatch => Self::new(
                Code::IdempotencyMismatch,
                "this idempotency key was used with another request",
            )
            .param("Idempotency-Key"),
            Store::Deleted { task } => Self::new(
                Code::TaskDeleted,
                format!("this idempotency key made {task}, which has been deleted"),
            )
            .param("Idempotency-Key"),
            Store::DeadlinePassed { now } => request::past_deadline(now).into(),
            Store::QueueFull { queued } => {
                Self::new(Code::QueueFull, format!("the queue is full: {queued} tasks wait"))
            }
            Store::Limit(exceeded) => Self::limit(exceeded),
            Store::FilesFull { allowed, retry_ms } => {
                let message = format!("your tenant's files may have {allowed} bytes together");
                Self::beyond("inputs.max_tenant_bytes", message, retry_ms)
            }
            Store::InputGone => {
                Self::invalid("image", "the image is not kept any more; send it again")
            }
            Store::Unavailable(cause) => Self::new(
                Code::StoreUnavailable,
                "the task store is not available just now; nothing was stored",
            )
            .because(cause),
            Store::OutcomeUnknown(cause) => Self::new(
                Code::OutcomeUnknown,
                "the task store failed in the middle; repeat the call, with the same \
                 Idempotency-Key if it is a submit",
            )
            .because(cause),
            Store::Corrupt(cause) => Self::new(
                Code::StoreCorrupt,
                "the database is damaged; what can still be read is served",
            )
            .because(cause),
            error @ Store::TooNew { .. } => Self::internal(error),
        }
    }
}

impl From<artifacts::Error> for Error {
    fn from(error: artifacts::Error) -> Self {
        match error {
            artifacts::Error::Full => {
                Self::new(Code::StorageFull, "the artifact store has no space left")
            }
            artifacts::Error::Unavailable(cause) | artifacts::Error::Unusable(cause) => Self::new(
                Code::StoreUnavailable,
                "the artifact store is not available just now; nothing is lost",
            )
            .because(cause),
            artifacts::Error::Mismatch(message) => Self::new(Code::UploadMismatch, message),
            artifacts::Error::Interrupted(cause) => {
                Self::new(Code::UploadMismatch, "the upload stopped in the middle").because(cause)
            }
            error @ (artifacts::Error::NotFound | artifacts::Error::Other(_)) => {
                Self::internal(error)
            }
        }
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::new(invalid.code, invalid.message).param(invalid.param)
    }
}
