//! A server that answers from a script.

use std::sync::{Arc, Mutex};

use rayreel_client::{Builder, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Gives each call the next answer of the script and closes the connection behind it; behind the
/// last one nobody listens.
pub(crate) struct Scripted {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    pub(crate) async fn new<S: Into<String>>(script: impl IntoIterator<Item = S>) -> Self {
        let script: Vec<String> = script.into_iter().map(Into::into).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&requests);
        tokio::spawn(async move {
            for answer in script {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut text = Vec::new();
                while !is_whole(&text) {
                    assert_ne!(socket.read_buf(&mut text).await.unwrap(), 0);
                }
                heard.lock().unwrap().push(String::from_utf8(text).unwrap());
                socket.write_all(answer.as_bytes()).await.unwrap();
                socket.shutdown().await.unwrap();
            }
        });
        Self { address, requests }
    }

    pub(crate) fn builder(&self) -> Builder {
        Client::builder(&self.address)
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// A header of each request so far.
    pub(crate) fn headers(&self, name: &str) -> Vec<Option<String>> {
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
        self.requests().iter().map(|request| request.lines().find_map(value)).collect()
    }
}

fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

/// An answer with these headers, each on a line of its own.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> String {
    let headers = headers.replace('\n', "\r\n");
    let headers = if headers.is_empty() { headers } else { headers + "\r\n" };
    let length = body.len();
    format!(
        "HTTP/1.1 {status} x\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}
