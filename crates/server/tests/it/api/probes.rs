//! What operators ask.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

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
async fn a_server_that_can_not_write_is_not_ready_until_it_can() {
    let server = Server::start().await;
    let ready = async || server.get("/readyz").await;
    assert_eq!(ready().await.status, 200);
    let artifacts = server.app.settings.data.join("artifacts");
    // Whoever writes here is told that the disk is full.
    symlink("/dev/full", artifacts.join(".probe")).unwrap();
    assert_eq!(ready().await.status, 200, "it looks once a second, however often it is asked");
    server.world.clock.advance(Duration::from_secs(1));
    let refusal = ready().await.refused(503, "store_unavailable", None);
    assert!(refusal.message.contains("full"), "{}", refusal.message);
    assert_eq!(ready().await.status, 200, "it goes on by itself");

    let away = server.app.settings.data.join("away");
    fs::rename(&artifacts, &away).unwrap();
    server.world.clock.advance(Duration::from_secs(1));
    for _ in 0..2 {
        let refusal = ready().await.refused(503, "store_unavailable", None);
        assert!(refusal.message.contains("can't be written"), "{}", refusal.message);
        assert!(!refusal.message.contains('/'), "no path leaves the server: {}", refusal.message);
    }
    assert_eq!(server.get("/healthz").await.status, 200);
    fs::rename(&away, &artifacts).unwrap();
    assert_eq!(ready().await.status, 200);
    assert_eq!(fs::read_dir(&artifacts).unwrap().count(), 0, "nothing is left");
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
            // This document names the code, too.
            let code = answer.status == 404 && answer.text().contains("route_not_found");
            assert!(!code && answer.status != 405, "{path}");
        }
    }
}
