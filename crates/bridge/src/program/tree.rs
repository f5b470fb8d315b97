//! Every process that descends from this one.
//!
//! On Linux this process adopts those of its descendants whose parents end ([`adopt`]), so that
//! whatever a program has started is found in `/proc`, in whichever group or session it is. Elsewhere
//! the program gets a process group, and what stays in that group is its tree.

#[cfg(target_os = "linux")]
pub(crate) use linux::{bury, is_empty, prepare, processor_time, signal};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{bury, is_empty, prepare, processor_time, signal};
pub(crate) use rayreel_process::adopt;

#[cfg(target_os = "linux")]
mod linux {
    use std::process::Command;
    use std::time::Duration;

    use rayreel_process::Process;
    use rustix::process::{Pid, Signal};
    use tokio::process::Child;

    /// Has the kernel kill the program when the thread that starts it ends, which is when this
    /// process does.
    pub(crate) fn prepare(command: &mut Command) {
        rayreel_process::die_with_parent(command);
    }

    /// Sends a signal to the program and to all that it has started.
    pub(crate) fn signal(child: &Child, signal: Signal) {
        for process in living(child) {
            process.signal(signal);
        }
    }

    /// Is nothing there any more that the program has started? Who is dead is buried first, and is not
    /// there the next time.
    pub(crate) fn is_empty(child: &Child) -> bool {
        found(child).is_empty()
    }

    pub(crate) fn processor_time(child: &Child) -> Option<Duration> {
        let ticks: u64 = found(child).iter().map(|process| process.ticks).sum();
        let a_second = rustix::param::clock_ticks_per_second().max(1);
        Some(Duration::from_millis(ticks.saturating_mul(1000) / a_second))
    }

    /// Buries those of what the program has started that are dead and that this process has adopted.
    pub(crate) fn bury(child: &Child) {
        if rayreel_process::has_dead_child() {
            found(child);
        }
    }

    fn living(child: &Child) -> Vec<Process> {
        let mut living = found(child);
        living.retain(|process| !process.dead);
        living
    }

    /// The descendants. Nobody else waits for whom this process has adopted: buries those that are dead.
    fn found(child: &Child) -> Vec<Process> {
        let found = rayreel_process::descendants(&rayreel_process::all());
        rayreel_process::bury(&found, pid_of(child).as_slice());
        found
    }

    /// The program's, as long as it has not been waited for.
    fn pid_of(child: &Child) -> Option<Pid> {
        Pid::from_raw(child.id()?.cast_signed())
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::time::Duration;

    use rustix::process::{Pid, Signal};
    use tokio::process::Child;

    pub(crate) fn prepare(command: &mut Command) {
        command.process_group(0);
    }

    /// Sends a signal to the program's group; only while the program is not reaped, because its
    /// number may be somebody else's afterwards.
    pub(crate) fn signal(child: &Child, signal: Signal) {
        if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It fails only if everybody is dead already.
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    pub(crate) fn bury(_: &Child) {}

    pub(crate) fn is_empty(_: &Child) -> bool {
        true
    }

    pub(crate) fn processor_time(_: &Child) -> Option<Duration> {
        None
    }
}
