//! What lies below hyper on a connection.
//!
//! Two things are done here that hyper does otherwise. What can't be read as a request never
//! reaches the gate: hyper answers it by itself, with a bare head. Such an answer is held back, so
//! that the one form of all refusals can be sent in its place. And a socket that is closed while
//! its peer still sends is reset, which may cost the peer the answer: so the sending side is closed
//! first, and what still comes is thrown away for a while.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::response::Response;
use futures_util::FutureExt;
use http::StatusCode;
use http_body_util::BodyExt;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rayreel_domain::Code;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::crowd::Guest;
use super::error::Error;

/// How long, and for how many bytes, a closed connection listens to a peer that goes on sending.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 64 << 20;
/// Length of what is thrown away at a time.
const GULP: usize = 8 * 1024;

/// Has the kernel end the connection when its peer takes nothing of what was sent for so long. Only
/// the kernel knows: what a writer sees is the room in a buffer of megabytes, which stays the same
/// for minutes while a slow client reads.
#[cfg(target_os = "linux")]
pub(super) fn bound_stall(stream: &TcpStream, stall: Duration) {
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(stall)) {
        tracing::debug!(%error, "the connection has no bound of silence");
    }
}

/// Elsewhere a client that reads nothing is kept until it ends.
#[cfg(not(target_os = "linux"))]
pub(super) fn bound_stall(_: &TcpStream, _: Duration) {}

/// A connection as hyper sees it.
pub(super) struct Socket {
    stream: TokioIo<TcpStream>,
    guest: Arc<Guest>,
    /// The last write found no room.
    blocked: bool,
    /// What looks like hyper's own refusal. It is one if nothing follows but the end of the
    /// connection with an error; else it was the piece of a file, and goes out with what follows.
    held: Vec<u8>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, guest: Arc<Guest>) -> Self {
        Self { stream: TokioIo::new(stream), guest, blocked: false, held: Vec::new() }
    }

    /// Remembers whether the client takes what is written.
    fn seen(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.blocked != written.is_pending() {
            self.blocked = written.is_pending();
            self.guest.set_blocked(self.blocked);
        }
        written
    }

    /// Says why hyper could not read a request, if it was for reasons of the caller's.
    /// `unread` is what hyper has not made a request of.
    pub(super) fn refusal(&self, error: &hyper::Error, unread: &[u8]) -> Option<Error> {
        let refuse = |status, message: String| {
            Some(Error::new(Code::InvalidRequest, message).with_status(status))
        };
        if self.held.is_empty() {
            // Hyper says nothing to these.
            return match unread {
                [] => None,
                _ if unread.starts_with(b"PRI * HTTP/2") => {
                    refuse(StatusCode::HTTP_VERSION_NOT_SUPPORTED, VERSION.to_owned())
                }
                _ if error.is_timeout() => refuse(
                    StatusCode::REQUEST_TIMEOUT,
                    format!(
                        "the head of the request did not come within {} seconds",
                        super::serve::HEAD_TIMEOUT.as_secs()
                    ),
                ),
                _ if error.is_incomplete_message() => refuse(
                    StatusCode::BAD_REQUEST,
                    "the request ended in the middle of its head".to_owned(),
                ),
                _ => None,
            };
        }
        // Hyper tells the faults apart by their words only.
        let cause = error.to_string();
        let has = |word: &str| cause.contains(word);
        if error.is_parse_too_large() {
            return too_large(unread);
        }
        let (status, param, message) = if has("content-length") {
            let message = "`Content-Length` must be one whole number: the bytes of the body";
            (StatusCode::BAD_REQUEST, Some("Content-Length"), message)
        } else if has("transfer-encoding") {
            (StatusCode::BAD_REQUEST, Some("Transfer-Encoding"), CHUNKED)
        } else if has("version") && names_version(unread) {
            (StatusCode::HTTP_VERSION_NOT_SUPPORTED, None, VERSION)
        } else if has("header") {
            let message = "a header field is malformed: each is one line, `Name: value`, and the \
                           name has no spaces";
            (StatusCode::BAD_REQUEST, None, message)
        } else {
            let message = "the first line of the request is malformed: send \
                           `METHOD /path HTTP/1.1`, as plain HTTP without TLS";
            (StatusCode::BAD_REQUEST, None, message)
        };
        let refusal = Error::new(Code::InvalidRequest, message).with_status(status);
        Some(match param {
            Some(param) => refusal.param(param),
            None => refusal,
        })
    }

    /// Ends the connection so that the peer gets what was sent to it, and `answer` in the place of
    /// what was held back.
    pub(super) async fn close(self, answer: Option<Response>) {
        let mut stream = self.stream.into_inner();
        let last = answer.map_or(self.held, head_and_body);
        let farewell = async {
            stream.write_all(&last).await?;
            stream.shutdown().await?;
            let mut left = LINGER_BYTES;
            while left > 0 {
                stream.readable().await?;
                // Not kept while it waits: the array is no part of the future.
                let mut gulp = [0; GULP];
                match stream.try_read(&mut gulp) {
                    Ok(0) => break,
                    Ok(read) => left = left.saturating_sub(read),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        // A peer that is gone, or too slow, is left alone.
        let _: Result<io::Result<()>, _> = tokio::time::timeout(LINGER, farewell).await;
    }

    /// Sends what was held back: it was no refusal of hyper's.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }
}

/// What is said of any coding but the one that is understood.
pub(super) const CHUNKED: &str =
    "`Transfer-Encoding` must be `chunked`, in a request of HTTP/1.1, or absent";
const VERSION: &str = "this server speaks HTTP/1.1 (and 1.0), without TLS";

/// Has the first line the three words that it should have, the last of them a version?
fn names_version(unread: &[u8]) -> bool {
    let line = unread.split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.split(|byte| *byte == b' ').nth(2).is_some_and(|word| word.starts_with(b"HTTP/"))
}

fn too_large(unread: &[u8]) -> Option<Error> {
    use super::serve::{MAX_HEAD, MAX_HEADERS};
    if unread.is_empty() {
        // The head was read; it is the length in it that is beyond all measure.
        return Some(Error::new(Code::BodyTooLarge, "`Content-Length` is beyond all measure"));
    }
    let head = &unread[..unread.len().min(MAX_HEAD)];
    let (status, message) = if head.len() == MAX_HEAD && !head.contains(&b'\n') {
        let message = format!("the first line of the request is longer than {MAX_HEAD} bytes");
        (StatusCode::URI_TOO_LONG, message)
    } else {
        let message = format!(
            "the head of the request is too large: {MAX_HEAD} bytes and {MAX_HEADERS} header \
             fields are read"
        );
        (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message)
    };
    Some(Error::new(Code::InvalidRequest, message).with_status(status))
}

/// An answer as bytes, after which the connection ends.
fn head_and_body(answer: Response) -> Vec<u8> {
    let (head, body) = answer.into_parts();
    // Refusals are whole.
    let body = body.collect().now_or_never().and_then(Result::ok).unwrap_or_default().to_bytes();
    let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let length = format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    bytes.extend_from_slice(length.as_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Where these bytes end in a head that hyper has written on its own account: a refusal without
/// anything in it. Ours have a body, and a request id.
fn own_refusal(bytes: &[u8]) -> Option<usize> {
    const LONGEST: usize = 160;
    // Nearly all answers part here.
    if !bytes.ends_with(b" GMT\r\n\r\n") {
        return None;
    }
    let tail = bytes.len().saturating_sub(LONGEST);
    let start = tail + bytes[tail..].windows(10).rposition(|word| word == b"HTTP/1.1 4")?;
    let mut lines = bytes[start..].split(|byte| *byte == b'\n').skip(1);
    let mut next = || lines.next().unwrap_or_default();
    let mut line = next();
    if line == b"connection: close\r" {
        line = next();
    }
    let bare = line == b"content-length: 0\r"
        && next().starts_with(b"date: ")
        && next() == b"\r"
        && next().is_empty();
    bare.then_some(start)
}

impl Read for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_release(cx))?;
        if let Some((last, before)) = slices.split_last()
            && let Some(start) = own_refusal(last)
        {
            let written = match (before, start) {
                ([], 0) => {
                    self.held.extend_from_slice(last);
                    Poll::Ready(Ok(last.len()))
                }
                // First what stands before it.
                ([], _) => Pin::new(&mut self.stream).poll_write(cx, &last[..start]),
                _ => Pin::new(&mut self.stream).poll_write_vectored(cx, before),
            };
            return self.seen(written);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.seen(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Nothing: [`Socket::close`] does it.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_refusal_is_told_from_answers_of_ours() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\
                    date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n";
        assert_eq!(own_refusal(bare.as_bytes()), Some(0));
        let closing = bare.replace("content-length", "connection: close\r\ncontent-length");
        assert_eq!(own_refusal(closing.as_bytes()), Some(0));
        let behind = format!("{{\"a\": 1}}{bare}");
        assert_eq!(own_refusal(behind.as_bytes()), Some(8));
        for ours in [
            "",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nx-request-id: a\r\ncontent-length: 0\r\n\
             date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\
             date: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n",
        ] {
            assert_eq!(own_refusal(ours.as_bytes()), None, "{ours}");
        }
    }
}
