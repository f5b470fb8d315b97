//! Workers and pools that an operator drains. Random sequences do it, too; here it is step by step.

use std::sync::Arc;

use rayreel_domain::id::WorkerName;
use rayreel_domain::task::{End, State};
use rayreel_server::store::{Claim, Claimed, Identity, Registration, Store};

use super::{Setup, Stores};

/// Plays what is promised of drains.
pub async fn drains(stores: &impl Stores) {
    a_worker_finishes_its_task_and_goes(stores).await;
    a_restart_and_a_new_registration_change_nothing(stores).await;
    a_worker_that_goes_is_no_elsewhere(stores).await;
    a_pool_is_closed_until_it_is_resumed(stores).await;
}

struct Shop {
    store: Arc<dyn Store>,
    setup: Setup,
    seq: u64,
}

impl Shop {
    async fn open<S: Stores>(stores: &S, home: &S::Home) -> Self {
        let setup = Setup::new();
        Self { store: stores.open(home, &setup).await, setup, seq: 0 }
    }

    async fn again<S: Stores>(self, stores: &S, home: &S::Home) -> Self {
        let Self { store, setup, seq } = self;
        drop(store);
        Self { store: stores.open(home, &setup).await, setup, seq }
    }

    async fn register(&self, name: &str) -> Identity {
        let (worker, pool) = (super::worker(name), super::pool("local"));
        let version = "1".to_owned();
        let registration = Registration { worker: worker.clone(), pool, launch: None, version };
        Identity { worker, incarnation: self.store.register(registration).await.expect("known") }
    }

    async fn submit(&self) -> rayreel_domain::TaskId {
        let task = super::task(&self.setup, |_| {});
        self.store.submit(task).await.expect("accepted").task.id
    }

    async fn ask(&mut self, by: &Identity) -> Claimed {
        self.seq += 1;
        let claim = Claim {
            by: by.clone(),
            seq: self.seq,
            holding: Vec::new(),
            loaded: None,
            self_test: None,
            target: None,
        };
        self.store.claim(claim).await.expect("answered")
    }

    async fn drain(&self, name: &str) -> bool {
        self.store.drain_worker(&super::worker(name)).await.expect("answered")
    }

    async fn names(&self) -> Vec<WorkerName> {
        let workers = self.store.workers().await.expect("answered");
        workers.into_iter().map(|worker| worker.by.worker).collect()
    }
}

async fn a_worker_finishes_its_task_and_goes(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    let (first, second) = (shop.submit().await, shop.submit().await);
    let Claimed::Task(task) = shop.ask(&by).await else { panic!("a task") };
    assert!(!shop.drain("w2").await, "there is none");
    assert!(shop.drain("w1").await);
    assert!(shop.drain("w1").await, "a repetition");
    // The lease goes on.
    let fence = task.fence().expect("running");
    shop.store.beat(&by, fence, None).await.expect("it holds");
    let done = shop.store.end(&by, fence, End::Commit(super::commit(0))).await.expect("ended");
    assert_eq!((done.id, done.state, done.attempt), (first, State::Succeeded, 1));
    assert_eq!(shop.names().await, [super::worker("w1")], "until it asks");
    assert!(matches!(shop.ask(&by).await, Claimed::Drain));
    assert!(shop.names().await.is_empty());
    assert!(!shop.drain("w1").await);
    // Whoever takes the name afterwards is another.
    let by = shop.register("w1").await;
    let Claimed::Task(task) = shop.ask(&by).await else { panic!("a task") };
    assert_eq!((task.id, task.attempt), (second, 1));
}

async fn a_restart_and_a_new_registration_change_nothing(stores: &impl Stores) {
    let home = stores.home();
    let shop = Shop::open(stores, &home).await;
    shop.register("w1").await;
    shop.submit().await;
    shop.drain("w1").await;
    let mut shop = shop.again(stores, &home).await;
    let by = shop.register("w1").await;
    assert!(shop.store.workers().await.expect("answered")[0].draining);
    assert!(matches!(shop.ask(&by).await, Claimed::Drain));
}

async fn a_worker_that_goes_is_no_elsewhere(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let (by, _other) = (shop.register("w1").await, shop.register("w2").await);
    let id = shop.submit().await;
    let Claimed::Task(task) = shop.ask(&by).await else { panic!("a task") };
    let fence = task.fence().expect("running");
    let failure = rayreel_domain::task::Failure {
        retryable: true,
        ..rayreel_domain::task::Failure::new(rayreel_domain::Code::UploadFailed, "no route")
    };
    shop.store.end(&by, fence, End::Fail(failure)).await.expect("ended");
    shop.setup.clock.advance(std::time::Duration::from_secs(5));
    shop.store.advance().await.expect("advanced");
    assert!(matches!(shop.ask(&by).await, Claimed::Nothing { ready: true }), "for the other");
    shop.drain("w2").await;
    let Claimed::Task(task) = shop.ask(&by).await else { panic!("there is no other") };
    assert_eq!((task.id, task.attempt), (id, 2));
}

async fn a_pool_is_closed_until_it_is_resumed(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let local = super::pool("local");
    let by = shop.register("w1").await;
    shop.submit().await;
    shop.submit().await;
    let Claimed::Task(task) = shop.ask(&by).await else { panic!("a task") };
    for _ in 0..2 {
        shop.store.drain_pool(&local, true).await.expect("drained");
    }
    let fence = task.fence().expect("running");
    let done = shop.store.end(&by, fence, End::Commit(super::commit(0))).await.expect("ended");
    assert_eq!((done.state, done.attempt), (State::Succeeded, 1), "what runs goes on");
    assert!(matches!(shop.ask(&by).await, Claimed::Nothing { ready: false }));

    let mut shop = shop.again(stores, &home).await;
    assert_eq!(shop.store.drained_pools().await, Ok([local.clone()].into()));
    assert!(matches!(shop.ask(&by).await, Claimed::Nothing { ready: false }));
    let backlog = shop.store.backlog().await.expect("answered");
    assert_eq!(backlog[0].queued, 1, "it waits");
    for _ in 0..2 {
        shop.store.drain_pool(&local, false).await.expect("resumed");
    }
    assert_eq!(shop.store.drained_pools().await, Ok([].into()));
    assert!(matches!(shop.ask(&by).await, Claimed::Task(_)));
}
