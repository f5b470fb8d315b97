//! The engine's side of the conversation with the worker, for any [`Engine`].
//!
//! The worker is heard all the time: a cancel reaches the generation at once, and when the worker
//! says `exit` or hangs up, what runs is stopped and this ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::pin::pin;
use std::time::Duration;

use rayreel_domain::wire::engine::{
    Done, EngineError, EngineErrorCode, FromEngine, Generate, Load, OutputFile, PROTOCOL, ToEngine,
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::inbox::Inbox;

/// How long a generation may go on when the worker is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long leaving may take.
const LEAVE: Duration = Duration::from_secs(5);

/// Least time between two reports of one stage; the steps in between are left out …
const BETWEEN_STEPS: Duration = Duration::from_millis(100);
/// … but for its first and last, if they are not so many.
const BETWEEN_STAGES: Duration = Duration::from_millis(10);

/// Most characters of a message; the worker keeps no more.
const MAX_MESSAGE: usize = 2_000;

/// What loads a model and generates.
pub(crate) trait Engine {
    /// Loads the model. Dropped if the worker leaves meanwhile.
    async fn load(&mut self, load: Load) -> Result<Ready, Failure>;

    /// Writes files into the job's `output_dir`. Returns soon after [`Job::stopped`] resolves, within
    /// the grace that the configuration gives, and leaves nothing running for this request. If it is
    /// dropped, because the worker is gone, what it has started is killed.
    async fn generate(&mut self, job: &Job<'_>) -> Result<Made, Failure>;

    /// Ends whatever still runs. The last call.
    async fn leave(&mut self);
}

/// Who has loaded the model, for the worker's log.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) engine: String,
    pub(crate) version: String,
}

/// What a generation has made.
#[derive(Debug)]
pub(crate) struct Made {
    /// The main output first.
    pub(crate) files: Vec<OutputFile>,
    /// Milliseconds and the like, by name.
    pub(crate) metrics: BTreeMap<String, f64>,
}

/// Why there is no model, or no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: EngineErrorCode,
    /// For the task's owner.
    pub(crate) message: String,
    /// Whether the same may succeed on another try.
    pub(crate) retryable: bool,
}

impl Failure {
    pub(crate) fn cancelled() -> Failure {
        Failure::new(EngineErrorCode::Cancelled, "cancelled", false)
    }

    /// This request can't be done, whoever tries.
    pub(crate) fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(EngineErrorCode::InvalidRequest, message, false)
    }

    pub(crate) fn out_of_memory(message: impl Into<String>) -> Failure {
        Failure::new(EngineErrorCode::OutOfMemory, message, true)
    }

    /// The model can't be loaded; another try would end in the same way.
    pub(crate) fn load_failed(message: impl Into<String>) -> Failure {
        Failure::new(EngineErrorCode::LoadFailed, message, false)
    }

    /// Anything else; another try may succeed.
    pub(crate) fn failed(message: impl Into<String>) -> Failure {
        Failure::new(EngineErrorCode::Failed, message, true)
    }

    fn new(code: EngineErrorCode, message: impl Into<String>, retryable: bool) -> Failure {
        Failure { code, message: message.into(), retryable }
    }
}

/// One generation: what is asked for, and the way to report and to hear of a stop.
pub(crate) struct Job<'a> {
    pub(crate) generate: Generate,
    voice: &'a Voice<'a>,
    stop: CancellationToken,
    reported: RefCell<Option<(String, Instant)>>,
}

impl Job<'_> {
    /// `step` of `steps` are done in this stage. May be called as often as is convenient; what comes too
    /// soon after the last report, and so was not said, gives false.
    pub(crate) fn progress(&self, stage: &str, step: u32, steps: u32) -> bool {
        if self.is_stopped() {
            return true;
        }
        let now = Instant::now();
        let mut reported = self.reported.borrow_mut();
        if let Some((last, when)) = &*reported {
            let edge = last != stage || step >= steps;
            let pause = if edge { BETWEEN_STAGES } else { BETWEEN_STEPS };
            if now - *when < pause {
                return false;
            }
        }
        *reported = Some((stage.to_owned(), now));
        let (id, stage) = (self.generate.id.clone(), stage.to_owned());
        self.voice.say(&FromEngine::Progress { id, step: step.min(steps), steps, stage });
        true
    }

    /// Resolves when the generation must end, with whatever it has.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }
}

/// The way to the worker.
struct Voice<'a> {
    output: RefCell<&'a mut dyn Write>,
    gone: Cell<bool>,
}

impl Voice<'_> {
    /// Once the worker is gone, nothing is said any more; the end of its own messages says so, too.
    fn say(&self, message: &FromEngine) {
        if self.gone.get() {
            return;
        }
        let mut output = self.output.borrow_mut();
        let written = serde_json::to_vec(message).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            output.write_all(&line)?;
            output.flush()
        });
        self.gone.set(written.is_err());
    }

    fn say_failure(&self, id: Option<String>, failure: Failure) {
        let Failure { code, message, retryable } = failure;
        let message = message.chars().take(MAX_MESSAGE).collect();
        self.say(&FromEngine::Error(EngineError { id, code, message, retryable }));
    }

    /// Answers what came while the engine was at work on something else.
    fn refuse(&self, id: Option<String>) {
        self.say_failure(id, Failure::failed("the engine is at work on something else"));
    }
}

/// Serves one worker until it says `exit` or hangs up. An error means that the worker broke the
/// protocol or can't be heard any more.
pub(crate) async fn serve(
    engine: &mut impl Engine,
    inbox: &mut Inbox,
    output: &mut dyn Write,
) -> io::Result<()> {
    let voice = Voice { output: RefCell::new(output), gone: Cell::new(false) };
    let ended = converse(engine, inbox, &voice).await;
    // Whoever has ended the conversation can't be told that it took too long.
    let _ = timeout(LEAVE, engine.leave()).await;
    ended
}

async fn converse<'a>(
    engine: &mut impl Engine,
    inbox: &mut Inbox,
    voice: &'a Voice<'a>,
) -> io::Result<()> {
    let mut loaded = false;
    while let Some(message) = inbox.next().await? {
        match message {
            ToEngine::Load(_) if loaded => {
                voice.say_failure(None, Failure::load_failed("a model is loaded already"));
            }
            ToEngine::Load(load) => match loading(engine, load, inbox, voice).await? {
                Some(Ok(Ready { engine, version })) => {
                    loaded = true;
                    voice.say(&FromEngine::Ready { protocol: PROTOCOL, engine, version });
                }
                Some(Err(failure)) => voice.say_failure(None, failure),
                None => break,
            },
            ToEngine::Generate(generate) if !loaded => {
                let failure = Failure { retryable: false, ..Failure::failed("no model is loaded") };
                voice.say_failure(Some(generate.id), failure);
            }
            ToEngine::Generate(generate) => {
                if !generating(engine, generate, inbox, voice).await? {
                    break;
                }
            }
            // It came when its generation had just ended.
            ToEngine::Cancel { .. } => {}
            ToEngine::Exit => break,
        }
    }
    Ok(())
}

/// Loads, and hears meanwhile whether the worker leaves: then there is no answer.
async fn loading(
    engine: &mut impl Engine,
    load: Load,
    inbox: &mut Inbox,
    voice: &Voice<'_>,
) -> io::Result<Option<Result<Ready, Failure>>> {
    if load.protocol != PROTOCOL {
        let message = format!(
            "the worker speaks version {} of the engine protocol, this engine version {PROTOCOL}",
            load.protocol
        );
        return Ok(Some(Err(Failure::load_failed(message))));
    }
    let mut loading = pin!(engine.load(load));
    loop {
        tokio::select! {
            biased;
            answer = &mut loading => return Ok(Some(answer)),
            heard = inbox.next() => match heard? {
                None | Some(ToEngine::Exit) => return Ok(None),
                Some(ToEngine::Load(_)) => voice.refuse(None),
                Some(ToEngine::Generate(other)) => voice.refuse(Some(other.id)),
                Some(ToEngine::Cancel { .. }) => {}
            },
        }
    }
}

/// Generates, hears the worker meanwhile, and answers; says whether the worker is still there.
async fn generating<'a>(
    engine: &mut impl Engine,
    generate: Generate,
    inbox: &mut Inbox,
    voice: &'a Voice<'a>,
) -> io::Result<bool> {
    let id = generate.id.clone();
    let stop = CancellationToken::new();
    let job = Job { generate, voice, stop: stop.clone(), reported: RefCell::default() };
    // How the worker has left, and how long the generation may still take.
    let mut left: Option<(io::Result<bool>, Instant)> = None;
    let answer = {
        let mut generating = pin!(engine.generate(&job));
        loop {
            let late = left.as_ref().map(|(_, late)| *late);
            tokio::select! {
                biased;
                answer = &mut generating => break Some(answer),
                () = until(late) => break None,
                heard = inbox.next(), if left.is_none() => match heard {
                    Ok(Some(ToEngine::Cancel { id: cancelled })) => {
                        if cancelled == id {
                            stop.cancel();
                        }
                    }
                    Ok(Some(ToEngine::Generate(other))) => voice.refuse(Some(other.id)),
                    Ok(Some(ToEngine::Load(_))) => voice.refuse(None),
                    ended => {
                        left = Some((ended.map(|_| false), Instant::now() + PATIENCE));
                        stop.cancel();
                    }
                },
            }
        }
    };
    match answer {
        Some(Ok(Made { files, metrics })) => {
            voice.say(&FromEngine::Done(Done { id, files, metrics, test_pattern: false }));
        }
        Some(Err(failure)) => {
            // It came to nothing because it was told to stop.
            let stopped = stop.is_cancelled() && failure.code != EngineErrorCode::OutOfMemory;
            voice.say_failure(Some(id), if stopped { Failure::cancelled() } else { failure });
        }
        None => {}
    }
    match left {
        None => Ok(true),
        Some((how, _)) => how,
    }
}

/// Waits until a moment, if there is one; else for ever.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
