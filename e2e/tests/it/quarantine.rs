//! A worker whose engine always fails is quarantined before it eats the queue.

use rayreel_domain::task::{Outcome, State};
use serde_json::json;

use crate::rig::{Api, Faults, Server, until};

/// Pauses so short that nobody waits for them.
const RETRY: &str =
    "[retry]\nmax_failures = 3\nbackoff_seconds = 0.05\nmax_backoff_seconds = 0.05\n";
/// So long that no task is tried twice before three have been tried.
const LATER: &str = "[retry]\nbackoff_seconds = 3\n";

fn quarantined(api: &Api) -> f64 {
    api.metric("rayreel_workers", "state=\"quarantined\"").unwrap_or_default()
}

fn submit(api: &Api, model: &str, count: usize) -> Vec<String> {
    (0..count).map(|_| api.submit(&json!({"model": model, "prompt": "a fox"})).id).collect()
}

#[test]
fn a_worker_whose_engine_always_fails_is_quarantined_after_three_tasks() {
    let faults = Faults::new();
    let broken = faults.path("broken");
    std::fs::write(&broken, "all").expect("written");
    let broken_setting = format!("broken = {broken:?}");
    let server = Server::start(&format!(
        "{LATER}[pools.local]\nmax = 1\n[pools.other]\nmax = 1\n{}{}",
        faults.model_with("fault", "", &broken_setting),
        faults.model("sound", "pool = \"other\"") + &faults.model("beside", ""),
    ));
    let api = server.api();
    let mut ids = submit(&api, "fault", 10);
    until("the worker is quarantined", || (quarantined(&api) == 1.0).then_some(()));

    // Three tasks were tried, and their failures are excused now.
    // The metric is a moment ahead of the tasks.
    let tasks: Vec<_> = ids
        .iter()
        .map(|id| api.wait_for(id, "queued", |task| task.status == State::Queued))
        .collect();
    let outcomes: Vec<_> =
        tasks.iter().flat_map(|task| &task.attempts).map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Excused); 3], "{tasks:#?}");
    assert!(tasks.iter().all(|task| task.attempts.len() <= 1), "three different tasks");
    // Who works elsewhere is not touched.
    for id in submit(&api, "sound", 3) {
        api.wait_for_success(&id);
    }
    // Mended, it proves itself, and everything behind it comes through, whatever its model.
    ids.extend(submit(&api, "beside", 3));
    let generated = faults.noted("generate").len();
    std::fs::write(&broken, "mended").expect("written");
    for id in &ids {
        api.wait_for_success(id);
    }
    assert_eq!(quarantined(&api), 0.0);
    let more = faults.noted("generate").len() - generated;
    assert!(more > ids.len(), "{more} generations: a self-test came before the tasks");
}

#[test]
fn a_queue_that_meets_one_broken_worker_comes_through_on_the_other() {
    let faults = Faults::new();
    let broken_setting = format!("broken = {:?}", faults.path("broken"));
    let server = Server::start(&format!(
        "{RETRY}[pools.local]\nmin = 2\nmax = 2\n{}",
        faults.model_with("fault", "", &broken_setting),
    ));
    let api = server.api();
    // Until the broken one has failed three tasks.
    let mut ids = Vec::new();
    while quarantined(&api) == 0.0 {
        let round = submit(&api, "fault", 4);
        for id in &round {
            api.wait_for_success(id);
        }
        ids.extend(round);
        assert!(ids.len() < 200, "nobody is quarantined");
    }
    for id in submit(&api, "fault", 10) {
        let task = api.wait_for_success(&id);
        assert_eq!(task.attempts.len(), 1, "the broken one is out of the way: {task:#?}");
    }
}

#[test]
fn a_sound_model_behind_a_broken_one_in_the_same_pool_comes_through() {
    let faults = Faults::new();
    let broken = faults.path("broken");
    std::fs::write(&broken, "all").expect("written");
    let broken_setting = format!("broken = {broken:?}");
    let server = Server::start(&format!(
        "{RETRY}[pools.local]\nmax = 1\n{}{}",
        faults.model_with("fault", "", &broken_setting),
        faults.model("sound", ""),
    ));
    let api = server.api();
    let poison = submit(&api, "fault", 4);
    let sound = submit(&api, "sound", 4);
    // The broken model never gets well.
    for id in sound {
        api.wait_for_success(&id);
    }
    for id in poison {
        let task = api.wait_for(&id, "explained", |task| task.waiting_reason.is_some());
        assert_eq!(task.status, State::Queued);
        let reason = task.waiting_reason.unwrap_or_default();
        assert!(reason.contains("`fault`") && reason.contains("GPU is broken"), "{reason}");
    }
}

#[test]
fn an_engine_that_works_on_small_requests_only_ends_the_others_and_holds_up_nobody() {
    let faults = Faults::new();
    let server =
        Server::start(&format!("{RETRY}[pools.local]\nmax = 1\n{}", faults.model("fault", "")));
    let api = server.api();
    // The self-test's prompt is no fault: it passes whenever it is asked for.
    let poison: Vec<String> =
        (0..7).map(|_| api.submit(&json!({"model": "fault", "prompt": "crash"})).id).collect();
    let sound = submit(&api, "fault", 2);
    for id in sound {
        api.wait_for_success(&id);
    }
    for id in poison {
        let task = api.wait_for(&id, "failed", |task| task.status == State::Failed);
        let code = task.error.as_ref().map(|error| error.code.name());
        assert_eq!(code, Some("engine_crashed"), "{task:#?}");
        assert!(task.attempts.len() <= 4, "three tries, and one that was excused: {task:#?}");
    }
}
