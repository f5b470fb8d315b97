//! Event streams.

use std::time::Duration;

use rayreel_domain::task::State;
use rayreel_domain::wire::api::EventBody;
use rayreel_domain::wire::worker::Progress;
use reqwest::{Method, Response};
use serde_json::json;

use super::client::{Answer, Server, TASKS, video};

/// An open stream.
struct Stream {
    response: Response,
    buffer: String,
}

/// An event as it came.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    body: EventBody,
}

impl Stream {
    async fn open(server: &Server, id: &str, last: Option<&str>) -> Self {
        let mut request = server.request(Method::GET, &format!("{TASKS}/{id}/events"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, buffer: String::new() }
    }

    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let block = block.to_owned();
                self.buffer = rest.to_owned();
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name));
                    line.map(str::to_owned)
                };
                let Some(data) = field("data: ") else { continue };
                return Some(Event {
                    name: field("event: ").unwrap(),
                    id: field("id: "),
                    body: serde_json::from_str(&data).unwrap(),
                });
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.response.chunk());
            let chunk = chunk.await.expect("no event came").unwrap()?;
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn rest(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

fn states(events: &[Event]) -> Vec<State> {
    events.iter().filter(|event| event.name == "state").map(|event| event.body.status).collect()
}

fn denoise(step: u32) -> Option<Progress> {
    Some(Progress { stage: "denoise".to_owned(), step, steps: 10 })
}

#[tokio::test]
async fn a_stream_tells_every_change_as_it_happens_and_ends_with_the_last() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    let mut stream = Stream::open(&server, &task.id, None).await;
    let queued = stream.next().await.unwrap();
    assert_eq!((&*queued.name, queued.body.status), ("state", State::Queued));
    assert_eq!(queued.body.at_ms, Some(1_800_000_000_000));

    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let running = stream.next().await.unwrap();
    assert_eq!((running.body.status, running.body.attempt), (State::Running, 1));
    worker.beat(fence, denoise(5)).await;
    let progress = stream.next().await.unwrap();
    assert_eq!((&*progress.name, &progress.id), ("progress", &None));
    assert_eq!((progress.body.progress, progress.body.at_ms), (46, None));
    assert_eq!(progress.body.stage, denoise(5));

    worker.finish(fence, &[(video(b"x"), b"x")]).await;
    let ended = stream.next().await.unwrap();
    assert_eq!((ended.body.status, ended.body.progress), (State::Succeeded, 100));
    assert_eq!(stream.next().await, None);
    assert_eq!(queued.id.unwrap().rsplit_once('-').unwrap().1, "1");
    assert_eq!(ended.id.unwrap().rsplit_once('-').unwrap().1, "3");
}

#[tokio::test]
async fn a_late_stream_gets_the_whole_history_at_once() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    worker.call("release", json!({"fence": fence})).await;
    server.post(&format!("{TASKS}/{}/cancel", task.id), &json!({})).await;
    let events = Stream::open(&server, &task.id, None).await.rest().await;
    let told = [State::Queued, State::Running, State::Queued, State::Cancelled];
    assert_eq!(states(&events), told);
    assert_eq!(events[2].body.reason.unwrap().name(), "interrupted");
    assert_eq!(events[3].body.error.as_ref().unwrap().code.name(), "cancelled");
    assert!(events[..3].iter().all(|event| event.body.error.is_none()));
}

#[tokio::test]
async fn a_stream_resumes_behind_the_event_that_was_seen_last() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    let mut stream = Stream::open(&server, &task.id, None).await;
    let first = stream.next().await.unwrap().id.unwrap();
    drop(stream);
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    worker.beat(fence, denoise(10)).await;

    let mut stream = Stream::open(&server, &task.id, Some(&first)).await;
    assert_eq!(stream.next().await.unwrap().body.status, State::Running);
    assert_eq!(stream.next().await.unwrap().name, "progress");
    server.post(&format!("{TASKS}/{}/cancel", task.id), &json!({})).await;
    let last = stream.next().await.unwrap();
    assert_eq!(last.body.status, State::Cancelled);
    assert_eq!(stream.next().await, None);

    // Nothing will ever come behind the last one: 204 tells a browser to stay away.
    let request = server.request(Method::GET, &format!("{TASKS}/{}/events", task.id));
    let answer = Answer::of(request.header("last-event-id", last.id.unwrap())).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
}

#[tokio::test]
async fn an_unknown_position_gets_a_snapshot_first() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    worker.beat(fence, denoise(5)).await;
    let epoch = server.app.components.store.epoch();
    let foreign = format!("{:x}-1", epoch ^ 1);
    let ahead = format!("{epoch:x}-99");
    for unknown in ["nonsense", "1-x", "-", &foreign, &ahead] {
        let mut stream = Stream::open(&server, &task.id, Some(unknown)).await;
        let snapshot = stream.next().await.unwrap();
        assert_eq!((&*snapshot.name, snapshot.body.status), ("snapshot", State::Running));
        assert_eq!((snapshot.id, snapshot.body.progress), (Some(format!("{epoch:x}-2")), 46));
    }
    let mut stream = Stream::open(&server, &task.id, Some("nonsense")).await;
    stream.next().await.unwrap();
    worker.beat(fence, denoise(6)).await;
    let next = stream.next().await.unwrap();
    assert_eq!((&*next.name, next.body.stage), ("progress", denoise(6)), "and then what is new");
    server.post(&format!("{TASKS}/{}/cancel", task.id), &json!({})).await;
    assert_eq!(states(&stream.rest().await), [State::Cancelled]);
    let ended = Stream::open(&server, &task.id, Some("nonsense")).await.rest().await;
    assert_eq!((ended.len(), ended[0].body.status), (1, State::Cancelled));
    assert!(ended[0].body.error.is_some());
}

#[tokio::test]
async fn a_stream_ends_when_its_task_is_deleted_or_the_server_stops() {
    let server = Server::start().await;
    let (kept, deleted) = (server.submit("a").await, server.submit("b").await);
    let mut streams = Vec::new();
    for task in [&kept, &deleted] {
        let mut stream = Stream::open(&server, &task.id, None).await;
        stream.next().await.unwrap();
        streams.push(stream);
    }
    for _ in 0..2 {
        server.delete(&format!("{TASKS}/{}", deleted.id)).await;
    }
    let told = states(&streams.pop().unwrap().rest().await);
    assert!(told.is_empty() || told == [State::Cancelled], "{told:?}");
    server.shutdown.cancel();
    assert_eq!(streams.pop().unwrap().rest().await, []);
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_stream() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = Stream::open(&server, &task.id, None).await;
        stream.next().await.unwrap();
        streams.push(stream);
    }
    server.until_metric("rayreel_event_streams", 10.0).await;
    drop(streams);
    server.until_metric("rayreel_event_streams", 0.0).await;
}
