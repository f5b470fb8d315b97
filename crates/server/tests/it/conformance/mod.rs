//! What every store must do, whatever it stores in: generated sequences of operations are played
//! on the store and on one reference [`model`], and every answer, every choice of a claim and all
//! that can be seen must be the same.
//!
//! The environment variables `CONFORMANCE_CASES` and `CONFORMANCE_SEED` play more sequences, or
//! others; a failure prints the shortest sequence that still fails.

mod deliveries;
mod drain;
mod fair;
mod inputs;
mod keys;
mod model;
mod op;
mod places;
mod quarantine;
mod sequence;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use rayreel_domain::id::{ModelName, PoolName, TaskId, TenantName, WorkerName};
use rayreel_domain::request::{Request, Size};
use rayreel_domain::schedule::Locality;
use rayreel_domain::task::{Commit, Output, Record, Rules, Task};
use rayreel_domain::tenant::Tenancy;
use rayreel_domain::time::Timestamp;
use rayreel_domain::wire::engine::{Format, Role};
use rayreel_server::clock::{ManualClock, Random};
use rayreel_server::store::Store;

pub use deliveries::keeps_an_outbox;
pub use drain::drains;
pub use fair::shares_fairly;
pub use inputs::{keeps_both_frames, keeps_contents, keeps_files, lets_contents_go};
pub use keys::keeps_keys;
pub use places::keeps_places;
pub use quarantine::quarantines;

/// What a store is opened with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub clock: Arc<ManualClock>,
    pub random: Arc<Random>,
    pub rules: Rules,
    pub locality: Locality,
    pub max_queued: u64,
    pub tenancy: Arc<Tenancy>,
    pub garbage_after_ms: u64,
    pub worker_silence_ms: u64,
}

impl Setup {
    /// Small limits, so that short sequences reach them.
    pub fn new() -> Self {
        Self {
            clock: Arc::new(ManualClock::at(Timestamp(1_800_000_000_000))),
            random: Arc::new(Random::from_seed(7)),
            rules: Rules {
                max_failures: 3,
                max_losses: 2,
                max_releases: 2,
                backoff_ms: 1_000,
                max_backoff_ms: 3_000,
            },
            locality: Locality { max_lead_ms: 2_000, max_streak: 2 },
            max_queued: 1_000_000_000,
            tenancy: Arc::default(),
            garbage_after_ms: 3_600_000,
            worker_silence_ms: 60_000,
        }
    }
}

/// Makes stores of one kind.
#[async_trait]
pub trait Stores {
    /// Where one store keeps its data; dropped, the data is gone.
    type Home: Send;

    /// A place without data.
    fn home(&self) -> Self::Home;

    /// Does a restart forget beats, minutes and what workers were at? Where all of it is stored, a
    /// server that starts is one more, and forgets nothing.
    fn forgets(&self) -> bool {
        true
    }

    /// How many sequences are played, unless the environment says otherwise.
    fn cases(&self) -> u64 {
        256
    }

    /// Starts a store on the data that is there. No other store has it open.
    async fn open(&self, home: &Self::Home, setup: &Setup) -> Arc<dyn Store>;
}

/// Plays generated sequences on the store and on the model.
pub fn conforms(stores: &impl Stores) {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number")),
        Err(_) => default,
    };
    let config = Config {
        cases: u32::try_from(number("CONFORMANCE_CASES", stores.cases())).expect("fits"),
        rng_seed: RngSeed::Fixed(number("CONFORMANCE_SEED", 1)),
        failure_persistence: None,
        max_shrink_iters: u32::try_from(number("CONFORMANCE_SHRINK", 20_000)).expect("fits"),
        ..Config::default()
    };
    let runtime = runtime();
    let longest = number("CONFORMANCE_LENGTH", 80) as usize;
    let played = TestRunner::new(config).run(&op::sequences(longest), |(limits, ops)| {
        runtime.block_on(sequence::play(stores, limits, ops))
    });
    if let Err(error) = played {
        panic!("{error}");
    }
}

/// One thread: the order of events is that of the test.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

pub fn tenant(name: &str) -> TenantName {
    name.parse().expect("a name")
}

pub fn pool(name: &str) -> PoolName {
    name.parse().expect("a name")
}

pub fn model(name: &str) -> ModelName {
    name.parse().expect("a name")
}

pub fn worker(name: &str) -> WorkerName {
    name.parse().expect("a name")
}

/// A request for something small, with defaults for all that a test does not care about.
pub fn record(setup: &Setup, id: TaskId) -> Record {
    use rayreel_server::clock::Clock;
    let request = Request {
        prompt: "a red fox".into(),
        negative_prompt: String::new(),
        size: Size { width: 64, height: 64 },
        frames: 1,
        fps: 16,
        steps: 1,
        guidance: None,
        guidance_2: None,
        loras: Vec::new(),
        seed: 1,
        format: Format::Mp4,
        image: None,
        last_image: None,
        metadata: BTreeMap::new(),
    };
    let (pool, model) = (pool("local"), model("testcard"));
    let record = Record::new(id, tenant("anna"), pool, model, request, setup.clock.wall());
    Record { estimate_ms: 1_000, ..record }
}

/// A queued task.
pub fn task(setup: &Setup, change: impl FnOnce(&mut Record)) -> Task {
    use rayreel_server::clock::Clock;
    let mut record = record(setup, setup.random.task_id(setup.clock.wall()));
    change(&mut record);
    Task::new(record)
}

/// A result of one file.
pub fn commit(kind: u8) -> Commit {
    Commit {
        outputs: vec![Output {
            index: 0,
            role: Role::Video,
            media_type: "video/mp4".into(),
            bytes: 1_000 + u64::from(kind),
            sha256: format!("{kind:064x}"),
            width: 64,
            height: 64,
            frames: 1,
            fps: 16,
        }],
        metrics: BTreeMap::from([("generate_ms".to_owned(), 12.5)]),
        test_pattern: true,
    }
}
