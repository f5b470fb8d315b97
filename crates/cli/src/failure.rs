//! How a command ends that did not do what it was asked: a code from the table, in words, and the
//! exit status that goes with it.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use rayreel_client::{self as client, AddressFault, TransportKind};
use rayreel_domain::Code;
use rayreel_domain::code::Kind;
use rayreel_domain::task::MAX_MESSAGE;
use rayreel_domain::wire::api::{ErrorBody, ErrorDetail, FailureBody, TaskBody};
use rayreel_server::{config, home};

use crate::text;

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub code: Code,
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Under which the server's log has it.
    pub request_id: Option<String>,
    /// The engine's last lines and the like.
    pub detail: Option<String>,
    /// What helps here, where that is more than the code tells.
    pub help: Option<Box<str>>,
}

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Exit {
    Failed(Box<Failure>),
    /// Everything has been said, or nobody listens any more.
    Silent(u8),
}

/// Exit status after Ctrl-C, as shells have it.
pub(crate) const INTERRUPTED: u8 = 130;
/// Exit status when nobody reads standard output any more, as shells have it.
pub(crate) const BROKEN_PIPE: u8 = 141;

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
            request_id: None,
            detail: None,
            help: None,
        }
    }

    /// Says what helps.
    pub(crate) fn helped(self, help: impl Into<Box<str>>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// A value on the command line that is not allowed.
    pub(crate) fn value(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(Code::InvalidValue, message) }
    }

    /// What a task ended of, unless it succeeded.
    pub(crate) fn of_task(task: &TaskBody) -> Self {
        match &task.error {
            Some(FailureBody { code, message, detail }) => Self {
                detail: detail.clone(),
                ..Self::new(*code, format!("{}: {message}", task.id))
            },
            None => Self::new(Code::Internal, format!("{} is {}", task.id, task.status)),
        }
    }

    /// Is it that the server is not there?
    pub(crate) fn is_lost(&self) -> bool {
        self.code == Code::ServerUnreachable
    }

    /// For people: what, details, and what helps.
    pub(crate) fn text(&self) -> String {
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        let bold = Style::new().bold();
        // What others have written must not write to the terminal.
        let message = text::one_line(&self.message, MAX_MESSAGE);
        let mut text = format!("{red}error[{}]{red:#}: {message}\n", self.code);
        for line in self.detail.iter().flat_map(|detail| detail.lines()) {
            _ = writeln!(text, "  | {}", text::one_line(line, MAX_MESSAGE));
        }
        let remedy = match self.code {
            // The message has said it.
            Code::InvalidValue | Code::InvalidConfig => None,
            code => Some(code.entry().remedy),
        };
        if let Some(help) = self.help.as_deref().or(remedy) {
            _ = writeln!(text, "  {bold}help{bold:#}: {}", text::one_line(help, MAX_MESSAGE));
        }
        // Who asked for something wrong need not look into the log.
        if let (Some(id), Kind::Server | Kind::Capacity) =
            (&self.request_id, self.code.entry().kind)
        {
            _ = writeln!(text, "  {bold}request id{bold:#}: {id}");
        }
        text
    }

    /// For programs: the same body as the API's.
    pub(crate) fn body(&self) -> ErrorBody {
        let message = match &self.detail {
            Some(detail) => format!("{}\n{detail}", self.message),
            None => self.message.clone(),
        };
        ErrorBody {
            error: ErrorDetail {
                code: self.code.name().to_owned(),
                message,
                param: self.param.clone(),
                kind: self.code.entry().kind.as_str().to_owned(),
                request_id: self.request_id.clone().unwrap_or_default(),
            },
        }
    }
}

impl From<Failure> for Exit {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let (code, message) = (error.code(), error.to_string());
        match error {
            client::Error::Api(refusal) => Self {
                param: refusal.param,
                request_id: refusal.request_id,
                ..Self::new(code, refusal.message)
            },
            client::Error::Transport(transport) => {
                let failure = Self::new(code, message);
                match transport.kind {
                    TransportKind::Silent => failure.helped(
                        "It hangs or is overloaded: its log may say why. Stop it if it does not \
                         recover.",
                    ),
                    _ => failure,
                }
            }
            client::Error::Address { fault, .. } => Self::value(
                "server",
                match fault {
                    AddressFault::Credentials => {
                        message.replace(&fault.to_string(), "the token goes into RAYREEL_TOKEN")
                    }
                    _ => message,
                },
            ),
            client::Error::Key => {
                Self::value("RAYREEL_TOKEN", "the token has characters that no token has")
            }
            _ => Self::new(code, message),
        }
    }
}

impl From<client::Error> for Exit {
    fn from(error: client::Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<home::Error> for Failure {
    fn from(error: home::Error) -> Self {
        let failure = Self::new(error.code(), error.to_string());
        match error {
            home::Error::NotADirectory { .. } => failure.helped("Name a directory with --data."),
            home::Error::NotAllowed { .. } => {
                failure.helped("Run it as the owner, or name another directory with --data.")
            }
            home::Error::InUse { .. } | home::Error::Io { .. } | home::Error::Damaged { .. } => {
                failure
            }
        }
    }
}

impl From<rayreel_server::Error> for Failure {
    fn from(error: rayreel_server::Error) -> Self {
        let failure = Self::new(error.code(), error.to_string());
        match failure.code {
            // Nothing goes on by itself: there is no server yet.
            Code::StoreUnavailable => failure.helped(
                "See that its disk has room and that the directory and its files can be written by \
                 this user.",
            ),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_code_and_what_helps() {
        let failure = Failure {
            detail: Some("\u{1b}[31mCUDA error\nbye".to_owned()),
            request_id: Some("req_1".to_owned()),
            ..Failure::new(Code::EngineCrashed, "task_1: the engine ended with signal 9")
        };
        let plain = anstream::adapter::strip_str(&failure.text()).to_string();
        assert_eq!(
            plain,
            "error[engine_crashed]: task_1: the engine ended with signal 9\n\
             \x20 |  [31mCUDA error\n\
             \x20 | bye\n\
             \x20 help: See the engine's last lines; often a driver or a library.\n"
        );
    }

    #[test]
    fn what_says_nothing_new_is_left_out() {
        let text = |code| {
            let failure = Failure {
                request_id: Some("req_1".to_owned()),
                ..Failure::new(code, "`frames` is 50")
            };
            anstream::adapter::strip_str(&failure.text()).to_string()
        };
        assert_eq!(text(Code::InvalidValue), "error[invalid_value]: `frames` is 50\n");
        assert!(text(Code::Internal).ends_with("request id: req_1\n"));
    }

    #[test]
    fn in_json_a_failure_is_the_body_of_the_api() {
        let body = Failure::value("image", "no such file").body();
        assert_eq!(
            serde_json::to_value(body).expect("plain data"),
            serde_json::json!({"error": {
                "code": "invalid_value",
                "message": "no such file",
                "param": "image",
                "type": "invalid_request_error",
                "request_id": "",
            }})
        );
    }
}
