//! The server away, or unreachable, while a worker works: no work is lost.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use rayreel_domain::task::{Outcome, State};
use serde_json::json;

use crate::rig::{Command, Faults, Proxy, Server, only, until};

/// Stands where the server was, accepts, and hangs up at once.
struct DeadEnd(TcpListener);

impl DeadEnd {
    fn at(address: &str) -> Self {
        // Whatever was being started when the server died has its socket for a moment longer.
        Self(until("the server has left its address", || TcpListener::bind(address).ok()))
    }

    fn wait_for_callers(&self, count: usize) {
        for _ in 0..count {
            drop(self.0.accept().expect("a worker calls"));
        }
    }
}

#[test]
fn a_server_that_is_away_for_many_leases_costs_no_work() {
    let faults = Faults::new();
    // Longer than the pause between two calls of a worker that has long had no answer.
    let lease = Duration::from_secs(3);
    let config = format!("lease_seconds = {}\n{}", lease.as_secs(), faults.model("fault", ""));
    let mut server = Server::start(&config);
    let id = server.api().submit(&json!({"model": "fault", "prompt": "hold"})).id;
    server.api().wait_until_running(&id);
    until("its engine works", || faults.noted("step").first().cloned());
    let address = server.address();
    server.kill();
    let away = Instant::now();
    let dead_end = DeadEnd::at(&address);
    dead_end.wait_for_callers(3);
    // The engine finishes meanwhile, and the worker tries to deliver.
    faults.open_gate();
    until("the engine is done", || faults.noted("done").first().cloned());
    while away.elapsed() < lease * 3 {
        dead_end.wait_for_callers(1);
    }
    drop(dead_end);
    server.serve();

    let task = server.api().wait_for_success(&id);
    let attempt = only(task.attempts);
    assert_eq!(attempt.outcome, Some(Outcome::Succeeded));
    assert_eq!(faults.noted("generate").len(), 1, "the work was done once");
}

#[test]
fn a_worker_finds_a_server_that_comes_back_at_another_address() {
    let faults = Faults::new();
    let mut server = Server::floating(&faults.model("fault", ""));
    let id = server.api().submit(&json!({"model": "fault", "prompt": "hold"})).id;
    server.api().wait_until_running(&id);
    let address = server.address();
    server.kill();
    // So that the new server can't have it.
    let _held = DeadEnd::at(&address);
    server.serve();
    assert_ne!(server.address(), address);
    faults.open_gate();
    only(server.api().wait_for_success(&id).attempts);
}

/// A worker that reaches its server through a link, and a task that it holds.
struct Linked {
    server: Server,
    proxy: Proxy,
    faults: Faults,
    id: String,
    _worker: Command,
}

fn linked(config: &str) -> Linked {
    let faults = Faults::new();
    let server =
        Server::start(&format!("{config}\n[pools.local]\nmax = 0\n{}", faults.model("fault", "")));
    let proxy = Proxy::start(&server.address());
    let token = server.announced().worker_token;
    let words = ["worker", "--server", &proxy.url, "--name", "far"];
    let worker = Command::start_with(&server, &words, ("RAYREEL_WORKER_TOKEN", &token));
    let id = server.api().submit(&json!({"model": "fault", "prompt": "hold"})).id;
    server.api().wait_until_running(&id);
    // A beat has arrived, so that the claim is confirmed: without one it would leave no trace.
    server.api().wait_for(&id, "at work", |task| task.progress > 0);
    Linked { server, proxy, faults, id, _worker: worker }
}

#[test]
fn a_worker_without_beats_for_less_than_its_lease_keeps_its_task() {
    let Linked { server, proxy, faults, id, _worker } = linked("");
    proxy.cut();
    faults.open_gate();
    until("the engine is done", || faults.noted("done").first().cloned());
    until("calls have failed", || (proxy.refused() >= 5).then_some(()));
    proxy.mend();
    let task = server.api().wait_for_success(&id);
    assert_eq!(only(task.attempts).outcome, Some(Outcome::Succeeded));
}

#[test]
fn a_worker_without_beats_for_longer_than_its_lease_loses_its_task_and_gets_it_again() {
    let Linked { server, proxy, faults, id, _worker } =
        linked("lease_seconds = 1\ngarbage_after_seconds = 0\n");
    let api = server.api();
    proxy.cut();
    api.wait_for(&id, "queued again", |task| task.status == State::Queued);
    faults.open_gate();
    until("the engine is done", || faults.noted("done").first().cloned());
    proxy.mend();
    let task = api.wait_for_success(&id);
    let outcomes: Vec<_> = task.attempts.iter().map(|a| a.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Lost), Some(Outcome::Succeeded)]);
    let visible = || server.artifacts().iter().filter(|path| path.contains("/0-")).count();
    until("one artifact is left", || (visible() == 1).then_some(()));
}
