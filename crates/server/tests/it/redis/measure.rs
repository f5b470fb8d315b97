//! What the documentation says of memory and of what durability costs, measured anew:
//! `cargo test --release -p rayreel-server --test it redis::measure -- --ignored --nocapture`.

#![expect(clippy::disallowed_methods, reason = "other processes live by the world's clock")]

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use rayreel_domain::task::End;
use rayreel_server::store::redis::RedisStore;
use rayreel_server::store::{Claim, Claimed, Identity, Registration, Store};

use super::options;
use super::server::Server;
use crate::conformance::{self, Setup};

const TASKS: usize = 100_000;
const CLIENTS: usize = 32;

fn used(server: &Server) -> usize {
    let info: String = server.ask(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    used.expect("told").trim().parse().expect("a number")
}

async fn open(address: &str, setup: &Setup) -> Arc<dyn Store> {
    let address = address.parse().expect("an address");
    Arc::new(RedisStore::open(&address, options(setup)).await.expect("it opens"))
}

async fn submit(store: &dyn Store, setup: &Setup, tasks: usize) {
    let client = |_| async {
        for _ in 0..tasks / CLIENTS {
            store.submit(conformance::task(setup, |_| {})).await.expect("stored");
        }
    };
    join_all((0..CLIENTS).map(client)).await;
}

/// Each claims and commits until nothing is left.
async fn work(store: &dyn Store, number: usize) -> usize {
    let worker = conformance::worker(&format!("worker-{number}"));
    let registration = Registration {
        worker: worker.clone(),
        pool: conformance::pool("local"),
        launch: None,
        version: "1".into(),
    };
    let incarnation = store.register(registration).await.expect("registered");
    let by = Identity { worker, incarnation };
    for seq in 1.. {
        let holding = Vec::new();
        let claim =
            Claim { by: by.clone(), seq, holding, loaded: None, self_test: None, target: None };
        let Claimed::Task(task) = store.claim(claim).await.expect("answered") else {
            return seq as usize - 1;
        };
        let fence = task.fence().expect("running");
        store.end(&by, fence, End::Commit(conformance::commit(0))).await.expect("committed");
    }
    unreachable!("it ends when nothing is left")
}

#[test]
#[ignore = "a measurement"]
fn memory_of_tasks() {
    let server = Server::start(&["--save", ""]);
    let setup = Setup::new();
    conformance::runtime().block_on(async {
        let store = open(&server.url(), &setup).await;
        submit(&*store, &setup, CLIENTS).await;
        let before = used(&server);
        submit(&*store, &setup, TASKS).await;
        println!("a queued task: {} bytes", (used(&server) - before) / TASKS);
        join_all((0..CLIENTS).map(|number| work(&*store, number))).await;
        println!("one that has ended: {} bytes", (used(&server) - before) / TASKS);
        let events: usize = server.ask(&["MEMORY", "USAGE", "{rayreel}:events"]);
        println!("of that the stream of events, in all: {} MB", events / 1_000_000);
    });
}

#[test]
#[ignore = "a measurement"]
fn cost_of_promises() {
    let setup = Setup::new();
    conformance::runtime().block_on(async {
        for (fsync, replicas) in [("everysec", 0), ("always", 0), ("everysec", 1), ("always", 1)] {
            let settings = ["--save", "", "--appendonly", "yes", "--appendfsync", fsync];
            let server = Server::start(&settings);
            let _replica = (replicas > 0).then(|| server.replica(&["--appendfsync", fsync]));
            let address = format!("{}?wait={replicas}", server.url());
            let store = open(&address, &setup).await;
            let began = Instant::now();
            submit(&*store, &setup, TASKS / 10).await;
            let submits = (TASKS / 10) as f64 / began.elapsed().as_secs_f64();
            let began = Instant::now();
            let done = join_all((0..CLIENTS).map(|number| work(&*store, number))).await;
            let done = done.iter().sum::<usize>() as f64 / began.elapsed().as_secs_f64();
            println!(
                "{fsync}, wait={replicas}: {submits:.0} submits/s, {done:.0} claims and commits/s"
            );
        }
    });
}
