//! Redis fails: what is lost, what is told, and how it goes on.

#![expect(clippy::disallowed_methods, reason = "other processes live by the world's clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayreel_domain::task::Idempotency;
use rayreel_server::store::redis::RedisStore;
use rayreel_server::store::{Error, Store};

use super::load::Load;
use super::options;
use super::server::{Cluster, Server, until};
use crate::conformance::{self, Setup};

/// Several threads: what one call waits for holds up no other.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn open(address: &str, setup: &Setup) -> Arc<dyn Store> {
    let address = address.parse().expect("an address");
    Arc::new(RedisStore::open(&address, options(setup)).await.expect("it opens"))
}

pub(super) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < until, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_promise_waits_for_the_replica() {
    let primary = Server::durable(&[]);
    let replica = primary.replica(&[]);
    let setup = Setup::new();
    runtime().block_on(async {
        let store = open(&format!("{}?wait=1&wait_ms=300", primary.url()), &setup).await;
        let asked = |key: &str| Idempotency { key: key.into(), request: "1".into() };
        let task = conformance::task(&setup, |record| record.idempotency = Some(asked("a")));
        let known = store.submit(task).await.expect("both have it").task;

        replica.freeze();
        let task = conformance::task(&setup, |record| record.idempotency = Some(asked("b")));
        let began = Instant::now();
        let both = tokio::join!(store.submit(task.clone()), async {
            let seen = store.get(&known.tenant, known.id).await.expect("answered");
            (seen.is_some(), began.elapsed())
        });
        let (submitted, (seen, looked)) = both;
        assert!(
            matches!(&submitted, Err(Error::OutcomeUnknown(why)) if why.contains("0 of 1 replicas")),
            "{submitted:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        assert!(seen && looked < began.elapsed(), "who only looks does not wait");
        let repeated = store.submit(task.clone()).await;
        assert!(
            matches!(repeated, Err(Error::OutcomeUnknown(_))),
            "a repetition promises no less: {repeated:?}"
        );
        let cancelled = store.cancel(&known.tenant, known.id).await;
        assert!(matches!(cancelled, Err(Error::OutcomeUnknown(_))), "{cancelled:?}");
        let cancelled = store.cancel(&known.tenant, known.id).await;
        assert!(matches!(cancelled, Err(Error::OutcomeUnknown(_))), "it is cancelled: {cancelled:?}");

        replica.thaw();
        let found = eventually("it is had by both", async || store.submit(task.clone()).await.ok());
        assert!(found.await.existed, "it was there all the time");
    });
}

#[test]
fn waiting_for_disks_needs_a_newer_redis() {
    let server = Server::durable(&[]);
    let version: String = server.ask(&["INFO", "server"]);
    if !version.contains("redis_version:7.0.") {
        eprintln!("not run: this Redis is newer");
        return;
    }
    let address = format!("{}?waitaof=1,0", server.url()).parse().unwrap();
    let opened = runtime().block_on(RedisStore::open(&address, options(&Setup::new())));
    assert!(
        matches!(&opened, Err(Error::Unavailable(why)) if why.contains("since version 7.2")),
        "{opened:?}"
    );
}

#[test]
fn a_redis_that_hides_its_settings_is_used() {
    let server = Server::start(&["--save", ""]);
    server.ask::<()>(&["ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config"]);
    let address = format!("redis://app:secret@127.0.0.1:{}/", server.port());
    runtime().block_on(async {
        let setup = Setup::new();
        let store = open(&address, &setup).await;
        store.submit(conformance::task(&setup, |_| {})).await.expect("stored");
    });
}

#[test]
fn a_redis_that_is_gone_is_told_at_once_and_found_again() {
    let mut server = Server::durable(&[]);
    let setup = Setup::new();
    runtime().block_on(async {
        let store = open(&server.url(), &setup).await;
        let task = store.submit(conformance::task(&setup, |_| {})).await.expect("stored").task;
        let epoch = store.epoch();

        server.kill();
        let began = Instant::now();
        let seen = store.get(&task.tenant, task.id).await;
        assert!(matches!(seen, Err(Error::Unavailable(_))), "who has only read knows: {seen:?}");
        let refused = store.submit(conformance::task(&setup, |_| {})).await.map(drop);
        assert!(matches!(refused, Err(Error::Unavailable(_))), "nothing was sent: {refused:?}");
        let all = (0..64).map(|_| store.get(&task.tenant, task.id));
        let all = futures_util::future::join_all(all).await;
        assert!(all.iter().all(Result::is_err));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

        server.restart();
        eventually("it is found again", async || {
            store.get(&task.tenant, task.id).await.ok().flatten()
        })
        .await;
        eventually("positions of before hold no longer", async || {
            (store.epoch() != epoch).then_some(())
        })
        .await;
    });
}

#[test]
fn a_redis_that_hangs_keeps_nobody_for_long() {
    let server = Server::durable(&[]);
    let setup = Setup::new();
    runtime().block_on(async {
        let store = open(&server.url(), &setup).await;
        let task = store.submit(conformance::task(&setup, |_| {})).await.expect("stored").task;
        server.freeze();
        let began = Instant::now();
        let submitted = store.submit(conformance::task(&setup, |_| {})).await.map(drop);
        assert!(matches!(submitted, Err(Error::OutcomeUnknown(_))), "it was sent: {submitted:?}");
        let seen = store.get(&task.tenant, task.id).await;
        assert!(matches!(seen, Err(Error::Unavailable(_))), "{seen:?}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        server.thaw();
        eventually("it goes on", async || store.get(&task.tenant, task.id).await.ok()).await;
    });
}

#[test]
fn a_failover_loses_nothing_that_the_replica_had_to_confirm() {
    let mut primary = Server::durable(&[]);
    let replicas = [primary.replica(&[]), primary.replica(&[])];
    let sentinels: Vec<Server> = (0..3).map(|_| Server::sentinel(&primary)).collect();
    for sentinel in &sentinels {
        until("the sentinels know each other and the replicas", || {
            let info: String = sentinel.ask(&["INFO", "sentinel"]);
            info.contains("slaves=2,sentinels=3")
        });
    }
    let hosts: Vec<String> = sentinels.iter().map(|s| format!("127.0.0.1:{}", s.port())).collect();
    let address = format!("redis+sentinel://{}/main?wait=1&wait_ms=500", hosts.join(","));
    let setup = Setup::new();
    runtime().block_on(async {
        let store = open(&address, &setup).await;
        let epoch = store.epoch();
        let load = Load::start(Arc::clone(&store), setup.clone(), 4);
        load.goes_on(100).await;

        primary.kill();
        let began = Instant::now();
        until("a replica leads", || {
            replicas.iter().any(|replica| replica.says("replication", "role:master"))
        });
        let led = began.elapsed();
        load.goes_on(1).await;
        eprintln!("a replica led after {led:?}, all went on after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        load.goes_on(100).await;
        load.nothing_is_lost().await;
        eventually("positions of before hold no longer", async || {
            (store.epoch() != epoch).then_some(())
        })
        .await;
    });
}

#[test]
fn a_failover_without_waiting_may_lose_what_was_acknowledged() {
    let mut primary = Server::durable(&[]);
    let mut replica = primary.replica(&[]);
    let setup = Setup::new();
    runtime().block_on(async {
        let store = open(&primary.url(), &setup).await;
        replica.kill();
        let task =
            store.submit(conformance::task(&setup, |_| {})).await.expect("acknowledged").task;
        primary.kill();
        replica.restart();
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        let after = open(&replica.url(), &setup).await;
        let seen = after.get(&task.tenant, task.id).await.expect("answered");
        // The documentation says so; with `wait=1` it would not have been acknowledged.
        assert!(seen.is_none(), "the replica can't have it");
    });
}

#[test]
fn a_slot_moves_under_load() {
    let cluster = Cluster::start();
    let setup = Setup::new();
    runtime().block_on(async {
        let store = open(&format!("{}?prefix=moves", cluster.url()), &setup).await;
        let epoch = store.epoch();
        let load = Load::start(Arc::clone(&store), setup.clone(), 4);
        load.goes_on(100).await;
        for _ in 0..2 {
            let key = "{moves}:meta";
            let next = (cluster.owner(key) + 1) % 3;
            cluster.move_slot(key, next);
            load.goes_on(100).await;
            assert_eq!(cluster.owner(key), next);
        }
        let (refused, unknown) = load.failures();
        eprintln!("{refused} calls were refused, of {unknown} nobody knew");
        load.nothing_is_lost().await;
        eventually("another process has the store", async || {
            (store.epoch() != epoch).then_some(())
        })
        .await;
    });
}
