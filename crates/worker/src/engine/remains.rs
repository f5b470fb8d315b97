//! What an engine has started, and must not outlive it: it may hold a GPU's memory.
//!
//! The engine's process group does not have all of it: `torchrun` puts each rank into a session of its
//! own. Two things tell whose a process is.
//!
//! - **A mark** in the environment, random for each engine, which whatever it starts inherits. It is
//!   sound in any program, with any other children, and beside other workers in the same process.
//! - **Descent.** Where this process has no children but engines ([`crate::Options::alone`]) it adopts
//!   those of its descendants whose parents end, so that all it descends to is an engine's, also who
//!   has cleared his environment. Of an orphan nobody knows which engine's it was; so this counts only
//!   when no other engine runs, which is always but after one that did not die when killed.
//!
//! Not found are: who has dropped the mark, in a process that is not alone; what a service of the
//! machine (Docker, systemd) has started on the engine's behalf; processes of other users; and what
//! left the group, where there is no `/proc`.

use std::ffi::OsString;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rayreel_process::Process;
use rustix::process::{Pid, Signal};

/// Name of the mark.
const MARK: &str = "RAYREEL_ENGINE";
/// How long killed processes may take to be gone. One that hangs in a driver may take for ever.
const KILL: Duration = Duration::from_secs(4);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// The engines of this process that have not been waited for. Held while one is started: between its
/// birth and its entry here nobody takes it for an orphan.
static ENGINES: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn engines() -> MutexGuard<'static, Vec<Pid>> {
    ENGINES.lock().expect("nothing panics while it holds this lock")
}

/// Knows what one engine has started.
#[derive(Debug)]
pub(crate) struct Remains {
    mark: String,
    alone: bool,
}

impl Remains {
    pub(crate) fn new(alone: bool) -> Self {
        Self { mark: format!("{:032x}", fastrand::u128(..)), alone }
    }

    /// The variable that the engine must be started with.
    pub(crate) fn variable(&self) -> (OsString, OsString) {
        (MARK.into(), self.mark.clone().into())
    }

    /// Starts the engine.
    pub(crate) fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut engines = engines();
        let child = command.spawn()?;
        engines.push(Pid::from_child(&child));
        Ok(child)
    }

    /// Waits for the engine, which has ended.
    pub(crate) fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let pid = Pid::from_child(child);
        let mut engines = engines();
        let status = child.wait();
        engines.retain(|engine| *engine != pid);
        status
    }

    /// Kills what the engine, which is gone, has left, and waits until that is gone, too. Blocks.
    #[expect(
        clippy::disallowed_methods,
        reason = "a condition with a bound; nothing tells of its end"
    )]
    pub(crate) fn end(&self) {
        let late = Instant::now() + KILL;
        let mut found = 0;
        loop {
            // Who was just being born when the others were killed is found the next time.
            let left = self.left();
            found = found.max(left.len());
            if left.is_empty() {
                break;
            }
            if Instant::now() >= late {
                let pids: Vec<_> = left.iter().map(|left| left.pid.as_raw_nonzero()).collect();
                tracing::error!(?pids, "killed processes of the engine are not gone yet");
                return;
            }
            left.iter().for_each(|left| left.signal(Signal::KILL));
            std::thread::sleep(LOOK);
        }
        if found > 0 {
            tracing::info!(found, "ended what the engine had left running");
        }
    }

    fn left(&self) -> Vec<Process> {
        let engines = engines();
        let all = rayreel_process::all();
        let mut descendants = Vec::new();
        if self.alone {
            rayreel_process::bury(&all, &engines);
            if engines.is_empty() {
                descendants = rayreel_process::descendants(&all);
            }
        }
        let entry = format!("{MARK}={}", self.mark);
        let is_left = |process: &Process| {
            !process.dead && (descendants.contains(process) || process.has_variable(&entry))
        };
        all.into_iter().filter(is_left).collect()
    }
}

/// Buries the dead whom a process that is alone has adopted: nobody else waits for them. Before each
/// task, so it looks at all processes only if a child is dead.
pub(crate) fn bury_orphans() {
    if rayreel_process::has_dead_child() {
        rayreel_process::bury(&rayreel_process::all(), &engines());
    }
}
