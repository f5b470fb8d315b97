//! The engine `command`: a program of the operator's own, behind the server.

use std::fs;
use std::path::PathBuf;

use rayreel_domain::Code;
use rayreel_domain::task::Outcome;
use serde_json::json;
use tempfile::TempDir;

use crate::rig::{Process, Server, only, until};

/// Says on a progress bar how far it is, and does what the prompt asks for; it holds a task only once.
const PROGRAM: &str = r#"
import os, pathlib, subprocess, sys, time
here = pathlib.Path(__file__).parent
prompt = sys.argv[1].removeprefix("--prompt=")

def note(name, text):
    (here / (name + "-")).write_text(str(text))
    (here / (name + "-")).rename(here / name)

sys.stderr.write("\r  0%|    | 0/2 [00:00<?]\r 50%|##  | 1/2 [00:01<?]")
sys.stderr.flush()
if prompt == "hold" and not (here / "far").exists():
    far = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    note("program", os.getpid())
    note("far", far.pid)
    time.sleep(1000)
if prompt == "break":
    sys.exit("\nCUDA error: device-side assert triggered")
pathlib.Path(os.environ["RAYREEL_OUTPUT"]).write_bytes(b"\0\0\0\x18ftypisom" + os.fsencode(prompt))
"#;

/// A model `own` with that program.
struct Own {
    directory: TempDir,
}

impl Own {
    fn new() -> Own {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("program.py"), PROGRAM).expect("written");
        Own { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn model(&self) -> String {
        let program = self.path("program.py");
        format!(
            "[models.own]\nengine = \"command\"\n\
             [models.own.settings]\n\
             run = [\"python3\", {program:?}, \"--prompt={{prompt}}\"]\n\
             progress = '(?P<step>\\d+)/(?P<steps>\\d+) \\['\n\
             stop_seconds = 1\n\
             [models.own.defaults]\nsize = \"64x64\"\nframes = 1\nsteps = 2\n"
        )
    }

    /// A process that the program has written down.
    fn noted(&self, name: &str) -> Process {
        let path = self.path(name);
        let text = until("the program works", || fs::read_to_string(&path).ok());
        Process::find(text.parse().expect("a process id")).expect("it runs")
    }
}

#[test]
fn what_a_program_writes_is_delivered_whatever_the_prompt() {
    let own = Own::new();
    let server = Server::start(&own.model());
    let api = server.api();
    for prompt in ["--help", "a fox\n\"in\" the 'snow' $(reboot) \\"] {
        let id = api.submit(&json!({"model": "own", "prompt": prompt})).id;
        let task = api.wait_for_success(&id);
        assert!(!task.result.expect("a result").test_pattern);
        let content = api.content(&id);
        assert_eq!(&content[12..], prompt.as_bytes());
        let attempt = only(task.attempts);
        assert!(attempt.metrics["run_ms"] > 0.0, "{attempt:?}");
    }
}

#[test]
fn a_program_that_fails_is_told_with_its_last_lines() {
    let own = Own::new();
    let server = Server::start(&format!("[retry]\nmax_failures = 1\n{}", own.model()));
    let api = server.api();
    let id = api.submit(&json!({"model": "own", "prompt": "break"})).id;
    let error = api.wait_for_end(&id).error.expect("it failed");
    assert_eq!(
        (error.code, &*error.message),
        (Code::EngineFailed, "the program exited with status 1")
    );
    let detail = error.detail.expect("the last lines");
    assert!(detail.ends_with("CUDA error: device-side assert triggered"), "{detail:?}");
    assert!(detail.contains(" 50%|##  | 1/2"), "{detail:?}");
}

#[test]
fn a_cancel_ends_the_program_with_all_that_it_has_started_and_the_engine_stays() {
    let own = Own::new();
    let server = Server::start(&own.model());
    let api = server.api();
    let id = api.submit(&json!({"model": "own", "prompt": "hold"})).id;
    let (program, far) = (own.noted("program"), own.noted("far"));
    let task = api.wait_for(&id, "at its first step", |task| {
        task.stage.as_ref().is_some_and(|stage| (&*stage.stage, stage.step) == ("denoise", 1))
    });
    assert_eq!(task.progress, 46);
    let engines = || server.engines().iter().map(|engine| engine.pid).collect::<Vec<_>>();
    let before = engines();
    assert!(api.cancel(&id).cancelled);
    until("nothing of it runs", || (!program.is_alive() && !far.is_alive()).then_some(()));

    let next = api.submit(&json!({"model": "own", "prompt": "fine"})).id;
    api.wait_for_success(&next);
    assert_eq!(engines(), before, "the engine has obeyed");
    assert_eq!(only(api.task(&id).attempts).outcome, Some(Outcome::Cancelled));
}

#[test]
fn a_worker_that_is_killed_takes_the_program_with_it_and_another_does_the_task() {
    let own = Own::new();
    let server = Server::start(&own.model());
    let api = server.api();
    let id = api.submit(&json!({"model": "own", "prompt": "hold"})).id;
    let (program, far) = (own.noted("program"), own.noted("far"));
    only(server.workers()).signal(rustix::process::Signal::KILL);
    until("nothing of it runs", || (!program.is_alive() && !far.is_alive()).then_some(()));
    assert_eq!(api.wait_for_success(&id).attempts.len(), 2);
}
