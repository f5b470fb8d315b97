//! Downloads.

use std::time::Duration;

use rayreel_domain::wire::api::TaskBody;
use rayreel_domain::wire::engine::Role;
use reqwest::Method;
use serde_json::json;

use super::client::{Answer, Server, TASKS, output, video};

const VIDEO: &[u8] = b"0123456789";
const STILL: &[u8] = b"a still";

/// A server with one finished task; the path of its content.
async fn finished() -> (Server, String) {
    let server = Server::start().await;
    let task = server.submit("a").await;
    {
        let worker = server.worker("w").await;
        let fence = worker.take(1).await.fence;
        let files = [(video(VIDEO), VIDEO), (output(1, Role::Thumbnail, STILL), STILL)];
        worker.finish(fence, &files).await;
    }
    let path = format!("{TASKS}/{}/content", task.id);
    (server, path)
}

async fn ask(server: &Server, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = server.request(Method::GET, path);
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    Answer::of(request).await
}

#[tokio::test]
async fn a_result_comes_whole_with_all_that_a_browser_needs() {
    let (server, path) = finished().await;
    let answer = server.get(&path).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, VIDEO));
    let id = path.split('/').nth(4).unwrap();
    let etag = format!("\"{}\"", rayreel_server::artifacts::sha256(VIDEO));
    for (name, value) in [
        ("content-type", "video/mp4"),
        ("content-length", "10"),
        ("accept-ranges", "bytes"),
        ("etag", &*etag),
        ("x-content-type-options", "nosniff"),
        ("content-disposition", &*format!("inline; filename=\"{id}.mp4\"")),
        ("cache-control", "private, max-age=31536000, immutable"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    let head = Answer::of(server.request(Method::HEAD, &path)).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!((head.header("content-length"), head.header("etag")), ("10", &*etag));
    assert_eq!(server.metric("rayreel_artifacts_served_bytes_total").await, Some(10.0));
}

#[tokio::test]
async fn one_range_is_served() {
    let (server, path) = finished().await;
    for (range, bytes, told) in [
        ("bytes=0-3", &b"0123"[..], "bytes 0-3/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ] {
        let answer = ask(&server, &path, &[("range", range)]).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (206, bytes), "{range}");
        assert_eq!(answer.header("content-range"), told);
        assert_eq!(answer.header("content-length"), bytes.len().to_string());
    }
    let several = ask(&server, &path, &[("range", "bytes=0-1,4-5")]).await;
    assert_eq!((several.status.as_u16(), &*several.body), (200, VIDEO));
    let beyond = ask(&server, &path, &[("range", "bytes=10-")]).await;
    beyond.refused(416, "range_not_satisfiable", Some("Range"));
    assert_eq!(beyond.header("content-range"), "bytes */10");
    let head = server.request(Method::HEAD, &path).header("range", "bytes=0-3");
    let head = Answer::of(head).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (206, "4"));
}

#[tokio::test]
async fn what_the_caller_has_is_not_sent_again() {
    let (server, path) = finished().await;
    let etag = server.get(&path).await.header("etag").to_owned();
    let weak = format!("W/{etag}, \"other\"");
    for tag in [&*etag, &*weak, "*"] {
        let answer = ask(&server, &path, &[("if-none-match", tag), ("range", "bytes=0-3")]).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (304, 0), "{tag}");
        assert_eq!(answer.header("etag"), etag);
        assert_eq!(answer.header("content-length"), "", "the length would be that of the file");
    }
    let head = server.request(Method::HEAD, &path).header("if-none-match", &etag);
    let head = Answer::of(head).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (304, "10"));
    assert_eq!(ask(&server, &path, &[("if-none-match", "\"other\"")]).await.status, 200);
    let same = [("range", "bytes=0-3"), ("if-range", &*etag)];
    assert_eq!(ask(&server, &path, &same).await.status, 206);
    for other in ["\"other\"", "Wed, 21 Oct 2026 07:28:00 GMT"] {
        let answer = ask(&server, &path, &[("range", "bytes=0-3"), ("if-range", other)]).await;
        assert_eq!(answer.status, 200, "{other}");
    }
}

#[tokio::test]
async fn the_thumbnail_is_a_variant() {
    let (server, path) = finished().await;
    let still = server.get(&format!("{path}?variant=thumbnail")).await;
    assert_eq!((still.status.as_u16(), &*still.body), (200, STILL));
    assert_eq!(still.header("content-type"), "image/png");
    assert!(still.header("content-disposition").ends_with("-thumbnail.png\""));
    let other = server.get(&format!("{path}?variant=poster")).await;
    other.refused(400, "invalid_value", Some("variant"));
    server.get(&format!("{path}?varant=x")).await.refused(400, "unknown_field", Some("varant"));
}

#[tokio::test]
async fn a_task_without_a_result_says_why() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let task = server.submit("a").await;
    let path = format!("{TASKS}/{}/content", task.id);
    let early = server.get(&path).await.refused(409, "not_finished", None);
    assert!(early.message.contains("QUEUED") && early.message.contains("/events"), "{early:?}");
    let fence = worker.take(1).await.fence;
    server.get(&path).await.refused(409, "not_finished", None);
    let failure = json!({"code": "engine_refused", "message": "no foxes"});
    let failed = worker.call("fail", json!({"fence": fence, "failure": failure})).await;
    assert_eq!(failed.status, 200);
    let gone = server.get(&path).await.refused(410, "engine_refused", None);
    assert_eq!(gone.message, "the task failed and has no content: no foxes");

    let cancelled = server.submit("b").await;
    server.post(&format!("{TASKS}/{}/cancel", cancelled.id), &json!({})).await;
    let path = format!("{TASKS}/{}/content", cancelled.id);
    let gone = server.get(&path).await.refused(410, "cancelled", None);
    assert_eq!(gone.message, "there is no content: the task was cancelled");
    server.delete(path.trim_end_matches("/content")).await;
    let deleted = server.get(&path).await.refused(404, "task_not_found", None);
    assert!(deleted.message.contains("deleted"), "{}", deleted.message);

    let body = json!({"prompt": "late", "deadline": 1_800_000_060});
    let late: TaskBody = server.post(TASKS, &body).await.json();
    server.world.clock.advance(Duration::from_secs(120));
    server.app.components.store.advance().await.unwrap();
    let gone =
        server.get(&format!("{TASKS}/{}/content", late.id)).await.refused(410, "expired", None);
    assert_eq!(gone.message, "there is no content: the deadline passed before a worker was free");
    let plain = server.submit("c").await;
    let fence = worker.take(2).await.fence;
    worker.finish(fence, &[(video(VIDEO), VIDEO)]).await;
    let path = format!("{TASKS}/{}/content?variant=thumbnail", plain.id);
    server.get(&path).await.refused(400, "invalid_value", Some("variant"));
}
