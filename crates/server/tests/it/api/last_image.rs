//! The last frame of a request, beside its first: taken in the same ways, and kept as long.

use rayreel_domain::wire::api::TaskBody;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS, TOKEN, video};
use super::inputs::server;
use super::uploads::{files, pixels, png, with_image};
use crate::outbound::{Names, Peer, ok};

/// A picture that is not [`png`].
fn other() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 2);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().unwrap().write_image_data(&[240, 160, 80, 0]).unwrap();
    bytes
}

fn data_uri(picture: &[u8]) -> String {
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(picture);
    format!("data:image/png;base64,{data}")
}

/// A request with both.
fn both() -> Value {
    json!({"prompt": "p", "image": data_uri(&png()), "last_image": data_uri(&other())})
}

/// What the worker of the next task is given: the first frame and the last.
async fn given(server: &Server, seq: u64) -> [Answer; 2] {
    let worker = server.worker(&format!("w{seq}")).await;
    let fence = worker.take(1).await.fence;
    let path = format!("/v1/worker/inputs/{}/{}/{}", fence.task, fence.attempt, fence.nonce);
    let get = |path: &str| Answer::of(server.request(Method::GET, path).bearer_auth(TOKEN));
    [get(&path).await, get(&format!("{path}/last")).await]
}

#[tokio::test]
async fn however_it_comes_the_worker_is_given_both() {
    let peer = Peer::answering(ok(&other())).await;
    let server = server(Names::of(&[])).await;
    let uploaded = server.form("/v1/files", &[], &[("file", "a.png", &other())]).await;
    let file = uploaded.json::<Value>()["id"].as_str().unwrap().to_owned();
    let url = format!("http://127.0.0.1:{}/a.png", peer.port);
    let mut answers = Vec::new();
    for last_image in [url, data_uri(&other()), file] {
        let body = json!({"prompt": "p", "image": data_uri(&png()), "last_image": last_image});
        answers.push(server.post(TASKS, &body).await);
    }
    let parts: [(&str, &str, &[u8]); 2] =
        [("image", "a.png", &png()), ("last_image", "b.png", &other())];
    answers.push(server.form(TASKS, &[("prompt", "p")], &parts).await);
    for (seq, answer) in (1..).zip(answers) {
        assert_eq!(answer.status, 202, "{}", answer.text());
        let request = answer.json::<TaskBody>().request;
        assert_eq!((request.image, request.last_image), (true, true));
        let [first, last] = given(&server, seq).await;
        assert_eq!(pixels(&first.body), pixels(&png()));
        assert_eq!((last.status.as_u16(), last.header("content-type")), (200, "image/png"));
        assert_eq!(pixels(&last.body), pixels(&other()));
    }
    assert_eq!(files(&server).len(), 2, "each content once");

    assert_eq!(server.post(TASKS, &with_image()).await.status, 202);
    let [first, last] = given(&server, 9).await;
    assert_eq!(first.status, 200);
    last.refused(404, "route_not_found", None);
}

#[tokio::test]
async fn what_can_not_be_a_last_frame_is_refused_by_name_before_anything_is_fetched() {
    let peer = Peer::answering(ok(&png())).await;
    let server = server(Names::of(&[])).await;
    let url = format!("http://127.0.0.1:{}/a.png", peer.port);
    for (body, code, param, told) in [
        (json!({"last_image": url}), "missing_field", "image", "needs the first frame"),
        (
            json!({"image": url, "last_image": url, "frames": 1}),
            "invalid_value",
            "last_image",
            "1 frame",
        ),
        (
            json!({"image": url, "last_image": url, "format": "png"}),
            "invalid_value",
            "last_image",
            "1 frame",
        ),
        (json!({"image": url, "last_image": 7}), "invalid_value", "last_image", "a string"),
    ] {
        let mut body = body;
        body["prompt"] = json!("p");
        let message = server.post(TASKS, &body).await.refused(400, code, Some(param)).message;
        assert!(message.contains(told), "{message}");
    }
    assert!(peer.heard().is_empty());
    for (last_image, told) in [
        ("https://10.0.0.7/a.png", "not a public address"),
        ("/etc/passwd", "https:// URL"),
        ("data:image/png;base64,aGk=", "no image that is known"),
        ("file_018bcfe5680070707070707070707070", "there is no file"),
    ] {
        let body = json!({"prompt": "p", "image": data_uri(&png()), "last_image": last_image});
        let answer = server.post(TASKS, &body).await;
        let message = answer.refused(400, "invalid_value", Some("last_image")).message;
        assert!(message.contains(told), "{message}");
    }
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_model_that_does_not_take_an_image_refuses_it() {
    let server = Server::with(&[
        ("RAYREEL_MODELS__TEXT__COMMAND", r#"["engine"]"#),
        ("RAYREEL_MODELS__TEXT__IMAGES", "none"),
        ("RAYREEL_MODELS__FIRST__COMMAND", r#"["engine"]"#),
    ])
    .await;
    let ask = async |model: &str, mut body: Value| {
        body["model"] = json!(model);
        server.post(TASKS, &body).await
    };
    let refused = ask("text", with_image()).await.refused(400, "invalid_value", Some("image"));
    assert!(refused.message.contains("`text` takes no image"), "{}", refused.message);
    assert_eq!(ask("first", with_image()).await.status, 202);
    let refused = ask("first", both()).await.refused(400, "invalid_value", Some("last_image"));
    assert!(refused.message.contains("`first`"), "{}", refused.message);
    assert_eq!(ask("testcard", both()).await.status, 202);

    let body = json!({
        "model": "text", "prompt": "p", "input_reference": {"image_url": data_uri(&png())},
    });
    let answer = server.post("/v1/videos", &body).await;
    let message = answer.refused(400, "invalid_value", Some("input_reference")).message;
    assert!(message.contains("`input_reference`"), "{message}");
}

#[tokio::test]
async fn a_key_stands_for_the_last_frame_too() {
    let server = Server::start().await;
    let submit = async |body: &Value| {
        let request = server.request(Method::POST, TASKS).header("idempotency-key", "k");
        Answer::of(request.json(body)).await
    };
    let first: TaskBody = submit(&both()).await.json();
    assert_eq!(submit(&both()).await.json::<TaskBody>().id, first.id);
    let mut turned = both();
    turned["last_image"] = turned["image"].clone();
    for body in [with_image(), turned] {
        submit(&body).await.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
    }
}

#[tokio::test]
async fn a_remix_has_both_frames_though_its_source_goes() {
    let server = Server::start().await;
    let source: TaskBody = server.post(TASKS, &both()).await.json();
    let worker = server.worker("w").await;
    worker.finish(worker.take(1).await.fence, &[(video(b"day"), b"day")]).await;
    let path = format!("/v1/videos/{}/remix", source.id);
    let answer = server.post(&path, &json!({"prompt": "q"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.delete(&format!("/v1/videos/{}", source.id)).await.status, 200);
    server.world.clock.advance(std::time::Duration::from_secs(3_600));
    let components = &server.app.components;
    components.store.advance().await.unwrap();
    for item in components.store.garbage(10).await.unwrap() {
        components.artifacts.delete_folder(&item.folder).await.unwrap();
    }
    let [first, last] = given(&server, 2).await;
    assert_eq!(pixels(&first.body), pixels(&png()));
    assert_eq!(pixels(&last.body), pixels(&other()));
}
