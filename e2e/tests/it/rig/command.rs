//! The command line, as a person or a script uses it.

use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::Signal;
use serde_json::Value;

use super::wait::{LONG, until};
use super::{Process, Server, rayreel};

/// A command that runs; ended with the value.
#[derive(Debug)]
pub(crate) struct Command {
    child: Child,
    pub(crate) process: Process,
    words: String,
    stdout: Heard,
    stderr: Heard,
}

/// How a command ended, and what it printed.
#[derive(Debug)]
pub(crate) struct Finished {
    #[expect(dead_code, reason = "shown when something is wrong")]
    words: String,
    /// None if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// A stream that a thread reads to its end.
#[derive(Debug)]
struct Heard {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

/// The binary on a server's data directory, with nothing of the caller's environment that could
/// change what it does.
pub(super) fn plain(server: &Server, words: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(rayreel());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["RAYREEL_", "XDG_", "AWS_"].iter().any(|prefix| text.starts_with(prefix))
            || text.to_ascii_lowercase().ends_with("_proxy")
        {
            command.env_remove(&name);
        }
    }
    command
        .env("HOME", server.directory())
        .env("RAYREEL_CONFIG", server.config())
        .env("RAYREEL_DATA", server.home())
        .envs(server.variables.iter().map(|(name, value)| (name, value)))
        .current_dir(server.directory())
        .args(words);
    command
}

/// The same, with a soft limit of so many open files.
pub(super) fn with_files(command: &std::process::Command, files: u32) -> std::process::Command {
    let mut limited = std::process::Command::new("sh");
    limited
        .args(["-c", "ulimit -S -n \"$0\" && exec \"$@\"", &files.to_string()])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().expect("set"));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

impl Command {
    pub(super) fn start(server: &Server, words: &[&str]) -> Self {
        Self::spawn(plain(server, words))
    }

    /// With one more variable in its environment.
    pub(crate) fn start_with(server: &Server, words: &[&str], variable: (&str, &str)) -> Self {
        let mut command = plain(server, words);
        command.env(variable.0, variable.1);
        Self::spawn(command)
    }

    fn spawn(mut command: std::process::Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let words = format!("{command:?}");
        Self {
            // It can't be reaped before `child` is waited for, so it is found even if it has ended.
            process: Process::of_child(&child),
            stdout: Heard::start(child.stdout.take().expect("piped")),
            stderr: Heard::start(child.stderr.take().expect("piped")),
            child,
            words,
        }
    }

    /// SIGINT, as Ctrl-C sends it.
    pub(crate) fn interrupt(&self) {
        self.process.signal(Signal::INT);
    }

    pub(crate) fn kill(&self) {
        self.process.signal(Signal::KILL);
    }

    /// What it has printed on standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// What it has printed on standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Waits until standard error has these words.
    #[track_caller]
    pub(crate) fn wait_for_words(&self, words: &str) {
        until(&format!("`{words}` from {}; it said {}", self.words, self.stderr()), || {
            self.stderr().contains(words).then_some(())
        });
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        if !self.process.wait(LONG * 2) {
            panic!("{} does not end; it said {}", self.words, self.stderr());
        }
        let status = self.child.wait().expect("it was started here");
        Finished {
            words: self.words.clone(),
            code: status.code(),
            stdout: self.stdout.whole(),
            stderr: String::from_utf8_lossy(&self.stderr.whole()).into_owned(),
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

impl Heard {
    fn start(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut piece) {
                heard.lock().expect("no panic holds it").extend_from_slice(&piece[..length]);
            }
        });
        Self { bytes, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no panic holds it")).into_owned()
    }

    /// All of it, once the stream has ended.
    fn whole(&mut self) -> Vec<u8> {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        std::mem::take(&mut *self.bytes.lock().expect("no panic holds it"))
    }
}

impl Finished {
    /// Fails unless it ended with this status.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.expect_code(0)
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("text")
    }

    /// Standard output as one JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// The error on standard error, as `--json` prints it.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let last = self.stderr.lines().last().unwrap_or_default();
        let mut body: Value =
            serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {self:#?}"));
        body["error"].take()
    }
}
