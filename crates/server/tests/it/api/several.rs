//! Several tasks in one submit: `n`.

use rayreel_domain::task::State;
use rayreel_domain::wire::api::{TaskBatch, TaskBody};
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS, id};
use super::uploads::{files, with_image};

fn ids(batch: &TaskBatch) -> Vec<String> {
    batch.data.iter().map(|task| task.id.clone()).collect()
}

async fn submit_with_key(server: &Server, body: &Value) -> Answer {
    let request = server.request(Method::POST, TASKS).header("idempotency-key", "k");
    Answer::of(request.json(body)).await
}

#[tokio::test]
async fn n_tasks_differ_by_their_seeds_and_come_as_a_list() {
    let server = Server::start().await;
    let answer = server.post(TASKS, &json!({"prompt": "p", "n": 3, "seed": 7})).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.header("location"), "", "there is no one path");
    assert_eq!(answer.header("x-rayreel-test-pattern"), "true");
    let batch: TaskBatch = answer.json();
    assert_eq!(batch.object, "list");
    let of = |task: &TaskBody| (task.status, task.request.seed, task.queue_position);
    let found: Vec<_> = batch.data.iter().map(of).collect();
    let queued = |seed, before| (State::Queued, seed, Some(before));
    assert_eq!(found, [queued(7, 0), queued(8, 1), queued(9, 2)]);
    for task in &batch.data {
        assert_eq!(server.task(&task.id).await, *task);
    }
    let stored = server.world.get(id(&batch.data[0])).await;
    let siblings: Vec<String> = stored.task.siblings.iter().map(ToString::to_string).collect();
    assert_eq!(siblings, ids(&batch)[1..]);
}

#[tokio::test]
async fn one_is_a_task_and_no_list() {
    let server = Server::start().await;
    let answer = server.post(TASKS, &json!({"prompt": "p", "n": 1})).await;
    let task: TaskBody = answer.json();
    assert_eq!(answer.header("location"), task.urls.get);
    assert_eq!(server.count().await, 1);
}

#[tokio::test]
async fn all_are_queued_or_none() {
    let server = Server::with(&[("RAYREEL_MAX_QUEUED", "4")]).await;
    server.submit("a").await;
    server.submit("b").await;
    let three = json!({"prompt": "p", "n": 3});
    server.post(TASKS, &three).await.refused(429, "queue_full", None);
    assert_eq!(server.count().await, 2);
    assert_eq!(server.post(TASKS, &json!({"prompt": "p", "n": 2})).await.status, 202);
    let bad = json!({"prompt": "p", "n": 9});
    server.post(TASKS, &bad).await.refused(400, "invalid_value", Some("n"));
    assert_eq!(server.count().await, 4);
}

#[tokio::test]
async fn a_repetition_finds_all_of_them() {
    let server = Server::start().await;
    let body = json!({"prompt": "p", "n": 3});
    let first: TaskBatch = submit_with_key(&server, &body).await.json();
    let again: TaskBatch = submit_with_key(&server, &body).await.json();
    assert_eq!(ids(&again), ids(&first));
    assert_eq!(again, first, "their seeds too");
    for other in [json!({"prompt": "p", "n": 2}), json!({"prompt": "p"})] {
        let refused = submit_with_key(&server, &other).await;
        refused.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
    }
    assert_eq!(server.count().await, 3);

    let [one, two, three] = &first.data[..] else { panic!("{first:?}") };
    for (gone, still) in [(two, [one, three].as_slice()), (one, &[three]), (three, &[])] {
        for _ in ["cancels", "deletes"] {
            assert_eq!(server.delete(&format!("{TASKS}/{}", gone.id)).await.status, 200);
        }
        let rest = submit_with_key(&server, &body).await;
        if still.is_empty() {
            rest.refused(409, "task_deleted", Some("Idempotency-Key"));
        } else {
            let still: Vec<String> = still.iter().map(|task| task.id.clone()).collect();
            assert_eq!(ids(&rest.json()), still);
        }
    }
}

#[tokio::test]
async fn all_have_the_one_image() {
    let server = Server::start().await;
    let mut body = with_image();
    body["n"] = json!(2);
    let batch: TaskBatch = submit_with_key(&server, &body).await.json();
    assert_eq!(files(&server).len(), 1);
    let again: TaskBatch = submit_with_key(&server, &body).await.json();
    assert_eq!(ids(&again), ids(&batch));
    assert_eq!(files(&server).len(), 1);

    let worker = server.worker("w").await;
    for seq in 1..=2 {
        let assignment = worker.take(seq).await;
        assert!(assignment.request.image.is_some());
        let path = format!(
            "/v1/worker/inputs/{}/{}/{}",
            assignment.fence.task, assignment.fence.attempt, assignment.fence.nonce
        );
        let request = server.request(Method::GET, &path).bearer_auth(super::client::TOKEN);
        assert_eq!(Answer::of(request).await.status, 200);
        let path = format!("{TASKS}/{}/cancel", assignment.fence.task);
        assert_eq!(server.post(&path, &json!({})).await.status, 200);
    }
}
