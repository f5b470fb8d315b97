//! What every request passes: hosts, origins, request ids, panics.

use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::time::Timestamp;
use rayreel_server::clock::Clock;
use rayreel_server::{App, Components};
use reqwest::Method;
use serde_json::json;

use super::client::{Answer, Server, TASKS};
use crate::world::World;

async fn with_header(server: &Server, method: Method, name: &str, value: &str) -> Answer {
    let request = server.request(method, TASKS).header(name, value);
    Answer::of(request.json(&json!({"prompt": "p"}))).await
}

#[tokio::test]
async fn only_this_machines_names_are_answered() {
    let server = Server::start().await;
    for host in ["localhost", "127.0.0.1:9", "[::1]:8088", "LocalHost:80"] {
        assert_eq!(with_header(&server, Method::GET, "host", host).await.status, 200, "{host}");
    }
    for host in ["rebound.example", "127.0.0.1.nip.io", "192.168.1.2:8088", "0.0.0.0"] {
        let answer = with_header(&server, Method::POST, "host", host).await;
        answer.refused(403, "forbidden", None);
    }
    let absolute = format!("GET http://evil.example{TASKS} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    server.raw(absolute.as_bytes()).await.refused(403, "forbidden", None);
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let server = Server::start().await;
    for (hosts, version) in [
        ("", "1.1"),
        ("", "1.0"),
        ("Host: localhost\r\nHost: localhost\r\n", "1.1"),
        ("Host: localhost\r\nHost: evil.example\r\n", "1.0"),
        ("Host: \u{e9}\r\n", "1.1"),
    ] {
        for path in [TASKS.to_owned(), format!("http://localhost{TASKS}")] {
            let request = format!("GET {path} HTTP/{version}\r\n{hosts}\r\n");
            let answer = server.raw(request.as_bytes()).await;
            let refusal = answer.refused(400, "invalid_request", Some("Host"));
            assert!(refusal.message.contains("`Host`"), "{}", refusal.message);
        }
    }
    let empty = format!("GET {TASKS} HTTP/1.1\r\nHost:\r\n\r\n");
    server.raw(empty.as_bytes()).await.refused(403, "forbidden", None);
    let old = format!("GET {TASKS} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    assert_eq!(server.raw(old.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn other_sites_pages_change_nothing() {
    let server = Server::start().await;
    for origin in ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1"] {
        let answer = with_header(&server, Method::POST, "origin", origin).await;
        answer.refused(403, "forbidden", None);
        let answer = with_header(&server, Method::DELETE, "origin", origin).await;
        answer.refused(403, "forbidden", None);
    }
    assert_eq!(server.count().await, 0);
    let own = format!("http://{}", server.address);
    let answer = with_header(&server, Method::POST, "origin", &own).await;
    assert_eq!(answer.status, 202);
    let read = with_header(&server, Method::GET, "origin", "http://evil.example").await;
    assert_eq!(read.status, 200);
    assert_eq!(read.header("access-control-allow-origin"), "", "the page can't read it");
}

#[tokio::test]
async fn a_key_is_ignored_while_there_are_none() {
    let server = Server::start().await;
    let answer = with_header(&server, Method::POST, "authorization", "Bearer rr_anything").await;
    assert_eq!(answer.status, 202);
}

#[tokio::test]
async fn every_answer_has_a_request_id_the_callers_if_it_is_a_plain_word() {
    let server = Server::start().await;
    let given = with_header(&server, Method::GET, "x-request-id", "Trace_1.a-b").await;
    assert_eq!(given.header("x-request-id"), "Trace_1.a-b");
    let long = "x".repeat(65);
    for bad in ["", "a b", "a\"b", &long] {
        let answer = with_header(&server, Method::GET, "x-request-id", bad).await;
        assert_eq!(answer.header("x-request-id").len(), 16, "{bad:?}");
    }
    let (a, b) = (server.get("/healthz").await, server.get("/healthz").await);
    assert_ne!(a.header("x-request-id"), b.header("x-request-id"));
}

/// A clock that is broken.
#[derive(Debug)]
struct Broken;

impl Clock for Broken {
    fn wall(&self) -> Timestamp {
        panic!("the hands fell off")
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_says_no_more() {
    let world = World::new(&[]);
    let components = Components { clock: Arc::new(Broken), ..world.app.components.clone() };
    let app = App::new(world.app.settings.clone(), components);
    let server = Server::serve(world, Arc::new(app)).await;
    let answer = server.post(TASKS, &json!({"prompt": "p"})).await;
    let refusal = answer.refused(500, "internal", None);
    assert!(!answer.text().contains("hands"), "{}", refusal.message);
    assert_eq!(server.get("/healthz").await.status, 200, "the server lives on");
}
