//! What arrives on a connection before there is a request, and after there is no use for it.

use std::time::Duration;

use rayreel_domain::wire::api::TaskBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Answer, Server, TASKS, TOKEN, video};

/// Sends all of this before it reads a byte, and reads until the server closes.
async fn talk(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answers = Vec::new();
    let read = socket.read_to_end(&mut answers);
    tokio::time::timeout(Duration::from_secs(200), read).await.expect("it closes").unwrap();
    answers
}

#[tokio::test]
async fn what_can_not_be_read_as_a_request_is_refused_in_json() {
    let server = Server::start().await;
    let get = format!("GET {TASKS} HTTP/1.1\r\nHost: localhost\r\n");
    let post =
        format!("POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    let long = "x".repeat(20_000);
    let many = "a: b\r\n".repeat(200);
    for (request, status, param, told) in [
        (format!("{get}x: {long}\r\n\r\n"), 431, None, "16384 bytes"),
        (format!("{get}{many}\r\n"), 431, None, "100 header"),
        (
            format!("GET {TASKS}?model={long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            414,
            None,
            "16384",
        ),
        ("nonsense\r\n\r\n".to_owned(), 400, None, "METHOD /path HTTP/1.1"),
        (format!("GE\u{0}T {TASKS} HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400, None, "METHOD"),
        (format!("GET {TASKS} extra HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400, None, "HTTP/1.1"),
        (format!("GET {TASKS}\u{7f} HTTP/1.1\r\nHost: localhost\r\n\r\n"), 400, None, "METHOD"),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}".to_owned(), 400, None, "TLS"),
        (format!("GET {TASKS} HTTP/1.2\r\nHost: localhost\r\n\r\n"), 505, None, "HTTP/1.1"),
        (format!("GET {TASKS} HTTP/2.0\r\nHost: localhost\r\n\r\n"), 505, None, "HTTP/1.1"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505, None, "HTTP/1.1"),
        (format!("{get}no colon\r\n\r\n"), 400, None, "header"),
        (format!("{get}a b: c\r\n\r\n"), 400, None, "header"),
        (format!("{get}a: b\u{0}\r\n\r\n"), 400, None, "header"),
        (format!("{get}a: b\r\n folded\r\n\r\n"), 400, None, "header"),
        (
            format!("{post}Content-Length: two\r\n\r\n{{}}"),
            400,
            Some("Content-Length"),
            "whole number",
        ),
        (
            format!("{post}Content-Length: +2\r\n\r\n{{}}"),
            400,
            Some("Content-Length"),
            "whole number",
        ),
        (format!("{post}Content-Length: -1\r\n\r\n"), 400, Some("Content-Length"), "whole number"),
        (
            format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"),
            400,
            Some("Content-Length"),
            "whole number",
        ),
        (
            format!("{post}Content-Length: 2, 3\r\n\r\n{{}}"),
            400,
            Some("Content-Length"),
            "whole number",
        ),
        (
            format!("{post}Transfer-Encoding: gzip\r\n\r\n"),
            400,
            Some("Transfer-Encoding"),
            "`chunked`",
        ),
        (
            format!("{post}Transfer-Encoding: identity\r\n\r\n"),
            400,
            Some("Transfer-Encoding"),
            "`chunked`",
        ),
        (
            format!("{post}Transfer-Encoding: chunked, gzip\r\n\r\n"),
            400,
            Some("Transfer-Encoding"),
            "`chunked`",
        ),
        (
            format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            400,
            Some("Transfer-Encoding"),
            "`chunked`",
        ),
        (
            format!(
                "POST {TASKS} HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
            400,
            Some("Transfer-Encoding"),
            "HTTP/1.1",
        ),
    ] {
        let shown: String = request.chars().take(100).collect();
        let answer = server.raw(request.as_bytes()).await;
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        let refusal = answer.refused(status, "invalid_request", param);
        assert!(refusal.message.contains(told), "{shown}: {}", refusal.message);
        assert_eq!(answer.header("x-request-id").len(), 16);
        assert_ne!(answer.header("date"), "", "{shown}");
    }
    let huge = format!("{post}Content-Length: {}\r\n\r\n", u64::MAX);
    server.raw(huge.as_bytes()).await.refused(413, "body_too_large", None);
    let counted = r#"rayreel_http_requests_total{method="other",route="other",status="431"}"#;
    assert_eq!(server.metric(counted).await, Some(2.0));
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_chunk_that_is_none_ends_the_body_with_a_refusal() {
    let server = Server::start().await;
    for chunks in
        ["x\r\n{}\r\n0\r\n\r\n", "2\r\n{}0\r\n\r\n", "fffffffffffffffff\r\n", "-2\r\n{}\r\n"]
    {
        let request = format!(
            "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n{chunks}"
        );
        server.raw(request.as_bytes()).await.refused(400, "invalid_json", None);
    }
}

#[tokio::test]
async fn a_request_that_ends_in_its_head_is_told_so() {
    let server = Server::start().await;
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    socket.write_all(format!("GET {TASKS} HTTP/1.1\r\nHost: local").as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let answer = Answer::parse(&answer).expect("an answer");
    answer.refused(400, "invalid_request", None);
    // Whoever says nothing is told nothing.
    let mut silent = TcpStream::connect(&server.address).await.unwrap();
    silent.shutdown().await.unwrap();
    assert_eq!(silent.read_to_end(&mut Vec::new()).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_in_time_is_refused_and_an_idle_connection_just_closed() {
    let server = Server::start().await;
    let slow = talk(&server, format!("GET {TASKS} HTTP/1.1\r\nHost: local").as_bytes()).await;
    Answer::parse(&slow).expect("an answer").refused(408, "invalid_request", None);
    assert!(talk(&server, b"").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_is_not_waited_for() {
    let server = Server::start().await;
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let head = format!(
        "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: 1000\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut answer = Vec::new();
    while Answer::parse(&answer).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(120), "each byte buys no more time");
        socket.write_all(b" ").await.unwrap();
        let wait = Duration::from_secs(10);
        let _ = tokio::time::timeout(wait, socket.read_buf(&mut answer)).await;
    }
    Answer::parse(&answer).unwrap().refused(408, "invalid_request", None);
}

#[tokio::test]
async fn what_follows_a_good_request_is_refused_after_its_answer() {
    let server = Server::start().await;
    let good = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answers = talk(&server, format!("{good}{good}{good}nonsense\r\n\r\n").as_bytes()).await;
    let text = String::from_utf8(answers).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    let last = text.rfind("HTTP/1.1 ").unwrap();
    let last = Answer::parse(&text.as_bytes()[last..]).expect("an answer");
    last.refused(400, "invalid_request", None);
    assert_eq!(text.matches("HTTP/1.1 ").count(), 4, "{text}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let server = Server::start().await;
    let task: TaskBody = server.submit("p").await;
    let mut requests = String::new();
    for n in 0..40 {
        let path = if n % 2 == 0 { "/healthz".to_owned() } else { format!("{TASKS}/{}", task.id) };
        let last = if n == 39 { "Connection: close\r\n" } else { "" };
        requests +=
            &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: r{n}\r\n{last}\r\n");
    }
    let text = String::from_utf8(talk(&server, requests.as_bytes()).await).unwrap();
    let ids: Vec<&str> = text
        .match_indices("x-request-id: ")
        .map(|(at, _)| text[at + 14..].lines().next().unwrap())
        .collect();
    assert_eq!(ids, (0..40).map(|n| format!("r{n}")).collect::<Vec<_>>());
}

/// Whoever sends all before it listens must still hear why it was refused.
#[tokio::test]
async fn a_refusal_reaches_a_caller_that_is_still_sending() {
    let server = Server::with(&[("RAYREEL_MAX_BODY_BYTES", "65536")]).await;
    let length = 16 << 20;
    let body = vec![b' '; length];
    let heads = [
        (
            format!(
                "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                  Content-Length: {length}\r\n\r\n"
            ),
            413,
            "body_too_large",
        ),
        (
            format!(
                "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\
                  Content-Length: {length}\r\n\r\n"
            ),
            415,
            "unsupported_media_type",
        ),
        (
            format!(
                "POST {TASKS} HTTP/1.1\r\nHost: evil.example\r\nContent-Length: {length}\r\n\r\n"
            ),
            403,
            "forbidden",
        ),
        (
            format!(
                "POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
            ),
            400,
            "invalid_request",
        ),
    ];
    for (head, status, code) in heads {
        let answer = talk(&server, &[head.as_bytes(), &body].concat()).await;
        let answer = Answer::parse(&answer).expect("an answer");
        assert_eq!((answer.status.as_u16(), &*answer.refusal().code), (status, code));
    }
}

#[tokio::test]
async fn a_connection_that_is_kept_open_behind_a_refusal_does_not_hold_up_the_end() {
    let server = Server::start().await;
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    socket.write_all(b"nonsense\r\n\r\n").await.unwrap();
    socket.read_to_end(&mut Vec::new()).await.unwrap();
    // The server waits for this side to close, until it is told to stop.
    let begun = tokio::time::Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

/// The refusals that HTTP's reader would write itself are told by their form. A file that has it
/// must come out as it went in.
#[tokio::test]
async fn a_file_that_looks_like_a_bare_refusal_is_served_as_it_is() {
    let bare: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\
                        date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n";
    let server = Server::start().await;
    let task = server.submit("p").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    worker.finish(fence, &[(video(bare), bare)]).await;
    let get = format!("GET {TASKS}/{}/content HTTP/1.1\r\nHost: localhost\r\n", task.id);
    let twice = talk(&server, format!("{get}\r\n{get}Connection: close\r\n\r\n").as_bytes()).await;
    let text = String::from_utf8(twice).unwrap();
    assert_eq!(text.matches(std::str::from_utf8(bare).unwrap()).count(), 2, "{text}");
    assert!(text.ends_with(std::str::from_utf8(bare).unwrap()));
}

#[tokio::test]
async fn an_upload_that_is_refused_in_the_middle_is_told_why() {
    let server = Server::start().await;
    let task = server.submit("p").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let bytes = vec![7; 16 << 20];
    let target = worker.targets(fence, &[video(b"four")]).await.remove(0);
    let head = format!(
        "PUT {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: {}\r\n\r\n",
        bytes.len()
    );
    let answer = talk(&server, &[head.as_bytes(), &bytes].concat()).await;
    let answer = Answer::parse(&answer).expect("an answer");
    answer.refused(422, "upload_mismatch", Some("Content-Length"));
    assert_eq!(server.task(&task.id).await.attempts.len(), 1);
}

#[tokio::test]
async fn every_route_answers_head_and_options_in_form() {
    let server = Server::start().await;
    let id = server.submit("p").await.id;
    for path in [
        TASKS.to_owned(),
        format!("{TASKS}/{id}"),
        format!("{TASKS}/{id}/cancel"),
        format!("{TASKS}/{id}/content"),
        "/healthz".to_owned(),
        "/readyz".to_owned(),
        "/metrics".to_owned(),
        "/openapi.json".to_owned(),
        "/v1/worker/claim".to_owned(),
        "/nothing".to_owned(),
    ] {
        let request =
            format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let text = String::from_utf8(talk(&server, request.as_bytes()).await).unwrap();
        assert!(text.ends_with("\r\n\r\n"), "a head only: {text}");
        assert!(text.contains("x-request-id: "), "{text}");
        let request = format!("OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = server.raw(request.as_bytes()).await;
        assert!([405, 404, 401].contains(&answer.refusal_status()), "{path}: {answer:?}");
    }
    for request in [
        "OPTIONS * HTTP/1.1",
        "CONNECT localhost:80 HTTP/1.1",
        "GET http://localhost/nothing HTTP/1.1",
    ] {
        let request = format!("{request}\r\nHost: localhost\r\n\r\n");
        let answer = server.raw(request.as_bytes()).await;
        assert!([404, 405].contains(&answer.refusal_status()), "{request}: {answer:?}");
    }
}
