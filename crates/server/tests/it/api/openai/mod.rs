//! OpenAI's shapes.

mod forms;
mod images;
mod videos;

use rayreel_domain::lease::Fence;
use rayreel_domain::wire::openai::{VideoBody, VideoStatus};
use rayreel_domain::wire::worker::{Assignment, Claimed};
use serde_json::{Value, json};

use super::client::{Server, Worker, output, video};

const VIDEOS: &str = "/v1/videos";
const VIDEO: &[u8] = b"moving pictures";
const STILL: &[u8] = b"a still";

async fn create(server: &Server, body: Value) -> VideoBody {
    let answer = server.post(VIDEOS, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn show(server: &Server, id: &str) -> VideoBody {
    let answer = server.get(&format!("{VIDEOS}/{id}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Waits for a task to be claimed.
async fn next(worker: &Worker<'_>, seq: u64) -> Assignment {
    match worker.claim(seq, 20_000).await {
        Claimed::Task(assignment) => *assignment,
        other => panic!("{other:?}"),
    }
}

async fn fail(worker: &Worker<'_>, fence: Fence, code: &str, message: &str) {
    let failure = json!({"code": code, "message": message});
    let answer = worker.call("fail", json!({"fence": fence, "failure": failure})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// A finished video, made from this request.
async fn finished(server: &Server, body: Value) -> VideoBody {
    let worker = server.worker("w").await;
    let made = create(server, body).await;
    let fence = worker.take(1).await.fence;
    let thumbnail = output(1, rayreel_domain::wire::engine::Role::Thumbnail, STILL);
    worker.finish(fence, &[(video(VIDEO), VIDEO), (thumbnail, STILL)]).await;
    let shown = show(server, &made.id).await;
    assert_eq!(shown.status, VideoStatus::Completed);
    shown
}
