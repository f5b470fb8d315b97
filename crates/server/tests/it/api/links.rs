//! Links to files that need no key.

use std::time::Duration;

use rayreel_domain::wire::delivery::LinkAnswer;
use rayreel_domain::wire::engine::Role;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS, output, video};

const VIDEO: &[u8] = b"0123456789";
const STILL: &[u8] = b"a still";

/// A server with keys, and a finished task.
struct House {
    server: Server,
    /// Of the task's tenant, who may read and submit.
    key: String,
    task: String,
}

impl House {
    async fn new() -> Self {
        let server = Server::start().await;
        let task = server.submit("a").await.id;
        {
            let worker = server.worker("w").await;
            let fence = worker.take(1).await.fence;
            let files = [(video(VIDEO), VIDEO), (output(1, Role::Thumbnail, STILL), STILL)];
            worker.finish(fence, &files).await;
        }
        let key = key(&server, "default", json!(["submit", "read"])).await;
        Self { server, key, task }
    }

    async fn call(&self, method: Method, path: &str, key: &str, body: &Value) -> Answer {
        let request = self.server.request(method, path).bearer_auth(key);
        Answer::of(if body.is_null() { request } else { request.json(body) }).await
    }

    async fn ask(&self, body: &Value) -> Answer {
        let path = format!("{TASKS}/{}/link", self.task);
        self.call(Method::POST, &path, &self.key, body).await
    }

    /// A link's path, with its query.
    async fn link(&self, body: &Value) -> String {
        let answer = self.ask(body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.path(&answer.json())
    }

    fn path(&self, link: &LinkAnswer) -> String {
        let base = format!("http://{}", self.server.address);
        link.url.strip_prefix(&base).expect("it leads here").to_owned()
    }
}

async fn key(server: &Server, tenant: &str, scopes: Value) -> String {
    let body = json!({"name": "k", "tenant": tenant, "scopes": scopes});
    let request = server.request(Method::POST, "/v1/admin/keys").bearer_auth("client-secret");
    let made: Value = Answer::of(request.json(&body)).await.json();
    made["key"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_link_needs_no_key_and_serves_parts() {
    let house = House::new().await;
    let server = &house.server;
    let content = format!("{TASKS}/{}/content", house.task);
    server.get(&content).await.refused(401, "unauthorized", None);
    let path = house.link(&Value::Null).await;
    let whole = server.get(&path).await;
    assert_eq!((whole.status.as_u16(), &*whole.body), (200, VIDEO));
    assert_eq!(whole.header("cache-control"), "private, max-age=3600");
    let part = Answer::of(server.request(Method::GET, &path).header("range", "bytes=2-4")).await;
    assert_eq!((part.status.as_u16(), &*part.body), (206, &b"234"[..]));
    let head = Answer::of(server.request(Method::HEAD, &path)).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "10"));
    // It speaks for itself, whoever sends it along with whatever.
    let with = house.call(Method::GET, &path, "rr_nonsense", &Value::Null).await;
    assert_eq!(with.status, 200);
}

#[tokio::test]
async fn a_link_is_for_one_file_of_one_task_until_one_moment() {
    let house = House::new().await;
    let server = &house.server;
    let path = house.link(&json!({"expires_in": 60})).await;
    let still = house.link(&json!({"variant": "thumbnail"})).await;
    assert_eq!(server.get(&still).await.body, STILL);
    let other = house.call(Method::POST, TASKS, &house.key, &json!({"prompt": "b"})).await;
    let other = other.json::<Value>()["id"].as_str().unwrap().to_owned();
    let (bare, query) = path.split_once('?').unwrap();
    let expires = query.split('&').find_map(|pair| pair.strip_prefix("expires=")).unwrap();
    let later = (expires.parse::<u64>().unwrap() + 1).to_string();
    let signature = query.split('&').find_map(|pair| pair.strip_prefix("signature=")).unwrap();
    let end = signature.len() - 2;
    for changed in [
        path.replace(expires, &later),
        path.replace(&house.task, &other),
        path.replace(&house.task, "task_018bcfe5680070707070707070707070"),
        format!("{path}&variant=thumbnail"),
        still.replace("variant=thumbnail&", ""),
        format!("{bare}?signature={signature}"),
        format!("{bare}?expires={expires}&signature="),
        path.replace(signature, &signature[..end]),
        path.replace(signature, &signature.to_lowercase()),
    ] {
        server.get(&changed).await.refused(403, "link_invalid", None);
    }
    let twice = format!("{path}&signature={signature}");
    server.get(&twice).await.refused(400, "invalid_value", Some("signature"));
    let unsigned = format!("{bare}?expires={expires}");
    server.get(&unsigned).await.refused(401, "unauthorized", None);
    // The signature opens the file, and nothing beside it.
    for beside in ["", "/events", "/cancel", "/link"] {
        let path = format!("{TASKS}/{}{beside}?{query}", house.task);
        assert_eq!(server.get(&path).await.refusal_status(), 401, "{beside}");
    }
    let post = Answer::of(server.request(Method::POST, &path)).await;
    post.refused(405, "method_not_allowed", None);

    server.world.clock.advance(Duration::from_secs(59));
    assert_eq!(server.get(&path).await.header("cache-control"), "private, max-age=1");
    server.world.clock.advance(Duration::from_secs(1));
    let refusal = server.get(&path).await.refused(403, "link_invalid", None);
    assert!(refusal.message.contains("expired"), "{}", refusal.message);
}

#[tokio::test]
async fn after_its_task_is_deleted_a_link_leads_nowhere() {
    let house = House::new().await;
    let path = house.link(&Value::Null).await;
    let task = format!("{TASKS}/{}", house.task);
    let deleted = house.call(Method::DELETE, &task, &house.key, &Value::Null).await;
    assert_eq!(deleted.status, 200);
    house.server.get(&path).await.refused(404, "task_not_found", None);
}

#[tokio::test]
async fn a_link_lasts_from_a_second_to_a_week() {
    let house = House::new().await;
    for (seconds, lasts) in [(json!({}), 3_600), (json!({"expires_in": 604_800}), 604_800)] {
        let link: LinkAnswer = house.ask(&seconds).await.json();
        assert_eq!(link.expires_at, 1_800_000_000 + lasts);
    }
    for wrong in [json!({"expires_in": 0}), json!({"expires_in": 604_801})] {
        house.ask(&wrong).await.refused(400, "invalid_value", Some("expires_in"));
    }
    let answer = house.ask(&json!({"variant": "spritesheet"})).await;
    answer.refused(400, "invalid_value", Some("variant"));
    house.ask(&json!({"expires": 1})).await.refused(400, "unknown_field", Some("expires"));
}

#[tokio::test]
async fn only_who_may_read_a_result_can_link_to_it() {
    let house = House::new().await;
    let server = &house.server;
    let path = format!("{TASKS}/{}/link", house.task);
    let reader = key(server, "default", json!(["read"])).await;
    let submitter = key(server, "default", json!(["submit"])).await;
    let stranger = key(server, "ben", json!(["read", "submit"])).await;
    let ask = async |key: &str| house.call(Method::POST, &path, key, &json!({})).await;
    assert_eq!(ask(&reader).await.status, 200);
    ask(&submitter).await.refused(403, "scope_missing", None);
    ask(&stranger).await.refused(404, "task_not_found", None);

    let queued = house.call(Method::POST, TASKS, &house.key, &json!({"prompt": "b"})).await;
    let queued = queued.json::<Value>()["id"].as_str().unwrap().to_owned();
    let path = format!("{TASKS}/{queued}/link");
    let early = house.call(Method::POST, &path, &reader, &json!({})).await;
    early.refused(409, "not_finished", None);
}

#[tokio::test]
async fn while_there_are_no_keys_a_link_is_proved_all_the_same() {
    let server = Server::start().await;
    let task = server.submit("a").await.id;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    worker.finish(fence, &[(video(VIDEO), VIDEO)]).await;
    let path = format!("{TASKS}/{task}");
    let link: LinkAnswer = server.post(&format!("{path}/link"), &json!({})).await.json();
    let good = link.url.strip_prefix(&format!("http://{}", server.address)).unwrap();
    assert_eq!(server.get(good).await.status, 200);
    let forged = format!("{path}/content?expires=1900000000&signature=AAAA");
    server.get(&forged).await.refused(403, "link_invalid", None);
    let still = server.post(&format!("{path}/link"), &json!({"variant": "thumbnail"})).await;
    still.refused(400, "invalid_value", Some("variant"));
}
