//! `/v1/videos` in JSON: create, show, list, download, remix, delete.

use std::time::Duration;

use rayreel_domain::request::Input;
use rayreel_domain::task::{State, Task};
use rayreel_domain::wire::api::{ErrorBody, TaskBody};
use rayreel_domain::wire::openai::{VideoBody, VideoDeleted, VideoList, VideoStatus};
use rayreel_domain::wire::worker::Progress;
use rayreel_server::artifacts::{Key, sha256};
use reqwest::Method;
use serde_json::{Value, json};

use super::super::client::{Answer, Server, TASKS, id, video};
use super::super::inputs::given;
use super::super::keys::{call, make};
use super::super::uploads::{pixels, png, with_image};
use super::{STILL, VIDEO, VIDEOS, create, fail, finished, show};

async fn list(server: &Server, query: &str) -> VideoList {
    let answer = server.get(&format!("{VIDEOS}{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let list: VideoList = answer.json();
    assert_eq!(list.object, "list");
    assert_eq!(list.first_id.as_ref(), list.data.first().map(|video| &video.id));
    assert_eq!(list.last_id.as_ref(), list.data.last().map(|video| &video.id));
    list
}

fn prompts(list: &VideoList) -> Vec<&str> {
    list.data.iter().map(|video| &*video.prompt).collect()
}

#[tokio::test]
async fn a_video_is_a_task_in_other_words() {
    let server = Server::start().await;
    let asked = json!({
        "prompt": "a fox", "model": "testcard", "seconds": "2", "size": "640x352", "seed": 7,
        "negative_prompt": "rain", "num_inference_steps": 5, "guidance_scale": 4.5, "fps": 8,
        "priority": 4, "metadata": {"a": "b"},
    });
    let answer = server.post(VIDEOS, &asked).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let video: VideoBody = answer.json();
    assert!(answer.header("openai-poll-after-ms").parse::<u64>().unwrap() >= 250);
    let expected = VideoBody {
        id: video.id.clone(),
        object: "video".to_owned(),
        model: "testcard".to_owned(),
        status: VideoStatus::Queued,
        progress: 0,
        created_at: 1_800_000_000,
        completed_at: None,
        expires_at: None,
        error: None,
        prompt: "a fox".to_owned(),
        remixed_from_video_id: None,
        seconds: "2".to_owned(),
        size: "640x352".to_owned(),
    };
    assert_eq!(video, expected);
    assert_eq!(show(&server, &video.id).await, video);
    let task = server.task(&video.id).await;
    let request = task.request;
    assert_eq!((request.frames, request.fps, request.steps, request.seed), (17, 8, 5, 7));
    assert_eq!(
        (&*request.negative_prompt, request.guidance, request.priority),
        ("rain", Some(4.5), 4)
    );
    assert_eq!(request.metadata["a"], "b");
}

#[tokio::test]
async fn a_length_is_told_as_it_was_asked_for() {
    let server = Server::start().await;
    for (asked, told) in [
        (json!({"seconds": "4"}), "4"),
        (json!({"seconds": 3}), "3"),
        (json!({"seconds": "2.50"}), "2.50"),
        (json!({"seconds": "04"}), "04"),
        (json!({"seconds": 2.50}), "2.5"),
        (json!({"num_frames": 17, "fps": 8}), "2.13"),
        (json!({}), "3.06"),
    ] {
        let mut body = asked.clone();
        body["prompt"] = json!("p");
        assert_eq!(create(&server, body).await.seconds, told, "{asked}");
    }
    // Whoever asked in another shape has asked the same.
    let native = json!({"prompt": "p", "duration": 2});
    let task: TaskBody = server.post(TASKS, &native).await.json();
    assert_eq!(show(&server, &task.id).await.seconds, "2");
}

#[tokio::test]
async fn only_four_words_tell_where_a_video_is() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let status = async |id: &str| {
        let answer = server.get(&format!("{VIDEOS}/{id}")).await;
        let shown: Value = answer.json();
        let word = shown["status"].as_str().unwrap().to_owned();
        let asked_again = !answer.header("openai-poll-after-ms").is_empty();
        assert_eq!(asked_again, ["queued", "in_progress"].contains(&&*word));
        (
            word,
            shown["progress"].as_u64().unwrap(),
            shown["error"]["code"].as_str().map(str::to_owned),
        )
    };
    let failed = |code: &str| ("failed".to_owned(), 0, Some(code.to_owned()));

    let made = create(&server, json!({"prompt": "p"})).await;
    assert_eq!(status(&made.id).await, ("queued".to_owned(), 0, None));
    let fence = worker.take(1).await.fence;
    let half = Progress { stage: "denoise".to_owned(), step: 10, steps: 20 };
    worker.beat(fence, Some(half)).await;
    assert_eq!(status(&made.id).await, ("in_progress".to_owned(), 46, None));
    worker.finish(fence, &[(video(VIDEO), VIDEO)]).await;
    assert_eq!(status(&made.id).await, ("completed".to_owned(), 100, None));
    assert_eq!(show(&server, &made.id).await.completed_at, Some(1_800_000_000));

    let made = create(&server, json!({"prompt": "p"})).await;
    fail(&worker, worker.take(2).await.fence, "engine_refused", "no foxes").await;
    assert_eq!(status(&made.id).await, failed("engine_refused"));
    let error = show(&server, &made.id).await.error.unwrap();
    assert_eq!(error.message, "no foxes");

    let made = create(&server, json!({"prompt": "p"})).await;
    let cancelled = server.post(&format!("{TASKS}/{}/cancel", made.id), &json!({})).await;
    assert_eq!(cancelled.status, 200);
    assert_eq!(status(&made.id).await, failed("cancelled"));
    assert_eq!(show(&server, &made.id).await.completed_at, None);

    let made = create(&server, json!({"prompt": "p", "deadline": 1_800_000_060})).await;
    server.world.clock.advance(Duration::from_secs(120));
    server.app.components.store.advance().await.unwrap();
    assert_eq!(status(&made.id).await, failed("expired"));
}

#[tokio::test]
async fn what_is_listed_as_ignored_is_ignored_and_all_else_is_refused() {
    let server = Server::start().await;
    for field in ["user", "quality", "style", "background", "moderation"] {
        for value in [json!("auto"), json!(null), json!({"a": 1})] {
            create(&server, json!({"prompt": "p", field: value})).await;
        }
    }
    for (field, near) in [
        ("output_path", ""),
        ("video_path", ""),
        ("characters", ""),
        ("n", ""),
        ("frames", "num_frames"),
        ("steps", "num_inference_steps"),
        ("image", "input_reference"),
    ] {
        let answer = server.post(VIDEOS, &json!({"prompt": "p", field: "x"})).await;
        let refusal = answer.refused(400, "unknown_field", Some(field));
        assert!(refusal.message.contains(near), "{}", refusal.message);
    }
}

#[tokio::test]
async fn a_refusal_speaks_of_the_fields_that_were_sent() {
    let server = Server::start().await;
    for (body, code, param) in [
        (json!({}), "missing_field", "prompt"),
        (json!({"prompt": " "}), "invalid_value", "prompt"),
        (json!({"prompt": "p", "seconds": "soon"}), "invalid_value", "seconds"),
        (json!({"prompt": "p", "seconds": "0"}), "invalid_value", "seconds"),
        (json!({"prompt": "p", "seconds": "4", "num_frames": 5}), "invalid_value", "seconds"),
        (json!({"prompt": "p", "num_frames": 6}), "invalid_value", "num_frames"),
        (json!({"prompt": "p", "num_frames": "many"}), "invalid_value", "num_frames"),
        (json!({"prompt": "p", "num_inference_steps": 0}), "invalid_value", "num_inference_steps"),
        (json!({"prompt": "p", "guidance_scale": -1}), "invalid_value", "guidance_scale"),
        (json!({"prompt": "p", "size": "720p"}), "invalid_value", "size"),
        (json!({"prompt": "p", "seed": -1}), "invalid_value", "seed"),
        (json!({"prompt": "p", "model": "sora-9"}), "unknown_model", "model"),
        (json!({"prompt": "p", "input_reference": {}}), "invalid_value", "input_reference"),
        (
            json!({"prompt": "p", "input_reference": {"image_url": "a", "file_id": "b"}}),
            "invalid_value",
            "input_reference",
        ),
        (
            json!({"prompt": "p", "input_reference": {"image_url": "data:image/png;base64,AA"}}),
            "invalid_value",
            "input_reference",
        ),
        (
            json!({"prompt": "p", "input_reference": {"url": "a"}}),
            "unknown_field",
            "input_reference.url",
        ),
    ] {
        let refusal = server.post(VIDEOS, &body).await.refused(400, code, Some(param));
        let native = ["`frames`", "`steps`", "`guidance`", "`image`"];
        let message = refusal.message;
        assert!(!native.iter().any(|name| message.contains(name)), "{body}: {message}");
    }
    let unknown = server.post(VIDEOS, &json!({"prompt": "p", "model": "sora-9"})).await;
    assert!(unknown.refusal().message.contains("testcard"), "lists those that exist");
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn an_image_may_be_named() {
    let server = Server::start().await;
    let uploaded = server.form("/v1/files", &[], &[("file", "a.png", &png())]).await;
    let file_id = uploaded.json::<Value>()["id"].clone();
    let image_url = with_image()["image"].clone();
    for (seq, reference) in
        (1..).zip([json!({"image_url": image_url}), json!({"file_id": file_id})])
    {
        create(&server, json!({"prompt": "p", "input_reference": reference})).await;
        assert_eq!(pixels(&given(&server, seq).await), pixels(&png()), "{reference}");
    }
}

#[tokio::test]
async fn a_repetition_under_the_same_key_is_the_same_video() {
    let server = Server::start().await;
    let submit = async |body: Value| {
        let request = server.request(Method::POST, VIDEOS).header("idempotency-key", "k");
        Answer::of(request.json(&body)).await
    };
    let first: VideoBody = submit(json!({"prompt": "p", "seconds": "2"})).await.json();
    // What is ignored is no part of it, nor is how a number is written.
    let again: VideoBody = submit(json!({"user": "me", "seconds": 2, "prompt": "p"})).await.json();
    assert_eq!(first, again);
    let other = submit(json!({"prompt": "q"})).await;
    other.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
}

#[tokio::test]
async fn a_list_has_the_videos_of_every_shape_newest_first_and_no_images() {
    let server = Server::start().await;
    assert_eq!(prompts(&list(&server, "").await), Vec::<&str>::new());
    create(&server, json!({"prompt": "a"})).await;
    server.submit("b").await;
    let still = json!({"prompt": "still", "format": "png"});
    let still: TaskBody = server.post(TASKS, &still).await.json();
    server.post("/generate", &json!({"prompt": "c"})).await;
    let all = list(&server, "").await;
    assert_eq!(prompts(&all), ["c", "b", "a"]);
    assert!(!all.has_more);
    assert_eq!(prompts(&list(&server, "?order=asc").await), ["a", "b", "c"]);
    // An image is no video under any of its paths.
    let path = format!("{VIDEOS}/{}", still.id);
    server.get(&path).await.refused(404, "task_not_found", None);
    server.get(&format!("{path}/content")).await.refused(404, "task_not_found", None);
    server.delete(&path).await.refused(404, "task_not_found", None);
    let remix = server.post(&format!("{path}/remix"), &json!({"prompt": "p"})).await;
    remix.refused(404, "task_not_found", None);
    assert_eq!(server.task(&still.id).await.status, State::Queued);
}

#[tokio::test]
async fn pages_follow_one_another_by_the_last_id() {
    let server = Server::start().await;
    for prompt in ["a", "b", "c", "d", "e"] {
        create(&server, json!({"prompt": prompt})).await;
    }
    for (order, pages) in [
        ("desc", [&["e", "d"][..], &["c", "b"], &["a"]]),
        ("asc", [&["a", "b"], &["c", "d"], &["e"]]),
    ] {
        let mut after = String::new();
        for (number, expected) in pages.into_iter().enumerate() {
            let page = list(&server, &format!("?limit=2&order={order}{after}")).await;
            assert_eq!((&*prompts(&page), page.has_more), (expected, number < 2), "{order}");
            after = format!("&after={}", page.last_id.unwrap());
        }
        assert_eq!(list(&server, &format!("?order={order}{after}")).await.last_id, None);
    }
    for after in ["task_018bcfe5680070707070707070707070", "nonsense", ""] {
        let answer = server.get(&format!("{VIDEOS}?after={after}")).await;
        answer.refused(400, "invalid_cursor", Some("after"));
    }
    for (query, param) in [
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?order=newest", "order"),
        ("?limit=1&limit=2", "limit"),
    ] {
        let answer = server.get(&format!("{VIDEOS}{query}")).await;
        answer.refused(400, "invalid_value", Some(param));
    }
    server.get(&format!("{VIDEOS}?before=x")).await.refused(400, "unknown_field", Some("before"));
}

#[tokio::test]
async fn a_list_goes_on_behind_what_was_deleted_on_the_way() {
    let server = Server::start().await;
    for order in ["desc", "asc"] {
        for prompt in ["a", "b", "c", "d", "e"] {
            create(&server, json!({"prompt": prompt})).await;
        }
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = list(&server, &format!("?limit=2&order={order}{after}")).await;
            seen.extend(prompts(&page).into_iter().map(str::to_owned));
            for video in &page.data {
                server.delete(&format!("{VIDEOS}/{}", video.id)).await;
            }
            let Some(last) = page.last_id.filter(|_| page.has_more) else { break };
            after = format!("&after={last}");
        }
        seen.sort_unstable();
        assert_eq!(seen, ["a", "b", "c", "d", "e"], "{order}");
    }
}

#[tokio::test]
async fn a_video_is_downloaded_in_its_variants() {
    let server = Server::start().await;
    let made = finished(&server, json!({"prompt": "p"})).await;
    let path = format!("{VIDEOS}/{}/content", made.id);
    for query in ["", "?variant=video"] {
        let answer = server.get(&format!("{path}{query}")).await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (200, VIDEO));
        assert_eq!(answer.header("content-type"), "video/mp4");
    }
    let still = server.get(&format!("{path}?variant=thumbnail")).await;
    assert_eq!((still.header("content-type"), &*still.body), ("image/png", STILL));
    let part = server.request(Method::GET, &path).header("range", "bytes=0-5");
    let part = Answer::of(part).await;
    assert_eq!((part.status.as_u16(), &*part.body), (206, &b"moving"[..]));
    let head = Answer::of(server.request(Method::HEAD, &path)).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "15"));
    for variant in ["spritesheet", "poster", ""] {
        let answer = server.get(&format!("{path}?variant={variant}")).await;
        let refusal = answer.refused(400, "invalid_value", Some("variant"));
        assert!(refusal.message.contains("`thumbnail`"), "{}", refusal.message);
    }
    let early = create(&server, json!({"prompt": "p"})).await;
    let early = server.get(&format!("{VIDEOS}/{}/content", early.id)).await;
    early.refused(409, "not_finished", None);
}

#[tokio::test]
async fn a_remix_is_the_same_request_with_another_prompt() {
    let server = Server::start().await;
    let image_url = with_image()["image"].clone();
    let source = finished(
        &server,
        json!({
            "prompt": "a fox", "seconds": "2", "size": "640x352", "seed": 7, "fps": 8,
            "num_inference_steps": 5, "negative_prompt": "rain", "metadata": {"a": "b"},
            "input_reference": {"image_url": image_url}, "webhook": "https://1.1.1.1/source",
        }),
    )
    .await;
    let path = format!("{VIDEOS}/{}/remix", source.id);
    let answer = server.post(&path, &json!({"prompt": "a wolf"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let remix: VideoBody = answer.json();
    assert_eq!(remix.remixed_from_video_id.as_deref(), Some(&*source.id));
    assert_eq!((&*remix.prompt, remix.status), ("a wolf", VideoStatus::Queued));
    assert_eq!((&remix.seconds, &remix.size), (&source.seconds, &source.size));
    assert_eq!(show(&server, &remix.id).await, remix);

    let (old, new) = (server.task(&source.id).await, server.task(&remix.id).await);
    let stored = server.world.get(id(&old)).await.task.request.clone();
    let mut again = server.world.get(id(&new)).await.task.request.clone();
    assert_eq!(std::mem::replace(&mut again.prompt, stored.prompt.clone()), "a wolf");
    assert_eq!(again, stored, "the seed and the image too");
    // Its image is kept, though the source goes.
    assert_eq!(server.delete(&format!("{VIDEOS}/{}", source.id)).await.status, 200);
    assert_eq!(pixels(&given(&server, 2).await), pixels(&png()));
}

#[tokio::test]
async fn what_the_first_versions_made_from_an_image_can_be_remixed() {
    let server = Server::start().await;
    let components = &server.app.components;
    let template = server.submit("template").await;
    let mut record = (**server.world.get(id(&template)).await.task).clone();
    assert_eq!(server.delete(&format!("{VIDEOS}/{}", template.id)).await.status, 200);
    record.id = components.random.task_id(components.clock.wall());
    record.history.clear();
    // They kept the image with its task.
    record.request.image = Some(Input {
        place: None,
        sha256: sha256(&png()),
        media_type: "image/png".to_owned(),
        bytes: png().len() as u64,
    });
    let old = Task::new(record);
    components.artifacts.put(&Key::input(&old).unwrap(), png().into()).await.unwrap();
    let old = components.store.submit(old).await.unwrap().task;
    let worker = server.worker("w").await;
    worker.finish(worker.take(1).await.fence, &[(video(VIDEO), VIDEO)]).await;

    let path = format!("{VIDEOS}/{}/remix", old.id);
    let answer = server.post(&path, &json!({"prompt": "q"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(pixels(&given(&server, 2).await), pixels(&png()));
}

#[tokio::test]
async fn a_remix_needs_a_completed_source_and_a_prompt() {
    let server = Server::start().await;
    let queued = create(&server, json!({"prompt": "p"})).await;
    let path = format!("{VIDEOS}/{}/remix", queued.id);
    let early = server.post(&path, &json!({"prompt": "q"})).await;
    early.refused(400, "invalid_value", Some("id"));
    server.post(&format!("{TASKS}/{}/cancel", queued.id), &json!({})).await;
    let never = server.post(&path, &json!({"prompt": "q"})).await;
    assert!(never.refused(400, "invalid_value", Some("id")).message.contains("completed"));

    let source = finished(&server, json!({"prompt": "p"})).await;
    let path = format!("{VIDEOS}/{}/remix", source.id);
    server.post(&path, &json!({})).await.refused(400, "missing_field", Some("prompt"));
    let other = server.post(&path, &json!({"prompt": "q", "seed": 1})).await;
    other.refused(400, "unknown_field", Some("seed"));
    let ignored =
        json!({"prompt": "q", "user": "me", "quality": "hd", "webhook": "https://1.1.1.1/"});
    let remix: VideoBody = server.post(&path, &ignored).await.json();
    let webhook = server.task(&remix.id).await.webhook.unwrap();
    assert_eq!(webhook.url, "https://1.1.1.1/");
    let plain: VideoBody = server.post(&path, &json!({"prompt": "q"})).await.json();
    assert_eq!(server.task(&plain.id).await.webhook, None);
    let none = format!("{VIDEOS}/task_018bcfe5680070707070707070707070/remix");
    server.post(&none, &json!({"prompt": "q"})).await.refused(404, "task_not_found", None);
}

#[tokio::test]
async fn deleting_cancels_what_has_not_ended_and_leaves_nothing() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    let queued = create(&server, json!({"prompt": "queued", "priority": 1})).await;
    let running = create(&server, json!({"prompt": "running", "priority": 5})).await;
    let fence = worker.take(1).await.fence;
    for video in [&queued, &running] {
        let path = format!("{VIDEOS}/{}", video.id);
        let answer = server.delete(&path).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let object = "video.deleted".to_owned();
        let gone = VideoDeleted { id: video.id.clone(), deleted: true, object };
        assert_eq!(answer.json::<VideoDeleted>(), gone);
        server.get(&path).await.refused(404, "task_not_found", None);
        server.get(&format!("{path}/content")).await.refused(404, "task_not_found", None);
        server.delete(&path).await.refused(404, "task_not_found", None);
        let native = server.get(&format!("{TASKS}/{}", video.id)).await;
        native.refused(404, "task_not_found", None);
    }
    assert_eq!(prompts(&list(&server, "").await), Vec::<&str>::new());
    worker.call("beat", json!({"fence": fence})).await;
    let late = worker.commit(fence, &[video(VIDEO)]).await;
    late.refused(409, "stale_lease", None);
    let done = finished(&server, json!({"prompt": "done"})).await;
    assert_eq!(server.delete(&format!("{VIDEOS}/{}", done.id)).await.status, 200);
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn an_image_is_no_place_in_a_list_of_videos() {
    let server = Server::start().await;
    let image = json!({"prompt": "p", "format": "png"});
    let image: TaskBody = server.post(TASKS, &image).await.json();
    let answer = server.get(&format!("{VIDEOS}?after={}", image.id)).await;
    answer.refused(400, "invalid_cursor", Some("after"));
    server.get("/v1/files?after=file_1").await.refused(400, "invalid_cursor", Some("after"));
}

#[tokio::test]
async fn a_length_that_is_none_is_told_what_one_looks_like() {
    let server = Server::start().await;
    let answer = server.post(VIDEOS, &json!({"prompt": "p", "seconds": "4s"})).await;
    let refusal = answer.refused(400, "invalid_value", Some("seconds"));
    assert_eq!(refusal.message, "`seconds` must be a number above 0, such as \"4\"");
}

#[tokio::test]
async fn a_stranger_sees_nothing() {
    let server = Server::start().await;
    let source = finished(&server, json!({"prompt": "mine"})).await;
    let (stranger, _) = make(&server, json!({"name": "s", "tenant": "stranger"})).await;
    let path = format!("{VIDEOS}/{}", source.id);
    for (method, path, body) in [
        (Method::GET, path.clone(), Value::Null),
        (Method::DELETE, path.clone(), Value::Null),
        (Method::GET, format!("{path}/content"), Value::Null),
        (Method::POST, format!("{path}/remix"), json!({"prompt": "q"})),
    ] {
        let answer = call(&server, method, &path, &stranger, &body).await;
        answer.refused(404, "task_not_found", None);
    }
    let after = format!("{VIDEOS}?after={}", source.id);
    for expected in ["has no task yet", "has one"] {
        let answer = call(&server, Method::GET, &after, &stranger, &Value::Null).await;
        answer.refused(400, "invalid_cursor", Some("after"));
        let listed = call(&server, Method::GET, VIDEOS, &stranger, &Value::Null).await;
        let listed: VideoList = listed.json();
        assert_eq!(listed.data.len(), usize::from(expected == "has one"));
        call(&server, Method::POST, VIDEOS, &stranger, &json!({"prompt": "theirs"})).await;
    }
}

#[tokio::test]
async fn refusals_have_the_form_that_openais_clients_read() {
    let server = Server::start().await;
    let answer = server.post(VIDEOS, &json!({"prompt": ""})).await;
    let body: ErrorBody = answer.json();
    assert_eq!(
        (&*body.error.kind, body.error.param.as_deref()),
        ("invalid_request_error", Some("prompt"))
    );
    let put = Answer::of(server.request(Method::PUT, VIDEOS)).await;
    put.refused(405, "method_not_allowed", None);
    let text = server.request(Method::POST, VIDEOS).header("content-type", "text/plain").body("p");
    Answer::of(text).await.refused(415, "unsupported_media_type", Some("Content-Type"));
}
