//! A job that is left inside a server that nobody can kill: the next task, of whichever engine, comes
//! after it, and is not stopped by it for ever.

use std::net::TcpStream;

use super::*;

/// What an engine has written down for the next one.
fn notes(engine: &Engine) -> Vec<PathBuf> {
    let notes = fs::read_dir(engine.state.path().join("keep"));
    notes.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// An engine, and a server with a cancelled job inside.
fn with_a_job_inside(adapter: &'static str, act: Act, more: Value) -> (Engine, Standin) {
    let (mut engine, standin) = Engine::at_url(adapter, act, more);
    engine.generate("a", request());
    engine.hear_progress("denoise");
    engine.cancel("a");
    engine.cancelled("a");
    (engine, standin)
}

/// The next task waits, and goes in alone.
fn expect_a_wait(mut engine: Engine) {
    engine.generate("b", request());
    engine.hear_progress("wait");
    engine.go();
    engine.done("b");
    assert_eq!((engine.submits().len(), engine.overlaps()), (2, 0), "{}", engine.log());
    assert!(notes(&engine).is_empty(), "what has ended is not remembered");
}

#[test]
fn the_next_engine_knows_of_it() {
    for adapter in ["sglang", "vllm-omni", "lightx2v"] {
        let (engine, _standin) = with_a_job_inside(adapter, Act::gate(), json!({}));
        expect_a_wait(engine.leaves());
    }
    let (engine, _standin) = with_a_job_inside("sglang", Act::gate(), json!({}));
    expect_a_wait(engine.killed());
}

#[test]
fn an_engine_that_is_killed_in_mid_task_leaves_word() {
    let (mut engine, _standin) = Engine::at_url("sglang", Act::gate(), json!({}));
    engine.generate("a", request());
    engine.hear_progress("denoise");
    expect_a_wait(engine.killed());
}

#[test]
fn a_job_with_a_name_of_ours_is_known_before_it_is_handed_in() {
    let act = Act { faults: "hang-submit-once", ..Act::gate() };
    let (mut engine, _standin) = Engine::at_url("lightx2v", act, json!({}));
    engine.generate("a", request());
    until(|| engine.submits().len() == 1);
    expect_a_wait(engine.killed());
}

#[test]
fn a_job_whose_name_was_never_told_is_at_least_owned_up_to() {
    let act = Act { faults: "hang-submit-once", ..Act::gate() };
    let (mut engine, _standin) = Engine::at_url("sglang", act, json!({}));
    engine.generate("a", request());
    until(|| engine.submits().len() == 1);
    let mut engine = engine.killed();
    let log = engine.log();
    assert!(log.contains("nobody knows its name"), "{log}");
    engine.generate("b", request());
    engine.hear_progress("denoise");
}

#[test]
fn a_submit_whose_answer_is_lost_may_have_left_a_job() {
    let act = Act { faults: "drop-submit-once", ..Act::gate() };
    let (mut engine, _standin) = Engine::at_url("lightx2v", act, json!({}));
    engine.generate("a", request());
    let error = engine.error("a");
    assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true));
    expect_a_wait(engine);
}

#[test]
fn a_note_that_makes_no_sense_is_thrown_away() {
    for nonsense in ["", "{}", "[1", &"x".repeat(1 << 20)] {
        let (engine, _standin) = with_a_job_inside("sglang", Act::gate(), json!({}));
        let note = &notes(&engine)[0];
        fs::write(note, nonsense).unwrap();
        let mut engine = engine.killed();
        assert!(engine.log().contains("makes no sense"), "{}", engine.log());
        assert!(notes(&engine).is_empty());
        engine.generate("b", request());
        engine.hear_progress("denoise");
    }
    // Nor one that leads elsewhere.
    let (engine, _standin) = with_a_job_inside("sglang", Act::gate(), json!({}));
    let note = &notes(&engine)[0];
    let bent = fs::read_to_string(note).unwrap().replace("-0000-4000-", "/../../");
    fs::write(note, bent).unwrap();
    assert!(engine.killed().log().contains("makes no sense"));
}

#[test]
fn a_job_that_the_server_does_not_know_has_ended() {
    let (mut engine, _standin) = with_a_job_inside("sglang", Act::endless(), json!({}));
    fs::write(engine.state.path().join("odd"), "404 {}").unwrap();
    engine.generate("b", request());
    engine.hear_progress("denoise");
    assert_eq!(engine.submits().len(), 2);
}

#[test]
fn a_job_of_which_only_nonsense_is_told_is_given_up() {
    for odd in ["200 {\"status\": \"exploded\"}", "200 <html>", "401 {}", "302 ", "500 ", "hang"] {
        let more = json!({"hung_seconds": 1});
        let (mut engine, _standin) = with_a_job_inside("sglang", Act::gate(), more);
        fs::write(engine.state.path().join("odd"), odd).unwrap();
        engine.generate("b", request());
        engine.hear_progress("wait");
        engine.hear_progress("denoise");
        engine.go();
        engine.done("b");
        let log = engine.log();
        assert!(log.contains("the earlier job is given up"), "{odd}: {log}");
        assert!(notes(&engine).is_empty());
    }
}

#[test]
fn a_server_that_is_away_is_no_reason_to_forget_its_job() {
    let more = json!({"hung_seconds": 1, "ready_seconds": 1});
    let (mut engine, standin) = with_a_job_inside("sglang", Act::endless(), more);
    let port = standin.port;
    drop(standin);
    for id in ["b", "c"] {
        engine.generate(id, request());
        let error = engine.error(id);
        assert_eq!((error.code, error.retryable), (EngineErrorCode::LoadFailed, true));
        assert!(error.message.contains("not ready after 1 s"), "{error:?}");
    }
    assert!(engine.log().contains("an earlier job, which may still run"), "{}", engine.log());
    assert_eq!(notes(&engine).len(), 1);
    // It comes back, and knows no job.
    let _standin = Standin::start_at(port, "sglang", Act::default(), engine.state.path());
    engine.generate("d", request());
    engine.done("d");
}

#[test]
fn a_job_that_does_not_end_is_given_up() {
    let more = json!({"wait_seconds": 1});
    let (mut engine, _standin) = with_a_job_inside("sglang", Act::endless(), more);
    engine.generate("b", request());
    // The wait has taken of the time that the task may run.
    let error = engine.error("b");
    assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true));
    assert!(error.message.contains("was at an earlier job"), "{error:?}");
    assert!(engine.log().contains("the earlier job is given up"), "{}", engine.log());
    engine.generate("c", request());
    engine.hear_progress("denoise");
    assert_eq!(engine.submits().len(), 2);
}

#[test]
fn the_next_engine_waits_no_longer_than_what_is_left() {
    let (mut engine, _standin) = with_a_job_inside("sglang", Act::endless(), json!({}));
    engine.generate("b", request());
    engine.hear_progress("wait");
    // As if that had been long ago.
    let note = &notes(&engine)[0];
    let mut noted: Value = serde_json::from_slice(&fs::read(note).unwrap()).unwrap();
    let begun = noted["awaited"].as_u64().expect("it is written down that a task waits");
    noted["awaited"] = json!(begun - 10_000);
    fs::write(note, noted.to_string()).unwrap();
    let mut engine = engine.killed();
    engine.generate("c", request());
    assert!(engine.error("c").message.contains("has not ended for 1800 s"), "{}", engine.log());
}

#[test]
fn a_server_that_only_says_that_it_has_stopped_a_job_is_not_believed() {
    let act = Act { faults: "undead", ..Act::gate() };
    let (engine, _standin) = with_a_job_inside("vllm-omni", act, json!({"cancel": "ask"}));
    expect_a_wait(engine);
}

/// Has somebody else stop the newest job at LightX2V.
fn stopped_by_another(engine: &Engine, standin: &Standin) {
    let submits = engine.submits();
    let job = submits.last().unwrap()["task_id"].as_str().unwrap();
    let mut server = TcpStream::connect(("127.0.0.1", standin.port)).unwrap();
    write!(server, "DELETE /v1/tasks/{job} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    server.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("success"), "{answer}");
}

#[test]
fn a_job_that_is_called_cancelled_while_the_server_is_at_it_has_not_ended() {
    let (mut engine, standin) = with_a_job_inside("lightx2v", Act::gate(), json!({}));
    stopped_by_another(&engine, &standin);
    engine.generate("b", request());
    until(|| !lines(engine.state.path(), "queue-asked").is_empty());
    engine.go();
    engine.done("b");
    assert_eq!((engine.submits().len(), engine.overlaps()), (2, 0), "{}", engine.log());

    // Nor has the task's own, which is completed at its end like any other.
    let (mut engine, standin) = Engine::at_url("lightx2v", Act::gate(), json!({}));
    engine.generate("a", request());
    engine.hear_progress("denoise");
    stopped_by_another(&engine, &standin);
    until(|| !lines(engine.state.path(), "queue-asked").is_empty());
    engine.go();
    engine.done("a");
}

#[test]
fn a_cancelled_job_that_the_server_is_not_at_has_ended() {
    let act = Act { faults: "never-begun", ..Act::gate() };
    let (mut engine, standin) = with_a_job_inside("lightx2v", act, json!({}));
    stopped_by_another(&engine, &standin);
    engine.generate("b", request());
    engine.hear_progress("denoise");
    assert_eq!(engine.submits().len(), 2);
}
