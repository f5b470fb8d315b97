//! What can go wrong with a call.

use std::fmt;
use std::io;
use std::time::Duration;

use rayreel_domain::Code;

/// Why a call has not done what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server has understood, and refuses.
    #[error(transparent)]
    Api(Box<ApiError>),
    /// No answer, or not all of it, has come.
    #[error(transparent)]
    Transport(Transport),
    /// What answers is not a rayreel server: another program, or a proxy before it.
    #[error("{message}")]
    Answer {
        /// HTTP status of the answer.
        status: u16,
        /// What is wrong with the answer.
        message: String,
        /// When another try makes sense, if the answer says so.
        retry_after: Option<Duration>,
    },
    /// A file has arrived that is not the one that was announced.
    #[error(
        "the file that arrived is not the one that was announced: its SHA-256 is {got}, not {expected}"
    )]
    Checksum {
        /// The announced SHA-256, in hexadecimal digits.
        expected: String,
        /// That of the bytes that came.
        got: String,
    },
    /// A file could not be written to where it should go.
    #[error("the file can't be written: {0}")]
    Write(#[source] io::Error),
    /// The address can't be that of a server.
    #[error(
        "`{address}` is not the address of a server ({fault}); write it as http://127.0.0.1:8088"
    )]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        fault: AddressFault,
    },
    /// The key has characters that no key has.
    #[error("the key has characters that no key has")]
    Key,
    /// The HTTP client can't be set up.
    #[error("the HTTP client can't be set up: {0}")]
    Setup(String),
}

/// A refusal, as the server words it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// The row of the table of codes. A code that is newer than this client counts as the one that
    /// its status means.
    pub code: Code,
    /// Name of the code, as it was sent.
    pub name: String,
    /// What was wrong, and what to do.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Under which the server's log has the call.
    pub request_id: Option<String>,
    /// When another try makes sense, if the server says so.
    pub retry_after: Option<Duration>,
}

/// How the way to the server has failed, in words and in kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transport {
    /// What has happened.
    pub kind: TransportKind,
    /// The same for people; it names the address.
    pub message: String,
}

/// How the way to the server has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportKind {
    /// Nothing listens at the address: the call has not been made.
    Refused,
    /// A server takes the call, but has not answered in time.
    Silent,
    /// A connection could not be made, or broke.
    Broken,
}

/// What is wrong with an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressFault {
    /// It is no URL; says why.
    #[error("{0}")]
    Malformed(String),
    /// It is a URL of something else.
    #[error("it must begin with http:// or https://")]
    Scheme,
    /// A user or a password stands in it.
    #[error("the key does not belong in it")]
    Credentials,
}

impl Error {
    /// The row of the table of codes that is nearest to it.
    pub fn code(&self) -> Code {
        match self {
            Self::Api(refusal) => refusal.code,
            Self::Transport(_) => Code::ServerUnreachable,
            Self::Answer { status, .. } => code_of(*status),
            Self::Write(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::StorageFull,
                _ => Code::Internal,
            },
            Self::Address { .. } | Self::Key => Code::InvalidValue,
            Self::Checksum { .. } | Self::Setup(_) => Code::Internal,
        }
    }

    /// The refusal, if the server has answered with one.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// When another try makes sense, if the server says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api(refusal) => refusal.retry_after,
            Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// May the very same call succeed a little later, because the server is busy, starting, or away?
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Api(refusal) => matches!(refusal.status, 429 | 503),
            // A proxy says so of the server behind it.
            Self::Answer { status, .. } => matches!(status, 429 | 502..=504),
            Self::Transport(_) => true,
            _ => false,
        }
    }

    /// Is it sure that the call has had no effect?
    pub(crate) fn is_without_effect(&self) -> bool {
        match self {
            Self::Api(refusal) => refusal.code != Code::OutcomeUnknown,
            Self::Answer { status, .. } => matches!(status, 429 | 503),
            Self::Transport(transport) => transport.kind == TransportKind::Refused,
            _ => false,
        }
    }

    pub(crate) fn transport(kind: TransportKind, message: String) -> Self {
        Self::Transport(Transport { kind, message })
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.message, self.name)?;
        if let Some(id) = &self.request_id {
            write!(f, ", request {id}")?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for ApiError {}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Transport {}

/// What a status means when no code came with it.
pub(crate) fn code_of(status: u16) -> Code {
    match status {
        401 => Code::Unauthorized,
        403 => Code::Forbidden,
        404 => Code::RouteNotFound,
        429 => Code::QueueFull,
        413 => Code::BodyTooLarge,
        502..=504 => Code::ServerUnreachable,
        _ => Code::Internal,
    }
}

/// The innermost reason, which is the one that says something.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
