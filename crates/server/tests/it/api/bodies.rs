//! Memory for bodies: bounded together, shared among tenants, and given back however a request ends.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Answer, LOCAL_TOKEN, Server, TASKS};
use super::uploads::png;

/// Length of the bodies that are sent here: the longest that the server takes.
const LONG: usize = 1 << 20;
const TAKEN: &str = "rayreel_bodies_bytes";

/// A server that reads four long bodies at most.
async fn server() -> Server {
    let long = LONG.to_string();
    let four = (4 * LONG).to_string();
    Server::with(&[("RAYREEL_MAX_BODY_BYTES", &long), ("RAYREEL_MAX_BODIES_BYTES", &four)]).await
}

async fn key(server: &Server, tenant: &str) -> String {
    let request = server.request(Method::POST, "/v1/admin/keys").bearer_auth(LOCAL_TOKEN);
    let made = Answer::of(request.json(&json!({"tenant": tenant}))).await;
    made.json::<Value>()["key"].as_str().unwrap().to_owned()
}

pub(super) fn head(path: &str, key: &str, rest: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\
         Expect: 100-continue\r\n{rest}\r\n\r\n"
    )
}

/// A caller that has announced a body and not sent it.
#[derive(Debug)]
pub(super) struct Sender(TcpStream);

impl Sender {
    /// The caller once it is told to go on, or what it is told instead.
    pub(super) async fn announce(server: &Server, head: &str) -> Result<Self, Answer> {
        let mut socket = TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        loop {
            if text.starts_with(b"HTTP/1.1 100 Continue\r\n\r\n") {
                return Ok(Self(socket));
            }
            if !text.starts_with(b"HTTP/1.1 1")
                && let Some(answer) = Answer::parse(&text)
            {
                return Err(answer);
            }
            assert_ne!(socket.read_buf(&mut text).await.unwrap(), 0, "closed");
        }
    }

    async fn long(server: &Server, key: &str) -> Result<Self, Answer> {
        let rest = format!("Content-Type: application/json\r\nContent-Length: {LONG}");
        Self::announce(server, &head(TASKS, key, &rest)).await
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub(super) async fn answer(mut self) -> Answer {
        let mut text = Vec::new();
        loop {
            if let Some(answer) = Answer::parse(&text) {
                return answer;
            }
            assert_ne!(self.0.read_buf(&mut text).await.unwrap(), 0, "closed");
        }
    }
}

fn busy(refused: Result<Sender, Answer>) {
    let answer = refused.expect_err("there is no room");
    assert_eq!(answer.header("retry-after"), "1");
    answer.refused(503, "server_busy", None);
}

#[tokio::test]
async fn a_tenant_may_take_what_it_leaves_to_others_and_no_more() {
    let server = server().await;
    let (anna, bert, carl) =
        (key(&server, "anna").await, key(&server, "bert").await, key(&server, "carl").await);
    let first = Sender::long(&server, &anna).await.expect("room");
    let second = Sender::long(&server, &anna).await.expect("room");
    busy(Sender::long(&server, &anna).await);
    let other = Sender::long(&server, &bert).await.expect("there is some left for others");
    busy(Sender::long(&server, &carl).await);
    assert_eq!(server.metric(TAKEN).await, Some(3.0 * LONG as f64));
    drop(other);
    server.until_metric(TAKEN, 2.0 * LONG as f64).await;
    assert!(Sender::long(&server, &carl).await.is_ok(), "whoever leaves makes room");
    drop((first, second));
    server.until_metric(TAKEN, 0.0).await;
}

#[tokio::test]
async fn who_has_no_key_takes_nothing() {
    let server = server().await;
    key(&server, "anna").await;
    let refused = Sender::long(&server, "rr_wrong").await.expect_err("refused");
    refused.refused(401, "unauthorized", None);
    assert_eq!(server.metric(TAKEN).await, Some(0.0));
}

#[tokio::test]
async fn small_bodies_are_read_even_when_there_is_no_room() {
    let server = server().await;
    let anna = key(&server, "anna").await;
    let _held = [Sender::long(&server, &anna).await.ok(), Sender::long(&server, &anna).await.ok()];
    busy(Sender::long(&server, &anna).await);
    let body = json!({"prompt": "p".repeat(1_000), "frames": 5});
    let request = server.request(Method::POST, TASKS).bearer_auth(&anna);
    assert_eq!(Answer::of(request.json(&body)).await.status, 202);
    let rest = "Content-Type: application/json\r\nContent-Length: 65536";
    assert!(Sender::announce(&server, &head(TASKS, &anna, rest)).await.is_ok());
}

#[tokio::test]
async fn what_a_body_took_is_given_back_with_its_answer() {
    let server = server().await;
    let anna = key(&server, "anna").await;
    let spaces = " ".repeat(LONG - 200);
    let good = format!("{{\"prompt\":\"p\",\"frames\":5{spaces}}}");
    for (body, status) in [(good, 202), ("x".repeat(100_000), 400)] {
        let request = server.request(Method::POST, TASKS).bearer_auth(&anna);
        let request = request.header("content-type", "application/json").body(body);
        assert_eq!(Answer::of(request).await.status, status);
        server.until_metric(TAKEN, 0.0).await;
    }
    // A picture in a form, which is held until it is stored.
    let picture = [png(), vec![0; 200_000]].concat();
    let form = form(&picture);
    let request = server.request(Method::POST, "/v1/files").bearer_auth(&anna);
    let request = request.header("content-type", "multipart/form-data; boundary=b").body(form);
    assert_eq!(Answer::of(request).await.status, 200);
    server.until_metric(TAKEN, 0.0).await;
}

fn form(bytes: &[u8]) -> Vec<u8> {
    let head = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\r\n";
    [head.as_bytes(), bytes, b"\r\n--b--\r\n"].concat()
}

/// Whoever does not say how long its body is pays as it grows.
#[tokio::test]
async fn chunks_are_counted_as_they_come() {
    let server = server().await;
    let anna = key(&server, "anna").await;
    let rest = "Content-Type: application/json\r\nTransfer-Encoding: chunked";
    let mut chunked = Sender::announce(&server, &head(TASKS, &anna, rest)).await.ok().unwrap();
    assert_eq!(server.metric(TAKEN).await, Some(0.0));
    let chunk = |length: usize| format!("{length:x}\r\n{}\r\n", " ".repeat(length));
    chunked.send(chunk(900_000).as_bytes()).await;
    let counted = async { while server.metric(TAKEN).await.unwrap() < 900_000.0 {} };
    tokio::time::timeout(Duration::from_secs(20), counted).await.expect("it is counted");
    let _other = Sender::long(&server, &anna).await.expect("room");
    let mut third = Sender::announce(&server, &head(TASKS, &anna, rest)).await.ok().unwrap();
    third.send(chunk(100_000).as_bytes()).await;
    third.answer().await.refused(503, "server_busy", None);
    chunked.send(chunk(200_000).as_bytes()).await;
    chunked.answer().await.refused(413, "body_too_large", None);
    server.until_metric(TAKEN, LONG as f64).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_gives_back_what_it_took() {
    let server = server().await;
    let anna = key(&server, "anna").await;
    let slow = Sender::long(&server, &anna).await.expect("room");
    assert_eq!(server.metric(TAKEN).await, Some(LONG as f64));
    tokio::time::advance(Duration::from_secs(31)).await;
    slow.answer().await.refusal();
    server.until_metric(TAKEN, 0.0).await;
}
