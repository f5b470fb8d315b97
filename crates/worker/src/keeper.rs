//! Keeps the lease of an attempt, and hears when it ends.
//!
//! The keeper is a thread with a runtime and connections of its own: whatever stalls the worker's
//! other work costs no lease. Per attempt it does two things. It beats: at once, which confirms the
//! claim; then at the server's interval, and sooner when there is progress to tell. And it holds a
//! `control` request open, on which a cancel arrives within one round trip.
//!
//! A server that does not answer costs nothing: the fence protects the task, not this thread. Only
//! after [`Terms::outage_keep`] is the attempt given up.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::wire::worker::{Beat, BeatAnswer, Beaten, Control, Controlled, Progress};
use rayreel_domain::{Fence, WorkerName};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::api::{self, Server};
use crate::backoff::{Backoff, Outage};

/// How long the server may hold a `control` request.
const CONTROL_WAIT: Duration = Duration::from_secs(30);
/// Progress is told this often at most.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// A registered worker.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) worker: WorkerName,
    pub(crate) incarnation: u64,
}

/// How leases are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) beat: Duration,
    pub(crate) outage_keep: Duration,
}

/// Why an attempt is not the worker's any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Cancelled,
    Lost,
    /// Another worker has this one's name.
    Replaced,
    /// No server has answered for too long.
    Abandoned,
}

struct Job {
    fence: Fence,
    progress: watch::Receiver<Option<Progress>>,
    ended: watch::Sender<Option<Ended>>,
    over: CancellationToken,
}

/// The keeper's thread; it ends when this is dropped.
pub(crate) struct Keeper {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Keeper {
    /// `dismissed` is cancelled when the server says that the worker should go.
    pub(crate) fn start(
        server: Server,
        identity: Identity,
        terms: Terms,
        dismissed: CancellationToken,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let keeper = Arc::new(Shared { server, identity, terms, dismissed });
        std::thread::Builder::new().name("keeper".into()).spawn(move || {
            runtime.block_on(async {
                while let Some(job) = queue.recv().await {
                    tokio::spawn(keep(Arc::clone(&keeper), job));
                }
            });
        })?;
        Ok(Self { jobs })
    }

    /// Keeps the lease until the answer is dropped.
    pub(crate) fn hold(&self, fence: Fence) -> Hold {
        let (progress, progress_seen) = watch::channel(None);
        let (ended, ended_seen) = watch::channel(None);
        let over = CancellationToken::new();
        let job = Job { fence, progress: progress_seen, ended, over: over.clone() };
        // If the thread is gone, `ended` is dropped with the job, and the hold says so.
        let _ = self.jobs.send(job);
        Hold { progress, ended: ended_seen, _over: over.drop_guard() }
    }
}

/// An attempt whose lease is being kept.
pub(crate) struct Hold {
    progress: watch::Sender<Option<Progress>>,
    ended: watch::Receiver<Option<Ended>>,
    _over: DropGuard,
}

impl Hold {
    /// Tells how far the attempt is; only the latest counts.
    pub(crate) fn progress(&self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }

    /// Waits until the attempt is not ours any more.
    pub(crate) async fn ended(&self) -> Ended {
        match self.ended.clone().wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or(Ended::Lost),
            Err(_) => {
                tracing::error!("the thread that keeps leases is gone");
                Ended::Lost
            }
        }
    }
}

struct Shared {
    server: Server,
    identity: Identity,
    terms: Terms,
    dismissed: CancellationToken,
}

async fn keep(keeper: Arc<Shared>, job: Job) {
    let Job { fence, progress, ended, over } = job;
    let why = tokio::select! {
        () = over.cancelled() => return,
        why = keeper.beat(fence, progress) => why,
        why = keeper.control(fence) => why,
    };
    // Also what a beat finds that crosses the commit; whether it mattered, the attempt says.
    tracing::debug!(task = %fence.task, attempt = fence.attempt, ?why, "the lease has ended");
    ended.send_replace(Some(why));
    // Until the worker lets go: a sender that is dropped would read as a dead thread.
    over.cancelled().await;
}

impl Shared {
    async fn beat(&self, fence: Fence, mut progress: watch::Receiver<Option<Progress>>) -> Ended {
        let Terms { beat, outage_keep } = self.terms;
        let limit = beat.clamp(Duration::from_secs(1), Duration::from_secs(5));
        let mut outage = Outage::new("beat");
        let mut heard = Instant::now();
        loop {
            let message = Beat {
                worker: self.identity.worker.clone(),
                incarnation: self.identity.incarnation,
                fence,
                progress: progress.borrow_and_update().clone(),
            };
            let sent = Instant::now();
            match self.server.call::<_, BeatAnswer>("beat", &message, limit).await {
                Ok(BeatAnswer { answer: Beaten::Continue }) => {
                    heard = Instant::now();
                    outage.over();
                }
                Ok(BeatAnswer { answer: Beaten::Cancelled }) => return Ended::Cancelled,
                Ok(BeatAnswer { answer: Beaten::Lost }) => return Ended::Lost,
                Err(api::Error::StaleLease) => return Ended::Lost,
                Err(api::Error::StaleWorker) => return Ended::Replaced,
                Err(error) => {
                    if heard.elapsed() >= outage_keep {
                        return Ended::Abandoned;
                    }
                    let left = outage_keep - heard.elapsed();
                    sleep(outage.failed(&error).min(left)).await;
                    continue;
                }
            }
            let news = async {
                if progress.changed().await.is_err() {
                    future::pending::<()>().await;
                }
                sleep_until(sent + PROGRESS_EVERY.min(beat)).await;
            };
            tokio::select! {
                () = sleep_until(sent + beat) => {}
                () = news => {}
            }
        }
    }

    async fn control(&self, fence: Fence) -> Ended {
        let message = Control {
            worker: self.identity.worker.clone(),
            incarnation: self.identity.incarnation,
            holding: vec![fence],
            wait_ms: CONTROL_WAIT.as_millis() as u64,
        };
        let limit = CONTROL_WAIT + api::CALL;
        let mut outage = Outage::new("control");
        // A server that wants the worker to go says so each time it is asked: don't ask at once.
        let mut pause = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        loop {
            let asked = Instant::now();
            match self.server.call::<_, Controlled>("control", &message, limit).await {
                Ok(answer) if answer.cancelled.contains(&fence) => return Ended::Cancelled,
                Ok(answer) if answer.lost.contains(&fence) => return Ended::Lost,
                Ok(answer) => {
                    outage.over();
                    if answer.drain {
                        self.dismissed.cancel();
                    }
                    if asked.elapsed() < PROGRESS_EVERY {
                        sleep(pause.wait()).await;
                    } else {
                        pause.reset();
                    }
                }
                Err(api::Error::StaleLease) => return Ended::Lost,
                Err(api::Error::StaleWorker) => return Ended::Replaced,
                Err(error) => sleep(outage.failed(&error)).await,
            }
        }
    }
}
