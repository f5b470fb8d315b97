//! The operations of a sequence. They name tasks and attempts by numbers, whose meaning is found
//! when they are played: so a sequence stays one when operations are left out of it.

use proptest::collection::vec;
use proptest::prelude::*;
use rayreel_domain::schedule::Locality;

/// Tenants, pools, models and workers that occur.
pub(super) const TENANTS: [&str; 4] = ["anna", "bert", "cleo", "dora"];
pub(super) const POOLS: [&str; 2] = ["local", "remote"];
pub(super) const MODELS: [&str; 3] = ["small", "large", "testcard"];
pub(super) const WORKERS: [&str; 4] = ["w1", "w2", "w3", "w4"];

/// What differs between the stores of different sequences.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) locality: Locality,
    pub(super) max_queued: u64,
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
    Claim(Claim),
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
        hours: Option<i64>,
        limit: u32,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Submit {
    pub(super) tenant: usize,
    pub(super) pool: usize,
    pub(super) model: usize,
    pub(super) priority: u8,
    pub(super) estimate_ms: u64,
    /// Idempotency key, and which request it stands for.
    pub(super) key: Option<(u8, u8)>,
    pub(super) deadline_ms: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) by: By,
    pub(super) seq: Seq,
    pub(super) holding: Holding,
    pub(super) loaded: Option<usize>,
    pub(super) self_test: Option<bool>,
    pub(super) target: Option<u32>,
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

fn by() -> impl Strategy<Value = By> {
    (0..WORKERS.len(), prop::bool::weighted(0.05)).prop_map(|(worker, stale)| By { worker, stale })
}

fn attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![
        8 => (0..4usize).prop_map(Attempt::Live),
        3 => (0..12usize).prop_map(Attempt::Any),
        1 => (0..4usize, any::<bool>()).prop_map(|(n, nonce)| Attempt::Forged(n, nonce)),
    ]
}

fn submit() -> impl Strategy<Value = Op> {
    let small = prop_oneof![8 => 100..3_000u64, 1 => Just(0), 1 => 10_000..60_000u64];
    let key = proptest::option::weighted(0.3, (0..2u8, prop_oneof![4 => Just(0u8), 1 => Just(1)]));
    let deadline = proptest::option::weighted(0.2, 500..20_000u64);
    (
        0..TENANTS.len(),
        prop_oneof![6 => Just(0usize), 1 => Just(1)],
        0..MODELS.len(),
        1..=5u8,
        small,
        key,
        deadline,
    )
        .prop_map(|(tenant, pool, model, priority, estimate_ms, key, deadline_ms)| {
            Op::Submit(Submit { tenant, pool, model, priority, estimate_ms, key, deadline_ms })
        })
}

fn claim() -> impl Strategy<Value = Op> {
    let seq = prop_oneof![10 => Just(Seq::Next), 2 => Just(Seq::Repeated), 1 => Just(Seq::Older)];
    let holding = prop_oneof![
        8 => Just(Holding::Held),
        1 => Just(Holding::Nothing),
        1 => attempt().prop_map(Holding::Attempt),
    ];
    let loaded = proptest::option::weighted(0.7, 0..MODELS.len());
    let self_test = proptest::option::weighted(0.3, prop::bool::weighted(0.8));
    let target = proptest::option::weighted(0.3, 0..4u32);
    (by(), seq, holding, loaded, self_test, target).prop_map(
        |(by, seq, holding, loaded, self_test, target)| {
            Op::Claim(Claim { by, seq, holding, loaded, self_test, target })
        },
    )
}

fn end() -> impl Strategy<Value = Op> {
    let end = prop_oneof![
        5 => (0..2u8).prop_map(End::Commit),
        5 => (prop::bool::weighted(0.7), prop::bool::weighted(0.8))
            .prop_map(|(blames_engine, retryable)| End::Fail { blames_engine, retryable }),
        2 => Just(End::Release),
    ];
    (by(), attempt(), end).prop_map(|(by, attempt, end)| Op::End { by, attempt, end })
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
    (0..TENANTS.len(), option(6), option(MODELS.len()), hours, 1..5u32).prop_map(
        |(tenant, state, model, hours, limit)| Op::List { tenant, state, model, hours, limit },
    )
}

fn op() -> impl Strategy<Value = Op> {
    const HOUR: i64 = 3_600_000;
    let elapse = prop_oneof![
        6 => prop_oneof![Just(1u64), Just(400), Just(1_600), Just(4_000)],
        1 => prop_oneof![Just(61_000u64), Just(2 * HOUR as u64), Just(25 * HOUR as u64)],
    ];
    let jump = prop_oneof![Just(1_000i64), Just(HOUR), Just(25 * HOUR)];
    let task = (0..16usize, prop::bool::weighted(0.1));
    prop_oneof![
        30 => submit(),
        6 => (0..WORKERS.len(), prop_oneof![6 => Just(0usize), 1 => Just(1)], any::<bool>())
            .prop_map(|(worker, pool, launch)| Op::Register { worker, pool, launch }),
        1 => by().prop_map(|by| Op::Deregister { by }),
        40 => claim(),
        12 => (by(), attempt(), proptest::option::of(0..20u32))
            .prop_map(|(by, attempt, step)| Op::Beat { by, attempt, step }),
        28 => end(),
        6 => reclaim(),
        5 => task.clone().prop_map(|(task, foreign)| Op::Cancel { task, foreign }),
        6 => task.prop_map(|(task, foreign)| Op::Delete { task, foreign }),
        10 => Just(Op::Advance),
        10 => elapse.prop_map(|ms| Op::Elapse { ms }),
        2 => (jump, any::<bool>()).prop_map(|(ms, back)| Op::Jump { ms: if back { -ms } else { ms } }),
        3 => Just(Op::Restart),
        2 => (0..3usize, any::<bool>()).prop_map(|(id, claimed)| Op::Launch { id, claimed }),
        1 => (0..3usize).prop_map(|id| Op::RemoveLaunch { id }),
        2 => (1..4u32).prop_map(|limit| Op::Collect { limit }),
        6 => list(),
    ]
}

/// Sequences of at most `longest` operations, the first of which register two workers.
pub(super) fn sequences(longest: usize) -> impl Strategy<Value = (Limits, Vec<Op>)> {
    let locality = (prop_oneof![Just(0u64), Just(1_500), Just(20_000)], 1..4u32);
    let limits = (locality, prop_oneof![1 => 2..8u64, 4 => Just(1_000)], any::<u64>()).prop_map(
        |((max_lead_ms, max_streak), max_queued, seed)| Limits {
            locality: Locality { max_lead_ms, max_streak },
            max_queued,
            seed,
        },
    );
    let first = [0, 1].map(|worker| Op::Register { worker, pool: 0, launch: false });
    let ops =
        vec(op(), 1..=longest).prop_map(move |ops| first.iter().cloned().chain(ops).collect());
    (limits, ops)
}
