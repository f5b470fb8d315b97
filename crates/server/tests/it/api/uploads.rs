//! Files: inputs, outputs, commits.

use std::path::PathBuf;

use rayreel_domain::lease::Fence;
use rayreel_domain::task::{Outcome, Output, State};
use rayreel_domain::wire::api::TaskBody;
use rayreel_domain::wire::engine::Role;
use rayreel_server::artifacts;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::{Answer, Server, TASKS, TOKEN, Worker, output, video};

const VIDEO: &[u8] = b"moving pictures";

/// Every file in the artifact store.
pub(super) fn files(server: &Server) -> Vec<PathBuf> {
    let mut folders = vec![server.app.settings.data.join("artifacts")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        // The server may delete it meanwhile.
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.unwrap(),
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

async fn running<'s>(server: &'s Server, worker: &Worker<'s>) -> (TaskBody, Fence) {
    let task = server.submit("p").await;
    (task, worker.take(1).await.fence)
}

/// The lease ends, although the worker has beaten.
async fn lose(server: &Server, worker: &Worker<'_>, fence: Fence) {
    worker.beat(fence, None).await;
    let end = rayreel_domain::task::End::Lose;
    assert!(server.app.components.store.reclaim(fence, 1, end).await.unwrap());
}

#[tokio::test]
async fn uploads_and_their_commit_may_be_repeated() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (task, fence) = running(&server, &worker).await;
    let manifest = [video(VIDEO), output(1, Role::Thumbnail, b"still")];
    let targets = worker.targets(fence, &manifest).await;
    assert!(targets.iter().all(|target| target.starts_with("/v1/worker/uploads/")));
    for _ in 0..2 {
        assert_eq!(worker.put(&targets[0], VIDEO).await.status, 200);
        assert_eq!(worker.put(&targets[1], b"still").await.status, 200);
    }
    for _ in 0..2 {
        let commit = worker.commit(fence, &manifest).await;
        assert_eq!(commit.status, 200, "{}", commit.text());
    }
    let late = worker.put(&targets[0], VIDEO).await;
    late.refused(409, "stale_lease", None);
    assert_eq!(files(&server).len(), 2, "a late repetition deletes nothing");
    assert_eq!(server.task(&task.id).await.status, State::Succeeded);
    let other = [video(b"another")];
    worker.commit(fence, &other).await.refused(409, "stale_lease", None);
}

#[tokio::test]
async fn what_is_not_as_announced_is_refused_and_not_kept() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (_, fence) = running(&server, &worker).await;
    let target = &worker.targets(fence, &[video(VIDEO)]).await[0];
    let too_short = worker.put(target, b"moving").await;
    too_short.refused(422, "upload_mismatch", Some("Content-Length"));
    let other_bytes = worker.put(target, b"MOVING PICTURES").await;
    other_bytes.refused(422, "upload_mismatch", None);
    // Of unknown length, and too long.
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
         Transfer-Encoding: chunked\r\n\r\n14\r\nmoving pictures, and\r\n0\r\n\r\n"
    );
    server.raw(head.as_bytes()).await.refused(422, "upload_mismatch", None);
    let missing = worker.commit(fence, &[video(VIDEO)]).await;
    missing.refused(422, "upload_mismatch", Some("manifest"));
    assert!(files(&server).is_empty());
    worker.finish(fence, &[(video(VIDEO), VIDEO)]).await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (_, fence) = running(&server, &worker).await;
    let target = &worker.targets(fence, &[video(VIDEO)]).await[0];
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: {}\r\n\r\nmovi",
        VIDEO.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    until(|| files(&server).len() == 1).await;
    drop(socket);
    until(|| files(&server).is_empty()).await;
    worker.finish(fence, &[(video(VIDEO), VIDEO)]).await;
}

async fn until(condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), reached).await.expect("in time");
}

#[tokio::test]
async fn a_zombie_can_neither_upload_nor_commit() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (task, fence) = running(&server, &worker).await;
    let manifest = [video(VIDEO)];
    let target = worker.targets(fence, &manifest).await.remove(0);
    assert_eq!(worker.put(&target, VIDEO).await.status, 200);
    lose(&server, &worker, fence).await;
    worker.put(&target, VIDEO).await.refused(409, "stale_lease", None);
    worker.commit(fence, &manifest).await.refused(409, "stale_lease", None);
    let refused = worker.call("uploads", json!({"fence": fence, "manifest": manifest})).await;
    refused.refused(409, "stale_lease", None);
    // The same holds once its files have been collected.
    let collected = server.app.components.artifacts.delete_folder(&fence.folder()).await;
    collected.unwrap();
    worker.commit(fence, &manifest).await.refused(409, "stale_lease", None);
    let shown = server.task(&task.id).await;
    assert_eq!((shown.status, shown.attempts[0].outcome), (State::Queued, Some(Outcome::Lost)));
}

#[tokio::test]
async fn an_upload_whose_lease_ends_on_the_way_is_taken_back() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (_, fence) = running(&server, &worker).await;
    let target = worker.targets(fence, &[video(VIDEO)]).await.remove(0);
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        VIDEO.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&VIDEO[..5]).await.unwrap();
    until(|| files(&server).len() == 1).await;
    lose(&server, &worker, fence).await;
    socket.write_all(&VIDEO[5..]).await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut socket, &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("stale_lease"), "{answer}");
    assert!(files(&server).is_empty());
}

#[tokio::test]
async fn a_manifest_is_checked_before_anything_is_uploaded() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (_, fence) = running(&server, &worker).await;
    let good = video(VIDEO);
    let with = |change: &dyn Fn(&mut Output)| {
        let mut output = good.clone();
        change(&mut output);
        vec![output]
    };
    for manifest in [
        vec![],
        vec![good.clone(); 17],
        vec![good.clone(), good.clone()],
        with(&|o| o.index = 1),
        with(&|o| o.role = Role::Thumbnail),
        with(&|o| o.bytes = 0),
        with(&|o| o.bytes = u64::MAX),
        with(&|o| o.sha256 = "../../../etc/passwd".to_owned()),
        with(&|o| o.sha256 = o.sha256.to_uppercase()),
        with(&|o| o.media_type = "text/html".to_owned()),
        with(&|o| o.width = 0),
        with(&|o| o.frames = 0),
        with(&|o| o.fps = u32::MAX),
    ] {
        for call in ["uploads", "commit"] {
            let body = json!({"fence": fence, "manifest": manifest});
            worker.call(call, body).await.refused(400, "invalid_value", Some("manifest"));
        }
    }
    let metrics: serde_json::Map<String, Value> =
        (0..65).map(|n| (format!("m{n}"), json!(1.0))).collect();
    let body = json!({"fence": fence, "manifest": [good], "metrics": metrics});
    worker.call("commit", body).await.refused(400, "invalid_value", Some("metrics"));
}

#[tokio::test]
async fn an_upload_goes_only_where_an_output_can_lie() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (_, fence) = running(&server, &worker).await;
    let good = worker.targets(fence, &[video(VIDEO)]).await.remove(0);
    let sum = &good[good.find("sha256=").unwrap() + 7..][..64];
    let base = format!("/v1/worker/uploads/{}/{}/{}", fence.task, fence.attempt, fence.nonce);
    for (path, status, code, param) in [
        (format!("{base}/16?sha256={sum}&bytes=15"), 400, "invalid_value", Some("sha256")),
        (format!("{base}/x?sha256={sum}&bytes=15"), 400, "invalid_value", Some("sha256")),
        (format!("{base}/0?sha256=..%2F..%2Fx&bytes=15"), 400, "invalid_value", Some("sha256")),
        (format!("{base}/0?sha256={sum}"), 400, "missing_field", Some("bytes")),
        (format!("{base}/0?sha256={sum}&bytes=0"), 400, "invalid_value", Some("bytes")),
        (format!("{base}/0?sha256={sum}&bytes=15&x=1"), 400, "unknown_field", Some("x")),
        ("/v1/worker/uploads/..%2Fx/1/2/0?bytes=15".to_owned(), 404, "route_not_found", None),
    ] {
        worker.put(&path, VIDEO).await.refused(status, code, param);
    }
    let forged = good.replace(&fence.nonce.to_string(), "0123456789abcdef");
    worker.put(&forged, VIDEO).await.refused(409, "stale_lease", None);
    assert!(files(&server).is_empty());
}

/// A picture of one colour.
pub(super) fn png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 2);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&[0, 80, 160, 240]).unwrap();
    bytes
}

/// What a PNG shows.
pub(super) fn pixels(png: &[u8]) -> (u32, u32, Vec<u8>) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut bytes).unwrap();
    (frame.width, frame.height, bytes)
}

pub(super) fn with_image() -> Value {
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(png());
    json!({"prompt": "p", "image": format!("data:image/png;base64,{data}")})
}

#[tokio::test]
async fn the_image_of_a_request_reaches_the_worker() {
    let server = Server::start().await;
    let answer = server.post(TASKS, &with_image()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let task: TaskBody = answer.json();
    assert!(task.request.image);
    let worker = server.worker("w").await;
    let assignment = worker.take(1).await;
    let input = assignment.request.image.unwrap();
    assert_eq!(input.media_type, "image/png");
    let fence = assignment.fence;
    let path = format!("/v1/worker/inputs/{}/{}/{}", fence.task, fence.attempt, fence.nonce);
    let given = Answer::of(server.request(Method::GET, &path).bearer_auth(TOKEN)).await;
    assert_eq!((given.status.as_u16(), given.header("content-type")), (200, "image/png"));
    assert_eq!(given.body.len() as u64, input.bytes);
    assert_eq!(artifacts::sha256(&given.body), input.sha256);
    assert_eq!(pixels(&given.body), pixels(&png()), "written anew, the same picture");
    lose(&server, &worker, fence).await;
    let given = Answer::of(server.request(Method::GET, &path).bearer_auth(TOKEN)).await;
    given.refused(409, "stale_lease", None);
}

#[tokio::test]
async fn an_image_is_kept_once_and_only_as_long_as_something_names_it() {
    let server = Server::with(&[("RAYREEL_MAX_QUEUED", "2")]).await;
    let submit = async |key: &str| {
        let request = server.request(Method::POST, TASKS).header("idempotency-key", key);
        Answer::of(request.json(&with_image())).await
    };
    let first: TaskBody = submit("k").await.json();
    let again: TaskBody = submit("k").await.json();
    assert_eq!(first.id, again.id);
    let second: TaskBody = submit("l").await.json();
    submit("other").await.refused(429, "queue_full", None);
    assert_eq!(files(&server).len(), 1, "the same bytes are the same file");
    let components = &server.app.components;
    let tidy = async || {
        components.store.advance().await.unwrap();
        for item in components.store.garbage(10).await.unwrap() {
            components.artifacts.delete_folder(&item.folder).await.unwrap();
        }
        files(&server).len()
    };
    server.world.clock.advance(std::time::Duration::from_secs(3_600));
    for (task, left) in [(first, 1), (second, 0)] {
        assert_eq!(tidy().await, 1, "{} needs it", task.id);
        for _ in 0..2 {
            server.delete(&format!("{TASKS}/{}", task.id)).await;
        }
        assert_eq!(tidy().await, left);
    }
}
