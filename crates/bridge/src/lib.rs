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
use std::time::Duration;

use serde_json::{Map, Value};

use rayreel_domain::request::{Defaults, Images};

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

/// What the names of those variables begin with that the operator hands to engines, for headers.
pub const VARIABLES: &str = "RAYREEL_ENGINE_";

/// The headers that settings which [`check`] has found right want sent: name, and the variable that has
/// the value.
pub fn headers(kind: Kind, settings: &Map<String, Value>) -> Vec<(String, String)> {
    match kind {
        Kind::Command => Vec::new(),
        Kind::Server => server::headers(settings),
    }
}

/// The address of somebody else's server that settings which [`check`] has found right name, in one
/// spelling.
pub fn url(kind: Kind, settings: &Map<String, Value>) -> Option<String> {
    match kind {
        Kind::Command => None,
        Kind::Server => server::url(settings),
    }
}

/// What a configuration says of a model beside its engine's settings.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    pub checkpoint: Option<&'a str>,
    pub images: Images,
    pub has_loras: bool,
    pub defaults: &'a Defaults,
    /// How long the engine may take to answer a cancel before it is killed.
    pub grace: Duration,
    /// How long a task may run, its wait for the server included.
    pub max_run: Duration,
}

/// Checks what `models.*.settings` say to an engine, as far as that can be known without its machine.
pub fn check(kind: Kind, settings: &Map<String, Value>) -> Result<(), Wrong> {
    match kind {
        Kind::Command => command::Settings::read(settings).map(drop),
        Kind::Server => server::check(settings),
    }
}

/// Checks that a model is one with settings that [`check`] has found right: that requests can come
/// which they can serve, and that all that the model offers is handed on.
pub fn check_model(
    kind: Kind,
    settings: &Map<String, Value>,
    model: &Model<'_>,
) -> Result<(), Wrong> {
    match kind {
        Kind::Command => command::Settings::read(settings)?.check_model(model),
        Kind::Server => server::check_model(settings, model),
    }
}
