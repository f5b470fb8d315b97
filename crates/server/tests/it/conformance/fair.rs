//! Tenants share by virtual time: seen from outside, by what each is given.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::id::{ModelName, TenantName};
use rayreel_domain::schedule::Locality;
use rayreel_domain::task::{End, Priority, Task};
use rayreel_server::store::{Claim, Claimed, Identity, Registration, Store};

use super::{Setup, Stores};

const LONGEST_MS: u64 = 5_000;
const LEAD_MS: u64 = 4_000;
/// No two tenants who always have work are further apart than this.
const BOUND_MS: u64 = LONGEST_MS + LEAD_MS;

/// Plays what invariant 8 promises.
pub async fn shares_fairly(stores: &impl Stores) {
    the_gap_is_bounded(stores).await;
    a_newcomer_starts_where_the_others_are(stores, false).await;
    a_newcomer_starts_where_the_others_are(stores, true).await;
    absence_saves_nothing(stores).await;
    priority_takes_nothing_from_others(stores).await;
    a_loaded_model_is_kept_for_a_bounded_time(stores).await;
}

/// One worker that works off what it is given.
struct Shop {
    store: Arc<dyn Store>,
    setup: Setup,
    by: Identity,
    seq: u64,
    loaded: Option<ModelName>,
    served_ms: BTreeMap<TenantName, u64>,
}

impl Shop {
    async fn open<S: Stores>(stores: &S, home: &S::Home, setup: &Setup) -> Self {
        let store = stores.open(home, setup).await;
        let registration = Registration {
            worker: super::worker("w1"),
            pool: super::pool("local"),
            launch: None,
            version: String::new(),
        };
        let incarnation = store.register(registration).await.expect("registered");
        let by = Identity { worker: super::worker("w1"), incarnation };
        let setup = setup.clone();
        Self { store, setup, by, seq: 0, loaded: None, served_ms: BTreeMap::new() }
    }

    /// A random number below `n`, the same in each run.
    fn random(&self, n: u64) -> u64 {
        self.setup.random.number() % n
    }

    async fn submit(&self, tenant: &str, model: &str, priority: u8) {
        let estimate_ms = 1 + self.random(LONGEST_MS);
        let task = super::task(&self.setup, |record| {
            record.tenant = super::tenant(tenant);
            record.model = super::model(model);
            record.priority = Priority::new(priority).expect("1 to 5");
            record.estimate_ms = estimate_ms;
        });
        self.store.submit(task).await.expect("accepted");
    }

    /// Works off the next task; it takes a random time, whatever was estimated.
    async fn serve(&mut self) -> Task {
        self.seq += 1;
        let claim = Claim {
            by: self.by.clone(),
            seq: self.seq,
            holding: Vec::new(),
            loaded: self.loaded.clone(),
            self_test: None,
            target: None,
        };
        let Ok(Claimed::Task(task)) = self.store.claim(claim).await else {
            panic!("there is work, and the worker has not been given any");
        };
        self.loaded = Some(task.model.clone());
        let ms = 1 + self.random(LONGEST_MS);
        self.setup.clock.advance(Duration::from_millis(ms));
        let (fence, end) = (task.fence().expect("running"), End::Commit(super::commit(0)));
        self.store.end(&self.by, fence, end).await.expect("committed");
        *self.served_ms.entry(task.tenant.clone()).or_default() += ms;
        *task
    }

    fn gap_ms(&self, tenants: &[&str]) -> u64 {
        let ms = |tenant: &&str| self.served_ms.get(&super::tenant(tenant)).copied().unwrap_or(0);
        let most = tenants.iter().map(ms).max().unwrap_or(0);
        most - tenants.iter().map(ms).min().unwrap_or(0)
    }
}

fn setup() -> Setup {
    Setup { locality: Locality { max_lead_ms: LEAD_MS, max_streak: 3 }, ..Setup::new() }
}

async fn the_gap_is_bounded(stores: &impl Stores) {
    const TENANTS: [&str; 5] = ["a", "b", "c", "d", "e"];
    let home = stores.home();
    let mut shop = Shop::open(stores, &home, &setup()).await;
    for tenant in TENANTS {
        for _ in 0..3 {
            shop.submit(tenant, ["small", "large"][shop.random(2) as usize], 3).await;
        }
    }
    for turn in 0..150 {
        let task = shop.serve().await;
        let gap = shop.gap_ms(&TENANTS);
        assert!(gap <= BOUND_MS, "after {turn} tasks tenants are {gap} ms apart");
        // Each always has more.
        shop.submit(task.tenant.as_str(), ["small", "large"][shop.random(2) as usize], 3).await;
    }
    assert_eq!(shop.served_ms.len(), TENANTS.len(), "nobody starves");
}

async fn a_newcomer_starts_where_the_others_are(stores: &impl Stores, restart: bool) {
    let home = stores.home();
    let setup = setup();
    let mut shop = Shop::open(stores, &home, &setup).await;
    for _ in 0..60 {
        shop.submit("old", "small", 3).await;
        shop.submit("older", "small", 3).await;
    }
    for _ in 0..40 {
        shop.serve().await;
    }
    if restart {
        // The floor outlives the process.
        let served_ms = std::mem::take(&mut shop.served_ms);
        drop(shop);
        shop = Shop { served_ms, ..Shop::open(stores, &home, &setup).await };
    }
    let before = std::mem::take(&mut shop.served_ms);
    let spread = before.values().max().expect("served") - before.values().min().expect("served");
    assert!(before.values().all(|ms| *ms > 2 * BOUND_MS), "the newcomer has much to catch up");
    for _ in 0..60 {
        shop.submit("new", "small", 3).await;
    }
    for turn in 0..30 {
        shop.serve().await;
        let gap = shop.gap_ms(&["new", "old", "older"]);
        assert!(gap <= BOUND_MS + spread, "{turn} tasks later they are {gap} ms apart");
    }
}

async fn absence_saves_nothing(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home, &setup()).await;
    shop.submit("comes-and-goes", "small", 3).await;
    for _ in 0..40 {
        shop.submit("stays", "small", 3).await;
    }
    for _ in 0..30 {
        shop.serve().await;
    }
    shop.served_ms.clear();
    for _ in 0..40 {
        shop.submit("comes-and-goes", "small", 3).await;
    }
    for turn in 0..10 {
        shop.serve().await;
        let gap = shop.gap_ms(&["stays", "comes-and-goes"]);
        assert!(gap <= BOUND_MS, "{turn} tasks after the return they are {gap} ms apart");
    }
}

async fn priority_takes_nothing_from_others(stores: &impl Stores) {
    let home = stores.home();
    let mut shop = Shop::open(stores, &home, &setup()).await;
    for _ in 0..40 {
        shop.submit("loud", "small", 5).await;
        shop.submit("quiet", "large", 1).await;
    }
    for _ in 0..40 {
        shop.serve().await;
        assert!(shop.gap_ms(&["loud", "quiet"]) <= BOUND_MS);
    }
}

async fn a_loaded_model_is_kept_for_a_bounded_time(stores: &impl Stores) {
    let home = stores.home();
    // Whatever the lead: only the number of claims in a row is bounded.
    let locality = Locality { max_lead_ms: u64::MAX, max_streak: 3 };
    let mut shop = Shop::open(stores, &home, &Setup { locality, ..setup() }).await;
    for _ in 0..30 {
        shop.submit("a", "small", 3).await;
        shop.submit("b", "large", 3).await;
    }
    let mut models = Vec::new();
    for _ in 0..30 {
        models.push(shop.serve().await.model.clone());
    }
    let runs: Vec<_> = models.chunk_by(|a, b| a == b).map(<[_]>::len).collect();
    // A run may go on while its tenant is also the one that had least.
    assert!(runs.iter().any(|run| *run >= 3), "the model is kept: {runs:?}");
    assert!(runs.len() >= 4, "but not for ever: {runs:?}");
}
