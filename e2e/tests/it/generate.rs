//! One command makes a video, with nothing else running, alone or beside others.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rayreel_domain::task::State;
use serde_json::Value;

use crate::rig::{Api, Server, until};

/// What ffprobe reads from the only stream, after decoding every frame.
#[track_caller]
fn probe(path: &Path) -> Value {
    let output = std::process::Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_streams", "-of", "json"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .expect("ffprobe, of the package ffmpeg, is installed");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(found["streams"].as_array().map(Vec::len), Some(1), "{found:#}");
    found["streams"][0].take()
}

/// The kinds of an MP4's boxes, in their order.
fn boxes(bytes: &[u8]) -> Vec<String> {
    let mut kinds = Vec::new();
    let mut at = 0;
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        kinds.push(String::from_utf8_lossy(&head[4..]).into_owned());
        assert!(length >= 8, "a box of {length} bytes at {at}");
        at += length;
    }
    assert_eq!(at, bytes.len(), "the last box ends where the file does: {kinds:?}");
    kinds
}

#[test]
fn one_command_makes_an_mp4_and_leaves_nothing_running() {
    let house = Server::prepare("");
    let done = house
        .run(&[
            "generate",
            "a red fox running through snow 雪中奔跑的红狐",
            "--size",
            "320*240",
            "--frames",
            "17",
            "--fps",
            "8",
            "--steps",
            "3",
            "-o",
            "fox.mp4",
        ])
        .ok();
    assert!(house.processes().is_empty(), "{:?}", house.processes());
    assert!(!house.home().join("server.json").exists());
    assert!(done.stderr.contains("no model configured: this is a test pattern"), "{done:#?}");
    assert!(done.text().contains("fox.mp4"), "it says where the file is: {done:#?}");

    let path = house.directory().join("fox.mp4");
    let stream = probe(&path);
    assert_eq!(stream["codec_name"], "h264");
    assert_eq!((&stream["width"], &stream["height"]), (&320.into(), &240.into()));
    assert_eq!(stream["nb_read_frames"], "17");
    assert_eq!(stream["r_frame_rate"], "8/1");
    assert_eq!(stream["pix_fmt"], "yuv420p", "what browsers play");
    let kinds = boxes(&std::fs::read(&path).expect("written"));
    let place = |kind| kinds.iter().position(|k| k == kind);
    assert!(place("moov") < place("mdat"), "the index comes first: {kinds:?}");
}

#[test]
fn the_default_video_takes_less_than_two_seconds() {
    let house = Server::prepare("");
    // Other tests may have the machine just now: one try in the clear is proof enough.
    let fastest = (0..10)
        .map(|_| {
            let start = Instant::now();
            house.run(&["generate", "a red fox running through snow", "-o", "fox.mp4"]).ok();
            start.elapsed()
        })
        .find(|took| *took < Duration::from_secs(2));
    assert!(fastest.is_some(), "ten times longer than 2 s");
    let stream = probe(&house.directory().join("fox.mp4"));
    assert_eq!((&stream["width"], &stream["height"]), (&832.into(), &480.into()));
    assert_eq!(stream["nb_read_frames"], "49");
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_json_says_that_it_is_a_test_pattern() {
    let house = Server::prepare("");
    let make = |seed: &str, file: &str| {
        let words = ["--json", "generate", "a fox", "--size", "64x64", "--frames", "5", "--steps"];
        let task =
            house.run(&[&words[..], &["2", "--seed", seed, "-o", file]].concat()).ok().json();
        (task, std::fs::read(house.directory().join(file)).expect("written"))
    };
    let (first, bytes) = make("7", "a.mp4");
    let (second, same) = make("7", "b.mp4");
    let (_, other) = make("8", "c.mp4");
    assert_eq!(first["status"], "SUCCEEDED");
    assert_eq!(first["result"]["test_pattern"], true);
    assert_eq!(first["request"]["seed"], 7);
    assert_ne!(first["id"], second["id"], "two tasks");
    assert_eq!(first["result"]["sha256"], second["result"]["sha256"]);
    assert_eq!(bytes, same);
    assert_ne!(bytes, other);
}

#[test]
fn a_png_is_a_still_and_can_be_the_first_frame_of_a_video() {
    let house = Server::prepare("");
    house.run(&["generate", "a fox", "--size", "96x64", "--steps", "1", "-o", "fox.png"]).ok();
    let picture = probe(&house.directory().join("fox.png"));
    assert_eq!((&picture["codec_name"], &picture["width"]), (&"png".into(), &96.into()));

    let words = ["generate", "it runs", "--image", "fox.png", "--size", "96x64", "--frames", "5"];
    house.run(&[&words[..], &["--steps", "1", "-o", "run.mp4"]].concat()).ok();
    assert_eq!(probe(&house.directory().join("run.mp4"))["nb_read_frames"], "5");
}

/// The mean brightness of each frame's upper half, by ffmpeg.
fn brightness(path: &Path) -> Vec<u8> {
    let output = std::process::Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args(["-vf", "crop=iw:ih/2:0:0,scale=1:1:flags=area,format=gray"])
        .args(["-f", "rawvideo", "-"])
        .stdin(Stdio::null())
        .output()
        .expect("ffmpeg is installed");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn a_video_goes_from_a_first_image_to_a_last_one() {
    let house = Server::prepare("");
    for (name, color) in [("dark.png", "0x202020"), ("bright.jpg", "0xd8d8d8")] {
        let made = std::process::Command::new("ffmpeg")
            .args(["-v", "error", "-f", "lavfi", "-i", &format!("color={color}:size=96x64")])
            .args(["-frames:v", "1"])
            .arg(house.directory().join(name))
            .status();
        assert!(made.expect("ffmpeg is installed").success());
    }
    let words = ["--json", "generate", "day breaks", "--image", "dark.png", "--last-image"];
    let more =
        ["bright.jpg", "--size", "192x128", "--frames", "9", "--steps", "1", "-o", "day.mp4"];
    let task = house.run(&[&words[..], &more[..]].concat()).ok().json();
    assert_eq!(task["request"]["image"], true);
    assert_eq!(task["request"]["last_image"], true);
    let seen = brightness(&house.directory().join("day.mp4"));
    assert_eq!(seen.len(), 9);
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen[8] - seen[0] > 80, "{seen:?}");
}

#[test]
fn seconds_become_the_nearest_number_of_frames_that_is_allowed() {
    let house = Server::prepare("");
    let words = ["--json", "generate", "a fox", "--size", "64x64", "--steps", "1", "--fps", "16"];
    let task =
        house.run(&[&words[..], &["--seconds", "0.6", "-o", "fox.mp4"]].concat()).ok().json();
    assert_eq!(task["result"]["frames"], 9);
    assert_eq!(probe(&house.directory().join("fox.mp4"))["nb_read_frames"], "9");
}

/// Starts so many `generate` at once on a data directory that no server has.
fn many_at_once(count: usize) {
    let house = Server::prepare("");
    let files: Vec<String> = (0..count).map(|n| format!("fox-{n}.mp4")).collect();
    let words = ["generate", "a fox", "--size", "64x64", "--frames", "5", "--steps", "5", "-o"];
    let started: Vec<_> =
        files.iter().map(|file| house.command(&[&words[..], &[file.as_str()]].concat())).collect();
    for command in started {
        command.finish().ok();
    }
    for file in files {
        assert_eq!(probe(&house.directory().join(file))["nb_read_frames"], "5");
    }
    assert!(house.processes().is_empty(), "{:?}", house.processes());
}

#[test]
fn two_at_once_both_succeed() {
    many_at_once(2);
}

#[test]
fn five_at_once_all_succeed() {
    many_at_once(5);
}

const SLOW: &str = "[models.testcard.settings]\nstep_ms = 50\n";

#[test]
fn when_the_one_with_the_server_is_killed_the_other_goes_on_to_success() {
    let mut house = Server::prepare(SLOW);
    let words = ["generate", "a fox", "--size", "64x64", "--frames", "5", "--steps", "20", "-o"];
    let first = house.command(&[&words[..], &["first.mp4"]].concat());
    until("the first one serves", || {
        (house.find_announced()?.pid == first.process.pid).then_some(())
    });
    let api = house.api();
    until("its task runs", || (api.every_task().first()?.status == State::Running).then_some(()));
    let second = house.command(&[&words[..], &["second.mp4"]].concat());
    let tasks = until("the second one has submitted", || {
        Some(api.every_task()).filter(|tasks| tasks.len() == 2)
    });
    first.kill();

    second.finish().ok();
    assert_eq!(probe(&house.directory().join("second.mp4"))["nb_read_frames"], "5");
    assert!(!house.directory().join("first.mp4").exists());

    // The task of the one that was killed is not lost either.
    house.serve();
    for task in tasks {
        assert_eq!(house.api().wait_for_success(&task.id).attempts.len(), 1);
    }
}

/// Starts a long `generate`, and waits until its task runs.
fn long_generate(house: &Server) -> (crate::rig::Command, Api, String) {
    let words = ["generate", "a fox", "--size", "64x64", "--frames", "5", "--steps", "100", "-o"];
    let command = house.command(&[&words[..], &["fox.mp4"]].concat());
    until("a server", || house.find_announced().filter(|found| Api::new(&found.url).is_ready()));
    let api = house.api();
    let id = until("the task runs", || {
        api.every_task().into_iter().find(|task| task.status == State::Running)
    })
    .id;
    (command, api, id)
}

#[test]
fn ctrl_c_cancels_the_task_and_says_so() {
    let house = Server::start(SLOW);
    let (command, api, id) = long_generate(&house);
    command.interrupt();
    let done = command.finish().expect_code(9);
    assert!(done.stderr.contains("cancel") && done.stderr.contains(&id), "{done:#?}");
    assert_eq!(api.task(&id).status, State::Cancelled);
    assert!(!house.directory().join("fox.mp4").exists());
}

#[test]
fn ctrl_c_with_the_server_inside_cancels_as_well_and_leaves_nothing_running() {
    let mut house = Server::prepare(SLOW);
    let (command, _, id) = long_generate(&house);
    command.interrupt();
    command.finish().expect_code(9);
    assert!(house.processes().is_empty(), "{:?}", house.processes());
    house.serve();
    assert_eq!(house.api().task(&id).status, State::Cancelled);
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let house = Server::start(SLOW);
    let (command, _, _) = long_generate(&house);
    // The cancel gets no answer, so the first one can't be done with.
    house.process().stop();
    command.interrupt();
    command.wait_for_words("cancelling");
    let start = Instant::now();
    command.interrupt();
    command.finish().expect_code(130);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    house.process().go_on();
}
