//! Other programs that are asked something, and may not take for ever.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rayreel_server::home::reason;
use rustix::process::{Pid, Signal, kill_process_group};

/// Nothing that a program says is kept beyond this.
const MOST: u64 = 1 << 16;

/// What a program said.
#[derive(Debug)]
pub(super) struct Said {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Why a program said nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{}", reason(.0))]
    NotStarted(io::Error),
    #[error("it did not end within {} s", .0.as_secs())]
    TooLong(Duration),
}

/// Runs a program to its end, or kills it.
pub(super) fn ask(command: &mut Command, limit: Duration) -> Result<Said, Error> {
    let until = Instant::now() + limit;
    rayreel_process::die_with_parent(command);
    // A group of its own, so that all that it has started can be ended with it.
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::NotStarted)?;
    let stdout = listen(child.stdout.take());
    let stderr = listen(child.stderr.take());
    let hear = |from: &Receiver<String>| {
        from.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
    };
    match (hear(&stdout), hear(&stderr)) {
        (Some(stdout), Some(stderr)) => {
            let success = child.wait().map_err(Error::NotStarted)?.success();
            Ok(Said { success, stdout, stderr })
        }
        _ => {
            kill(child);
            Err(Error::TooLong(limit))
        }
    }
}

fn kill(mut child: Child) {
    // It fails only if all of them have ended meanwhile.
    _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    _ = child.wait();
}

/// What comes until the end, on a thread that ends with it.
fn listen(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let Some(mut stream) = stream else {
            return;
        };
        let mut said = Vec::new();
        // What is beyond the bound is read all the same, so that the program is not held up.
        _ = stream.by_ref().take(MOST).read_to_end(&mut said);
        _ = io::copy(&mut stream, &mut io::sink());
        // Nobody listens any more if it took too long.
        _ = tell.send(String::from_utf8_lossy(&said).into_owned());
    });
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Said, Error> {
        ask(Command::new("/bin/sh").args(["-c", script]), limit)
    }

    #[test]
    fn what_a_program_says_is_heard_to_a_bound() {
        let minute = Duration::from_secs(60);
        let said = shell("echo out; echo err >&2; exit 3", minute).expect("it ends");
        assert_eq!((said.success, &*said.stdout, &*said.stderr), (false, "out\n", "err\n"));
        let long = shell("yes | head -c 1000000", minute).expect("it ends");
        assert_eq!(long.stdout.len(), 1 << 16);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let error = shell("exec sleep 1000", Duration::from_millis(100)).expect_err("too long");
        assert!(matches!(error, Error::TooLong(_)), "{error}");
        // With all that it has started, which would hold its outputs open.
        let script = "sleep 1000 & echo $! >&2; echo $!; exec sleep 1000";
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("child");
        let script = script.replace(">&2", &format!(">{}", path.display()));
        shell(&script, Duration::from_millis(500)).expect_err("too long");
        let child = std::fs::read_to_string(path).expect("it had started");
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let start = Instant::now();
        while cfg!(target_os = "linux") && runs() {
            assert!(start.elapsed() < Duration::from_secs(60), "it runs still");
            thread::park_timeout(Duration::from_millis(2));
        }
        let error = ask(&mut Command::new("/there/is/none"), Duration::from_secs(1));
        assert!(error.expect_err("no program").to_string().starts_with("it does not exist"));
    }
}
