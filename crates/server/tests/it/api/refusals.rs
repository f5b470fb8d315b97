//! Bad requests: each is refused with its code and the field at fault, and nothing is stored.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{Answer, Server, TASKS};

const LIMIT: &str = "1500000";

#[tokio::test]
async fn a_bad_submit_is_refused_by_name_and_leaves_nothing() {
    let server = Server::with(&[("RAYREEL_MAX_BODY_BYTES", LIMIT)]).await;
    let with = |field: &str, value: Value| {
        let mut body = json!({"prompt": "p"});
        body[field] = value;
        body.to_string().into_bytes()
    };
    let text = |text: &str| text.as_bytes().to_vec();
    let bad: Vec<(Vec<u8>, &str, Option<&str>)> = vec![
        (text("{}"), "missing_field", Some("prompt")),
        (text(r#"{"prompt":null}"#), "missing_field", Some("prompt")),
        (with("prompt", json!("x".repeat(1_000_000))), "invalid_value", Some("prompt")),
        (with("prompt", json!(5)), "invalid_value", Some("prompt")),
        (with("size", json!("640x361")), "invalid_value", Some("size")),
        (with("size", json!("1920x1920")), "invalid_value", Some("size")),
        (with("size", json!("large")), "invalid_value", Some("size")),
        (with("frames", json!(80)), "invalid_value", Some("frames")),
        (with("frames", json!(325)), "invalid_value", Some("frames")),
        (with("frames", json!(5.5)), "invalid_value", Some("frames")),
        (with("seconds", json!(60)), "invalid_value", Some("seconds")),
        (with("steps", json!(0)), "invalid_value", Some("steps")),
        (with("priority", json!(6)), "invalid_value", Some("priority")),
        (with("deadline", json!(1_700_000_000)), "invalid_value", Some("deadline")),
        (with("format", json!("gif")), "invalid_value", Some("format")),
        (with("model", json!("sora")), "unknown_model", Some("model")),
        (with("model", json!("no name")), "unknown_model", Some("model")),
        (with("promt", json!("p")), "unknown_field", Some("promt")),
        (with("image", json!("https://127.0.0.1/a.png")), "invalid_value", Some("image")),
        (with("image", json!("data:image/png;base64,AAAA")), "invalid_value", Some("image")),
        (text(""), "invalid_json", None),
        (text("{\"prompt\":\"p\""), "invalid_json", None),
        (text("{\"prompt\":\"p\"} {}"), "invalid_json", None),
        (text("[\"p\"]"), "invalid_json", None),
        (text("\"p\""), "invalid_json", None),
        (text(r#"{"prompt":"p","prompt":"q"}"#), "invalid_json", Some("prompt")),
        (b"{\"prompt\":\"\xff\xfe\"}".to_vec(), "invalid_json", None),
    ];
    for (body, code, param) in bad {
        let request = server.request(Method::POST, TASKS);
        let request = request.header("content-type", "application/json");
        let answer = Answer::of(request.body(body.clone())).await;
        let refusal = answer.refused(400, code, param);
        let start = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert!(!refusal.message.is_empty(), "{start}");
        match code {
            "unknown_model" => assert!(refusal.message.contains("testcard")),
            "unknown_field" => assert!(refusal.message.contains("`prompt`?")),
            "invalid_json" if param.is_none() && !start.starts_with(['[', '"']) => {
                let place = refusal.message.contains("line 1 column")
                    || refusal.message.contains("byte 11");
                assert!(place, "{}", refusal.message);
            }
            _ => {}
        }
    }
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn only_json_is_read() {
    let server = Server::start().await;
    for content_type in ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
    {
        let mut request = server.request(Method::POST, TASKS).body(r#"{"prompt":"p"}"#);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let answer = Answer::of(request).await;
        answer.refused(415, "unsupported_media_type", Some("Content-Type"));
    }
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_body_that_is_announced_too_long_is_refused_before_it_is_read() {
    let server = Server::with(&[("RAYREEL_MAX_BODY_BYTES", LIMIT)]).await;
    // The head only: not one byte of the body is sent.
    for expect in ["", "Expect: 100-continue\r\n"] {
        let head = format!(
            "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             {expect}Content-Length: 1500001\r\n\r\n"
        );
        server.raw(head.as_bytes()).await.refused(413, "body_too_large", None);
    }
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_body_of_unknown_length_is_cut_at_the_limit() {
    let server = Server::with(&[("RAYREEL_MAX_BODY_BYTES", "65536")]).await;
    let mut request = format!(
        "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..17 {
        request.extend_from_slice(b"1000\r\n");
        request.extend_from_slice(&[b' '; 0x1000]);
        request.extend_from_slice(b"\r\n");
    }
    // The end never comes.
    server.raw(&request).await.refused(413, "body_too_large", None);
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_chunked_body_within_the_limit_is_read_as_a_whole() {
    let server = Server::start().await;
    let request = format!(
        "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n7\r\n{{\"promp\r\n5\r\nt\":\"p\r\n2\r\n\"}}\r\n0\r\n\r\n"
    );
    assert_eq!(server.raw(request.as_bytes()).await.status, 202);
}

#[tokio::test]
async fn a_caller_that_goes_in_the_middle_of_its_body_leaves_nothing() {
    let server = Server::start().await;
    let mut socket = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let head = format!(
        "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: 14\r\n\r\n{{\"prompt\":"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut rest = Vec::new();
    // Refused or closed; in either case without a task.
    let _ = socket.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_refused_in_json() {
    let server = Server::start().await;
    for path in ["/", "/v1", "/v1/video/generations/", "/v1/video", "/nothing?x=1"] {
        server.get(path).await.refused(404, "route_not_found", None);
    }
    for (method, path, allowed) in [
        (Method::PUT, TASKS.to_owned(), &["GET", "HEAD", "POST"][..]),
        (Method::PATCH, format!("{TASKS}/task_1"), &["GET", "HEAD", "DELETE"]),
        (Method::GET, format!("{TASKS}/task_1/cancel"), &["POST"]),
        (Method::OPTIONS, TASKS.to_owned(), &["GET", "HEAD", "POST"]),
        (Method::POST, "/healthz".to_owned(), &["GET", "HEAD"]),
    ] {
        let answer = Answer::of(server.request(method, &path)).await;
        answer.refused(405, "method_not_allowed", None);
        let mut allow: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
        allow.sort_unstable();
        let mut allowed = allowed.to_vec();
        allowed.sort_unstable();
        assert_eq!(allow, allowed, "{path}");
    }
}
