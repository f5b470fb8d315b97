//! A job that nobody wants any more, at each kind of server.

use std::time::Instant;

use super::*;

const ALL: [&str; 4] = ["sglang", "vllm-omni", "lightx2v", "sd-server"];

#[test]
fn a_server_of_ours_is_killed_with_its_workers_and_started_again() {
    for adapter in ALL {
        let mut engine = Engine::loaded(adapter, Act::endless(), json!({}));
        engine.generate("a", request());
        engine.hear_progress("denoise");
        let pids = engine.pids();
        assert_eq!(pids.len(), 2);
        let asked = Instant::now();
        engine.cancel("a");
        engine.cancelled("a");
        let took = asked.elapsed();
        for pid in &pids {
            assert!(!is_alive(*pid), "{adapter}: {pid} is gone when the cancel is answered");
        }
        assert!(took < Duration::from_secs(5), "{adapter}: {took:?}");
        assert!(engine.log().contains("killed and started again"), "{}", engine.log());

        // The next task finds a new server, and ends.
        until(|| engine.pids().len() == 4);
        engine.generate("b", request());
        engine.hear_progress("denoise");
        assert_eq!(engine.submits().len(), 2, "{adapter}");
        engine.cancel("b");
        engine.cancelled("b");
        engine.leave();
    }
}

#[test]
fn a_worker_that_only_looks_dead_is_killed_as_well() {
    let act = Act { faults: "headless", ..Act::endless() };
    let mut engine = Engine::loaded("sglang", act, json!({}));
    engine.generate("a", request());
    engine.hear_progress("denoise");
    let worker = engine.pids()[1];
    until(|| !is_alive(worker));
    engine.cancel("a");
    engine.cancelled("a");
    assert!(!is_there(worker), "it is neither running nor unburied");
    engine.leave();
}

#[test]
fn whoever_ends_while_the_server_lives_is_buried() {
    let engine = Engine::loaded("sglang", Act::faults("orphan"), json!({}));
    let orphans = lines(engine.state.path(), "orphans");
    assert_eq!(orphans.len(), 1);
    until(|| !is_there(orphans[0].parse().unwrap()));
    engine.leave();
}

#[test]
fn a_server_that_can_is_asked_and_lives_on() {
    for faults in ["", "cancelling"] {
        let act = Act { faults, ..Act::endless() };
        let mut engine = Engine::loaded("vllm-omni", act, json!({"cancel": "ask"}));
        engine.generate("a", request());
        engine.hear_progress("denoise");
        engine.cancel("a");
        engine.cancelled("a");
        assert_eq!(engine.deleted(), 1);
        engine.generate("b", request());
        engine.hear_progress("denoise");
        assert_eq!((engine.pids().len(), engine.overlaps()), (2, 0), "{}", engine.log());
        engine.cancel("b");
        engine.cancelled("b");
        engine.leave();
    }
}

#[test]
fn at_a_server_that_cannot_be_killed_the_next_task_waits_for_the_job_before() {
    for adapter in ["sglang", "lightx2v"] {
        let (mut engine, _standin) = Engine::at_url(adapter, Act::gate(), json!({}));
        engine.generate("a", request());
        engine.hear_progress("denoise");
        engine.cancel("a");
        engine.cancelled("a");
        engine.generate("b", request());
        engine.hear_progress("wait");
        engine.go();
        engine.done("b");
        assert_eq!((engine.submits().len(), engine.overlaps()), (2, 0), "{adapter}");
    }
}

#[test]
fn a_task_that_waits_for_the_job_before_can_be_cancelled() {
    let (mut engine, _standin) = Engine::at_url("sglang", Act::endless(), json!({}));
    engine.generate("a", request());
    engine.hear_progress("denoise");
    engine.cancel("a");
    engine.cancelled("a");
    for id in ["b", "c"] {
        engine.generate(id, request());
        engine.hear_progress("wait");
        engine.cancel(id);
        engine.cancelled(id);
    }
    assert_eq!(engine.submits().len(), 1);
}

#[test]
fn whoever_hangs_up_leaves_nothing_running() {
    let mut engine = Engine::loaded("sglang", Act::endless(), json!({}));
    engine.generate("a", request());
    engine.hear_progress("denoise");
    engine.stdin = None;
    engine.expect_gone();

    // Also in the middle of loading.
    let mut engine = Engine::start("sglang");
    engine.load(&engine.settings(Act::faults("never-ready"), json!({})));
    until(|| engine.pids().len() == 2);
    engine.stdin = None;
    engine.expect_gone();
}

#[test]
fn an_engine_that_is_killed_takes_its_server_along() {
    let mut engine = Engine::loaded("sglang", Act::default(), json!({}));
    let server = engine.pids()[0];
    engine.process.kill().unwrap();
    until(|| !is_alive(server));
    // Its worker, in a session of its own, is the duty of whoever kills an engine.
    let worker = engine.pids()[1].to_string();
    Command::new("kill").arg("-9").arg(worker).status().unwrap();
}
