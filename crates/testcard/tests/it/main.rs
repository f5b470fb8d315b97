//! The engine as a worker meets it: lines in, lines out, files in a directory.

mod conversation;
mod mp4;
mod outputs;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use rayreel_domain::wire::engine::{
    Done, EngineError, EngineErrorCode, EngineRequest, Format, FromEngine, Generate, Load,
    PROTOCOL, ToEngine,
};
use serde_json::{Map, Value, json};

/// A running engine and both ends of its pipes. The engine moves in step with the test: it can't
/// go on past a message that the test hasn't taken, and [`Engine::say`] returns when the engine has
/// read the line.
struct Engine {
    lines: Option<Sender<Vec<u8>>>,
    reads: Receiver<()>,
    messages: Receiver<FromEngine>,
    thread: JoinHandle<io::Result<()>>,
}

impl Engine {
    fn start() -> Engine {
        let (lines, input) = channel();
        let (asks, reads) = channel();
        let (sender, messages) = sync_channel(0);
        let input = BufReader::new(Input { lines: input, rest: Vec::new(), asks });
        let output = Output { line: Vec::new(), messages: sender };
        let thread = thread::spawn(move || rayreel_testcard::run(input, output));
        reads.recv().expect("the engine reads its input");
        Engine { lines: Some(lines), reads, messages, thread }
    }

    /// An engine that has loaded and waits `step_ms` in each step.
    fn loaded(step_ms: u64) -> Engine {
        let engine = Engine::start();
        engine.load(&json!({ "step_ms": step_ms }));
        assert!(matches!(engine.hear(), FromEngine::Ready { .. }));
        engine
    }

    /// Sends a line and waits until the engine asks for the next, or has stopped reading.
    fn say_line(&self, line: &str) {
        let lines = self.lines.as_ref().expect("not hung up");
        lines.send(format!("{line}\n").into_bytes()).expect("the engine reads its input");
        let _ = self.reads.recv();
    }

    fn say(&self, message: &ToEngine) {
        self.say_line(&serde_json::to_string(message).expect("messages are JSON"));
    }

    fn load(&self, settings: &Value) {
        let settings = settings.as_object().cloned().expect("settings are an object");
        self.say(&ToEngine::Load(load(PROTOCOL, settings)));
    }

    fn generate(&self, id: &str, output_dir: &Path, request: EngineRequest) {
        let output_dir = output_dir.to_str().expect("a UTF-8 path").into();
        self.say(&ToEngine::Generate(Generate { id: id.into(), output_dir, request }));
    }

    fn cancel(&self, id: &str) {
        self.say(&ToEngine::Cancel { id: id.into() });
    }

    fn hear(&self) -> FromEngine {
        self.messages.recv().expect("the engine answers")
    }

    fn hear_error(&self) -> EngineError {
        match self.hear() {
            FromEngine::Error(error) => error,
            other => panic!("no error but {other:?}"),
        }
    }

    /// The end of the running generation, and the reports before it.
    fn hear_end(&self) -> (Result<Done, EngineError>, Vec<Report>) {
        let mut reports = Vec::new();
        loop {
            match self.hear() {
                FromEngine::Progress { stage, step, steps, .. } => {
                    reports.push((stage, step, steps));
                }
                FromEngine::Done(done) => return (Ok(done), reports),
                FromEngine::Error(error) => return (Err(error), reports),
                FromEngine::Ready { .. } => panic!("ready in the middle of a generation"),
            }
        }
    }

    /// Closes the engine's input, as the death of its worker does.
    fn hang_up(&mut self) {
        self.lines = None;
    }

    /// What the engine returned; it must have said nothing more.
    fn end(self) -> io::Result<()> {
        assert_eq!(self.messages.recv().ok(), None, "said at the end");
        self.thread.join().expect("the engine doesn't panic")
    }
}

/// A progress report's stage, step and steps.
type Report = (String, u32, u32);

/// Standard input: a read blocks until the test says a line.
struct Input {
    lines: Receiver<Vec<u8>>,
    rest: Vec<u8>,
    asks: Sender<()>,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            let _ = self.asks.send(());
            match self.lines.recv() {
                Ok(line) => self.rest = line,
                Err(_) => return Ok(0),
            }
        }
        let read = self.rest.as_slice().read(buffer)?;
        self.rest.drain(..read);
        Ok(read)
    }
}

/// Standard output: a flush blocks until the test has taken the message.
struct Output {
    line: Vec<u8>,
    messages: SyncSender<FromEngine>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
        let message = serde_json::from_slice(&line)?;
        self.messages.send(message).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn load(protocol: u32, settings: Map<String, Value>) -> Load {
    Load { protocol, model: "testcard".into(), checkpoint: None, settings, loras: BTreeMap::new() }
}

/// A small video of five frames.
fn video() -> EngineRequest {
    EngineRequest {
        prompt: "a red fox running through snow".into(),
        negative_prompt: String::new(),
        width: 320,
        height: 192,
        frames: 5,
        fps: 16,
        steps: 3,
        guidance: Some(5.0),
        guidance_2: None,
        seed: 42,
        format: Format::Mp4,
        image: None,
        last_image: None,
        loras: Vec::new(),
    }
}

/// A still of the same size.
fn still() -> EngineRequest {
    EngineRequest { frames: 1, format: Format::Png, ..video() }
}

/// Generates one output with an engine of its own: the answer, and the bytes of its files.
fn generate(request: EngineRequest) -> (Done, Vec<Vec<u8>>) {
    let directory = tempfile::tempdir().expect("a directory for the outputs");
    let engine = Engine::loaded(0);
    engine.generate("one", directory.path(), request);
    let done = engine.hear_end().0.expect("an output");
    engine.say(&ToEngine::Exit);
    engine.end().expect("a clean exit");
    let read = |path| std::fs::read(directory.path().join(path)).expect("the file of an output");
    let files = done.files.iter().map(|file| read(&file.path)).collect();
    (done, files)
}

/// The names of the files in a directory.
fn files_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let name = |entry: io::Result<std::fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> =
        entries.map(|entry| name(entry).into_string().expect("a UTF-8 name")).collect();
    names.sort();
    names
}

fn error(id: Option<&str>, code: EngineErrorCode, message: &str) -> EngineError {
    let retryable = code == EngineErrorCode::Failed;
    EngineError { id: id.map(String::from), code, message: message.into(), retryable }
}
