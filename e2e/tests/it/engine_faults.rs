//! Each way in which an engine can fail becomes a typed failure with the engine's last lines, and
//! the next task gets a fresh engine.

use rayreel_domain::Code;
use rayreel_domain::task::{Outcome, State};
use serde_json::json;

use crate::rig::{Faults, LONG, Process, Server, only, until};

const ONE_TRY: &str = "[retry]\nmax_failures = 1\n";

/// How an engine fails, how that is told, and what of its last words must be there.
const FAULTS: &[(&str, Code, &str)] = &[
    ("crash", Code::EngineCrashed, "CUDA error: an illegal memory access"),
    ("leave", Code::EngineCrashed, "leaving without a word"),
    ("garbage", Code::EngineProtocol, "about to print to the wrong stream"),
    ("babble", Code::EngineProtocol, "about to print a line without end"),
    ("silence", Code::EngineSilent, "deep in thought"),
    ("memory", Code::OutOfMemory, "tried to allocate 81 GiB"),
    ("fail", Code::EngineFailed, ""),
    ("refuse", Code::EngineRefused, ""),
    ("escape", Code::OutputInvalid, ""),
    ("link", Code::OutputInvalid, ""),
    ("missing", Code::OutputInvalid, ""),
];

#[test]
fn each_fault_of_an_engine_is_told_by_its_code_with_the_engines_last_lines() {
    let faults = Faults::new();
    let server =
        Server::start(&format!("{ONE_TRY}{}", faults.model("fault", "silence_seconds = 0.5")));
    let api = server.api();
    for (prompt, code, words) in FAULTS {
        let id = api.submit(&json!({"model": "fault", "prompt": prompt})).id;
        let task = api.wait_for_end(&id);
        assert_eq!(task.status, State::Failed, "{prompt}: {task:#?}");
        assert_eq!(task.error.as_ref().map(|error| error.code), Some(*code), "{prompt}: {task:#?}");
        let attempt = only(task.attempts);
        assert_eq!(attempt.outcome, Some(Outcome::Failed), "{prompt}");
        let error = attempt.error.expect("it failed");
        assert_eq!(error.code, *code, "{prompt}");
        let detail = error.detail.unwrap_or_default();
        assert!(detail.contains(words), "{prompt}: {detail:?}");

        // The worker lives on, and so does the engine, or there is a new one.
        let id = api.submit(&json!({"model": "fault", "prompt": "fine"})).id;
        api.wait_for_success(&id);
    }
    assert_eq!(server.workers().len(), 1);
    let workers: std::collections::HashSet<_> =
        faults.journal().into_iter().map(|note| note.worker).collect();
    assert_eq!(workers.len(), 1, "one worker has done it all");
    // Beneath the scratch directory, where it is removed, and not beside it.
    assert!(!server.home().join("scratch/escaped.mp4").exists());
}

#[test]
fn an_engine_that_can_not_load_its_model_is_told_as_that() {
    let faults = Faults::new();
    let server = Server::start(&format!(
        "{ONE_TRY}{}{}{}",
        faults.model_with("torn", "", "load = \"crash\""),
        faults.model_with("empty", "", "load = \"fail\""),
        "[models.absent]\ncommand = [\"/nonexistent/engine\"]\n",
    ));
    let api = server.api();
    for (model, words) in [
        ("torn", "the weights are torn"),
        ("empty", "no weights"),
        ("absent", "/nonexistent/engine"),
    ] {
        let id = api.submit(&json!({"model": model, "prompt": "a fox"})).id;
        let task = api.wait_for_end(&id);
        let error = task.error.expect("it failed");
        assert_eq!(error.code, Code::EngineLoadFailed, "{model}: {error:?}");
        let said = format!("{} {}", error.message, error.detail.unwrap_or_default());
        assert!(said.contains(words), "{model}: {said}");
    }
}

#[test]
fn a_failure_that_may_pass_is_tried_again_with_a_pause_and_every_attempt_stays_readable() {
    let faults = Faults::new();
    let server = Server::start(&format!(
        "[retry]\nmax_failures = 3\nbackoff_seconds = 0.2\n{}",
        faults.model("fault", "")
    ));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "fail"})).id;
    let task = api.wait_for_end(&id);
    assert_eq!(task.status, State::Failed);
    assert_eq!(task.attempts.len(), 3);
    for attempt in task.attempts {
        assert_eq!(attempt.outcome, Some(Outcome::Failed));
        assert_eq!(attempt.error.map(|error| error.code), Some(Code::EngineFailed));
    }
    // A request that can never succeed is tried once.
    let id = api.submit(&json!({"model": "fault", "prompt": "refuse"})).id;
    only(api.wait_for_end(&id).attempts);
}

#[test]
fn an_attempt_that_takes_too_long_is_stopped() {
    let faults = Faults::new();
    let server =
        Server::start(&format!("max_run_seconds = 0.5\n{ONE_TRY}{}", faults.model("fault", "")));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    let task = api.wait_for_end(&id);
    assert_eq!(task.error.map(|error| error.code), Some(Code::MaxRunExceeded));
    assert_eq!(faults.noted("cancel").len(), 1, "the engine was asked to stop");
}

#[test]
fn an_engine_that_is_killed_from_outside_is_replaced_and_the_task_tried_again() {
    let faults = Faults::new();
    let server =
        Server::start(&format!("[retry]\nbackoff_seconds = 0.05\n{}", faults.model("fault", "")));
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    api.wait_until_running(&id);
    let first = until("its engine works", || faults.noted("step").first().cloned());
    let engine = server.engines().into_iter().find(|engine| engine.pid == first.pid);
    engine.expect("the engine runs").kill();
    faults.open_gate();
    let task = api.wait_for_success(&id);
    let error = task.attempts[0].error.as_ref().expect("the first attempt failed");
    assert_eq!(error.code, Code::EngineCrashed);
    assert!(error.message.contains("signal 9"), "{error:?}");
    assert_eq!(task.attempts.len(), 2);
    assert_eq!(task.attempts[0].worker, task.attempts[1].worker);
}

#[test]
fn an_engine_that_hears_nothing_dies_with_its_worker() {
    let faults = Faults::new();
    let server = Server::start(&faults.model_with("fault", "", "deaf = true"));
    server.api().submit(&json!({"model": "fault", "prompt": "silence"}));
    let note = until("its engine works", || faults.noted("generate").first().cloned());
    let engine = Process::find(note.pid).expect("the engine runs");
    Process::find(note.worker).expect("its worker runs").kill();
    assert!(engine.wait(LONG), "the engine has outlived its worker");
}

/// Leaves a process that no group, session, parent or variable ties to it any more, and is killed.
const DAEMON: &str = r#"
import json, os, pathlib, signal, subprocess, sys
here = pathlib.Path(__file__).parent
sys.stdin.readline()
print(json.dumps(dict(type="ready", protocol=1, engine="daemon", version="1")), flush=True)
sys.stdin.readline()
far = subprocess.run(
    ["setsid", "env", "-i", "/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"],
    stdout=subprocess.PIPE, check=True,
)
(here / "far-").write_bytes(far.stdout)
(here / "far-").rename(here / "far")
(here / "gate").open().read()
os.kill(os.getpid(), signal.SIGKILL)
"#;

#[test]
fn a_killed_engine_takes_its_daemons_along_though_they_have_dropped_all_ties() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("engine.py"), DAEMON).expect("written");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        path("gate"),
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .expect("made");
    let engine = path("engine.py");
    let server =
        Server::start(&format!("{ONE_TRY}[models.daemon]\ncommand = [\"python3\", {engine:?}]\n"));
    let api = server.api();
    let id = api.submit(&json!({"model": "daemon", "prompt": "a fox"})).id;
    let far = until("the daemon runs", || std::fs::read_to_string(path("far")).ok());
    let far = Process::find(far.trim().parse().expect("a process id")).expect("it runs");
    std::fs::write(path("gate"), "").expect("opened");
    let error = api.wait_for_end(&id).error.expect("it failed");
    assert_eq!(error.code, Code::EngineCrashed);
    assert!(!far.is_alive(), "before its task is told to have failed");
    assert_eq!(server.workers().len(), 1, "the worker lives on");
}
