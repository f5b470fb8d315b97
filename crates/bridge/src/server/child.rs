//! A server that this process has started.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::settings::Launch;
use crate::program::{Event, Line, Program};
use crate::talk::Failure;

/// Lines of its output that are kept for the message that it could not load. Other failures are told
/// with the engine's log, by the worker.
const LINES: usize = 5;
/// How long a server has to end by itself. The worker waits a second for an engine to leave.
const GRACE: Duration = Duration::from_millis(500);
/// How often the dead are looked for whom the server has left to this process.
const BURY: Duration = Duration::from_secs(1);

/// A server that runs, or has ended. Dropping it kills it with all that it has started.
#[derive(Debug)]
pub(super) struct Child {
    lines: Arc<Mutex<VecDeque<String>>>,
    end: mpsc::Sender<Duration>,
    /// How it has ended, in words.
    ended: watch::Receiver<Option<String>>,
    watcher: JoinHandle<()>,
}

/// What a launch fills into its words.
pub(super) struct Places<'a> {
    pub(super) host: &'a str,
    pub(super) port: &'a str,
    pub(super) model: &'a str,
    pub(super) checkpoint: Option<&'a str>,
    pub(super) scratch: &'a Path,
}

impl Child {
    /// Starts it. Its output goes to the log, and is read also while nobody waits for anything.
    pub(super) fn start(launch: &Launch, places: &Places<'_>) -> Result<Child, Failure> {
        let command = command(launch, places).map_err(Failure::load_failed)?;
        let name = command.get_program().to_string_lossy().into_owned();
        let program = Program::start(command).map_err(|error| {
            let lasting = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied);
            let message = format!("the server `{name}` could not be started: {error}");
            Failure { retryable: !lasting, ..Failure::load_failed(message) }
        })?;
        let lines = Arc::default();
        let (end, orders) = mpsc::channel(1);
        let (tell, ended) = watch::channel(None);
        let watcher = tokio::spawn(follow(program, Arc::clone(&lines), orders, tell));
        Ok(Child { lines, end, ended, watcher })
    }

    /// How it has ended, if it has.
    pub(super) fn ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits for its end. Cancel safe.
    pub(super) async fn end(&self) -> String {
        let mut ended = self.ended.clone();
        let how = ended.wait_for(Option::is_some).await.map(|how| how.clone());
        how.ok().flatten().unwrap_or_else(|| "ended".to_owned())
    }

    /// Kills it with all that it has started, and waits until they are gone.
    pub(super) async fn kill(self) {
        self.finish(Duration::ZERO).await;
    }

    /// Has it end by itself, or kills it.
    pub(super) async fn leave(self) {
        self.finish(GRACE).await;
    }

    async fn finish(mut self, grace: Duration) {
        let _ = self.end.send(grace).await;
        let _ = (&mut self.watcher).await;
    }

    /// Its last lines, for a message.
    pub(super) fn last_words(&self) -> String {
        let lines = lock(&self.lines);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // What it drops kills.
        self.watcher.abort();
    }
}

fn lock(lines: &Mutex<VecDeque<String>>) -> MutexGuard<'_, VecDeque<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the output until the program has ended or is told to.
async fn follow(
    mut program: Program,
    lines: Arc<Mutex<VecDeque<String>>>,
    mut orders: mpsc::Receiver<Duration>,
    tell: watch::Sender<Option<String>>,
) {
    let keep = |line: Line| {
        let mut lines = lock(&lines);
        if !line.redrawn && !line.text.trim().is_empty() {
            lines.push_back(line.text.chars().take(200).collect());
        }
        if lines.len() > LINES {
            lines.pop_front();
        }
    };
    let mut burials = tokio::time::interval(BURY);
    burials.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let how = loop {
        tokio::select! {
            _ = burials.tick() => program.bury(),
            next = program.next() => match next {
                Event::Line(line) => keep(line),
                Event::Ended(status) => break format!("ended ({status})"),
                Event::Lost(error) => break format!("ended ({error})"),
            },
            grace = orders.recv() => {
                match grace {
                    Some(grace) if !grace.is_zero() => program.stop(grace).await,
                    _ => program.finish(keep).await,
                }
                tell.send_replace(Some("was stopped".to_owned()));
                return;
            }
        }
    };
    // What it has left behind must not keep the accelerator.
    program.finish(keep).await;
    tell.send_replace(Some(how));
}

fn command(launch: &Launch, places: &Places<'_>) -> Result<Command, String> {
    let scratch = places.scratch.to_str().ok_or("the temporary directory has an odd name")?;
    let value = |name: &str| match name {
        "host" => Some(places.host),
        "port" => Some(places.port),
        "model" => Some(places.model),
        "checkpoint" => places.checkpoint,
        "scratch" => Some(scratch),
        _ => None,
    };
    let missing = |name| format!("`run` says {{{name}}}, but the model has none");
    let words: Result<Vec<String>, _> = launch.run.iter().map(|word| word.fill(value)).collect();
    let words = words.map_err(missing)?;
    let (program, arguments) = words.split_first().ok_or("`run` is empty")?;
    let mut command = Command::new(program);
    // What the server writes without being told where belongs to no other directory.
    let directory = launch.directory.as_deref().unwrap_or(places.scratch);
    command.args(arguments).current_dir(directory);
    for (name, variable) in &launch.environment {
        command.env(OsStr::new(name), variable.fill(value).map_err(missing)?);
    }
    Ok(command)
}

/// A port of this machine that nobody listens on now.
pub(super) fn free_port(host: &str) -> io::Result<u16> {
    Ok(std::net::TcpListener::bind((host, 0))?.local_addr()?.port())
}
