//! The access log: a line for each request, that says who asked, and nothing that anybody made up.

use std::io::Write;
use std::sync::{Arc, Mutex};

use rayreel_domain::wire::delivery::LinkAnswer;
use reqwest::Method;
use serde_json::{Map, Value, json};
use tracing::subscriber::DefaultGuard;

use super::client::{Answer, LOCAL_TOKEN, Server, TASKS, TOKEN, video};
use super::keys::{call, make};

const ACCESS: (&str, &str) = ("RAYREEL_LOG__ACCESS", "true");

/// Where the log is written to.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log as it would be written, in one of its two forms. The server of a test runs on its thread.
struct Log {
    text: Text,
    _guard: DefaultGuard,
}

impl Log {
    fn new(is_json: bool) -> Self {
        let text = Text::default();
        let writer = text.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        let guard = if is_json {
            tracing::subscriber::set_default(log.json().flatten_event(true).finish())
        } else {
            tracing::subscriber::set_default(log.finish())
        };
        Self { text, _guard: guard }
    }

    /// The lines since the last call that are of the access log.
    fn take(&self) -> Vec<String> {
        let text = self.text.take();
        text.lines().filter(|line| line.contains("rayreel::access")).map(str::to_owned).collect()
    }

    /// The one entry since the last call, without what every line has.
    fn entry(&self) -> Map<String, Value> {
        let lines = self.take();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let mut entry: Map<String, Value> = serde_json::from_str(&lines[0]).unwrap();
        for (field, value) in [("level", json!("INFO")), ("target", json!("rayreel::access"))] {
            assert_eq!(entry.remove(field), Some(value));
        }
        entry.remove("timestamp").expect("a time");
        entry
    }
}

/// Asserts the one line that this answer has left.
fn logged(log: &Log, answer: &Answer, tenant: Option<&str>, key: Option<&str>, what: &str) {
    let mut entry = log.entry();
    assert_eq!(entry.remove("request_id").unwrap(), answer.header("x-request-id"), "{what}");
    assert_eq!(entry.remove("status").unwrap(), answer.status.as_u16(), "{what}");
    assert_eq!(entry.remove("tenant").as_ref(), tenant.map(|name| json!(name)).as_ref(), "{what}");
    assert_eq!(entry.remove("key").as_ref(), key.map(|id| json!(id)).as_ref(), "{what}");
    let rest: Vec<&String> = entry.keys().collect();
    assert!(rest == ["method", "ms", "path"] || rest.is_empty(), "{what}: {entry:?}");
}

#[tokio::test]
async fn every_request_leaves_a_line_that_says_who_asked() {
    let log = Log::new(true);
    let server = Server::with(&[ACCESS]).await;
    let guest = server.post(TASKS, &json!({"prompt": "p"})).await;
    let entry = log.entry();
    assert_eq!((&entry["method"], &entry["path"]), (&json!("POST"), &json!(TASKS)));
    assert_eq!((&entry["tenant"], entry.get("key")), (&json!("default"), None));
    let open = server.get("/healthz").await;
    logged(&log, &open, None, None, "an open route");

    let (anna, anna_id) = make(&server, json!({"tenant": "anna"})).await;
    let (bert, bert_id) = make(&server, json!({"tenant": "bert"})).await;
    let (reader, reader_id) = make(&server, json!({"tenant": "anna", "scopes": ["read"]})).await;
    let (hand, hand_id) = make(&server, json!({"tenant": "anna", "scopes": ["worker"]})).await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    worker.finish(fence, &[(video(b"film"), b"film")]).await;
    let id = guest.json::<Value>()["id"].as_str().unwrap().to_owned();
    let path = format!("{TASKS}/{id}/link");
    let link = call(&server, Method::POST, &path, LOCAL_TOKEN, &json!({})).await;
    let link: LinkAnswer = link.json();
    let link = link.url.strip_prefix(&format!("http://{}", server.address)).unwrap().to_owned();
    let task = format!("{TASKS}/{id}");
    let register = json!({"worker": "v", "pool": "local", "version": "1"});
    log.take();

    let (anna, bert, reader, hand) = (Some(&*anna), Some(&*bert), Some(&*reader), Some(&*hand));
    let (local, token) = (Some(LOCAL_TOKEN), Some(TOKEN));
    let (anna_id, bert_id) = (Some(&*anna_id), Some(&*bert_id));
    let prompt = json!({"prompt": "p"});
    let none = Value::Null;
    let changed = format!("{link}A");
    for (what, method, path, key, body, status, tenant, logged_key) in [
        ("accepted", Method::POST, TASKS, anna, &prompt, 202, Some("anna"), anna_id),
        ("refused", Method::POST, TASKS, anna, &json!({}), 400, Some("anna"), anna_id),
        ("scope", Method::POST, TASKS, reader, &prompt, 403, Some("anna"), Some(&*reader_id)),
        ("no key", Method::GET, TASKS, None, &none, 401, None, None),
        ("wrong key", Method::GET, TASKS, Some("rr_x"), &none, 401, None, None),
        ("foreign", Method::GET, &task, bert, &none, 404, Some("bert"), bert_id),
        ("nowhere", Method::GET, "/v1/x", bert, &none, 404, Some("bert"), bert_id),
        ("the owner", Method::GET, &task, local, &none, 200, Some("default"), None),
        ("a link", Method::GET, &link, None, &none, 200, Some("default"), None),
        ("a link and a key", Method::GET, &link, bert, &none, 200, Some("default"), None),
        ("a changed link", Method::GET, &changed, None, &none, 403, None, None),
        ("open", Method::GET, "/readyz", None, &none, 200, None, None),
        ("open, with a key", Method::GET, "/openapi.json", anna, &none, 200, None, None),
        ("worker", Method::POST, "/v1/worker/register", token, &register, 200, None, None),
        (
            "a worker's key",
            Method::POST,
            "/v1/worker/register",
            hand,
            &register,
            200,
            None,
            Some(&*hand_id),
        ),
        ("no worker", Method::POST, "/v1/worker/register", anna, &register, 403, None, anna_id),
        ("a stranger", Method::POST, "/v1/worker/register", None, &register, 401, None, None),
    ] {
        let mut request = server.request(method, path);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let answer = Answer::of(request).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        logged(&log, &answer, tenant, logged_key, what);
    }
}

#[tokio::test]
async fn what_is_no_request_leaves_a_line_too() {
    let log = Log::new(true);
    let server = Server::with(&[ACCESS]).await;
    let long = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(20_000));
    for (bytes, status) in [
        (&b"\x16\x03\x01\x02\0 no request\r\n\r\n"[..], 400),
        (long.as_bytes(), 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ] {
        let answer = server.raw(bytes).await;
        assert_eq!(answer.status, status);
        let entry = log.entry();
        let fields: Vec<&String> = entry.keys().collect();
        assert_eq!(fields, ["request_id", "status"]);
        assert_eq!(entry["request_id"], answer.header("x-request-id"));
        assert_eq!(entry["status"], status);
    }
}

/// Requests that would write lines of their own into a log, or colours onto a terminal.
const HOSTILE: &[&str] = &[
    "GET /a%0a%0d2026-01-01T00:00:00Z%20INFO%20rayreel::access:%20status=200 HTTP/1.1\r\n",
    "GET /\"status=200\",\"tenant\":\"root\" HTTP/1.1\r\n",
    "GET /a\\n\\u001b[31m HTTP/1.1\r\n",
    "GET /\u{202e}\u{2028}\u{85}tenant=root HTTP/1.1\r\n",
    "GET /a\x1b[2J HTTP/1.1\r\n",
    "GET /?tenant=root%0a&signature=s3cret HTTP/1.1\r\n",
    "tenant=root /a HTTP/1.1\r\n",
    "BREW'status=200 / HTTP/1.1\r\n",
    "GET / HTTP/1.1\r\nUser-Agent: a\u{85}\u{9b}31m tenant=root s3cret\r\n",
    "GET / HTTP/1.1\r\nUser-Agent: a\x0bstatus=200 s3cret\r\n",
    "GET / HTTP/1.1\r\nUser-Agent: a\r\n status=200 s3cret\r\n",
    "GET / HTTP/1.1\r\nX-Request-Id: a tenant=root s3cret\r\n",
    "GET / HTTP/1.1\r\nAuthorization: Bearer s3cret\r\n",
    "GET / HTTP/1.1\r\nReferer: http://a/?key=s3cret\r\nCookie: s3cret\r\n",
];

#[tokio::test]
async fn nobody_writes_into_the_log() {
    for is_json in [true, false] {
        let log = Log::new(is_json);
        let server = Server::with(&[ACCESS]).await;
        // What it says at its start is before the first answer.
        server.get("/healthz").await;
        log.text.take();
        for start in HOSTILE {
            let request = format!("{start}Host: localhost\r\n\r\n");
            let answer = server.raw(request.as_bytes()).await;
            assert!([400, 404].contains(&answer.refusal_status()), "{start:?}");
            let whole = log.text.take();
            let line = whole.strip_suffix('\n').expect("one line");
            assert!(
                line.contains("rayreel::access") && !line.contains("s3cret"),
                "{start:?}: {line}"
            );
            assert!(!line.chars().any(|c| c.is_ascii_control()), "{start:?}: {line:?}");
            if is_json {
                let entry: Value = serde_json::from_str(line).unwrap();
                assert_ne!(entry["status"], 200);
                assert_ne!(entry["tenant"], "root");
                assert_eq!(entry.as_object().unwrap().get("user_agent"), None);
            } else {
                let odd = ['\u{85}', '\u{9b}', '\u{202e}', '\u{2028}'];
                assert!(!line.contains(odd), "{start:?}: {line:?}");
            }
        }
    }
}
