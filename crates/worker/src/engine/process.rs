//! An engine's process: started without a shell in a group of its own, watched to its end, and
//! killed with everything it has started.
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

use super::environment;
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
    pub(crate) fn start(setup: &EngineSetup, program: &Path) -> io::Result<Self> {
        let mut command = command(setup, program)?;
        command
            .env_clear()
            .envs(environment::kept())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        die_with_the_worker(&mut command);
        let Watched { pid, pipes, group, exit } = watch(command)?;
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

    /// Kills the engine and everything in its process group.
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

/// Has the kernel kill the engine when the thread that starts it ends, which is when this process
/// does: see [`watch`].
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "only the child itself can ask for this, between fork and exec")]
fn die_with_the_worker(command: &mut Command) {
    let worker = Pid::from_raw(std::process::id().cast_signed());
    let ask = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // Who was dead before that sends no signal.
        if rustix::process::getppid() != worker {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: two system calls and a comparison; nothing allocates, locks or panics.
    unsafe { command.pre_exec(ask) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_the_worker(_: &mut Command) {}

/// A process that is being watched.
struct Watched {
    pid: Pid,
    pipes: (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>),
    group: Arc<Group>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

/// Starts a process and watches it to its end, both from a thread of its own: the kernel takes the
/// end of the thread that started a process for the end of its parent.
fn watch(mut command: Command) -> io::Result<Watched> {
    let (tell, started) = std::sync::mpsc::sync_channel(1);
    let (told, exit) = watch::channel(None);
    let watcher = move || {
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return drop(tell.send(Err(error))),
        };
        let pid = Pid::from_child(&child);
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let group = Arc::new(Group(Mutex::new(Some(pid))));
        let watched = Watched { pid, pipes, group: Arc::clone(&group), exit };
        if tell.send(Ok(watched)).is_err() {
            group.kill();
        }
        told.send_replace(Some(see_off(child, pid, &group)));
    };
    std::thread::Builder::new().name("engine".into()).spawn(watcher)?;
    started.recv().map_err(io::Error::other)?
}

/// Waits for the end of the process, kills what it has left behind, and reaps it: in this order,
/// because from then on its number may be given to somebody else.
fn see_off(mut child: Child, pid: Pid, group: &Group) -> ExitStatus {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = rustix::process::waitid(WaitId::Pid(pid), options) {}
    group.kill();
    let mut number = group.lock();
    let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(-1));
    *number = None;
    tracing::info!(pid = pid.as_raw_nonzero(), %status, "engine ended");
    status
}
