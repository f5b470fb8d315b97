//! A worker under test, with its server, its engines and its directories.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rayreel_domain::wire::worker::{Assignment, EngineSetup, ModelSetup};
use rayreel_domain::{Fence, Nonce, Request, TaskId};
use rayreel_worker::{Error, Exit, Options, Signals};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

use crate::peer::{Peer, TOKEN};

const PATIENCE: Duration = Duration::from_secs(20);

/// What every scripted engine can say.
const PRELUDE: &str = r#"
import json, os, signal, subprocess, sys, time

def say(**message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()

def log(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()

def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    message = json.loads(line)
    if message["type"] == "exit":
        sys.exit(0)
    return message

def ready():
    message = hear()
    say(type="ready", protocol=1, engine="scripted", version="1")
    return message

def step(job, done=1, stage="denoise"):
    say(type="progress", id=job["id"], step=done, steps=10, stage=stage)

def put(job, data, name="video.mp4"):
    with open(os.path.join(job["output_dir"], name), "w") as file:
        file.write(data)

def announce(path="video.mp4", role="video", media_type="video/mp4"):
    return dict(path=path, role=role, media_type=media_type, width=64, height=64, frames=5, fps=8)

def done(job, data=None, files=None):
    if data is None:
        data = str(os.getpid())
    if files is None:
        put(job, data)
        files = [announce()]
    say(type="done", id=job["id"], files=files, metrics={"denoise_ms": 1.5}, test_pattern=True)

def error(job, code, message="scripted", retryable=False):
    say(type="error", id=job["id"], code=code, message=message, retryable=retryable)

def gate(path):
    "Waits until the test opens it."
    with open(path) as pipe:
        pipe.read()

def first(marker):
    "True once a test, however often the engine starts."
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False

load = None
"#;

/// An engine that makes a file with its process id in it, again and again.
pub(crate) const GOOD: &str = "
load = ready()
while True:
    job = hear()
    if job['type'] == 'generate':
        step(job)
        done(job)
";

pub(crate) struct Rig {
    pub(crate) peer: Peer,
    pub(crate) dir: TempDir,
    pub(crate) signals: Signals,
    ended: mpsc::Receiver<Result<Exit, Error>>,
    scripts: u32,
    tasks: u8,
}

impl Rig {
    /// A worker that has registered and waits for a task.
    pub(crate) fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// The same with other options, or another script for the server.
    pub(crate) fn with(change: impl FnOnce(&mut Options, &mut Peer)) -> Self {
        let mut peer = Peer::start();
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options {
            server: peer.url(),
            token: TOKEN.into(),
            pool: "pool".parse().unwrap(),
            name: "worker-1".parse().unwrap(),
            launch: None,
            home: None,
            scratch: dir.path().join("scratch"),
            engine_program: "/nonexistent/rayreel".into(),
            // Other tests have children in this process.
            alone: false,
            outage_keep: Options::OUTAGE_KEEP,
            orphan_idle: Options::ORPHAN_IDLE,
            drain_grace: Options::DRAIN_GRACE,
        };
        change(&mut options, &mut peer);
        let signals = Signals::default();
        let (tell, ended) = mpsc::channel();
        let given = signals.clone();
        std::thread::spawn(move || {
            // One thread, so that whatever blocks it stalls the worker.
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = tell.send(runtime.block_on(rayreel_worker::run(options, given)));
        });
        Self { peer, dir, signals, ended, scripts: 0, tasks: 0 }
    }

    /// A model whose engine is this script.
    pub(crate) fn model(&mut self, script: &str) -> ModelSetup {
        self.scripts += 1;
        let path = self.dir.path().join(format!("engine-{}.py", self.scripts));
        std::fs::write(&path, format!("{PRELUDE}\n{script}")).unwrap();
        let words = ["python3", "-I", "-S", path.to_str().unwrap()];
        ModelSetup {
            name: format!("model-{}", self.scripts).parse().unwrap(),
            engine: EngineSetup::Command(words.map(str::to_owned).into()),
            checkpoint: None,
            settings: serde_json::Map::new(),
            loras: std::collections::BTreeMap::new(),
            silence_ms: 20_000,
            grace_ms: 20_000,
        }
    }

    /// A task for the model; not given to the worker yet.
    pub(crate) fn task(&mut self, model: &ModelSetup) -> Assignment {
        self.tasks += 1;
        Assignment {
            fence: Fence {
                task: TaskId::new(u64::from(self.tasks), [self.tasks; 10]),
                attempt: 1,
                nonce: Nonce(u64::from(self.tasks)),
            },
            request: request(""),
            model: model.clone(),
            max_run_ms: 60_000,
        }
    }

    /// Gives the worker a task.
    pub(crate) fn assign(&mut self, model: &ModelSetup) -> Fence {
        let task = self.task(model);
        let fence = task.fence;
        self.peer.assign(task);
        fence
    }

    /// Gives the worker a task whose prompt tells the engine what to do.
    pub(crate) fn ask(&mut self, model: &ModelSetup, prompt: &str) -> Fence {
        let task = Assignment { request: request(prompt), ..self.task(model) };
        let fence = task.fence;
        self.peer.assign(task);
        fence
    }

    /// A path for a script, in quotes.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{:?}", self.dir.path().join(name))
    }

    /// A gate that engines wait at; see `gate` in the prelude.
    pub(crate) fn gate(&self, name: &str) -> Gate {
        let path = self.dir.path().join(name);
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        Gate(path)
    }

    /// Waits for progress of this attempt that says so.
    pub(crate) fn wait_progress(&self, fence: Fence, step: u32) {
        use crate::peer::Call;
        self.peer.wait(&format!("step {step}"), |script| {
            script
                .calls
                .iter()
                .any(|call| {
                    matches!(call, Call::Beat(beat) if beat.fence == fence
                        && beat.progress.as_ref().is_some_and(|p| p.step == step))
                })
                .then_some(())
        });
    }

    /// How the worker ended; waits for it.
    pub(crate) fn ended(&self) -> Result<Exit, Error> {
        self.ended.recv_timeout(PATIENCE).expect("the worker ends")
    }

    /// Has the worker leave, and sees that it leaves nothing behind.
    pub(crate) fn finish(self) {
        self.signals.drain.cancel();
        assert_eq!(self.ended().unwrap(), Exit::Drained);
        assert_eq!(files_below(&self.dir.path().join("scratch")), Vec::<PathBuf>::new());
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.signals.abort.cancel();
        // A test that has failed tells of itself.
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

pub(crate) struct Gate(PathBuf);

impl Gate {
    pub(crate) fn path(&self) -> String {
        format!("{:?}", self.0)
    }

    /// Lets the engine pass; waits until it is there.
    pub(crate) fn open(self) {
        drop(OpenOptions::new().write(true).open(self.0).unwrap());
    }
}

pub(crate) fn request(prompt: &str) -> Request {
    serde_json::from_value(serde_json::json!({
        "prompt": prompt, "size": "64x64", "frames": 5, "fps": 8, "steps": 10, "seed": 42,
        "format": "mp4",
    }))
    .unwrap()
}

pub(crate) fn files_below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Waits until a process has ended; that it is already gone is as good.
pub(crate) fn wait_gone(pid: &str) {
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let mut poll_fd = [PollFd::new(&process, PollFlags::IN)];
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut poll_fd, Some(&limit)).unwrap(), 1, "process {pid:?} lives on");
}

/// Is a process running now?
pub(crate) fn is_alive(pid: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A dead one may not have been reaped by whoever adopted it.
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Writes a file at once and whole.
pub(crate) fn write(path: &Path, text: &str) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}
