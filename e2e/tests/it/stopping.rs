//! Being asked to go: idle workers go with their server, a busy one keeps its task, and a worker
//! that must go loses nobody's work.

use rayreel_domain::task::Outcome;
use rustix::process::Signal;
use serde_json::json;

use crate::rig::{Faults, LONG, Server, only, until};

#[test]
fn a_server_that_is_asked_to_stop_takes_its_idle_workers_along() {
    let faults = Faults::new();
    let mut server = Server::start(&faults.model("fault", ""));
    let id = server.api().submit(&json!({"model": "fault", "prompt": "fine"})).id;
    server.api().wait_for_success(&id);
    assert_eq!(server.workers().len(), 1);
    let status = server.terminate();
    assert_eq!(status.code(), Some(0));
    assert!(server.processes().is_empty(), "{:?}", server.processes());
    assert!(!server.home().join("server.json").exists(), "it announces itself no more");
}

#[test]
fn a_busy_worker_keeps_its_task_and_delivers_to_the_next_server() {
    let faults = Faults::new();
    let mut server = Server::start(&faults.model("fault", ""));
    let id = server.api().submit(&json!({"model": "fault", "prompt": "hold"})).id;
    let name = server.api().wait_until_running(&id).attempts[0].worker.clone();
    until("its engine works", || faults.noted("step").first().cloned());
    assert_eq!(server.terminate().code(), Some(0));
    let worker = only(server.workers());
    assert_eq!(worker.value_of("--name"), Some(name.as_str()), "it works on");
    faults.open_gate();
    until("the engine is done", || faults.noted("done").first().cloned());
    server.serve();
    let attempt = only(server.api().wait_for_success(&id).attempts);
    assert_eq!((attempt.worker, attempt.outcome), (name, Some(Outcome::Succeeded)));
    assert_eq!(only(server.workers()), worker, "and is of use to the new server");
}

#[test]
fn a_worker_that_is_asked_to_go_finishes_its_task_first() {
    let faults = Faults::new();
    let server = Server::start(&faults.model("fault", ""));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    let name = api.wait_until_running(&id).attempts[0].worker.clone();
    until("its engine works", || faults.noted("step").first().cloned());
    let worker = server.worker(&name);
    worker.signal(Signal::TERM);
    // The next one is for somebody else.
    let next = api.submit(&json!({"model": "fault", "prompt": "fine"})).id;
    faults.open_gate();
    assert!(worker.wait(LONG), "it goes");
    let attempt = only(api.wait_for_success(&id).attempts);
    assert_eq!((&attempt.worker, attempt.outcome), (&name, Some(Outcome::Succeeded)));
    let attempt = only(api.wait_for_success(&next).attempts);
    assert_ne!(attempt.worker, name);
}

#[test]
fn a_worker_that_is_asked_twice_gives_its_task_back_uncharged_and_goes_at_once() {
    let faults = Faults::new();
    let server = Server::start(&faults.model("fault", ""));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    let name = api.wait_until_running(&id).attempts[0].worker.clone();
    until("its engine works", || faults.noted("step").first().cloned());
    let worker = server.worker(&name);
    worker.signal(Signal::TERM);
    // Another kind, because two of the same that come together count as one.
    worker.signal(Signal::INT);
    assert!(worker.wait(LONG), "it goes");
    let task = api.wait_for(&id, "running elsewhere", |task| task.attempts.len() == 2);
    assert_eq!(task.attempts[0].outcome, Some(Outcome::Released));
    assert!(task.attempts[0].error.is_none());
    faults.open_gate();
    api.wait_for_success(&id);
}

#[test]
fn a_worker_that_is_drained_finishes_its_task_and_is_gone() {
    let faults = Faults::new();
    let server = Server::start(&faults.model("fault", ""));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    let name = api.wait_until_running(&id).attempts[0].worker.clone();
    until("its engine works", || faults.noted("step").first().cloned());
    let worker = server.worker(&name);
    let listed = server.run(&["workers", "list"]).ok();
    let shown = String::from_utf8(listed.stdout).expect("text");
    assert!(shown.contains(&name) && shown.contains("busy") && shown.contains(&id), "{shown}");
    for _ in 0..2 {
        let drained = server.run(&["workers", "drain", &name, "--json"]).ok().json();
        assert_eq!((&drained["state"], &drained["task"]["id"]), (&json!("draining"), &json!(id)));
    }
    // The next one is for somebody else.
    let next = api.submit(&json!({"model": "fault", "prompt": "fine"})).id;
    faults.open_gate();
    assert!(worker.wait(LONG), "its process is gone");
    let attempt = only(api.wait_for_success(&id).attempts);
    let how = (attempt.attempt, &attempt.worker, attempt.outcome);
    assert_eq!(how, (1, &name, Some(Outcome::Succeeded)));
    let attempt = only(api.wait_for_success(&next).attempts);
    assert_ne!(attempt.worker, name, "it was replaced");
    until("it is not listed any more", || {
        let gone = server.run(&["workers", "drain", &name]);
        (gone.code == Some(4)).then_some(())
    });
}

#[test]
fn a_drained_pool_waits_until_it_is_resumed() {
    let server = Server::start("");
    let api = server.api();
    server.run(&["pools", "drain", "local"]).ok();
    let id = api.submit(&json!({"prompt": "p", "frames": 5, "steps": 1})).id;
    let task = api.wait_for(&id, "held up", |task| task.waiting_reason.is_some());
    assert!(task.waiting_reason.is_some_and(|reason| reason.contains("`local` is drained")));
    let shown = server.run(&["pools", "list"]).ok();
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert!(shown.contains("drained"), "{shown}");
    assert!(server.workers().is_empty(), "nobody is started for it");
    server.run(&["pools", "resume", "local"]).ok();
    assert_eq!(only(api.wait_for_success(&id).attempts).attempt, 1);
    let used = server.run(&["tenants", "show", "default", "--json"]).ok().json();
    assert_eq!((&used["usage"]["queued"], &used["usage"]["running"]), (&json!(0), &json!(0)));
}
