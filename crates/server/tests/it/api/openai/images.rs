//! `/v1/images/generations`: the caller waits for the image.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rayreel_domain::task::{Output, State};
use rayreel_domain::wire::api::{TaskBody, TaskList};
use rayreel_domain::wire::engine::{Format, Role};
use rayreel_domain::wire::openai::ImagesBody;
use rayreel_domain::wire::worker::Assignment;
use reqwest::Method;
use serde_json::{Value, json};

use super::super::client::{Answer, Server, TASKS, Worker, output};
use super::{STILL, fail, next};

const IMAGES: &str = "/v1/images/generations";

async fn deliver(worker: &Worker<'_>, assignment: &Assignment, bytes: &[u8]) {
    worker.finish(assignment.fence, &[(output(0, Role::Image, bytes), bytes)]).await;
}

/// Asks for images while a worker makes them, and hands each task's request to `see`.
async fn made(server: &Server, body: Value, n: u64, mut see: impl FnMut(&Assignment)) -> Answer {
    let worker = server.worker("w").await;
    let work = async {
        for seq in 1..=n {
            let assignment = next(&worker, seq).await;
            see(&assignment);
            deliver(&worker, &assignment, format!("image {seq}").as_bytes()).await;
        }
    };
    let (answer, ()) = tokio::join!(server.post(IMAGES, &body), work);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

async fn tasks(server: &Server) -> Vec<TaskBody> {
    server.get(TASKS).await.json::<TaskList>().data
}

/// Waits until the tasks are in these states, newest first.
async fn until_states(server: &Server, states: &[State]) {
    let reached = async {
        while tasks(server).await.iter().map(|task| task.status).collect::<Vec<_>>() != states {}
    };
    let limit = std::time::Duration::from_secs(20);
    tokio::time::timeout(limit, reached).await.unwrap_or_else(|_| panic!("not {states:?}"));
}

#[tokio::test]
async fn the_answer_is_the_image() {
    let server = Server::start().await;
    let answer = made(&server, json!({"prompt": "a fox"}), 1, |task| {
        let request = &task.request;
        assert_eq!((request.format, request.frames), (Format::Png, 1));
        assert_eq!(request.size.to_string(), "1024x1024");
    })
    .await;
    let images: ImagesBody = answer.json();
    assert_eq!((images.created, &*images.size), (1_800_000_000, "1024x1024"));
    assert_eq!(images.data.len(), 1);
    assert_eq!(images.data[0].b64_json, Some(STANDARD.encode("image 1")));
    assert_eq!(images.data[0].url, None);
    let plain: Value = answer.json();
    assert_eq!(plain["output_format"], "png");
    assert_eq!(server.metric("rayreel_artifacts_served_bytes_total").await, Some(7.0));
}

#[tokio::test]
async fn an_image_is_of_the_format_that_is_asked_for() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let formats = [("png", Format::Png), ("jpeg", Format::Jpeg), ("webp", Format::Webp)];
    for (seq, (name, format)) in (1..).zip(formats) {
        let body = json!({"prompt": "p", "output_format": name, "response_format": "url"});
        let work = async {
            let assignment = next(&worker, seq).await;
            assert_eq!((assignment.request.format, assignment.request.frames), (format, 1));
            let media_type = format.media_type().to_owned();
            let made = Output { media_type, ..output(0, Role::Image, b"image") };
            worker.finish(assignment.fence, &[(made, b"image")]).await;
        };
        let (answer, ()) = tokio::join!(server.post(IMAGES, &body), work);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let images: Value = answer.json();
        assert_eq!(images["output_format"], name);
        let url = images["data"][0]["url"].as_str().unwrap();
        let path = url.strip_prefix(&format!("http://{}", server.address)).expect("absolute");
        let content = server.get(path).await;
        assert_eq!(content.header("content-type"), format.media_type());
        let ending = format!(".{}\"", format.extension());
        assert!(content.header("content-disposition").ends_with(&ending));
    }
    let refusal = server.post(IMAGES, &json!({"prompt": "p", "output_format": "gif"})).await;
    let refusal = refusal.refused(400, "invalid_value", Some("output_format"));
    assert!(refusal.message.contains("`png`, `jpeg`, `webp`"), "{}", refusal.message);
}

#[tokio::test]
async fn options_are_those_of_a_still() {
    let server = Server::start().await;
    let body = json!({
        "prompt": "a fox", "model": "testcard", "size": "512x256", "n": 2, "seed": 7,
        "negative_prompt": "rain", "num_inference_steps": 5, "guidance_scale": 4.5,
        "output_format": "png", "response_format": "url",
        "user": "me", "quality": "hd", "style": "vivid", "background": "auto", "moderation": "low",
    });
    let mut seeds = Vec::new();
    let answer = made(&server, body, 2, |task| {
        let request = &task.request;
        assert_eq!((request.steps, request.guidance), (5, Some(4.5)));
        assert_eq!((&*request.negative_prompt, &*request.size.to_string()), ("rain", "512x256"));
        seeds.push(request.seed);
    })
    .await;
    assert_eq!(seeds, [7, 8]);
    let images: ImagesBody = answer.json();
    for (index, image) in images.data.iter().enumerate() {
        assert_eq!(image.b64_json, None);
        let url = image.url.as_deref().unwrap();
        let path = url.strip_prefix(&format!("http://{}", server.address)).expect("absolute");
        assert!(path.contains("signature="), "it needs no key: {path}");
        let content = server.get(path).await;
        assert_eq!(content.header("content-type"), "image/png");
        assert_eq!(content.text(), format!("image {}", index + 1));
    }
}

#[tokio::test]
async fn auto_is_the_default_size() {
    let server = Server::start().await;
    made(
        &server,
        json!({"prompt": "p", "size": "auto", "response_format": "b64_json"}),
        1,
        |task| {
            assert_eq!(task.request.size.to_string(), "1024x1024");
        },
    )
    .await;
}

#[tokio::test]
async fn what_can_not_be_meant_is_refused_before_anything_is_queued() {
    let server = Server::start().await;
    for (body, code, param) in [
        (json!({}), "missing_field", "prompt"),
        (json!({"prompt": "p", "size": "large"}), "invalid_value", "size"),
        (json!({"prompt": "p", "n": 0}), "invalid_value", "n"),
        (json!({"prompt": "p", "n": 9}), "invalid_value", "n"),
        (json!({"prompt": "p", "response_format": "b64"}), "invalid_value", "response_format"),
        (json!({"prompt": "p", "output_format": "gif"}), "invalid_value", "output_format"),
        (json!({"prompt": "p", "num_inference_steps": 0}), "invalid_value", "num_inference_steps"),
        (json!({"prompt": "p", "model": "dall-e-3"}), "unknown_model", "model"),
        (json!({"prompt": "p", "stream": true}), "unknown_field", "stream"),
        (json!({"prompt": "p", "partial_images": 2}), "unknown_field", "partial_images"),
        (json!({"prompt": "p", "seconds": "4"}), "unknown_field", "seconds"),
    ] {
        server.post(IMAGES, &body).await.refused(400, code, Some(param));
    }
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn past_the_limit_the_tasks_are_cancelled() {
    let server = Server::with(&[("RAYREEL_MAX_WAIT_SECONDS", "0.05")]).await;
    let answer = server.post(IMAGES, &json!({"prompt": "p", "n": 2})).await;
    let refusal = answer.refused(504, "wait_exceeded", None);
    assert_eq!(answer.header("x-should-retry"), "false");
    let tasks = tasks(&server).await;
    assert_eq!(tasks.len(), 2);
    for task in tasks {
        assert!(refusal.message.contains(&task.id), "{}", refusal.message);
        assert_eq!(task.status, State::Cancelled, "already, when the answer comes");
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let body = json!({"prompt": "p", "n": 2});
    let call = server.request(Method::POST, IMAGES).json(&body).send();
    let call = tokio::spawn(call);
    let fence = next(&worker, 1).await.fence;
    worker.beat(fence, None).await;
    until_states(&server, &[State::Queued, State::Running]).await;
    call.abort();
    until_states(&server, &[State::Cancelled, State::Cancelled]).await;
    let late = worker.commit(fence, &[output(0, Role::Image, STILL)]).await;
    late.refused(409, "stale_lease", None);
}

#[tokio::test]
async fn a_server_that_stops_cancels_what_nobody_will_hear_of() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let stop = async {
        next(&worker, 1).await;
        server.shutdown.cancel();
    };
    let body = json!({"prompt": "p"});
    let (answer, ()) = tokio::join!(server.post(IMAGES, &body), stop);
    let refusal = answer.refused(504, "wait_exceeded", None);
    assert!(refusal.message.contains("about to stop"), "{}", refusal.message);
    let id = refusal.message.split(' ').find(|word| word.starts_with("task_")).unwrap();
    assert_eq!(server.world.get(id.parse().unwrap()).await.task.state, State::Cancelled);
}

#[tokio::test]
async fn an_image_that_fails_is_a_refusal_with_its_code() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let body = json!({"prompt": "p", "n": 2});
    let work = async {
        let first = next(&worker, 1).await;
        fail(&worker, first.fence, "engine_refused", "no foxes").await;
        let second = next(&worker, 2).await;
        deliver(&worker, &second, STILL).await;
    };
    let (answer, ()) = tokio::join!(server.post(IMAGES, &body), work);
    let refusal = answer.refused(422, "engine_refused", None);
    assert!(refusal.message.contains("no foxes"), "{}", refusal.message);

    let body = json!({"prompt": "p"});
    let cancel = async {
        let fence = next(&worker, 3).await.fence;
        let path = format!("{TASKS}/{}/cancel", fence.task);
        assert_eq!(server.post(&path, &json!({})).await.status, 200);
    };
    let (answer, ()) = tokio::join!(server.post(IMAGES, &body), cancel);
    answer.refused(422, "cancelled", None);
}

/// Asks under the key `k`.
async fn keyed(server: &Server, body: &Value) -> Answer {
    let request = server.request(Method::POST, IMAGES).header("idempotency-key", "k");
    Answer::of(request.json(body)).await
}

#[tokio::test]
async fn a_repetition_is_answered_with_the_same_images() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let body = json!({"prompt": "p", "n": 2});
    let work = async {
        for seq in 1..=2 {
            let assignment = next(&worker, seq).await;
            deliver(&worker, &assignment, format!("image {seq}").as_bytes()).await;
        }
    };
    // Two at once, and one later.
    let (first, second, ()) = tokio::join!(keyed(&server, &body), keyed(&server, &body), work);
    let third = keyed(&server, &body).await;
    let images = first.json::<ImagesBody>().data;
    assert_eq!(images[0].b64_json, Some(STANDARD.encode("image 1")));
    for answer in [second, third] {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json::<ImagesBody>().data, images);
    }
    let made = tasks(&server).await;
    assert_eq!(made.len(), 2);
    let other = keyed(&server, &json!({"prompt": "q", "n": 2})).await;
    other.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
    // The same words mean something else on another route.
    let video = server.request(Method::POST, TASKS).header("idempotency-key", "k").json(&body);
    Answer::of(video).await.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
    for task in made {
        server.delete(&format!("{TASKS}/{}", task.id)).await;
        keyed(&server, &body).await.refused(409, "task_deleted", Some("Idempotency-Key"));
    }
}

#[tokio::test]
async fn what_was_taken_back_is_made_anew_under_its_key() {
    let server = Server::with(&[("RAYREEL_MAX_WAIT_SECONDS", "2")]).await;
    let body = json!({"prompt": "p"});
    keyed(&server, &body).await.refused(504, "wait_exceeded", None);
    until_states(&server, &[State::Cancelled]).await;
    let worker = server.worker("w").await;
    let work = async { deliver(&worker, &next(&worker, 1).await, b"image").await };
    let (answer, ()) = tokio::join!(keyed(&server, &body), work);
    assert_eq!(answer.status, 200, "{}", answer.text());
    until_states(&server, &[State::Succeeded, State::Cancelled]).await;
}

#[tokio::test]
async fn a_repetition_outlives_the_first_caller() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let body = json!({"prompt": "p"});
    let call = server.request(Method::POST, IMAGES).header("idempotency-key", "k").json(&body);
    let call = tokio::spawn(call.send());
    let fence = next(&worker, 1).await.fence;
    worker.beat(fence, None).await;
    let work = async {
        call.abort();
        until_states(&server, &[State::Queued, State::Cancelled]).await;
        deliver(&worker, &next(&worker, 2).await, b"image").await;
    };
    let (answer, ()) = tokio::join!(keyed(&server, &body), work);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json::<ImagesBody>().data[0].b64_json, Some(STANDARD.encode("image")));
}

#[tokio::test]
async fn an_image_that_was_cancelled_or_failed_stays_so_under_its_key() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let body = json!({"prompt": "p"});
    let cancel = async {
        let fence = next(&worker, 1).await.fence;
        server.post(&format!("{TASKS}/{}/cancel", fence.task), &json!({})).await;
    };
    let (answer, ()) = tokio::join!(keyed(&server, &body), cancel);
    answer.refused(422, "cancelled", None);
    keyed(&server, &body).await.refused(422, "cancelled", None);
    assert_eq!(tasks(&server).await.len(), 1);
}
