//! The real server: every call, its death, and its refusals.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use rayreel_client::{
    Code, CreateKey, Error, EventKind, Filter, Scope, State, SubmitBody, TransportKind, Variant,
};

use crate::server::{Server, small};

const VIDEO: &[u8] = &[7; 100_000];

#[tokio::test]
async fn from_a_request_to_a_file() {
    let server = Server::start(&[]);
    let client = server.client();
    client.is_alive().await.unwrap();
    let submitted = client.submit(&small("fox")).await.unwrap();
    assert_eq!(submitted.task.status, State::Queued);
    assert_eq!(submitted.id.to_string(), submitted.task.id);
    assert!(submitted.test_pattern, "the built-in model draws one");

    let work = async {
        let mut worker = server.worker().await;
        let fence = worker.take().await;
        worker.beat(fence, 5).await;
        worker.finish(fence, VIDEO).await;
    };
    let (task, ()) = tokio::join!(client.wait(submitted.id), work);
    let result = task.unwrap().result.unwrap();

    let mut file = Vec::new();
    let downloaded = client.download(submitted.id, Variant::Main, &mut file).await.unwrap();
    assert!(file == VIDEO);
    assert_eq!((downloaded.bytes, &*downloaded.media_type), (result.bytes, "video/mp4"));
    assert_eq!(downloaded.sha256, result.sha256);
    let mut file = Vec::new();
    client.download(submitted.id, Variant::Thumbnail, &mut file).await.unwrap();
    assert_eq!(file, b"still");

    let content = client.content(submitted.id, Variant::Main).await.unwrap();
    let other = content.expect(&"0".repeat(64)).copy_to(&mut Vec::new()).await;
    assert!(matches!(other, Err(Error::Checksum { got, .. }) if got == result.sha256));

    assert!(client.delete(submitted.id).await.unwrap().deleted);
    let gone = client.task(submitted.id).await.unwrap_err();
    assert_eq!(gone.code(), Code::TaskNotFound);
}

#[tokio::test]
async fn a_list_follows_its_pages_and_a_filter_holds_on_each() {
    let server = Server::start(&[]);
    let client = server.client();
    let request = SubmitBody { n: Some(5), ..small("fox") };
    let submitted = client.submit(&request).await.unwrap();
    let mut made = vec![submitted.task.id];
    made.extend(submitted.others.into_iter().map(|task| task.id));
    let cancelled = client.cancel(made[0].parse().unwrap()).await.unwrap();
    assert_eq!((cancelled.status, cancelled.cancelled), (State::Cancelled, true));

    let ids = async |state| {
        let filter = Filter { state, limit: Some(2), ..Filter::default() };
        let tasks = pin!(client.tasks(filter).into_stream());
        let mut ids: Vec<String> = tasks.map(|task| task.unwrap().id).collect().await;
        ids.sort();
        ids
    };
    made.sort();
    assert_eq!(ids(None).await, made);
    assert_eq!(ids(Some(State::Queued)).await.len(), 4);
    assert_eq!(ids(Some(State::Failed)).await.len(), 0);
}

#[tokio::test]
async fn a_server_that_dies_in_mid_stream_and_comes_back_is_followed_to_the_end() {
    let mut server = Server::start(&[]);
    let client = server.client();
    let id = client.submit(&small("fox")).await.unwrap().id;
    let mut events = client.events(id);
    let mut states = Vec::new();
    let mut hear = async |events: &mut rayreel_client::Events, until: State| loop {
        let event = events.next().await.expect("there is more").unwrap();
        match event.kind {
            EventKind::State => states.push(event.body.status),
            kind => assert_eq!(kind, EventKind::Progress),
        }
        if event.body.status == until {
            break;
        }
    };
    hear(&mut events, State::Queued).await;
    let mut worker = server.worker().await;
    let fence = worker.take().await;
    worker.beat(fence, 1).await;
    hear(&mut events, State::Running).await;
    server.die();
    // It notices, and tries to connect, while nobody is there.
    let waiting = tokio::time::timeout(Duration::from_millis(300), events.next()).await;
    // It may have been told of progress before the server died.
    if let Ok(event) = waiting {
        assert_eq!(event.unwrap().unwrap().kind, EventKind::Progress);
    }
    server.come_back();
    // Two changes that nobody listens to, as far as the server knows.
    let mut worker = server.worker().await;
    let fence = worker.take().await;
    worker.finish(fence, VIDEO).await;
    hear(&mut events, State::Succeeded).await;
    assert!(events.next().await.is_none(), "that was the last");
    let expected = [State::Queued, State::Running, State::Queued, State::Running, State::Succeeded];
    assert_eq!(states, expected, "nothing missed, nothing twice");

    let mut behind = client.events(id);
    let mut last = None;
    while let Some(event) = behind.next().await {
        last = event.unwrap().id.or(last);
    }
    let mut behind = client.events(id).after(last.unwrap());
    assert!(behind.next().await.is_none(), "nothing is behind the end");
}

#[tokio::test]
async fn a_stream_gives_up_when_its_server_stays_away() {
    let mut server = Server::start(&[]);
    let client = server.builder().outage(Duration::from_millis(300)).build().unwrap();
    let id = client.submit(&small("fox")).await.unwrap().id;
    let mut events = client.events(id);
    assert_eq!(events.next().await.unwrap().unwrap().body.status, State::Queued);
    server.die();
    let error = events.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Transport(_)), "{error}");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let mut server = Server::start(&[]);
    let client = server.builder().retries(1).build().unwrap();
    server.die();
    let error = client.models().await.unwrap_err();
    let Error::Transport(transport) = &error else { panic!("{error:?}") };
    assert_eq!(transport.kind, TransportKind::Refused);
    assert_eq!(error.to_string(), format!("nothing listens at http://{}", server.address));
}

#[tokio::test]
async fn a_limit_names_itself_and_when_to_come_again() {
    let server = Server::start(&[("RAYREEL_TENANTS__DEFAULT__TASKS_PER_MINUTE", "60")]);
    let hasty = server.builder().retries(0).build().unwrap();
    let request = SubmitBody { n: Some(8), ..small("fox") };
    let refusal = loop {
        if let Err(error) = hasty.submit(&request).await {
            break error;
        }
    };
    let refusal = refusal.api().expect("a refusal").clone();
    assert_eq!((refusal.status, refusal.code), (429, Code::LimitReached));
    assert_eq!(refusal.param.as_deref(), Some("tasks_per_minute"));
    let minute = Duration::from_secs(30)..=Duration::from_secs(61);
    assert!(refusal.retry_after.is_some_and(|wait| minute.contains(&wait)), "{refusal:?}");
    assert!(refusal.request_id.is_some());
    // So long a pause is the caller's decision.
    while hasty.submit(&small("fox")).await.is_ok() {}
    let error = server.client().submit(&small("fox")).await.unwrap_err();
    assert_eq!(error.api().map(|refusal| refusal.code), Some(Code::LimitReached));
}

#[tokio::test]
async fn a_refusal_says_what_is_wrong_and_where() {
    let server = Server::start(&[]);
    let client = server.client();
    let request = SubmitBody { frames: Some(6), ..small("fox") };
    let error = client.submit(&request).await.unwrap_err();
    let refusal = error.api().expect("a refusal");
    assert_eq!((refusal.status, refusal.code), (400, Code::InvalidValue));
    assert_eq!((&*refusal.name, refusal.param.as_deref()), ("invalid_value", Some("frames")));
    assert!(refusal.message.contains("frames"), "{refusal}");
    assert_eq!(refusal.retry_after, None);
    assert!(error.to_string().contains("(invalid_value, request "), "{error}");
}

#[tokio::test]
async fn the_same_key_makes_one_task() {
    let server = Server::start(&[]);
    let client = server.client();
    let key = rayreel_client::idempotency_key();
    let first = client.submit_with_key(&small("fox"), &key).await.unwrap();
    let again = client.submit_with_key(&small("fox"), &key).await.unwrap();
    assert_eq!(first.id, again.id);
    assert_ne!(client.submit(&small("fox")).await.unwrap().id, first.id);
    let other = client.submit_with_key(&small("wolf"), &key).await.unwrap_err();
    assert_eq!(other.code(), Code::IdempotencyMismatch);
}

#[tokio::test]
async fn pictures_models_and_keys() {
    let server = Server::start(&[]);
    let client = server.client();
    let models = client.models().await.unwrap();
    assert_eq!(models.data[0].id, "testcard");

    let picture = include_bytes!("grey.bin");
    let file = client.upload("a \"grey\" fox.png", &picture[..]).await.unwrap();
    assert_eq!(file.filename, "a \"grey\" fox.png");
    let request = SubmitBody { image: Some(file.id.clone()), ..small("fox") };
    assert!(client.submit(&request).await.unwrap().task.request.image);
    assert_eq!(client.files(None).await.unwrap().data, std::slice::from_ref(&file));
    assert!(client.delete_file(&file.id).await.unwrap().deleted);
    let none = client.upload("x.png", "no picture").await.unwrap_err();
    assert_eq!(none.code(), Code::InvalidValue);

    let wish = CreateKey {
        name: "shop".to_owned(),
        scopes: Some(vec![Scope::Read]),
        ..CreateKey::default()
    };
    let key = client.create_key(&wish).await.unwrap();
    let shop = server.builder().key(&key.key.unwrap()).build().unwrap();
    assert_eq!(shop.list(&Filter::default()).await.unwrap().data.len(), 1);
    assert_eq!(shop.submit(&small("fox")).await.unwrap_err().code(), Code::ScopeMissing);
    assert_eq!(client.keys().await.unwrap().data.len(), 1);
    assert!(client.revoke_key(&key.id).await.unwrap().revoked_at.is_some());
    assert_eq!(shop.models().await.unwrap_err().code(), Code::Unauthorized);
}
