//! An engine's process: started without a shell in a group of its own, watched to its end, and
//! killed with everything it has started: its group at once, and whoever has left that ([`Remains`]).
//!
//! A worker that is killed can't do that any more. Most engines end with their input; on Linux the
//! kernel kills one that does not. What such an engine had started itself is ended by the server
//! that had started the worker, if one had.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rayreel_domain::wire::worker::EngineSetup;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::scratch::Room;

use super::environment;
use super::remains::Remains;
use super::tail::Tail;

/// A running engine process. Dropping it kills the group.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: Arc<Tail>,
    follower: AbortHandle,
    group: Arc<Group>,
    exit: watch::Receiver<Option<ExitStatus>>,
    gone: watch::Receiver<bool>,
}

/// The process group, for as long as its number is surely its own: until its leader is reaped.
#[derive(Debug)]
struct Group(Mutex<Option<Pid>>);

impl Group {
    fn kill(&self) {
        if let Some(pid) = *self.lock() {
            // It fails only if everybody is dead already.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Pid>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Process {
    /// `alone`: see [`crate::Options::alone`]. The engine's room is there until nothing runs any more
    /// that could write into it.
    pub(crate) fn start(
        setup: &EngineSetup,
        program: &Path,
        alone: bool,
        room: Room,
    ) -> io::Result<Self> {
        let mut command = command(setup, program)?;
        let remains = Remains::new(alone);
        command
            .env_clear()
            .envs(environment::kept())
            .envs([remains.variable()])
            .envs(room.variables())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        rayreel_process::die_with_parent(&mut command);
        let Watched { pid, pipes, group, exit, gone } = watch(command, remains, room)?;
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            group.kill();
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let stderr = Arc::new(Tail::new(OwnedFd::from(stderr))?);
        let reader = Arc::clone(&stderr);
        let follower = tokio::spawn(async move { reader.follow().await }).abort_handle();
        tracing::info!(pid = pid.as_raw_nonzero(), ?setup, "engine started");
        Ok(Self {
            stdin: Some(pipe::Sender::from_owned_fd(OwnedFd::from(stdin))?),
            stdout: pipe::Receiver::from_owned_fd(OwnedFd::from(stdout))?,
            stderr,
            follower,
            group,
            exit,
            gone,
        })
    }

    /// How the process has ended, if it has.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Becomes the status when the process has ended.
    pub(crate) fn exit(&self) -> watch::Receiver<Option<ExitStatus>> {
        self.exit.clone()
    }

    /// Waits for the end, at most for so long.
    pub(crate) async fn ended(&self, limit: Duration) -> Option<ExitStatus> {
        let mut exit = self.exit();
        let ended = exit.wait_for(Option::is_some);
        *tokio::time::timeout(limit, ended).await.ok()?.ok()?
    }

    /// Waits until nothing runs any more that the engine has started, at most for so long: false then.
    pub(crate) async fn gone(&self, limit: Duration) -> bool {
        let mut gone = self.gone.clone();
        // An error says that the watching thread is gone.
        tokio::time::timeout(limit, gone.wait_for(|gone| *gone)).await.is_ok()
    }

    /// Kills the engine and everything in its process group; the rest goes as soon as it is dead.
    pub(crate) fn kill(&self) {
        self.group.kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.group.kill();
        // Somebody outside the group may still have the pipe.
        self.follower.abort();
    }
}

fn command(setup: &EngineSetup, program: &Path) -> io::Result<Command> {
    match setup {
        EngineSetup::BuiltIn(name) => {
            let mut command = Command::new(program);
            command.arg("engine").arg(name);
            Ok(command)
        }
        EngineSetup::Command(words) => {
            let (program, arguments) = words.split_first().ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "the engine's command is empty")
            })?;
            let mut command = Command::new(program);
            command.args(arguments);
            Ok(command)
        }
    }
}

/// A process that is being watched.
struct Watched {
    pid: Pid,
    pipes: (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>),
    group: Arc<Group>,
    exit: watch::Receiver<Option<ExitStatus>>,
    gone: watch::Receiver<bool>,
}

/// Starts a process and watches it to its end, both from a thread of its own: the kernel takes the
/// end of the thread that started a process for the end of its parent.
fn watch(mut command: Command, remains: Remains, room: Room) -> io::Result<Watched> {
    let (tell, started) = std::sync::mpsc::sync_channel(1);
    let (told, exit) = watch::channel(None);
    let (tell_gone, gone) = watch::channel(false);
    let watcher = move || {
        let mut child = match remains.start(&mut command) {
            Ok(child) => child,
            Err(error) => return drop(tell.send(Err(error))),
        };
        let pid = Pid::from_child(&child);
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let group = Arc::new(Group(Mutex::new(Some(pid))));
        let watched = Watched { pid, pipes, group: Arc::clone(&group), exit, gone };
        if tell.send(Ok(watched)).is_err() {
            group.kill();
        }
        told.send_replace(Some(see_off(child, &remains, &group)));
        remains.end();
        drop(room);
        tell_gone.send_replace(true);
    };
    std::thread::Builder::new().name("engine".into()).spawn(watcher)?;
    started.recv().map_err(io::Error::other)?
}

/// Waits for the end of the process, kills what it has left in its group, and reaps it: in this order,
/// because from then on its number may be given to somebody else.
fn see_off(mut child: Child, remains: &Remains, group: &Group) -> ExitStatus {
    let pid = Pid::from_child(&child);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(pid), options) {}
    group.kill();
    let mut number = group.lock();
    let status = remains.reap(&mut child).unwrap_or_else(|_| ExitStatus::from_raw(-1));
    *number = None;
    tracing::info!(pid = pid.as_raw_nonzero(), %status, "engine ended");
    status
}
