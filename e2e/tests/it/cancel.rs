//! A cancel really cancels: it reaches the engine, and one that does not obey is killed.

use rayreel_domain::task::{Outcome, State};
use serde_json::json;

use crate::rig::{Faults, Server, only, until};

#[test]
fn a_cancel_reaches_the_engine_within_one_step() {
    let faults = Faults::new();
    // Beats are ten seconds apart, so none of them carries the cancel.
    let server = Server::start(&faults.model_with("fault", "", "step_ms = 500"));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "slow", "steps": 100})).id;
    let last_step = || faults.noted("step").last().map_or(0, |note| note.step);
    until("two steps", || (last_step() >= 2).then_some(()));
    let answer = api.cancel(&id);
    assert!(answer.cancelled && !answer.deleted);
    assert_eq!(answer.status, State::Cancelled, "terminal at once");
    let done = last_step();
    let heard = until("the engine hears it", || faults.noted("cancel").first().cloned());
    assert!(heard.step <= done + 1, "in step {}, after {done}", heard.step);

    let task = api.task(&id);
    assert_eq!(task.status, State::Cancelled);
    assert_eq!(only(task.attempts).outcome, Some(Outcome::Cancelled));
    let again = api.cancel(&id);
    assert!(!again.cancelled && !again.deleted, "idempotent, and never deletes");

    // An engine that obeys stays warm.
    let id = api.submit(&json!({"model": "fault", "prompt": "fine", "steps": 1})).id;
    api.wait_for_success(&id);
    assert_eq!(faults.noted("load").len(), 1);
}

#[test]
fn an_engine_that_does_not_obey_is_killed_after_its_grace_and_the_next_task_gets_another() {
    let faults = Faults::new();
    let server = Server::start(&faults.model("fault", "grace_seconds = 0.3"));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "stubborn"})).id;
    let engine = until("the engine works", || faults.noted("generate").first().cloned()).pid;
    api.wait_until_running(&id);
    api.cancel(&id);
    let next = api.submit(&json!({"model": "fault", "prompt": "fine"})).id;
    api.wait_for_success(&next);
    assert!(!server.engines().iter().any(|process| process.pid == engine), "it was killed");
    let loads = faults.noted("load");
    assert_eq!(loads.len(), 2);
    assert_eq!(loads[0].worker, loads[1].worker, "of the same worker");
    assert_eq!(api.task(&id).status, State::Cancelled);
}

#[test]
fn a_queued_task_that_is_cancelled_never_starts() {
    let faults = Faults::new();
    let server = Server::start(&faults.model("fault", ""));
    let api = server.api();
    let busy = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    api.wait_until_running(&busy);
    let id = api.submit(&json!({"model": "fault", "prompt": "never"})).id;
    assert!(api.cancel(&id).cancelled);
    faults.open_gate();
    api.wait_for_success(&busy);
    let after = api.submit(&json!({"model": "fault", "prompt": "after"})).id;
    api.wait_for_success(&after);
    assert!(faults.noted("generate").iter().all(|note| note.prompt != "never"));
    assert!(api.task(&id).attempts.is_empty());
}
