//! Connections: accepting them, bounding what they may cost, and letting them end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::crowd::{self, Busy, Crowd, Place, Seldom};
use super::gate::Gate;
use super::socket::{self, Socket};
use crate::{App, descriptors};

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
/// Pause after an accept that failed for want of file descriptors or memory, or that found no room.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// With fewer files than this, ten thousand event streams find no room.
const MANY_FILES: u64 = 12_000;

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
    let crowd = crowd(&app);
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let mut failures = Seldom::default();
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The caller went away again; the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                if let Some(held) = failures.pass() {
                    tracing::warn!(%error, before = held, "a connection could not be accepted");
                }
                crowd.make_room();
                shutdown.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
                continue;
            }
        };
        let Some(place) = shutdown.run_until_cancelled(place(&crowd, &mut failures)).await else {
            break;
        };
        let (http, gate) = (http.clone(), Arc::clone(&gate));
        let (stopping, cut) = (app.stopping.clone(), cut.clone());
        let stall = app.settings.max_stall_seconds.duration();
        // A connection that fails or panics ends alone; when it is cut its requests are dropped.
        connections.spawn(async move {
            let guest = Arc::clone(&place.guest);
            tokio::select! {
                () = connection(stream, stall, &http, gate, &place, stopping) => {}
                // Without a word: whatever it had to hear it has been told.
                () = guest.dismissed() => {}
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

/// As many connections as there can be.
fn crowd(app: &App) -> Arc<Crowd> {
    let files = descriptors::raise();
    let most = crowd::room(files, app.settings.max_connections);
    tracing::info!(files, connections = most, "room for connections");
    let wanted = app.settings.max_connections.is_some_and(|wanted| most < wanted as usize);
    if files < MANY_FILES || wanted {
        tracing::warn!(
            files,
            connections = most,
            "few files may be open, which bounds the connections; raise the hard limit \
             (`ulimit -Hn`, `LimitNOFILE=` of systemd) for more"
        );
    }
    Crowd::new(most, app.metrics.connections.clone())
}

/// A place for a new connection, once there is one: all others may be busy.
async fn place(crowd: &Arc<Crowd>, failures: &mut Seldom) -> Place {
    loop {
        if let Some(place) = crowd.enter() {
            return place;
        }
        if let Some(before) = failures.pass() {
            tracing::warn!(before, "all connections are busy; a new one waits");
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

async fn connection(
    stream: TcpStream,
    stall: Duration,
    http: &http1::Builder,
    gate: Arc<Gate>,
    place: &Place,
    stopping: CancellationToken,
) {
    // Answers are small and whole: waiting to fill a packet only delays them.
    let _ = stream.set_nodelay(true);
    socket::bound_stall(&stream, stall);
    let door = Arc::clone(&gate);
    let guest = Arc::clone(&place.guest);
    let service = service_fn(move |request| {
        let (gate, busy) = (Arc::clone(&door), guest.begin());
        // Boxed, because hyper keeps the place of the future as long as the answer streams, and
        // ten thousand event streams may be open.
        Box::pin(async move {
            // Too late: it is being closed.
            let busy = busy.ok_or(io::ErrorKind::ConnectionAborted)?;
            let answer = gate.handle(request).await;
            Ok::<_, io::Error>(answer.map(|body| Answering { body, busy }))
        })
    });
    let socket = Socket::new(stream, Arc::clone(&place.guest));
    let mut connection = http.serve_connection(socket, service);
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

/// The body of an answer, during which its connection is busy.
struct Answering {
    body: Body,
    #[expect(dead_code, reason = "counts while it lives")]
    busy: Busy,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
