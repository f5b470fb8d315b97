//! A worker whose engine fails everything is kept from the queue until it has proved itself. Random
//! sequences seldom get far into this, so here it is step by step.

use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::code::Code;
use rayreel_domain::id::TaskId;
use rayreel_domain::task::{End, Failure, Outcome, Rules, Task};
use rayreel_domain::wire::worker::SelfTest;
use rayreel_server::store::{Claim, Claimed, Identity, Registration, Store};

use super::{Setup, Stores};

/// Plays what is promised of quarantine.
pub async fn quarantines(stores: &impl Stores) {
    three_failures_in_a_row_and_a_passed_test(stores).await;
    a_success_in_between_starts_the_count_again(stores).await;
    neither_a_restart_nor_a_new_registration_ends_it(stores).await;
    who_is_quarantined_does_not_count_as_another_worker(stores).await;
}

struct Shop {
    store: Arc<dyn Store>,
    setup: Setup,
    seq: u64,
}

impl Shop {
    async fn open<S: Stores>(stores: &S, home: &S::Home) -> Self {
        let rules = Rules { backoff_ms: 10, max_backoff_ms: 10, ..Setup::new().rules };
        let setup = Setup { rules, ..Setup::new() };
        Self { store: stores.open(home, &setup).await, setup, seq: 0 }
    }

    async fn register(&self, name: &str) -> Identity {
        let worker = super::worker(name);
        let pool = super::pool("local");
        let registration = Registration { worker: worker.clone(), pool, launch: None };
        Identity { worker, incarnation: self.store.register(registration).await.expect("known") }
    }

    async fn submit(&self, count: usize) {
        for _ in 0..count {
            self.store.submit(super::task(&self.setup, |_| {})).await.expect("accepted");
        }
    }

    async fn ask(&mut self, by: &Identity, test: Option<SelfTest>, target: Option<u32>) -> Claimed {
        self.seq += 1;
        let claim = Claim {
            by: by.clone(),
            seq: self.seq,
            holding: Vec::new(),
            loaded: None,
            self_test: test,
            target,
        };
        self.store.claim(claim).await.expect("answered")
    }

    async fn work(&mut self, by: &Identity, end: End) -> Task {
        let Claimed::Task(task) = self.ask(by, None, None).await else { panic!("no task") };
        self.store.end(by, task.fence().expect("running"), end).await.expect("ended")
    }

    /// Three failures, each of another task: none is ready again in between.
    async fn ruin(&mut self, by: &Identity) -> Vec<TaskId> {
        let mut failed = Vec::new();
        for _ in 0..3 {
            assert!(!self.quarantined(by).await);
            failed.push(self.work(by, broken()).await.id);
        }
        assert!(self.quarantined(by).await);
        failed
    }

    async fn quarantined(&self, by: &Identity) -> bool {
        let workers = self.store.workers().await.expect("answered");
        workers.iter().any(|worker| worker.by == *by && worker.quarantined)
    }

    async fn wait(&self) {
        self.setup.clock.advance(Duration::from_millis(20));
        self.store.advance().await.expect("advanced");
    }
}

fn broken() -> End {
    End::Fail(Failure { retryable: true, ..Failure::new(Code::EngineCrashed, "it broke") })
}

fn done() -> End {
    End::Commit(super::commit(0))
}

async fn three_failures_in_a_row_and_a_passed_test(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit(5).await;
    let failed = shop.ruin(&by).await;
    for id in failed {
        let view = shop.store.get(&super::tenant("anna"), id).await.expect("answered");
        let task = view.expect("there").task;
        // It was not the task's fault.
        assert_eq!((task.failures, task.losses), (0, 1));
        assert_eq!(task.attempts[0].outcome, Some(Outcome::Lost));
    }
    let no = SelfTest::Failed { message: "still broken".into() };
    for test in [None, Some(no)] {
        let Claimed::Quarantine { model, message } = shop.ask(&by, test, None).await else {
            panic!("it gets nothing before it has passed its test");
        };
        assert_eq!((model, message.as_str()), (super::model("testcard"), "it broke"));
    }
    assert!(matches!(shop.ask(&by, Some(SelfTest::Passed), None).await, Claimed::Task(_)));
    assert!(!shop.quarantined(&by).await);
}

async fn a_success_in_between_starts_the_count_again(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit(9).await;
    for end in [broken(), broken(), done(), broken(), broken()] {
        shop.work(&by, end).await;
        assert!(!shop.quarantined(&by).await);
    }
    // What is not the engine's fault counts neither way.
    let failure = Failure::new(Code::UploadFailed, "no route");
    shop.work(&by, End::Fail(failure)).await;
    assert!(!shop.quarantined(&by).await);
    shop.work(&by, broken()).await;
    assert!(shop.quarantined(&by).await);
}

async fn neither_a_restart_nor_a_new_registration_ends_it(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit(5).await;
    shop.ruin(&by).await;
    let setup = shop.setup.clone();
    drop(shop);
    let mut shop = Shop { store: stores.open(&home, &setup).await, setup, seq: 100 };
    assert!(matches!(shop.ask(&by, None, None).await, Claimed::Quarantine { .. }));
    let again = shop.register("w1").await;
    assert!(matches!(shop.ask(&again, None, None).await, Claimed::Quarantine { .. }));
    assert!(matches!(shop.ask(&again, Some(SelfTest::Passed), None).await, Claimed::Task(_)));
}

async fn who_is_quarantined_does_not_count_as_another_worker(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let (healthy, sick) = (shop.register("w1").await, shop.register("w2").await);
    shop.submit(3).await;
    shop.ruin(&sick).await;
    shop.wait().await;
    // The healthy worker fails a task, which nobody else can take: it gets it again.
    let failed = shop.work(&healthy, broken()).await.id;
    shop.wait().await;
    let mut left = Vec::new();
    while let Claimed::Task(task) = shop.ask(&healthy, None, Some(1)).await {
        left.push(task.id);
        let fence = task.fence().expect("running");
        shop.store.end(&healthy, fence, done()).await.expect("ended");
    }
    assert!(left.len() == 3 && left.contains(&failed), "all tasks come to an end: {left:?}");
    // One worker is wanted, and one there is.
    assert!(matches!(shop.ask(&healthy, None, Some(1)).await, Claimed::Nothing { .. }));
    shop.ask(&sick, Some(SelfTest::Passed), None).await;
    assert!(matches!(shop.ask(&healthy, None, Some(1)).await, Claimed::Drain));
}
