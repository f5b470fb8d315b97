//! A list goes on behind a task that was deleted meanwhile.

use rayreel_domain::TaskId;
use rayreel_server::store::{After, Error, ListQuery, Order, PLACE_MS, Store};

use super::{Setup, Stores, task, tenant};

/// Plays what is promised of places in a list.
pub async fn keeps_places(stores: &impl Stores) {
    let (home, setup) = (stores.home(), Setup::new());
    let store = stores.open(&home, &setup).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(submit(&*store, &setup).await);
    }
    // The newest and the third are gone; nobody takes their places.
    for gone in [ids[4], ids[2]] {
        delete(&*store, gone).await;
    }
    ids.push(submit(&*store, &setup).await);
    drop(store);
    let store = stores.open(&home, &setup).await;
    for (order, after, expected) in [
        (Order::NewestFirst, 4, &[ids[3], ids[1], ids[0]][..]),
        (Order::NewestFirst, 2, &[ids[1], ids[0]]),
        (Order::OldestFirst, 4, &[ids[5]]),
        (Order::OldestFirst, 2, &[ids[3], ids[5]]),
    ] {
        assert_eq!(list(&*store, "anna", order, ids[after]).await.as_deref(), Ok(expected));
    }
    let foreign = list(&*store, "bert", Order::NewestFirst, ids[2]).await;
    assert_eq!(foreign, Err(Error::NotFound));
    setup.clock.advance(std::time::Duration::from_millis(PLACE_MS));
    store.advance().await.expect("advanced");
    assert_eq!(list(&*store, "anna", Order::NewestFirst, ids[2]).await, Err(Error::NotFound));
}

async fn submit(store: &dyn Store, setup: &Setup) -> TaskId {
    store.submit(task(setup, |_| {})).await.expect("accepted").task.id
}

async fn delete(store: &dyn Store, id: TaskId) {
    store.cancel(&tenant("anna"), id).await.expect("cancelled");
    assert!(store.delete(&tenant("anna"), id).await.expect("answered").deleted);
}

async fn list(
    store: &dyn Store,
    whose: &str,
    order: Order,
    after: TaskId,
) -> Result<Vec<TaskId>, Error> {
    let after = Some(After::Task(after));
    let query = ListQuery { order, after, ..ListQuery::of(tenant(whose), 10) };
    let page = store.list(&query).await?;
    Ok(page.tasks.iter().map(|view| view.task.id).collect())
}
