//! Many callers at once, and callers that go away.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rayreel_domain::code::Code;
use rayreel_domain::task::{End, Failure, Idempotency, Outcome, Rules, State, Task};
use rayreel_domain::wire::worker::SelfTest;
use rayreel_server::clock::SystemClock;
use rayreel_server::store::Options;
use rayreel_server::store::sqlite::SqliteStore;
use rayreel_server::store::{Claimed, Error, Store};
use rusqlite::Connection;

use super::{asks, claim, database, done, folder, has, open, options, register, submit};
use crate::conformance::{self, Setup, runtime};

/// Holds the database, so that the store's next transaction waits.
struct Hold(Connection);

impl Hold {
    fn take(folder: &std::path::Path) -> Self {
        let db = Connection::open(database(folder)).expect("it opens");
        db.busy_timeout(Duration::from_secs(10)).expect("set");
        db.execute_batch("BEGIN IMMEDIATE").expect("held");
        Self(db)
    }

    fn release(self) {
        self.0.execute_batch("COMMIT").expect("released");
    }
}

/// Starts a call, without waiting for its answer.
fn hand_in<F: Future>(call: &mut std::pin::Pin<Box<F>>) {
    let mut context = Context::from_waker(Waker::noop());
    assert!(matches!(call.as_mut().poll(&mut context), Poll::Pending), "the answer can't be there");
}

#[test]
fn all_who_come_at_once_are_served() {
    let (home, setup) = (folder(), Setup::new());
    let ids = runtime().block_on(async {
        let store = open(home.path(), &setup);
        submit(&store, &setup, 64).await
    });
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        for id in ids {
            assert!(has(&store, id).await, "{id} is gone");
        }
        assert_eq!(store.check().await, Ok(vec![]));
    });
}

#[test]
fn the_same_key_at_the_same_time_is_one_task() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        let submits = (0..32).map(|_| {
            store.submit(conformance::task(&setup, |record| {
                record.idempotency = Some(Idempotency { key: "k".into(), request: "r".into() });
            }))
        });
        let answers = futures_util::future::join_all(submits).await;
        let answers: Vec<_> = answers.into_iter().map(|a| a.expect("accepted")).collect();
        assert_eq!(answers.iter().filter(|answer| !answer.existed).count(), 1);
        assert!(answers.iter().all(|answer| answer.task.id == answers[0].task.id));
    });
}

#[test]
fn a_claim_whose_caller_has_gone_is_not_made() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        submit(&store, &setup, 1).await;
        let by = register(&store, "w1").await;
        let hold = Hold::take(home.path());
        let mut call = Box::pin(store.claim(asks(&by, 1)));
        hand_in(&mut call);
        drop(call);
        hold.release();
        // A later call: its turn comes after that of the claim.
        assert_eq!(store.check().await, Ok(vec![]));
        assert_eq!(store.leases().await, Ok(vec![]));
        assert!(claim(&store, &by, 1).await.is_some(), "the task is still there");
    });
}

#[test]
fn whoever_waits_learns_of_it_only_when_it_is_on_the_disk() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let feed = options(&setup).feed;
        let options = Options { feed: Arc::clone(&feed), ..options(&setup) };
        let store = SqliteStore::open(database(home.path()), options).expect("it opens");
        let by = register(&store, "w1").await;
        let hold = Hold::take(home.path());
        let mut parked = feed.park(&conformance::pool("local"));
        let mut call = Box::pin(store.submit(conformance::task(&setup, |_| {})));
        hand_in(&mut call);
        hand_in(&mut Box::pin(parked.woken()));
        hold.release();
        call.await.expect("accepted");
        parked.woken().await;
        parked.served();

        // A worker learns that its attempt was ended without it, however that came.
        for (seq, end) in [
            End::Lose,
            End::Vanish,
            End::Fail(Failure {
                retryable: true,
                ..Failure::new(Code::MaxRunExceeded, "too long")
            }),
        ]
        .into_iter()
        .enumerate()
        {
            let (_, fence) = claim(&store, &by, seq as u64 + 1).await.expect("a task");
            let control = feed.control(&by.worker);
            let mut told = Box::pin(control.notified());
            told.as_mut().enable();
            assert!(store.reclaim(fence, 0, end).await.expect("reclaimed"));
            told.await;
        }
    });
}

#[test]
fn a_call_that_fails_takes_no_other_with_it() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        let taken = submit(&store, &setup, 1).await[0];
        let task = |tenant: &str, id: Option<rayreel_domain::TaskId>| {
            conformance::task(&setup, |record| {
                record.tenant = conformance::tenant(tenant);
                record.id = id.unwrap_or(record.id);
            })
        };
        // All three in one transaction; the middle one can't be written.
        let hold = Hold::take(home.path());
        let (before, after) = (task("bert", None), task("cleo", None));
        let submits = [before.clone(), task("cleo", Some(taken)), after.clone()];
        let mut calls = Vec::from(submits.map(|task| Box::pin(store.submit(task))));
        calls.iter_mut().for_each(hand_in);
        hold.release();
        let answers = futures_util::future::join_all(calls).await;
        assert!(matches!(answers[1], Err(Error::Unavailable(_))), "{:?}", answers[1]);
        for task in [before, after] {
            let found = store.get(&task.tenant, task.id).await.expect("answered");
            assert_eq!(found.map(|view| Arc::unwrap_or_clone(view.task)), Some(task));
        }
        assert_eq!(store.check().await, Ok(vec![]));
    });
}

#[test]
fn a_database_that_is_locked_for_long_is_an_error_and_not_the_end() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        submit(&store, &setup, 5).await;
        let by = register(&store, "w1").await;
        let (_, fence) = claim(&store, &by, 1).await.expect("a task");
        store.beat(&by, fence, None).await.expect("beaten");
        let hold = Hold::take(home.path());
        let refused = store.submit(conformance::task(&setup, |_| {})).await.map(|_| ());
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        hold.release();
        submit(&store, &setup, 5).await;
        assert_eq!(store.check().await, Ok(vec![]));
        let leases = store.leases().await.expect("answered");
        assert_eq!((leases.len(), leases[0].beats), (1, 1), "what only memory knows is kept");
        store.end(&by, fence, done()).await.expect("committed");
    });
}

/// A list is one moment: a task that is claimed and given back meanwhile is in it, and once.
#[test]
fn a_list_holds_each_task_once_whatever_happens_to_them() {
    const TASKS: usize = 20;
    let (home, setup) = (folder(), Setup::new());
    let store = Arc::new(open(home.path(), &setup));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        submit(&*store, &setup, TASKS).await;
        let by = register(&*store, "w1").await;
        let worker = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                for seq in 1..400 {
                    // Each claim gives the last one's task back.
                    assert!(claim(&*store, &by, seq).await.is_some());
                }
            }
        });
        let query = rayreel_server::store::ListQuery::of(conformance::tenant("anna"), 100);
        while !worker.is_finished() {
            let page = store.list(&query).await.expect("listed");
            let ids: std::collections::BTreeSet<_> =
                page.tasks.iter().map(|view| view.task.id).collect();
            assert_eq!((page.tasks.len(), ids.len()), (TASKS, TASKS));
        }
        worker.await.expect("no panic");
    });
}

/// Workers that claim, beat, commit, fail, give back and vanish, clients that submit and cancel,
/// all at once: at the end every task has ended, and each that succeeded has done so once.
#[test]
fn a_crowd_of_workers_does_everything_once() {
    const TASKS: u64 = 400;
    const WORKERS: usize = 12;
    let home = folder();
    let setup = Setup::new();
    let clock = Arc::new(SystemClock::new());
    let options = Options {
        clock: clock.clone(),
        rules: Rules { backoff_ms: 2, max_backoff_ms: 4, max_failures: 1000, ..Rules::default() },
        ..options(&setup)
    };
    let feed = Arc::clone(&options.feed);
    let store = Arc::new(SqliteStore::open(database(home.path()), options).expect("it opens"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_time()
        .build()
        .expect("a runtime");
    let ended = Arc::new(AtomicU64::new(0));
    let known = Arc::new(Mutex::new(Vec::new()));
    runtime.block_on(async {
        let mut crowd = tokio::task::JoinSet::new();
        // Clients that ask for tasks while they change.
        for _ in 0..2 {
            let (store, ended, known) =
                (Arc::clone(&store), Arc::clone(&ended), Arc::clone(&known));
            crowd.spawn(async move {
                for turn in 0usize.. {
                    if ended.load(Ordering::SeqCst) >= TASKS {
                        break;
                    }
                    let asked: Option<Task> = {
                        let known = known.lock().expect("no panic");
                        known.get(turn % known.len().max(1)).cloned()
                    };
                    if let Some(asked) = asked {
                        let found = store.get(&asked.tenant, asked.id).await.expect("answered");
                        assert!(found.expect("there").task.seq() >= asked.seq());
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        for number in 0..WORKERS {
            let (store, setup, ended) = (Arc::clone(&store), setup.clone(), Arc::clone(&ended));
            crowd.spawn(async move {
                let by = register(&*store, &format!("w{number}")).await;
                let mut seq = 0;
                while ended.load(Ordering::SeqCst) < TASKS {
                    seq += 1;
                    let claimed = match store.claim(asks(&by, seq)).await.expect("answered") {
                        Claimed::Quarantine { model, .. } => {
                            let test = SelfTest { model, failure: None };
                            let claim = rayreel_server::store::Claim {
                                self_test: Some(test),
                                ..asks(&by, seq)
                            };
                            store.claim(claim).await.expect("answered")
                        }
                        claimed => claimed,
                    };
                    let Claimed::Task(task) = claimed else {
                        store.advance().await.expect("advanced");
                        tokio::task::yield_now().await;
                        continue;
                    };
                    let fence = task.fence().expect("running");
                    let end = match setup.random.number() % 8 {
                        // It vanishes; its next claim gives the task back.
                        0 => continue,
                        1 => {
                            store.reclaim(fence, 0, End::Lose).await.expect("answered");
                            continue;
                        }
                        2 => End::Fail(Failure {
                            retryable: true,
                            ..Failure::new(Code::EngineCrashed, "it broke")
                        }),
                        3 => {
                            store.cancel(&task.tenant, task.id).await.expect("answered");
                            End::Release
                        }
                        _ => done(),
                    };
                    let _ = store.beat(&by, fence, None).await.expect("answered");
                    let answer = store.end(&by, fence, end).await;
                    if let Ok(task) = &answer {
                        // Whoever knows of a change reads it.
                        let found = store.get(&task.tenant, task.id).await.expect("answered");
                        assert!(found.expect("there").task.seq() >= task.seq());
                    }
                    match answer {
                        Ok(task) if task.state.is_terminal() => {
                            ended.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok(_) => {}
                        Err(Error::StaleLease { cancelled: true }) => {
                            ended.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for client in ["anna", "bert", "cleo", "dora"] {
            let (store, setup, known) = (Arc::clone(&store), setup.clone(), Arc::clone(&known));
            crowd.spawn(async move {
                for _ in 0..TASKS / 4 {
                    let task = conformance::task(&setup, |record| {
                        record.tenant = conformance::tenant(client);
                        record.estimate_ms = 10;
                    });
                    let submitted = store.submit(task).await.expect("accepted");
                    known.lock().expect("no panic").push(submitted.task);
                }
            });
        }
        while let Some(joined) = crowd.join_next().await {
            joined.expect("no panic");
        }
        drop(feed);
        assert_eq!(store.check().await, Ok(vec![]));
        let mut states = std::collections::BTreeMap::<_, usize>::new();
        for client in ["anna", "bert", "cleo", "dora"] {
            let query = rayreel_server::store::ListQuery::of(conformance::tenant(client), 1_000);
            for view in store.list(&query).await.expect("listed").tasks {
                let task = view.task;
                let found = store.get(&task.tenant, task.id).await.expect("answered");
                assert_eq!(found.expect("there").task, task, "read alone as in the list");
                let successes =
                    task.attempts.iter().filter(|a| a.outcome == Some(Outcome::Succeeded)).count();
                assert_eq!(successes, usize::from(task.state == State::Succeeded));
                assert!(task.state.is_terminal(), "{} is {}", task.id, task.state);
                *states.entry(task.state.as_str()).or_default() += 1;
            }
        }
        assert_eq!(states.values().sum::<usize>(), TASKS as usize);
        assert!(states["SUCCEEDED"] > 0 && states["CANCELLED"] > 0, "{states:?}");
    });
}
