//! Every process that descends from this one.
//!
//! On Linux this process adopts those of its descendants whose parents end ([`adopt`]), so that
//! whatever a program has started is found in `/proc`, in whichever group or session it is. Elsewhere
//! the program gets a process group, and what stays in that group is its tree.

#[cfg(target_os = "linux")]
pub(crate) use linux::{adopt, is_empty, prepare, processor_time, signal};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{adopt, is_empty, prepare, processor_time, signal};

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::fs;
    use std::io;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
    use tokio::process::Child;

    /// Has descendants whose parents end become children of this process.
    pub(crate) fn adopt() -> io::Result<()> {
        Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
    }

    /// Has the kernel kill the program when the thread that starts it ends, which is when this
    /// process does.
    #[expect(unsafe_code, reason = "only the child itself can ask for this, between fork and exec")]
    pub(crate) fn prepare(command: &mut Command) -> io::Result<()> {
        let engine = rustix::process::getpid();
        let ask = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // Who was dead before that sends no signal.
            if rustix::process::getppid() != Some(engine) {
                return Err(rustix::io::Errno::SRCH.into());
            }
            Ok(())
        };
        // SAFETY: two system calls and a comparison; nothing allocates, locks or panics.
        unsafe { command.pre_exec(ask) };
        Ok(())
    }

    /// Sends a signal to the program and to all that it has started.
    pub(crate) fn signal(child: &Child, signal: Signal) {
        for process in living(child) {
            process.signal(signal);
        }
    }

    /// Does nothing run any more that the program has started?
    pub(crate) fn is_empty(child: &Child) -> bool {
        living(child).is_empty()
    }

    pub(crate) fn processor_time(child: &Child) -> Option<Duration> {
        let ticks: u64 = found(child).iter().map(|process| process.ticks).sum();
        let a_second = rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_millis(ticks.saturating_mul(1000) / a_second))
    }

    fn living(child: &Child) -> Vec<Process> {
        let mut living = found(child);
        living.retain(|process| !process.dead);
        living
    }

    /// The descendants. Nobody else waits for whom this process has adopted: buries those that are dead.
    fn found(child: &Child) -> Vec<Process> {
        let own = rustix::process::getpid();
        let found = descendants();
        for process in &found {
            if process.dead && process.parent == own && Some(process.pid) != pid_of(child) {
                let _ = rustix::process::waitpid(Some(process.pid), WaitOptions::NOHANG);
            }
        }
        found
    }

    /// The program's, as long as it has not been waited for.
    fn pid_of(child: &Child) -> Option<Pid> {
        Pid::from_raw(child.id()?.cast_signed())
    }

    /// A line of `/proc/PID/stat`, proc(5).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Process {
        pid: Pid,
        parent: Pid,
        dead: bool,
        /// Processor time used, by it and by those of its children that have been waited for.
        ticks: u64,
        /// When it started: tells it from a later one with the same number.
        started: u64,
    }

    impl Process {
        fn read(pid: Pid) -> Option<Process> {
            let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
            Process::parse(pid, &String::from_utf8_lossy(&stat))
        }

        fn parse(pid: Pid, stat: &str) -> Option<Process> {
            // The second field is the name in parentheses, and may itself contain some.
            let (_, fields) = stat.rsplit_once(") ")?;
            let fields: Vec<&str> = fields.split(' ').collect();
            // Counted from the third field of the manual.
            let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
            let parent = Pid::from_raw(i32::try_from(number(4)?).ok()?)?;
            let ticks = [14, 15, 16, 17].map(number).iter().flatten().sum();
            let dead = matches!(*fields.first()?, "Z" | "X");
            Some(Process { pid, parent, dead, ticks, started: number(22)? })
        }

        fn signal(&self, signal: Signal) {
            // Once it is held by its descriptor, its number is nobody else's.
            let Ok(held) = rustix::process::pidfd_open(self.pid, PidfdFlags::empty()) else {
                return;
            };
            if Process::read(self.pid).is_some_and(|now| now.started == self.started) {
                // It fails only if the process is dead already.
                let _ = rustix::process::pidfd_send_signal(held, signal);
            }
        }
    }

    /// All that descend from this process, parents first.
    fn descendants() -> Vec<Process> {
        let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(process) = pid.and_then(Pid::from_raw).and_then(Process::read) {
                children.entry(process.parent).or_default().push(process);
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

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_name_may_look_like_the_fields_behind_it() {
            let stat = "7 (a) Z 1 (b) S 5 7 7 0 -1 4194560 1 0 0 0 11 22 33 44 20 0 1 0 987 0 0";
            let pid = Pid::from_raw(7).unwrap();
            let process = Process::parse(pid, stat).unwrap();
            let parent = Pid::from_raw(5).unwrap();
            assert_eq!(process, Process { pid, parent, dead: false, ticks: 110, started: 987 });
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::{Pid, Signal};
    use tokio::process::Child;

    pub(crate) fn adopt() -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn prepare(command: &mut Command) -> io::Result<()> {
        command.process_group(0);
        Ok(())
    }

    /// Sends a signal to the program's group; only while the program is not reaped, because its
    /// number may be somebody else's afterwards.
    pub(crate) fn signal(child: &Child, signal: Signal) {
        if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It fails only if everybody is dead already.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    pub(crate) fn is_empty(_: &Child) -> bool {
        true
    }

    pub(crate) fn processor_time(_: &Child) -> Option<Duration> {
        None
    }
}
