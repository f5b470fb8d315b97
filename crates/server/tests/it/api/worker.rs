//! The worker API, without its files.

use std::sync::Arc;
use std::time::Duration;

use rayreel_domain::task::{Outcome, State};
use rayreel_domain::wire::worker::{
    Beaten, Claimed, Controlled, EngineSetup, Progress, Registered,
};
use rayreel_server::App;
use rayreel_server::fleet::Fleet;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::client::{Answer, Server, TASKS, TOKEN, Worker, id};

const HANGING: &str = "rayreel_hanging_calls";
/// Longer than any test: what waits so long waits for something else.
const LONG: u64 = 30_000;

#[tokio::test]
async fn the_token_is_asked_for_on_every_path_that_begins_so() {
    let server = Server::start().await;
    for (method, path) in [
        (Method::POST, "/v1/worker/register"),
        (Method::POST, "/v1/worker/claim"),
        (Method::PUT, "/v1/worker/uploads/task_1/1/2/0"),
        (Method::GET, "/v1/worker/inputs/task_1/1/2"),
        (Method::GET, "/v1/worker/nothing"),
    ] {
        let request = || server.request(method.clone(), path).json(&json!({}));
        for request in [
            request(),
            request().bearer_auth("wrong"),
            request().bearer_auth(""),
            request().bearer_auth("secret2"),
            request().header("authorization", "Basic secret"),
            request().header("authorization", "secret"),
        ] {
            let answer = Answer::of(request).await;
            answer.refused(401, "unauthorized", None);
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    let nothing = server.request(Method::GET, "/v1/worker/nothing").bearer_auth(TOKEN);
    Answer::of(nothing).await.refused(404, "route_not_found", None);
}

#[tokio::test]
async fn a_registration_tells_the_terms_and_ends_the_one_before() {
    let server = Server::with(&[("RAYREEL_LEASE_SECONDS", "9")]).await;
    let body = json!({"worker": "w", "pool": "local", "version": "1"});
    let first: Registered = server.call("register", &body).await.json();
    assert_eq!((first.lease_ms, first.beat_ms), (9_000, 3_000));
    let old = Worker { server: &server, name: "w".into(), incarnation: first.incarnation };
    let new = server.worker("w").await;
    assert_eq!(new.claim(1, 0).await, Claimed::Nothing);
    for call in ["claim", "control"] {
        let body = json!({"seq": 1, "wait_ms": 0, "holding": []});
        let body = if call == "control" { json!({"wait_ms": 0, "holding": []}) } else { body };
        old.call(call, body).await.refused(409, "stale_worker", None);
    }
    let elsewhere = json!({"worker": "w", "pool": "gpu", "version": "1"});
    let refused = server.call("register", &elsewhere).await;
    let refusal = refused.refused(400, "invalid_value", Some("pool"));
    assert!(refusal.message.contains("local"));
}

#[tokio::test]
async fn a_worker_that_registered_before_a_restart_is_still_known() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    // The same store, another server: it has not seen the registration.
    let app = Arc::clone(&server.app);
    let again = Server::serve(crate::world::World::new(&[]), app).await;
    let worker = Worker { server: &again, name: worker.name, incarnation: worker.incarnation };
    assert_eq!(worker.claim(1, 0).await, Claimed::Nothing);
}

#[tokio::test]
async fn a_claim_gets_all_that_a_worker_needs() {
    let server = Server::with(&[("RAYREEL_MAX_RUN_SECONDS", "60")]).await;
    let task = server.submit("a fox").await;
    let worker = server.worker("w").await;
    let assignment = worker.take(1).await;
    assert_eq!(assignment.fence.task, id(&task));
    assert_eq!(assignment.request.prompt, "a fox");
    assert_eq!(assignment.max_run_ms, 60_000);
    assert_eq!(assignment.model.engine, EngineSetup::BuiltIn("testcard".to_owned()));
    let repeated = worker.take(1).await;
    assert_eq!(repeated, assignment, "the answer may have been lost");
    assert_eq!(server.task(&task.id).await.status, State::Running);
}

#[tokio::test]
async fn a_hanging_claim_is_woken_by_a_submit() {
    let server = Server::start().await;
    let (a, b) = (server.worker("a").await, server.worker("b").await);
    let submit = async {
        server.until_metric(HANGING, 2.0).await;
        let task = server.submit("p").await;
        server.until_metric(HANGING, 1.0).await;
        server.shutdown.cancel();
        task
    };
    let (a, b, task) = tokio::join!(a.claim(1, LONG), b.claim(1, LONG), submit);
    let got: Vec<_> = [a, b]
        .into_iter()
        .filter_map(|claimed| match claimed {
            Claimed::Task(assignment) => Some(assignment.fence.task),
            other => {
                assert_eq!(other, Claimed::Nothing, "the other waits until the server stops");
                None
            }
        })
        .collect();
    assert_eq!(got, [id(&task)]);
}

#[tokio::test]
async fn a_claim_whose_connection_is_gone_is_not_made() {
    let server = Server::start().await;
    let worker = server.worker("gone").await;
    let body = json!({"worker": "gone", "incarnation": worker.incarnation, "seq": 1,
        "wait_ms": LONG})
    .to_string();
    let request = format!(
        "POST /v1/worker/claim HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    server.until_metric(HANGING, 1.0).await;
    drop(socket);
    server.until_metric(HANGING, 0.0).await;
    let task = server.submit("p").await;
    assert_eq!(server.task(&task.id).await.status, State::Queued);
    assert_eq!(server.worker("there").await.take(1).await.fence.task, id(&task));
}

#[tokio::test]
async fn a_task_that_a_worker_should_leave_to_others_wakes_one_of_them() {
    let server = Server::start().await;
    let task = server.submit("p").await;
    let (bad, good) = (server.worker("bad").await, server.worker("good").await);
    let fence = bad.take(1).await.fence;
    let failure = json!({"code": "engine_failed", "message": "m", "retryable": true});
    assert_eq!(bad.call("fail", json!({"fence": fence, "failure": failure})).await.status, 200);

    let ready = async {
        server.until_metric(HANGING, 1.0).await;
        // Parked last, it is woken first.
        let bad = async {
            assert_eq!(bad.claim(2, LONG).await, Claimed::Nothing);
        };
        let wake = async {
            server.until_metric(HANGING, 2.0).await;
            server.world.clock.advance(Duration::from_secs(2));
            server.app.components.store.advance().await.unwrap();
            server.until_metric(HANGING, 1.0).await;
            server.shutdown.cancel();
        };
        tokio::join!(bad, wake);
    };
    let (claimed, ()) = tokio::join!(good.claim(1, LONG), ready);
    match claimed {
        Claimed::Task(assignment) => assert_eq!(assignment.fence.task, id(&task)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_worker_that_is_not_needed_is_told_to_go() {
    let server = Server::with(&[("RAYREEL_POOLS__LOCAL__IDLE_TIMEOUT_SECONDS", "1")]).await;
    let worker = server.launched_worker("w").await;
    let idle = async {
        server.until_metric(r#"rayreel_workers{pool="local",state="idle"}"#, 1.0).await;
        server.world.clock.advance(Duration::from_secs(2));
        let mut fleet = Fleet::new(Arc::clone(&server.app), server.address.clone());
        fleet.look().await.unwrap();
    };
    let (claimed, ()) = tokio::join!(worker.claim(1, LONG), idle);
    assert_eq!(claimed, Claimed::Drain);
    let again = worker.call("claim", json!({"seq": 2, "wait_ms": 0})).await;
    again.refused(409, "stale_worker", None);
}

#[tokio::test]
async fn a_worker_that_has_come_by_itself_stays() {
    let server = Server::with(&[("RAYREEL_POOLS__LOCAL__IDLE_TIMEOUT_SECONDS", "1")]).await;
    let worker = server.worker("w").await;
    let task = async {
        server.until_metric(r#"rayreel_workers{pool="local",state="idle"}"#, 1.0).await;
        server.world.clock.advance(Duration::from_secs(2));
        let mut fleet = Fleet::new(Arc::clone(&server.app), server.address.clone());
        fleet.look().await.unwrap();
        server.submit("p").await
    };
    let (claimed, _) = tokio::join!(worker.claim(1, LONG), task);
    assert!(matches!(claimed, Claimed::Task(_)), "{claimed:?}");
}

#[tokio::test]
async fn a_quarantined_worker_is_told_what_to_test() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    for seq in 1..=3 {
        server.submit("p").await;
        let fence = worker.take(seq).await.fence;
        let failure = json!({"code": "engine_crashed", "message": "segfault"});
        worker.call("fail", json!({"fence": fence, "failure": failure})).await;
    }
    let behind = server.submit("p").await;
    match worker.claim(4, LONG).await {
        Claimed::Quarantine { model, test, message } => {
            assert_eq!((model.name.as_str(), &*message), ("testcard", "segfault"));
            assert_eq!((test.width, test.height, test.frames), (832, 480, 5), "its own size");
        }
        other => panic!("{other:?}"),
    }
    let passed = json!({"seq": 5, "wait_ms": 0, "self_test": {"model": "testcard"}});
    match worker.call("claim", passed).await.json() {
        Claimed::Task(assignment) => assert_eq!(assignment.fence.task, id(&behind)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_task_whose_model_is_gone_fails_and_the_next_one_is_given() {
    let server = Server::with(&[
        ("RAYREEL_MODELS__REAL__COMMAND", r#"["engine"]"#),
        ("RAYREEL_DEFAULT_MODEL", "testcard"),
    ])
    .await;
    let orphan = server.post(TASKS, &json!({"prompt": "p", "model": "real"})).await;
    let orphan = orphan.json::<Value>()["id"].as_str().unwrap().to_owned();
    let good = server.submit("p").await;
    // The same store under a configuration without that model.
    let mut settings = server.app.settings.clone();
    settings.models.retain(|name, _| name.as_str() == "testcard");
    let components = server.app.components.clone();
    let app = App::new(settings, components);
    let later = Server::serve(crate::world::World::new(&[]), Arc::new(app)).await;
    assert_eq!(later.worker("w").await.take(1).await.fence.task, id(&good));
    let failed = later.task(&orphan).await;
    assert_eq!(
        (failed.status, failed.error.unwrap().code.name()),
        (State::Failed, "unknown_model")
    );
    let content = later.get(&format!("{TASKS}/{orphan}/content")).await;
    content.refused(410, "unknown_model", None);
}

#[tokio::test]
async fn control_tells_of_a_cancel_at_once() {
    let server = Server::start().await;
    let task = server.submit("p").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let control = worker.call("control", json!({"holding": [fence], "wait_ms": LONG}));
    let cancel = async {
        server.until_metric(HANGING, 1.0).await;
        server.post(&format!("{TASKS}/{}/cancel", task.id), &json!({})).await;
    };
    let (control, ()) = tokio::join!(control, cancel);
    let told: Controlled = control.json();
    assert_eq!(told, Controlled { cancelled: vec![fence], ..Controlled::default() });
    assert_eq!(worker.beat(fence, None).await.answer, Beaten::Cancelled);
    let repeated = worker.call("control", json!({"holding": [fence], "wait_ms": LONG})).await;
    assert_eq!(repeated.json::<Controlled>().cancelled, [fence], "known before it is asked");
    let late = worker.call("release", json!({"fence": fence})).await;
    assert!(late.refused(409, "stale_lease", None).message.contains("cancelled"));
}

#[tokio::test]
async fn control_tells_of_a_lost_lease_and_is_silent_otherwise() {
    let server = Server::start().await;
    server.submit("p").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let asked = || worker.call("control", json!({"holding": [fence], "wait_ms": 0}));
    assert_eq!(asked().await.json::<Controlled>(), Controlled::default());
    let end = rayreel_domain::task::End::Lose;
    assert!(server.app.components.store.reclaim(fence, 0, end).await.unwrap());
    assert_eq!(asked().await.json::<Controlled>().lost, [fence]);
    let many = vec![fence; 65];
    let refused = worker.call("control", json!({"holding": many, "wait_ms": 0})).await;
    refused.refused(400, "invalid_value", Some("holding"));
}

#[tokio::test]
async fn a_server_that_stops_answers_what_hangs_and_ends() {
    let mut server = Server::start().await;
    let worker = server.worker("w").await;
    let stop = async {
        server.until_metric(HANGING, 2.0).await;
        server.shutdown.cancel();
    };
    let control = worker.call("control", json!({"holding": [], "wait_ms": LONG}));
    let (claimed, control, ()) = tokio::join!(worker.claim(1, LONG), control, stop);
    assert_eq!(claimed, Claimed::Nothing);
    assert_eq!(control.json::<Controlled>(), Controlled::default());
    (&mut server.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn progress_is_kept_with_a_bounded_stage() {
    let server = Server::start().await;
    let task = server.submit("p").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let stage = "é".repeat(100);
    let progress = Progress { stage, step: 1, steps: 2 };
    assert_eq!(worker.beat(fence, Some(progress)).await.answer, Beaten::Continue);
    let kept = server.task(&task.id).await.stage.unwrap();
    assert_eq!(kept.stage, "é".repeat(64));
}

#[tokio::test]
async fn a_failure_is_retried_or_ends_the_task_and_may_be_told_twice() {
    let server = Server::start().await;
    let task = server.submit("p").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let failure =
        json!({"code": "out_of_memory", "message": "m", "detail": "d", "retryable": true});
    let body = json!({"fence": fence, "failure": failure});
    for _ in 0..2 {
        assert_eq!(worker.call("fail", body.clone()).await.status, 200);
    }
    let shown = server.task(&task.id).await;
    assert_eq!((shown.status, shown.attempts.len()), (State::Queued, 1));
    assert_eq!(shown.attempts[0].outcome, Some(Outcome::Failed));
    assert_eq!(shown.attempts[0].error.as_ref().unwrap().detail.as_deref(), Some("d"));
    worker.beat(fence, None).await;
    let release = worker.call("release", json!({"fence": fence})).await;
    release.refused(409, "stale_lease", None);
}

#[tokio::test]
async fn a_worker_that_leaves_gives_its_task_back() {
    let server = Server::start().await;
    let task = server.submit("p").await;
    let worker = server.worker("w").await;
    worker.take(1).await;
    assert_eq!(worker.call("deregister", json!({})).await.status, 200);
    let shown = server.task(&task.id).await;
    assert_eq!((shown.status, shown.attempts.len()), (State::Queued, 0), "it never confirmed");
    assert_eq!(worker.call("deregister", json!({})).await.status, 200, "twice is fine");
}

#[tokio::test]
async fn worker_calls_are_strict_and_bounded() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let answer = worker.call("claim", json!({"seq": 1, "wait_ms": 0, "extra": 1})).await;
    answer.refused(400, "unknown_field", Some("extra"));
    worker.call("claim", json!({"wait_ms": 0})).await.refused(400, "missing_field", Some("seq"));
    let named = json!({"worker": "../w", "pool": "local", "version": "1"});
    server.call("register", &named).await.refused(400, "invalid_value", Some("worker"));
    let wordy = json!({"worker": "w", "pool": "local", "version": "x".repeat(129)});
    server.call("register", &wordy).await.refused(400, "invalid_value", Some("version"));
    let long = json!({"worker": "w", "pool": "local", "version": "x".repeat(1 << 20)});
    server.call("register", &long).await.refused(413, "body_too_large", None);
}
