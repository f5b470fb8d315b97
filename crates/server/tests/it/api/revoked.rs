//! What is open with a key ends with it, at once: what waits is refused, what streams is cut.

use std::time::Duration;

use rayreel_domain::task::State;
use rayreel_domain::wire::api::TaskBody;
use rayreel_domain::wire::worker::Claimed;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::bodies::{Sender, head};
use super::client::{Answer, LOCAL_TOKEN, Server, TASKS, Worker, video};
use super::keys::{call, make};

const LIMIT: Duration = Duration::from_secs(20);
/// More than sockets hold.
const LONG: usize = 32 << 20;
/// A pool in which there is never anything to do, beside the one of the tasks.
const IDLE_POOL: (&str, &str) = ("RAYREEL_POOLS__IDLE__MAX", "1");

/// A request as this caller: with a key, or through the open door.
fn ask(server: &Server, method: Method, path: &str, key: Option<&str>) -> RequestBuilder {
    let request = server.request(method, path);
    if let Some(key) = key { request.bearer_auth(key) } else { request }
}

/// A task with a result that is not read at once.
async fn finished(server: &Server, key: Option<&str>) -> String {
    let worker = server.worker("w").await;
    let body = json!({"prompt": "p"});
    let answer = Answer::of(ask(server, Method::POST, TASKS, key).json(&body)).await;
    let fence = worker.take(1).await.fence;
    let film = vec![7; LONG];
    worker.finish(fence, &[(video(&film), &film)]).await;
    answer.json::<TaskBody>().id
}

/// Everything that a caller of the public API can keep open.
struct Open {
    events: Response,
    content: Response,
    wait: JoinHandle<Answer>,
    image: JoinHandle<Answer>,
}

impl Open {
    async fn by(server: &Server, key: Option<&str>, finished: &str) -> Self {
        let body = json!({"prompt": "p"});
        let post = |path: &str| {
            let request = ask(server, Method::POST, path, key).header("prefer", "wait=600");
            tokio::spawn(Answer::of(request.json(&body)))
        };
        let (wait, image) = (post(TASKS), post("/v1/images/generations"));
        let listed = async |path: &str| {
            Answer::of(ask(server, Method::GET, path, key)).await.json::<Value>()["data"].clone()
        };
        let queued = async {
            loop {
                let tasks = listed(&format!("{TASKS}?state=queued")).await;
                if tasks.as_array().unwrap().len() == 2 {
                    return tasks[0]["id"].as_str().unwrap().to_owned();
                }
            }
        };
        let queued = timeout(LIMIT, queued).await.expect("both wait");
        let stream = async |path: String| {
            let mut response = ask(server, Method::GET, &path, key).send().await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            response.chunk().await.unwrap().expect("a beginning");
            response
        };
        let events = stream(format!("{TASKS}/{queued}/events")).await;
        let content = stream(format!("{TASKS}/{finished}/content")).await;
        Self { events, content, wait, image }
    }

    /// All of it ends.
    async fn ends(self) {
        let Self { mut events, mut content, wait, image } = self;
        for call in [wait, image] {
            let answer = timeout(LIMIT, call).await.expect("it hangs").unwrap();
            answer.refused(401, "unauthorized", None);
        }
        let rest = timeout(LIMIT, events.chunk()).await.expect("it streams on");
        assert_eq!(rest.unwrap(), None);
        let rest = async {
            while content.chunk().await?.is_some() {}
            Ok::<_, reqwest::Error>(())
        };
        let rest = timeout(LIMIT, rest).await.expect("it comes to an end");
        assert!(rest.is_err(), "the file is cut, and can be seen to be");
    }
}

/// The calls of a worker that hang.
fn hanging(worker: &Worker<'_>, key: &str) -> Vec<JoinHandle<Answer>> {
    let calls = ["claim", "control"].map(|call| {
        let mut body = json!({"worker": worker.name, "incarnation": worker.incarnation});
        body["wait_ms"] = json!(30_000);
        body["holding"] = json!([]);
        if call == "claim" {
            body["seq"] = json!(1);
        }
        let request = worker.server.request(Method::POST, &format!("/v1/worker/{call}"));
        tokio::spawn(Answer::of(request.bearer_auth(key).json(&body)))
    });
    calls.into()
}

async fn are_refused(calls: Vec<JoinHandle<Answer>>) {
    for call in calls {
        let answer = timeout(LIMIT, call).await.expect("it hangs").unwrap();
        answer.refused(401, "unauthorized", None);
    }
}

async fn revoke(server: &Server, id: &str) {
    let path = format!("/v1/admin/keys/{id}");
    let revoked = call(server, Method::DELETE, &path, LOCAL_TOKEN, &Value::Null).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());
}

#[tokio::test]
async fn a_revoked_key_ends_what_is_open_with_it_and_nothing_else() {
    let server = Server::start().await;
    let (key, id) = make(&server, json!({})).await;
    let (other, _) = make(&server, json!({})).await;
    let film = finished(&server, Some(&key)).await;
    let open = Open::by(&server, Some(&key), &film).await;
    let listed = call(&server, Method::GET, TASKS, &other, &Value::Null).await.json::<Value>();
    let task = listed["data"][1]["id"].as_str().unwrap().to_owned();
    let path = format!("{TASKS}/{task}");
    let events = ask(&server, Method::GET, &format!("{path}/events"), Some(&other));
    let mut events = events.send().await.unwrap();
    events.chunk().await.unwrap().expect("that it is queued");
    revoke(&server, &id).await;
    open.ends().await;

    call(&server, Method::POST, &format!("{path}/cancel"), &other, &json!({})).await;
    let told = timeout(LIMIT, events.chunk()).await.expect("it is silent").unwrap();
    let told = String::from_utf8(told.expect("an event").to_vec()).unwrap();
    assert!(told.contains("CANCELLED"), "{told}");
}

#[tokio::test]
async fn an_image_that_nobody_may_wait_for_any_more_is_cancelled() {
    let server = Server::start().await;
    let (key, id) = make(&server, json!({})).await;
    let image = ask(&server, Method::POST, "/v1/images/generations", Some(&key));
    let image = tokio::spawn(Answer::of(image.json(&json!({"prompt": "p"}))));
    let first = async |state: State| {
        let until = async {
            loop {
                let list = call(&server, Method::GET, TASKS, LOCAL_TOKEN, &Value::Null).await;
                if list.json::<Value>()["data"][0]["status"] == json!(state) {
                    return;
                }
            }
        };
        timeout(LIMIT, until).await.unwrap_or_else(|_| panic!("it is never {state}"));
    };
    first(State::Queued).await;
    revoke(&server, &id).await;
    are_refused(vec![image]).await;
    first(State::Cancelled).await;
}

#[tokio::test]
async fn a_worker_with_a_revoked_key_gets_nothing_more() {
    let server = Server::start().await;
    let (key, id) = make(&server, json!({"scopes": ["worker"]})).await;
    let worker = server.worker("w").await;
    let calls = hanging(&worker, &key);
    server.until_metric("rayreel_hanging_calls", 2.0).await;
    revoke(&server, &id).await;
    are_refused(calls).await;
    let (submitter, _) = make(&server, json!({})).await;
    let task = call(&server, Method::POST, TASKS, &submitter, &json!({"prompt": "p"})).await;
    let task: TaskBody = task.json();
    let Claimed::Task(next) = server.worker("v").await.claim(1, 0).await else {
        panic!("the task was handed to the worker that may not work");
    };
    assert_eq!((next.fence.task.to_string(), next.fence.attempt), (task.id, 1));
}

#[tokio::test]
async fn a_key_that_is_revoked_while_its_call_still_comes_does_nothing() {
    let server = Server::start().await;
    let (key, id) = make(&server, json!({"scopes": ["admin"]})).await;
    let body = br#"{"scopes":["admin"]}"#;
    let rest = format!("Content-Type: application/json\r\nContent-Length: {}", body.len());
    let asked = head("/v1/admin/keys", &key, &rest);
    let (first, last) = body.split_at(10);
    let mut sender = Sender::announce(&server, &asked).await.expect("it is let in");
    sender.send(first).await;
    revoke(&server, &id).await;
    sender.send(last).await;
    sender.answer().await.refused(401, "unauthorized", None);
    let listed = call(&server, Method::GET, "/v1/admin/keys", LOCAL_TOKEN, &Value::Null).await;
    assert_eq!(listed.json::<Value>()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_that_expires_ends_what_is_open_with_it() {
    let server = Server::running(&[IDLE_POOL]).await;
    let scopes = json!(["submit", "read", "worker"]);
    let (key, _) = make(&server, json!({"scopes": scopes, "expires_in_days": 1})).await;
    let film = finished(&server, Some(&key)).await;
    let open = Open::by(&server, Some(&key), &film).await;
    let message = json!({"worker": "i", "pool": "idle", "version": "test"});
    let registered: Value = server.call("register", &message).await.json();
    let incarnation = registered["incarnation"].as_u64().unwrap();
    let worker = Worker { server: &server, name: "i".to_owned(), incarnation };
    let calls = hanging(&worker, &key);
    server.until_metric("rayreel_hanging_calls", 2.0).await;
    server.world.clock.advance(Duration::from_secs(86_400));
    open.ends().await;
    are_refused(calls).await;
}

#[tokio::test]
async fn the_first_key_ends_what_came_in_through_the_open_door() {
    let server = Server::start().await;
    let film = finished(&server, None).await;
    let open = Open::by(&server, None, &film).await;
    let worker = server.worker("w").await;
    let [claim, control] = hanging(&worker, super::client::TOKEN).try_into().unwrap();
    // Through the door itself: whoever makes the first key is answered.
    let made = server.post("/v1/admin/keys", &json!({"scopes": ["admin"]})).await;
    assert_eq!(made.status, 201, "{}", made.text());
    open.ends().await;
    // The workers of this machine have a token, and go on.
    assert!(!control.is_finished());
    control.abort();
    let Claimed::Task(_) = claim.await.unwrap().json() else { panic!("no task") };
    // Nor does a key that ends itself miss the answer.
    let made: Value = made.json();
    let path = format!("/v1/admin/keys/{}", made["id"].as_str().unwrap());
    let key = made["key"].as_str().unwrap();
    let revoked = call(&server, Method::DELETE, &path, key, &Value::Null).await;
    assert!(revoked.json::<Value>()["revoked_at"].is_u64());
}
