//! An engine that misbehaves on demand: the first word of the prompt says how. It keeps a journal
//! of what it was told and did, so that a test can see it from the engine's side.
//!
//! Settings of its model: `journal`, the file of the journal; `step_ms`, the length of a step;
//! `gate`, a file for which `hold` waits; `broken`, a file that makes every engine of one worker
//! fail, whatever the prompt; `load`, how to misbehave before any prompt; `deaf`, to go on after the
//! end of the input; `bytes`, about how long the file is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rayreel_domain::wire::engine::{
    Done, EngineError, EngineErrorCode, FromEngine, Generate, Load, MAX_LINE, OutputFile, PROTOCOL,
    Role, ToEngine,
};
use serde_json::{Value, json};

fn main() {
    let (sender, inbox) = channel();
    std::thread::spawn(move || {
        let mut deaf = false;
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let message = serde_json::from_str(&line).expect("the worker keeps to the protocol");
            if let ToEngine::Load(load) = &message {
                deaf = load.settings.get("deaf") == Some(&Value::Bool(true));
            }
            if sender.send(message).is_err() {
                return;
            }
        }
        if deaf {
            wait_for_ever();
        }
        // Whatever the engine is at: its worker is gone.
        exit(0);
    });
    let Ok(ToEngine::Load(load)) = inbox.recv() else { exit(3) };
    let engine = Engine { inbox, load };
    engine.start();
    loop {
        match engine.inbox.recv() {
            Ok(ToEngine::Generate(generate)) => engine.generate(&generate),
            Ok(ToEngine::Exit) | Err(_) => exit(0),
            Ok(ToEngine::Cancel { .. } | ToEngine::Load(_)) => {}
        }
    }
}

struct Engine {
    inbox: Receiver<ToEngine>,
    load: Load,
}

impl Engine {
    fn start(&self) {
        self.note(json!({"event": "load"}));
        match self.load.settings.get("load").and_then(Value::as_str) {
            Some("crash") => {
                eprintln!("the weights are torn");
                exit(5);
            }
            Some("fail") => say(&FromEngine::Error(EngineError {
                id: None,
                code: EngineErrorCode::LoadFailed,
                message: "there are no weights".to_owned(),
                retryable: false,
            })),
            _ => say(&FromEngine::Ready {
                protocol: PROTOCOL,
                engine: "fault-engine".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
        }
    }

    fn generate(&self, asked: &Generate) {
        let prompt = &asked.request.prompt;
        self.note(json!({"event": "generate", "prompt": prompt}));
        if self.is_broken() {
            return self.fail(asked, EngineErrorCode::Failed, "this GPU is broken", true);
        }
        match prompt.split(' ').next().unwrap_or_default() {
            "crash" => {
                eprintln!("CUDA error: an illegal memory access was encountered");
                std::process::abort();
            }
            "leave" => {
                eprintln!("leaving without a word");
                exit(0);
            }
            "garbage" => {
                eprintln!("about to print to the wrong stream");
                print_raw("Loading pipeline components...: 100%\n");
                wait_for_ever();
            }
            "babble" => {
                eprintln!("about to print a line without end");
                print_raw(&"x".repeat(MAX_LINE + 2));
                wait_for_ever();
            }
            "silence" => {
                eprintln!("deep in thought");
                wait_for_ever();
            }
            "stubborn" => {
                for step in 0.. {
                    self.progress(asked, step % 50, 50);
                    wait(Duration::from_millis(50));
                }
            }
            "memory" => {
                eprintln!("torch.OutOfMemoryError: tried to allocate 81 GiB");
                self.fail(asked, EngineErrorCode::OutOfMemory, "CUDA out of memory", true);
            }
            "refuse" => {
                self.fail(asked, EngineErrorCode::InvalidRequest, "no foxes, please", false);
            }
            "fail" => self.fail(asked, EngineErrorCode::Failed, "something went wrong", true),
            "escape" => {
                fs::write(Path::new(&asked.output_dir).join("../escaped.mp4"), b"escaped")
                    .expect("written");
                self.done(asked, "../escaped.mp4");
            }
            "link" => {
                symlink("/etc/hostname", Path::new(&asked.output_dir).join("video.mp4"))
                    .expect("linked");
                self.done(asked, "video.mp4");
            }
            "missing" => self.done(asked, "video.mp4"),
            word => self.work(asked, word == "hold"),
        }
    }

    /// Works as an engine should; `hold` ends only when the gate is open.
    fn work(&self, asked: &Generate, hold: bool) {
        let step_ms = self.load.settings.get("step_ms").and_then(Value::as_u64).unwrap_or(0);
        let steps = asked.request.steps;
        for step in 1..=steps {
            if self.is_cancelled(asked, step, Duration::from_millis(step_ms)) {
                return;
            }
            self.note(json!({"event": "step", "step": step}));
            self.progress(asked, step, steps);
        }
        let gate = self.path("gate").unwrap_or_default();
        while hold && !gate.exists() {
            if self.is_cancelled(asked, steps, Duration::from_millis(20)) {
                return;
            }
            self.progress(asked, steps, steps);
        }
        let seed = asked.request.seed;
        let text = format!("not a video; the seed was {seed}\n");
        let long = self.load.settings.get("bytes").and_then(Value::as_u64).unwrap_or(0) as usize;
        let bytes =
            if long == 0 { text.trim_end().to_owned() } else { text.repeat(long / text.len()) };
        fs::write(Path::new(&asked.output_dir).join("video.mp4"), bytes)
            .expect("the output directory can be written");
        self.note(json!({"event": "done"}));
        self.done(asked, "video.mp4");
    }

    /// Listens for as long as a step takes.
    fn is_cancelled(&self, asked: &Generate, step: u32, length: Duration) -> bool {
        let end = Instant::now() + length;
        loop {
            match self.inbox.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(ToEngine::Cancel { id }) if id == asked.id => {
                    self.note(json!({"event": "cancel", "step": step}));
                    self.fail(asked, EngineErrorCode::Cancelled, "cancelled", false);
                    return true;
                }
                Ok(ToEngine::Exit) | Err(RecvTimeoutError::Disconnected) => exit(0),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    /// The first worker whose engine asks is the broken one, for as long as the file names it.
    fn is_broken(&self) -> bool {
        let Some(path) = self.path("broken") else {
            return false;
        };
        let worker = parent_id().to_string();
        if let Ok(mut file) = File::create_new(&path) {
            file.write_all(worker.as_bytes()).expect("written");
        }
        fs::read_to_string(path).is_ok_and(|broken| broken == worker || broken == "all")
    }

    fn progress(&self, asked: &Generate, step: u32, steps: u32) {
        say(&FromEngine::Progress {
            id: asked.id.clone(),
            step,
            steps,
            stage: "denoise".to_owned(),
        });
    }

    fn done(&self, asked: &Generate, path: &str) {
        let request = &asked.request;
        say(&FromEngine::Done(Done {
            id: asked.id.clone(),
            files: vec![OutputFile {
                path: path.to_owned(),
                role: Role::Video,
                media_type: "video/mp4".to_owned(),
                width: request.width,
                height: request.height,
                frames: request.frames,
                fps: request.fps,
            }],
            metrics: Default::default(),
            test_pattern: true,
        }));
    }

    fn fail(&self, asked: &Generate, code: EngineErrorCode, message: &str, retryable: bool) {
        say(&FromEngine::Error(EngineError {
            id: Some(asked.id.clone()),
            code,
            message: message.to_owned(),
            retryable,
        }));
    }

    fn path(&self, setting: &str) -> Option<PathBuf> {
        Some(self.load.settings.get(setting)?.as_str()?.into())
    }

    /// Adds a line to the journal; engines of several workers may write to the same one.
    fn note(&self, mut entry: Value) {
        let Some(path) = self.path("journal") else {
            return;
        };
        entry["pid"] = std::process::id().into();
        entry["worker"] = parent_id().into();
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("{entry}\n").as_bytes()))
            .expect("the journal can be written");
    }
}

fn say(message: &FromEngine) {
    print_raw(&format!("{}\n", serde_json::to_string(message).expect("messages are plain data")));
}

fn print_raw(text: &str) {
    let mut stdout = io::stdout().lock();
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        exit(0);
    }
}

fn wait(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}
