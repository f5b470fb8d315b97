//! What happens to a task, as it happens.

use std::vec::IntoIter;

use futures_util::stream::{self, Stream};
use rayreel_domain::TaskId;
use rayreel_domain::wire::api::{EventBody, TASKS_PATH};
use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Method, Response, StatusCode};
use tokio::time::Instant;

use crate::retry::{Repeat, backoff};
use crate::{Client, Error, sse};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A change of a task, or its progress.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// What it tells of.
    pub kind: EventKind,
    /// Where to resume behind this event; progress has no such position.
    pub id: Option<String>,
    /// The task's state, its progress and so on.
    pub body: EventBody,
}

/// What an event tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A change of state. None of them is missed.
    State,
    /// How far the running attempt is; the newest value, not each one.
    Progress,
    /// The task as it is now: the server could not resume where the stream broke.
    Snapshot,
}

impl EventKind {
    const ALL: [Self; 3] = [Self::State, Self::Progress, Self::Snapshot];

    /// Its name in the stream.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Progress => "progress",
            Self::Snapshot => "snapshot",
        }
    }
}

impl Event {
    /// None if it is of a newer server, and not for us.
    fn new(event: sse::Event) -> Option<Self> {
        let kind = EventKind::ALL.into_iter().find(|kind| kind.as_str() == event.name)?;
        Some(Self { kind, id: event.id, body: serde_json::from_str(&event.data).ok()? })
    }
}

/// One connection of a stream of events.
#[derive(Debug)]
pub struct Connection {
    response: Response,
    parser: sse::Parser,
    ready: IntoIter<sse::Event>,
}

impl Connection {
    pub(crate) async fn open(
        client: &Client,
        id: TaskId,
        after: Option<&str>,
    ) -> Result<Self, Error> {
        let mut call = client.call(Method::GET, &format!("{TASKS_PATH}/{id}/events"))?;
        if let Some(after) = after {
            call = call.header(LAST_EVENT_ID, after);
        }
        let response = client.open(call).await?;
        let connection =
            Self { response, parser: sse::Parser::default(), ready: Vec::new().into_iter() };
        let media_type = connection.response.headers().get(CONTENT_TYPE);
        let is_stream =
            media_type.is_some_and(|it| it.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream && !connection.is_over() {
            let status = connection.response.status().as_u16();
            return Err(client.foreign(status, "it sends no stream of events"));
        }
        Ok(connection)
    }

    /// Has the task ended, with nothing more to tell of it?
    fn is_over(&self) -> bool {
        self.response.status() == StatusCode::NO_CONTENT
    }

    /// The next event; none when the server has ended the stream or is gone. May be dropped while it
    /// waits.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.by_ref().find_map(Event::new) {
                return Some(event);
            }
            let piece = self.response.chunk().await.ok()??;
            self.ready = self.parser.push(&piece).ok()?.into_iter();
        }
    }
}

/// The events of a task until its end, however often the connection is lost meanwhile.
#[derive(Debug)]
pub struct Events {
    client: Client,
    id: TaskId,
    state: Stage,
    /// Position behind the last event that had one.
    after: Option<String>,
    /// Tries to connect since the last event.
    tries: u32,
    not_before: Option<Instant>,
    /// Since when no connection could be made, once there has been one.
    away: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    /// There has been no connection yet.
    New,
    Open(Box<Connection>),
    Lost,
    Ended,
}

impl Events {
    pub(crate) fn new(client: Client, id: TaskId) -> Self {
        let state = Stage::New;
        Self { client, id, state, after: None, tries: 0, not_before: None, away: None }
    }

    /// Begins behind the event with this id.
    #[must_use]
    pub fn after(mut self, id: impl Into<String>) -> Self {
        self.after = Some(id.into());
        self
    }

    /// The next event; none after the task's end, and after an error. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        loop {
            let connection = match &mut self.state {
                Stage::Ended => return None,
                Stage::Open(connection) => connection,
                Stage::New | Stage::Lost => {
                    if let Err(error) = self.connect().await {
                        self.state = Stage::Ended;
                        return Some(Err(error));
                    }
                    continue;
                }
            };
            match connection.next().await {
                Some(event) => {
                    self.tries = 0;
                    if event.id.is_some() {
                        self.after.clone_from(&event.id);
                    }
                    if event.body.status.is_terminal() {
                        self.state = Stage::Ended;
                    }
                    return Some(Ok(event));
                }
                None if connection.is_over() => self.state = Stage::Ended,
                None => {
                    self.state = Stage::Lost;
                    self.tries += 1;
                    self.not_before = Some(Instant::now() + backoff(self.tries));
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Error> {
        loop {
            if let Some(time) = self.not_before {
                tokio::time::sleep_until(time).await;
            }
            let error = match Connection::open(&self.client, self.id, self.after.as_deref()).await {
                Ok(connection) => {
                    self.state = Stage::Open(Box::new(connection));
                    self.away = None;
                    return Ok(());
                }
                Err(error) => error,
            };
            self.tries += 1;
            let limits = self.client.limits();
            let pause = match self.state {
                Stage::New => limits.retry.pause(self.tries, &error, Repeat::Always),
                _ => {
                    let since = *self.away.get_or_insert_with(Instant::now);
                    let pause = error.retry_after().unwrap_or_else(|| backoff(self.tries));
                    let is_in_time = since.elapsed() + pause <= limits.outage;
                    (error.is_passing() && is_in_time).then_some(pause)
                }
            };
            match pause {
                Some(pause) => self.not_before = Some(Instant::now() + pause),
                None => return Err(error),
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, Error>> + Send {
        stream::unfold(self, |mut events| async {
            let next = events.next().await?;
            Some((next, events))
        })
    }
}
