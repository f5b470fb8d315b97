//! A model whose engine fails everything on a worker is kept from that worker until it has proved
//! itself. Random sequences seldom get far into this, so here it is step by step.

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
    other_models_go_on(stores).await;
    a_test_that_fails_is_repeated_ever_later(stores).await;
    an_engine_that_passes_its_tests_and_fails_its_tasks_ends_them(stores).await;
    neither_a_restart_nor_a_new_registration_ends_it(stores).await;
    who_may_not_have_a_task_is_no_elsewhere_for_it(stores).await;
    a_worker_that_can_have_nothing_is_sent_away_when_there_are_too_many(stores).await;
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
        let launch = Some(name.to_owned());
        let registration =
            Registration { worker: worker.clone(), pool, launch, version: String::new() };
        Identity { worker, incarnation: self.store.register(registration).await.expect("known") }
    }

    async fn submit(&self, model: &str, count: usize) {
        for _ in 0..count {
            let task = super::task(&self.setup, |task| task.model = super::model(model));
            self.store.submit(task).await.expect("accepted");
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
        let before = self.quarantined(by).await.len();
        let mut failed = Vec::new();
        for _ in 0..3 {
            assert_eq!(self.quarantined(by).await.len(), before);
            failed.push(self.work(by, broken()).await.id);
        }
        assert_eq!(self.quarantined(by).await.len(), before + 1);
        failed
    }

    /// Names of the models that the worker gets nothing of.
    async fn quarantined(&self, by: &Identity) -> Vec<String> {
        let workers = self.store.workers().await.expect("answered");
        let own = workers.into_iter().find(|worker| worker.by == *by).expect("registered");
        own.quarantined.into_iter().map(|(model, _)| model.to_string()).collect()
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

fn passed(model: &str) -> Option<SelfTest> {
    Some(SelfTest { model: super::model(model), failure: None })
}

fn failed(model: &str) -> Option<SelfTest> {
    Some(SelfTest { model: super::model(model), failure: Some("still broken".into()) })
}

async fn three_failures_in_a_row_and_a_passed_test(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit("testcard", 5).await;
    for id in shop.ruin(&by).await {
        let view = shop.store.get(&super::tenant("anna"), id).await.expect("answered");
        let task = view.expect("there").task;
        // It was not the task's fault.
        assert_eq!((task.failures, task.losses), (0, 0));
        assert_eq!(task.attempts[0].outcome, Some(Outcome::Excused));
    }
    for test in [None, passed("another")] {
        let Claimed::Quarantine { model, message } = shop.ask(&by, test, None).await else {
            panic!("it gets nothing before it has passed its test");
        };
        assert_eq!((model, message.as_str()), (super::model("testcard"), "it broke"));
    }
    assert!(matches!(shop.ask(&by, passed("testcard"), None).await, Claimed::Task(_)));
    assert!(shop.quarantined(&by).await.is_empty());
}

async fn a_success_in_between_starts_the_count_again(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit("testcard", 9).await;
    for end in [broken(), broken(), done(), broken(), broken()] {
        shop.work(&by, end).await;
        assert!(shop.quarantined(&by).await.is_empty());
    }
    // What is not the engine's fault counts neither way.
    let failure = Failure::new(Code::UploadFailed, "no route");
    shop.work(&by, End::Fail(failure)).await;
    assert!(shop.quarantined(&by).await.is_empty());
    shop.work(&by, broken()).await;
    assert_eq!(shop.quarantined(&by).await, ["testcard"]);
}

async fn other_models_go_on(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit("testcard", 2).await;
    shop.work(&by, broken()).await;
    shop.work(&by, broken()).await;
    // The count is each model's own, whatever comes between.
    shop.submit("other", 4).await;
    shop.work(&by, done()).await;
    shop.work(&by, broken()).await;
    shop.submit("testcard", 2).await;
    assert_eq!(shop.work(&by, done()).await.model, super::model("other"));
    assert_eq!(shop.work(&by, done()).await.model, super::model("other"));
    shop.work(&by, broken()).await;
    assert_eq!(shop.quarantined(&by).await, ["testcard"]);
    // What waits of it is as if it were not there.
    shop.wait().await;
    shop.submit("other", 1).await;
    while let Claimed::Task(task) = shop.ask(&by, None, None).await {
        assert_eq!(task.model, super::model("other"));
        shop.store.end(&by, task.fence().expect("running"), done()).await.expect("ended");
    }
    assert!(matches!(shop.ask(&by, None, None).await, Claimed::Quarantine { .. }));
}

async fn a_test_that_fails_is_repeated_ever_later(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit("testcard", 5).await;
    shop.ruin(&by).await;
    assert!(matches!(shop.ask(&by, None, None).await, Claimed::Quarantine { .. }));
    for pause in [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
        let asked = shop.ask(&by, failed("testcard"), None).await;
        assert!(matches!(asked, Claimed::Nothing { ready: true }), "{asked:?}");
        shop.setup.clock.advance(Duration::from_millis(pause - 1));
        assert!(matches!(shop.ask(&by, None, None).await, Claimed::Nothing { ready: true }));
        shop.setup.clock.advance(Duration::from_millis(1));
        assert!(matches!(shop.ask(&by, None, None).await, Claimed::Quarantine { .. }), "{pause}");
    }
    // Nothing to do with it: nothing to test.
    let list = rayreel_server::store::ListQuery::of(super::tenant("anna"), 100);
    for view in shop.store.list(&list).await.expect("answered").tasks {
        shop.store.cancel(&super::tenant("anna"), view.task.id).await.expect("cancelled");
    }
    assert!(matches!(shop.ask(&by, None, None).await, Claimed::Nothing { ready: false }));
    assert_eq!(shop.quarantined(&by).await, ["testcard"]);
}

async fn an_engine_that_passes_its_tests_and_fails_its_tasks_ends_them(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit("testcard", 7).await;
    let (mut test, mut tries, mut ended) = (None, 0, 0);
    while ended < 7 {
        match shop.ask(&by, test.take(), None).await {
            Claimed::Task(task) => {
                tries += 1;
                let fence = task.fence().expect("running");
                let task = shop.store.end(&by, fence, broken()).await.expect("failed");
                ended += usize::from(task.state.is_terminal());
                shop.wait().await;
            }
            Claimed::Quarantine { model, .. } => test = passed(model.as_str()),
            other => panic!("{other:?}"),
        }
        // Each has as many tries as it has in any case, and one that was excused.
        assert!(tries <= 7 * (shop.setup.rules.max_failures as usize + 1), "for ever");
    }
}

async fn neither_a_restart_nor_a_new_registration_ends_it(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let by = shop.register("w1").await;
    shop.submit("testcard", 5).await;
    shop.ruin(&by).await;
    let setup = shop.setup.clone();
    drop(shop);
    let mut shop = Shop { store: stores.open(&home, &setup).await, setup, seq: 100 };
    assert!(matches!(shop.ask(&by, None, None).await, Claimed::Quarantine { .. }));
    let again = shop.register("w1").await;
    assert!(matches!(shop.ask(&again, None, None).await, Claimed::Quarantine { .. }));
    assert!(matches!(shop.ask(&again, passed("testcard"), None).await, Claimed::Task(_)));
}

async fn who_may_not_have_a_task_is_no_elsewhere_for_it(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let (healthy, sick) = (shop.register("w1").await, shop.register("w2").await);
    shop.submit("testcard", 3).await;
    shop.ruin(&sick).await;
    shop.wait().await;
    // The healthy worker fails tasks. The one of the broken model nobody else can take: it gets it
    // again. The other one waits for the other worker.
    let failed = shop.work(&healthy, broken()).await.id;
    let mut finished = Vec::new();
    for _ in 0..2 {
        finished.push(shop.work(&healthy, done()).await.id);
    }
    shop.submit("other", 1).await;
    let other = shop.work(&healthy, broken()).await.id;
    shop.wait().await;
    finished.push(shop.work(&healthy, done()).await.id);
    assert_eq!(finished.last(), Some(&failed));
    assert!(matches!(shop.ask(&healthy, None, None).await, Claimed::Nothing { ready: true }));
    assert_eq!(shop.work(&sick, done()).await.id, other);
}

async fn a_worker_that_can_have_nothing_is_sent_away_when_there_are_too_many(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home).await;
    let sick = shop.register("w1").await;
    shop.submit("testcard", 3).await;
    shop.ruin(&sick).await;
    shop.wait().await;
    assert!(matches!(shop.ask(&sick, None, Some(1)).await, Claimed::Quarantine { .. }));
    assert!(matches!(shop.ask(&sick, None, Some(0)).await, Claimed::Drain));
}
