//! The engine: one child process at a time, kept warm for as long as the model stays the same.
//!
//! Each failure of an engine becomes a [`Failure`] with a code of its own and the last lines of
//! its standard error. An engine that breaks the protocol, falls silent or does not stop when asked
//! is killed with all that it has started; the next task gets a fresh one. So does the task after an
//! engine that has spoken without being asked: what it says of an ended task is not the next one's
//! failure.

mod environment;
mod plain;
mod process;
mod remains;
mod tail;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rayreel_domain::task::Failure;
use rayreel_domain::wire::engine::{
    Done, EngineError, EngineErrorCode, FromEngine, Generate, Load, MAX_LINE, PROTOCOL, ToEngine,
};
use rayreel_domain::wire::worker::{EngineSetup, ModelSetup, Progress};
use rayreel_domain::{Code, ModelName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::scratch::Rooms;
use process::Process;

/// How long the end of a process, or of its output, may lag behind the other.
const LAG: Duration = Duration::from_secs(1);
/// How long a killed process may take to be gone. One that hangs in a driver may take for ever.
const KILL: Duration = Duration::from_secs(5);
/// How long an idle engine may take to leave when told to.
const LEAVE: Duration = Duration::from_secs(1);
/// Longest name of a stage that is passed on, in characters.
const MAX_STAGE: usize = 64;

/// The worker's place for an engine.
#[derive(Debug)]
pub(crate) struct Host {
    /// Runs the built-in engines.
    program: PathBuf,
    /// See [`crate::Options::alone`].
    alone: bool,
    rooms: Rooms,
    engine: Option<Engine>,
}

impl Host {
    pub(crate) fn new(program: PathBuf, alone: bool, rooms: Rooms) -> Self {
        Self { program, alone, rooms, engine: None }
    }

    /// The model that is loaded or being loaded.
    pub(crate) fn loaded(&self) -> Option<ModelName> {
        self.engine.as_ref().filter(|engine| engine.is_alive()).map(|e| e.setup.name.clone())
    }

    pub(crate) fn is_loading(&self) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.state == State::Loading)
    }

    /// An engine with this model, ready to generate. If this is dropped, the engine goes on
    /// loading, and the next call finds it.
    pub(crate) async fn load(&mut self, setup: &ModelSetup) -> Result<&mut Engine, Failure> {
        if self.alone {
            remains::bury_orphans();
        }
        let mut old = self.engine.take();
        let fits = old.as_mut().is_some_and(|old| old.is_fit() && old.serves(setup));
        let mut engine = match old {
            Some(old) if fits => old,
            old => {
                if let Some(old) = old {
                    old.leave().await;
                }
                Engine::start(setup, &self.program, self.alone, &mut self.rooms)?
            }
        };
        engine.setup.clone_from(setup);
        // Nobody has listened since the last task.
        engine.heard = Instant::now();
        let engine = self.engine.insert(engine);
        engine.ready().await?;
        Ok(engine)
    }

    /// Stops the generation under way, if there is one. An engine that obeys stays warm.
    pub(crate) async fn halt(&mut self) {
        if let Some(engine) = &mut self.engine {
            engine.halt().await;
        }
    }

    /// Has an idle engine leave.
    pub(crate) async fn leave(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.leave().await;
        }
    }

    /// Kills the engine, whatever it does.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut engine) = self.engine.take() {
            engine.kill().await;
        }
    }
}

/// What the engine is at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Loading,
    Idle,
    Generating {
        id: String,
    },
    /// Killed, or broken and about to be.
    Dead,
}

/// An engine process and the talk with it.
#[derive(Debug)]
pub(crate) struct Engine {
    setup: ModelSetup,
    process: Process,
    state: State,
    /// Bytes that are still to be written.
    outbox: Vec<u8>,
    /// Bytes that were read and are no whole line yet.
    inbox: Vec<u8>,
    /// When the engine last gave a sign of life.
    heard: Instant,
    /// The generation before this one.
    before: Option<String>,
    /// It has said something of a generation that had ended; it will not get another one.
    confused: bool,
}

impl Engine {
    fn start(
        setup: &ModelSetup,
        program: &Path,
        alone: bool,
        rooms: &mut Rooms,
    ) -> Result<Self, Failure> {
        let room = rooms.next().map_err(|error| {
            let message = format!("the engine's directory could not be made: {error}");
            retryable(Code::EngineLoadFailed, message)
        })?;
        let process = Process::start(&setup.engine, program, alone, room).map_err(|error| {
            let what = match &setup.engine {
                EngineSetup::BuiltIn(_) => program.display().to_string(),
                EngineSetup::Command(words) => words.first().cloned().unwrap_or_default(),
            };
            let message = format!("the engine `{what}` could not be started: {error}");
            retryable(Code::EngineLoadFailed, message)
        })?;
        let mut engine = Self {
            setup: setup.clone(),
            process,
            state: State::Loading,
            outbox: Vec::new(),
            inbox: Vec::new(),
            heard: Instant::now(),
            before: None,
            confused: false,
        };
        engine.say(&ToEngine::Load(Load {
            protocol: PROTOCOL,
            model: setup.name.to_string(),
            checkpoint: setup.checkpoint.clone(),
            settings: setup.settings.clone(),
            loras: setup.loras.clone(),
        }));
        Ok(engine)
    }

    fn serves(&self, setup: &ModelSetup) -> bool {
        let own = &self.setup;
        own.name == setup.name
            && own.engine == setup.engine
            && own.checkpoint == setup.checkpoint
            && own.settings == setup.settings
            && own.loras == setup.loras
    }

    fn is_alive(&self) -> bool {
        self.state != State::Dead && self.process.status().is_none()
    }

    /// May it have a task? An idle engine has nothing to say, and has not ended: says in the log
    /// what else it did, which no task will tell.
    fn is_fit(&mut self) -> bool {
        if self.state == State::Dead || self.confused {
            return false;
        }
        let model = &self.setup.name;
        if let Some(status) = self.process.status() {
            let detail = self.process.stderr.text();
            tracing::warn!(%model, %status, detail, "the idle engine has ended");
            return false;
        }
        if self.state != State::Idle {
            return true;
        }
        let mut unasked = std::mem::take(&mut self.inbox);
        // Whether or not the runtime has noticed it yet.
        let mut more = [0; 1024];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.process.stdout, &mut more));
        match read {
            Err(rustix::io::Errno::AGAIN) if unasked.is_empty() => return true,
            Ok(0) if unasked.is_empty() => {
                tracing::warn!(%model, "the idle engine has closed its standard output; restarting it");
                return false;
            }
            read => unasked.extend_from_slice(&more[..read.unwrap_or(0)]),
        }
        let said = excerpt(unasked.trim_ascii_end());
        tracing::warn!(%model, said, "the engine spoke without being asked; restarting it");
        false
    }

    /// Waits until the model is loaded. Cancel safe.
    async fn ready(&mut self) -> Result<(), Failure> {
        if self.state != State::Loading {
            return Ok(());
        }
        match self.listen().await? {
            FromEngine::Ready { protocol: PROTOCOL, engine, version } => {
                tracing::info!(model = %self.setup.name, engine, version, "model loaded");
                self.state = State::Idle;
                Ok(())
            }
            FromEngine::Ready { protocol, .. } => {
                let message =
                    format!("the engine speaks protocol {protocol}, this worker {PROTOCOL}");
                Err(self.broken(retryable(Code::EngineLoadFailed, message)).await)
            }
            FromEngine::Error(EngineError { id: None, code, message, retryable }) => {
                let code = match code {
                    EngineErrorCode::OutOfMemory => Code::OutOfMemory,
                    _ => Code::EngineLoadFailed,
                };
                let failure = Failure { retryable, ..Failure::new(code, message) };
                Err(self.broken(failure).await)
            }
            other => Err(self.unexpected(&other, "while the model was being loaded").await),
        }
    }

    /// Has the engine generate. If this is dropped, [`Host::halt`] must follow.
    pub(crate) async fn generate(
        &mut self,
        generate: Generate,
        mut progress: impl FnMut(Progress),
    ) -> Result<Done, Failure> {
        let id = generate.id.clone();
        self.process.stderr.forget();
        self.heard = Instant::now();
        self.before.take_if(|before| *before == id);
        self.state = State::Generating { id: id.clone() };
        self.say(&ToEngine::Generate(generate));
        loop {
            match self.hear().await? {
                FromEngine::Progress { id: of, step, steps, stage } if of == id => {
                    let stage = stage.chars().take(MAX_STAGE).collect();
                    progress(Progress { stage, step: step.min(steps), steps });
                }
                FromEngine::Done(done) if done.id == id => {
                    self.rest(id);
                    return Ok(done);
                }
                FromEngine::Error(error) if error.id.as_ref() == Some(&id) => {
                    return Err(self.failed(id, error).await);
                }
                other => return Err(self.unexpected(&other, "in the middle of the task").await),
            }
        }
    }

    /// Turns the engine's own error into a failure.
    async fn failed(&mut self, id: String, error: EngineError) -> Failure {
        let EngineError { code, message, retryable, .. } = error;
        let (code, retryable) = match code {
            EngineErrorCode::OutOfMemory => (Code::OutOfMemory, retryable),
            EngineErrorCode::InvalidRequest => (Code::EngineRefused, false),
            EngineErrorCode::Failed => (Code::EngineFailed, retryable),
            EngineErrorCode::LoadFailed => {
                let failure =
                    Failure { retryable, ..Failure::new(Code::EngineLoadFailed, message) };
                return self.broken(failure).await;
            }
            EngineErrorCode::Cancelled => {
                let message = "the engine says that it was asked to stop, but nobody had asked it";
                return self.broken(self::retryable(Code::EngineProtocol, message)).await;
            }
        };
        self.rest(id);
        self.explained(Failure { retryable, ..Failure::new(code, message) })
    }

    /// The generation has ended, as far as it is the engine's.
    fn rest(&mut self, id: String) {
        self.state = State::Idle;
        self.before = Some(id);
    }

    /// Stops the generation under way: asks, and kills if the engine does not answer in time.
    async fn halt(&mut self) {
        let State::Generating { id } = self.state.clone() else {
            return;
        };
        self.say(&ToEngine::Cancel { id: id.clone() });
        let grace = Duration::from_millis(self.setup.grace_ms);
        match timeout(grace, self.last_word(&id)).await {
            Ok(Ok(())) => self.rest(id),
            // Dead already.
            Ok(Err(failure)) => tracing::warn!(%id, message = failure.message, "engine broke off"),
            Err(_) => {
                let grace_ms = self.setup.grace_ms;
                tracing::warn!(%id, grace_ms, "the engine did not stop when asked; killing it");
                self.kill().await;
            }
        }
    }

    /// Waits for the message that ends a generation, whichever it is: it may just have been done.
    async fn last_word(&mut self, id: &str) -> Result<(), Failure> {
        loop {
            match self.hear().await? {
                FromEngine::Progress { id: of, .. } if of == id => {}
                FromEngine::Done(done) if done.id == id => return Ok(()),
                FromEngine::Error(error) if error.id.as_deref() == Some(id) => return Ok(()),
                other => return Err(self.unexpected(&other, "while it was being stopped").await),
            }
        }
    }

    /// Has an idle engine leave in its own way; kills any other.
    async fn leave(mut self) {
        if self.state == State::Idle && self.is_alive() {
            self.say(&ToEngine::Exit);
            let left = async {
                let _ = self.write_all().await;
                // To an engine that does not know `exit`, the end of its input says the same.
                self.process.stdin = None;
                self.process.ended(LEAVE).await
            };
            // What it has left must go all the same.
            let _ = timeout(LEAVE, left).await;
        }
        self.kill().await;
    }

    /// Kills the engine and waits until it is gone with all that it has started, so that its memory is
    /// free and nobody writes into its directory any more.
    async fn kill(&mut self) {
        self.state = State::Dead;
        self.process.kill();
        if !self.process.gone(KILL).await {
            tracing::error!(model = %self.setup.name, "the killed engine is not gone yet");
        }
    }

    fn say(&mut self, message: &ToEngine) {
        serde_json::to_writer(&mut self.outbox, message).expect("engine messages are JSON");
        self.outbox.push(b'\n');
    }

    async fn write_all(&mut self) -> io::Result<()> {
        match &mut self.process.stdin {
            Some(stdin) => write_out(stdin, &mut self.outbox).await,
            None => Ok(()),
        }
    }

    /// The engine's next message that is not about the generation before. Cancel safe.
    async fn hear(&mut self) -> Result<FromEngine, Failure> {
        loop {
            let message = self.listen().await?;
            if self.before.is_none() || id_of(&message) != self.before.as_deref() {
                return Ok(message);
            }
            let (model, said) = (&self.setup.name, named(&message));
            tracing::warn!(%model, said, "too late: that task has ended; restarting after this one");
            self.confused = true;
        }
    }

    /// The engine's next message. Whatever is none, and silence, is a failure that the engine does
    /// not survive. Cancel safe.
    async fn listen(&mut self) -> Result<FromEngine, Failure> {
        let silence = Duration::from_millis(self.setup.silence_ms);
        let mut exit = self.process.exit();
        // When to stop reading from a process that has ended.
        let mut last = None;
        loop {
            let Some(stdin) = &mut self.process.stdin else {
                return Err(self.protocol("the engine was already told to leave").await);
            };
            tokio::select! {
                biased;
                line = read_line(&mut self.process.stdout, &mut self.inbox) => {
                    self.heard = Instant::now();
                    return match line {
                        Ok(Some(line)) => match serde_json::from_slice(&line) {
                            Ok(message) => Ok(message),
                            Err(error) => {
                                let line = excerpt(&line);
                                let message = format!(
                                    "the engine wrote a line that is no message ({error}): {line}"
                                );
                                Err(self.protocol(message).await)
                            }
                        },
                        Ok(None) => Err(self.gone().await),
                        Err(error) => Err(self.protocol(error.to_string()).await),
                    };
                }
                written = write_out(stdin, &mut self.outbox), if !self.outbox.is_empty() => {
                    if written.is_err() {
                        // It does not read any more. If it lives, it will fall silent.
                        self.outbox.clear();
                    }
                }
                () = ended(&mut exit), if last.is_none() => {
                    // What it has said before may still be in the pipe.
                    last = Some(Instant::now() + LAG);
                }
                () = until(last) => return Err(self.gone().await),
                () = sleep_until(self.heard + silence) => {
                    // Loading has no messages of its own; the log shows that it goes on.
                    let logged = self.process.stderr.heard();
                    if self.state == State::Loading && logged > self.heard {
                        self.heard = logged;
                        continue;
                    }
                    let doing = match self.state {
                        State::Loading => "while it loaded the model",
                        _ => "in the middle of the task",
                    };
                    let seconds = silence.as_secs_f64();
                    let message = format!(
                        "the engine said nothing for {seconds} s {doing}; if it may take so long, raise \
                         the model's `silence_seconds`"
                    );
                    return Err(self.broken(retryable(Code::EngineSilent, message)).await);
                }
            }
        }
    }

    /// The failure of an engine whose output has ended.
    async fn gone(&mut self) -> Failure {
        let (doing, code) = match self.state {
            State::Loading => ("while it loaded the model", Code::EngineLoadFailed),
            _ => ("in the middle of the task", Code::EngineCrashed),
        };
        let failure = match self.process.ended(LAG).await {
            None => {
                let message = format!("the engine closed its standard output {doing}");
                retryable(Code::EngineProtocol, message)
            }
            Some(status) => retryable(code, format!("the engine {} {doing}", ending(status))),
        };
        self.broken(failure).await
    }

    async fn unexpected(&mut self, message: &FromEngine, when: &str) -> Failure {
        let message = named(message);
        self.protocol(format!("the engine said {message} {when}")).await
    }

    async fn protocol(&mut self, message: impl Into<String>) -> Failure {
        self.broken(retryable(Code::EngineProtocol, message)).await
    }

    /// Ends an engine that can't be used any more.
    async fn broken(&mut self, failure: Failure) -> Failure {
        self.kill().await;
        self.explained(failure)
    }

    /// Adds the engine's last lines to a failure.
    pub(crate) fn explained(&self, failure: Failure) -> Failure {
        let message = plain::plain(&failure.message);
        Failure { message, detail: self.process.stderr.text(), ..failure }
    }
}

async fn ended(exit: &mut watch::Receiver<Option<ExitStatus>>) {
    // An error says that the watching thread is gone, which ends with the process.
    let _ = exit.wait_for(Option::is_some).await;
}

/// Waits until a moment, if there is one; else for ever.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn retryable(code: Code, message: impl Into<String>) -> Failure {
    Failure { retryable: true, ..Failure::new(code, message) }
}

/// The generation that a message is about.
fn id_of(message: &FromEngine) -> Option<&str> {
    match message {
        FromEngine::Ready { .. } => None,
        FromEngine::Progress { id, .. } => Some(id),
        FromEngine::Done(done) => Some(&done.id),
        FromEngine::Error(error) => error.id.as_deref(),
    }
}

/// A message in a few words.
fn named(message: &FromEngine) -> String {
    match message {
        FromEngine::Ready { .. } => "`ready`".to_owned(),
        FromEngine::Progress { id, .. } => format!("`progress` of {}", quoted(id)),
        FromEngine::Done(done) => format!("`done` of {}", quoted(&done.id)),
        FromEngine::Error(EngineError { id: Some(id), .. }) => {
            format!("`error` of {}", quoted(id))
        }
        FromEngine::Error(EngineError { message, .. }) => {
            format!("`error` without an id ({})", quoted(message))
        }
    }
}

/// How a process has ended, in words.
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(9)) => {
            "was killed by signal 9, as the kernel does when memory runs out,".to_owned()
        }
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => format!("ended ({status})"),
    }
}

fn excerpt(line: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(&line[..line.len().min(1000)]))
}

fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(200).collect::<String>())
}

/// Writes the outbox out. Cancel safe: what was written is taken out of it at once.
async fn write_out(stdin: &mut pipe::Sender, outbox: &mut Vec<u8>) -> io::Result<()> {
    while !outbox.is_empty() {
        let count = stdin.write(outbox).await?;
        outbox.drain(..count);
    }
    Ok(())
}

/// Reads a line without its end; none at the end of the output, where half a line counts for
/// nothing. Cancel safe: what was read stays in the inbox.
async fn read_line(
    stdout: &mut pipe::Receiver,
    inbox: &mut Vec<u8>,
) -> io::Result<Option<Vec<u8>>> {
    let mut looked_at = 0;
    loop {
        if let Some(end) = inbox[looked_at..].iter().position(|byte| *byte == b'\n') {
            let end = looked_at + end;
            if end < MAX_LINE {
                let rest = inbox.split_off(end + 1);
                let mut line = std::mem::replace(inbox, rest);
                line.truncate(end);
                return Ok(Some(line));
            }
        }
        if inbox.len() >= MAX_LINE {
            let text = format!("the engine wrote a line of more than {MAX_LINE} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        looked_at = inbox.len();
        inbox.reserve(1 << 13);
        if stdout.read_buf(inbox).await? == 0 {
            return Ok(None);
        }
    }
}
