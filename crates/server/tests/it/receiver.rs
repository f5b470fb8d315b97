//! Somebody who is told of the ends of tasks: notes each request, and answers as the test wants.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use reqwest::header::{HeaderMap, HeaderName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

#[derive(Debug)]
struct Desk {
    /// Statuses with their headers; the last one stays.
    answers: Mutex<VecDeque<String>>,
    heard: watch::Sender<Vec<Heard>>,
    /// As many answers may be given as there are permits.
    open: Semaphore,
}

pub(crate) struct Receiver {
    pub(crate) port: u16,
    desk: Arc<Desk>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    /// Answers such as `500 No\r\nretry-after: 9`.
    pub(crate) async fn answering(answers: &[&str]) -> Self {
        Self::start(answers, Semaphore::MAX_PERMITS).await
    }

    /// Answers nobody until it is told to.
    pub(crate) async fn hanging() -> Self {
        Self::start(&["204 Taken"], 0).await
    }

    async fn start(answers: &[&str], permits: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let desk = Arc::new(Desk {
            answers: Mutex::new(answers.iter().map(|answer| (*answer).to_owned()).collect()),
            heard: watch::channel(Vec::new()).0,
            open: Semaphore::new(permits),
        });
        let serves = Arc::clone(&desk);
        let serving = tokio::spawn(async move {
            let mut talks = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                talks.spawn(talk(socket, Arc::clone(&serves)));
            }
        });
        Self { port, desk, serving }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.desk.heard.borrow().clone()
    }

    /// Waits until so many requests have come.
    pub(crate) async fn until_heard(&self, count: usize) -> Vec<Heard> {
        let mut heard = self.desk.heard.subscribe();
        let enough = heard.wait_for(|heard| heard.len() >= count);
        let limit = std::time::Duration::from_secs(20);
        let enough = tokio::time::timeout(limit, enough).await.expect("they come").unwrap();
        enough.clone()
    }

    /// Lets so many answers go.
    pub(crate) fn answer(&self, count: usize) {
        self.desk.open.add_permits(count);
    }
}

async fn talk(mut socket: TcpStream, desk: Arc<Desk>) {
    let mut bytes = Vec::new();
    let heard = loop {
        if let Some(heard) = parse(&bytes) {
            break heard;
        }
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    desk.heard.send_modify(|all| all.push(heard));
    let Ok(permit) = desk.open.acquire().await else { return };
    permit.forget();
    let answer = {
        let mut answers = desk.answers.lock().unwrap();
        let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        next.unwrap()
    };
    let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
    let _ = socket.write_all(text.as_bytes()).await;
    let _ = socket.shutdown().await;
}

/// A whole request with a Content-Length, once it is there.
fn parse(bytes: &[u8]) -> Option<Heard> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let mut lines = std::str::from_utf8(&bytes[..end]).unwrap().split("\r\n");
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: HeaderMap = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.trim().parse().unwrap()))
        .collect();
    let length: usize = headers["content-length"].to_str().unwrap().parse().unwrap();
    let body = bytes.get(end + 4..end + 4 + length)?.to_vec();
    Some(Heard { path, headers, body })
}
