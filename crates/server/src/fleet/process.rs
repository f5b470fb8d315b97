//! Processes of this machine, told apart from later ones with the same id by their start time.

use rustix::process::{Pid, Signal};

/// When the process started, in clock ticks since boot (proc(5), field 22 of `stat`); none if there
/// is no such process, or only its zombie.
#[cfg(target_os = "linux")]
pub fn start_time(pid: u32) -> Option<u64> {
    let process = rayreel_process::Process::read(raw(pid)?)?;
    (!process.dead).then_some(process.started)
}

/// Without `/proc` a process is only known to exist.
#[cfg(not(target_os = "linux"))]
pub fn start_time(pid: u32) -> Option<u64> {
    rustix::process::test_kill_process(raw(pid)?).ok().map(|()| 0)
}

/// Does the process that started then still run?
pub fn alive(pid: u32, started: Option<u64>) -> bool {
    start_time(pid).is_some_and(|now| started.is_none_or(|then| then == now))
}

/// Sends a signal to the process, if it is still the same.
pub fn signal(pid: u32, started: Option<u64>, signal: Signal) {
    if alive(pid, started)
        && let Some(pid) = raw(pid)
    {
        // It may end between the look and the signal; then there is nothing to do.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The process that has this argument on its command line: a launch whose start was not written
/// down because the server died in between.
#[cfg(target_os = "linux")]
pub fn with_argument(argument: &str) -> Option<u32> {
    let own = std::process::id();
    std::fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let found = line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes());
        (found && pid != own && start_time(pid).is_some()).then_some(pid)
    })
}

#[cfg(not(target_os = "linux"))]
pub fn with_argument(_argument: &str) -> Option<u32> {
    None
}

/// Kills every process that has this entry in its environment: whatever a worker has started, in
/// whichever group or session it is by now, and whoever is its parent. Blocks for some milliseconds.
pub fn kill_with_variable(entry: &str) {
    /// One that starts others while it is looked for is found by them the next time.
    const ROUNDS: usize = 8;
    for _ in 0..ROUNDS {
        let mut all = rayreel_process::all();
        all.retain(|process| !process.dead && process.has_variable(entry));
        if all.is_empty() {
            return;
        }
        all.iter().for_each(|process| process.signal(Signal::KILL));
    }
}

fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let own = std::process::id();
        let started = start_time(own).expect("this process runs");
        assert!(alive(own, Some(started)));
        assert!(!alive(own, Some(started + 1)), "another process with the same id");
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_even_as_a_zombie() {
        let mut child = std::process::Command::new("true").spawn().expect("started");
        let pid = child.id();
        // Ends, and stays a zombie until it is waited for.
        while start_time(pid).is_some() {
            std::thread::yield_now();
        }
        assert!(!alive(pid, None));
        child.wait().expect("waited");
    }
}
