//! Downloads that are left in the middle.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{Place, TINY, until};

/// Stands for a server that sends the first half of a file. Nothing happens to its task before it
/// is cancelled, for which it is too late.
fn half_server(task: Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    // Ends with the process.
    std::thread::spawn(move || {
        let mut open = Vec::new();
        let mut cancelled = false;
        for caller in listener.incoming().map_while(Result::ok) {
            // A caller may have thought better of it.
            let Some(path) = path(&caller) else { continue };
            let mut answer = Answer { caller };
            if path.ends_with("/content") {
                answer.send("200 OK", "video/mp4", "Content-Length: 1000\r\n", &[0; 500]);
                open.push(answer.caller);
            } else if path.ends_with("/events") {
                answer.send("200 OK", "text/event-stream", "Connection: close\r\n", b"");
                if !cancelled {
                    open.push(answer.caller);
                }
            } else if path.ends_with("/cancel") {
                cancelled = true;
                let id = &task["id"];
                answer.json(&json!({
                    "id": id, "task_id": id, "status": "SUCCEEDED",
                    "cancelled": false, "deleted": false,
                }));
            } else {
                answer.json(&task);
            }
        }
    });
    url
}

/// The path of a request that has been read whole.
fn path(caller: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(caller);
    let (mut line, mut path, mut length) = (String::new(), None, 0);
    while reader.read_line(&mut line).ok()? > 0 && line != "\r\n" {
        path = path.or_else(|| line.split(' ').nth(1).map(str::to_owned));
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().expect("a number");
        }
        line.clear();
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    path
}

struct Answer {
    caller: TcpStream,
}

impl Answer {
    fn send(&mut self, status: &str, media_type: &str, more: &str, body: &[u8]) {
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\n{more}\r\n");
        // A caller who has left hears nothing.
        let sent = self.caller.write_all(head.as_bytes());
        _ = sent.and_then(|()| self.caller.write_all(body));
    }

    fn json(&mut self, body: &Value) {
        let text = body.to_string();
        let more = format!("Content-Length: {}\r\nConnection: close\r\n", text.len());
        self.send("200 OK", "application/json", &more, text.as_bytes());
    }
}

fn names(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path("out")).expect("a directory");
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("UTF-8");
    entries.map(|entry| name(entry.expect("an entry"))).collect()
}

fn wait_for_draft(place: &Place) {
    until("a draft", || names(place).iter().any(|name| name.ends_with(".part")));
}

/// A place with a folder for results, and a task that has one.
fn place_with_task() -> (Place, String, Value) {
    let place = Place::new();
    fs::create_dir(place.path("out")).expect("made");
    let made = place.json(&format!("generate fox -o fox.mp4 {TINY}"));
    let id = made["id"].as_str().expect("a text").to_owned();
    let task = place.json(&format!("get {id}"));
    (place, id, task)
}

#[test]
fn ctrl_c_leaves_a_download_and_nothing_behind() {
    let (place, id, task) = place_with_task();
    let url = half_server(task);
    let download = place.spawn(&format!("download {id} -o out/fox.mp4 --server {url}"));
    wait_for_draft(&place);
    download.signal(Signal::INT);
    let (status, _, stderr) = download.end();
    assert_eq!(status, Some(130), "{stderr}");
    let words = format!("left; {id} has its file still: rayreel download {id}");
    assert!(stderr.contains(&words), "{stderr}");
    assert_eq!(names(&place), [""; 0]);
}

#[test]
fn a_second_ctrl_c_leaves_no_half_file_behind() {
    let (place, id, task) = place_with_task();
    let url = half_server(task);
    let mut generate = place.spawn(&format!("generate fox -o out/fox.mp4 {TINY} --server {url}"));
    generate.wait_for("submitted");
    generate.signal(Signal::INT);
    generate.wait_for(&format!("cancelling {id}"));
    // The cancel comes too late: the task has its file.
    wait_for_draft(&place);
    generate.signal(Signal::INT);
    let (status, _, stderr) = generate.end();
    assert_eq!(status, Some(130), "{stderr}");
    assert_eq!(names(&place), [""; 0]);
}
