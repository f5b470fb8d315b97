//! Event streams: what happens to a task, as server-sent events.
//!
//! A stream is woken by the feed and then reads the store; between two wake-ups it costs nothing
//! but its memory, of which there must be little: ten thousand of them may be open. State changes
//! carry the position `{epoch}-{seq}`, from which `Last-Event-ID` resumes; progress carries none
//! and comes as the latest value. The last change ends the stream. Whoever resumes behind it gets
//! 204, which tells a browser not to come back.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use prometheus_client::metrics::gauge::Gauge;
use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::task::Change;
use rayreel_domain::wire::api::{ErrorBody, EventBody, FailureBody, percent};
use rayreel_domain::wire::worker::Progress;

use super::error::Error;
use super::openapi::ServerSentEvent;
use super::{Api, Id, Tenant, query};
use crate::App;
use crate::feed::Watch;
use crate::store::View;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How often a silent stream shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How soon a client should come back, in milliseconds.
const RETRY_MS: u32 = 1000;

/// Streams the events of a task.
///
/// `state` events come for each change of state, with an id; `progress` events tell how far the
/// running attempt is; `snapshot` comes first if the stream can't resume from `Last-Event-ID`. The
/// data of each is an EventBody. The stream ends after the last change of state.
#[utoipa::path(get, path = "/v1/video/generations/{id}/events", tag = "generations", operation_id = "generation_events",
    params(
        ("id" = String, Path, description = "Id of the task."),
        ("Last-Event-ID" = Option<String>, Header, description = "Resume behind this event."),
    ),
    responses(
        (status = 200, description = "Events, until the task has ended.", content_type = "text/event-stream", body = ServerSentEvent),
        (status = 204, description = "`Last-Event-ID` is the last event of a task that has ended."),
        (status = 404, description = "`task_not_found`", body = ErrorBody),
    ))]
pub(super) async fn events(
    State(api): State<Arc<Api>>,
    Tenant(tenant): Tenant,
    Id(id): Id,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Error> {
    query::none(&uri)?;
    let components = &api.app.components;
    // Before the first look at the task, so that no change goes unseen.
    let watch = components.feed.watch(id);
    let view = components.store.get(&tenant, id).await?.ok_or_else(Error::no_task)?;
    let epoch = components.store.epoch();
    let position = Position::after(headers.get(LAST_EVENT_ID), epoch, &view);
    let mut news = News { epoch, position, progress: None, ended: false };
    let first = news.since(&view);
    if first.is_empty() && news.ended {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    }
    let stream = Stream {
        open: Open::count(&api.app.metrics.streams),
        app: Arc::clone(&api.app),
        tenant,
        id,
        watch,
        news,
        first: Some(format!("retry: {RETRY_MS}\n\n{first}").into()),
    };
    // The view may be long and the stream lives long.
    drop(view);
    let body = stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(NO_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// An open stream.
struct Stream {
    app: Arc<App>,
    tenant: TenantName,
    id: TaskId,
    watch: Watch,
    news: News,
    first: Option<Bytes>,
    #[expect(dead_code, reason = "counts while it lives")]
    open: Open,
}

impl Stream {
    /// The next events; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            if self.news.ended {
                return None;
            }
            tokio::select! {
                () = self.watch.changed() => {}
                () = self.app.stopping.cancelled() => return None,
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    return Some(Bytes::from_static(b": alive\n\n"));
                }
            }
            // On an error, or when the task is deleted, the stream ends; the client comes back.
            let store = &self.app.components.store;
            let view = store.get(&self.tenant, self.id).await.ok()??;
            if store.epoch() != self.news.epoch {
                // What was told may have been undone by a failover; a new stream begins with what is.
                return None;
            }
            let text = self.news.since(&view);
            if !text.is_empty() {
                return Some(text.into());
            }
        }
    }
}

/// Where a stream stands in the history of its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// Behind the change with this number.
    Behind(u32),
    /// Somewhere that this history does not know.
    Unknown,
}

impl Position {
    fn after(last_event_id: Option<&HeaderValue>, epoch: u64, view: &View) -> Self {
        // Without an id, or with an empty one, the stream starts at the beginning.
        let Some(id) = last_event_id.filter(|id| !id.is_empty()) else { return Self::Behind(0) };
        let parse = |text: &str| {
            let (of, seq) = text.split_once('-')?;
            Some((u64::from_str_radix(of, 16).ok()?, seq.parse().ok()?))
        };
        match id.to_str().ok().and_then(parse) {
            Some((of, seq)) if of == epoch && seq <= view.task.seq() => Self::Behind(seq),
            _ => Self::Unknown,
        }
    }
}

/// What a stream has told, so that it tells the rest.
struct News {
    epoch: u64,
    position: Position,
    progress: Option<Progress>,
    ended: bool,
}

impl News {
    /// What is new in the task, as events.
    fn since(&mut self, view: &View) -> String {
        let task = &view.task;
        let mut text = String::new();
        // The history is bounded: what was told last may be gone from it.
        let oldest = task.history.first().map_or(1, |change| change.seq);
        let told = match self.position {
            Position::Behind(seq) if seq == 0 || seq + 1 >= oldest => Some(seq),
            _ => None,
        };
        match told {
            Some(told) => {
                for change in task.history.iter().filter(|change| change.seq > told) {
                    self.tell(&mut text, "state", view, change);
                }
            }
            None => {
                if let Some(change) = task.history.last() {
                    self.tell(&mut text, "snapshot", view, change);
                    self.progress.clone_from(&view.progress);
                }
            }
        }
        self.position = Position::Behind(task.seq());
        self.ended = task.state.is_terminal();
        if !self.ended && view.progress.is_some() && view.progress != self.progress {
            self.progress.clone_from(&view.progress);
            let body = EventBody {
                task_id: task.id.to_string(),
                status: task.state,
                progress: percent(task.state, view.progress.as_ref()),
                attempt: task.attempt,
                stage: view.progress.clone(),
                at_ms: None,
                reason: None,
                error: None,
            };
            event(&mut text, "progress", None, &body);
        }
        text
    }

    fn tell(&self, text: &mut String, name: &str, view: &View, change: &Change) {
        let task = &view.task;
        // What the running attempt is at says nothing of the changes before it.
        let stage = view.progress.as_ref().filter(|_| name == "snapshot");
        let body = EventBody {
            task_id: task.id.to_string(),
            status: change.state,
            progress: percent(change.state, stage),
            attempt: change.attempt,
            stage: stage.cloned(),
            at_ms: Some(change.at.0),
            reason: change.reason,
            error: task.error.as_ref().filter(|_| change.state.is_terminal()).map(FailureBody::new),
        };
        event(text, name, Some((self.epoch, change.seq)), &body);
    }
}

fn event(text: &mut String, name: &str, id: Option<(u64, u32)>, body: &EventBody) {
    if let Some((epoch, seq)) = id {
        let _ = writeln!(text, "id: {epoch:x}-{seq}");
    }
    // JSON has no line breaks of its own.
    let data = serde_json::to_string(body).expect("an event has string keys only");
    let _ = write!(text, "event: {name}\ndata: {data}\n\n");
}

/// Counts one as long as it lives.
pub(super) struct Open(Gauge);

impl Open {
    pub(super) fn count(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
