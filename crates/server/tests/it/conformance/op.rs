//! The operations of a sequence. They name tasks and attempts by numbers, whose meaning is found
//! when they are played: so a sequence stays one when operations are left out of it.

use proptest::collection::vec;
use proptest::prelude::*;
use rayreel_domain::schedule::Locality;
use rayreel_domain::tenant::Terms;

/// Tenants, pools, models and workers that occur.
pub(super) const TENANTS: [&str; 4] = ["anna", "bert", "cleo", "dora"];
pub(super) const POOLS: [&str; 2] = ["local", "remote"];
pub(super) const MODELS: [&str; 3] = ["small", "large", "testcard"];
pub(super) const WORKERS: [&str; 4] = ["w1", "w2", "w3", "w4"];

/// What differs between the stores of different sequences.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) locality: Locality,
    pub(super) max_queued: u64,
    /// In the order of [`TENANTS`].
    pub(super) terms: Vec<Terms>,
    pub(super) seed: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Op {
    Submit(Submit),
    Register {
        worker: usize,
        pool: usize,
        launch: bool,
    },
    Deregister {
        by: By,
    },
    DrainWorker {
        worker: usize,
    },
    DrainPool {
        pool: usize,
        drained: bool,
    },
    Claim(Claim),
    /// A claim, and what the worker then does with what it gets.
    Work {
        claim: Claim,
        ms: u64,
        beat: bool,
        end: Option<End>,
    },
    Beat {
        by: By,
        attempt: Attempt,
        step: Option<u32>,
    },
    End {
        by: By,
        attempt: Attempt,
        end: End,
    },
    Reclaim {
        attempt: Attempt,
        beats: Beats,
        end: Reclaim,
    },
    Cancel {
        task: usize,
        foreign: bool,
    },
    Delete {
        task: usize,
        foreign: bool,
    },
    Advance,
    /// Time passes.
    Elapse {
        ms: u64,
    },
    /// Time passes, and the duty that watches it is awake.
    Wait {
        ms: u64,
    },
    /// Somebody sets the clock.
    Jump {
        ms: i64,
    },
    Restart,
    Launch {
        id: usize,
        claimed: bool,
    },
    RemoveLaunch {
        id: usize,
    },
    Collect {
        limit: u32,
    },
    List {
        tenant: usize,
        state: Option<usize>,
        model: Option<usize>,
        still: Option<bool>,
        oldest_first: bool,
        hours: Option<i64>,
        limit: u32,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Submit {
    pub(super) tenant: usize,
    pub(super) pool: usize,
    pub(super) model: usize,
    pub(super) still: bool,
    pub(super) priority: u8,
    pub(super) estimate_ms: u64,
    /// Idempotency key, and which request it stands for.
    pub(super) key: Option<(u8, u8)>,
    pub(super) deadline_ms: Option<u64>,
    /// So many at once.
    pub(super) count: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) by: By,
    pub(super) seq: Seq,
    pub(super) holding: Holding,
    pub(super) loaded: Option<usize>,
    pub(super) self_test: Option<Test>,
    pub(super) target: Option<u32>,
}

/// Result of a self-test.
#[derive(Debug, Clone, Copy)]
pub(super) struct Test {
    /// None: what the worker was asked to test.
    pub(super) model: Option<usize>,
    pub(super) passed: bool,
}

/// Most tenants have no limits, so that there is something to do.
fn terms() -> impl Strategy<Value = Terms> {
    use proptest::option::weighted;
    let weight = prop_oneof![3 => Just(1_000u32), 1 => 200..5_000u32];
    let limits = (
        weighted(0.15, 1..6u32),
        weighted(0.15, 1..8u64),
        weighted(0.25, 0..3u64),
        weighted(0.15, 2_000..20_000u64),
        weighted(0.25, 0..20_000u64),
    );
    (weight, limits).prop_map(|(weight, (per_minute, queued, running, day_ms, keep_ms))| Terms {
        weight,
        per_minute,
        queued,
        running,
        day_ms,
        keep_ms,
    })
}

/// Which worker calls, and whether with its newest registration.
#[derive(Debug, Clone, Copy)]
pub(super) struct By {
    pub(super) worker: usize,
    pub(super) stale: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Seq {
    Next,
    Repeated,
    Older,
}

/// What a claim says it holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holding {
    /// The truth.
    Held,
    Nothing,
    /// Some attempt, its own or another's.
    Attempt(Attempt),
}

/// Which attempt is meant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attempt {
    Live(usize),
    /// Any, from the newest on.
    Any(usize),
    /// A live one with another nonce, or another number.
    Forged(usize, bool),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Commit(u8),
    Fail { blames_engine: bool, retryable: bool },
    Release,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Reclaim {
    Lose,
    Vanish,
    Stop,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Beats {
    /// As many as there were.
    Seen,
    /// One has come since.
    Outdated,
    Whatever,
}

/// What a sequence has more of than others: some states are far from where it begins.
#[derive(Debug, Clone, Copy)]
struct Mood {
    submit: u32,
    claim: u32,
    work: u32,
    end: u32,
    beat: u32,
    reclaim: u32,
    /// Registrations, good-byes.
    register: u32,
    cancel: u32,
    restart: u32,
    /// Time passes, duties run.
    time: u32,
    /// It passes by hours, and back.
    long_time: u32,
    /// Of ten attempts that end, so many fail.
    failures: u32,
    /// How much more the first worker does than the others.
    first: u32,
    /// Chances.
    key: f64,
    target: f64,
    /// Claims that repeat themselves, are late, or have forgotten what they hold.
    confused: f64,
}

const EVERYTHING: Mood = Mood {
    submit: 30,
    claim: 30,
    work: 20,
    end: 20,
    beat: 12,
    reclaim: 6,
    register: 6,
    cancel: 5,
    restart: 3,
    time: 20,
    long_time: 3,
    failures: 4,
    first: 4,
    key: 0.2,
    target: 0.2,
    confused: 0.2,
};

const MOODS: [Mood; 6] = [
    EVERYTHING,
    // Engines break, those of one worker more than others.
    Mood {
        work: 80,
        end: 5,
        claim: 20,
        failures: 8,
        first: 20,
        register: 12,
        cancel: 1,
        restart: 2,
        time: 40,
        target: 0.4,
        confused: 0.02,
        ..EVERYTHING
    },
    // There is little to do.
    Mood { submit: 8, register: 15, target: 0.8, confused: 0.02, ..EVERYTHING },
    // Tenants compete.
    Mood {
        submit: 60,
        work: 80,
        end: 5,
        claim: 5,
        failures: 1,
        register: 1,
        confused: 0.02,
        ..EVERYTHING
    },
    // Workers and the server come and go.
    Mood { register: 30, restart: 15, failures: 2, first: 12, confused: 0.7, ..EVERYTHING },
    // Days pass, and clients repeat themselves.
    Mood { submit: 60, key: 0.9, cancel: 20, long_time: 15, time: 40, ..EVERYTHING },
];

fn by(mood: Mood) -> impl Strategy<Value = By> {
    let worker = prop_oneof![mood.first => Just(0), 3 => Just(1), 2 => Just(2), 1 => Just(3)];
    (worker, prop::bool::weighted(0.05)).prop_map(|(worker, stale)| By { worker, stale })
}

fn attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![
        8 => (0..4usize).prop_map(Attempt::Live),
        3 => (0..12usize).prop_map(Attempt::Any),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, nonce)| Attempt::Forged(n, nonce)),
    ]
}

fn submit(mood: Mood) -> impl Strategy<Value = Op> {
    let cost = prop_oneof![8 => 100..3_000u64, 1 => Just(0), 1 => 10_000..60_000u64];
    let request = prop_oneof![4 => Just(0u8), 1 => Just(1)];
    let key = proptest::option::weighted(mood.key, (0..2u8, request));
    let deadline = proptest::option::weighted(0.2, 500..20_000u64);
    let pool = prop_oneof![6 => Just(0usize), 1 => Just(1)];
    let priority = prop_oneof![3 => Just(3u8), 2 => 1..=5u8];
    // One is asked for more than others: whoever breaks, breaks with that.
    let model = prop_oneof![6 => Just(0usize), 2 => Just(1), 1 => Just(2)];
    let count = prop_oneof![8 => Just(1usize), 1 => 2..4usize];
    let still = prop::bool::weighted(0.2);
    (0..TENANTS.len(), pool, model, still, priority, cost, key, deadline, count).prop_map(
        |(tenant, pool, model, still, priority, estimate_ms, key, deadline_ms, count)| {
            Op::Submit(Submit {
                tenant,
                pool,
                model,
                still,
                priority,
                estimate_ms,
                key,
                deadline_ms,
                count,
            })
        },
    )
}

fn claim(mood: Mood) -> impl Strategy<Value = Claim> {
    let seq = prop_oneof![1 => Just(Seq::Next), 1 => Just(Seq::Repeated), 1 => Just(Seq::Older)];
    let holding = prop_oneof![
        1 => Just(Holding::Held),
        2 => Just(Holding::Nothing),
        1 => attempt().prop_map(Holding::Attempt),
    ];
    let confused = proptest::option::weighted(mood.confused, (seq, holding));
    let loaded = proptest::option::weighted(0.7, 0..MODELS.len());
    let test = (proptest::option::weighted(0.2, 0..MODELS.len()), prop::bool::weighted(0.5))
        .prop_map(|(model, passed)| Test { model, passed });
    let self_test = proptest::option::weighted(0.3, test);
    let target = proptest::option::weighted(mood.target, 0..3u32);
    (by(mood), confused, loaded, self_test, target).prop_map(
        |(by, confused, loaded, self_test, target)| {
            let (seq, holding) = confused.unwrap_or((Seq::Next, Holding::Held));
            Claim { by, seq, holding, loaded, self_test, target }
        },
    )
}

fn end(mood: Mood) -> impl Strategy<Value = End> {
    let fail = (prop::bool::weighted(0.8), prop::bool::weighted(0.8))
        .prop_map(|(blames_engine, retryable)| End::Fail { blames_engine, retryable });
    prop_oneof![
        10 - mood.failures => (0..2u8).prop_map(End::Commit),
        mood.failures => fail,
        1 => Just(End::Release),
    ]
}

fn work(mood: Mood) -> impl Strategy<Value = Op> {
    let ms = prop_oneof![Just(0u64), Just(300), Just(2_500)];
    let end = proptest::option::weighted(0.9, end(mood));
    (claim(mood), ms, any::<bool>(), end).prop_map(|(claim, ms, beat, end)| Op::Work {
        claim,
        ms,
        beat,
        end,
    })
}

fn reclaim() -> impl Strategy<Value = Op> {
    let beats =
        prop_oneof![4 => Just(Beats::Seen), 1 => Just(Beats::Outdated), 1 => Just(Beats::Whatever)];
    let end =
        prop_oneof![4 => Just(Reclaim::Lose), 1 => Just(Reclaim::Vanish), 1 => Just(Reclaim::Stop)];
    (attempt(), beats, end).prop_map(|(attempt, beats, end)| Op::Reclaim { attempt, beats, end })
}

fn list() -> impl Strategy<Value = Op> {
    let option = |n: usize| proptest::option::of(0..n);
    let hours = proptest::option::weighted(0.3, -30..30i64);
    let still = proptest::option::of(any::<bool>());
    let which = (option(6), option(MODELS.len()), still, hours);
    (0..TENANTS.len(), which, any::<bool>(), 1..5u32).prop_map(
        |(tenant, (state, model, still, hours), oldest_first, limit)| Op::List {
            tenant,
            state,
            model,
            still,
            oldest_first,
            hours,
            limit,
        },
    )
}

fn register(mood: Mood) -> impl Strategy<Value = Op> {
    let pool = prop_oneof![6 => Just(0usize), 1 => Just(1)];
    prop_oneof![
        5 => (by(mood), pool, any::<bool>())
            .prop_map(|(by, pool, launch)| Op::Register { worker: by.worker, pool, launch }),
        1 => by(mood).prop_map(|by| Op::Deregister { by }),
        1 => by(mood).prop_map(|by| Op::DrainWorker { worker: by.worker }),
        1 => (0..POOLS.len(), prop::bool::weighted(0.3))
            .prop_map(|(pool, drained)| Op::DrainPool { pool, drained }),
    ]
}

fn cancel() -> impl Strategy<Value = Op> {
    (0..16usize, prop::bool::weighted(0.1), any::<bool>()).prop_map(|(task, foreign, delete)| {
        if delete { Op::Delete { task, foreign } } else { Op::Cancel { task, foreign } }
    })
}

fn time() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::Advance),
        3 => prop_oneof![Just(1u64), Just(400), Just(1_600)].prop_map(|ms| Op::Elapse { ms }),
        // So long that every backoff has passed.
        4 => Just(Op::Wait { ms: 4_000 }),
        1 => Just(Op::Wait { ms: 61_000 }),
    ]
}

fn long_time() -> impl Strategy<Value = Op> {
    const HOUR: i64 = 3_600_000;
    // A day exactly, too: that is how long a key counts.
    let ms = prop_oneof![Just(1_000), Just(HOUR), Just(24 * HOUR), Just(25 * HOUR)];
    (ms, 0..4u8).prop_map(|(ms, how)| match how {
        0 => Op::Jump { ms: -ms },
        1 => Op::Jump { ms },
        _ => Op::Elapse { ms: ms.unsigned_abs() },
    })
}

fn op(mood: Mood) -> impl Strategy<Value = Op> {
    prop_oneof![
        mood.submit => submit(mood),
        mood.claim => claim(mood).prop_map(Op::Claim),
        mood.work => work(mood),
        mood.end => (by(mood), attempt(), end(mood))
            .prop_map(|(by, attempt, end)| Op::End { by, attempt, end }),
        mood.beat => (by(mood), attempt(), proptest::option::of(0..20u32))
            .prop_map(|(by, attempt, step)| Op::Beat { by, attempt, step }),
        mood.reclaim => reclaim(),
        mood.register => register(mood),
        mood.cancel => cancel(),
        mood.restart => Just(Op::Restart),
        mood.time => time(),
        mood.long_time => long_time(),
        2 => (0..3usize, any::<bool>()).prop_map(|(id, claimed)| Op::Launch { id, claimed }),
        1 => (0..3usize).prop_map(|id| Op::RemoveLaunch { id }),
        2 => (1..4u32).prop_map(|limit| Op::Collect { limit }),
        4 => list(),
    ]
}

/// Sequences of at most `longest` operations, the first of which register two workers.
pub(super) fn sequences(longest: usize) -> impl Strategy<Value = (Limits, Vec<Op>)> {
    let locality = (prop_oneof![Just(0u64), Just(1_500), Just(20_000)], 1..4u32);
    let max_queued = prop_oneof![1 => 2..8u64, 4 => Just(1_000)];
    let terms = vec(terms(), TENANTS.len());
    let limits = (locality, max_queued, terms, any::<u64>()).prop_map(
        |((max_lead_ms, max_streak), max_queued, terms, seed)| Limits {
            locality: Locality { max_lead_ms, max_streak },
            max_queued,
            terms,
            seed,
        },
    );
    let first = [0, 1].map(|worker| Op::Register { worker, pool: 0, launch: false });
    let ops = (0..MOODS.len())
        .prop_flat_map(move |mood| vec(op(MOODS[mood]), 1..=longest))
        .prop_map(move |ops| first.iter().cloned().chain(ops).collect());
    (limits, ops)
}
