//! Duties that one server of many has at a time.

use std::sync::Arc;
use std::time::Duration;

use rayreel_server::duties::{LEASE, RESCUE};
use rayreel_server::store::redis::RedisStore;
use rayreel_server::store::{Claim, Claimed, Identity, Registration, Store};

use super::options;
use super::server::Server;
use crate::conformance::{self, Setup};

const MS: u64 = LEASE.as_millis() as u64;

/// Two servers of one store, which nobody else has.
async fn two(prefix: &str, setup: &Setup) -> [Arc<dyn Store>; 2] {
    let address = format!("{}?prefix={prefix}", Server::shared().url()).parse().unwrap();
    let open = async || RedisStore::open(&address, options(setup)).await.expect("it opens");
    [Arc::new(open().await), Arc::new(open().await)]
}

#[test]
fn a_duty_is_had_by_one_until_it_does_not_renew_it() {
    let setup = Setup::new();
    conformance::runtime().block_on(async {
        let [a, b] = two("lead", &setup).await;
        assert_eq!(a.lead("timers", "a", MS).await, Ok(true));
        assert_eq!(b.lead("timers", "b", MS).await, Ok(false));
        assert_eq!(b.lead("garbage", "b", MS).await, Ok(true), "another duty");
        setup.clock.advance(Duration::from_millis(MS - 1));
        assert_eq!(a.lead("timers", "a", MS).await, Ok(true), "renewed");
        setup.clock.advance(Duration::from_millis(MS - 1));
        assert_eq!(b.lead("timers", "b", MS).await, Ok(false));
        setup.clock.advance(Duration::from_millis(1));
        assert_eq!(b.lead("timers", "b", MS).await, Ok(true), "nobody has heard of it");
        assert_eq!(a.lead("timers", "a", MS).await, Ok(false), "it comes too late");
        assert_eq!(a.lead("timers", "a", 0).await, Ok(false), "what it does not have stays");
        assert_eq!(a.lead("timers", "a", MS).await, Ok(false));
        assert_eq!(b.lead("timers", "b", 0).await, Ok(false), "given back");
        assert_eq!(a.lead("timers", "a", MS).await, Ok(true), "at once");
    });
}

#[test]
fn a_rescuer_that_follows_another_counts_a_grace() {
    let setup = Setup::new();
    conformance::runtime().block_on(async {
        let [a, b] = two("graces", &setup).await;
        assert_eq!(a.lead(RESCUE, "a", MS).await, Ok(true));
        let worker = conformance::worker("w");
        let registration = Registration {
            worker: worker.clone(),
            pool: conformance::pool("local"),
            launch: None,
            version: "1".into(),
        };
        let incarnation = a.register(registration).await.expect("registered");
        a.submit(conformance::task(&setup, |_| {})).await.expect("stored");
        let by = Identity { worker, incarnation };
        let claim = Claim {
            by: by.clone(),
            seq: 1,
            holding: Vec::new(),
            loaded: None,
            self_test: None,
            target: None,
        };
        let Ok(Claimed::Task(task)) = a.claim(claim).await else { panic!("there is one") };
        let graces = async || a.leases().await.expect("read")[0].graces;

        assert_eq!(a.lead(RESCUE, "a", MS).await, Ok(true));
        assert_eq!(graces().await, 0, "it has watched all the time");
        assert_eq!(b.lead("timers", "b", MS).await, Ok(true));
        assert_eq!(graces().await, 0, "another duty");
        setup.clock.advance(LEASE);
        assert_eq!(b.lead(RESCUE, "b", MS).await, Ok(true));
        assert_eq!(graces().await, 1);
        b.beat(&by, task.fence().unwrap(), None).await.expect("live");
        assert_eq!(graces().await, 0, "its worker is well");
    });
}
