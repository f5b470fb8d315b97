//! What operators ask.

use serde_json::{Value, json};

use super::client::{Server, TASKS, video};

#[tokio::test]
async fn the_metrics_count_what_happens() {
    let server = Server::start().await;
    let first = server.submit("a").await;
    server.submit("b").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    worker.finish(fence, &[(video(b"four"), b"four")]).await;
    worker.take(2).await;
    server.delete(&format!("{TASKS}/{}", first.id)).await;
    server.get("/no/such/path").await;
    server.post(TASKS, &json!({})).await;

    for (name, value) in [
        (r#"rayreel_task_transitions_total{state="QUEUED"}"#, 2.0),
        (r#"rayreel_task_transitions_total{state="RUNNING"}"#, 2.0),
        (r#"rayreel_task_transitions_total{state="SUCCEEDED"}"#, 1.0),
        (r#"rayreel_task_transitions_total{state="FAILED"}"#, 0.0),
        (r#"rayreel_tasks{pool="local",state="ready"}"#, 0.0),
        (r#"rayreel_tasks{pool="local",state="running"}"#, 1.0),
        (r#"rayreel_workers{pool="local",state="busy"}"#, 1.0),
        (
            r#"rayreel_http_requests_total{method="POST",route="/v1/video/generations",status="202"}"#,
            2.0,
        ),
        (
            r#"rayreel_http_requests_total{method="POST",route="/v1/video/generations",status="400"}"#,
            1.0,
        ),
        (r#"rayreel_http_requests_total{method="GET",route="other",status="404"}"#, 1.0),
        ("rayreel_submit_seconds_count", 2.0),
        ("rayreel_claim_seconds_count", 2.0),
        ("rayreel_queue_wait_seconds_count", 2.0),
        ("rayreel_artifacts_uploaded_bytes_total", 4.0),
        ("rayreel_event_streams", 0.0),
        ("rayreel_store_up", 1.0),
    ] {
        // Changes are counted just after they are answered.
        server.until_metric(name, value).await;
    }
    let answer = server.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("application/openmetrics-text"));
    assert!(answer.text().ends_with("# EOF\n"));
}

#[tokio::test]
async fn the_server_hands_out_its_own_description() {
    let server = Server::start().await;
    let answer = server.get("/openapi.json").await;
    assert_eq!(answer.header("content-type"), "application/json");
    let document: Value = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    // Everything that it promises is there: no documented path is an unknown route.
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase().parse().unwrap();
            let request = server.request(method, &path.replace("{id}", "task_1"));
            let answer = super::client::Answer::of(request).await;
            let code = answer.headers["content-type"] == "application/json"
                && answer.text().contains("route_not_found");
            assert!(!code && answer.status != 405, "{path}");
        }
    }
}
