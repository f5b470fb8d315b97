//! Files that belong to nobody are gone after the garbage duty has run.

use std::io::{Read, Write};
use std::net::TcpStream;

use rayreel_domain::task::State;
use serde_json::json;

use crate::rig::{RawWorker, Server, until};

const CONFIG: &str = "garbage_after_seconds = 0\n[pools.local]\nmax = 0\n";
const BYTES: &[u8] = b"a video that nobody will see";

#[test]
fn the_upload_of_a_task_that_is_deleted_meanwhile_leaves_nothing() {
    let server = Server::start(CONFIG);
    let api = server.api();
    let id = api.submit(&json!({"prompt": "a fox"})).id;
    let mut worker = RawWorker::register(&server, "w");
    let task = worker.claim(0).expect("the task");
    worker.beat(task.fence).expect("it is the holder");
    let manifest = worker.manifest(&task, BYTES);
    let place = worker.announce(task.fence, &manifest).expect("it is the holder");

    let (first, rest) = BYTES.split_at(10);
    let mut connection = TcpStream::connect(server.address()).expect("connected");
    write!(
        connection,
        "PUT {place} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        worker.token,
        BYTES.len()
    )
    .and_then(|()| connection.write_all(first))
    .expect("sent");
    until("the upload is under way", || (!server.artifacts().is_empty()).then_some(()));
    assert_eq!(api.cancel(&id).status, State::Cancelled);
    assert!(api.delete(&id).deleted);
    connection.write_all(rest).expect("sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("answered");
    let status = answer.split(' ').nth(1).expect("a status");
    assert!(status.starts_with('4') || status.starts_with('5'), "{answer}");

    until("nothing is left", || server.artifacts().is_empty().then_some(()));
    assert_eq!(api.try_task(&id).expect_err("deleted").code, "task_not_found");
    let refusal = worker.commit(task.fence, &manifest).expect_err("the task is gone");
    assert_eq!(refusal.code, "stale_lease");
    // A later try finds no way either.
    let refusal = worker.put(&place, BYTES).expect_err("the task is gone");
    assert_eq!(refusal.code, "stale_lease");
    assert!(server.artifacts().is_empty(), "{:?}", server.artifacts());
}

#[test]
fn files_of_a_cancelled_task_go() {
    let server = Server::start(CONFIG);
    let api = server.api();
    let id = api.submit(&json!({"prompt": "a fox"})).id;
    let mut worker = RawWorker::register(&server, "w");
    let task = worker.claim(0).expect("the task");
    worker.beat(task.fence).expect("it is the holder");
    let manifest = worker.manifest(&task, BYTES);
    let place = worker.announce(task.fence, &manifest).expect("it is the holder");
    worker.put(&place, BYTES).expect("it is the holder");
    api.cancel(&id);
    until("nothing is left", || server.artifacts().is_empty().then_some(()));
    assert_eq!(api.task(&id).status, State::Cancelled, "the record stays");
}

#[test]
fn the_files_of_a_deleted_task_go_and_those_of_others_stay() {
    let server = Server::start("garbage_after_seconds = 0\n");
    let api = server.api();
    let fox = json!({"prompt": "a fox", "size": "64x64", "frames": 1, "steps": 1});
    let (stays, goes) = (api.submit(&fox).id, api.submit(&fox).id);
    for id in [&stays, &goes] {
        api.wait_for_success(id);
    }
    assert!(api.delete(&goes).deleted);
    until("its files are gone", || {
        server.artifacts().iter().all(|path| path.starts_with(&stays)).then_some(())
    });
    assert_eq!(api.try_task(&goes).expect_err("deleted").code, "task_not_found");
    assert!(!api.content(&stays).is_empty());
}
