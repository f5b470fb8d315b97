//! How a command ends that did not do what it was asked: a code from the table, in words, and the
//! exit status that goes with it.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use rayreel_domain::Code;
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
        Self { code, message: message.into(), param: None, request_id: None, detail: None }
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
        _ = writeln!(text, "  {bold}help{bold:#}: {}", self.code.entry().remedy);
        if let Some(id) = &self.request_id {
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

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<home::Error> for Failure {
    fn from(error: home::Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<rayreel_server::Error> for Failure {
    fn from(error: rayreel_server::Error) -> Self {
        Self::new(error.code(), error.to_string())
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
             \x20 help: See the engine's last lines; often a driver or a library.\n\
             \x20 request id: req_1\n"
        );
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
