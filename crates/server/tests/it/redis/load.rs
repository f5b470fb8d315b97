//! Clients and workers that go on whatever happens to Redis, and remember what they were told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rayreel_domain::id::TaskId;
use rayreel_domain::task::{End, Idempotency, State};
use rayreel_server::store::{Claim, Claimed, Error, Identity, Registration, Store};

use crate::conformance::{self, Setup};

/// What is under way, and what was acknowledged.
#[derive(Clone)]
pub(crate) struct Load {
    store: Arc<dyn Store>,
    setup: Setup,
    stopping: Arc<AtomicBool>,
    submitted: Arc<Mutex<BTreeSet<TaskId>>>,
    committed: Arc<Mutex<BTreeSet<TaskId>>>,
    refused: Arc<AtomicU64>,
    unknown: Arc<AtomicU64>,
}

impl Load {
    /// Starts so many clients and workers on the current runtime.
    pub(crate) fn start(store: Arc<dyn Store>, setup: Setup, each: usize) -> Self {
        let load = Self {
            store,
            setup,
            stopping: Arc::default(),
            submitted: Arc::default(),
            committed: Arc::default(),
            refused: Arc::default(),
            unknown: Arc::default(),
        };
        for number in 0..each {
            tokio::spawn(load.clone().submit(number));
            tokio::spawn(load.clone().work(number));
        }
        load
    }

    pub(crate) fn submitted(&self) -> usize {
        self.submitted.lock().expect("not poisoned").len()
    }

    pub(crate) fn committed(&self) -> usize {
        self.committed.lock().expect("not poisoned").len()
    }

    /// Calls that were refused, and calls of which nobody knew what came of them.
    pub(crate) fn failures(&self) -> (u64, u64) {
        (self.refused.load(Ordering::Relaxed), self.unknown.load(Ordering::Relaxed))
    }

    /// Waits until so many more were submitted and committed than now.
    pub(crate) async fn goes_on(&self, more: usize) {
        let (submitted, committed) = (self.submitted() + more, self.committed() + more);
        let done = async {
            while self.submitted() < submitted || self.committed() < committed {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let within = tokio::time::timeout(Duration::from_secs(60), done).await;
        within.unwrap_or_else(|_| {
            panic!("stuck at {} and {}; {:?}", self.submitted(), self.committed(), self.failures())
        });
    }

    /// Stops, and asserts that all that was acknowledged is there and all invariants hold.
    pub(crate) async fn nothing_is_lost(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        let submitted = self.submitted.lock().expect("not poisoned").clone();
        let committed = self.committed.lock().expect("not poisoned").clone();
        let tenant = conformance::tenant("anna");
        for id in &submitted {
            let seen = self.store.get(&tenant, *id).await.expect("answered");
            let view = seen.unwrap_or_else(|| panic!("{id} was acknowledged, and is lost"));
            if committed.contains(id) {
                assert_eq!(view.task.state, State::Succeeded, "{id} was committed");
            }
        }
        assert_eq!(self.store.check().await.expect("checked"), Vec::<String>::new());
    }

    fn stops(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    async fn pause(&self, error: &Error) {
        match error {
            Error::Unavailable(_) => self.refused.fetch_add(1, Ordering::Relaxed),
            Error::OutcomeUnknown(_) => self.unknown.fetch_add(1, Ordering::Relaxed),
            error => panic!("not an outage: {error:?}"),
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    async fn submit(self, number: usize) {
        for count in 0u64.. {
            let asked = Idempotency { key: format!("{number}-{count}"), request: "1".into() };
            let task = conformance::task(&self.setup, |record| record.idempotency = Some(asked));
            loop {
                if self.stops() {
                    return;
                }
                match self.store.submit(task.clone()).await {
                    Ok(done) => {
                        self.submitted.lock().expect("not poisoned").insert(done.task.id);
                        break;
                    }
                    Err(error) => self.pause(&error).await,
                }
            }
        }
    }

    async fn work(self, number: usize) {
        let worker = conformance::worker(&format!("worker-{number}"));
        while !self.stops() {
            let registration = Registration {
                worker: worker.clone(),
                pool: conformance::pool("local"),
                launch: None,
                version: "1".into(),
            };
            match self.store.register(registration).await {
                Ok(incarnation) => {
                    let by = Identity { worker: worker.clone(), incarnation };
                    self.work_as(&by).await;
                }
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// Until the registration is replaced, or was lost.
    async fn work_as(&self, by: &Identity) {
        let mut seq = 1;
        while !self.stops() {
            let claim = Claim {
                by: by.clone(),
                seq,
                holding: Vec::new(),
                loaded: None,
                self_test: None,
                target: None,
            };
            match self.store.claim(claim).await {
                Ok(Claimed::Task(task)) => {
                    let fence = task.fence().expect("running");
                    self.commit(by, fence).await;
                    seq += 1;
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(Error::StaleWorker) => return,
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn commit(&self, by: &Identity, fence: rayreel_domain::lease::Fence) {
        while !self.stops() {
            match self.store.end(by, fence, End::Commit(conformance::commit(0))).await {
                Ok(_) => {
                    self.committed.lock().expect("not poisoned").insert(fence.task);
                    return;
                }
                Err(Error::StaleLease { .. } | Error::StaleWorker) => return,
                Err(error) => self.pause(&error).await,
            }
        }
    }
}
