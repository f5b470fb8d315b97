//! `Prefer: wait=N`: the answer to a submit comes with the result.

use rayreel_domain::task::State;
use rayreel_domain::wire::api::{TaskBatch, TaskBody};
use rayreel_domain::wire::worker::Claimed;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS, Worker, video};

async fn submit(server: &Server, wait: &str, body: Value) -> Answer {
    let request = server.request(Method::POST, TASKS).header("prefer", wait);
    Answer::of(request.json(&body)).await
}

/// Does the next task, once it is there.
async fn work(worker: &Worker<'_>, seq: u64) {
    let Claimed::Task(assignment) = worker.claim(seq, 20_000).await else { panic!("no task") };
    worker.finish(assignment.fence, &[(video(b"film"), b"film")]).await;
}

#[tokio::test]
async fn the_answer_comes_when_the_task_has_ended() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (answer, ()) =
        tokio::join!(submit(&server, "wait=60", json!({"prompt": "p"})), work(&worker, 1));
    assert_eq!((answer.status.as_u16(), answer.header("preference-applied")), (200, "wait=60"));
    let task: TaskBody = answer.json();
    assert_eq!((task.status, task.progress), (State::Succeeded, 100));
    assert_eq!(Answer::of(server.http.get(task.result.unwrap().url)).await.text(), "film");
}

#[tokio::test]
async fn several_tasks_are_waited_for_together() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let (answer, ()) =
        tokio::join!(submit(&server, "wait=60", json!({"prompt": "p", "n": 2})), async {
            work(&worker, 1).await;
            work(&worker, 2).await;
        });
    assert_eq!(answer.status, 200);
    let states = answer.json::<TaskBatch>().data.into_iter().map(|task| task.status);
    assert_eq!(states.collect::<Vec<_>>(), [State::Succeeded; 2]);
}

#[tokio::test]
async fn an_end_without_a_result_is_an_end() {
    let server = Server::start().await;
    let cancel = async {
        let worker = server.worker("w").await;
        let Claimed::Task(assignment) = worker.claim(1, 20_000).await else { panic!("no task") };
        let path = format!("{TASKS}/{}/cancel", assignment.fence.task);
        assert_eq!(server.post(&path, &json!({})).await.status, 200);
    };
    let (answer, ()) = tokio::join!(submit(&server, "wait=60", json!({"prompt": "p"})), cancel);
    assert_eq!(answer.status, 200);
    let task: TaskBody = answer.json();
    assert_eq!(task.status, State::Cancelled);
    assert_eq!(task.error.unwrap().code.name(), "cancelled");
}

#[tokio::test]
async fn who_has_waited_long_enough_gets_the_task_as_it_is() {
    let server = Server::start().await;
    for (wait, applied) in [("wait=0", "wait=0"), ("wait=1", "wait=1"), ("wait=soon", "")] {
        let answer = submit(&server, wait, json!({"prompt": "p"})).await;
        assert_eq!(answer.status, 202);
        assert_eq!(answer.header("preference-applied"), applied);
        assert_eq!(answer.json::<TaskBody>().status, State::Queued);
    }
}

#[tokio::test]
async fn nobody_waits_longer_than_the_server_allows() {
    let server = Server::with(&[("RAYREEL_MAX_WAIT_SECONDS", "0.05")]).await;
    let answer = submit(&server, "wait=3600", json!({"prompt": "p"})).await;
    assert_eq!((answer.status.as_u16(), answer.header("preference-applied")), (202, "wait=0"));
}

#[tokio::test]
async fn a_server_that_stops_lets_nobody_wait() {
    let server = Server::start().await;
    let stop = async {
        let worker = server.worker("w").await;
        assert!(matches!(worker.claim(1, 20_000).await, Claimed::Task(_)));
        server.shutdown.cancel();
    };
    let (answer, ()) = tokio::join!(submit(&server, "wait=60", json!({"prompt": "p"})), stop);
    assert_eq!(answer.status, 202);
    assert!(matches!(answer.json::<TaskBody>().status, State::Queued | State::Running));
}
