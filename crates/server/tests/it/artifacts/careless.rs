//! A store that takes whatever it is given: it looks at no signature, no checksum and no condition, and
//! knows no parts. There are such.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

pub(super) struct Careless {
    pub(super) endpoint: String,
    files: Files,
}

impl Careless {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = Files::default();
        let kept = Arc::clone(&files);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, Arc::clone(&kept)));
            }
        });
        Self { endpoint, files }
    }

    pub(super) fn files(&self) -> Vec<String> {
        self.files.lock().unwrap().keys().cloned().collect()
    }
}

/// Answers one request.
async fn serve(mut socket: TcpStream, files: Files) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        if socket.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        if let Some(body) = bytes.get(end + 4..end + 4 + length) {
            break (head, body.to_vec());
        }
    };
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (status, body) = answer(&files, method, path, query, body);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nETag: \"x\"\r\n\
         Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nConnection: close\r\n\r\n"
    );
    let body = if method == "HEAD" { &[] } else { &*body };
    _ = socket.write_all(&[head.as_bytes(), body].concat()).await;
}

fn answer(files: &Files, method: &str, path: &str, query: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
    let mut files = files.lock().unwrap();
    let nothing = (404, b"<Error><Code>NoSuchKey</Code></Error>".to_vec());
    match method {
        "PUT" => {
            files.insert(path.to_owned(), body);
            (200, Vec::new())
        }
        "DELETE" => {
            files.remove(path);
            (204, Vec::new())
        }
        "GET" if query.contains("list-type=2") => {
            (200, b"<ListBucketResult></ListBucketResult>".to_vec())
        }
        "GET" | "HEAD" => files.get(path).map_or(nothing, |file| (200, file.clone())),
        _ => (501, b"<Error><Code>NotImplemented</Code></Error>".to_vec()),
    }
}
