//! Worker processes: none until there is work, warm while there is more, gone afterwards.

use std::collections::HashSet;

use rayreel_domain::task::State;
use serde_json::json;

use crate::rig::{Api, Faults, LONG, Process, Server, only, until};

fn hold(api: &Api, count: usize) -> Vec<String> {
    (0..count).map(|_| api.submit(&json!({"model": "fault", "prompt": "hold"})).id).collect()
}

fn work(api: &Api) {
    let id = api.submit(&json!({"model": "fault", "prompt": "fine"})).id;
    api.wait_for_success(&id);
}

#[test]
fn no_worker_until_the_first_task_then_one_that_stays_warm_and_goes_when_it_is_idle() {
    let faults = Faults::new();
    let server = Server::start(&format!(
        "[pools.local]\nidle_timeout_seconds = 2\n{}",
        faults.model("fault", "")
    ));
    let api = server.api();
    assert!(server.workers().is_empty());
    work(&api);
    let worker = only(server.workers());
    work(&api);
    assert_eq!(only(server.workers()), worker, "the same one");
    let loads = only(faults.noted("load"));
    assert_eq!(loads.worker, worker.pid, "with the same engine");

    until("the idle worker goes", || server.workers().is_empty().then_some(()));
    assert!(server.engines().is_empty(), "and its engine with it");
    work(&api);
    assert_ne!(only(server.workers()).pid, worker.pid, "a new one for new work");
}

#[test]
fn the_minimum_is_there_before_any_task_and_stays() {
    let faults = Faults::new();
    let server = Server::start(&format!(
        "[pools.local]\nmin = 1\nmax = 2\nidle_timeout_seconds = 0.3\ntarget_wait_seconds = 0.1\n{}",
        faults.model("fault", "estimate_seconds = 60")
    ));
    let api = server.api();
    until("the first worker", || (server.workers().len() == 1).then_some(()));
    let ids = hold(&api, 2);
    for id in &ids {
        api.wait_until_running(id);
    }
    assert_eq!(server.workers().len(), 2);
    faults.open_gate();
    for id in &ids {
        api.wait_for_success(id);
    }
    until("the second one goes", || (server.workers().len() == 1).then_some(()));
    let left = only(server.workers());
    work(&api);
    assert_eq!(faults.noted("done").last().map(|note| note.worker), Some(left.pid));
}

#[test]
fn there_are_never_more_than_the_maximum() {
    let faults = Faults::new();
    let server = Server::start(&format!(
        "[pools.local]\nmax = 2\ntarget_wait_seconds = 0.1\n{}",
        faults.model("fault", "estimate_seconds = 60")
    ));
    let api = server.api();
    let ids = hold(&api, 6);
    let running = || ids.iter().filter(|id| api.task(id).status == State::Running).count();
    until("two tasks run", || (running() == 2).then_some(()));
    assert_eq!(server.workers().len(), 2);
    faults.open_gate();
    for id in &ids {
        api.wait_for_success(id);
    }
    let workers: HashSet<_> = faults.noted("load").iter().map(|note| note.worker).collect();
    assert_eq!(workers.len(), 2);
}

#[test]
fn a_worker_that_is_killed_is_replaced() {
    let faults = Faults::new();
    let server = Server::start(&format!("[pools.local]\nmin = 1\n{}", faults.model("fault", "")));
    let first = until("a worker", || server.workers().pop());
    first.kill();
    let second = until("another worker", || server.workers().pop());
    assert_ne!(first.pid, second.pid);
    work(&server.api());
}

/// What an engine has started, such as the processes of other GPUs, holds the GPU's memory.
#[test]
fn what_an_engine_has_started_ends_with_its_worker_however_that_ends() {
    let faults = Faults::new();
    let script = r#"command = ["sh", "-c", "sleep 86400 <&- >&- 2>&- & exec \"$0\"", "#;
    let model = faults.model("fault", "").replace("command = [", script);
    let mut server = Server::start(&format!("[pools.local]\nmin = 1\n{model}"));
    let sleeper = |server: &Server| {
        work(&server.api());
        let sleeps = |process: &Process| process.words.first().is_some_and(|word| word == "sleep");
        until("what the engine has started", || server.processes().into_iter().find(sleeps))
    };
    let left = sleeper(&server);
    until("a worker", || server.workers().pop()).kill();
    assert!(left.wait(LONG), "it is ended by the server");

    let left = sleeper(&server);
    let worker = until("a worker", || server.workers().pop());
    server.kill();
    worker.kill();
    assert!(left.is_alive(), "nobody is there to end it");
    server.serve();
    assert!(left.wait(LONG), "it is ended by the next server");
}

#[test]
fn workers_that_die_before_they_ask_for_work_are_started_less_often_and_the_task_says_why() {
    let server = Server::start("");
    let api = server.api();
    // A worker needs a directory for its unfinished files.
    let scratch = server.home().join("scratch");
    std::fs::remove_dir(&scratch).expect("empty");
    std::fs::write(&scratch, "not a directory").expect("written");
    let id = api.submit(&json!({"prompt": "a fox", "size": "64x64", "frames": 1})).id;
    let task = api.wait_for(&id, "blocked", |task| task.waiting_reason.is_some());
    assert_eq!(task.status, State::Queued);
    let reason = task.waiting_reason.unwrap_or_default();
    assert!(reason.contains("scratch") && reason.contains("the next try is in"), "{reason}");

    std::fs::remove_file(&scratch).expect("removed");
    api.wait_for_success(&id);
}

#[test]
fn a_pool_that_starts_no_workers_says_so_until_one_comes() {
    let server = Server::start("[pools.local]\nmax = 0\n");
    let api = server.api();
    let id = api.submit(&json!({"prompt": "a fox", "size": "64x64", "frames": 1})).id;
    let task = api.wait_for(&id, "explained", |task| task.waiting_reason.is_some());
    let reason = task.waiting_reason.unwrap_or_default();
    assert!(reason.contains("`local`") && reason.contains("max = 0"), "{reason}");
}

#[test]
fn whoever_follows_a_task_hears_why_it_waits_without_a_terminal_too() {
    let server = Server::start("[pools.local]\nmax = 0\n");
    let generate = server.command(&["generate", "a fox", "-o", "fox.mp4"]);
    generate.wait_for_words("it waits: pool `local` starts no workers of its own (max = 0)");
    generate.kill();
}
