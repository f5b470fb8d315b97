//! Follows the stream of events, to which every script tells what it has changed, and wakes those of
//! this server who wait. Each server follows once, however many wait.
//!
//! An event is a wake-up, not the truth: whoever is woken reads the store. So what was missed while
//! there was no connection is made good by waking everybody.

use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::id::{PoolName, TaskId, WorkerName};
use rayreel_domain::task::State;
use redis::Cmd;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};

use super::history::History;
use super::link::{self, Link};
use crate::feed::{Change, Feed};
use crate::store::Error;

/// Longest wait for an event; then the connection is tried.
const BLOCK: Duration = Duration::from_secs(2);
/// How much later its answer may come.
const ANSWER: Duration = Duration::from_secs(3);
/// Events that are read in one go.
const COUNT: usize = 1_000;
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(250);

/// Follows until it is dropped.
#[derive(Debug)]
pub(super) struct Tail(tokio::task::JoinHandle<()>);

impl Tail {
    pub(super) fn start(
        link: Arc<Link>,
        history: Arc<History>,
        key: String,
        feed: Arc<Feed>,
    ) -> Self {
        Self(tokio::spawn(async move {
            // Whoever opens the store has just learnt the history.
            let mut known = true;
            loop {
                let made = link.broken();
                if let Err(error) = follow(&link, &history, known, &key, &feed).await {
                    tracing::warn!(%error, "the store's events can't be followed; trying again");
                    link.give_up(made);
                }
                known = false;
                tokio::time::sleep(AGAIN).await;
            }
        }))
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows until the connection breaks, this one or that of all others.
async fn follow(
    link: &Link,
    history: &History,
    known: bool,
    key: &str,
    feed: &Feed,
) -> Result<(), Error> {
    let broken = link.broken();
    let mut connection = link.own(BLOCK + ANSWER).await.map_err(link::failed_to_read)?;
    if !known {
        history.learn(None).await?;
    }
    let failed = link::failed_to_read;
    let mut newest = Cmd::new();
    newest.arg("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1);
    let newest: StreamRangeReply = newest.query_async(&mut connection).await.map_err(failed)?;
    let mut last = newest.ids.first().map_or_else(|| "0-0".to_owned(), |entry| entry.id.clone());
    // What came before that is found by looking.
    feed.stir();
    while link.broken() == broken {
        let mut read = Cmd::new();
        read.arg("XREAD").arg("COUNT").arg(COUNT).arg("BLOCK").arg(BLOCK.as_millis() as u64);
        read.arg("STREAMS").arg(key).arg(&last);
        let read: Option<StreamReadReply> =
            read.query_async(&mut connection).await.map_err(failed)?;
        for entry in read.into_iter().flat_map(|read| read.keys).flat_map(|stream| stream.ids) {
            wake(&entry, feed);
            last = entry.id;
        }
    }
    Ok(())
}

/// Wakes those whom an event concerns. Fields that are unknown are of a newer version, and values
/// that make no sense wake nobody.
fn wake(entry: &StreamId, feed: &Feed) {
    let text = |field: &str| entry.get::<String>(field);
    let is_set = |field: &str| text(field).is_some_and(|value| value != "0" && !value.is_empty());
    let task = text("task").and_then(|id| id.parse::<TaskId>().ok());
    let pool = text("pool").and_then(|name| name.parse::<PoolName>().ok());
    match (task, pool) {
        (Some(task), Some(pool)) => feed.publish(&[Change {
            task,
            pool,
            entered: text("state").as_deref().and_then(State::from_text),
            ready: is_set("ready"),
            revoked_from: text("revoked").and_then(|name| name.parse::<WorkerName>().ok()),
        }]),
        (Some(task), None) => feed.progress(task),
        _ => {}
    }
    for (field, notify) in [
        ("timers", &feed.timers),
        ("garbage", &feed.garbage),
        ("webhooks", &feed.webhooks),
        ("backlog", &feed.backlog),
        ("keys", &feed.keys),
    ] {
        if is_set(field) {
            notify.notify_one();
        }
    }
    if let Some(pool) = text("wake").and_then(|name| name.parse().ok()) {
        feed.wake_one(&pool);
    }
    if let Some(pool) = text("crowd").and_then(|name| name.parse().ok()) {
        feed.wake_all(&pool);
    }
    if text("state").as_deref() != Some("RUNNING")
        && let Some(worker) = text("worker").and_then(|name| name.parse().ok())
    {
        feed.control(&worker).notify_waiters();
    }
    if let Some(worker) = text("gone").and_then(|name| name.parse().ok()) {
        feed.forget(&worker);
    }
}
