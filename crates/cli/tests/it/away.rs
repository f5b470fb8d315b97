//! Servers that are gone, or say nothing.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use rustix::process::Signal;

use crate::{Place, Started, is_mp4, terminal, text, until};

const SLOW: &str = "--size 64x64 --frames 5 --steps 100";

/// Makes tasks of seconds.
fn slow_place() -> Place {
    let place = Place::new();
    let settings = "[models.testcard.settings]\nstep_ms = 50\n";
    fs::write(place.path("rayreel.toml"), settings).expect("written");
    place
}

fn stand_still(server: &Started) {
    server.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", server.child.id());
    until("it stands still", || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T ")));
}

#[test]
fn a_lost_service_is_waited_for_and_its_place_is_left_to_it() {
    let place = slow_place();
    let mut server = place.serve("--listen 127.0.0.1:0");
    let url = place.announced()["url"].as_str().expect("a text").to_owned();
    assert_eq!(place.announced()["embedded"], false);
    let mut generate = place.spawn(&format!("generate fox -o fox.mp4 {SLOW}"));
    generate.wait_for("is running");
    server.signal(Signal::KILL);
    server.child.wait().expect("it ends");
    generate.wait_for(&format!(
        "the server at {url} is gone; this goes on when it is back \
         (Ctrl-C leaves: the task stays running)"
    ));
    // It would be in the way of this one.
    let server = place.serve("--listen 127.0.0.1:0");
    let (status, _, stderr) = generate.end();
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stderr.contains("the server is back"), "{stderr}");
    assert!(is_mp4(&place.path("fox.mp4")));
    server.signal(Signal::TERM);
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn whoever_waits_for_a_lost_service_can_leave() {
    let place = slow_place();
    let server = place.serve("--listen 127.0.0.1:0");
    let mut generate = place.spawn(&format!("generate fox -o fox.mp4 {SLOW}"));
    generate.wait_for("is running");
    server.signal(Signal::KILL);
    server.end();
    generate.wait_for("is gone");
    generate.signal(Signal::INT);
    let (status, _, stderr) = generate.end();
    assert_eq!(status, Some(130), "{stderr}");
    let last = stderr.lines().last().expect("a line");
    assert!(last.contains("can't be cancelled and stays running: rayreel cancel task_"), "{last}");
}

#[test]
fn an_embedded_server_says_that_it_is_one() {
    let place = slow_place();
    let mut generate = place.spawn(&format!("generate fox -o fox.mp4 {SLOW}"));
    generate.wait_for("is running");
    assert_eq!(place.announced()["embedded"], true);
    generate.signal(Signal::INT);
    assert_eq!(generate.end().0, Some(9));
}

#[test]
fn at_a_terminal_whoever_waits_is_told_for_what() {
    let place = Place::new();
    let server = place.serve("--listen 127.0.0.1:0");
    let url = place.announced()["url"].as_str().expect("a text").to_owned();
    stand_still(&server);
    let (mut near, far) = terminal();
    let list = place.command("list").stdout(Stdio::piped()).stderr(far).spawn();
    let list = list.expect("it starts");
    let (mut said, mut piece) = (String::new(), [0; 256]);
    while !said.contains(&format!("the server at {url} has not answered yet; waiting for it")) {
        let length = near.read(&mut piece).expect("it says so before it ends");
        said.push_str(&String::from_utf8_lossy(&piece[..length]));
    }
    server.signal(Signal::CONT);
    let output = list.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(text(&output.stdout).starts_with("ID "));
    server.signal(Signal::TERM);
    server.end();
}
