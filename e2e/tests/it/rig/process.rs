//! Processes of this machine, found in `/proc` and held by a pidfd, so that a signal never reaches
//! a later process with the same id.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process; stays the same one even after its end.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Its command line, as it was when it was found.
    pub(crate) words: Vec<String>,
    fd: OwnedFd,
}

impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        self.pid == other.pid && self.words == other.words
    }
}

impl Process {
    pub(crate) fn find(pid: u32) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        // A zombie has no command line.
        let line = line.strip_suffix(b"\0")?;
        let words = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let process = Self { pid, words, fd };
        // Still there after its line was read: so the line is its own.
        process.is_alive().then_some(process)
    }

    /// A child that has not been waited for, whether it still runs or not.
    pub(crate) fn of_child(child: &std::process::Child) -> Self {
        let raw = child.id().try_into().ok().and_then(Pid::from_raw).expect("a process id");
        let fd = pidfd_open(raw, PidfdFlags::empty()).expect("it is there until it is waited for");
        Self { pid: child.id(), words: Vec::new(), fd }
    }

    /// Every process of a test: servers, workers and engines are started, one by the other, with
    /// the test's directory as their home.
    pub(crate) fn at_home(directory: &Path) -> Vec<Self> {
        let home =
            format!("HOME={}", directory.to_str().expect("test directories have plain names"));
        let lives_there = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == home.as_bytes())
        };
        all().filter(lives_there).filter_map(Self::find).collect()
    }

    pub(crate) fn is_worker(&self) -> bool {
        self.words.iter().any(|word| word == "worker")
    }

    pub(crate) fn is_engine(&self) -> bool {
        self.words.iter().any(|word| word == "engine" || word.ends_with("/fault-engine"))
    }

    /// Process id of who started it, or of who has inherited it since.
    pub(crate) fn parent(&self) -> Option<u32> {
        stat(self.pid)?.split(' ').nth(1)?.parse().ok()
    }

    /// What stands behind a flag on its command line.
    pub(crate) fn value_of(&self, flag: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == flag)?;
        self.words.get(at + 1).map(String::as_str)
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.wait(Duration::ZERO)
    }

    /// Waits until it has ended; says whether it has.
    pub(crate) fn wait(&self, bound: Duration) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let bound = Timespec::try_from(bound).expect("a few minutes at most");
        poll(&mut fds, Some(&bound)).expect("a pidfd can be polled") > 0
    }

    /// Sends a signal; that it has ended meanwhile is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Ends it at once and waits until it is gone.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
        assert!(self.wait(super::LONG), "{} does not die", self.pid);
    }

    /// SIGSTOP; waits until it stands still.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        super::until("a stopped process stands still", || {
            stat(self.pid).filter(|fields| fields.starts_with('T'))
        });
    }

    /// SIGCONT.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }
}

fn all() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The fields of `/proc/PID/stat` behind the name: state, parent …
fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}
