//! What comes over the wire and is not right: a refusal in the one form, and nothing stored.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::{Server, within};

const TASKS: &str = "/v1/video/generations";

/// An answer, read by hand, so that nothing tidies up what is sent.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    error: Value,
}

fn read(mut connection: TcpStream) -> Answer {
    connection.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).expect("the server closes the connection");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let mut body: Value =
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {text}"));
    Answer { status, head: head.to_ascii_lowercase(), error: body["error"].take() }
}

fn send(server: &Server, head: &str, body: &[u8]) -> Answer {
    let mut connection = TcpStream::connect(server.address()).expect("connected");
    write!(
        connection,
        "{head} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    )
    .expect("sent");
    if !body.is_empty() {
        connection.write_all(b"content-type: application/json\r\n").expect("sent");
    }
    connection.write_all(b"\r\n").and_then(|()| connection.write_all(body)).expect("sent");
    read(connection)
}

#[track_caller]
fn check(answer: &Answer, status: u16, code: &str, param: Option<&str>) {
    assert_eq!(answer.status, status, "{answer:#?}");
    let error = &answer.error;
    assert_eq!(error["code"], code, "{answer:#?}");
    assert_eq!(error["param"].as_str(), param, "{answer:#?}");
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{answer:#?}");
    assert!(error["type"].as_str().is_some_and(|text| text.ends_with("_error")), "{answer:#?}");
    let id = error["request_id"].as_str().expect("a request id");
    assert!(!id.is_empty() && answer.head.contains(&format!("x-request-id: {id}")), "{answer:#?}");
}

/// What a process is given at first is far less than it may have.
#[test]
fn connections_are_not_bounded_by_the_files_that_a_process_may_open_at_first() {
    let mut server = Server::prepare("[pools.local]\nmax = 0\n");
    server.files = Some(64);
    server.serve();
    let idle: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(server.address()).expect("connected")).collect();
    check(&send(&server, "GET /nowhere", b""), 404, "route_not_found", None);
    for connection in &idle {
        connection.set_nonblocking(true).expect("set");
        let read = (&*connection).read(&mut [0]).expect_err("nothing comes, and no end");
        assert_eq!(read.kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn bad_requests_are_refused_with_code_and_param_and_nothing_is_stored() {
    let server = Server::start("[pools.local]\nmax = 0\n");
    let submit = format!("POST {TASKS}");
    let megabyte = json!({"prompt": "x".repeat(1 << 20)}).to_string();
    let bodies: &[(&[u8], &str, Option<&str>)] = &[
        (b"{}", "missing_field", Some("prompt")),
        (megabyte.as_bytes(), "invalid_value", Some("prompt")),
        (br#"{"prompt": "p", "size": "100x101"}"#, "invalid_value", Some("size")),
        (br#"{"prompt": "p", "size": "big"}"#, "invalid_value", Some("size")),
        (br#"{"prompt": "p", "frames": 48}"#, "invalid_value", Some("frames")),
        (br#"{"prompt": "p", "seconds": 1000}"#, "invalid_value", Some("seconds")),
        (br#"{"prompt": "p", "steps": 101}"#, "invalid_value", Some("steps")),
        (br#"{"prompt": "p", "model": "nope"}"#, "unknown_model", Some("model")),
        (br#"{"prompt": "p", "frmaes": 5}"#, "unknown_field", Some("frmaes")),
        (br#"{"prompt": "p""#, "invalid_json", None),
        (br#"{"prompt": "p", "prompt": "q"}"#, "invalid_json", None),
        (b"{\"prompt\": \"\xff\xfe\"}", "invalid_json", None),
        (b"[]", "invalid_json", None),
    ];
    for (body, code, param) in bodies {
        let answer = send(&server, &submit, body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(answer.error["code"], *code, "{shown}: {answer:#?}");
        // Where JSON itself is broken, which field is at fault may be known or not.
        let param = if *code == "invalid_json" { answer.error["param"].as_str() } else { *param };
        check(&answer, 400, code, param);
    }
    let answer = send(&server, &submit, br#"{"prompt": "p", "frmaes": 5}"#);
    assert!(answer.error["message"].to_string().contains("frames"), "it names the nearest field");
    for (query, code, param) in [
        ("limit=0", "invalid_value", "limit"),
        ("limit=101", "invalid_value", "limit"),
        ("limit=x", "invalid_value", "limit"),
        ("cursor=made-up", "invalid_cursor", "cursor"),
        ("state=done", "invalid_value", "state"),
        ("page=2", "unknown_field", "page"),
    ] {
        let answer = send(&server, &format!("GET {TASKS}?{query}"), b"");
        check(&answer, 400, code, Some(param));
    }
    assert!(server.api().every_task().is_empty(), "nothing is stored");
}

#[test]
fn the_routers_own_refusals_have_the_same_form() {
    let server = Server::start("[pools.local]\nmax = 0\n");
    check(&send(&server, "GET /nowhere", b""), 404, "route_not_found", None);
    let answer = send(&server, &format!("PATCH {TASKS}"), b"{}");
    check(&answer, 405, "method_not_allowed", None);
    assert!(answer.head.contains("allow:"), "{answer:#?}");
    check(&send(&server, &format!("GET {TASKS}/task_1"), b""), 404, "task_not_found", None);
    check(&send(&server, "POST /v1/worker/claim", b"{}"), 401, "unauthorized", None);

    let mut connection = TcpStream::connect(server.address()).expect("connected");
    write!(
        connection,
        "POST {TASKS} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: text/plain\r\ncontent-length: 15\r\n\r\n{{\"prompt\": \"p\"}}"
    )
    .expect("sent");
    let answer = read(connection);
    check(&answer, 415, "unsupported_media_type", answer.error["param"].as_str());

    let mut connection = TcpStream::connect(server.address()).expect("connected");
    write!(connection, "GET {TASKS} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n")
        .expect("sent");
    check(&read(connection), 403, "forbidden", None);
    assert!(server.api().every_task().is_empty(), "nothing is stored");
}

#[test]
fn what_is_no_request_is_refused_in_the_same_form() {
    let server = Server::start("[pools.local]\nmax = 0\n");
    let host = "host: localhost\r\n";
    let long = "x".repeat(20_000);
    for (request, status, param) in [
        ("nonsense\r\n\r\n".to_owned(), 400, None),
        (format!("GET {TASKS} HTTP/1.1\r\n{host}x: {long}\r\n\r\n"), 431, None),
        (format!("GET {TASKS}?{long} HTTP/1.1\r\n{host}\r\n"), 414, None),
        (format!("GET {TASKS} HTTP/3.0\r\n{host}\r\n"), 505, None),
        (
            format!("POST {TASKS} HTTP/1.1\r\n{host}content-length: 1, 2\r\n\r\n"),
            400,
            Some("Content-Length"),
        ),
        (format!("GET {TASKS} HTTP/1.1\r\nconnection: close\r\n\r\n"), 400, Some("Host")),
    ] {
        let mut connection = TcpStream::connect(server.address()).expect("connected");
        connection.write_all(request.as_bytes()).expect("sent");
        check(&read(connection), status, "invalid_request", param);
    }
}

#[test]
fn a_refusal_is_heard_by_who_sends_all_before_it_listens() {
    let server = Server::start("max_body_bytes = 100_000\n[pools.local]\nmax = 0\n");
    let body = vec![b' '; 20 << 20];
    check(&send(&server, &format!("POST {TASKS}"), &body), 413, "body_too_large", None);
}

#[test]
fn a_body_that_is_announced_as_too_long_is_refused_before_it_comes() {
    let server = Server::start("max_body_bytes = 100_000\n[pools.local]\nmax = 0\n");
    let mut connection = TcpStream::connect(server.address()).expect("connected");
    // Not a byte of the body is sent.
    write!(
        connection,
        "POST {TASKS} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: 1000000000\r\n\r\n"
    )
    .expect("sent");
    check(&read(connection), 413, "body_too_large", None);

    // One that does not say how long it is, is refused as soon as it is too long.
    let mut connection = TcpStream::connect(server.address()).expect("connected");
    write!(
        connection,
        "POST {TASKS} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .expect("sent");
    within(Duration::from_secs(30), "the server has heard enough", || {
        let chunk = format!("{:x}\r\n{}\r\n", 10_000, "x".repeat(10_000));
        // Once it has answered, it need not read on.
        connection.write_all(chunk.as_bytes()).is_err().then_some(())
    });
    assert!(server.api().every_task().is_empty(), "nothing is stored");
}
