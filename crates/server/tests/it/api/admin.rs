//! What an operator sees of tenants, workers and pools, and does to them.

use std::time::Duration;

use rayreel_domain::task::State;
use rayreel_domain::wire::api::TaskBody;
use rayreel_domain::wire::worker::Claimed;
use rayreel_server::clock::Clock;
use rayreel_server::store::Launch;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, LOCAL_TOKEN, Server, TASKS, video};
use super::keys::{call, make};

async fn see(server: &Server, path: &str) -> Value {
    let answer = call(server, Method::GET, path, LOCAL_TOKEN, &Value::Null).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

#[tokio::test]
async fn only_an_admin_sees_and_does_this() {
    let server = Server::start().await;
    let calls = [
        (Method::GET, "/v1/admin/tenants"),
        (Method::GET, "/v1/admin/tenants/default"),
        (Method::GET, "/v1/admin/workers"),
        (Method::POST, "/v1/admin/workers/w/drain"),
        (Method::GET, "/v1/admin/pools"),
        (Method::POST, "/v1/admin/pools/local/drain"),
        (Method::POST, "/v1/admin/pools/local/resume"),
    ];
    for scope in ["submit", "read", "worker"] {
        let (key, _) = make(&server, json!({"scopes": [scope]})).await;
        for (method, path) in &calls {
            let answer = call(&server, method.clone(), path, &key, &Value::Null).await;
            let refusal = answer.refused(403, "scope_missing", None);
            assert!(refusal.message.contains("`admin`"), "{path}: {}", refusal.message);
        }
    }
    let (key, _) = make(&server, json!({"scopes": ["admin"]})).await;
    for (method, path) in &calls {
        let refused = Answer::of(server.request(method.clone(), path)).await;
        refused.refused(401, "unauthorized", None);
        let query = format!("{path}?x=1");
        let answer = call(&server, method.clone(), &query, &key, &Value::Null).await;
        answer.refused(400, "unknown_field", Some("x"));
    }
    assert_eq!(call(&server, Method::GET, TASKS, &key, &Value::Null).await.status, 403);
}

#[tokio::test]
async fn tenants_are_shown_with_their_terms_and_what_they_use() {
    let server = Server::with(&[
        ("RAYREEL_TENANTS__ACME__WEIGHT", "2.5"),
        ("RAYREEL_TENANTS__ACME__TASKS_PER_MINUTE", "9"),
        ("RAYREEL_TENANTS__ACME__GPU_SECONDS_PER_DAY", "5000"),
        ("RAYREEL_TENANTS__ACME__KEEP_DAYS", "0.5"),
        ("RAYREEL_TENANTS__DEFAULT__MAX_QUEUED", "70"),
    ])
    .await;
    let (key, _) = make(&server, json!({"tenant": "acme"})).await;
    let (_, revoked) = make(&server, json!({"tenant": "acme"})).await;
    let path = format!("/v1/admin/keys/{revoked}");
    call(&server, Method::DELETE, &path, LOCAL_TOKEN, &Value::Null).await;
    make(&server, json!({"tenant": "bert", "expires_in_days": 1})).await;
    for _ in 0..3 {
        let answer = call(&server, Method::POST, TASKS, &key, &json!({"prompt": "p"})).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    let queued =
        see(&server, "/v1/admin/tenants/acme").await["usage"]["queued_gpu_seconds"].clone();
    let each = queued.as_f64().unwrap() / 3.0;
    assert!(each > 0.0);
    let worker = server.worker("w").await;
    worker.take(1).await;

    let acme = see(&server, "/v1/admin/tenants/acme").await;
    let expected = json!({
        "name": "acme",
        "configured": true,
        "limits": {
            "weight": 2.5, "tasks_per_minute": 9, "max_queued": 70, "max_running": null,
            "gpu_seconds_per_day": 5000, "keep_days": 0.5,
            "max_file_bytes": server.app.settings.inputs.max_tenant_bytes,
        },
        "usage": {
            "queued": 2, "running": 1, "queued_gpu_seconds": each * 2.0, "gpu_seconds_today": each,
            "tasks_last_minute": 3, "file_bytes": 0, "keys": 1,
        },
    });
    assert_eq!(acme, expected);
    let list = see(&server, "/v1/admin/tenants").await;
    let names: Vec<&Value> =
        list["data"].as_array().unwrap().iter().map(|tenant| &tenant["name"]).collect();
    assert_eq!(names, ["acme", "bert", "default"]);
    assert_eq!(list["data"][0], expected);
    let bert = &list["data"][1];
    assert_eq!((&bert["configured"], &bert["usage"]["keys"]), (&json!(false), &json!(1)));
    assert_eq!(bert["limits"]["max_queued"], 70, "what all have that are not named");

    // A minute and a day later.
    server.world.clock.advance(Duration::from_secs(61));
    assert_eq!(see(&server, "/v1/admin/tenants/acme").await["usage"]["tasks_last_minute"], 0);
    server.world.clock.advance(Duration::from_secs(86_400));
    let bert = see(&server, "/v1/admin/tenants/bert").await;
    assert_eq!(bert["usage"]["keys"], 0, "it has expired");
    assert_eq!(see(&server, "/v1/admin/tenants/acme").await["usage"]["gpu_seconds_today"], 0.0);
}

#[tokio::test]
async fn what_is_no_tenant_is_not_shown() {
    let server = Server::start().await;
    for name in ["nobody", "%ff", "%00", "..%2fkeys", "DEFAULT"] {
        server.get(&format!("/v1/admin/tenants/{name}")).await.refused(
            404,
            "tenant_not_found",
            None,
        );
    }
}

/// The worker of this name, as it is listed.
async fn worker(server: &Server, name: &str) -> Value {
    let list = see(server, "/v1/admin/workers").await;
    let found = list["data"].as_array().unwrap().iter().find(|worker| worker["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}")).clone()
}

async fn local_pool(server: &Server) -> Value {
    let list = see(server, "/v1/admin/pools").await;
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    list["data"][0].clone()
}

fn launch(server: &Server, id: &str) -> Launch {
    Launch {
        id: id.to_owned(),
        pool: "local".parse().unwrap(),
        created_at: server.world.clock.wall(),
        pid: Some(4711),
        pid_started: None,
        place: String::new(),
        claimed: false,
        gpus: Vec::new(),
    }
}

#[tokio::test]
async fn workers_are_shown_with_what_they_are_at() {
    let server = Server::start().await;
    let now = server.world.clock.wall().0 / 1000;
    let store = &server.app.components.store;
    store.put_launch(launch(&server, "unborn")).await.unwrap();
    store.put_launch(launch(&server, "own")).await.unwrap();
    let own = server.launched_worker("own").await;
    server.worker("fresh").await;
    let launched = json!({"pid": 4711, "created_at": now});
    let expected = json!({
        "name": "unborn", "pool": "local", "state": "starting", "model": null, "task": null,
        "quarantined": [], "last_seen_at": null, "version": null, "launch": launched,
    });
    assert_eq!(worker(&server, "unborn").await, expected);
    let fresh = worker(&server, "fresh").await;
    assert_eq!((&fresh["state"], &fresh["launch"]), (&json!("starting"), &Value::Null));

    let task = server.submit("p").await;
    own.take(1).await;
    server.world.clock.advance(Duration::from_secs(7));
    let expected = json!({
        "name": "own", "pool": "local", "state": "busy", "model": "testcard",
        "task": {"id": task.id, "attempt": 1, "started_at": now},
        "quarantined": [], "last_seen_at": now, "version": "test", "launch": launched,
    });
    assert_eq!(worker(&server, "own").await, expected);

    let idle = server.worker("idle").await;
    let claim = json!({"seq": 1, "wait_ms": 0, "loaded": "testcard"});
    assert_eq!(idle.call("claim", claim).await.status, 200);
    let shown = worker(&server, "idle").await;
    assert_eq!((&shown["state"], &shown["model"]), (&json!("idle"), &json!("testcard")));
    assert_eq!(shown["last_seen_at"], now + 7);
    let counts = local_pool(&server).await["workers"].clone();
    let expected = json!({
        "live": 4, "starting": 2, "idle": 1, "busy": 1, "draining": 0, "quarantined": 0,
        "silent": 0,
    });
    assert_eq!(counts, expected);
    server.world.clock.advance(Duration::from_secs(90));
    assert_eq!(worker(&server, "idle").await["state"], "silent");
}

#[tokio::test]
async fn a_worker_shows_what_it_is_quarantined_for() {
    let server = Server::start().await;
    let sick = server.worker("sick").await;
    let failure = json!({"code": "engine_crashed", "message": "it broke", "retryable": true});
    for seq in 1..=3 {
        server.submit("p").await;
        let fence = sick.take(seq).await.fence;
        let failed = sick.call("fail", json!({"fence": fence, "failure": failure})).await;
        assert_eq!(failed.status, 200, "{}", failed.text());
    }
    sick.claim(4, 0).await;
    let shown = worker(&server, "sick").await;
    assert_eq!(shown["state"], "quarantined");
    assert_eq!(shown["quarantined"], json!([{"model": "testcard", "reason": "it broke"}]));
}

#[tokio::test]
async fn a_drained_worker_finishes_its_task_and_is_told_to_go() {
    let server = Server::start().await;
    let busy = server.worker("busy").await;
    let task = server.submit("p").await;
    let next = server.submit("q").await;
    let fence = busy.take(1).await.fence;
    let path = "/v1/admin/workers/busy/drain";
    for _ in 0..2 {
        let drained = server.post(path, &Value::Null).await.json::<Value>();
        assert_eq!(drained["state"], "draining");
        assert_eq!(drained["task"]["id"], task.id);
    }
    assert_eq!(worker(&server, "busy").await["state"], "draining");
    busy.finish(fence, &[(video(b"film"), b"film")]).await;
    assert!(matches!(busy.claim(2, 20_000).await, Claimed::Drain));
    let task = server.task(&task.id).await;
    assert_eq!((task.status, task.attempts.len()), (State::Succeeded, 1));
    assert_eq!(server.task(&next.id).await.status, State::Queued);
    server.post(path, &Value::Null).await.refused(404, "worker_not_found", None);
}

#[tokio::test]
async fn an_idle_worker_hears_at_once_that_it_is_drained() {
    let server = Server::start().await;
    let idle = server.worker("idle").await;
    let drain = async {
        server.until_metric("rayreel_hanging_calls", 1.0).await;
        let answer = server.post("/v1/admin/workers/idle/drain", &Value::Null).await;
        assert_eq!(answer.json::<Value>()["state"], "draining");
    };
    let (claimed, ()) = tokio::join!(idle.claim(1, 30_000), drain);
    assert!(matches!(claimed, Claimed::Drain), "{claimed:?}");
    assert_eq!(see(&server, "/v1/admin/workers").await, json!({"data": []}));
}

#[tokio::test]
async fn a_worker_that_has_not_registered_can_not_be_drained_yet() {
    let server = Server::start().await;
    let store = &server.app.components.store;
    store.put_launch(launch(&server, "unborn")).await.unwrap();
    let path = "/v1/admin/workers/unborn/drain";
    server.post(path, &Value::Null).await.refused(409, "worker_starting", None);
    // It has been told to go, and its process has not ended yet.
    store.put_launch(Launch { claimed: true, ..launch(&server, "unborn") }).await.unwrap();
    assert_eq!(server.post(path, &Value::Null).await.json::<Value>()["state"], "draining");
}

#[tokio::test]
async fn a_drained_pool_gives_nothing_away_until_it_is_resumed_over_a_restart() {
    // The workers are the test's.
    let server = Server::running(&[("RAYREEL_POOLS__LOCAL__MAX", "0")]).await;
    let by = server.worker("w").await;
    let (running, queued) = (server.submit("p").await, server.submit("q").await);
    let fence = by.take(1).await.fence;
    for _ in 0..2 {
        let drained = server.post("/v1/admin/pools/local/drain", &Value::Null).await;
        let drained = drained.json::<Value>();
        assert_eq!((&drained["drained"], &drained["queued"]), (&json!(true), &json!(1)));
        assert!(drained["queued_gpu_seconds"].as_f64().unwrap() > 0.0);
    }
    let reason = |task: &TaskBody| task.waiting_reason.clone().unwrap_or_default();
    let told = async |server: &Server| loop {
        let task = server.task(&queued.id).await;
        if reason(&task).contains("pool `local` is drained") {
            assert_eq!(task.eta_seconds, None, "nobody knows when it is resumed");
            break;
        }
    };
    told(&server).await;
    by.finish(fence, &[(video(b"film"), b"film")]).await;
    assert_eq!(server.task(&running.id).await.attempts.len(), 1);
    assert!(matches!(by.claim(2, 0).await, Claimed::Nothing));

    let server = server.started_anew().await;
    told(&server).await;
    let by = server.worker("w").await;
    let resume = async {
        server.until_metric("rayreel_hanging_calls", 1.0).await;
        for _ in 0..2 {
            let resumed = server.post("/v1/admin/pools/local/resume", &Value::Null).await;
            assert_eq!(resumed.json::<Value>()["drained"], false);
        }
    };
    let (claimed, ()) = tokio::join!(by.claim(1, 30_000), resume);
    let Claimed::Task(assignment) = claimed else { panic!("{claimed:?}") };
    assert_eq!((assignment.fence.task.to_string(), assignment.fence.attempt), (queued.id, 1));
}

#[tokio::test]
async fn what_is_no_worker_and_no_pool_is_not_drained() {
    let server = Server::start().await;
    for name in ["nobody", "%ff", "%00", "..%2fkeys", "a b"] {
        let path = format!("/v1/admin/workers/{name}/drain");
        server.post(&path, &Value::Null).await.refused(404, "worker_not_found", None);
        for what in ["drain", "resume"] {
            let path = format!("/v1/admin/pools/{name}/{what}");
            server.post(&path, &Value::Null).await.refused(404, "pool_not_found", None);
        }
    }
}
