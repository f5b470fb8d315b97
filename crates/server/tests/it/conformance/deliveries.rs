//! The outbox: whoever is to be told of a task's end is, across restarts, once it is due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::TaskId;
use rayreel_domain::task::{End, Record};
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::{Attempt, Delivery, Report, Standing, Webhook};
use rayreel_server::clock::Clock;
use rayreel_server::signing::Secret;
use rayreel_server::store::{Claim, Claimed, Error, Identity, Registration, Room, Store, Taken};

use super::{Setup, Stores};

const HOLD: Duration = Duration::from_secs(90);

fn room(total: usize, per_tenant: usize, busy: &[(&str, usize)]) -> Room {
    let busy = busy.iter().map(|(name, count)| (super::tenant(name), *count));
    let hold_ms = HOLD.as_millis() as u64;
    Room { total, per_tenant, busy: busy.collect::<BTreeMap<_, _>>(), hold_ms }
}

fn everything() -> Room {
    room(100, 100, &[])
}

fn hooked(record: &mut Record) {
    let (url, base) = ("https://hooks.example/".into(), "https://api.example".into());
    record.webhook = Some(Webhook { url, base });
}

async fn submit(store: &dyn Store, setup: &Setup, change: impl FnOnce(&mut Record)) -> TaskId {
    let task = super::task(setup, change);
    store.submit(task).await.expect("accepted").task.id
}

/// A task that has ended, with a webhook.
async fn ended(store: &dyn Store, setup: &Setup, tenant: &str) -> TaskId {
    let id = submit(store, setup, |record| {
        hooked(record);
        record.tenant = super::tenant(tenant);
    })
    .await;
    store.cancel(&super::tenant(tenant), id).await.expect("cancelled");
    id
}

async fn take(store: &dyn Store, room: Room) -> Taken {
    store.take_deliveries(&room).await.expect("answered")
}

fn tasks(taken: &Taken) -> Vec<TaskId> {
    taken.deliveries.iter().map(|delivery| delivery.task).collect()
}

async fn seen(store: &dyn Store, id: TaskId) -> Option<Delivery> {
    let view = store.get(&super::tenant("anna"), id).await.expect("answered");
    view.expect("it is there").delivery
}

fn answered(setup: &Setup, status: u16) -> Report {
    let error = (status != 200).then(|| "refused".to_owned());
    let attempt = Attempt { at: setup.clock.wall(), status: Some(status), error };
    Report { attempt, retry_after_ms: None }
}

/// Plays what is promised of the outbox.
pub async fn keeps_an_outbox(stores: &impl Stores) {
    every_end_is_announced_once(stores).await;
    what_is_taken_falls_due_again(stores).await;
    a_report_decides(stores).await;
    a_tenants_heap_is_passed_by(stores).await;
    deleted_tasks_are_not_told_of(stores).await;
    secrets_are_kept(stores).await;
}

async fn every_end_is_announced_once(stores: &impl Stores) {
    let (home, setup) = (stores.home(), Setup::new());
    let store = stores.open(&home, &setup).await;
    let silent = submit(&*store, &setup, |_| {}).await;
    store.cancel(&super::tenant("anna"), silent).await.expect("cancelled");
    let late = submit(&*store, &setup, |record| {
        hooked(record);
        record.deadline = Some(record.created_at.plus_ms(1_000));
    })
    .await;
    let cancelled = submit(&*store, &setup, hooked).await;
    let done = submit(&*store, &setup, hooked).await;
    assert_eq!(take(&*store, everything()).await, Taken::default(), "none has ended");
    assert_eq!(seen(&*store, done).await, None);

    store.cancel(&super::tenant("anna"), cancelled).await.expect("cancelled");
    setup.clock.advance(Duration::from_secs(2));
    store.advance().await.expect("advanced");
    let (worker, pool) = (super::worker("w"), super::pool("local"));
    let registration =
        Registration { worker: worker.clone(), pool, launch: None, version: String::new() };
    let incarnation = store.register(registration).await.expect("registered");
    let by = Identity { worker, incarnation };
    let claim = Claim {
        by: by.clone(),
        seq: 1,
        holding: vec![],
        loaded: None,
        self_test: None,
        target: None,
    };
    let Ok(Claimed::Task(task)) = store.claim(claim).await else { panic!("a task is ready") };
    let fence = task.fence().expect("running");
    for _ in ["ends", "repeats"] {
        let commit = End::Commit(super::commit(0));
        store.end(&by, fence, commit).await.expect("ended");
    }
    // Whatever had ended before a restart is told of after it.
    drop(store);
    let store = stores.open(&home, &setup).await;
    let delivery = seen(&*store, done).await.expect("it has ended");
    assert_eq!((delivery.standing, delivery.attempts.len()), (Standing::Pending, 0));
    let mut found = tasks(&take(&*store, everything()).await);
    found.sort();
    let mut expected = [late, cancelled, done];
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(tasks(&take(&*store, everything()).await), [], "each is taken once");
}

async fn what_is_taken_falls_due_again(stores: &impl Stores) {
    let (home, setup) = (stores.home(), Setup::new());
    let store = stores.open(&home, &setup).await;
    let id = ended(&*store, &setup, "anna").await;
    let first = take(&*store, everything()).await;
    assert_eq!(tasks(&first), [id]);
    // Whoever took it has died with the server.
    drop(store);
    let store = stores.open(&home, &setup).await;
    let none = take(&*store, everything()).await;
    let until = setup.clock.wall().plus_ms(HOLD.as_millis() as u64);
    assert_eq!(none, Taken { deliveries: vec![], next: Some(until) });
    setup.clock.advance(HOLD);
    let second = take(&*store, everything()).await;
    assert_eq!(tasks(&second), [id]);
    assert!(second.deliveries[0].number > first.deliveries[0].number);
    // The clock falls back by a day: nobody waits a day for that.
    let now = setup.clock.wall();
    setup.clock.jump(Timestamp(now.0 - 24 * 3_600_000));
    assert_eq!(tasks(&take(&*store, everything()).await), [id]);
}

async fn a_report_decides(stores: &impl Stores) {
    let (home, setup) = (stores.home(), Setup::new());
    let store = stores.open(&home, &setup).await;
    let anna = super::tenant("anna");
    let id = ended(&*store, &setup, "anna").await;
    let taken = take(&*store, everything()).await.deliveries.remove(0);
    store.report_delivery(id, taken.number, answered(&setup, 500)).await.expect("reported");
    drop(store);
    let store = stores.open(&home, &setup).await;
    let delivery = seen(&*store, id).await.expect("kept");
    let due = delivery.due.expect("tried again");
    assert!((4_000..=6_000).contains(&due.ms_since(setup.clock.wall())));
    assert_eq!(delivery.attempts, [answered(&setup, 500).attempt]);
    assert_eq!(take(&*store, everything()).await, Taken { deliveries: vec![], next: Some(due) });
    setup.clock.advance(Duration::from_secs(6));
    let taken = take(&*store, everything()).await.deliveries.remove(0);
    store.report_delivery(id, taken.number, answered(&setup, 200)).await.expect("reported");
    let delivery = seen(&*store, id).await.expect("kept");
    assert_eq!((delivery.standing, delivery.due), (Standing::Delivered, None));
    setup.clock.advance(Duration::from_secs(1_000_000));
    assert_eq!(take(&*store, everything()).await, Taken::default(), "it is over");

    // Lists tell the same as a look at one.
    let query = rayreel_server::store::ListQuery::of(anna.clone(), 10);
    let page = store.list(&query).await.expect("answered");
    assert_eq!(page.tasks[0].delivery.as_ref(), Some(&delivery));

    let again = store.redeliver(&anna, id).await.expect("set going");
    assert_eq!((again.standing, again.attempts.len()), (Standing::Pending, 2));
    assert_eq!(tasks(&take(&*store, everything()).await), [id]);
    assert_eq!(store.redeliver(&super::tenant("ben"), id).await, Err(Error::NotFound));
    let queued = submit(&*store, &setup, hooked).await;
    assert_eq!(store.redeliver(&anna, queued).await, Err(Error::NotFound));
    assert_eq!(store.owner(id).await, Ok(Some(anna)));
    assert_eq!(store.owner(TaskId::from_bytes([0; 16])).await, Ok(None));
}

async fn a_tenants_heap_is_passed_by(stores: &impl Stores) {
    let (home, setup) = (stores.home(), Setup::new());
    let store = stores.open(&home, &setup).await;
    for _ in 0..20 {
        ended(&*store, &setup, "anna").await;
    }
    let bens = ended(&*store, &setup, "ben").await;
    let taken = take(&*store, room(10, 4, &[("anna", 1)])).await;
    let of = |name: &str| {
        let tenant = super::tenant(name);
        taken.deliveries.iter().filter(|delivery| delivery.tenant == tenant).count()
    };
    assert_eq!((of("anna"), of("ben")), (3, 1));
    assert!(tasks(&taken).contains(&bens));
    let full = take(&*store, room(10, 4, &[("anna", 4)])).await;
    let held = setup.clock.wall().plus_ms(HOLD.as_millis() as u64);
    assert_eq!(full, Taken { deliveries: vec![], next: Some(held) }, "only ben has room");
    assert_eq!(take(&*store, room(2, 4, &[])).await.deliveries.len(), 2);
}

async fn deleted_tasks_are_not_told_of(stores: &impl Stores) {
    let (home, setup) = (stores.home(), Setup::new());
    let store = stores.open(&home, &setup).await;
    let id = ended(&*store, &setup, "anna").await;
    let taken = take(&*store, everything()).await.deliveries.remove(0);
    assert!(store.delete(&super::tenant("anna"), id).await.expect("deleted").deleted);
    store.report_delivery(id, taken.number, answered(&setup, 500)).await.expect("ignored");
    setup.clock.advance(HOLD);
    assert_eq!(take(&*store, everything()).await, Taken::default());
}

async fn secrets_are_kept(stores: &impl Stores) {
    let (home, setup) = (stores.home(), Setup::new());
    let store = stores.open(&home, &setup).await;
    let fresh = || Secret::new(&setup.random, setup.clock.wall());
    let first = store.secret("a", fresh()).await.expect("made");
    assert_eq!(store.secret("a", fresh()).await, Ok(first.clone()), "once made it stays");
    assert_ne!(store.secret("b", fresh()).await, Ok(first.clone()));
    let at_once = (0..8).map(|_| store.secret("c", fresh()));
    let made = futures_util::future::join_all(at_once).await;
    assert!(made.iter().all(|secret| *secret == made[0]), "all are given the same");
    let second = store.rotate_secret("a", fresh(), 1_000).await.expect("rotated");
    drop(store);
    let store: Arc<dyn Store> = stores.open(&home, &setup).await;
    assert_eq!(store.secret("a", fresh()).await, Ok(second.clone()));
    let now = setup.clock.wall();
    assert_eq!(second.overlaps(now).collect::<Vec<_>>(), [now.plus_ms(1_000)]);
    assert!(
        store
            .rotate_secret("new", fresh(), 1_000)
            .await
            .expect("made")
            .overlaps(now)
            .next()
            .is_none()
    );
}
