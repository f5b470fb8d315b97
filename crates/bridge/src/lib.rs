//! Engines that are other people's programs: they speak the engine protocol of
//! [`rayreel_domain::wire::engine`] with the worker, and whatever the program speaks with it.
//!
//! ```text
//!  worker ◀── talk (protocol) ──▶ engine ◀── program (process, lines, tree) ──▶ the program
//! ```

mod command;
mod file;
mod inbox;
mod program;
mod server;
mod settings;
mod talk;

use std::io::{self, BufRead, Write};

use serde_json::{Map, Value};

pub use settings::Wrong;

/// An engine of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Starts a command line for each task.
    Command,
    /// Hands each task to an engine server, which it starts if it is told to.
    Server,
}

impl Kind {
    pub const ALL: &[Kind] = &[Kind::Command, Kind::Server];

    /// The engine's name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Command => "command",
            Kind::Server => "server",
        }
    }

    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

/// Serves one worker until it says `exit` or hangs up. An error means that the worker broke the
/// protocol or that it can't be heard any more.
///
/// What this process has started is killed as its own: it runs one engine and nothing else. `input`
/// is read by a thread that outlives this call if the worker hasn't hung up: a process gives
/// `BufReader::new(stdin())` and ends when this returns.
pub fn run(
    kind: Kind,
    input: impl BufRead + Send + 'static,
    mut output: impl Write,
) -> io::Result<()> {
    program::adopt()?;
    // One thread: programs are started by the one that lives as long as the process.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let mut inbox = inbox::Inbox::open(input)?;
        match kind {
            Kind::Command => {
                talk::serve(&mut command::Command::default(), &mut inbox, &mut output).await
            }
            Kind::Server => {
                talk::serve(&mut server::Server::default(), &mut inbox, &mut output).await
            }
        }
    });
    runtime.shutdown_background();
    served
}

/// Checks what `models.*.settings` say to an engine, as far as that can be known without its machine.
pub fn check(kind: Kind, settings: &Map<String, Value>) -> Result<(), Wrong> {
    match kind {
        Kind::Command => command::Settings::read(settings).map(drop),
        Kind::Server => server::check(settings),
    }
}
