//! Keys: who may call, as which tenant, and what for.

use std::sync::Arc;
use std::time::Duration;

use rayreel_server::keyring::Credentials;
use rayreel_server::{App, Components};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::client::{Answer, LOCAL_TOKEN, Server, TASKS, TOKEN, video};
use crate::world::World;

const KEYS: &str = "/v1/admin/keys";

pub(super) async fn call(
    server: &Server,
    method: Method,
    path: &str,
    key: &str,
    body: &Value,
) -> Answer {
    let request = server.request(method, path).bearer_auth(key);
    Answer::of(if body.is_null() { request } else { request.json(body) }).await
}

/// Makes a key with the token of this machine; its text and its id.
pub(super) async fn make(server: &Server, body: Value) -> (String, String) {
    let answer = call(server, Method::POST, KEYS, LOCAL_TOKEN, &body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let made: Value = answer.json();
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (text("key"), text("id"))
}

async fn submit(server: &Server, key: &str) -> Value {
    let answer = call(server, Method::POST, TASKS, key, &json!({"prompt": "p"})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn the_first_key_locks_the_door_and_revoking_it_does_not_open_it() {
    let server = Server::start().await;
    // Without keys: whatever is sent as one is ignored.
    assert_eq!(call(&server, Method::GET, TASKS, "nonsense", &Value::Null).await.status, 200);
    let answer = server.post(KEYS, &json!({"name": "first"})).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
    let made: Value = answer.json();
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());

    server.get(TASKS).await.refused(401, "unauthorized", None);
    for wrong in ["", "nonsense", &key[..key.len() - 1], &key.to_uppercase(), TOKEN] {
        let answer = call(&server, Method::GET, TASKS, wrong, &Value::Null).await;
        assert!([401, 403].contains(&answer.status.as_u16()), "{wrong}: {}", answer.status);
    }
    assert_eq!(call(&server, Method::GET, TASKS, key, &Value::Null).await.status, 200);
    let bare = server.request(Method::GET, TASKS).header("authorization", key);
    Answer::of(bare).await.refused(401, "unauthorized", None);
    // Probes tell nothing of anybody.
    for open in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(server.get(open).await.status, 200, "{open}");
    }
    server.get("/metrics").await.refused(401, "unauthorized", None);

    let path = format!("{KEYS}/{id}");
    let revoked = call(&server, Method::DELETE, &path, LOCAL_TOKEN, &Value::Null).await;
    assert!(revoked.json::<Value>()["revoked_at"].is_u64());
    let answer = call(&server, Method::GET, TASKS, key, &Value::Null).await;
    answer.refused(401, "unauthorized", None);
    server.get(TASKS).await.refused(401, "unauthorized", None);
    call(&server, Method::DELETE, "/v1/admin/keys/nobody", LOCAL_TOKEN, &Value::Null)
        .await
        .refused(404, "key_not_found", None);
}

/// A server on the world's data, with the operator's own key or without.
async fn started(world: &World, admin_key: Option<&str>) -> Server {
    let components = world.app.components.clone();
    let admin_key = admin_key.map(str::to_owned);
    let credentials = Credentials { admin_key, ..components.credentials.clone() };
    let components = Components { credentials, ..components };
    let app = App::new(world.app.settings.clone(), components);
    app.keyring.load(&app.components).await.unwrap();
    Server::serve(world.clone(), Arc::new(app)).await
}

#[tokio::test]
async fn the_operators_own_key_closes_the_door_for_good() {
    const KEY: &str = "0123456789abcdef0123456789abcdef";
    let world = World::new(&[]);
    let open = started(&world, None).await;
    assert_eq!(open.get(KEYS).await.json::<Value>()["locked"], false);
    assert_eq!(started(&world, None).await.get(TASKS).await.status, 200, "and leaves no trace");

    let closed = started(&world, Some(KEY)).await;
    closed.get(TASKS).await.refused(401, "unauthorized", None);
    let listed = call(&closed, Method::GET, KEYS, KEY, &Value::Null).await;
    assert_eq!(listed.json::<Value>(), json!({"data": [], "locked": true}));

    let without = started(&world, None).await;
    without.get(TASKS).await.refused(401, "unauthorized", None);
    let answer = call(&without, Method::GET, TASKS, KEY, &Value::Null).await;
    answer.refused(401, "unauthorized", None);
    // That there was one is no key: it is not listed, can't be used, and serves nobody else.
    let listed = call(&without, Method::GET, KEYS, LOCAL_TOKEN, &Value::Null).await;
    assert_eq!(listed.json::<Value>(), json!({"data": [], "locked": true}));
    let path = format!("{KEYS}/admin-key");
    let answer = call(&without, Method::DELETE, &path, LOCAL_TOKEN, &Value::Null).await;
    answer.refused(404, "key_not_found", None);
    let others = "192.0.2.1:80".parse().unwrap();
    assert!(without.app.components.may_listen(others).await.is_err());
    let (key, _) = make(&without, json!({})).await;
    assert_eq!(call(&without, Method::GET, TASKS, &key, &Value::Null).await.status, 200);
    assert!(without.app.components.may_listen(others).await.is_ok());
}

#[tokio::test]
async fn a_key_is_good_for_its_scopes_and_for_nothing_else() {
    let server = Server::start().await;
    let wait = json!({"worker": "w", "pool": "local", "version": "1"});
    let calls = [
        ("submit", Method::POST, TASKS, json!({"prompt": "p"})),
        ("read", Method::GET, TASKS, Value::Null),
        ("admin", Method::GET, KEYS, Value::Null),
        ("admin", Method::GET, "/metrics", Value::Null),
        ("worker", Method::POST, "/v1/worker/register", wait),
    ];
    for scope in ["submit", "read", "admin", "worker"] {
        let (key, _) = make(&server, json!({"scopes": [scope]})).await;
        for (needed, method, path, body) in &calls {
            let answer = call(&server, method.clone(), path, &key, body).await;
            if *needed == scope {
                assert!(answer.status.is_success(), "{scope} {path}: {}", answer.text());
            } else {
                let refusal = answer.refused(403, "scope_missing", None);
                assert!(refusal.message.contains(needed), "{}", refusal.message);
            }
        }
    }
    let (key, _) = make(&server, json!({})).await;
    submit(&server, &key).await;
    assert_eq!(call(&server, Method::GET, TASKS, &key, &Value::Null).await.status, 200);
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let server = Server::start().await;
    let (anna, _) = make(&server, json!({"tenant": "anna"})).await;
    let (bert, _) = make(&server, json!({"tenant": "bert"})).await;
    let task = submit(&server, &anna).await;
    let id = task["id"].as_str().unwrap();
    for (method, rest) in [
        (Method::GET, ""),
        (Method::GET, "/events"),
        (Method::GET, "/content"),
        (Method::POST, "/cancel"),
        (Method::DELETE, ""),
    ] {
        let path = format!("{TASKS}/{id}{rest}");
        let answer = call(&server, method, &path, &bert, &Value::Null).await;
        answer.refused(404, "task_not_found", None);
    }
    let list = call(&server, Method::GET, TASKS, &bert, &Value::Null).await.json::<Value>();
    assert_eq!(list["data"], json!([]));
    let list = call(&server, Method::GET, TASKS, &anna, &Value::Null).await.json::<Value>();
    assert_eq!(list["data"][0]["id"], id);
    let shown = call(&server, Method::GET, &format!("{TASKS}/{id}"), &anna, &Value::Null).await;
    assert_eq!(shown.json::<Value>()["status"], "QUEUED");
}

#[tokio::test]
async fn the_same_idempotency_key_of_two_tenants_is_two() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for tenant in ["anna", "bert", "anna"] {
        let (key, _) = make(&server, json!({"tenant": tenant})).await;
        let request = server.request(Method::POST, TASKS).bearer_auth(key);
        let request = request.header("idempotency-key", "once").json(&json!({"prompt": "p"}));
        ids.push(Answer::of(request).await.json::<Value>()["id"].clone());
    }
    assert_eq!(ids[0], ids[2]);
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_key_expires() {
    let server = Server::start().await;
    let (key, _) = make(&server, json!({"expires_in_days": 1})).await;
    server.world.clock.advance(Duration::from_secs(86_399));
    assert_eq!(call(&server, Method::GET, TASKS, &key, &Value::Null).await.status, 200);
    server.world.clock.advance(Duration::from_secs(1));
    let answer = call(&server, Method::GET, TASKS, &key, &Value::Null).await;
    answer.refused(401, "unauthorized", None);
}

#[tokio::test]
async fn with_a_key_every_host_and_page_may_call() {
    let server = Server::start().await;
    let (key, _) = make(&server, json!({})).await;
    for (header, value) in [("host", "video.example"), ("origin", "https://app.example")] {
        let request = server.request(Method::POST, TASKS).bearer_auth(&key).header(header, value);
        let answer = Answer::of(request.json(&json!({"prompt": "p"}))).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{header}: {}", answer.text());
    }
}

#[tokio::test]
async fn only_a_hash_of_a_key_is_kept() {
    let server = Server::start().await;
    let (key, id) = make(&server, json!({"name": "the web shop", "tenant": "acme"})).await;
    let listed = call(&server, Method::GET, KEYS, LOCAL_TOKEN, &Value::Null).await;
    let secret = key.rsplit('_').next().unwrap();
    assert!(!listed.text().contains(secret));
    let listed: Value = listed.json();
    let entry = &listed["data"][0];
    assert_eq!((&entry["id"], &entry["tenant"]), (&json!(id), &json!("acme")));
    assert_eq!(entry["scopes"], json!(["submit", "read"]));
    let stored = server.app.components.store.keys().await.unwrap();
    assert!(!format!("{stored:?}").contains(secret));
}

#[tokio::test]
async fn what_is_no_key_can_not_be_revoked() {
    let server = Server::start().await;
    let (_, id) = make(&server, json!({})).await;
    for other in ["nobody", "%ff", "%00", "..%2f", &id[1..], &id.to_uppercase()] {
        let path = format!("{KEYS}/{other}");
        let answer = call(&server, Method::DELETE, &path, LOCAL_TOKEN, &Value::Null).await;
        answer.refused(404, "key_not_found", None);
    }
    let path = format!("{KEYS}/{id}?force=true");
    let answer = call(&server, Method::DELETE, &path, LOCAL_TOKEN, &Value::Null).await;
    answer.refused(400, "unknown_field", Some("force"));
    let listed = call(&server, Method::GET, KEYS, LOCAL_TOKEN, &Value::Null).await;
    assert_eq!(listed.json::<Value>()["data"][0]["revoked_at"], Value::Null);
}

#[tokio::test]
async fn what_makes_no_key_is_refused() {
    let server = Server::start().await;
    for (body, param) in [
        (json!({"name": "x".repeat(101)}), "name"),
        (json!({"name": "a\u{7}b"}), "name"),
        (json!({"name": "\rb"}), "name"),
        (json!({"tenant": "no such / name"}), "tenant"),
        (json!({"tenant": ""}), "tenant"),
        (json!({"scopes": []}), "scopes"),
        (json!({"scopes": ["root"]}), "scopes"),
        (json!({"pool": "local"}), "pool"),
        (json!({"scopes": ["worker"], "pool": "nowhere"}), "pool"),
        (json!({"scopes": ["worker"], "pool": ""}), "pool"),
        (json!({"expires_in_days": 0}), "expires_in_days"),
        (json!({"expires_in_days": 36_501}), "expires_in_days"),
    ] {
        let answer = server.post(KEYS, &body).await;
        let error = &answer.json::<Value>()["error"];
        assert_eq!((answer.status.as_u16(), &error["code"]), (400, &json!("invalid_value")));
        assert!(error["param"].as_str().unwrap().starts_with(param), "{body}: {error}");
    }
    server.post(KEYS, &json!({"nane": "x"})).await.refused(400, "unknown_field", Some("nane"));
    assert_eq!(server.get(TASKS).await.status, 200, "and nothing is locked");
}

/// A server with two pools, a task in the one that is not `spare`, and a key for `spare`'s workers.
async fn two_pools() -> (Server, String) {
    let server = Server::with(&[("RAYREEL_POOLS__SPARE__MAX", "0")]).await;
    let (key, _) = make(&server, json!({"scopes": ["worker"], "pool": "spare"})).await;
    (server, key)
}

#[tokio::test]
async fn a_key_can_be_for_the_workers_of_one_pool() {
    let (server, key) = two_pools().await;
    let work = async |name: &str, body: &Value| {
        call(&server, Method::POST, &format!("/v1/worker/{name}"), &key, body).await
    };
    let message = |name: &str, pool| json!({"worker": name, "pool": pool, "version": "1"});
    let registered = work("register", &message("own", "spare")).await;
    let by = json!({"worker": "own", "incarnation": registered.json::<Value>()["incarnation"]});
    let with = |more: Value| {
        let mut body = by.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let claim = json!({"seq": 1, "wait_ms": 0});
    assert_eq!(work("claim", &with(claim)).await.status, 200);
    let control = json!({"holding": [], "wait_ms": 0});
    assert_eq!(work("control", &with(control)).await.status, 200);
    assert_eq!(work("deregister", &by).await.status, 200);
    assert_eq!(work("deregister", &by).await.status, 200, "a repetition");
}

#[tokio::test]
async fn such_a_key_does_nothing_for_other_pools() {
    let (server, key) = two_pools().await;
    let (submitter, _) = make(&server, json!({"scopes": ["submit", "read"]})).await;
    let id = submit(&server, &submitter).await["id"].as_str().unwrap().to_owned();
    let worker = server.worker("other").await;
    let fence = worker.take(1).await.fence;
    let film = video(b"film");
    let target = worker.targets(fence, std::slice::from_ref(&film)).await.remove(0);
    let input = format!("/v1/worker/inputs/{}/{}/{}", fence.task, fence.attempt, fence.nonce);
    let failure = json!({"code": "engine_failed", "message": "no"});
    let by = |more: Value| {
        let mut body = json!({"worker": "other", "incarnation": worker.incarnation});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let named = |name: &str, pool| json!({"worker": name, "pool": pool, "version": "1"});
    let calls = [
        ("register", named("own", "local")),
        // The name of a worker that is there: it would be ended.
        ("register", named("other", "spare")),
        ("claim", by(json!({"seq": 2, "wait_ms": 0}))),
        ("control", by(json!({"holding": [fence], "wait_ms": 0}))),
        ("beat", by(json!({"fence": fence}))),
        ("fail", by(json!({"fence": fence, "failure": failure}))),
        ("release", by(json!({"fence": fence}))),
        ("uploads", by(json!({"fence": fence, "manifest": [film]}))),
        ("commit", by(json!({"fence": fence, "manifest": [film], "test_pattern": true}))),
        ("deregister", by(json!({}))),
    ];
    for (name, body) in calls {
        let path = format!("/v1/worker/{name}");
        let answer = call(&server, Method::POST, &path, &key, &body).await;
        let refusal = answer.refused(403, "scope_missing", Some("pool"));
        assert!(refusal.message.contains("`spare`, not `local`"), "{name}: {}", refusal.message);
    }
    let put = server.request(Method::PUT, &target).bearer_auth(&key).body("film");
    Answer::of(put).await.refused(403, "scope_missing", Some("pool"));
    let get = call(&server, Method::GET, &input, &key, &Value::Null).await;
    get.refused(403, "scope_missing", Some("pool"));
    // Its own worker has noticed nothing.
    worker.finish(fence, &[(film, b"film")]).await;
    let path = format!("{TASKS}/{id}");
    let task = call(&server, Method::GET, &path, &submitter, &Value::Null).await;
    assert_eq!(task.json::<Value>()["status"], "SUCCEEDED");
}
