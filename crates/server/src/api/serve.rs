//! Connections: accepting them, bounding what they may cost, and letting them end.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::Gate;
use super::socket::Socket;
use crate::App;

/// Longest request line and headers, in bytes.
pub(super) const MAX_HEAD: usize = 16 * 1024;
/// Most header fields; what hyper reads without memory of its own.
pub(super) const MAX_HEADERS: usize = 100;
/// Most bytes that a connection buffers. It grows only where much is moved: an idle one has 8 KiB.
const MAX_BUFFER: usize = 64 * 1024;
/// The head of a request must have arrived within this; also how long an idle connection stays.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// When the server stops, requests in flight get so long to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves the API until `shutdown`. Then nothing is accepted any more, `app.stopping` ends event
/// streams and hanging calls at once, and what else is in flight gets a moment to end.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let gate = Arc::new(Gate::new(Arc::clone(&app)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER);
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The caller went away again; the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::select! {
                    () = sleep(ACCEPT_PAUSE) => continue,
                    () = shutdown.cancelled() => break,
                }
            }
        };
        let (http, gate) = (http.clone(), Arc::clone(&gate));
        let (stopping, cut) = (app.stopping.clone(), cut.clone());
        // A connection that fails or panics ends alone; when it is cut its requests are dropped.
        connections.spawn(async move {
            tokio::select! {
                () = connection(stream, &http, gate, stopping) => {}
                () = cut.cancelled() => {}
            }
        });
    }
    drop(listener);
    app.stopping.cancel();
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        tracing::warn!(left = connections.len(), "requests that did not end in time are cut");
        cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

async fn connection(
    stream: TcpStream,
    http: &http1::Builder,
    gate: Arc<Gate>,
    stopping: CancellationToken,
) {
    // Answers are small and whole: waiting to fill a packet only delays them.
    let _ = stream.set_nodelay(true);
    let door = Arc::clone(&gate);
    let service = service_fn(move |request| {
        let gate = Arc::clone(&door);
        // Boxed, because hyper keeps the place of the future as long as the answer streams, and
        // ten thousand event streams may be open.
        Box::pin(async move { Ok::<_, Infallible>(gate.handle(request).await) })
    });
    let mut connection = http.serve_connection(Socket::new(stream), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopping.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let parts = connection.into_parts();
    let answer = ended.err().and_then(|error| {
        tracing::debug!(%error, "connection ended");
        Some(gate.refuse(parts.io.refusal(&error, &parts.read_buf)?))
    });
    tokio::select! {
        biased;
        () = parts.io.close(answer) => {}
        () = stopping.cancelled() => {}
    }
}
