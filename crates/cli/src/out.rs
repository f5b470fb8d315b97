//! What a command prints: results on standard output, everything else on standard error.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::failure::{BROKEN_PIPE, Exit, Failure};

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    pub json: bool,
    quiet: bool,
}

impl Out {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// A line of the result.
    pub(crate) fn line(self, text: &str) -> Result<(), Exit> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// A result as one line of JSON.
    pub(crate) fn json(self, value: &impl Serialize) -> Result<(), Exit> {
        let text = serde_json::to_string(value).expect("results are plain data");
        self.line(&text)
    }

    /// Bytes of the result.
    pub(crate) fn raw(self, bytes: &[u8]) -> Result<(), Exit> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(Exit::Silent(BROKEN_PIPE))
            }
            Err(error) => Err(Failure::new(
                rayreel_domain::Code::StorageFull,
                format!("standard output can't be written: {error}"),
            )
            .into()),
        }
    }

    /// Something that whoever waits may want to know.
    pub(crate) fn note(self, text: &str) {
        if self.is_talkative() {
            // There is nobody to tell that nobody can be told.
            _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// May notes and progress be printed?
    pub(crate) fn is_talkative(self) -> bool {
        !self.quiet && !self.json
    }

    /// Can a line on standard error be drawn over?
    pub(crate) fn is_live(self) -> bool {
        self.is_talkative() && io::stderr().is_terminal()
    }

    pub(crate) fn failure(self, failure: &Failure) {
        let mut stderr = anstream::stderr();
        _ = if self.json {
            let text = serde_json::to_string(&failure.body()).expect("results are plain data");
            writeln!(stderr, "{text}")
        } else {
            write!(stderr, "{}", failure.text())
        };
    }
}
