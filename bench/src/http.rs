//! A minimal HTTP/1.1 client that costs little, because it shares the machine with the server that
//! it measures: requests are serialised once and only patched, answers are checked for status and
//! length and otherwise not looked at.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request, serialised, with a hole of fixed length that is filled in before each sending.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    hole: Range<usize>,
}

impl Request {
    pub(crate) fn get(path: &str) -> Self {
        Self::new("GET", path, None, None)
    }

    pub(crate) fn post(path: &str, token: Option<&str>, body: &[u8]) -> Self {
        Self::new("POST", path, token, Some(("application/json", body)))
    }

    pub(crate) fn put(path: &str, token: &str, body: &[u8]) -> Self {
        Self::new("PUT", path, Some(token), Some(("application/octet-stream", body)))
    }

    fn new(method: &str, path: &str, token: Option<&str>, body: Option<(&str, &[u8])>) -> Self {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n").into_bytes();
        if let Some(token) = token {
            bytes.extend(format!("authorization: Bearer {token}\r\n").into_bytes());
        }
        if let Some((kind, body)) = body {
            let length = body.len();
            bytes.extend(
                format!("content-type: {kind}\r\ncontent-length: {length}\r\n\r\n").into_bytes(),
            );
            bytes.extend_from_slice(body);
        } else {
            bytes.extend_from_slice(b"\r\n");
        }
        Self { bytes, hole: 0..0 }
    }

    /// Makes the only place where `mark` stands the hole.
    pub(crate) fn with_hole(mut self, mark: &str) -> Self {
        let mut found = find_all(&self.bytes, mark.as_bytes());
        let (Some(at), None) = (found.next(), found.next()) else {
            panic!("`{mark}` does not stand exactly once in the request");
        };
        drop(found);
        self.hole = at..at + mark.len();
        self
    }

    pub(crate) fn hole(&mut self) -> &mut [u8] {
        &mut self.bytes[self.hole.clone()]
    }
}

fn find_all<'a>(text: &'a [u8], word: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    text.windows(word.len()).enumerate().filter(move |(_, w)| *w == word).map(|(at, _)| at)
}

/// Where `word` stands in `text` first.
pub(crate) fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    find_all(text, word).next()
}

/// An answer, as it lies in the connection's buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    /// Fails, and quotes the answer, unless the status is this one.
    pub(crate) fn expect(&self, status: u16) -> io::Result<&[u8]> {
        if self.status == status {
            return Ok(self.body);
        }
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(500)]);
        Err(io::Error::other(format!("status {} instead of {status}: {body}", self.status)))
    }
}

/// A connection that is kept open; one request at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// Longest head of an answer.
const MAX_HEAD: usize = 16 << 10;

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new(), filled: 0 })
    }

    /// Sends a request and reads its whole answer.
    pub(crate) async fn call(&mut self, request: &Request) -> io::Result<Answer<'_>> {
        let (status, body, length) = self.begin(request).await?;
        let length = length.ok_or_else(|| io::Error::other("no content-length"))?;
        let end = body + length;
        while self.filled < end {
            self.fill(end).await?;
        }
        if self.filled > end {
            return Err(io::Error::other("more bytes came than the content-length said"));
        }
        Ok(Answer { status, body: &self.buffer[body..end] })
    }

    /// Sends a request whose answer does not end, and turns the connection into its stream.
    pub(crate) async fn stream(mut self, request: &Request) -> io::Result<Events> {
        let (status, body, _) = self.begin(request).await?;
        Answer { status, body: &self.buffer[body..self.filled] }.expect(200)?;
        let seen = self.buffer[body..self.filled].to_vec();
        Ok(Events { stream: self.stream, seen })
    }

    /// Sends a request and reads the head of its answer: status, start of the body, length.
    async fn begin(&mut self, request: &Request) -> io::Result<(u16, usize, Option<usize>)> {
        self.stream.write_all(&request.bytes).await?;
        self.filled = 0;
        loop {
            self.fill(self.filled + 2048).await?;
            if let Some(head) = head(&self.buffer[..self.filled])? {
                return Ok(head);
            }
            if self.filled > MAX_HEAD {
                return Err(io::Error::other("the head of the answer does not end"));
            }
        }
    }

    /// Reads what is there, at most up to `end` or what the buffer holds.
    async fn fill(&mut self, end: usize) -> io::Result<()> {
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.filled += read;
                Ok(())
            }
        }
    }
}

fn head(bytes: &[u8]) -> io::Result<Option<(u16, usize, Option<usize>)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(body) = answer.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let status = answer.code.ok_or_else(|| io::Error::other("an answer without status"))?;
    let length = answer
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .map(|header| {
            std::str::from_utf8(header.value)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| io::Error::other("a content-length that is not a number"))
        })
        .transpose()?;
    Ok(Some((status, body, length)))
}

/// An open event stream.
#[derive(Debug)]
pub(crate) struct Events {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Events {
    /// Reads until `word` has come, and forgets all that came up to it.
    pub(crate) async fn wait_for(&mut self, word: &str) -> io::Result<()> {
        loop {
            if let Some(at) = find(&self.seen, word.as_bytes()) {
                self.seen.drain(..at + word.len());
                return Ok(());
            }
            // No buffer is held while nothing comes: there are ten thousand of these.
            self.stream.readable().await?;
            let mut chunk = [0; 2048];
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.seen.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A server that reads requests without a body and answers each with these pieces, one write
    /// each.
    pub(crate) async fn answering(pieces: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    stream.set_nodelay(true).unwrap();
                    let mut request = Vec::new();
                    while let Ok(read @ 1..) = stream.read_buf(&mut request).await {
                        let _ = read;
                        while let Some(at) = find(&request, b"\r\n\r\n") {
                            request.drain(..at + 4);
                            for piece in pieces {
                                stream.write_all(piece.as_bytes()).await.unwrap();
                                tokio::task::yield_now().await;
                            }
                        }
                    }
                });
            }
        });
        address
    }

    async fn ask(pieces: &'static [&'static str]) -> io::Result<(u16, String)> {
        let mut connection = Connection::open(answering(pieces).await).await?;
        let answer = connection.call(&Request::get("/")).await?;
        Ok((answer.status, String::from_utf8_lossy(answer.body).into_owned()))
    }

    #[tokio::test]
    async fn an_answer_is_read_whole_however_it_is_cut() {
        let whole = &["HTTP/1.1 202 Accepted\r\ncontent-length: 5\r\n\r\nhello"];
        let cut = &["HTTP/1.1 202 Acc", "epted\r\nContent-Length: 5\r\n", "\r\nhe", "llo"];
        assert_eq!(ask(whole).await.unwrap(), (202, "hello".to_owned()));
        assert_eq!(ask(cut).await.unwrap(), (202, "hello".to_owned()));
    }

    #[tokio::test]
    async fn what_is_no_complete_answer_is_an_error() {
        for pieces in [
            &["HTTP/1.1 200 OK\r\n\r\nno length"] as &[_],
            &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\ntoo long"],
            &["HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"],
            &["SMTP"],
        ] {
            assert!(ask(pieces).await.is_err(), "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_used_again() {
        let pieces = &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"];
        let mut connection = Connection::open(answering(pieces).await).await.unwrap();
        for _ in 0..3 {
            let answer = connection.call(&Request::get("/")).await.unwrap();
            assert_eq!(answer, Answer { status: 200, body: b"ok" });
        }
    }

    #[tokio::test]
    async fn a_stream_is_read_until_the_word_has_come() {
        let pieces = &["HTTP/1.1 200 OK\r\n\r\nQUEUED ", "RUN", "NING SUCCEEDED"];
        let connection = Connection::open(answering(pieces).await).await.unwrap();
        let mut events = connection.stream(&Request::get("/")).await.unwrap();
        events.wait_for("RUNNING").await.unwrap();
        events.wait_for("SUCCEEDED").await.unwrap();
    }

    #[tokio::test]
    async fn an_unexpected_status_quotes_the_answer() {
        let answer = Answer { status: 429, body: b"queue_full" };
        let error = answer.expect(202).unwrap_err().to_string();
        assert!(error.contains("429") && error.contains("queue_full"), "{error}");
    }

    #[test]
    fn the_hole_is_where_the_mark_was() {
        let mut request = Request::post("/", None, br#"{"prompt":"fox ########"}"#);
        request = request.with_hole("########");
        request.hole().copy_from_slice(b"00000042");
        assert!(request.bytes.ends_with(br#"{"prompt":"fox 00000042"}"#));
    }
}
