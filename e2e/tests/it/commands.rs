//! The command line: what it prints, and with which status it ends.

use std::io::Write as _;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;

use crate::rig::{Command, Server, only, sha256, until};

const SMALL: [&str; 6] = ["--size", "64x64", "--frames", "5", "--steps", "2"];

fn submit(server: &Server) -> String {
    server.run(&[&["submit", "a fox"], &SMALL[..]].concat()).ok().text().trim().to_owned()
}

#[test]
fn a_task_from_submit_to_delete() {
    let server = Server::start("");
    let id = submit(&server);
    assert!(id.starts_with("task_") && id.len() == 37, "the id alone: {id:?}");
    server.run(&["watch", &id]).ok();

    let shown = server.run(&["get", &id]).ok().text();
    assert!(shown.contains(&id) && shown.to_lowercase().contains("succeeded"), "{shown}");
    let task = server.run(&["--json", "get", &id]).ok().json();
    assert_eq!(task["id"], *id);
    assert_eq!(task["status"], "SUCCEEDED");
    assert_eq!(task["progress"], 100);
    assert_eq!(task["object"], "video.generation");
    assert_eq!(task["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(task["result"]["frames"], 5);

    let list = server.run(&["list"]).ok().text();
    assert!(list.contains(&id), "{list}");
    let list = server.run(&["--json", "list", "--state", "succeeded"]).ok().json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], *id);
    let none = server.run(&["--json", "list", "--state", "FAILED"]).ok().json();
    assert_eq!(none["data"], serde_json::json!([]));

    server.run(&["download", &id, "-o", "fox.mp4"]).ok();
    let bytes = std::fs::read(server.directory().join("fox.mp4")).expect("written");
    assert_eq!(task["result"]["sha256"], sha256(&bytes));
    let piped = server.run(&["download", &id, "-o", "-"]).ok();
    assert!(piped.stdout == bytes, "standard output has the file and nothing else");
    server.run(&["download", &id, "--thumbnail", "-o", "fox.png"]).ok();
    let thumbnail = std::fs::read(server.directory().join("fox.png")).expect("written");
    assert!(thumbnail.starts_with(b"\x89PNG"));

    let late = server.run(&["--json", "cancel", &id]).ok().json();
    assert_eq!((&late["cancelled"], &late["status"]), (&false.into(), &"SUCCEEDED".into()));
    let deleted = server.run(&["--json", "delete", &id]).ok().json();
    assert_eq!(deleted["deleted"], true);
    server.run(&["get", &id]).expect_code(4);
}

#[test]
fn every_line_of_json_is_json() {
    let server = Server::start("");
    let words = [&["--json", "submit", "a fox"], &SMALL[..]].concat();
    let id = server.run(&words).ok().json()["id"].as_str().expect("an id").to_owned();
    let watched = server.run(&["--json", "watch", &id]).ok().text();
    let events: Vec<Value> =
        watched.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(events.iter().all(|event| event["task_id"] == *id), "{events:#?}");
    assert_eq!(events.last().map(|event| &event["status"]), Some(&"SUCCEEDED".into()));
    let progress: Vec<_> = events.iter().filter_map(|event| event["progress"].as_u64()).collect();
    assert!(progress.is_sorted(), "{progress:?}");
    let done = server.run(&["--json", "download", &id, "-o", "fox.mp4"]).ok().json();
    assert_eq!(done["file"], "fox.mp4");
    let error = server.run(&["--json", "get", &format!("task_{}", "0".repeat(32))]);
    assert_eq!(error.expect_code(4).error()["code"], "task_not_found");
}

#[test]
fn the_exit_status_tells_what_went_wrong() {
    let server = Server::start("[models.testcard.settings]\nstep_ms = 100\n");
    let unknown = format!("task_{}", "0".repeat(32));
    server.run(&["get", &unknown]).expect_code(4);
    server.run(&["cancel", &unknown]).expect_code(4);
    server.run(&["download", &unknown]).expect_code(4);
    server.run(&["get", "fox"]).expect_code(2);
    server.run(&["submit", "a fox", "--size", "65x64"]).expect_code(2);
    server.run(&["submit", "a fox", "--model", "nope"]).expect_code(2);
    server.run(&["submit", "a fox", "--frames", "48"]).expect_code(2);
    server.run(&["generate"]).expect_code(2);
    server.run(&["no-such-command"]).expect_code(2);
    let nowhere = server.run(&["--server", "http://127.0.0.1:1", "list"]).expect_code(7);
    assert!(nowhere.stderr.contains("server_unreachable"), "{nowhere:#?}");
    assert!(nowhere.stderr.contains("http://127.0.0.1:1"), "{nowhere:#?}");

    let id = server.run(&["submit", "a fox", "--steps", "100"]).ok().text().trim().to_owned();
    server.run(&["download", &id]).expect_code(6);
    let watch = server.command(&["watch", &id]);
    assert!(server.run(&["cancel", &id]).ok().text().contains("cancelled"));
    watch.finish().expect_code(9);
    server.run(&["download", &id]).expect_code(9);
}

#[test]
fn ctrl_c_on_watch_leaves_the_task_alone() {
    let server = Server::start("[models.testcard.settings]\nstep_ms = 100\n");
    let id = server.run(&["submit", "a fox", "--steps", "100"]).ok().text().trim().to_owned();
    let watch = server.command(&["--json", "watch", &id]);
    until("it runs", || watch.stdout().contains("RUNNING").then_some(()));
    watch.interrupt();
    watch.finish().expect_code(130);
    assert!(!server.api().task(&id).status.is_terminal());
}

/// A terminal that is closed must leave nothing half done.
#[test]
fn a_hangup_is_as_good_as_a_request_to_stop() {
    let server = Server::start("[pools.local]\nmax = 0\n");
    let id = submit(&server);
    for signal in [Signal::TERM, Signal::HUP] {
        let watch = server.command(&["--json", "watch", &id]);
        until("it watches", || watch.stdout().contains("QUEUED").then_some(()));
        watch.process.signal(signal);
        watch.finish().expect_code(130);
    }
}

#[test]
fn watch_and_generate_go_on_when_the_server_comes_back() {
    let mut server = Server::start("[models.testcard.settings]\nstep_ms = 50\n");
    let words = ["generate", "a fox", "--size", "64x64", "--frames", "5", "--steps", "40", "-o"];
    let generate = server.command(&[&words[..], &["fox.mp4"]].concat());
    let api = server.api();
    let id = until("its task", || api.every_task().pop()).id;
    let watch = server.command(&["--json", "watch", &id]);
    until("it runs", || watch.stdout().contains("RUNNING").then_some(()));
    server.kill();
    server.serve();
    let events = watch.finish().ok().text();
    assert!(events.lines().last().is_some_and(|line| line.contains("SUCCEEDED")), "{events}");
    generate.finish().ok();
    assert!(server.directory().join("fox.mp4").exists());
    only(api.task(&id).attempts);
    assert_eq!(api.every_task().len(), 1, "nothing was submitted twice");
}

#[test]
fn without_a_server_commands_work_on_the_data_directory() {
    let mut server = Server::prepare("");
    let id = submit(&server);
    let task = server.run(&["--json", "get", &id]).ok().json();
    assert_eq!(task["status"], "QUEUED");
    assert!(server.processes().is_empty(), "nothing was started for a question");
    server.serve();
    server.api().wait_for_success(&id);
}

#[test]
fn completions_are_printed_for_shells() {
    let server = Server::prepare("");
    for shell in ["bash", "zsh", "fish"] {
        let script = server.run(&["completions", shell]).ok().text();
        assert!(script.contains("rayreel") && script.contains("generate"), "{shell}");
    }
    let bash = server.run(&["completions", "bash"]).ok();
    let mut check = std::process::Command::new("bash")
        .arg("-n")
        .stdin(Stdio::piped())
        .spawn()
        .expect("bash is there");
    check.stdin.take().expect("piped").write_all(&bash.stdout).expect("written");
    assert!(check.wait().expect("it ends").success(), "bash can read it");
}

#[test]
fn a_misspelt_setting_is_named_with_the_nearest_right_one() {
    let server = Server::prepare("[pools.local]\nidle_timeout = 5\n");
    for words in [&["config", "check"][..], &["serve"], &["list"]] {
        let done = server.run(words).expect_code(2);
        assert!(done.stderr.contains("idle_timeout_seconds"), "{done:#?}");
        assert!(done.stderr.contains("rayreel.toml"), "where it stands: {done:#?}");
    }
    server.configure("[pools.local]\nidle_timeout_seconds = 5\n");
    let done = server.run(&["config", "check"]).ok();
    assert!(done.text().contains("idle_timeout_seconds"), "what differs is shown: {done:#?}");
    let wrong = Command::start_with(&server, &["config", "check"], ("RAYREEL_LEASE_SECOND", "5"));
    let done = wrong.finish().expect_code(2);
    assert!(
        done.stderr.contains("RAYREEL_LEASE_SECOND")
            && done.stderr.contains("RAYREEL_LEASE_SECONDS"),
        "{done:#?}"
    );
}

#[test]
fn the_default_configuration_is_itself_a_right_one() {
    let server = Server::prepare("");
    let text = server.run(&["config", "default"]).ok().text();
    server.configure(&text);
    server.run(&["config", "check"]).ok();
    let shown = server.run(&["config", "show"]).ok().text();
    assert!(shown.contains("lease_seconds"), "{shown}");
}

#[test]
fn a_worker_needs_the_right_token() {
    let server = Server::start("[pools.local]\nmax = 0\n");
    let url = format!("http://{}", server.address());
    let words = ["worker", "--server", &url, "--name", "far"];
    let wrong = Command::start_with(&server, &words, ("RAYREEL_WORKER_TOKEN", "wrong"));
    let done = wrong.finish().expect_code(5);
    assert!(done.stderr.contains("unauthorized"), "{done:#?}");
    let done = server.run(&["worker", "--pool", "no-such-pool"]);
    assert_eq!(done.code, Some(2), "{done:#?}");

    // With the right one, found in the data directory, it works.
    let worker = server.command(&["worker", "--name", "near"]);
    let id = submit(&server);
    assert_eq!(server.api().wait_for_success(&id).attempts[0].worker, "near");
    worker.interrupt();
    worker.finish().ok();
}

#[test]
fn colours_and_progress_bars_are_for_terminals() {
    let server = Server::start("");
    let words = [&["generate", "a fox", "-o", "fox.mp4"], &SMALL[..]].concat();
    let done = server.run(&words).ok();
    assert!(!done.stderr.contains('\x1b') && !done.text().contains('\x1b'), "{done:#?}");
    let quiet = server.run(&[&["--quiet"], &words[..]].concat()).ok();
    assert!(quiet.stderr.is_empty(), "{quiet:#?}");
}
