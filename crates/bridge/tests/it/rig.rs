//! An engine process under test, and the programs that it runs.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// The first bytes of a PNG file.
pub(crate) const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// What every scripted program can do.
const PRELUDE: &str = r#"
import json, os, pathlib, signal, subprocess, sys, time
PNG = b"\x89PNG\r\n\x1a\n"
output = pathlib.Path(os.environ["RAYREEL_OUTPUT"])
here = pathlib.Path(__file__).parent

def note(name, text):
    "Leaves something where the test finds it, in one go."
    (here / (name + "-")).write_text(str(text))
    (here / (name + "-")).rename(here / name)

def wait(name):
    "Waits until the test puts a file there."
    while not (here / name).exists():
        time.sleep(0.005)

def sleeper(**how):
    "A process that would outlive everybody."
    return subprocess.Popen(["sleep", "1000"], **how).pid

"#;

pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<Value>,
    log: Receiver<String>,
    jobs: u32,
}

impl Rig {
    /// An engine that knows nothing yet.
    pub(crate) fn new(engine: &str) -> Rig {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rayreel-bridge"))
            .arg(engine)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, said) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines() {
                let _ = tell.send(serde_json::from_str(&line.unwrap()).unwrap());
            }
        });
        let (tell, log) = mpsc::channel();
        let mut errors = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = errors.read_to_end(&mut text);
            let _ = tell.send(String::from_utf8_lossy(&text).into_owned());
        });
        let stdin = child.stdin.take();
        let dir = tempfile::tempdir().unwrap();
        Rig { dir, child, stdin, said, log, jobs: 0 }
    }

    /// The engine `command` with a Python script as its program, loaded. `more` are further settings.
    pub(crate) fn scripted(script: &str, more: Value) -> Rig {
        let mut rig = Rig::new("command");
        let program = rig.script(script);
        let mut settings = json!({"run": ["python3", "-S", program, "--prompt={prompt}"]});
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = rig.load(&settings);
        assert_eq!(answer["type"], "ready", "{answer}");
        rig
    }

    /// Writes a program.
    pub(crate) fn script(&self, script: &str) -> PathBuf {
        let path = self.path("program.py");
        fs::write(&path, format!("{PRELUDE}{script}")).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn say(&mut self, message: &Value) {
        let line = format!("{message}\n");
        self.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    pub(crate) fn hear(&mut self) -> Value {
        self.said.recv_timeout(PATIENCE).expect("the engine says something in time")
    }

    pub(crate) fn load(&mut self, settings: &Value) -> Value {
        self.load_with(settings, &json!({}))
    }

    /// Loads with what else the worker may say.
    pub(crate) fn load_with(&mut self, settings: &Value, more: &Value) -> Value {
        let checkpoint = self.dir.path();
        let mut message = json!({
            "type": "load", "protocol": 1, "model": "m", "checkpoint": checkpoint,
            "settings": settings,
        });
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.say(&message);
        self.hear()
    }

    /// Asks for a still, or for what `more` makes of it, and says where its files should be.
    pub(crate) fn ask(&mut self, more: &Value) -> PathBuf {
        self.jobs += 1;
        let id = format!("job-{}", self.jobs);
        let out = self.path(&id).join("out");
        fs::create_dir_all(&out).unwrap();
        let mut request = json!({
            "prompt": "a cat", "width": 64, "height": 48, "frames": 1, "fps": 16, "steps": 20,
            "seed": 7, "format": "png",
        });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let generate = json!({"type": "generate", "id": id, "output_dir": out, "request": request});
        self.say(&generate);
        out
    }

    /// The answer that ends the newest generation.
    pub(crate) fn answer(&mut self) -> Value {
        loop {
            let said = self.hear();
            assert_eq!(said["id"], format!("job-{}", self.jobs), "{said}");
            if said["type"] != "progress" {
                return said;
            }
        }
    }

    /// A still with this prompt, and what comes of it.
    pub(crate) fn generate(&mut self, more: &Value) -> Value {
        self.ask(more);
        self.answer()
    }

    pub(crate) fn cancel(&mut self) {
        let id = format!("job-{}", self.jobs);
        self.say(&json!({"type": "cancel", "id": id}));
    }

    /// What a program has left with `note`.
    pub(crate) fn noted(&self, name: &str) -> String {
        let path = self.path(name);
        until(|| path.exists());
        fs::read_to_string(path).unwrap()
    }

    pub(crate) fn put(&self, name: &str) {
        fs::write(self.path(name), "").unwrap();
    }

    pub(crate) fn hang_up(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Has the engine leave: gives its exit status, and all that it has written to the log.
    pub(crate) fn finish(mut self) -> (Option<i32>, String) {
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.write_all(b"{\"type\":\"exit\"}\n");
        }
        until(|| self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        (status.code(), self.log.recv_timeout(PATIENCE).expect("nobody holds the log any more"))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn until(condition: impl FnMut() -> bool) {
    assert!(within(PATIENCE, condition), "it did not come true in time");
}

fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let late = Instant::now() + limit;
    while !condition() {
        if Instant::now() > late {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    true
}

/// Does the process run? One that is dead and not buried does not.
pub(crate) fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A program of its own that can be run.
pub(crate) fn program(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
