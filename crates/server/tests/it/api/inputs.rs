//! The image of a request, from wherever it may come.

use std::sync::Arc;

use rayreel_domain::wire::api::TaskBody;
use rayreel_server::{App, Components, outbound};
use serde_json::json;

use super::client::{Answer, Server, TASKS, TOKEN};
use super::limits::key;
use super::uploads::{files, pixels, png, with_image};
use crate::outbound::{Names, Peer, ok};
use crate::world::World;

/// A server that may call this machine, by addresses, and believes this DNS.
pub(super) async fn server(names: Arc<Names>) -> Server {
    patient_server(names, "2").await
}

/// One that waits so many seconds for what it calls.
async fn patient_server(names: Arc<Names>, seconds: &str) -> Server {
    let world = World::new(&[
        ("RAYREEL_OUTBOUND__ALLOW", r#"["127.0.0.1"]"#),
        ("RAYREEL_OUTBOUND__WHOLE_SECONDS", seconds),
    ]);
    let settings = world.app.settings.clone();
    let client = outbound::Client::new(settings.outbound.options(), names);
    let components = Components { outbound: Arc::new(client), ..world.app.components.clone() };
    Server::serve(world, Arc::new(App::new(settings, components))).await
}

/// What the worker of the next task is given.
pub(super) async fn given(server: &Server, seq: u64) -> Vec<u8> {
    let worker = server.worker(&format!("w{seq}")).await;
    let fence = worker.take(1).await.fence;
    let path = format!("/v1/worker/inputs/{}/{}/{}", fence.task, fence.attempt, fence.nonce);
    let request = server.request(reqwest::Method::GET, &path).bearer_auth(TOKEN);
    Answer::of(request).await.body
}

#[tokio::test]
async fn however_an_image_comes_it_is_the_same_one() {
    let peer = Peer::answering(ok(&png())).await;
    let server = server(Names::of(&[("pictures.example", &[&["127.0.0.1"]])])).await;
    let uploaded = server.form("/v1/files", &[], &[("file", "a.png", &png())]).await;
    let id = uploaded.json::<serde_json::Value>()["id"].as_str().unwrap().to_owned();
    let by_address = format!("http://127.0.0.1:{}/a.png", peer.port);
    let by_name = format!("http://pictures.example:{}/a.png", peer.port);
    let data_uri = with_image()["image"].as_str().unwrap().to_owned();
    for (seq, image) in (1..).zip([by_address, by_name, data_uri, id]) {
        let answer = server.post(TASKS, &json!({"prompt": "p", "image": image})).await;
        assert_eq!(answer.status, 202, "{image}: {}", answer.text());
        assert!(answer.json::<TaskBody>().request.image);
        assert_eq!(pixels(&given(&server, seq).await), pixels(&png()), "{image}");
    }
    let fields = [("prompt", "p"), ("steps", "2"), ("metadata[a]", "b")];
    let answer = server.form(TASKS, &fields, &[("image", "a.png", &png())]).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let task: TaskBody = answer.json();
    assert_eq!((task.request.steps, task.request.image), (2, true));
    assert_eq!(pixels(&given(&server, 9).await), pixels(&png()));
    assert_eq!(files(&server).len(), 1);
}

#[tokio::test]
async fn a_key_stands_for_the_image_of_a_form_too() {
    let server = Server::start().await;
    let submit = async |picture: &[u8]| {
        let head = "--b\r\nContent-Disposition: form-data; name=";
        let text = format!("{head}\"prompt\"\r\n\r\np\r\n{head}\"image\"; filename=\"a\"\r\n\r\n");
        let body = [text.as_bytes(), picture, b"\r\n--b--\r\n"].concat();
        let request = server.request(reqwest::Method::POST, TASKS).header("idempotency-key", "k");
        let form = "multipart/form-data; boundary=b";
        Answer::of(request.header("content-type", form).body(body)).await
    };
    let (first, again) = (submit(&png()).await, submit(&png()).await);
    assert_eq!(first.json::<TaskBody>().id, again.json::<TaskBody>().id);
    let other = [&png()[..], b"trailing"].concat();
    submit(&other).await.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
}

#[tokio::test]
async fn an_image_that_can_not_be_had_is_refused_with_the_reason() {
    let server = server(Names::of(&[("inside.example", &[&["10.0.0.7"]])])).await;
    let html = Peer::answering(ok(b"<!doctype html><title>secret</title>")).await;
    let gone = Peer::answering("HTTP/1.1 410 Gone\r\ncontent-length: 6\r\n\r\nsecret").await;
    let at = |peer: &Peer| format!("http://127.0.0.1:{}/", peer.port);
    for (image, told) in [
        (at(&html), "a SVG or HTML file"),
        (at(&gone), "status 410"),
        ("https://inside.example/".to_owned(), "`inside.example` does not lead"),
        ("https://10.0.0.7/".to_owned(), "not a public address"),
        ("file_018bcfe5680070707070707070707070".to_owned(), "there is no file"),
        ("file_../../etc/passwd".to_owned(), "there is no file"),
        ("/etc/passwd".to_owned(), "https:// URL"),
        ("file:///etc/passwd".to_owned(), "`file:` URLs"),
        (" ".to_owned(), "https:// URL"),
    ] {
        let answer = server.post(TASKS, &json!({"prompt": "p", "image": image})).await;
        let message = answer.refused(400, "invalid_value", Some("image")).message;
        assert!(message.contains(told), "{image}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
    assert_eq!(server.count().await, 0);
    assert!(files(&server).is_empty());
}

#[tokio::test]
async fn a_tenant_whose_images_do_not_come_keeps_no_other_waiting() {
    let (slow, fast) =
        (Peer::stalling("HTTP/1.1 200 OK\r\n").await, Peer::answering(ok(&png())).await);
    let server = patient_server(Names::of(&[]), "60").await;
    let (evil, other) = (key(&server, "evil").await, key(&server, "other").await);
    let submit = |key: &str, peer: &Peer| {
        let image = format!("http://127.0.0.1:{}/a.png", peer.port);
        let body = json!({"prompt": "p", "image": image});
        server.request(reqwest::Method::POST, TASKS).bearer_auth(key).json(&body)
    };
    let mut evils = tokio::task::JoinSet::new();
    (0..100).for_each(|_| _ = evils.spawn(submit(&evil, &slow).send()));
    // Half of all fetches, and a line as long as it may be: the others are told to come later.
    for _ in 0..100 - 8 - 64 {
        let refused = evils.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["retry-after"]),
            (503, &"1".parse().unwrap())
        );
    }
    let reached = async {
        while slow.heard().len() < 8 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), reached).await.unwrap();
    assert_eq!(Answer::of(submit(&other, &fast)).await.status, 202);
    assert!(evils.try_join_next().is_none(), "nothing had to end for that");
    assert_eq!(slow.heard().len(), 8);
}
