//! Retention: what a tenant's tasks have left is gone when its time is over.

use std::time::Duration;

use rayreel_domain::wire::api::TaskBody;
use serde_json::{Value, json};

use super::client::{Server, TASKS, video};
use super::uploads::files;

const HOUR: u64 = 3_600;

/// Waits for what the duties do.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let reached = async { while !done().await {} };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, reached).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn record_files_and_events_are_gone_after_their_time() {
    let server = Server::running(&[("RAYREEL_TENANTS__DEFAULT__KEEP_DAYS", "0.5")]).await;
    let clock = &server.world.clock;
    let task = server.submit("a").await;
    assert_eq!(task.expires_at, None, "it has not ended");
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    worker.finish(fence, &[(video(b"mp4"), b"mp4")]).await;
    let ended: TaskBody = server.task(&task.id).await;
    assert_eq!(ended.expires_at, Some(ended.finished_at.unwrap() + 12 * HOUR));
    let path = format!("{TASKS}/{}", task.id);
    let link: Value =
        server.post(&format!("{path}/link"), &json!({"expires_in": 604_800})).await.json();
    let link = link["url"].as_str().unwrap();
    let link = link.strip_prefix(&format!("http://{}", server.address)).unwrap();

    clock.advance(Duration::from_secs(12 * HOUR - 1));
    server.app.components.feed.timers.notify_one();
    let other = server.submit("b").await;
    assert_eq!(server.get(link).await.status, 200, "a second before, it is all there");
    assert_eq!(files(&server).len(), 1);

    clock.advance(Duration::from_secs(1));
    server.app.components.feed.timers.notify_one();
    until("the record goes", async || server.get(&path).await.status == 404).await;
    for left in ["/content", "/events"] {
        server.get(&format!("{path}{left}")).await.refused(404, "task_not_found", None);
    }
    server.get(link).await.refused(404, "task_not_found", None);
    until("the files go", async || files(&server).is_empty()).await;
    let listed: Value = server.get(TASKS).await.json();
    let left: Vec<_> = listed["data"].as_array().unwrap().iter().map(|t| &t["id"]).collect();
    assert_eq!(left, [&json!(other.id)]);
}

#[tokio::test]
async fn what_is_kept_for_ever_says_so() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    assert_eq!(server.post(&format!("{TASKS}/{}/cancel", task.id), &json!({})).await.status, 200);
    assert_eq!(server.task(&task.id).await.expires_at, None);
}
