//! A submit that is repeated under its key: the first one's task, and nothing is fetched or decoded
//! for it.

use std::sync::Arc;

use rayreel_domain::task::State;
use rayreel_domain::wire::api::TaskBody;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS, video};
use super::inputs::server;
use super::uploads::{files, png, with_image};
use crate::outbound::{Names, Peer, ok};

/// Submits under a key, and answers the id.
async fn submit(server: &Server, path: &str, body: &Value) -> Answer {
    Answer::of(server.request(Method::POST, path).header("idempotency-key", "k").json(body)).await
}

fn id(answer: &Answer) -> String {
    assert!(answer.status.is_success(), "{}", answer.text());
    answer.json::<Value>()["id"].as_str().unwrap().to_owned()
}

fn mismatch(answer: &Answer) {
    answer.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
}

#[tokio::test]
async fn a_url_is_fetched_for_the_first_submit_alone() {
    for (path, field) in [
        (TASKS, json!({"image": ""})),
        ("/generate", json!({"image": ""})),
        ("/v1/videos", json!({"input_reference": {"image_url": ""}})),
    ] {
        let peer = Peer::answering(ok(&png())).await;
        let server = server(Names::of(&[])).await;
        let url = format!("http://127.0.0.1:{}/a.png", peer.port);
        let asked = |prompt: &str, url: &str| {
            let text = field.to_string().replace("\"\"", &json!(url).to_string());
            let mut body: Value = serde_json::from_str(&text).unwrap();
            body["prompt"] = json!(prompt);
            body
        };
        let first = submit(&server, path, &asked("p", &url)).await;
        assert_eq!(peer.heard().len(), 1);
        let again = submit(&server, path, &asked("p", &url)).await;
        assert_eq!((again.status, id(&again)), (first.status, id(&first)), "{path}");
        mismatch(&submit(&server, path, &asked("q", &url)).await);
        mismatch(&submit(&server, path, &asked("p", &format!("{url}?2"))).await);
        assert_eq!(peer.heard().len(), 1, "{path}");

        // Nobody is there any more.
        drop(peer);
        assert_eq!(id(&submit(&server, path, &asked("p", &url)).await), id(&first), "{path}");
        assert_eq!(server.count().await, 1);
    }
}

#[tokio::test]
async fn a_repetition_needs_neither_the_decoder_nor_what_the_first_one_named() {
    let server = Server::start().await;
    let uploaded = server.form("/v1/files", &[], &[("file", "a.png", &png())]).await;
    let file = uploaded.json::<Value>()["id"].as_str().unwrap().to_owned();
    let body = json!({"prompt": "p", "image": file});
    let first = submit(&server, TASKS, &body).await;
    assert_eq!(server.delete(&format!("/v1/files/{file}")).await.status, 200);
    assert_eq!(id(&submit(&server, TASKS, &body).await), id(&first));

    // Its image is gone with it; the key still counts.
    let path = format!("{TASKS}/{}", id(&first));
    for _ in ["cancels", "deletes"] {
        assert_eq!(server.delete(&path).await.status, 200);
    }
    let answer = submit(&server, TASKS, &body).await;
    let refused = answer.refused(409, "task_deleted", Some("Idempotency-Key"));
    assert!(refused.message.contains(&id(&first)), "{}", refused.message);
    mismatch(&submit(&server, TASKS, &with_image()).await);
    assert_eq!(server.count().await, 0);

    // After a day it is a submit like any other, whose file is missed.
    server.world.clock.advance(std::time::Duration::from_secs(24 * 3_600));
    submit(&server, TASKS, &body).await.refused(400, "invalid_value", Some("image"));
}

#[tokio::test]
async fn forms_with_equal_parts_are_equal_whatever_their_boundary() {
    let server = Server::start().await;
    let form = async |boundary: &str, picture: &[u8]| {
        let part = |head: &str, bytes: &[u8]| {
            let head = format!("--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n");
            [head.as_bytes(), bytes, b"\r\n"].concat()
        };
        let parts =
            [part("name=\"prompt\"", b"p"), part("name=\"image\"; filename=\"a\"", picture)];
        let body = [&parts.concat()[..], format!("--{boundary}--\r\n").as_bytes()].concat();
        let request = server.request(Method::POST, TASKS).header("idempotency-key", "k");
        let media_type = format!("multipart/form-data; boundary={boundary}");
        Answer::of(request.header("content-type", media_type).body(body)).await
    };
    let first = form("one", &png()).await;
    assert_eq!(id(&form("another", &png()).await), id(&first));
    // Not even a picture: it is not looked at.
    mismatch(&form("one", b"other").await);
    assert_eq!(files(&server).len(), 1);
}

#[tokio::test]
async fn a_remix_is_found_though_its_source_is_gone() {
    let server = Server::start().await;
    let source = server.submit("a fox").await;
    let worker = server.worker("w").await;
    worker.finish(worker.take(1).await.fence, &[(video(b"fox"), b"fox")]).await;
    assert_eq!(server.task(&source.id).await.status, State::Succeeded);
    let path = format!("/v1/videos/{}/remix", source.id);
    let first = submit(&server, &path, &json!({"prompt": "a wolf"})).await;
    assert_eq!(server.delete(&format!("/v1/videos/{}", source.id)).await.status, 200);
    assert_eq!(id(&submit(&server, &path, &json!({"prompt": "a wolf"})).await), id(&first));
    mismatch(&submit(&server, &path, &json!({"prompt": "a cat"})).await);
}

#[tokio::test]
async fn of_many_at_once_one_makes_the_task() {
    let peer = Peer::answering(ok(&png())).await;
    let server = Arc::new(server(Names::of(&[])).await);
    let url = format!("http://127.0.0.1:{}/a.png", peer.port);
    let calls = (0..64).map(|_| {
        let (server, body) = (Arc::clone(&server), json!({"prompt": "p", "image": url}));
        async move { submit(&server, TASKS, &body).await }
    });
    let answers = futures_util::future::join_all(calls).await;
    let first = id(&answers[0]);
    assert!(answers.iter().all(|answer| id(answer) == first));
    assert_eq!(server.count().await, 1);
    assert!(server.task(&first).await.request.image);
    assert_eq!(answers[0].json::<TaskBody>().status, State::Queued);
}
