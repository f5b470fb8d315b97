//! A program that an engine runs, with everything that the program starts.
//!
//! It is started without a shell. Its output is read a line at a time and goes to this process's
//! standard error, which is the worker's log. It stays in the engine's process group, which the
//! worker kills, and on Linux the kernel kills it when the engine ends. Launchers such as `torchrun`
//! put their children into sessions of their own, so that no group has them all; so what is signalled
//! here is the [`tree`]: every descendant, and on Linux also those whose parents are dead. There is
//! therefore one program at a time in a process.

mod lines;
mod tree;

use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Child;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep, timeout};

pub(crate) use lines::Line;
pub(crate) use tree::adopt;

/// How long the output of a program that has ended may still come.
const LAG: Duration = Duration::from_secs(1);
/// How long killed processes may take to be gone. One that hangs in a driver may take for ever.
const KILL: Duration = Duration::from_secs(5);
/// How often those who have been told to end are looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A running program. Dropping it kills it and all that it has started.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    lines: Receiver<Line>,
    status: Option<ExitStatus>,
    ended: bool,
}

/// What a program does.
#[derive(Debug)]
pub(crate) enum Event {
    Line(Line),
    Ended(ExitStatus),
    /// It can't be waited for.
    Lost(io::Error),
}

impl Program {
    /// Starts it, with nothing on its standard input. The caller's thread must live as long as the
    /// program: its end kills the program.
    pub(crate) fn start(mut command: Command) -> io::Result<Program> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tree::prepare(&mut command);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let lines = lines::read(child.stdout.take(), child.stderr.take());
        Ok(Program { child, lines, status: None, ended: false })
    }

    /// What comes next: a line, or the end of the program itself. What it has started may still run
    /// then, and write. Cancel safe.
    pub(crate) async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            Some(line) = self.lines.recv() => Event::Line(line),
            status = self.child.wait() => match status {
                Ok(status) => {
                    self.status = Some(status);
                    Event::Ended(status)
                }
                Err(error) => Event::Lost(error),
            },
        }
    }

    /// How much processor time the program and its descendants have used so far, which falls when one
    /// of them ends; none where that can't be known.
    pub(crate) fn processor_time(&self) -> Option<Duration> {
        tree::processor_time(&self.child)
    }

    /// Buries those that the program has started and left, and that have ended since: nobody else waits
    /// for them.
    pub(crate) fn bury(&self) {
        tree::bury(&self.child);
    }

    /// Asks the program and all that it has started to end, kills after `grace` what still runs, and
    /// waits until all are gone.
    pub(crate) async fn stop(&mut self, grace: Duration) {
        let late = Instant::now() + grace;
        tree::signal(&self.child, Signal::TERM);
        while Instant::now() < late {
            // Nobody may be made to wait by a full pipe.
            while self.lines.try_recv().is_ok() {}
            if self.is_gone() {
                break;
            }
            sleep(LOOK).await;
        }
        self.finish(|_| {}).await;
    }

    /// Kills what still runs, waits until all are gone, and reads the output to its end.
    pub(crate) async fn finish(&mut self, mut line: impl FnMut(Line)) {
        let late = Instant::now() + KILL;
        loop {
            tree::signal(&self.child, Signal::KILL);
            while let Ok(read) = self.lines.try_recv() {
                line(read);
            }
            if self.is_gone() {
                break;
            }
            if Instant::now() >= late {
                eprintln!("rayreel: a killed process of the program is not gone yet");
                break;
            }
            sleep(LOOK).await;
        }
        let rest = async {
            while let Some(read) = self.lines.recv().await {
                line(read);
            }
        };
        let _ = timeout(LAG, rest).await;
        self.ended = true;
    }

    /// Has everybody ended?
    fn is_gone(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_some() && tree::is_empty(&self.child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Whoever was just being born when the others were killed is found the next time.
        for _ in 0..3 {
            tree::signal(&self.child, Signal::KILL);
        }
    }
}
