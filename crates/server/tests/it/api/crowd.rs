//! Many connections, and clients that take nothing: nobody keeps others out.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Answer, Server, TASKS, video};

const OPEN: &str = "rayreel_connections";

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(&server.address).await.unwrap()
}

/// Waits until the server has closed the connection.
async fn closed(socket: &mut TcpStream) {
    let read = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut [0; 1024])).await;
    assert!(matches!(read.expect("it is closed"), Ok(0) | Err(_)));
}

async fn is_healthy(socket: &mut TcpStream) {
    socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut text = Vec::new();
    while Answer::parse(&text).is_none() {
        assert_ne!(socket.read_buf(&mut text).await.unwrap(), 0, "closed");
    }
    assert_eq!(Answer::parse(&text).unwrap().status, 200);
}

#[tokio::test]
async fn connections_without_a_request_make_room_the_oldest_first() {
    let server = Server::with(&[("RAYREEL_MAX_CONNECTIONS", "16")]).await;
    let mut kept = connect(&server).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(connect(&server).await);
        // The beginning of a head is no request.
        silent.last_mut().unwrap().write_all(b"GET /heal").await.unwrap();
        is_healthy(&mut kept).await;
    }
    server.submit("p").await;
    for socket in &mut silent[..24] {
        closed(socket).await;
    }
    is_healthy(&mut kept).await;
    let last = silent.last_mut().unwrap();
    last.write_all(b"thz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    last.read_to_end(&mut answer).await.unwrap();
    assert_eq!(Answer::parse(&answer).expect("an answer").status, 200);
}

#[tokio::test]
async fn a_connection_with_a_request_in_progress_is_never_closed_for_another() {
    let server = Server::with(&[("RAYREEL_MAX_CONNECTIONS", "16")]).await;
    let task = server.submit("p").await;
    let mut streams = Vec::new();
    for _ in 0..16 {
        let events = server.request(Method::GET, &format!("{TASKS}/{}/events", task.id));
        streams.push(events.send().await.unwrap());
    }
    // All are busy: one more waits until there is a place.
    let mut next = connect(&server).await;
    next.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    streams.pop();
    next.write_all(b"Host: localhost\r\n\r\n").await.unwrap();
    let mut text = Vec::new();
    while Answer::parse(&text).is_none() {
        assert_ne!(next.read_buf(&mut text).await.unwrap(), 0, "closed");
    }
    let cancel = server.post(&format!("{TASKS}/{}/cancel", task.id), &json!({})).await;
    assert_eq!(cancel.status, 200);
    for stream in streams {
        assert!(stream.text().await.expect("whole").contains("cancelled"));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn who_takes_nothing_of_an_answer_is_disconnected_and_who_is_only_slow_is_not() {
    let server = Server::with(&[("RAYREEL_MAX_STALL_SECONDS", "1")]).await;
    let task = server.submit("p").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let film = vec![7; 16 << 20];
    worker.finish(fence, &[(video(&film), &film)]).await;
    let other = server.submit("q").await;
    let events = server.request(Method::GET, &format!("{TASKS}/{}/events", other.id));
    let silent = events.send().await.unwrap();
    let mut slow = connect(&server).await;
    let get = format!("GET {TASKS}/{}/content HTTP/1.1\r\nHost: localhost\r\n", task.id);
    slow.write_all(format!("{get}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let before = server.metric(OPEN).await.unwrap();
    let mut stalled = connect(&server).await;
    stalled.write_all(format!("{get}\r\n").repeat(100).as_bytes()).await.unwrap();
    let mut taken = Vec::new();
    let ended = async {
        let mut seen = false;
        loop {
            let open = server.metric(OPEN).await.unwrap();
            seen |= open > before;
            if seen && open <= before {
                break;
            }
            let mut piece = (&mut slow).take(16 << 10);
            piece.read_to_end(&mut taken).await.expect("the slow one lives");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it is disconnected");
    slow.read_to_end(&mut taken).await.expect("the slow one lives");
    assert_eq!(Answer::parse(&taken).expect("whole").body.len(), film.len());
    assert_eq!(server.post(&format!("{TASKS}/{}/cancel", other.id), &json!({})).await.status, 200);
    assert!(silent.text().await.expect("whole").contains("cancelled"), "silence is no stall");
}
