//! One attempt, from its assignment to its end.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rayreel_domain::request::Input;
use rayreel_domain::task::{Failure, MAX_MESSAGE};
use rayreel_domain::wire::engine::{EngineRequest, Generate};
use rayreel_domain::wire::worker::{Assignment, Done, Fail, ModelSetup, Progress, Release};
use rayreel_domain::{Code, Fence};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, sleep_until};

use crate::Signals;
use crate::api::{self, Frame, Server};
use crate::backoff::Outage;
use crate::claim::Worker;
use crate::engine::Host;
use crate::keeper::{Ended, Hold};
use crate::outputs;
use crate::scratch::{Desk, Scratch};
use crate::upload::{self, Delivery, Product};

/// How long the last call of a worker that was told twice to go may take.
const LAST_CALL: Duration = Duration::from_millis(500);
/// How long a worker that gives its task back tries to say so.
const RELEASE: Duration = Duration::from_secs(5);
/// Most figures that are passed on, and the longest name of one.
const MAX_METRICS: usize = 64;
/// How long the image of a task may take to arrive.
const INPUT: Duration = Duration::from_secs(300);
/// How often a damaged image is fetched.
const INPUT_TRIES: u32 = 3;

/// What is left to do after an attempt.
#[derive(Debug)]
pub(crate) enum After {
    /// The next claim.
    Claim,
    /// Deregister and exit: the grace period of the first signal is over.
    Leave,
    /// Exit.
    Abort,
    /// Another worker has this one's name.
    Replaced,
    /// Deregister and exit with this error: the worker can do no task.
    Unfit(crate::Error),
}

/// Why an attempt stops before its end.
#[derive(Debug)]
enum Stop {
    Ended(Ended),
    Failed(Failure),
    /// It is the worker that can't go on; no task is to blame.
    Unfit(crate::Error),
    /// `max_run` is over.
    OutOfTime,
    /// The grace period of the first signal is over.
    GraceOver,
    Aborted,
}

impl From<api::Error> for Stop {
    fn from(error: api::Error) -> Self {
        match error {
            api::Error::StaleLease => Self::Ended(Ended::Lost),
            api::Error::StaleWorker => Self::Ended(Ended::Replaced),
            // Passing, but for longer than the worker's patience.
            error if error.is_passing() => Self::Ended(Ended::Abandoned),
            error => Self::Failed(upload::undelivered(&error)),
        }
    }
}

/// What can end an attempt from outside. Asked again, it gives the same answer.
struct Leash<'a> {
    hold: &'a Hold,
    signals: Signals,
    grace: Duration,
    /// End of the grace period, once the first signal has come.
    until: Option<Instant>,
}

impl Leash<'_> {
    /// Waits until the worker must stop because it must go.
    async fn told(&mut self) -> Stop {
        let Self { signals, grace, until, .. } = self;
        let grace_over = async {
            signals.drain.cancelled().await;
            sleep_until(*until.get_or_insert_with(|| Instant::now() + *grace)).await;
        };
        tokio::select! {
            biased;
            () = signals.abort.cancelled() => Stop::Aborted,
            () = grace_over => Stop::GraceOver,
        }
    }

    /// Waits until the worker must stop for that reason, or because the attempt is not its own.
    async fn pulled(&mut self) -> Stop {
        let hold = self.hold;
        tokio::select! {
            biased;
            why = self.told() => why,
            ended = hold.ended() => Stop::Ended(ended),
        }
    }

    /// Waits for the answer to a call that ends the attempt. That the lease has ended is no reason
    /// not to: the call itself may have ended it, and its answer tells.
    async fn answered<T>(&mut self, call: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            answer = call => Ok(answer),
            why = self.told() => Err(why),
        }
    }
}

/// Works on a task until it is delivered, has failed, or is somebody else's.
pub(crate) async fn run(worker: &mut Worker, assignment: Assignment) -> After {
    let Fence { task, attempt, .. } = assignment.fence;
    let hold = worker.keeper.hold(assignment.fence);
    tracing::info!(%task, attempt, model = %assignment.model.name, "task started");
    let signals = worker.signals.clone();
    let mut leash = Leash { hold: &hold, signals, grace: worker.drain_grace, until: None };
    match work(worker, &assignment, &mut leash).await {
        Ok(()) => {
            tracing::info!(%task, attempt, "task delivered");
            After::Claim
        }
        Err(why) => {
            tracing::info!(%task, attempt, ?why, "task stopped");
            conclude(worker, assignment.fence, why, &mut leash).await
        }
    }
}

/// Makes the files and delivers them.
async fn work(
    worker: &mut Worker,
    assignment: &Assignment,
    leash: &mut Leash<'_>,
) -> Result<(), Stop> {
    let run = sleep(Duration::from_millis(assignment.max_run_ms));
    let fence = assignment.fence;
    let desk = worker
        .scratch
        .desk(&format!("{}-{}", fence.task, fence.attempt))
        .map_err(|error| Stop::Unfit(worker.scratch.unfit(error)))?;
    let hold = leash.hold;
    let product = tokio::select! {
        biased;
        made = make(worker, &desk, assignment, hold) => match made {
            Err(Stop::Failed(failure)) => return Err(judged(worker, fence, failure, desk).await),
            made => made?,
        },
        why = leash.pulled() => return Err(halted(worker, why, desk).await),
        () = run => return Err(halted(worker, Stop::OutOfTime, desk).await),
    };
    let Worker { server, identity, outage_keep, .. } = &*worker;
    let delivery = Delivery { server, identity, fence, patience: *outage_keep };
    let mut round = 1;
    loop {
        let refused = tokio::select! {
            biased;
            why = leash.pulled() => return Err(why),
            put = delivery.upload(&product, hold) => match put {
                Err(error) if upload::may_help(&error) && round < upload::ROUNDS => Some(error),
                put => {
                    put?;
                    None
                }
            },
        };
        let refused = match refused {
            Some(error) => error,
            None => match leash.answered(delivery.commit(&product)).await? {
                Err(error)
                    if error.code() == Some(Code::UploadMismatch) && round < upload::ROUNDS =>
                {
                    error
                }
                answer => return Ok(answer?),
            },
        };
        tracing::warn!(task = %fence.task, error = %refused, "delivery refused, trying again");
        round += 1;
    }
}

/// Stops the engine's work for a reason that came from outside.
async fn halted(worker: &mut Worker, why: Stop, desk: Desk) -> Stop {
    let abort = worker.signals.abort.clone();
    let why = match why {
        // The worker is about to exit: its engine has nothing to stay warm for.
        Stop::GraceOver | Stop::Ended(Ended::Replaced) => {
            worker.host.kill().await;
            why
        }
        // A load that takes so long would take the next task's time as well.
        Stop::OutOfTime if worker.host.is_loading() => {
            worker.host.kill().await;
            why
        }
        Stop::Aborted => why,
        why => tokio::select! {
            biased;
            () = abort.cancelled() => Stop::Aborted,
            () = worker.host.halt() => why,
        },
    };
    // Only now: the engine may have been writing.
    drop(desk);
    why
}

/// Tells the server how an attempt ended that did not succeed.
async fn conclude(worker: &mut Worker, fence: Fence, why: Stop, leash: &mut Leash<'_>) -> After {
    match why {
        Stop::Ended(Ended::Replaced) => After::Replaced,
        // Nothing of it is ours to report.
        Stop::Ended(Ended::Cancelled | Ended::Lost | Ended::Abandoned) => After::Claim,
        Stop::Failed(failure) => fail(worker, fence, failure, leash).await,
        Stop::Unfit(error) => {
            tracing::error!(%error, "this worker can do no task");
            let release = release(worker, fence);
            let call = worker.server.insist::<_, Done>("release", &release, RELEASE);
            match leash.answered(call).await {
                Ok(given) => log_release(fence, given),
                Err(Stop::Aborted) => return After::Abort,
                // The farewell gives it back.
                Err(_) => {}
            }
            After::Unfit(error)
        }
        Stop::OutOfTime => {
            let message = "the attempt took longer than it may, and was stopped";
            fail(worker, fence, Failure::new(Code::MaxRunExceeded, message), leash).await
        }
        Stop::GraceOver => {
            let release = release(worker, fence);
            tokio::select! {
                biased;
                () = worker.signals.abort.cancelled() => After::Abort,
                given = worker.server.insist::<_, Done>("release", &release, RELEASE) => {
                    log_release(fence, given);
                    After::Leave
                }
            }
        }
        Stop::Aborted => {
            let release = release(worker, fence);
            let Worker { host, server, .. } = worker;
            let call = server.call::<_, Done>("release", &release, LAST_CALL);
            let (given, _) = tokio::join!(call, tokio::time::timeout(LAST_CALL, host.kill()));
            log_release(fence, given);
            After::Abort
        }
    }
}

async fn fail(
    worker: &mut Worker,
    fence: Fence,
    mut failure: Failure,
    leash: &mut Leash<'_>,
) -> After {
    tracing::warn!(
        task = %fence.task, attempt = fence.attempt, code = %failure.code,
        message = failure.message, detail = failure.detail, "task failed",
    );
    // An engine may say so much that the report would be refused.
    failure.message = failure.message.chars().take(MAX_MESSAGE).collect();
    let fail = Fail {
        worker: worker.identity.worker.clone(),
        incarnation: worker.identity.incarnation,
        fence,
        failure,
    };
    let call = worker.server.insist::<_, Done>("fail", &fail, worker.outage_keep);
    match leash.answered(call).await {
        Ok(Err(api::Error::StaleWorker)) => After::Replaced,
        Ok(told) => {
            if let Err(error) = told {
                tracing::warn!(task = %fence.task, %error, "the failure could not be reported");
            }
            After::Claim
        }
        // It could not be said in time; the farewell gives the task back.
        Err(Stop::Aborted) => After::Abort,
        Err(_) => After::Leave,
    }
}

fn release(worker: &Worker, fence: Fence) -> Release {
    let identity = &worker.identity;
    Release { worker: identity.worker.clone(), incarnation: identity.incarnation, fence }
}

fn log_release(fence: Fence, given: Result<Done, api::Error>) {
    match given {
        Ok(_) => tracing::info!(task = %fence.task, attempt = fence.attempt, "task given back"),
        // The server finds out by itself when the lease runs out.
        Err(error) => {
            tracing::warn!(task = %fence.task, %error, "the task could not be given back");
        }
    }
}

/// Has the engine make the files, and looks at them.
async fn make(
    worker: &mut Worker,
    desk: &Desk,
    assignment: &Assignment,
    hold: &Hold,
) -> Result<Product, Stop> {
    let Worker { host, server, scratch, .. } = worker;
    let Assignment { fence, request, model, .. } = assignment;
    let mut images = [None, None];
    let asked = [(Frame::First, &request.image), (Frame::Last, &request.last_image)];
    for (place, (frame, input)) in images.iter_mut().zip(asked) {
        let Some(input) = input else { continue };
        hold.progress(Progress { stage: "fetch".into(), step: 0, steps: 1 });
        let path = fetch(server, *fence, frame, input, desk, scratch).await?;
        *place = Some(path.to_string_lossy().into_owned());
    }
    if host.loaded().as_ref() != Some(&model.name) {
        hold.progress(Progress { stage: "load".into(), step: 0, steps: 1 });
    }
    let id = format!("{}/{}", fence.task, fence.attempt);
    let [image, last_image] = images;
    let request = request.for_engine(image, last_image);
    let made = generate(host, model, desk, id, request, |progress| hold.progress(progress)).await;
    made.map_err(Stop::Failed)
}

/// Whose a failure is: an engine that finds no room for its files fails in one way or another. If the
/// room comes back with what the task has written, the task took it, and another worker would fare no
/// better; else it is this worker that can't work.
async fn judged(worker: &mut Worker, fence: Fence, failure: Failure, desk: Desk) -> Stop {
    let Worker { host, scratch, .. } = worker;
    if !failure.code.blames_engine() || scratch.check_room().is_ok() {
        return Stop::Failed(failure);
    }
    let Failure { code, message, detail, .. } = failure;
    tracing::warn!(
        task = %fence.task, %code, message, detail, "the engine failed for want of room",
    );
    drop(desk);
    if scratch.check_room().is_err() {
        // A file that it holds open takes room though it is removed.
        host.leave().await;
    }
    match scratch.check_room() {
        Ok(()) => {
            let message = format!(
                "no space was left on the worker: the files of this task filled its scratch directory \
                 ({code}: {message})"
            );
            Stop::Failed(Failure { detail, ..retryable(Code::StorageFull, message) })
        }
        Err(error) => Stop::Unfit(scratch.unfit(error)),
    }
}

/// Has the engine of the model do a request, and looks at its files.
pub(crate) async fn generate(
    host: &mut Host,
    model: &ModelSetup,
    desk: &Desk,
    id: String,
    request: EngineRequest,
    progress: impl FnMut(Progress),
) -> Result<Product, Failure> {
    let engine = host.load(model).await?;
    let format = request.format;
    let output_dir = desk.out().to_string_lossy().into_owned();
    let done = engine.generate(Generate { id, output_dir, request }, progress).await?;
    let beneath = desk.beneath().try_clone().map_err(|error| on_disk("the output", &error))?;
    let announced = done.files;
    let found =
        tokio::task::spawn_blocking(move || outputs::collect(&beneath, &announced, format)).await;
    let files = match found {
        Ok(Ok(files)) => files,
        Ok(Err(message)) => {
            return Err(engine.explained(retryable(Code::OutputInvalid, message)));
        }
        Err(error) => {
            return Err(retryable(Code::Internal, format!("the files were not checked: {error}")));
        }
    };
    let metrics = done
        .metrics
        .into_iter()
        .filter(|(name, figure)| name.len() <= MAX_METRICS && figure.is_finite())
        .take(MAX_METRICS)
        .collect();
    Ok(Product { files, metrics, test_pattern: done.test_pattern })
}

/// Fetches an image of a task. Gives up only on a refusal or a damaged file: the
/// keeper decides how long to hold on to the attempt.
async fn fetch(
    server: &Server,
    fence: Fence,
    frame: Frame,
    input: &Input,
    desk: &Desk,
    scratch: &Scratch,
) -> Result<PathBuf, Stop> {
    let extension = if input.media_type == "image/png" { "png" } else { "jpg" };
    let name = match frame {
        Frame::First => "input",
        Frame::Last => "last",
    };
    let path = desk.beside(&format!("{name}.{extension}"));
    let mut outage = Outage::new("inputs");
    let mut tries = 0;
    loop {
        let damage = match download(server, fence, frame, input, &path).await {
            Ok(None) => {
                outage.over();
                return Ok(path);
            }
            Ok(Some(damage)) => damage,
            Err(Download::Disk(error)) => return Err(Stop::Unfit(scratch.unfit(error))),
            Err(Download::Call(error)) if error.is_passing() => {
                sleep(outage.failed(&error)).await;
                continue;
            }
            Err(Download::Call(error @ api::Error::Refused { .. })) => {
                let message = format!("the task's image could not be fetched: {error}");
                return Err(Stop::Failed(retryable(Code::Internal, message)));
            }
            Err(Download::Call(error)) => return Err(error.into()),
        };
        tries += 1;
        if tries == INPUT_TRIES {
            let message = format!("the task's image arrives damaged: {damage}");
            return Err(Stop::Failed(retryable(Code::Internal, message)));
        }
    }
}

enum Download {
    Call(api::Error),
    Disk(io::Error),
}

impl From<reqwest::Error> for Download {
    fn from(error: reqwest::Error) -> Self {
        Self::Call(error.into())
    }
}

/// Writes the image to a file; says what is wrong with it, if anything.
async fn download(
    server: &Server,
    fence: Fence,
    frame: Frame,
    input: &Input,
    path: &Path,
) -> Result<Option<String>, Download> {
    let mut response = server.input(fence, frame, INPUT).await.map_err(Download::Call)?;
    let mut file = File::create(path).map_err(Download::Disk)?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await? {
        bytes += chunk.len() as u64;
        if bytes > input.bytes {
            return Ok(Some(format!("it is longer than its {} bytes", input.bytes)));
        }
        hash.update(&chunk);
        file.write_all(&chunk).map_err(Download::Disk)?;
    }
    if bytes < input.bytes {
        return Ok(Some(format!("it has {bytes} bytes instead of {}", input.bytes)));
    }
    let sha256 = outputs::hex(&hash.finalize());
    Ok((sha256 != input.sha256).then(|| "its checksum is wrong".to_owned()))
}

pub(crate) fn on_disk(what: &str, error: &io::Error) -> Failure {
    retryable(Code::Internal, format!("{what} could not be written on the worker: {error}"))
}

fn retryable(code: Code, message: impl Into<String>) -> Failure {
    Failure { retryable: true, ..Failure::new(code, message) }
}
