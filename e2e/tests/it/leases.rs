//! Leases: lost answers, lost workers, workers that come back from the dead.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rayreel_domain::task::{Outcome, State};
use rayreel_domain::wire::worker::Beaten;
use serde_json::json;

use crate::rig::{Faults, RawWorker, Server, only, until};

/// No worker but those of the test.
const NO_FLEET: &str = "[pools.local]\nmax = 0\n";

fn fox() -> serde_json::Value {
    json!({"prompt": "a fox", "size": "64x64", "frames": 1, "steps": 1})
}

#[test]
fn a_claim_whose_answer_is_lost_costs_six_seconds_and_nothing_else() {
    let server = Server::start(NO_FLEET);
    let api = server.api();
    let id = api.submit(&fox()).id;
    let (mut deaf, mut other) =
        (RawWorker::register(&server, "deaf"), RawWorker::register(&server, "other"));
    let start = Instant::now();
    // As if the answer had never arrived: no beat follows.
    deaf.claim(0).expect("the task");
    assert!(other.claim(0).is_none(), "it is the other's for now");
    let task = until("the task is free again", || other.claim(10_000));
    let took = start.elapsed();
    assert_eq!(task.fence.task.to_string(), id);
    assert!(took < Duration::from_secs(6), "{took:?}");

    assert!(matches!(other.beat(task.fence), Ok(Beaten::Continue)));
    let attempt = only(api.task(&id).attempts);
    assert_eq!(attempt.worker, "other", "the first claim left no trace");
}

#[test]
fn a_claim_that_is_repeated_gets_the_same_assignment() {
    let server = Server::start(NO_FLEET);
    for _ in 0..2 {
        server.api().submit(&fox());
    }
    let mut worker = RawWorker::register(&server, "w");
    let first = worker.claim(0).expect("a task");
    assert_eq!(worker.claim_again(0).as_ref(), Some(&first));
    worker.beat(first.fence).expect("it is the holder");
    assert_eq!(worker.claim_again(0), Some(first));
}

#[test]
fn a_claim_whose_connection_is_gone_is_not_made() {
    let server = Server::start(NO_FLEET);
    let api = server.api();
    let mut gone = RawWorker::register(&server, "gone");
    let body = gone.claim_text(30_000);
    let mut connection = TcpStream::connect(server.address()).expect("connected");
    write!(
        connection,
        "POST /v1/worker/claim HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        gone.token,
        body.len()
    )
    .expect("sent");
    let hanging = || api.metric("rayreel_hanging_calls", "").unwrap_or_default();
    until("the claim hangs", || (hanging() > 0.0).then_some(()));
    drop(connection);
    until("the claim is gone", || (hanging() == 0.0).then_some(()));

    let id = api.submit(&fox()).id;
    let mut other = RawWorker::register(&server, "other");
    let task = other.claim(0).expect("the task is free");
    assert_eq!(task.fence.task.to_string(), id);
}

#[test]
fn a_worker_that_says_it_holds_nothing_gives_back_what_it_had() {
    let server = Server::start(NO_FLEET);
    let id = server.api().submit(&fox()).id;
    let mut worker = RawWorker::register(&server, "w");
    let first = worker.claim(0).expect("a task").fence;
    worker.beat(first).expect("it is the holder");
    let second = worker.claim(0).expect("the same task again").fence;
    assert_eq!(second.task, first.task);
    assert!(second.attempt > first.attempt);
    assert_eq!(server.api().task(&id).attempts[0].outcome, Some(Outcome::Released));
    let refusal = worker.beat(first);
    assert!(matches!(refusal, Ok(Beaten::Lost)) || refusal.is_err(), "{refusal:?}");
}

#[test]
fn a_name_belongs_to_the_worker_that_registered_it_last() {
    let server = Server::start(NO_FLEET);
    server.api().submit(&fox());
    let mut older = RawWorker::register(&server, "w");
    let task = older.claim(0).expect("a task");
    let _newer = RawWorker::register(&server, "w");
    let refusal = older.beat(task.fence).expect_err("it was replaced");
    assert_eq!((refusal.status, refusal.code.as_str()), (Some(409), "stale_worker"));
}

#[test]
fn a_zombie_can_not_commit_and_its_file_is_collected() {
    let server =
        Server::start(&format!("lease_seconds = 1\ngarbage_after_seconds = 0\n{NO_FLEET}"));
    let api = server.api();
    let id = api.submit(&fox()).id;
    let (mut zombie, mut other) =
        (RawWorker::register(&server, "zombie"), RawWorker::register(&server, "other"));
    let task = zombie.claim(0).expect("the task");
    zombie.beat(task.fence).expect("it is the holder");
    let manifest = zombie.manifest(&task, b"the zombie's video");
    let place = zombie.announce(task.fence, &manifest).expect("it is the holder");
    zombie.put(&place, b"the zombie's video").expect("it is the holder");
    assert!(server.artifacts().iter().any(|path| path.ends_with(&manifest[0].sha256)));

    // The zombie says nothing for longer than its lease.
    let second = until("the task is free again", || other.claim(10_000));
    other.beat(second.fence).expect("it is the holder");
    for refusal in [
        zombie.commit(task.fence, &manifest).map(drop),
        zombie.announce(task.fence, &manifest).map(drop),
        zombie.put(&place, b"the zombie's video").map(drop),
    ] {
        let refusal = refusal.expect_err("it has lost its lease");
        assert_eq!((refusal.status, refusal.code.as_str()), (Some(409), "stale_lease"));
    }
    until("the zombie's file is gone", || server.artifacts().is_empty().then_some(()));

    let manifest = other.manifest(&second, b"the other's video");
    let place = other.announce(second.fence, &manifest).expect("it is the holder");
    other.put(&place, b"the other's video").expect("it is the holder");
    other.commit(second.fence, &manifest).expect("it is the holder");
    other.commit(second.fence, &manifest).expect("a repetition is no error");
    let task = api.wait_for_success(&id);
    let outcomes: Vec<_> = task.attempts.iter().map(|a| a.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Lost), Some(Outcome::Succeeded)]);
    assert_eq!(api.content(&id), b"the other's video");
}

#[test]
fn a_worker_stopped_past_its_lease_commits_nothing_and_works_on_afterwards() {
    let faults = Faults::new();
    let server = Server::start(&format!(
        "lease_seconds = 1\ngarbage_after_seconds = 0\n[pools.local]\nmin = 2\nmax = 2\n{}",
        faults.model("fault", "")
    ));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    let first = api.wait_until_running(&id).attempts[0].worker.clone();
    until("its engine works", || faults.noted("step").first().cloned());
    let zombie = server.worker(&first);
    zombie.stop();

    let task = api.wait_for(&id, "running elsewhere", |task| task.attempts.len() == 2);
    let second = &task.attempts[1].worker;
    assert_ne!(*second, first);
    // Both engines finish, the zombie's while its worker stands still.
    faults.open_gate();
    api.wait_for_success(&id);
    until("both engines are done", || (faults.noted("done").len() == 2).then_some(()));
    zombie.go_on();
    until("the zombie hears that it has lost the task", || {
        server.logged_by(&first).contains("Lost").then_some(())
    });

    let task = api.task(&id);
    assert_eq!(task.status, State::Succeeded);
    let outcomes: Vec<_> = task.attempts.iter().map(|a| a.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Lost), Some(Outcome::Succeeded)]);
    until("one artifact is left", || {
        let files = server.artifacts();
        (files.iter().filter(|path| path.contains("/0-")).count() == 1).then_some(())
    });

    // It is as good as any other again: with the second one stopped, the next task is its.
    server.worker(second).stop();
    let ids: Vec<_> =
        (0..2).map(|_| api.submit(&json!({"model": "fault", "prompt": "fine"})).id).collect();
    for id in ids {
        let task = api.wait_for_success(&id);
        assert_eq!(task.attempts.last().map(|a| &a.worker), Some(&first));
    }
}

#[test]
fn the_task_of_a_local_worker_that_dies_starts_again_at_once_and_uncharged() {
    let faults = Faults::new();
    let server = Server::start(&faults.model("fault", ""));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    let worker = api.wait_until_running(&id).attempts[0].worker.clone();
    until("its engine works", || faults.noted("step").first().cloned());
    let start = Instant::now();
    server.worker(&worker).kill();
    let task = api.wait_for(&id, "running again", |task| {
        task.attempts.len() == 2 && task.status == State::Running
    });
    assert!(start.elapsed() < Duration::from_secs(20), "the lease would have lasted 30 s");
    assert_eq!(task.attempts[0].outcome, Some(Outcome::Released), "not a loss");
    assert!(!server.home().join("scratch").join(&worker).exists(), "its unfinished files are gone");
    faults.open_gate();
    api.wait_for_success(&id);
}

#[test]
fn after_a_restart_leases_of_local_workers_that_are_dead_are_free_at_once() {
    let faults = Faults::new();
    let mut server = Server::start(&faults.model("fault", ""));
    let id = server.api().submit(&json!({"model": "fault", "prompt": "hold"})).id;
    let worker = server.api().wait_until_running(&id).attempts[0].worker.clone();
    until("its engine works", || faults.noted("step").first().cloned());
    let worker = server.worker(&worker);
    server.kill();
    worker.kill();
    faults.open_gate();
    let start = Instant::now();
    server.serve();
    let task = server.api().wait_for_success(&id);
    assert!(start.elapsed() < Duration::from_secs(20), "the lease would have lasted 30 s");
    let outcomes: Vec<_> = task.attempts.iter().map(|a| a.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Released), Some(Outcome::Succeeded)]);
}
