//! The job inside the server: known from before it is handed in until it has ended, so that the next
//! one goes in after it.
//!
//! A server of ours is killed when its job is in doubt, and goes with this process at the latest. One
//! that is not ours outlives it, with the job inside. So what is known of that is written down for the
//! engine that comes after this one, however this one ends.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::adapter::{self, Adapter, Answer, Call, State};
use super::job::Ended;
use super::settings::{At, Cancel, Settings};
use super::{AGAIN, ANSWER, Health, Loaded, MAX_ANSWER, POLL, result};
use crate::talk::{Failure, Job};

/// How long a server that is asked to stop a job may take; the worker's grace is 10 s.
const ASK: Duration = Duration::from_secs(8);
/// How long a job that the server says it has stopped may still be seen to run.
const STOPPED: Duration = Duration::from_millis(1500);
/// How long a task looks for the end of an earlier job at least.
const LOOK: Duration = Duration::from_secs(2);
/// How long the server is given to remove an ended job.
const FORGET: Duration = Duration::from_secs(5);

/// A directory that outlives this process and its worker.
const KEEP: &str = "RAYREEL_KEEP";
/// Longest note that is read, in bytes.
const MAX_NOTE: u64 = 16 << 10;

/// The one job that may be inside the server.
#[derive(Debug)]
pub(super) struct Inside {
    server: String,
    adapter: String,
    /// Where it is written down, if the server outlives this process.
    file: Option<PathBuf>,
    /// How to ask after it, once that is known.
    handle: Option<String>,
    /// When a task began to wait for its end, in seconds since 1970.
    awaited: Option<u64>,
}

/// What is written down. One that ends in the middle, as after a loss of power, counts for nothing.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    server: String,
    adapter: String,
    handle: Option<String>,
    #[serde(default)]
    awaited: Option<u64>,
}

impl Inside {
    /// What an engine before this one has left there. Without a directory that stays, nothing is known.
    pub(super) fn recall(settings: &Settings) -> Inside {
        let server = match &settings.at {
            At::Url(url) => url.to_string(),
            At::Child(_) => String::new(),
        };
        let keep = std::env::var_os(KEEP).filter(|_| !server.is_empty());
        let file = keep.map(|keep| {
            let hash = Sha256::digest(server.as_bytes());
            let name: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            PathBuf::from(keep).join(format!("server-{name}.json"))
        });
        let adapter = settings.adapter.clone();
        let mut inside = Inside { server, adapter, file, handle: None, awaited: None };
        match inside.read() {
            Ok(None) => {}
            Ok(Some(note)) => {
                (inside.handle, inside.awaited) = (note.handle, note.awaited);
                inside.lost();
            }
            Err(why) => {
                let file = inside.file.clone().unwrap_or_default();
                eprintln!("rayreel: the note {} makes no sense: {why}", file.display());
                inside.ended();
            }
        }
        inside
    }

    fn read(&self) -> Result<Option<Note>, String> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let mut text = Vec::new();
        match File::open(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.and_then(|file| file.take(MAX_NOTE).read_to_end(&mut text)),
        }
        .map_err(|error| error.to_string())?;
        let note: Note = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if note.server != self.server || note.adapter != self.adapter {
            return Err(format!("it is of {} at {}", note.adapter, note.server));
        }
        if note.handle.as_deref().is_some_and(|handle| !adapter::is_plain(handle)) {
            return Err("the job has an odd name".to_owned());
        }
        Ok(Some(note))
    }

    fn write(&self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        if let Some(directory) = file.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let Inside { server, adapter, handle, awaited, .. } = self;
        let (server, adapter, handle) = (server.clone(), adapter.clone(), handle.clone());
        let note = serde_json::to_vec(&Note { server, adapter, handle, awaited: *awaited })?;
        // Either note is whole, whenever this process is killed.
        let new = file.with_extension("new");
        fs::write(&new, note)?;
        fs::rename(&new, file)
    }

    /// A job is about to be handed in under this name.
    pub(super) fn enters(&mut self, name: &str, adapter: &dyn Adapter) -> Result<(), Failure> {
        self.handle = adapter.handle_of(name);
        self.write().map_err(|error| {
            let message = format!("the job could not be written down before it was sent: {error}");
            Failure::failed(message)
        })
    }

    /// The server has taken it.
    pub(super) fn taken(&mut self, handle: &str) {
        if self.handle.as_deref() == Some(handle) {
            return;
        }
        self.handle = Some(handle.to_owned());
        self.write_again();
    }

    /// Changes the note. Without that, the engine that comes after this one knows less.
    fn write_again(&self) {
        if let Err(error) = self.write() {
            eprintln!("rayreel: the job could not be written down: {error}");
        }
    }

    /// For how long tasks have waited for its end, those at engines before this one as well.
    fn awaited(&mut self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.awaited.is_none() {
            self.awaited = Some(now.as_secs());
            self.write_again();
        }
        now.saturating_sub(self.awaited.map_or(now, Duration::from_secs))
    }

    /// Nobody knows whether there is one. It is kept in mind if there is a way to ask.
    pub(super) fn lost(&mut self) {
        if self.handle.is_none() {
            eprintln!(
                "rayreel: a job may run at the server that can't be waited for: nobody knows its name"
            );
            self.ended();
        }
    }

    /// There is none any more.
    pub(super) fn ended(&mut self) {
        (self.handle, self.awaited) = (None, None);
        let removed = self.file.as_ref().map_or(Ok(()), fs::remove_file);
        if let Err(error) = removed
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("rayreel: the note of an ended job could not be removed: {error}");
        }
    }

    pub(super) fn handle(&self) -> Option<&str> {
        self.handle.as_deref()
    }
}

impl Loaded {
    /// Waits until an earlier job has ended. One that does not in time, or of which the server tells
    /// nothing sensible, is given up: it must not keep tasks from their own jobs for ever. An error says
    /// that this task has waited too long. The job is still inside afterwards if the server is away.
    pub(super) async fn outwait(&mut self, job: &Job<'_>, handle: &str) -> Result<(), Failure> {
        eprintln!("rayreel: waiting for the server to end an earlier job");
        let (wait, hung) = (self.settings.wait, self.settings.hung);
        let late = Instant::now() + wait.saturating_sub(self.inside.awaited()).max(LOOK);
        job.progress("wait", 0, 1);
        let mut heard = Instant::now();
        let given_up = loop {
            let runs = |_| {
                heard = Instant::now();
                job.progress("wait", 0, 1);
            };
            let why = match timeout_at(late, self.watch(handle, runs)).await {
                Ok(Ok(_) | Err(Ended::Job(_))) => break None,
                Ok(Err(Ended::Server(failure))) => failure.message,
                Err(_) => {
                    let why = format!("it has not ended for {} s", wait.as_secs_f64());
                    self.give_up(handle, &why).await;
                    // What is left of this attempt's time may be too short for the task's own job.
                    let message = format!("the server was at an earlier job: {why}");
                    return Err(Failure::failed(message));
                }
            };
            if self.child.is_some() {
                break Some(why);
            }
            if heard.elapsed() >= hung {
                if self.answers().await {
                    break Some(why);
                }
                eprintln!(
                    "rayreel: the server can't be asked after an earlier job, which may still run: \
                     {why}"
                );
                self.health = Health::Unknown;
                return Ok(());
            }
            job.progress("wait", 0, 1);
            sleep(POLL.1).await;
        };
        match given_up {
            Some(why) => self.give_up(handle, &why).await,
            None => self.forget(handle).await,
        }
        Ok(())
    }

    async fn give_up(&mut self, handle: &str, why: &str) {
        eprintln!("rayreel: the earlier job is given up: {why}");
        if self.child.is_some() {
            self.restart("an earlier job is still inside").await;
        } else {
            self.forget(handle).await;
        }
    }

    /// Has a job ended that nobody wants any more, if the server can.
    pub(super) async fn cancel(&mut self, handle: &str) {
        match (self.settings.cancel, self.adapter.cancel(handle)) {
            (Cancel::Restart, _) => self.restart("the job was cancelled").await,
            (Cancel::Ask, Some(call)) => {
                let asking = async { self.ask(&call).await && self.has_stopped(handle).await };
                if timeout(ASK, asking).await.unwrap_or(false) {
                    self.inside.ended();
                } else if self.child.is_some() {
                    self.restart("the server does not stop a cancelled job").await;
                } else {
                    eprintln!("rayreel: the server does not stop a cancelled job");
                }
            }
            (Cancel::Wait | Cancel::Ask, _) => {
                eprintln!("rayreel: the job was cancelled; the server runs it to its end");
            }
        }
    }

    /// Asks the server to stop a job; says whether it says that it has.
    async fn ask(&self, call: &Call) -> bool {
        let Ok(client) = self.client() else {
            return false;
        };
        loop {
            match client.call(call, MAX_ANSWER, ANSWER).await {
                Ok(answer) if answer.is_success() || answer.status == 404 => return true,
                // It is at it.
                Ok(Answer { status: 409, .. }) => {}
                Ok(answer) => {
                    eprintln!("rayreel: asked to stop: {:?}", answer.fault());
                    return false;
                }
                Err(broken) => eprintln!("rayreel: asked to stop: {}", broken.text()),
            }
            sleep(AGAIN).await;
        }
    }

    /// Whether a job that has been stopped is not seen to run any more.
    async fn has_stopped(&self, handle: &str) -> bool {
        let Ok(client) = self.client() else {
            return false;
        };
        let call = self.adapter.poll(handle);
        let looking = async {
            loop {
                let answer = client.call(&call, MAX_ANSWER, ANSWER).await;
                match answer.map(|answer| self.adapter.polled(answer)) {
                    Ok(Ok(State::Running(_)) | Err(_)) | Err(_) => sleep(AGAIN).await,
                    Ok(Ok(_)) => return,
                }
            }
        };
        timeout(STOPPED, looking).await.is_ok()
    }

    /// Removes an ended job from the server, and what it has left in the server's directory.
    pub(super) async fn forget(&mut self, handle: &str) {
        if let (Some(call), Ok(client)) = (self.adapter.forget(handle), self.client()) {
            // It is gone, or goes when the server does.
            let _ = client.call(&call, MAX_ANSWER, FORGET).await;
        }
        result::remove_named_after(handle, self.scratch.path());
        self.inside.ended();
    }
}
