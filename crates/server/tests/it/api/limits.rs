//! Tenants' limits, as a client meets them.

use std::time::Duration;

use futures_util::future::join_all;
use rayreel_domain::wire::worker::Claimed;
use reqwest::Method;
use serde_json::json;

use super::client::{Answer, LOCAL_TOKEN, Server, TASKS};
use super::uploads::{files, png};
use crate::outbound::{Peer, ok};

/// Makes a key of the tenant.
pub(super) async fn key(server: &Server, tenant: &str) -> String {
    let request = server.request(Method::POST, "/v1/admin/keys").bearer_auth(LOCAL_TOKEN);
    let made = Answer::of(request.json(&json!({"tenant": tenant}))).await;
    made.json::<serde_json::Value>()["key"].as_str().unwrap().to_owned()
}

async fn submit(server: &Server, key: &str, body: &serde_json::Value) -> Answer {
    Answer::of(server.request(Method::POST, TASKS).bearer_auth(key).json(body)).await
}

fn small() -> serde_json::Value {
    json!({"prompt": "p", "frames": 5, "steps": 2})
}

/// Sixty-four clients at once; how many were accepted, and one of the refusals.
async fn rush(server: &Server, key: &str) -> (usize, Option<Answer>) {
    rush_with(server, key, &small()).await
}

async fn rush_with(
    server: &Server,
    key: &str,
    body: &serde_json::Value,
) -> (usize, Option<Answer>) {
    let answers = join_all((0..64).map(|_| submit(server, key, body))).await;
    let (accepted, mut refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 202);
    (accepted.len(), refused.pop())
}

#[tokio::test]
async fn limits_hold_exactly_under_sixty_four_clients() {
    let server = Server::with(&[
        ("RAYREEL_TENANTS__BUSY__MAX_QUEUED", "10"),
        ("RAYREEL_TENANTS__HASTY__TASKS_PER_MINUTE", "20"),
    ])
    .await;
    let (busy, hasty, free) =
        (key(&server, "busy").await, key(&server, "hasty").await, key(&server, "free").await);
    let (accepted, refused) = rush(&server, &busy).await;
    assert_eq!(accepted, 10);
    let refused = refused.expect("some");
    assert_eq!(refused.headers["retry-after"], "10");
    refused.refused(429, "limit_reached", Some("max_queued"));

    let (accepted, refused) = rush(&server, &hasty).await;
    assert_eq!(accepted, 20);
    let refused = refused.expect("some");
    assert_eq!(refused.headers["retry-after"], "61");
    refused.refused(429, "limit_reached", Some("tasks_per_minute"));
    server.world.clock.advance(Duration::from_secs(60));
    assert_eq!(rush(&server, &hasty).await.0, 0);
    server.world.clock.advance(Duration::from_secs(1));
    assert_eq!(rush(&server, &hasty).await.0, 20, "a minute is over");

    assert_eq!(rush(&server, &free).await.0, 64, "who has no limits has none");
}

#[tokio::test]
async fn a_days_gpu_time_holds_exactly_under_sixty_four_clients() {
    let server = Server::with(&[
        ("RAYREEL_TENANTS__DEFAULT__GPU_SECONDS_PER_DAY", "1000"),
        ("RAYREEL_MODELS__SLOW__COMMAND", r#"["engine"]"#),
        ("RAYREEL_MODELS__SLOW__ESTIMATE_SECONDS", "100"),
    ])
    .await;
    let (anna, bert) = (key(&server, "anna").await, key(&server, "bert").await);
    for body in
        [json!({"prompt": "p", "model": "slow"}), json!({"prompt": "p", "model": "slow", "n": 3})]
    {
        let key = if body.get("n").is_none() { &anna } else { &bert };
        let (accepted, refused) = rush_with(&server, key, &body).await;
        // Three at once, or none of the three.
        assert_eq!(accepted, if body.get("n").is_none() { 10 } else { 3 });
        let refused = refused.expect("some");
        refused.refused(429, "limit_reached", Some("gpu_seconds_per_day"));
    }
    // The hundred seconds that three did not fit into.
    let (accepted, _) = rush_with(&server, &bert, &json!({"prompt": "p", "model": "slow"})).await;
    assert_eq!(accepted, 1);
}

#[tokio::test]
async fn running_tasks_hold_exactly_under_sixty_four_workers() {
    let server = Server::with(&[("RAYREEL_TENANTS__ANNA__MAX_RUNNING", "5")]).await;
    let anna = key(&server, "anna").await;
    assert_eq!(rush(&server, &anna).await.0, 64);
    let mut workers = Vec::new();
    for number in 0..64 {
        workers.push(server.worker(&format!("w{number}")).await);
    }
    let claims = join_all(workers.iter().map(|worker| worker.claim(1, 0))).await;
    let running: Vec<_> = claims
        .iter()
        .zip(&workers)
        .filter_map(|(claimed, worker)| match claimed {
            Claimed::Task(task) => Some((worker, task.fence)),
            _ => None,
        })
        .collect();
    assert_eq!(running.len(), 5);
    // One place that becomes free is one place.
    let (worker, fence) = running[0];
    let failure = json!({"code": "engine_refused", "message": "no"});
    worker.call("fail", json!({"fence": fence, "failure": failure})).await;
    let idle =
        workers.iter().zip(&claims).filter(|(_, claimed)| !matches!(claimed, Claimed::Task(_)));
    let claims = join_all(idle.map(|(worker, _)| worker.claim(2, 0))).await;
    let taken = claims.iter().filter(|claimed| matches!(claimed, Claimed::Task(_)));
    assert_eq!(taken.count(), 1);
}

#[tokio::test]
async fn what_is_over_a_limit_is_neither_fetched_nor_decoded_nor_stored() {
    let peer = Peer::answering(ok(&png())).await;
    let server = Server::with(&[
        ("RAYREEL_OUTBOUND__ALLOW", r#"["127.0.0.1"]"#),
        ("RAYREEL_TENANTS__DEFAULT__MAX_QUEUED", "1"),
        ("RAYREEL_TENANTS__DEFAULT__TASKS_PER_MINUTE", "2"),
    ])
    .await;
    let anna = key(&server, "anna").await;
    let url = format!("http://127.0.0.1:{}/a.png", peer.port);
    let first = json!({"prompt": "p", "image": url});
    let keyed = async |body: &serde_json::Value| {
        let request = server.request(Method::POST, TASKS).bearer_auth(&anna).json(body);
        Answer::of(request.header("idempotency-key", "k")).await
    };
    assert_eq!(keyed(&first).await.status, 202);
    let other = format!("{url}?2");
    for body in [
        json!({"prompt": "p", "image": other}),
        json!({"prompt": "p", "image": "data:image/png;base64,AAAA"}),
        json!({"prompt": "p", "image": url, "last_image": other}),
    ] {
        let refused = submit(&server, &anna, &body).await;
        refused.refused(429, "limit_reached", Some("max_queued"));
    }
    assert_eq!(peer.heard().len(), 1);
    assert_eq!(files(&server).len(), 1);
    assert_eq!(keyed(&first).await.status, 202, "what was accepted once stays so");
    keyed(&json!({"prompt": "q", "image": url})).await.refused(
        409,
        "idempotency_mismatch",
        Some("Idempotency-Key"),
    );

    // To look is not to submit: of two a minute there is one left.
    let listed = server.request(Method::GET, TASKS).bearer_auth(&anna);
    let id = Answer::of(listed).await.json::<serde_json::Value>()["data"][0]["id"].clone();
    let cancel = format!("{TASKS}/{}/cancel", id.as_str().unwrap());
    Answer::of(server.request(Method::POST, &cancel).bearer_auth(&anna)).await;
    assert_eq!(submit(&server, &anna, &first).await.status, 202);
}

#[tokio::test]
async fn what_is_refused_in_the_end_leaves_nothing_behind() {
    let server = Server::running(&[("RAYREEL_TENANTS__DEFAULT__MAX_QUEUED", "1")]).await;
    // All are looked at before the first one is submitted, or some are: one is accepted.
    let submits = (0..16_u8).map(|shade| {
        let mut picture = Vec::new();
        let mut encoder = png::Encoder::new(&mut picture, 1, 1);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&[shade]).unwrap();
        let server = &server;
        async move { server.form(TASKS, &[("prompt", "p")], &[("image", "a.png", &picture)]).await }
    });
    let answers = join_all(submits).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1);
    let reached = async {
        while files(&server).len() > 1 {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("garbage at once");
    let worker = server.worker("w").await;
    assert!(worker.take(1).await.request.image.is_some());
}

#[tokio::test]
async fn the_room_for_files_holds_exactly_under_sixty_four_clients() {
    let upload = async |server: &Server, key: &str, picture: &[u8]| {
        let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
        let body = [part.as_bytes(), picture, b"\r\n--b--\r\n"].concat();
        let request = server.request(Method::POST, "/v1/files").bearer_auth(key);
        let form = "multipart/form-data; boundary=b";
        Answer::of(request.header("content-type", form).body(body)).await
    };
    // A small file counts 64 KiB: room for seven, and nearly for an eighth.
    let room = (8 * 65_536 - 1).to_string();
    let server = Server::with(&[("RAYREEL_INPUTS__MAX_TENANT_BYTES", &*room)]).await;
    let (anna, bert) = (key(&server, "anna").await, key(&server, "bert").await);
    let picture = png();
    let answers = join_all((0..64).map(|_| upload(&server, &anna, &picture))).await;
    let (taken, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(taken.len(), 7);
    for answer in refused {
        answer.refused(429, "limit_reached", Some("inputs.max_tenant_bytes"));
        assert!(answer.headers.contains_key("retry-after"));
    }
    assert_eq!(upload(&server, &bert, &picture).await.status, 200, "each has its own room");
}

#[tokio::test]
async fn a_days_gpu_time_is_what_was_used_and_what_is_queued() {
    let server = Server::with(&[
        ("RAYREEL_TENANTS__DEFAULT__GPU_SECONDS_PER_DAY", "7200"),
        ("RAYREEL_MODELS__SLOW__COMMAND", r#"["engine"]"#),
        ("RAYREEL_MODELS__SLOW__ESTIMATE_SECONDS", "3600"),
    ])
    .await;
    let body = json!({"prompt": "p", "model": "slow"});
    let server_key = key(&server, "anna").await;
    for _ in 0..2 {
        assert_eq!(submit(&server, &server_key, &body).await.status, 202);
    }
    let refused = submit(&server, &server_key, &body).await;
    refused.refused(429, "limit_reached", Some("gpu_seconds_per_day"));
    let other = key(&server, "bert").await;
    assert_eq!(submit(&server, &other, &body).await.status, 202, "each has its own day");
}

#[tokio::test]
async fn beyond_its_running_tasks_a_tenant_waits_and_others_do_not() {
    let server = Server::with(&[("RAYREEL_TENANTS__ANNA__MAX_RUNNING", "1")]).await;
    let (anna, bert) = (key(&server, "anna").await, key(&server, "bert").await);
    for key in [&anna, &anna, &bert] {
        assert_eq!(submit(&server, key, &small()).await.status, 202);
    }
    let (first, second, third) =
        (server.worker("w1").await, server.worker("w2").await, server.worker("w3").await);
    let one = first.take(1).await;
    second.take(1).await;
    // The third task is ready, and its tenant has no vacancy; when it gets one, who waits is woken.
    let end = async {
        server.until_metric("rayreel_hanging_calls", 1.0).await;
        let failure = json!({"code": "engine_refused", "message": "no"});
        first.call("fail", json!({"fence": one.fence, "failure": failure})).await;
    };
    let (claimed, ()) = tokio::join!(third.claim(1, 20_000), end);
    assert!(matches!(claimed, Claimed::Task(_)), "{claimed:?}");
}

#[tokio::test]
async fn ended_tasks_go_when_their_time_has_come() {
    let server = Server::with(&[("RAYREEL_TENANTS__DEFAULT__KEEP_DAYS", "0.5")]).await;
    let task = server.submit("p").await;
    let cancel = format!("{TASKS}/{}/cancel", task.id);
    assert_eq!(server.post(&cancel, &json!({})).await.status, 200);
    let store = &server.app.components.store;
    server.world.clock.advance(Duration::from_secs(43_199));
    store.advance().await.unwrap();
    assert_eq!(server.get(&format!("{TASKS}/{}", task.id)).await.status, 200);
    server.world.clock.advance(Duration::from_secs(1));
    store.advance().await.unwrap();
    server.get(&format!("{TASKS}/{}", task.id)).await.refused(404, "task_not_found", None);
}

#[tokio::test]
async fn a_flood_of_one_tenant_does_not_delay_another() {
    let server = Server::start().await;
    let (flood, other) = (key(&server, "flood").await, key(&server, "other").await);
    let urgent = json!({"prompt": "p", "frames": 5, "steps": 2, "priority": 5, "n": 8});
    for _ in 0..25 {
        let answers = join_all((0..50).map(|_| submit(&server, &flood, &urgent))).await;
        assert!(answers.iter().all(|answer| answer.status == 202));
    }
    let backlog = server.app.components.store.backlog().await.unwrap();
    let ready = backlog.iter().flat_map(|pool| pool.ready.values());
    assert_eq!(ready.map(|ready| ready.tasks).sum::<u64>(), 10_000);
    let worker = server.worker("w").await;
    let first = worker.take(1).await;
    server.world.clock.advance(Duration::from_secs(1));
    let failure = json!({"code": "engine_refused", "message": "no"});
    worker.call("fail", json!({"fence": first.fence, "failure": failure})).await;
    let asked = submit(&server, &other, &small()).await.json::<serde_json::Value>();
    let next = worker.take(2).await;
    assert_eq!(json!(next.fence.task), asked["id"], "it starts next");
}
