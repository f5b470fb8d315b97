//! Webhooks: a task's end is told, signed, until somebody has heard it.

use std::time::Duration;

use rayreel_domain::task::State;
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::Standing;
use rayreel_domain::wire::api::TaskBody;
use rayreel_domain::wire::delivery::{SecretBody, WebhookBody, WebhookEvent};
use rayreel_server::clock::{Clock, SystemClock};
use reqwest::Method;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use super::client::{Answer, Server, TASKS, id, video};
use crate::receiver::{Heard, Receiver};

const SECRET: &str = "/v1/webhooks/secret";
const ALLOW: &[(&str, &str)] = &[("RAYREEL_OUTBOUND__ALLOW", "[\"127.0.0.1\"]")];

/// A server whose duties are at work, and whose receivers may be on this machine.
async fn running() -> Server {
    Server::running(ALLOW).await
}

async fn submit(server: &Server, webhook: &Value) -> TaskBody {
    let body = json!({"prompt": "p", "frames": 5, "steps": 2, "webhook": webhook});
    let answer = server.post(TASKS, &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()
}

/// A task that has been cancelled.
async fn ended(server: &Server, webhook: &str) -> TaskBody {
    let task = submit(server, &json!(webhook)).await;
    let path = format!("{TASKS}/{}/cancel", task.id);
    assert_eq!(server.post(&path, &json!({})).await.status, 200);
    task
}

async fn until(server: &Server, id: &str, done: impl Fn(&WebhookBody) -> bool) -> WebhookBody {
    let reached = async {
        loop {
            let webhook = server.task(id).await.webhook.expect("it has one");
            if done(&webhook) {
                return webhook;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("it gets there")
}

async fn secret(server: &Server) -> SecretBody {
    server.get(SECRET).await.json()
}

/// Verified by a library that is not ours.
fn verify(secret: &SecretBody, heard: &Heard) -> bool {
    let webhook = Webhook::new(&secret.secret).unwrap();
    webhook.verify(&heard.body, &heard.headers).is_ok()
}

#[tokio::test]
async fn a_result_is_told_in_a_signed_event() {
    let server = running().await;
    // The library looks at its own clock.
    server.world.clock.jump(SystemClock::new().wall());
    let receiver = Receiver::answering(&["204 Taken"]).await;
    let url = receiver.url("/hook?a=b");
    let task = submit(&server, &json!({"url": url})).await;
    let waiting = WebhookBody {
        url: url.clone(),
        state: Standing::Waiting,
        attempts: vec![],
        next_attempt_at: None,
    };
    assert_eq!(task.webhook, Some(waiting));
    let worker = server.worker("w").await;
    let assignment = worker.take(1).await;
    assert_eq!(receiver.heard().len(), 0);
    worker.finish(assignment.fence, &[(video(b"mp4"), b"mp4")]).await;

    let heard = receiver.until_heard(1).await.remove(0);
    assert_eq!((&*heard.path, heard.header("content-type")), ("/hook?a=b", "application/json"));
    let secret = secret(&server).await;
    assert!(secret.secret.starts_with("whsec_") && secret.previous.is_empty());
    assert!(verify(&secret, &heard));
    for change in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let mut forged = heard.clone();
        let other = if change == "webhook-timestamp" { "1" } else { "v1,AAAA" };
        forged.headers.insert(change, other.parse().unwrap());
        assert!(!verify(&secret, &forged), "{change}");
    }
    let event: WebhookEvent = serde_json::from_slice(&heard.body).unwrap();
    assert_eq!(event.id, task.id.replace("task_", "evt_"));
    assert_eq!((&*event.id, heard.header("webhook-id")), (heard.header("webhook-id"), &*event.id));
    assert_eq!((&*event.object, &*event.kind), ("event", "video.completed"));
    let told = until(&server, &task.id, |webhook| webhook.state == Standing::Delivered).await;
    assert_eq!((told.attempts.len(), told.next_attempt_at), (1, None));
    assert_eq!((told.attempts[0].status, &told.attempts[0].error), (Some(204), &None));
    // What is told is the task, its URLs included; not how often it had to be told.
    let shown = TaskBody { webhook: None, ..server.task(&task.id).await };
    assert_eq!((event.data.status, Some(event.created_at)), (State::Succeeded, shown.finished_at));
    assert_eq!(event.data, shown);
    let listed: Value = server.get(TASKS).await.json();
    assert_eq!(listed["data"][0]["webhook"]["state"], "delivered");
}

#[tokio::test]
async fn every_other_end_is_a_failure_that_says_which() {
    let server = running().await;
    let receiver = Receiver::answering(&["200 OK"]).await;
    let url = receiver.url("/");
    let cancelled = ended(&server, &url).await;
    let now = server.world.clock.wall().unix_seconds();
    let body = json!({"prompt": "p", "webhook": url, "deadline": now + 5});
    let late: TaskBody = server.post(TASKS, &body).await.json();
    server.world.clock.advance(Duration::from_secs(6));
    server.app.components.feed.timers.notify_one();
    let failed = submit(&server, &json!(url)).await;
    let worker = server.worker("w").await;
    let fence = worker.take(1).await.fence;
    let failure = json!({"code": "engine_refused", "message": "no", "retryable": false});
    let answer = worker.call("fail", json!({"fence": fence, "failure": failure})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());

    let heard = receiver.until_heard(3).await;
    let mut told: Vec<_> = heard
        .iter()
        .map(|heard| serde_json::from_slice::<WebhookEvent>(&heard.body).unwrap())
        .map(|event| {
            let code = event.data.error.unwrap().code.name();
            (event.data.id, event.kind, event.data.status, code)
        })
        .collect();
    told.sort();
    let kind = || "video.failed".to_owned();
    let mut expected = [
        (cancelled.id, kind(), State::Cancelled, "cancelled"),
        (late.id, kind(), State::Expired, "expired"),
        (failed.id, kind(), State::Failed, "engine_refused"),
    ];
    expected.sort();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_receiver_that_fails_is_called_again_when_its_time_has_come() {
    let server = running().await;
    let receiver = Receiver::answering(&[
        "500 Oops",
        "302 Found\r\nlocation: http://127.0.0.1/",
        "429 Slowly\r\nretry-after: 3600",
        "200 OK",
    ])
    .await;
    let task = ended(&server, &receiver.url("/")).await;
    for (tries, wait) in [(1, 4..=6), (2, 24..=36), (3, 3600..=3600)] {
        let told = until(&server, &task.id, |webhook| webhook.attempts.len() == tries).await;
        assert_eq!(told.state, Standing::Pending);
        let due = told.next_attempt_at.unwrap() - server.world.clock.wall().unix_seconds();
        assert!(wait.contains(&due), "{due} s after {tries}");
        server.world.clock.advance(Duration::from_secs(due + 1));
        server.app.components.feed.webhooks.notify_one();
    }
    let told = until(&server, &task.id, |webhook| webhook.state == Standing::Delivered).await;
    let tried: Vec<_> = told.attempts.iter().map(|a| (a.status, a.error.as_deref())).collect();
    let expected = [
        (Some(500), Some("the receiver answered with status 500")),
        (Some(302), Some("the receiver redirected (302); that is not followed")),
        (Some(429), Some("the receiver answered with status 429")),
        (Some(200), None),
    ];
    assert_eq!(tried, expected);
    let heard = receiver.heard();
    assert!(heard.iter().all(|h| h.body == heard[0].body), "it says the same each time");
    assert!(heard.iter().all(|h| h.header("webhook-id") == heard[0].header("webhook-id")));
    assert_ne!(heard[3].header("webhook-timestamp"), heard[0].header("webhook-timestamp"));
}

/// What a receiver needs that remembers ids: the library refuses what is old, and what is sent again
/// meanwhile has the same id, which is signed too.
#[tokio::test]
async fn a_replay_is_told_by_its_time_or_by_its_id() {
    let server = running().await;
    let now = SystemClock::new().wall();
    server.world.clock.jump(now);
    let receiver = Receiver::answering(&["204 Taken"]).await;
    let task = ended(&server, &receiver.url("/")).await;
    let first = receiver.until_heard(1).await.remove(0);
    let secret = secret(&server).await;
    assert!(verify(&secret, &first), "new");
    assert!(verify(&secret, &first), "sent again by whoever has heard it");
    until(&server, &task.id, |webhook| webhook.state == Standing::Delivered).await;
    let path = format!("{TASKS}/{}/webhook/redeliver", task.id);
    assert_eq!(server.post(&path, &json!({})).await.status, 202);
    let again = receiver.until_heard(2).await.remove(1);
    assert_eq!(again.header("webhook-id"), first.header("webhook-id"));
    let mut renamed = first.clone();
    renamed.headers.insert("webhook-id", "evt_1".parse().unwrap());
    assert!(!verify(&secret, &renamed), "nobody gives it another id");
    // Of ten minutes ago, and of ten minutes ahead: rightly signed, and refused.
    for at in [now.0 - 600_000, now.0 + 600_000] {
        let heard = receiver.heard().len();
        server.world.clock.jump(Timestamp(at));
        ended(&server, &receiver.url("/")).await;
        let old = receiver.until_heard(heard + 1).await.remove(heard);
        assert_eq!(old.header("webhook-timestamp"), (at / 1000).to_string());
        assert!(!verify(&secret, &old), "{at}");
        let webhook = Webhook::new(&secret.secret).unwrap();
        let (id, at) = (old.header("webhook-id"), (at / 1000) as i64);
        assert_eq!(old.header("webhook-signature"), webhook.sign(id, at, &old.body).unwrap());
    }
}

#[tokio::test]
async fn one_that_is_gone_is_left_alone_until_it_is_asked_for() {
    let server = running().await;
    let receiver = Receiver::answering(&["410 Gone", "200 OK"]).await;
    let task = ended(&server, &receiver.url("/")).await;
    let told = until(&server, &task.id, |webhook| webhook.state == Standing::Failed).await;
    assert!(told.attempts[0].error.as_ref().unwrap().contains("410"));
    let path = format!("{TASKS}/{}/webhook/redeliver", task.id);
    let answer = server.post(&path, &json!({})).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json::<WebhookBody>().state, Standing::Pending);
    let told = until(&server, &task.id, |webhook| webhook.state == Standing::Delivered).await;
    assert_eq!(told.attempts.len(), 2);
}

#[tokio::test]
async fn only_an_end_with_somebody_to_tell_can_be_told_again() {
    let server = Server::with(ALLOW).await;
    let path = |id: &str| format!("{TASKS}/{id}/webhook/redeliver");
    let silent = server.submit("p").await;
    server.post(&path(&silent.id), &json!({})).await.refused(409, "no_webhook", None);
    let queued = submit(&server, &json!("http://127.0.0.1:1/")).await;
    server.post(&path(&queued.id), &json!({})).await.refused(409, "not_finished", None);
    let other = "task_018bcfe5680070707070707070707070";
    server.post(&path(other), &json!({})).await.refused(404, "task_not_found", None);
}

#[tokio::test]
async fn what_may_not_be_called_is_refused_with_the_submit() {
    let server = Server::start().await;
    for (webhook, param, told) in [
        (json!("http://hooks.example.com/"), "webhook", "without TLS"),
        (json!("https://127.0.0.1/"), "webhook", "is not a public address"),
        (json!({"url": "https://[::ffff:10.0.0.1]/"}), "webhook", "is not a public address"),
        (json!("file:///etc/passwd"), "webhook", "`file:` URLs"),
        (json!("https://a:b@hooks.example.com/"), "webhook", "user name"),
        (json!("https://hooks.example.com/ x"), "webhook", "space"),
        (json!(""), "webhook", "can't be read"),
        (json!(7), "webhook", "a URL, or an object with a `url`"),
    ] {
        let answer = server.post(TASKS, &json!({"prompt": "p", "webhook": webhook})).await;
        let refusal = answer.refused(400, "invalid_value", Some(param));
        assert!(refusal.message.contains(told), "{webhook}: {}", refusal.message);
    }
    let misspelt = json!({"prompt": "p", "webhook": {"uri": "https://a/"}});
    server.post(TASKS, &misspelt).await.refused(400, "unknown_field", Some("webhook.uri"));
    let empty = json!({"prompt": "p", "webhook": {}});
    server.post(TASKS, &empty).await.refused(400, "missing_field", Some("webhook.url"));
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_name_that_leads_inside_is_found_out_when_it_is_called() {
    let server = Server::running(&[]).await;
    let task = ended(&server, "https://localhost/").await;
    let told = until(&server, &task.id, |webhook| !webhook.attempts.is_empty()).await;
    assert_eq!((told.state, told.attempts[0].status), (Standing::Pending, None));
    let error = told.attempts[0].error.as_deref().unwrap();
    assert_eq!(error, "`localhost` does not lead to an address that may be called");
}

#[tokio::test]
async fn a_receiver_that_hangs_keeps_no_other_tenant_waiting() {
    let server = running().await;
    let (slow, quick) = (Receiver::hanging().await, Receiver::answering(&["200 OK"]).await);
    for _ in 0..20 {
        ended(&server, &slow.url("/")).await;
    }
    slow.until_heard(8).await;
    // As another tenant, who comes after all of them.
    let store = &server.app.components.store;
    let task = server.submit("p").await;
    let mut record = (**server.world.get(id(&task)).await.task).clone();
    record.id = server.app.components.random.task_id(server.world.clock.wall());
    record.tenant = "ben".parse().unwrap();
    let base = String::new();
    record.webhook = Some(rayreel_domain::webhook::Webhook { url: quick.url("/"), base });
    let bens = rayreel_domain::Task::new(record);
    store.submit(bens.clone()).await.unwrap();
    store.cancel(&bens.tenant, bens.id).await.unwrap();
    quick.until_heard(1).await;
    assert_eq!(slow.heard().len(), 8, "a bound for each tenant");
    slow.answer(20);
    assert_eq!(slow.until_heard(20).await.len(), 20);
}

#[tokio::test]
async fn what_had_ended_before_a_restart_is_told_after_it() {
    // Nobody delivers here: it might as well have been killed.
    let server = Server::with(ALLOW).await;
    let receiver = Receiver::answering(&["200 OK"]).await;
    let task = ended(&server, &receiver.url("/")).await;
    assert_eq!(server.task(&task.id).await.webhook.unwrap().state, Standing::Pending);
    let server = server.started_anew().await;
    receiver.until_heard(1).await;
    until(&server, &task.id, |webhook| webhook.state == Standing::Delivered).await;
}

#[tokio::test]
async fn a_deleted_task_is_not_told_of() {
    let server = running().await;
    let receiver = Receiver::answering(&["500 Oops"]).await;
    let task = ended(&server, &receiver.url("/")).await;
    until(&server, &task.id, |webhook| webhook.attempts.len() == 1).await;
    assert_eq!(server.delete(&format!("{TASKS}/{}", task.id)).await.status, 200);
    server.world.clock.advance(Duration::from_secs(60));
    let other = Receiver::answering(&["200 OK"]).await;
    ended(&server, &other.url("/")).await;
    other.until_heard(1).await;
    assert_eq!(receiver.heard().len(), 1);
}

#[tokio::test]
async fn a_secret_that_was_replaced_signs_for_a_day() {
    let server = running().await;
    server.world.clock.jump(SystemClock::new().wall());
    let receiver = Receiver::answering(&["200 OK"]).await;
    let old = secret(&server).await;
    assert_eq!(secret(&server).await, old);
    let rotate = format!("{SECRET}/rotate");
    let answer = server.post(&rotate, &json!({})).await;
    assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (200, "no-store"));
    let new: SecretBody = answer.json();
    assert_ne!(new.secret, old.secret);
    let now = server.world.clock.wall().unix_seconds();
    assert_eq!(new.previous[0].expires_at, now + 86_400);
    ended(&server, &receiver.url("/")).await;
    let heard = receiver.until_heard(1).await.remove(0);
    assert!(verify(&old, &heard) && verify(&new, &heard));
    assert_eq!(heard.header("webhook-signature").split(' ').count(), 2);

    server.world.clock.advance(Duration::from_secs(86_400));
    assert_eq!(secret(&server).await.previous, []);
    ended(&server, &receiver.url("/")).await;
    let heard = receiver.until_heard(2).await.remove(1);
    assert_eq!(heard.header("webhook-signature").split(' ').count(), 1);
}

#[tokio::test]
async fn a_secret_is_its_tenants_and_not_for_readers() {
    let server = Server::start().await;
    let key = async |tenant: &str, scopes: Value| {
        let body = json!({"name": "k", "tenant": tenant, "scopes": scopes});
        let request = server.request(Method::POST, "/v1/admin/keys").bearer_auth("client-secret");
        let made: Value = Answer::of(request.json(&body)).await.json();
        made["key"].as_str().unwrap().to_owned()
    };
    let get =
        async |key: &str| Answer::of(server.request(Method::GET, SECRET).bearer_auth(key)).await;
    let anna = key("anna", json!(["submit"])).await;
    let ben = key("ben", json!(["submit", "read"])).await;
    let reader = key("anna", json!(["read"])).await;
    let of = async |key: &str| get(key).await.json::<SecretBody>().secret;
    assert_eq!(of(&anna).await, of(&anna).await);
    assert_ne!(of(&anna).await, of(&ben).await);
    get(&reader).await.refused(403, "scope_missing", None);
    server.get(SECRET).await.refused(401, "unauthorized", None);
}

#[tokio::test]
async fn a_repeated_submit_tells_how_the_telling_stands() {
    let server = running().await;
    let receiver = Receiver::answering(&["200 OK"]).await;
    let submit = async || {
        let body = json!({"prompt": "p", "webhook": receiver.url("/")});
        let request = server.request(Method::POST, TASKS).header("idempotency-key", "k");
        Answer::of(request.json(&body)).await.json::<TaskBody>()
    };
    let task = submit().await;
    assert_eq!(server.post(&format!("{TASKS}/{}/cancel", task.id), &json!({})).await.status, 200);
    until(&server, &task.id, |webhook| webhook.state == Standing::Delivered).await;
    assert_eq!(submit().await.webhook.unwrap().state, Standing::Delivered);
}
