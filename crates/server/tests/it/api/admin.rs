//! What an operator sees of tenants, workers and pools, and does to them.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, LOCAL_TOKEN, Server, TASKS};
use super::keys::{call, make};

async fn see(server: &Server, path: &str) -> Value {
    let answer = call(server, Method::GET, path, LOCAL_TOKEN, &Value::Null).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

#[tokio::test]
async fn only_an_admin_sees_and_does_this() {
    let server = Server::start().await;
    let calls = [(Method::GET, "/v1/admin/tenants"), (Method::GET, "/v1/admin/tenants/default")];
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
