//! The claim loop: register, ask for a task, work on it, ask again.
//!
//! A claim has a number, and is repeated under it until there is an answer, so that an assignment
//! whose answer was lost arrives after all instead of waiting for its lease to run out.

use std::time::Duration;

use rayreel_domain::WorkerName;
use rayreel_domain::wire::worker::{
    Claim, Claimed, Deregister, Done, Register, Registered, SelfTest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::api::{self, CALL, Server};
use crate::attempt::{self, After};
use crate::backoff::{Backoff, Outage};
use crate::engine::Host;
use crate::keeper::{Identity, Keeper, Terms};
use crate::scratch::Scratch;
use crate::self_test;
use crate::{Error, Exit, Options, Signals};

/// How long the server may hold a claim.
const WAIT: Duration = Duration::from_secs(30);
/// How long a local server may refuse the token: one that has just started may not have written down
/// its own yet.
const UNAUTHORIZED: Duration = Duration::from_secs(10);
/// An answer of nothing that comes sooner than this is too soon to ask again at once.
const SOON: Duration = Duration::from_secs(1);
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// A registered worker with all that it works with.
pub(crate) struct Worker {
    pub(crate) identity: Identity,
    pub(crate) server: Server,
    pub(crate) keeper: Keeper,
    pub(crate) host: Host,
    pub(crate) scratch: Scratch,
    pub(crate) signals: Signals,
    pub(crate) drain_grace: Duration,
    pub(crate) outage_keep: Duration,
    asker: Asker,
    /// The server wants the worker to go after the task at hand.
    dismissed: CancellationToken,
    /// Number of the newest claim.
    seq: u64,
    self_test: Option<SelfTest>,
}

pub(crate) async fn run(options: Options, signals: Signals) -> Result<Exit, Error> {
    let server = Server::new(&options)?;
    let asker = Asker {
        launched: options.launch.is_some(),
        orphan_idle: options.orphan_idle,
        unauthorized: if options.home.is_some() { UNAUTHORIZED } else { Duration::ZERO },
    };
    let register = Register {
        worker: options.name.clone(),
        pool: options.pool.clone(),
        launch: options.launch.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let registered: Result<Registered, End> = tokio::select! {
        biased;
        () = signals.abort.cancelled() => return Ok(Exit::Aborted),
        () = signals.drain.cancelled() => return Ok(Exit::Drained),
        registered = asker.ask(&server, "register", &register, CALL) => registered,
    };
    let registered = match registered {
        Ok(registered) => registered,
        Err(end) => return end.exit(&options.name),
    };
    let Options { pool, name, .. } = &options;
    tracing::info!(worker = %name, %pool, url = server.url(), "worker registered");
    // Not before: registering has ended a worker of this name that still used it.
    let scratch = Scratch::open(&options.scratch, name)?;
    let identity = Identity { worker: name.clone(), incarnation: registered.incarnation };
    let terms = Terms {
        beat: Duration::from_millis(registered.beat_ms.max(1)),
        outage_keep: options.outage_keep,
    };
    if options.alone
        && let Err(error) = rayreel_process::adopt()
    {
        tracing::warn!(%error, "what engines start can't be adopted; some of it may outlive them");
    }
    let dismissed = CancellationToken::new();
    let keeper = Keeper::start(server.apart()?, identity.clone(), terms, dismissed.clone())
        .map_err(Error::Keeper)?;
    let host = Host::new(options.engine_program, options.alone, scratch.rooms());
    let worker = Worker {
        identity,
        server,
        keeper,
        host,
        scratch,
        signals,
        drain_grace: options.drain_grace,
        outage_keep: options.outage_keep,
        asker,
        dismissed,
        seq: 0,
        self_test: None,
    };
    worker.run().await
}

impl Worker {
    async fn run(mut self) -> Result<Exit, Error> {
        // Between answers that come too soon.
        let mut pause = Backoff::new(Duration::from_millis(2), Duration::from_secs(1));
        loop {
            let going = told_to_go(self.signals.clone(), self.dismissed.clone());
            let asked = Instant::now();
            let claimed = tokio::select! {
                biased;
                () = going => return self.farewell().await,
                claimed = self.claim() => claimed,
            };
            let claimed = match claimed {
                Ok(claimed) => claimed,
                Err(end) => {
                    self.host.leave().await;
                    return end.exit(&self.identity.worker);
                }
            };
            let going = told_to_go(self.signals.clone(), self.dismissed.clone());
            match claimed {
                Claimed::Task(assignment) => match attempt::run(&mut self, *assignment).await {
                    After::Claim => {}
                    After::Leave => return self.farewell().await,
                    After::Abort => return Ok(Exit::Aborted),
                    After::Replaced => return End::Replaced.exit(&self.identity.worker),
                    After::Unfit(error) => return self.farewell().await.and(Err(error)),
                },
                Claimed::Nothing if asked.elapsed() >= SOON => pause.reset(),
                Claimed::Nothing => tokio::select! {
                    biased;
                    () = going => return self.farewell().await,
                    () = sleep(pause.wait()) => {}
                },
                Claimed::Drain => {
                    tracing::info!("the server needs this worker no more");
                    self.host.leave().await;
                    return Ok(Exit::Drained);
                }
                Claimed::Quarantine { model, test, message } => {
                    tracing::warn!(model = %model.name, message, "in quarantine until a self-test passes");
                    let test = self_test::run(&mut self.host, &self.scratch, &model, *test);
                    let result = tokio::select! {
                        biased;
                        () = going => return self.farewell().await,
                        result = test => result,
                    };
                    self.self_test = Some(result);
                }
            }
        }
    }

    /// Asks for a task under a new number.
    async fn claim(&mut self) -> Result<Claimed, End> {
        self.seq += 1;
        let claim = Claim {
            worker: self.identity.worker.clone(),
            incarnation: self.identity.incarnation,
            seq: self.seq,
            // One attempt at a time: whoever claims has none.
            holding: Vec::new(),
            loaded: self.host.loaded(),
            self_test: self.self_test.take(),
            wait_ms: WAIT.as_millis() as u64,
        };
        self.asker.ask(&self.server, "claim", &claim, WAIT + CALL).await
    }

    /// Leaves with empty hands.
    async fn farewell(mut self) -> Result<Exit, Error> {
        let message = Deregister {
            worker: self.identity.worker.clone(),
            incarnation: self.identity.incarnation,
        };
        let call = self.server.call::<_, Done>("deregister", &message, FAREWELL);
        let farewell = async { tokio::join!(call, self.host.leave()) };
        tokio::select! {
            biased;
            () = self.signals.abort.cancelled() => Ok(Exit::Aborted),
            (told, ()) = farewell => {
                if let Err(error) = told {
                    tracing::warn!(%error, "the server could not be told that this worker goes");
                }
                Ok(Exit::Drained)
            }
        }
    }
}

/// Becomes ready when the worker should claim nothing more.
async fn told_to_go(signals: Signals, dismissed: CancellationToken) {
    tokio::select! {
        () = signals.drain.cancelled() => {}
        () = signals.abort.cancelled() => {}
        () = dismissed.cancelled() => {}
    }
}

/// Why an idle worker does not go on.
enum End {
    Replaced,
    /// The answer that told it to go was lost: asked again, the server does not know it.
    Dismissed,
    Orphaned,
    Failed(Error),
}

impl End {
    fn exit(self, name: &WorkerName) -> Result<Exit, Error> {
        match self {
            Self::Replaced => Err(Error::Replaced { name: name.clone() }),
            Self::Dismissed => Ok(Exit::Drained),
            Self::Orphaned => Ok(Exit::Orphaned),
            Self::Failed(error) => Err(error),
        }
    }
}

/// Asks the server on behalf of a worker that holds nothing, and so has nothing to lose but time.
struct Asker {
    /// By a fleet: nobody else has this worker's name, and nobody but its server needs it.
    launched: bool,
    orphan_idle: Duration,
    /// How long the token may be refused.
    unauthorized: Duration,
}

impl Asker {
    /// Repeats the call until it is answered or there is no point in going on.
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        server: &Server,
        call: &'static str,
        question: &Q,
        limit: Duration,
    ) -> Result<A, End> {
        let mut outage = Outage::new(call);
        let mut silent: Option<Instant> = None;
        let mut locked_out: Option<Instant> = None;
        loop {
            let error = match server.call(call, question, limit).await {
                Ok(answer) => {
                    outage.over();
                    return Ok(answer);
                }
                Err(api::Error::StaleWorker) if self.launched && outage.is_on() => {
                    return Err(End::Dismissed);
                }
                Err(api::Error::StaleWorker) => return Err(End::Replaced),
                Err(api::Error::Refused { status, code, message }) => {
                    let url = server.url();
                    return Err(End::Failed(Error::Refused { url, call, status, code, message }));
                }
                Err(error) => error,
            };
            let unreachable = matches!(error, api::Error::Unreachable(_));
            silent = unreachable.then(|| silent.unwrap_or_else(Instant::now));
            let refused = matches!(error, api::Error::Unauthorized(_));
            locked_out = refused.then(|| locked_out.unwrap_or_else(Instant::now));
            if self.launched && silent.is_some_and(|since| since.elapsed() >= self.orphan_idle) {
                tracing::info!(%error, "no server any more; leaving");
                return Err(End::Orphaned);
            }
            if let api::Error::Unauthorized(message) = &error
                && locked_out.is_some_and(|since| since.elapsed() >= self.unauthorized)
            {
                let message = message.clone();
                return Err(End::Failed(Error::Unauthorized { url: server.url(), message }));
            }
            sleep(outage.failed(&error)).await;
        }
    }
}
