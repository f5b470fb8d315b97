//! The engine `server` as a worker meets it, in front of stand-ins for engine servers that speak what
//! the real ones do (`standin.py`). Each test runs the engine in a process of its own, as a worker does:
//! what descends from that process is the engine's to kill.

mod cancel;
mod faults;
mod generate;
mod left;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use rayreel_domain::wire::engine::{
    Done, EngineError, EngineErrorCode, EngineRequest, Format, FromEngine, Generate, PROTOCOL,
    ToEngine,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::rig::{runs, until};

/// Longer than anything here takes, on a machine that has other things to do as well.
const PATIENCE: Duration = Duration::from_secs(60);

const STANDIN: &str = include_str!("standin.py");

/// An engine process, and the directory where its stand-in writes what a test wants to know.
struct Engine {
    process: Child,
    stdin: Option<ChildStdin>,
    messages: Receiver<FromEngine>,
    log: Arc<Mutex<String>>,
    state: Arc<TempDir>,
    output: TempDir,
    adapter: &'static str,
    /// What it was loaded with.
    loaded: Value,
}

/// How a stand-in behaves.
#[derive(Default, Clone, Copy)]
struct Act {
    faults: &'static str,
    /// Seconds; 0.2 if none.
    work: Option<&'static str>,
    result: Option<&'static [u8]>,
}

impl Act {
    fn faults(faults: &'static str) -> Act {
        Act { faults, ..Act::default() }
    }

    /// A job that does not end while a test runs.
    fn endless() -> Act {
        Act { work: Some("1000"), ..Act::default() }
    }

    /// Jobs end when a test says so: [`Engine::go`].
    fn gate() -> Act {
        Act { work: Some("gate"), ..Act::default() }
    }
}

impl Engine {
    /// The engine, that has not loaded yet.
    fn start(adapter: &'static str) -> Engine {
        Engine::start_in(adapter, Arc::new(tempfile::tempdir().unwrap()))
    }

    /// The same where another one has been.
    fn start_in(adapter: &'static str, state: Arc<TempDir>) -> Engine {
        // The worker's part.
        let scratch = state.path().join("scratch");
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir(&scratch).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_rayreel-bridge"))
            .arg("server")
            .env("RAYREEL_ENGINE_KEY", "Bearer secret")
            .env("RAYREEL_SCRATCH", &scratch)
            .env("RAYREEL_KEEP", state.path().join("keep"))
            // A proxy that would break everything.
            .env("http_proxy", "http://127.0.0.1:9")
            .env("HTTP_PROXY", "http://127.0.0.1:9")
            .env("all_proxy", "http://127.0.0.1:9")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, messages) = channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines() {
                let line = line.unwrap();
                let message = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let log = Arc::new(Mutex::new(String::new()));
        let mut stderr = process.stderr.take().unwrap();
        let copy = Arc::clone(&log);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let stdin = process.stdin.take();
        let output = tempfile::tempdir().unwrap();
        let loaded = Value::Null;
        Engine { process, stdin, messages, log, state, output, adapter, loaded }
    }

    /// The engine with a stand-in of its own, ready.
    fn loaded(adapter: &'static str, act: Act, more: Value) -> Engine {
        let mut engine = Engine::start(adapter);
        engine.load(&engine.settings(act, more));
        match engine.hear() {
            FromEngine::Ready { engine, .. } => assert_eq!(engine, format!("server ({adapter})")),
            other => panic!("{other:?}\n{}", engine.log()),
        }
        engine
    }

    /// The engine with a server that it has not started.
    fn at_url(adapter: &'static str, act: Act, more: Value) -> (Engine, Standin) {
        let mut engine = Engine::start(adapter);
        let standin = Standin::start(adapter, act, engine.state.path());
        let mut settings = json!({"adapter": adapter, "url": standin.url()});
        merge(&mut settings, more);
        engine.load(&settings);
        engine.expect_ready();
        (engine, standin)
    }

    /// Has it leave, as a worker does whose next task is for another model.
    fn leaves(mut self) -> Engine {
        self.say(&ToEngine::Exit);
        self.succeeded()
    }

    fn killed(mut self) -> Engine {
        self.process.kill().unwrap();
        self.succeeded()
    }

    /// The next engine of the same model, ready.
    fn succeeded(mut self) -> Engine {
        until(|| self.process.try_wait().unwrap().is_some());
        let mut next = Engine::start_in(self.adapter, Arc::clone(&self.state));
        next.load(&self.loaded);
        next.expect_ready();
        next
    }

    fn expect_ready(&self) {
        let ready = self.hear();
        assert!(matches!(ready, FromEngine::Ready { .. }), "{ready:?}\n{}", self.log());
    }

    /// Settings that start a stand-in.
    fn settings(&self, act: Act, more: Value) -> Value {
        let state = self.state.path();
        let mut settings = json!({
            "adapter": self.adapter,
            "run": ["python3", standin_in(state), self.adapter, "{port}", state],
            "environment": environment(act, state),
        });
        merge(&mut settings, more);
        settings
    }

    fn say(&mut self, message: &ToEngine) {
        let line = serde_json::to_string(message).unwrap();
        let stdin = self.stdin.as_mut().expect("not hung up");
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }

    fn load(&mut self, settings: &Value) {
        self.loaded = settings.clone();
        self.say(&load(settings));
    }

    fn generate(&mut self, id: &str, request: EngineRequest) {
        let output_dir = self.output.path().join(id);
        fs::create_dir(&output_dir).unwrap();
        let output_dir = output_dir.to_str().unwrap().to_owned();
        self.say(&ToEngine::Generate(Generate { id: id.into(), output_dir, request }));
    }

    fn cancel(&mut self, id: &str) {
        self.say(&ToEngine::Cancel { id: id.into() });
    }

    fn hear(&self) -> FromEngine {
        match self.messages.recv_timeout(PATIENCE) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => panic!("silence\n{}", self.log()),
            Err(RecvTimeoutError::Disconnected) => panic!("it is gone\n{}", self.log()),
        }
    }

    /// What it says of a generation before the end, and the end.
    fn hear_out(&self, id: &str) -> (Vec<(String, u32, u32)>, FromEngine) {
        let mut steps = Vec::new();
        loop {
            match self.hear() {
                FromEngine::Progress { id: of, step, steps: all, stage } => {
                    assert_eq!(of, id);
                    steps.push((stage, step, all));
                }
                end => return (steps, end),
            }
        }
    }

    /// Waits until the server is at the job.
    fn hear_progress(&self, stage: &str) {
        loop {
            match self.hear() {
                FromEngine::Progress { stage: at, .. } if at == stage => return,
                FromEngine::Progress { .. } => {}
                other => panic!("{other:?}\n{}", self.log()),
            }
        }
    }

    fn done(&self, id: &str) -> Done {
        match self.hear_out(id).1 {
            FromEngine::Done(done) if done.id == id => done,
            other => panic!("{other:?}\n{}", self.log()),
        }
    }

    fn error(&self, id: &str) -> EngineError {
        match self.hear_out(id).1 {
            FromEngine::Error(error) if error.id.as_deref() == Some(id) => error,
            other => panic!("{other:?}\n{}", self.log()),
        }
    }

    fn cancelled(&self, id: &str) {
        assert_eq!(self.error(id).code, EngineErrorCode::Cancelled, "{}", self.log());
    }

    fn file(&self, id: &str, name: &str) -> PathBuf {
        self.output.path().join(id).join(name)
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The processes that its stand-ins were, in order.
    fn pids(&self) -> Vec<u32> {
        lines(self.state.path(), "pids").iter().map(|pid| pid.parse().unwrap()).collect()
    }

    fn submits(&self) -> Vec<Map<String, Value>> {
        let submits = lines(self.state.path(), "submits");
        submits.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn go(&self) {
        fs::write(self.state.path().join("go"), "").unwrap();
    }

    fn overlaps(&self) -> usize {
        lines(self.state.path(), "overlaps").len()
    }

    fn deleted(&self) -> usize {
        lines(self.state.path(), "deleted").len()
    }

    /// Says goodbye, and expects that nothing is left.
    fn leave(mut self) {
        self.say(&ToEngine::Exit);
        self.expect_gone();
    }

    fn expect_gone(&mut self) {
        until(|| self.process.try_wait().unwrap().is_some());
        for pid in self.pids() {
            until(|| !is_alive(pid));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A stand-in that the engine has not started.
struct Standin {
    process: Child,
    port: u16,
}

impl Standin {
    fn start(adapter: &str, act: Act, state: &Path) -> Standin {
        Standin::start_at(free_port(), adapter, act, state)
    }

    fn start_at(port: u16, adapter: &str, act: Act, state: &Path) -> Standin {
        let environment = environment(act, state);
        let environment: BTreeMap<String, String> = serde_json::from_value(environment).unwrap();
        let process = Command::new("python3")
            .arg(standin_in(state))
            .arg(adapter)
            .arg(port.to_string())
            .arg(state)
            .current_dir(state)
            .envs(environment)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Standin { process, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn standin_in(state: &Path) -> PathBuf {
    let path = state.join("standin.py");
    fs::write(&path, STANDIN).unwrap();
    path
}

fn environment(act: Act, state: &Path) -> Value {
    let path = state.join("result");
    fs::write(&path, act.result.unwrap_or_else(|| video())).unwrap();
    json!({"FAULT": act.faults, "WORK": act.work.unwrap_or("0.2"), "RESULT": path})
}

fn merge(settings: &mut Value, more: Value) {
    if let Value::Object(more) = more {
        settings.as_object_mut().unwrap().extend(more);
    }
}

fn lines(state: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(state.join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn is_alive(pid: u32) -> bool {
    runs(&pid.to_string())
}

/// Is there such a process, be it a dead one?
fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn request() -> EngineRequest {
    let request = json!({
        "prompt": "a cat, it's \"fine\"\n--help", "negative_prompt": "blurry", "width": 64,
        "height": 64, "frames": 5, "fps": 8, "steps": 4, "seed": 7, "format": "mp4",
    });
    serde_json::from_value(request).unwrap()
}

/// The message that loads with these settings.
fn load(settings: &Value) -> ToEngine {
    let load = json!({"type": "load", "protocol": PROTOCOL, "model": "m", "settings": settings});
    serde_json::from_value(load).unwrap()
}

/// What the test card makes of [`request`]: H.264 in MP4, 64 by 64 pixels, 5 frames, 8 a second.
fn video() -> &'static [u8] {
    static VIDEO: OnceLock<Vec<u8>> = OnceLock::new();
    VIDEO.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let (input, mut lines) = std::io::pipe().unwrap();
        let (output, answers) = std::io::pipe().unwrap();
        let card = thread::spawn(move || rayreel_testcard::run(BufReader::new(input), answers));
        let output_dir = directory.path().to_str().unwrap().to_owned();
        let generate = Generate { id: "g".into(), output_dir, request: request() };
        for message in [load(&json!({"step_ms": 0})), ToEngine::Generate(generate)] {
            writeln!(lines, "{}", serde_json::to_string(&message).unwrap()).unwrap();
        }
        let done = BufReader::new(output).lines().any(|line| line.unwrap().contains("\"done\""));
        assert!(done);
        drop(lines);
        card.join().unwrap().unwrap();
        fs::read(directory.path().join("video.mp4")).unwrap()
    })
}
