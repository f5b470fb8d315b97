//! What goes wrong at servers.

use super::*;

/// A generation that fails, and how.
fn failure(adapter: &'static str, act: Act, more: Value) -> (EngineError, Engine) {
    let mut engine = Engine::loaded(adapter, act, more);
    engine.generate("a", request());
    (engine.error("a"), engine)
}

#[test]
fn a_failed_job_is_told_in_the_servers_words() {
    for adapter in ["sglang", "vllm-omni", "lightx2v", "sd-server"] {
        let (error, mut engine) =
            failure(adapter, Act::faults("fail:the sampler exploded"), json!({}));
        assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true), "{adapter}");
        assert!(error.message.ends_with("failed to generate: the sampler exploded"), "{error:?}");
        // The same server takes the next one.
        engine.generate("b", request());
        engine.error("b");
        assert_eq!((engine.pids().len(), engine.overlaps()), (2, 0));
        engine.leave();
    }
}

#[test]
fn what_a_server_finds_wrong_with_a_request_is_not_tried_again() {
    let (error, _) = failure("vllm-omni", Act::faults("as-400,fail:12 frames at most"), json!({}));
    assert_eq!((error.code, error.retryable), (EngineErrorCode::InvalidRequest, false));
    for adapter in ["sglang", "vllm-omni", "lightx2v", "sd-server"] {
        let (error, _) = failure(adapter, Act::faults("refuse"), json!({}));
        assert_eq!((error.code, error.retryable), (EngineErrorCode::InvalidRequest, false));
        assert!(error.message.contains("multiple of 16"), "{error:?}");
    }
}

#[test]
fn memory_that_runs_out_is_reported_as_such() {
    for adapter in ["sglang", "vllm-omni", "lightx2v", "sd-server"] {
        let (error, _) = failure(adapter, Act::faults("fail:CUDA out of memory"), json!({}));
        assert_eq!((error.code, error.retryable), (EngineErrorCode::OutOfMemory, true));
    }
}

#[test]
fn a_server_that_dies_in_the_middle_is_started_again() {
    for adapter in ["sglang", "vllm-omni", "lightx2v"] {
        let act = Act { work: Some("1"), ..Act::faults("die-once") };
        let (error, mut engine) = failure(adapter, act, json!({}));
        assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true));
        assert!(error.message.contains("in the middle of the task"), "{error:?}");
        assert!(error.message.contains("signal: 9"), "{error:?}");
        let worker = engine.pids()[1];
        until(|| !is_alive(worker));
        engine.generate("b", request());
        engine.done("b");
        engine.leave();
    }
}

#[test]
fn a_server_that_dies_between_tasks_is_started_again() {
    let mut engine = Engine::loaded("sglang", Act::default(), json!({}));
    let server = engine.pids()[0].to_string();
    Command::new("kill").args(["-9", &server]).status().unwrap();
    until(|| !is_alive(engine.pids()[0]));
    engine.generate("a", request());
    engine.done("a");
    engine.leave();
}

#[test]
fn a_server_that_ends_while_it_loads_is_told_with_its_last_words() {
    let mut engine = Engine::start("sglang");
    engine.load(&engine.settings(Act::faults("exit-loading"), json!({})));
    let FromEngine::Error(error) = engine.hear() else { panic!() };
    // The GPU may be another's for a moment.
    assert_eq!((error.code, error.retryable), (EngineErrorCode::LoadFailed, true));
    assert!(error.message.contains("exit status: 3"), "{error:?}");
    assert!(error.message.contains("no CUDA device"), "{error:?}");
}

#[test]
fn a_server_that_is_never_ready_is_killed() {
    let mut engine = Engine::start("sglang");
    engine.load(&engine.settings(Act::faults("never-ready"), json!({"ready_seconds": 2})));
    let FromEngine::Error(error) = engine.hear() else { panic!() };
    assert_eq!((error.code, error.retryable), (EngineErrorCode::LoadFailed, true));
    assert!(error.message.contains("not ready after 2 s"), "{error:?}");
    assert!(error.message.contains("503"), "{error:?}");
    assert!(!engine.pids().iter().any(|pid| is_alive(*pid)));
    // Silence would be taken for a hang.
    assert!(engine.log().contains("not ready after 1 s: "), "{}", engine.log());
}

#[test]
fn a_server_that_is_away_may_come_back() {
    let mut engine = Engine::start("sglang");
    let url = format!("http://127.0.0.1:{}", free_port());
    engine.load(&json!({"adapter": "sglang", "url": url, "ready_seconds": 1}));
    let FromEngine::Error(error) = engine.hear() else { panic!() };
    assert_eq!((error.code, error.retryable), (EngineErrorCode::LoadFailed, true));
    assert!(error.message.contains("can't be reached"), "{error:?}");
}

#[test]
fn what_cannot_be_started_says_so() {
    for (run, expected) in [
        (json!(["/nonexistent/server", "{port}"]), "`/nonexistent/server` could not be started"),
        (json!(["python3", "{checkpoint}", "{port}"]), "says {checkpoint}, but the model has none"),
    ] {
        let mut engine = Engine::start("sglang");
        engine.load(&engine.settings(Act::default(), json!({ "run": run })));
        let FromEngine::Error(error) = engine.hear() else { panic!() };
        assert_eq!((error.code, error.retryable), (EngineErrorCode::LoadFailed, false));
        assert!(error.message.contains(expected), "{error:?}");
    }
}

#[test]
fn a_port_that_was_taken_meanwhile_is_no_disaster() {
    let engine = Engine::loaded("sglang", Act::faults("taken-once"), json!({}));
    assert_eq!(engine.pids().len(), 3);
    engine.leave();
}

#[test]
fn a_hung_server_is_killed() {
    let (error, engine) = failure("sglang", Act::faults("hang"), json!({"hung_seconds": 1}));
    assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true));
    assert!(error.message.contains("told nothing of the job for 1 s"), "{error:?}");
    let hung = &engine.pids()[..2];
    assert!(!hung.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn a_job_that_the_server_has_forgotten_is_tried_again() {
    for adapter in ["sglang", "vllm-omni", "lightx2v", "sd-server"] {
        let (error, _) = failure(adapter, Act::faults("vanish"), json!({}));
        assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true), "{adapter}");
        assert!(error.message.contains("does not know the job"), "{error:?}");
    }
}

#[test]
fn a_full_queue_is_waited_for() {
    let mut engine = Engine::loaded("lightx2v", Act::faults("busy-once"), json!({}));
    engine.generate("a", request());
    engine.done("a");
    assert_eq!(engine.submits().len(), 1);
    engine.leave();
}

#[test]
fn a_job_that_is_already_inside_under_its_name_has_been_taken() {
    let act = Act::faults("taken-as-busy-once");
    let mut engine = Engine::loaded("lightx2v", act, json!({"hung_seconds": 5}));
    engine.generate("a", request());
    engine.done("a");
    assert_eq!((engine.submits().len(), engine.pids().len()), (1, 2), "{}", engine.log());
    engine.leave();
}

#[test]
fn a_submit_that_may_have_been_heard_is_never_said_twice_to_the_same_server() {
    let act = Act::faults("drop-submit-once");
    let (error, mut engine) = failure("sglang", act, json!({}));
    assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true));
    assert_eq!(engine.submits().len(), 1);
    let first = engine.pids()[0];
    assert!(!is_alive(first), "the job that may be there is gone with its server");
    engine.generate("b", request());
    engine.done("b");
    assert_eq!(engine.overlaps(), 0);
    engine.leave();
}

#[test]
fn answers_that_make_no_sense_are_clear_errors() {
    for (faults, expected) in [
        ("not-json", "no JSON object: <html>the proxy is sorry"),
        ("huge", "longer than the"),
        ("redirect", "redirect (status 302)"),
        ("html", "is not video/mp4: it begins with `<html>not a video"),
        ("truncate", "could not be fetched"),
        ("chunked-truncate", "an MP4 file that is cut off"),
        ("cloud", "uploaded to cloud storage"),
    ] {
        let (error, _) = failure("sglang", Act::faults(faults), json!({"hung_seconds": 1}));
        assert_eq!(error.code, EngineErrorCode::Failed, "{faults}: {error:?}");
        assert!(error.message.contains(expected), "{faults}: {error:?}");
    }
}

#[test]
fn a_result_larger_than_allowed_is_not_kept() {
    let (error, engine) = failure("sglang", Act::default(), json!({"max_bytes": 100}));
    assert!(error.message.contains("100 bytes") && !error.retryable, "{error:?}");
    assert!(fs::metadata(engine.file("a", "video.mp4")).map_or(0, |file| file.len()) <= 100);

    // Nor one that comes inside an answer, which is longer by a third.
    let (error, _) = failure("sd-server", large(), json!({"max_bytes": 1_000_000}));
    assert!(error.message.contains("`max_bytes`") && !error.retryable, "{error:?}");
}

/// A result of 3 MB.
fn large() -> Act {
    static LARGE: [u8; 3_000_000] = [7; 3_000_000];
    Act { result: Some(&LARGE), ..Act::default() }
}

#[test]
fn a_file_inside_an_answer_may_take_its_time() {
    // Longer than a server may be silent.
    let act = Act { faults: "drip", ..large() };
    let (error, _) = failure("sd-server", act, json!({"hung_seconds": 1}));
    assert!(error.message.contains("is no AVI file"), "it has arrived: {error:?}");
}

#[test]
fn content_that_comes_slowly_or_breaks_off_once_arrives_whole() {
    for faults in ["slow", "truncate-once", "odd-progress"] {
        let mut engine = Engine::loaded("sglang", Act::faults(faults), json!({}));
        engine.generate("a", request());
        let (steps, end) = engine.hear_out("a");
        assert!(matches!(end, FromEngine::Done(_)), "{faults}: {end:?}");
        assert_eq!(fs::read(engine.file("a", "video.mp4")).unwrap(), video(), "{faults}");
        assert!(steps.iter().all(|(_, step, all)| step <= all));
        engine.leave();
    }
}

#[test]
fn a_job_outlives_odd_answers_that_pass() {
    for odd in
        ["502 <html>bad gateway", "200 <html>the proxy is sorry", "500 {}", "403 {}", "400 {}"]
    {
        let mut engine = Engine::loaded("sglang", Act::gate(), json!({}));
        engine.generate("a", request());
        engine.hear_progress("denoise");
        let file = engine.state.path().join("odd");
        fs::write(&file, odd).unwrap();
        until(|| lines(engine.state.path(), "odd-asked").len() >= 5);
        fs::remove_file(file).unwrap();
        engine.go();
        engine.done("a");
        assert_eq!((engine.submits().len(), engine.pids().len()), (1, 2), "{}", engine.log());
        engine.leave();
    }
}

#[test]
fn an_answer_that_never_comes_to_its_end_is_none() {
    let more = json!({"hung_seconds": 1});
    let (error, _) = failure("sglang", Act::faults("drip-poll"), more);
    assert!(error.message.contains("told nothing of the job for 1 s"), "{error:?}");
}

#[test]
fn a_submit_that_fails_inside_the_server_may_have_left_a_job_there() {
    let act = Act { faults: "taken-as-500-once", ..Act::gate() };
    let (error, mut engine) = failure("sglang", act, json!({}));
    assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true));
    assert!(!is_alive(engine.pids()[0]), "the job that may be there is gone with its server");
    engine.generate("b", request());
    engine.hear_progress("denoise");
    engine.go();
    engine.done("b");
    assert_eq!(engine.overlaps(), 0);
    engine.leave();

    // With a name that is known, the job can be waited for.
    let (error, mut engine) = failure("lightx2v", act, json!({}));
    assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true));
    engine.generate("b", request());
    engine.hear_progress("wait");
    engine.go();
    engine.done("b");
    assert_eq!((engine.pids().len(), engine.overlaps()), (2, 0), "{}", engine.log());
    engine.leave();
}

#[test]
fn a_server_that_is_sick_but_alive_is_started_again() {
    // The accelerator is lost when a job comes, or in the middle of one.
    for (adapter, faults) in
        [("sglang", "sick-once"), ("lightx2v", "sick-once"), ("sglang", "doom-once")]
    {
        let (error, mut engine) = failure(adapter, Act::faults(faults), json!({}));
        assert_eq!((error.code, error.retryable), (EngineErrorCode::Failed, true));
        assert!(error.message.contains("CUDA error"), "{error:?}");
        engine.generate("b", request());
        engine.done("b");
        assert_eq!(engine.pids().len(), 4, "{adapter}, {faults}: {}", engine.log());
        engine.leave();
    }
}

#[test]
fn a_sick_server_of_somebody_else_is_waited_for() {
    for faults in ["sick-once", "doom-once"] {
        let (mut engine, _standin) = Engine::at_url("sglang", Act::faults(faults), json!({}));
        engine.generate("a", request());
        assert!(engine.error("a").retryable);
        engine.generate("b", request());
        engine.hear_progress("start");
        if faults == "sick-once" {
            // Its submits would fail still.
            assert!(engine.submits().is_empty());
            engine.cancel("b");
            engine.cancelled("b");
            continue;
        }
        fs::write(engine.state.path().join("mended"), "").unwrap();
        engine.done("b");
    }
}

#[test]
fn a_server_of_somebody_else_that_starts_again_is_waited_for() {
    // Longer than it may hang.
    let waits = |engine: &Engine| {
        engine.hear_progress("start");
        until(|| engine.log().matches("not ready after").count() >= 2);
    };
    let more = json!({"hung_seconds": 1});
    let (mut engine, standin) = Engine::at_url("sglang", Act::default(), more.clone());
    engine.generate("a", request());
    engine.done("a");
    let port = standin.port;
    drop(standin);
    engine.generate("b", request());
    waits(&engine);
    let _standin = Standin::start_at(port, "sglang", Act::default(), engine.state.path());
    engine.done("b");

    // With a job inside, which is lost.
    let (mut engine, standin) = Engine::at_url("sglang", Act::endless(), more);
    engine.generate("a", request());
    engine.hear_progress("denoise");
    let port = standin.port;
    drop(standin);
    assert!(engine.error("a").retryable);
    engine.generate("b", request());
    waits(&engine);
    let _standin = Standin::start_at(port, "sglang", Act::default(), engine.state.path());
    engine.done("b");
}

#[test]
#[cfg(target_os = "linux")]
fn somebody_else_at_the_port_is_not_taken_for_the_server() {
    let mut engine = Engine::start("sglang");
    engine.load(&engine.settings(Act::faults("late"), json!({})));
    until(|| !lines(engine.state.path(), "port").is_empty());
    let port = lines(engine.state.path(), "port")[0].parse().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Standin::start_at(port, "sglang", Act::default(), elsewhere.path());
    until(|| engine.log().contains("a process that does not descend"));
    drop(foreign);
    fs::write(engine.state.path().join("listen"), "").unwrap();
    engine.expect_ready();
    engine.generate("a", request());
    engine.done("a");
    assert_eq!(engine.submits().len(), 1);
    engine.leave();
}
