//! The Redis store, on a real redis-server: what every store promises.

mod lead;
mod load;
mod measure;
mod outage;
mod server;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use rayreel_server::feed::Feed;
use rayreel_server::store::redis::RedisStore;
use rayreel_server::store::{After, ListQuery, Options, Order, Store};

use crate::conformance::{self, Setup, Stores};
use server::{Cluster, Server};

/// Stores side by side in one Redis.
struct Redis;

/// Stores side by side in one cluster, each with a slot of its own.
struct Clustered;

#[async_trait]
impl Stores for Clustered {
    type Home = String;

    fn home(&self) -> String {
        Redis.home()
    }

    fn forgets(&self) -> bool {
        false
    }

    fn cases(&self) -> u64 {
        16
    }

    async fn open(&self, home: &String, setup: &Setup) -> Arc<dyn Store> {
        let address = format!("{}?prefix={home}", Cluster::shared().url());
        let address = address.parse().expect("an address");
        Arc::new(RedisStore::open(&address, options(setup)).await.expect("it opens"))
    }
}

#[async_trait]
impl Stores for Redis {
    /// What stands before its keys.
    type Home = String;

    fn home(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        format!("home-{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn forgets(&self) -> bool {
        false
    }

    /// Each call goes to another process and back.
    fn cases(&self) -> u64 {
        64
    }

    async fn open(&self, home: &String, setup: &Setup) -> Arc<dyn Store> {
        let address = format!("{}?prefix={home}", Server::shared().url());
        let address = address.parse().expect("an address");
        Arc::new(RedisStore::open(&address, options(setup)).await.expect("it opens"))
    }
}

fn options(setup: &Setup) -> Options {
    Options {
        clock: setup.clock.clone(),
        random: setup.random.clone(),
        feed: Arc::new(Feed::default()),
        rules: setup.rules,
        locality: setup.locality,
        max_queued: setup.max_queued,
        tenancy: Arc::clone(&setup.tenancy),
        garbage_after_ms: setup.garbage_after_ms,
        worker_silence_ms: setup.worker_silence_ms,
    }
}

#[test]
fn redis_does_what_every_store_does() {
    conformance::conforms(&Redis);
}

#[test]
fn a_cluster_does_what_every_store_does() {
    conformance::conforms(&Clustered);
    let played = conformance::runtime();
    played.block_on(conformance::shares_fairly(&Clustered));
    played.block_on(conformance::drains(&Clustered));
}

#[test]
fn redis_shares_fairly() {
    conformance::runtime().block_on(conformance::shares_fairly(&Redis));
}

#[test]
fn redis_keeps_keys() {
    conformance::runtime().block_on(conformance::keeps_keys(&Redis));
}

#[test]
fn redis_lets_contents_go() {
    conformance::runtime().block_on(conformance::lets_contents_go(&Redis));
}

#[test]
fn redis_keeps_both_frames() {
    conformance::runtime().block_on(conformance::keeps_both_frames(&Redis));
}

#[test]
fn redis_keeps_places() {
    conformance::runtime().block_on(conformance::keeps_places(&Redis));
}

#[test]
fn redis_keeps_contents() {
    conformance::runtime().block_on(conformance::keeps_contents(&Redis));
}

#[test]
fn redis_keeps_files() {
    conformance::runtime().block_on(conformance::keeps_files(&Redis));
}

#[test]
fn redis_keeps_an_outbox() {
    conformance::runtime().block_on(conformance::keeps_an_outbox(&Redis));
}

#[test]
fn redis_quarantines() {
    conformance::runtime().block_on(conformance::quarantines(&Redis));
}

#[test]
fn redis_drains() {
    conformance::runtime().block_on(conformance::drains(&Redis));
}

/// A script looks at so many tasks at most, and is then called again.
#[test]
fn a_list_that_has_to_look_far_finds_what_it_should() {
    conformance::runtime().block_on(async {
        let (home, setup) = (Redis.home(), Setup::new());
        let store = Redis.open(&home, &setup).await;
        let mut rare = Vec::new();
        for _ in 0..3 {
            let task = conformance::task(&setup, |record| {
                record.model = conformance::model("rare");
            });
            rare.push(store.submit(task).await.expect("accepted").task.id);
            for _ in 0..25 {
                let many = (0..100).map(|_| conformance::task(&setup, |_| {})).collect();
                store.submit_all(many).await.expect("accepted");
            }
        }
        let pages = async |order: Order| {
            let mut query = ListQuery {
                order,
                model: Some(conformance::model("rare")),
                ..ListQuery::of(conformance::tenant("anna"), 2)
            };
            let mut found = Vec::new();
            loop {
                let page = store.list(&query).await.expect("listed");
                found.extend(page.tasks.iter().map(|view| view.task.id));
                match page.next {
                    Some(next) => query.after = Some(After::Position(next)),
                    None => return found,
                }
            }
        };
        assert_eq!(pages(Order::OldestFirst).await, rare);
        rare.reverse();
        assert_eq!(pages(Order::NewestFirst).await, rare);
    });
}
