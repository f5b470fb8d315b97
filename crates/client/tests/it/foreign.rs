//! Answers that are late, broken, busy, or of another program.

use std::time::{Duration, Instant};

use rayreel_client::{Client, Code, CreateKey, Error, TaskId, TransportKind, Variant};
use tokio::net::TcpListener;

use crate::scripted::{Scripted, answer};
use crate::server::small;

const PAGE: &str = "<!doctype html><title>Welcome</title>";
const MODELS: &str = r#"{"object":"list","data":[]}"#;

fn id() -> TaskId {
    "task_018bcfe5680070707070707070707070".parse().unwrap()
}

fn refusal(status: u16, code: &str, headers: &str) -> String {
    let body = format!(
        r#"{{"error":{{"code":"{code}","message":"no","param":null,"type":"x","request_id":"r1"}}}}"#
    );
    answer(status, &format!("content-type: application/json\n{headers}"), &body)
}

#[tokio::test]
async fn a_busy_server_is_asked_again_after_the_pause_that_it_names_and_with_the_same_key() {
    let busy = refusal(429, "queue_full", "retry-after: 1");
    let away = answer(503, "content-type: text/html", PAGE);
    let server = Scripted::new([busy, away, refusal(400, "invalid_value", "x: y")]).await;
    let begun = Instant::now();
    let client = server.builder().build().unwrap();
    let error = client.submit(&small("fox")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidValue, "which is not tried again");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    let keys = server.headers("idempotency-key");
    assert_eq!(keys.len(), 3);
    assert!(keys[0].is_some() && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn who_says_come_back_tomorrow_is_not_waited_for() {
    let server = Scripted::new([refusal(429, "limit_reached", "retry-after: 86400")]).await;
    let error = server.builder().build().unwrap().submit(&small("fox")).await.unwrap_err();
    let refusal = error.api().expect("a refusal");
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(86_400)));
    assert_eq!(refusal.request_id.as_deref(), Some("r1"));
    assert!(error.is_passing());
}

#[tokio::test]
async fn tries_end() {
    let busy = refusal(503, "store_unavailable", "retry-after: 0");
    let server = Scripted::new(vec![busy; 3]).await;
    let error = server.builder().retries(2).build().unwrap().models().await.unwrap_err();
    assert_eq!(error.code(), Code::StoreUnavailable);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn what_may_have_had_an_effect_is_not_repeated() {
    let unknown = refusal(503, "outcome_unknown", "retry-after: 0");
    for (broken, tries) in [(String::new(), 1), (unknown, 1)] {
        let server = Scripted::new(vec![broken.clone(), answer(200, "", "{}")]).await;
        let client = server.builder().build().unwrap();
        let made = client.create_key(&CreateKey::default()).await;
        assert!(made.unwrap_err().is_passing());
        assert_eq!(server.requests().len(), tries);
    }
    let server = Scripted::new([String::new(), answer(200, "", MODELS)]).await;
    server.builder().build().unwrap().models().await.expect("what only reads is");
}

#[tokio::test]
async fn a_code_of_a_newer_server_is_kept_by_name() {
    let server = Scripted::new([refusal(404, "moon_not_found", "x: y")]).await;
    let error = server.builder().build().unwrap().models().await.unwrap_err();
    let refusal = error.api().expect("a refusal");
    assert_eq!((refusal.code, &*refusal.name), (Code::RouteNotFound, "moon_not_found"));
}

#[tokio::test]
async fn another_program_at_the_address_is_told_from_a_server() {
    let page = |status| answer(status, "content-type: text/html", PAGE);
    let server = Scripted::new([page(200), page(404), page(301), page(200)]).await;
    let client = server.builder().build().unwrap();
    let error = client.models().await.unwrap_err();
    assert!(matches!(error, Error::Answer { status: 200, .. }), "{error:?}");
    let expected = format!("{} does not answer as a rayreel server does: ", server.address);
    assert!(error.to_string().starts_with(&expected), "{error}");
    let error = client.task(id()).await.unwrap_err();
    assert!(
        matches!(error, Error::Answer { status: 404, .. }),
        "no task was looked for: {error:?}"
    );
    assert!(error.to_string().contains("404"), "{error}");
    let error = client.models().await.unwrap_err();
    assert!(
        matches!(error, Error::Answer { status: 301, .. }),
        "no redirect is followed: {error:?}"
    );
    let error = client.events(id()).next().await.unwrap().unwrap_err();
    let expected = "does not answer as a rayreel server does: it sends no stream of events";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let builder = Client::builder(&address).retries(0).answer_timeout(Duration::from_millis(50));
    let client = builder.build().unwrap();
    for error in [
        client.models().await.unwrap_err(),
        client.events(id()).next().await.unwrap().unwrap_err(),
        client.content(id(), Variant::Main).await.unwrap_err(),
    ] {
        let Error::Transport(transport) = error else { panic!("{error:?}") };
        assert_eq!(transport.kind, TransportKind::Silent);
        assert_eq!(transport.message, format!("{address} takes calls, but does not answer"));
    }
}

/// SHA-256 of `0123456789`.
const DIGITS: &str = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";

fn cut(headers: &str) -> String {
    // Four bytes of ten.
    let headers = format!("content-type: video/mp4\n{headers}");
    answer(200, &headers, "0123456789").trim_end_matches("456789").to_owned()
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let etag = format!("etag: \"{DIGITS}\"");
    let rest = answer(206, &format!("{etag}\ncontent-range: bytes 4-9/10"), "456789");
    let busy = refusal(503, "store_unavailable", "retry-after: 0");
    let server = Scripted::new([cut(&etag), busy, rest]).await;
    let mut file = Vec::new();
    let client = server.builder().build().unwrap();
    let downloaded = client.download(id(), Variant::Main, &mut file).await.unwrap();
    assert_eq!(file, b"0123456789");
    assert_eq!((downloaded.bytes, &*downloaded.sha256), (10, DIGITS));
    assert_eq!(server.headers("range"), [None, Some("bytes=4-".into()), Some("bytes=4-".into())]);
    assert_eq!(server.headers("if-range")[2].as_deref(), Some(&*format!("\"{DIGITS}\"")));
}

#[tokio::test]
async fn a_file_is_got_from_where_the_server_sends_us_without_the_key() {
    // A store has tags of its own.
    let tag = "etag: \"store\"";
    let rest = answer(206, &format!("{tag}\ncontent-range: bytes 4-9/10"), "456789");
    let store = Scripted::new([cut(tag), answer(403, "x: y", "expired"), rest]).await;
    let sent = format!("etag: \"{DIGITS}\"\nlocation: {}/a?signature=b", store.address);
    let server = Scripted::new([(); 3].map(|()| answer(307, &sent, ""))).await;
    let client = server.builder().key("secret").build().unwrap();
    let mut file = Vec::new();
    let downloaded = client.download(id(), Variant::Main, &mut file).await.unwrap();
    assert_eq!((&*file, &*downloaded.media_type), (&b"0123456789"[..], "video/mp4"));
    assert_eq!(store.headers("range"), [None, Some("bytes=4-".into()), Some("bytes=4-".into())]);
    assert_eq!(store.headers("if-range")[2].as_deref(), Some("\"store\""));
    assert_eq!(store.headers("authorization"), [None, None, None]);
    assert!(store.requests()[0].starts_with("GET /a?signature=b "));
    assert_eq!(server.headers("authorization")[2].as_deref(), Some("Bearer secret"));
}

#[tokio::test]
async fn another_file_where_the_server_sends_us_is_an_error() {
    let store = Scripted::new([answer(200, "etag: \"store\"", "012345678x")]).await;
    let sent = format!("etag: \"{DIGITS}\"\nlocation: {}/a", store.address);
    let server = Scripted::new([answer(307, &sent, "")]).await;
    let client = server.builder().build().unwrap();
    let error = client.download(id(), Variant::Main, &mut Vec::new()).await.unwrap_err();
    assert!(matches!(&error, Error::Checksum { expected, .. } if expected == DIGITS), "{error:?}");
}

#[tokio::test]
async fn a_place_that_is_gone_is_told_without_its_address() {
    let sent = "location: http://127.0.0.1:1/a?signature=b";
    let server = Scripted::new([answer(307, sent, "")]).await;
    let client = server.builder().retries(0).build().unwrap();
    let error = client.download(id(), Variant::Main, &mut Vec::new()).await.unwrap_err();
    let told = format!("the files of {} can't be read: ", server.address);
    assert!(error.to_string().starts_with(&told), "{error}");
    assert!(!error.to_string().contains("signature"), "{error}");
}

#[tokio::test]
async fn a_truncated_download_is_an_error() {
    let etag = format!("etag: \"{DIGITS}\"");
    let other = answer(200, "etag: \"other\"", "another file");
    for (script, retries) in [
        (vec![cut(&etag)], 0),
        // Nothing says that what comes next would be the same file.
        (vec![cut("x: y"), cut("x: y")], 4),
        (vec![cut(&etag), other], 1),
    ] {
        let server = Scripted::new(script).await;
        let client = server.builder().retries(retries).build().unwrap();
        let error = client.download(id(), Variant::Main, &mut Vec::new()).await.unwrap_err();
        let Error::Transport(transport) = error else { panic!("{error:?}") };
        assert_eq!(transport.kind, TransportKind::Broken);
        let expected = format!("the transfer from {} broke: ", server.address);
        assert!(transport.message.starts_with(&expected), "{}", transport.message);
    }
}

#[tokio::test]
async fn a_file_that_is_another_one_is_an_error() {
    let headers = format!("content-type: video/mp4\netag: \"{DIGITS}\"");
    let server = Scripted::new([answer(200, &headers, "012345678x")]).await;
    let client = server.builder().build().unwrap();
    let error = client.download(id(), Variant::Main, &mut Vec::new()).await.unwrap_err();
    let Error::Checksum { expected, got } = error else { panic!("{error:?}") };
    assert!(expected == DIGITS && got != DIGITS);
}
