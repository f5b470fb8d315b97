//! A store that does not answer: what callers are told, and that nothing is lost or left.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rayreel_domain::file::FileRecord;
use rayreel_domain::id::{FileId, PoolName, TaskId, TenantName, WorkerName};
use rayreel_domain::key::KeyRecord;
use rayreel_domain::lease::Fence;
use rayreel_domain::request::Input;
use rayreel_domain::task::{End, Idempotency, Task};
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::{Delivery, Report};
use rayreel_domain::wire::api::TaskBody;
use rayreel_domain::wire::worker::{Beaten, Progress};
use rayreel_server::signing::Secret;
use rayreel_server::store::{
    Backlog, Cancelled, Claim, Claimed, Demand, Error, FilePage, FileQuery, Garbage, Identity,
    Launch, LeaseView, ListQuery, Page, Registration, Room, Store, Submitted, Taken, TenantUse,
    View, WorkerView,
};
use rayreel_server::{App, Components};
use serde_json::json;

use super::client::{Server, TASKS};
use super::uploads::{files, with_image};
use crate::world::World;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// Every call fails.
    Away,
    /// Submits fail before they are stored.
    NotStored,
    /// Submits are stored, and fail then.
    Unknown,
}

/// A store with faults to order.
struct Faulty {
    store: Arc<dyn Store>,
    fault: Mutex<Option<Fault>>,
}

impl Faulty {
    fn up(&self) -> Result<&dyn Store, Error> {
        match *self.fault.lock().unwrap() {
            Some(Fault::Away) => Err(Error::Unavailable("/secret/path: disk I/O error".into())),
            _ => Ok(&*self.store),
        }
    }
}

/// Methods that fail if the store is away, and are the store's own otherwise.
macro_rules! faulty {
    ($(async fn $name:ident(&self $(, $arg:ident: $type:ty)*) -> $ok:ty;)*) => {
        #[async_trait]
        impl Store for Faulty {
            fn epoch(&self) -> u64 {
                self.store.epoch()
            }

            fn is_shared(&self) -> bool {
                self.store.is_shared()
            }

            async fn submit(&self, task: Task) -> Result<Submitted, Error> {
                let fault = *self.fault.lock().unwrap();
                match fault {
                    Some(Fault::NotStored) => Err(Error::OutcomeUnknown("cut".into())),
                    Some(Fault::Unknown) => {
                        self.store.submit(task).await?;
                        Err(Error::OutcomeUnknown("cut".into()))
                    }
                    _ => self.up()?.submit(task).await,
                }
            }

            $(async fn $name(&self $(, $arg: $type)*) -> Result<$ok, Error> {
                self.up()?.$name($($arg),*).await
            })*
        }
    };
}

faulty! {
    async fn submit_all(&self, tasks: Vec<Task>) -> Vec<Submitted>;
    async fn admits(&self, demand: Demand) -> ();
    async fn repeated(&self, tenant: &TenantName, asked: &Idempotency) -> Option<Vec<View>>;
    async fn claim(&self, claim: Claim) -> Claimed;
    async fn beat(&self, by: &Identity, fence: Fence, progress: Option<Progress>) -> Beaten;
    async fn held(&self, fence: Fence) -> Beaten;
    async fn end(&self, by: &Identity, fence: Fence, end: End) -> Task;
    async fn reclaim(&self, fence: Fence, beats: u64, end: End) -> bool;
    async fn cancel(&self, tenant: &TenantName, id: TaskId) -> Cancelled;
    async fn withdraw(&self, tenant: &TenantName, ids: Vec<TaskId>) -> ();
    async fn delete(&self, tenant: &TenantName, id: TaskId) -> Cancelled;
    async fn get(&self, tenant: &TenantName, id: TaskId) -> Option<View>;
    async fn leased(&self, fence: Fence) -> Task;
    async fn list(&self, query: &ListQuery) -> Page;
    async fn register(&self, worker: Registration) -> u64;
    async fn deregister(&self, by: &Identity) -> ();
    async fn workers(&self) -> Vec<WorkerView>;
    async fn drain_worker(&self, worker: &WorkerName) -> bool;
    async fn drain_pool(&self, pool: &PoolName, drained: bool) -> ();
    async fn drained_pools(&self) -> BTreeSet<PoolName>;
    async fn leases(&self) -> Vec<LeaseView>;
    async fn advance(&self) -> Option<Timestamp>;
    async fn backlog(&self) -> Vec<Backlog>;
    async fn usage(&self) -> Vec<TenantUse>;
    async fn put_key(&self, key: KeyRecord) -> ();
    async fn keys(&self) -> Vec<KeyRecord>;
    async fn hold_input(&self, tenant: &TenantName, input: Input) -> Input;
    async fn release_input(&self, tenant: &TenantName, input: Input) -> ();
    async fn admits_file(&self, tenant: &TenantName, bytes: u64, most: u64) -> ();
    async fn put_file(&self, file: FileRecord, most: u64) -> ();
    async fn file(&self, tenant: &TenantName, id: FileId) -> Option<FileRecord>;
    async fn files(&self, query: &FileQuery) -> FilePage;
    async fn delete_file(&self, tenant: &TenantName, id: FileId) -> bool;
    async fn take_deliveries(&self, room: &Room) -> Taken;
    async fn report_delivery(&self, id: TaskId, number: u32, report: Report) -> ();
    async fn redeliver(&self, tenant: &TenantName, id: TaskId) -> Delivery;
    async fn owner(&self, id: TaskId) -> Option<TenantName>;
    async fn secret(&self, name: &str, fresh: Secret) -> Secret;
    async fn rotate_secret(&self, name: &str, fresh: Secret, ms: u64) -> Secret;
    async fn put_launch(&self, launch: Launch) -> ();
    async fn remove_launch(&self, id: &str) -> ();
    async fn launches(&self) -> Vec<Launch>;
    async fn garbage(&self, limit: u32) -> Vec<Garbage>;
    async fn collected(&self, ids: &[i64]) -> ();
    async fn lead(&self, duty: &str, server: &str, ms: u64) -> bool;
    async fn check(&self) -> Vec<String>;
}

async fn server() -> (Server, Arc<Faulty>) {
    let world = World::new(&[]);
    let store = Arc::clone(&world.app.components.store);
    let faulty = Arc::new(Faulty { store, fault: Mutex::new(None) });
    let components =
        Components { store: Arc::clone(&faulty) as Arc<dyn Store>, ..world.app.components.clone() };
    let app = App::new(world.app.settings.clone(), components);
    (Server::serve(world, Arc::new(app)).await, faulty)
}

fn order(faulty: &Faulty, fault: Option<Fault>) {
    *faulty.fault.lock().unwrap() = fault;
}

#[tokio::test]
async fn an_outage_is_told_with_when_to_come_back_and_without_its_cause() {
    let (server, faulty) = server().await;
    let task = server.submit("p").await;
    order(&faulty, Some(Fault::Away));
    for answer in [
        server.post(TASKS, &json!({"prompt": "q"})).await,
        server.get(TASKS).await,
        server.get(&format!("{TASKS}/{}", task.id)).await,
        server.get(&format!("{TASKS}/{}/events", task.id)).await,
        server.get("/readyz").await,
    ] {
        answer.refused(503, "store_unavailable", None);
        assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
        assert!(!answer.text().contains("secret"), "{}", answer.text());
    }
    assert_eq!(server.get("/healthz").await.status, 200, "the process lives");
    assert_eq!(server.metric("rayreel_store_up").await, Some(0.0));
    order(&faulty, None);
    assert_eq!(server.get("/readyz").await.status, 200);
    assert_eq!(server.count().await, 1);
}

#[tokio::test]
async fn an_image_is_there_if_its_task_may_have_been_stored() {
    let (server, faulty) = server().await;
    for fault in [Fault::NotStored, Fault::Unknown] {
        order(&faulty, Some(fault));
        let answer = server.post(TASKS, &with_image()).await;
        answer.refused(503, "outcome_unknown", None);
        assert_ne!(answer.header("retry-after"), "");
        assert_eq!(files(&server).len(), 1, "it is found out later who needs it");
    }
    order(&faulty, None);
    let worker = server.worker("w").await;
    let assignment = worker.take(1).await;
    let shown: TaskBody = server.task(&assignment.fence.task.to_string()).await;
    assert!(shown.request.image);
}
