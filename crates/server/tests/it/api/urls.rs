//! URLs in answers: absolute, so that a client needs to know nothing but the answer.

use rayreel_domain::wire::api::{TaskBody, TaskList};
use reqwest::Method;
use serde_json::json;

use super::client::{Answer, Server, TASKS, output, video};
use rayreel_domain::wire::engine::Role;

/// Submits as if the server were called by this name.
async fn submit_to(server: &Server, host: &str) -> Answer {
    let request = server.request(Method::POST, TASKS).header("host", host);
    Answer::of(request.json(&json!({"prompt": "p"}))).await
}

#[tokio::test]
async fn urls_begin_with_the_host_that_was_called() {
    let server = Server::start().await;
    for host in ["localhost", "localhost:9999", "127.0.0.1:1", "[::1]:8088"] {
        let answer = submit_to(&server, host).await;
        let task: TaskBody = answer.json();
        let here = format!("http://{host}{TASKS}/{}", task.id);
        assert_eq!(task.urls.get, here);
        assert_eq!(task.urls.cancel, format!("{here}/cancel"));
        assert_eq!(task.urls.events, format!("{here}/events"));
        assert_eq!(task.urls.content, format!("{here}/content"));
        assert_eq!(answer.header("location"), here);
    }
}

#[tokio::test]
async fn every_url_of_an_answer_leads_somewhere() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let id = server.submit("p").await.id;
    let fence = worker.take(1).await.fence;
    worker
        .finish(
            fence,
            &[(video(b"film"), b"film"), (output(1, Role::Thumbnail, b"still"), b"still")],
        )
        .await;
    let listed: TaskList = server.get(TASKS).await.json();
    let task = server.task(&id).await;
    assert_eq!(listed.data, std::slice::from_ref(&task));
    let result = task.result.unwrap();
    for (url, body) in [
        (&result.url, Some("film")),
        (&task.urls.content, Some("film")),
        (result.thumbnail_url.as_ref().unwrap(), Some("still")),
        (&task.urls.get, None),
        (&task.urls.events, None),
    ] {
        let answer = Answer::of(server.http.get(url)).await;
        assert_eq!(answer.status, 200, "{url}");
        assert!(body.is_none_or(|body| answer.text() == body), "{url}");
    }
    assert_eq!(Answer::of(server.http.post(&task.urls.cancel)).await.status, 200);
}

#[tokio::test]
async fn behind_a_proxy_urls_begin_with_the_configured_address() {
    let proxy = "https://video.example.com/api/";
    let server = Server::with(&[("RAYREEL_PUBLIC_URL", proxy)]).await;
    let task = server.submit("p").await;
    let here = format!("https://video.example.com/api{TASKS}/{}", task.id);
    assert_eq!(task.urls.get, here);
    assert_eq!(server.task(&task.id).await.urls.get, here);
    let listed: TaskList = server.get(TASKS).await.json();
    assert_eq!(listed.data[0].urls.get, here);
    let answer = server.post(TASKS, &json!({"prompt": "p"})).await;
    assert_eq!(answer.header("location"), answer.json::<TaskBody>().urls.get);
}

#[tokio::test]
async fn an_address_that_names_a_host_itself_goes_before_the_header() {
    let server = Server::start().await;
    let task = server.submit("p").await;
    let path = format!("{TASKS}/{}", task.id);
    let request = format!("GET http://localhost:7{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let shown: TaskBody = server.raw(request.as_bytes()).await.json();
    assert_eq!(shown.urls.get, format!("http://localhost:7{path}"));
}
