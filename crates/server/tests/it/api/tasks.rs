//! Submit, show, list, cancel, delete.

use std::time::Duration;

use rayreel_domain::task::State;
use rayreel_domain::wire::api::{CancelBody, TaskBody, TaskList};
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS, video};

#[tokio::test]
async fn a_submit_answers_the_queued_task_and_where_it_is() {
    let server = Server::start().await;
    let body = json!({"prompt": "a red fox", "size": "640*360", "seconds": 2, "seed": 7,
        "metadata": {"order": "17"}});
    let answer = server.post(TASKS, &body).await;
    assert_eq!(answer.status, 202);
    let task: TaskBody = answer.json();
    assert_eq!(answer.header("location"), task.urls.get);
    assert_eq!(answer.header("x-rayreel-test-pattern"), "true", "no model is configured");
    assert_eq!((task.status, task.progress, task.queue_position), (State::Queued, 0, Some(0)));
    assert_eq!(task.created_at, 1_800_000_000);
    assert!(task.eta_seconds.is_some());
    assert_eq!(task.id, task.task_id);
    let request = &task.request;
    assert_eq!((&*request.size, request.frames, request.seed), ("640x360", 33, 7));
    assert_eq!(request.metadata["order"], "17");
    assert_eq!(server.task(&task.id).await, task);
}

#[tokio::test]
async fn a_charset_in_the_content_type_is_fine() {
    let server = Server::start().await;
    let request = server.request(Method::POST, TASKS);
    let request = request.header("content-type", "Application/JSON; charset=utf-8");
    assert_eq!(Answer::of(request.body(r#"{"prompt":"狐狸"}"#)).await.status, 202);
}

#[tokio::test]
async fn a_seed_is_drawn_and_told_if_none_is_asked_for() {
    let server = Server::start().await;
    let (a, b) = (server.submit("a").await, server.submit("b").await);
    assert_ne!(a.request.seed, b.request.seed);
    assert_eq!(b.queue_position, Some(1));
}

#[tokio::test]
async fn a_real_model_is_not_announced_as_a_test_pattern() {
    let server = Server::with(&[("RAYREEL_MODELS__REAL__COMMAND", r#"["engine"]"#)]).await;
    let answer = server.post(TASKS, &json!({"prompt": "p"})).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json::<TaskBody>().model, "real");
    assert_eq!(answer.header("x-rayreel-test-pattern"), "");
    let answer = server.post(TASKS, &json!({"prompt": "p", "model": "testcard"})).await;
    assert_eq!(answer.header("x-rayreel-test-pattern"), "true");
}

async fn submit_with_key(server: &Server, key: &str, body: &'static str) -> Answer {
    let request = server.request(Method::POST, TASKS).header("idempotency-key", key);
    Answer::of(request.header("content-type", "application/json").body(body)).await
}

#[tokio::test]
async fn the_same_key_with_the_same_request_is_the_same_task() {
    let server = Server::start().await;
    let first = submit_with_key(&server, "k-1", r#"{"prompt":"a","steps":2}"#).await;
    let again = submit_with_key(&server, "k-1", r#" { "steps": 2, "prompt": "a" } "#).await;
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (202, 202));
    assert_eq!(first.json::<TaskBody>().id, again.json::<TaskBody>().id);
    assert_eq!(server.count().await, 1);

    let other = submit_with_key(&server, "k-1", r#"{"prompt":"b"}"#).await;
    other.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
    assert_eq!(submit_with_key(&server, "k-2", r#"{"prompt":"b"}"#).await.status, 202);
    for bad in ["", "a b", &"x".repeat(256)] {
        let refused = submit_with_key(&server, bad, r#"{"prompt":"a"}"#).await;
        refused.refused(400, "invalid_value", Some("Idempotency-Key"));
    }
    assert_eq!(server.count().await, 2);
}

#[tokio::test]
async fn a_repetition_finds_its_task_after_the_deadline_too() {
    let server = Server::start().await;
    let body = r#"{"prompt":"a","deadline":1800000060}"#;
    let first: TaskBody = submit_with_key(&server, "k", body).await.json();
    server.world.clock.advance(Duration::from_secs(120));
    let again = submit_with_key(&server, "k", body).await;
    assert_eq!(again.status, 202, "{}", again.text());
    assert_eq!(again.json::<TaskBody>().id, first.id);
    let other = submit_with_key(&server, "k", r#"{"prompt":"b","deadline":1800000060}"#).await;
    other.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
    for key in ["another", ""] {
        let mut request = server.request(Method::POST, TASKS);
        if !key.is_empty() {
            request = request.header("idempotency-key", key);
        }
        let request = request.header("content-type", "application/json").body(body);
        let refusal = Answer::of(request).await.refused(400, "invalid_value", Some("deadline"));
        assert!(refusal.message.contains("now is 1800000120"), "{}", refusal.message);
    }
    assert_eq!(server.count().await, 1);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server = Server::with(&[("RAYREEL_MAX_QUEUED", "2")]).await;
    server.submit("a").await;
    server.submit("b").await;
    let answer = server.post(TASKS, &json!({"prompt": "c"})).await;
    answer.refused(429, "queue_full", None);
    assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
    assert_eq!(server.count().await, 2);
}

#[tokio::test]
async fn a_list_goes_on_where_its_cursor_says_newest_first() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for prompt in ["a", "b", "c", "d", "e"] {
        ids.insert(0, server.submit(prompt).await.id);
    }
    let mut found = Vec::new();
    let mut path = format!("{TASKS}?limit=2");
    loop {
        let page: TaskList = server.get(&path).await.json();
        assert_eq!(page.object, "list");
        found.extend(page.data.into_iter().map(|task| task.id));
        assert_eq!(page.has_more, page.next_cursor.is_some());
        let Some(cursor) = page.next_cursor else { break };
        assert_eq!(found.len() % 2, 0);
        path = format!("{TASKS}?limit=2&cursor={cursor}");
    }
    assert_eq!(found, ids);
}

#[tokio::test]
async fn a_list_can_be_narrowed() {
    let server = Server::start().await;
    let old = server.submit("old").await;
    server.world.clock.advance(std::time::Duration::from_secs(10));
    let new = server.submit("new").await;
    server.post(&format!("{TASKS}/{}/cancel", old.id), &json!({})).await;
    let list = async |query: &str| -> Vec<String> {
        let page: TaskList = server.get(&format!("{TASKS}?{query}")).await.json();
        page.data.into_iter().map(|task| task.id).collect()
    };
    let (old, new) = (vec![old.id], vec![new.id]);
    assert_eq!(list("state=CANCELLED").await, old);
    assert_eq!(list("state=queued").await, new);
    assert_eq!(list("state=RUNNING").await, [""; 0]);
    assert_eq!(list("model=testcard").await.len(), 2);
    assert_eq!(list("model=other").await, [""; 0]);
    assert_eq!(list("created_after=1800000010").await, new);
    assert_eq!(list("created_before=1800000010").await, old);
    assert_eq!(list("created_after=1800000000&created_before=1800000011").await.len(), 2);
}

#[tokio::test]
async fn a_list_refuses_what_it_does_not_know() {
    let server = Server::start().await;
    for (query, code, param) in [
        ("limit=0", "invalid_value", "limit"),
        ("limit=101", "invalid_value", "limit"),
        ("limit=-1", "invalid_value", "limit"),
        ("limit=ten", "invalid_value", "limit"),
        ("limit=2&limit=3", "invalid_value", "limit"),
        ("limt=2", "unknown_field", "limt"),
        ("state=done", "invalid_value", "state"),
        ("model=a%20b", "invalid_value", "model"),
        ("created_after=yesterday", "invalid_value", "created_after"),
        ("created_before=99999999999999", "invalid_value", "created_before"),
        ("cursor=2", "invalid_cursor", "cursor"),
        ("cursor=000000000000000200000000", "invalid_cursor", "cursor"),
        ("cursor=", "invalid_cursor", "cursor"),
        ("cursor=%ff%fe", "invalid_cursor", "cursor"),
    ] {
        let refusal = server.get(&format!("{TASKS}?{query}")).await;
        let refusal = refusal.refused(400, code, Some(param));
        if query == "limt=2" {
            assert!(refusal.message.contains("`limit`?"), "{}", refusal.message);
        }
    }
}

#[tokio::test]
async fn a_task_that_is_not_there_is_not_found() {
    let server = Server::start().await;
    for id in ["task_018bcfe5680070707070707070707070", "task_", "1", "%00", "..%2f"] {
        for (method, suffix) in [
            (Method::GET, ""),
            (Method::DELETE, ""),
            (Method::POST, "/cancel"),
            (Method::GET, "/events"),
            (Method::GET, "/content"),
        ] {
            let request = server.request(method, &format!("{TASKS}/{id}{suffix}"));
            Answer::of(request).await.refused(404, "task_not_found", None);
        }
    }
}

#[tokio::test]
async fn cancelling_is_final_idempotent_and_never_deletes() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    let path = format!("{TASKS}/{}/cancel", task.id);
    for first in [true, false, false] {
        // Without a body, as most clients send it.
        let answer = Answer::of(server.request(Method::POST, &path)).await;
        assert_eq!(answer.status, 200);
        let body: CancelBody = answer.json();
        assert_eq!(body.id, task.id);
        assert_eq!((body.status, body.cancelled), (State::Cancelled, first));
        assert!(!body.deleted);
    }
    let shown = server.task(&task.id).await;
    assert_eq!(shown.error.unwrap().code.name(), "cancelled");
    assert_eq!((shown.queue_position, shown.eta_seconds), (None, None));
}

#[tokio::test]
async fn delete_cancels_what_lives_and_deletes_what_has_ended() {
    let server = Server::start().await;
    let path = format!("{TASKS}/{}", server.submit("a").await.id);
    let done = async |path: &str| -> (bool, bool) {
        let answer = server.delete(path).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let body: CancelBody = answer.json();
        (body.cancelled, body.deleted)
    };
    assert_eq!(done(&format!("{path}?only=cancel")).await, (true, false));
    assert_eq!(done(&format!("{path}?only=cancel")).await, (false, false));
    assert_eq!(server.get(&path).await.status, 200);
    assert_eq!(done(&path).await, (false, true));
    server.get(&path).await.refused(404, "task_not_found", None);
    server.delete(&path).await.refused(404, "task_not_found", None);

    let path = format!("{TASKS}/{}", server.submit("b").await.id);
    assert_eq!(done(&path).await, (true, false), "the first call cancels only");
    let answer = server.delete(&format!("{path}?only=files")).await;
    answer.refused(400, "invalid_value", Some("only"));
    server.delete(&format!("{path}?ony=cancel")).await.refused(400, "unknown_field", Some("ony"));
    assert_eq!(done(&path).await, (false, true));
}

#[tokio::test]
async fn a_task_tells_how_it_went() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let progress = serde_json::from_value(json!({"stage": "denoise", "step": 1, "steps": 2}));
    worker.beat(fence, progress.unwrap()).await;
    server.world.clock.advance(std::time::Duration::from_secs(3));

    let running = server.task(&task.id).await;
    assert_eq!((running.status, running.progress), (State::Running, 46));
    assert_eq!(running.stage.unwrap().step, 1);
    assert_eq!(running.started_at, Some(1_800_000_000));
    assert_eq!(running.eta_seconds, Some(4), "3 s were 46 per cent");
    assert_eq!(running.attempts[0].worker, "w");

    let bytes = b"not quite a video";
    worker.finish(fence, &[(video(bytes), bytes)]).await;
    let ended = server.task(&task.id).await;
    assert_eq!((ended.status, ended.progress), (State::Succeeded, 100));
    let result = ended.result.unwrap();
    assert_eq!(result.url, format!("http://{}{TASKS}/{}/content", server.address, task.id));
    assert_eq!(result.bytes, bytes.len() as u64);
    assert!(result.test_pattern);
    assert_eq!(result.thumbnail_url, None);
}

#[tokio::test]
async fn running_times_are_learned() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    for seq in 1..=3 {
        server.submit("a").await;
        let fence = worker.take(seq).await.fence;
        worker.beat(fence, None).await;
        server.world.clock.advance(std::time::Duration::from_secs(40));
        worker.finish(fence, &[(video(b"x"), b"x")]).await;
    }
    assert_eq!(server.submit("a").await.eta_seconds, Some(40));
}

#[tokio::test]
async fn an_address_with_a_query_that_it_does_not_have_is_refused() {
    let server = Server::start().await;
    let task = server.submit("a").await;
    let path = format!("{TASKS}/{}", task.id);
    server.get(&format!("{path}?full=1")).await.refused(400, "unknown_field", Some("full"));
    let body: Value = json!({"prompt": "p"});
    let refused = server.post(&format!("{TASKS}?model=x"), &body).await;
    refused.refused(400, "unknown_field", Some("model"));
    assert_eq!(server.get(&format!("{path}?")).await.status, 200);
}

#[tokio::test]
async fn what_a_proxy_sends_for_not_set_is_not_set() {
    let server = Server::start().await;
    // Every field of new-api's request, as it fills in those that its caller left out.
    let unset = json!({
        "model": "", "prompt": "p", "image": "", "size": "", "duration": 0, "width": 0,
        "height": 0, "fps": 0, "n": 0, "seed": 0, "guidance": 0, "metadata": {},
    });
    let answer = server.post(TASKS, &unset).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let filled: TaskBody = answer.json();
    let silent = json!({"prompt": "p", "seed": 0, "guidance": 0});
    let silent: TaskBody = server.post(TASKS, &silent).await.json();
    assert_eq!(
        (filled.request.seed, filled.request.guidance),
        (0, Some(0.0)),
        "these are asked for"
    );
    assert_eq!(filled.request, silent.request);
    assert_eq!(filled.model, silent.model);
    let sized = json!({"prompt": "p", "size": "640x352", "width": 0, "height": 0});
    let sized: TaskBody = server.post(TASKS, &sized).await.json();
    assert_eq!(sized.request.size, "640x352");
    let fields = [("prompt", "p"), ("n", "0"), ("duration", "0.0"), ("image", "")];
    assert_eq!(server.form(TASKS, &fields, &[]).await.status, 202);
    for (wrong, code, param) in [
        (json!({"prompt": "p", "width": 0, "height": 480}), "missing_field", "width"),
        (json!({"prompt": "", "width": 0}), "invalid_value", "prompt"),
        (json!({"prompt": "p", "steps": 0}), "invalid_value", "steps"),
        (json!({"prompt": "p", "frames": 0}), "invalid_value", "frames"),
        (json!({"prompt": "p", "seconds": 0}), "invalid_value", "seconds"),
        (json!({"prompt": "p", "duration": -1}), "invalid_value", "duration"),
        (json!({"prompt": "p", "webhook": ""}), "invalid_value", "webhook"),
    ] {
        server.post(TASKS, &wrong).await.refused(400, code, Some(param));
    }
}
