//! When a lease is lost.

use std::time::Duration;

use rayreel_domain::lease::{Fence, Terms};
use rayreel_domain::task::State;
use rayreel_domain::time::Timestamp;
use rayreel_server::duties::Rescuer;
use rayreel_server::store::{Claim, Claimed, Identity, Registration};

use crate::world::World;

const TERMS: Terms = Terms { lease_ms: 30_000, first_ms: 5_000, max_graces: 5 };
const MAX_RUN_MS: u64 = 3_600_000;

struct Run {
    world: World,
    rescuer: Rescuer,
    by: Identity,
    fence: Fence,
}

/// A task that a worker has claimed.
async fn claimed() -> Run {
    let world = World::new(&[]);
    let store = &world.app.components.store;
    world.submit("a task").await;
    let worker: rayreel_domain::WorkerName = "w".parse().unwrap();
    let registration = Registration {
        worker: worker.clone(),
        pool: "local".parse().unwrap(),
        launch: None,
        version: String::new(),
    };
    let by = Identity { worker, incarnation: store.register(registration).await.unwrap() };
    let claim = Claim {
        by: by.clone(),
        seq: 1,
        holding: vec![],
        loaded: None,
        self_test: None,
        target: None,
    };
    let Claimed::Task(task) = store.claim(claim).await.unwrap() else { panic!("a task") };
    let fence = task.fence().unwrap();
    Run { rescuer: Rescuer::default(), by, fence, world }
}

impl Run {
    async fn look(&mut self) -> usize {
        let components = &self.world.app.components;
        let rescuer = &mut self.rescuer;
        rescuer.look(&*components.store, &*components.clock, TERMS, MAX_RUN_MS).await.unwrap()
    }

    async fn beat(&self) {
        self.world.app.components.store.beat(&self.by, self.fence, None).await.unwrap();
    }

    fn pass(&self, ms: u64) {
        self.world.clock.advance(Duration::from_millis(ms));
    }
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_free_again_after_five_seconds_at_no_cost() {
    let mut run = claimed().await;
    assert_eq!(run.look().await, 0);
    run.pass(4_999);
    assert_eq!(run.look().await, 0);
    run.pass(1);
    assert_eq!(run.look().await, 1);
    let task = run.world.get(run.fence.task).await.task;
    assert_eq!((task.state, task.losses, task.releases), (State::Queued, 0, 0));
    assert!(task.attempts.is_empty());
}

#[tokio::test]
async fn a_lease_lives_as_long_as_beats_come() {
    let mut run = claimed().await;
    for _ in 0..10 {
        run.beat().await;
        assert_eq!(run.look().await, 0);
        run.pass(29_999);
        assert_eq!(run.look().await, 0);
    }
    run.pass(1);
    assert_eq!(run.look().await, 1);
    assert_eq!(run.world.get(run.fence.task).await.task.losses, 1);
}

#[tokio::test]
async fn a_late_beat_that_is_not_yet_rescued_revives_the_lease() {
    let mut run = claimed().await;
    run.beat().await;
    run.look().await;
    run.pass(100_000);
    run.beat().await;
    assert_eq!(run.look().await, 0);
}

#[tokio::test]
async fn a_restart_gives_every_lease_its_full_length_again() {
    let mut run = claimed().await;
    run.beat().await;
    run.look().await;
    run.pass(29_999);
    run.rescuer = Rescuer::default();
    assert_eq!(run.look().await, 0);
    run.pass(29_999);
    assert_eq!(run.look().await, 0);
    run.pass(1);
    assert_eq!(run.look().await, 1);
}

#[tokio::test]
async fn the_wall_clock_does_not_count() {
    let mut run = claimed().await;
    run.beat().await;
    run.look().await;
    for jump in [0, u64::MAX / 4] {
        run.world.clock.jump(Timestamp(jump));
        assert_eq!(run.look().await, 0);
    }
}

#[tokio::test]
async fn an_attempt_that_runs_far_too_long_is_ended_for_its_worker() {
    let mut run = claimed().await;
    for _ in 0..((MAX_RUN_MS + 60_000) / 20_000) {
        run.beat().await;
        assert_eq!(run.look().await, 0);
        run.pass(20_000);
    }
    run.pass(1);
    run.beat().await;
    assert_eq!(run.look().await, 1);
    assert_eq!(run.world.get(run.fence.task).await.task.state, State::Failed);
}
