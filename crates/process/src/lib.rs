//! Processes of this machine, as `/proc` shows them.
//!
//! A number may be given to another process as soon as its owner has been waited for; so a process is
//! known by its number and the moment of its start, and a signal goes through a descriptor that holds
//! it. Where there is no `/proc`, no process is seen.

use std::io;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};

/// A process, as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: Pid,
    /// None for those that have none here: the first, the kernel's, and who comes from outside of a
    /// container.
    pub parent: Option<Pid>,
    /// It has ended, with all of its threads, and nobody has waited for it. Who ends by a signal looks
    /// dead while threads of his still hold memory, and can't be waited for.
    pub dead: bool,
    /// Processor time used, by it and by those of its children that have been waited for, in ticks of
    /// the clock.
    pub ticks: u64,
    /// When it started, in ticks since boot.
    pub started: u64,
}

/// Waits for those of `all` that are dead and this process's own children, but for `spared`, which
/// somebody else waits for. Who adopts orphans must do so: nobody else buries them.
pub fn bury(all: &[Process], spared: &[Pid]) {
    let own = Some(rustix::process::getpid());
    for process in all {
        if process.dead && process.parent == own && !spared.contains(&process.pid) {
            let _ = rustix::process::waitpid(Some(process.pid), WaitOptions::NOHANG);
        }
    }
}

/// Is a child of this process dead? Cheaper than to look at all processes.
pub fn has_dead_child() -> bool {
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(rustix::process::waitid(WaitId::All, peek), Ok(Some(_)))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::process::CommandExt;

    use rustix::process::PidfdFlags;

    use super::*;

    impl Process {
        pub fn read(pid: Pid) -> Option<Process> {
            let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
            Process::parse(pid, &String::from_utf8_lossy(&stat))
        }

        /// Reads a line of `/proc/PID/stat`, proc(5).
        fn parse(pid: Pid, stat: &str) -> Option<Process> {
            // The second field is the name in parentheses, and may itself contain some.
            let (_, fields) = stat.rsplit_once(") ")?;
            let fields: Vec<&str> = fields.split(' ').collect();
            // Counted from the third field of the manual.
            let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
            let parent = Pid::from_raw(i32::try_from(number(4)?).ok()?);
            let ticks = [14, 15, 16, 17].map(number).iter().flatten().sum();
            let dead = matches!(*fields.first()?, "Z" | "X") && number(20)? <= 1;
            Some(Process { pid, parent, dead, ticks, started: number(22)? })
        }

        /// Sends it a signal, unless it is gone.
        pub fn signal(&self, signal: Signal) {
            // Once it is held by its descriptor, its number is nobody else's.
            let Ok(held) = rustix::process::pidfd_open(self.pid, PidfdFlags::empty()) else {
                return;
            };
            if Process::read(self.pid).is_some_and(|now| now.started == self.started) {
                // It fails only if the process is dead already.
                let _ = rustix::process::pidfd_send_signal(held, signal);
            }
        }

        /// Was it started with this entry, `NAME=value`, in its environment? Not known, and so no, of
        /// processes of another user, and of the dead.
        pub fn has_variable(&self, entry: &str) -> bool {
            let path = format!("/proc/{}/environ", self.pid.as_raw_nonzero());
            let environment = fs::read(path).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes())
        }
    }

    /// All processes that this one can see.
    pub fn all() -> Vec<Process> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Process::read(Pid::from_raw(pid)?))
            .collect()
    }

    /// Those of `all` that descend from this process, parents first.
    pub fn descendants(all: &[Process]) -> Vec<Process> {
        let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
        for process in all {
            if let Some(parent) = process.parent {
                children.entry(parent).or_default().push(*process);
            }
        }
        let mut found = children.remove(&rustix::process::getpid()).unwrap_or_default();
        let mut looked_at = 0;
        while let Some(process) = found.get(looked_at) {
            let below = children.remove(&process.pid).unwrap_or_default();
            found.extend(below);
            looked_at += 1;
        }
        found
    }

    /// Has descendants whose parents end become children of this process.
    pub fn adopt() -> io::Result<()> {
        Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
    }

    /// Has the kernel kill the child when the thread that starts it ends, which is at the latest when
    /// this process does.
    #[expect(unsafe_code, reason = "only the child itself can ask for this, between fork and exec")]
    pub fn die_with_parent(command: &mut Command) {
        let parent = rustix::process::getpid();
        let ask = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // Who was dead before that sends no signal.
            if rustix::process::getppid() != Some(parent) {
                return Err(rustix::io::Errno::SRCH.into());
            }
            Ok(())
        };
        // SAFETY: two system calls and a comparison; nothing allocates, locks or panics.
        unsafe { command.pre_exec(ask) };
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_name_may_look_like_the_fields_behind_it() {
            let stat = "7 (a) Z 1 (b) S 5 7 7 0 -1 4194560 1 0 0 0 11 22 33 44 20 0 1 0 987 0 0";
            let pid = Pid::from_raw(7).unwrap();
            let process = Process::parse(pid, stat).unwrap();
            let parent = Pid::from_raw(5);
            assert_eq!(process, Process { pid, parent, dead: false, ticks: 110, started: 987 });
        }

        #[test]
        fn who_has_threads_left_is_not_dead() {
            let dead = |threads| {
                let stat = format!("7 (a) Z 5 7 7 0 -1 4 1 0 0 0 1 2 3 4 20 0 {threads} 0 987 0 0");
                Process::parse(Pid::from_raw(7).unwrap(), &stat).unwrap().dead
            };
            assert!(dead(1) && !dead(2));
        }

        #[test]
        fn a_child_is_found_by_its_descent_and_by_its_environment() {
            let mut child =
                Command::new("sleep").arg("1000").env("RAYREEL_MARK", "x").spawn().unwrap();
            let pid = Pid::from_child(&child);
            let found = descendants(&all()).into_iter().find(|process| process.pid == pid).unwrap();
            assert!(found.has_variable("RAYREEL_MARK=x") && !found.has_variable("RAYREEL_MARK="));
            // Another with the same number.
            Process { started: found.started + 1, ..found }.signal(Signal::KILL);
            assert!(child.try_wait().unwrap().is_none());
            found.signal(Signal::KILL);
            assert!(!child.wait().unwrap().success());
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use super::*;

    impl Process {
        pub fn signal(&self, _: Signal) {}

        pub fn has_variable(&self, _: &str) -> bool {
            false
        }
    }

    pub fn all() -> Vec<Process> {
        Vec::new()
    }

    pub fn descendants(_: &[Process]) -> Vec<Process> {
        Vec::new()
    }

    pub fn adopt() -> io::Result<()> {
        Ok(())
    }

    pub fn die_with_parent(_: &mut Command) {}
}

#[cfg(target_os = "linux")]
pub use linux::{adopt, all, descendants, die_with_parent};
#[cfg(not(target_os = "linux"))]
pub use other::{adopt, all, descendants, die_with_parent};
