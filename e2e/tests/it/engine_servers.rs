//! The engine `server`: somebody else's engine server, behind this one.
//!
//! The servers are the stand-ins of `crates/bridge/tests/it/server/standin.py`, which speak what the
//! real ones speak.

use std::fs;
use std::path::PathBuf;

use rayreel_domain::Code;
use rayreel_domain::task::Outcome;
use serde_json::json;
use tempfile::TempDir;

use crate::rig::{Process, Server, only, until};

const STANDIN: &str = include_str!("../../../crates/bridge/tests/it/server/standin.py");

/// A model `served` at a stand-in.
struct Served {
    state: TempDir,
    adapter: &'static str,
}

impl Served {
    fn new(adapter: &'static str) -> Served {
        let state = tempfile::tempdir().expect("a directory");
        fs::write(state.path().join("standin.py"), STANDIN).expect("written");
        Served { state, adapter }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    fn model(&self, faults: &str, work: &str) -> String {
        let (adapter, state) = (self.adapter, self.state.path());
        let (program, result) = (self.path("standin.py"), self.path("result"));
        format!(
            "[models.served]\nengine = \"server\"\n\
             [models.served.settings]\nadapter = \"{adapter}\"\n\
             run = [\"python3\", {program:?}, \"{adapter}\", \"{{port}}\", {state:?}]\n\
             [models.served.settings.environment]\n\
             FAULT = \"{faults}\"\nWORK = \"{work}\"\nRESULT = {result:?}\n\
             [models.served.defaults]\nsize = \"64x64\"\nframes = 5\nsteps = 2\n"
        )
    }

    /// The processes of the first `count` servers and their workers.
    fn processes(&self, count: usize) -> Vec<Process> {
        let read = || fs::read_to_string(self.path("pids")).ok();
        let pids = until("the server runs", || read().filter(|pids| pids.lines().count() >= count));
        let pids = pids.lines().take(count).map(|pid| pid.parse().expect("a process id"));
        // A process that was just started has no command line yet.
        pids.map(|pid| until("it runs", || Process::find(pid))).collect()
    }

    fn submits(&self) -> usize {
        fs::read_to_string(self.path("submits")).map_or(0, |submits| submits.lines().count())
    }
}

#[test]
fn a_video_is_delivered_also_when_its_server_dies_in_the_middle() {
    let served = Served::new("vllm-omni");
    let server = Server::start(&served.model("die-once", "0.5"));
    let api = server.api();
    // What the stand-in makes: a video of the test card.
    let card = api
        .submit(
            &json!({"model": "testcard", "prompt": "a", "size": "64x64", "frames": 5, "steps": 1}),
        )
        .id;
    api.wait_for_success(&card);
    let video = api.content(&card);
    fs::write(served.path("result"), &video).expect("written");

    let id = api.submit(&json!({"model": "served", "prompt": "--help\n\"fox\""})).id;
    let task = api.wait_for_success(&id);
    assert_eq!(api.content(&id), video);
    let result = task.result.expect("a result");
    assert_eq!((result.width, result.height, result.frames), (64, 64, 5));
    assert!(!result.test_pattern);

    let outcomes: Vec<_> = task.attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes.len(), 2, "{:?}", task.attempts);
    assert_eq!(outcomes.last(), Some(&Some(Outcome::Succeeded)));
    assert_eq!(served.submits(), 2);
}

#[test]
fn a_cancel_ends_the_server_with_its_workers() {
    let served = Served::new("sglang");
    let server = Server::start(&served.model("", "1000"));
    let api = server.api();
    let id = api.submit(&json!({"model": "served", "prompt": "a"})).id;
    let processes = served.processes(2);
    until("the server is at it", || (served.submits() == 1).then_some(()));
    assert!(api.cancel(&id).cancelled);
    until("nothing of it runs", || processes.iter().all(|one| !one.is_alive()).then_some(()));
}

#[test]
fn a_worker_that_is_killed_takes_the_server_along() {
    let served = Served::new("lightx2v");
    let server = Server::start(&served.model("", "1000"));
    let api = server.api();
    let id = api.submit(&json!({"model": "served", "prompt": "a"})).id;
    let processes = served.processes(2);
    until("the server is at it", || (served.submits() == 1).then_some(()));
    only(server.workers()).signal(rustix::process::Signal::KILL);
    until("nothing of it runs", || processes.iter().all(|one| !one.is_alive()).then_some(()));
    // Another worker starts another one.
    until("it is tried again", || (served.submits() == 2).then_some(()));
    api.cancel(&id);
}

#[test]
fn a_server_that_cannot_load_is_told_with_its_last_words() {
    let served = Served::new("sglang");
    let settings = served.model("exit-loading", "1");
    let server = Server::start(&format!("[retry]\nmax_failures = 1\n{settings}"));
    let api = server.api();
    let id = api.submit(&json!({"model": "served", "prompt": "a"})).id;
    let error = api.wait_for_end(&id).error.expect("it failed");
    assert_eq!(error.code, Code::EngineLoadFailed);
    assert!(error.message.contains("exit status: 3"), "{error:?}");
    assert!(error.detail.is_some_and(|detail| detail.contains("no CUDA device")));
}
