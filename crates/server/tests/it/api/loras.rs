//! LoRAs and the second guidance scale: from the request to what the worker is told.

use rayreel_domain::wire::api::TaskBody;
use rayreel_domain::wire::engine::{Lora, LoraFiles};
use rayreel_domain::wire::models::ModelList;
use rayreel_domain::wire::openai::VideoBody;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS, video};

const VIDEOS: &str = "/v1/videos";

/// The test card with two LoRAs, and a model that has none.
async fn server() -> Server {
    Server::with(&[
        (
            "RAYREEL_MODELS__TESTCARD__LORAS",
            r#"{ anime = "/l/a.safetensors", film = { high = "/l/h", low = "/l/l" } }"#,
        ),
        ("RAYREEL_MODELS__PLAIN__COMMAND", r#"["engine"]"#),
        ("RAYREEL_DEFAULT_MODEL", "testcard"),
    ])
    .await
}

fn loras() -> Value {
    json!([{"name": "film", "scale": 0.5}, {"name": "anime"}])
}

fn meant() -> Vec<Lora> {
    [("film", 0.5), ("anime", 1.0)].map(|(name, scale)| Lora { name: name.into(), scale }).into()
}

#[tokio::test]
async fn a_model_lists_its_loras_by_their_names() {
    let server = server().await;
    let list: ModelList = server.get("/v1/models").await.json();
    let of = |id: &str| list.data.iter().find(|model| model.id == id).unwrap().loras.clone();
    assert_eq!(of("testcard"), ["anime", "film"], "and nothing of where they lie");
    assert_eq!(of("plain"), [""; 0]);
}

#[tokio::test]
async fn in_every_shape_the_worker_is_told_what_is_asked_for() {
    let server = server().await;
    let worker = server.worker("w").await;
    let text = loras().to_string();
    let native = [("prompt", "p"), ("guidance", "4"), ("guidance_2", "3.5"), ("loras", &text)];
    let openai =
        [("prompt", "p"), ("guidance_scale", "4"), ("guidance_scale_2", "3.5"), ("loras", &text)];
    let json = json!({"prompt": "p", "guidance": 4, "guidance_2": 3.5, "loras": loras()});
    let json_openai = json!({
        "prompt": "p", "guidance_scale": 4, "guidance_scale_2": 3.5, "loras": loras(),
    });
    let answers = [
        server.post(TASKS, &json).await,
        server.form(TASKS, &native, &[]).await,
        server.post(VIDEOS, &json_openai).await,
        server.form(VIDEOS, &openai, &[]).await,
    ];
    for (seq, answer) in (1..).zip(answers) {
        assert!(answer.status.is_success(), "{}", answer.text());
        let id = answer.json::<Value>()["id"].as_str().unwrap().to_owned();
        let shown = server.task(&id).await.request;
        assert_eq!((shown.guidance_2, &shown.loras), (Some(3.5), &meant()));
        let assignment = worker.take(seq).await;
        assert_eq!(assignment.fence.task.to_string(), id);
        let request = assignment.request;
        assert_eq!((request.guidance, request.guidance_2), (Some(4.0), Some(3.5)));
        assert_eq!(request.loras, meant());
        let files: Vec<&LoraFiles> = assignment.model.loras.values().collect();
        assert!(matches!(files[..], [LoraFiles::Whole { .. }, LoraFiles::Experts { .. }]));
        worker.finish(assignment.fence, &[(video(b"v"), b"v")]).await;
    }
}

#[tokio::test]
async fn a_remix_keeps_them() {
    let server = server().await;
    let worker = server.worker("w").await;
    let asked = json!({"prompt": "p", "loras": loras(), "guidance_2": 2});
    let made: TaskBody = server.post(TASKS, &asked).await.json();
    worker.finish(worker.take(1).await.fence, &[(video(b"v"), b"v")]).await;
    let remix = server.post(&format!("{VIDEOS}/{}/remix", made.id), &json!({"prompt": "q"})).await;
    assert_eq!(remix.status, 200, "{}", remix.text());
    let remixed = server.task(&remix.json::<VideoBody>().id).await.request;
    assert_eq!((remixed.guidance_2, remixed.loras), (Some(2.0), meant()));
}

#[tokio::test]
async fn what_is_not_asked_for_is_not_shown() {
    let server = server().await;
    let answer = server.post(TASKS, &json!({"prompt": "p", "loras": []})).await;
    let request = answer.json::<Value>()["request"].clone();
    assert!(request["loras"].is_null() && request["guidance_2"].is_null(), "{request}");
}

#[tokio::test]
async fn what_is_wrong_is_named_to_the_entry() {
    let server = server().await;
    for (loras, code, param, told) in [
        (
            json!([{"name": "anime"}, {"name": "anim"}]),
            "invalid_value",
            "loras[1].name",
            "the model `testcard` has no LoRA `anim`; there are: anime, film",
        ),
        (json!([{"scale": 1}]), "missing_field", "loras[0].name", "`loras[0].name` is required"),
        (
            json!([{"name": "anime", "scale": "1"}]),
            "invalid_value",
            "loras[0].scale",
            "`loras[0].scale` must be a number from -4 to 4, not a string",
        ),
        (
            json!([{"name": "anime", "weight": 1}]),
            "unknown_field",
            "loras[0].weight",
            "there is no field `weight`; there are `name`, `scale`",
        ),
        (json!({"name": "anime"}), "invalid_value", "loras", "`loras` must be an array"),
        (json!(["anime"]), "invalid_value", "loras[0]", "`loras[0]` must be an object"),
    ] {
        for path in [TASKS, VIDEOS, "/v1/images/generations"] {
            let answer = server.post(path, &json!({"prompt": "p", "loras": loras})).await;
            let refusal = answer.refused(400, code, Some(param));
            assert!(refusal.message.contains(told), "{path}: {}", refusal.message);
        }
    }
    let plain = json!({"prompt": "p", "model": "plain", "loras": [{"name": "anime"}]});
    let refusal = server.post(TASKS, &plain).await;
    let refusal = refusal.refused(400, "invalid_value", Some("loras[0].name"));
    assert!(refusal.message.ends_with("it has none"), "{}", refusal.message);
    let refusal = server.post(VIDEOS, &json!({"prompt": "p", "guidance_scale_2": 101})).await;
    let refusal = refusal.refused(400, "invalid_value", Some("guidance_scale_2"));
    let told = "`guidance_scale_2` must be a number from 0 to 100, not 101";
    assert_eq!(refusal.message, told);
}

#[tokio::test]
async fn they_are_a_part_of_what_a_key_stands_for() {
    let server = server().await;
    let submit = async |body: Value| {
        let request = server.request(Method::POST, TASKS).header("idempotency-key", "k");
        Answer::of(request.json(&body)).await
    };
    let first = submit(json!({"prompt": "p", "loras": [{"name": "anime"}]})).await;
    assert_eq!(first.status, 202, "{}", first.text());
    // The scale that is meant may be left out.
    let again = submit(json!({"prompt": "p", "loras": [{"name": "anime", "scale": 1}]})).await;
    assert_eq!(again.json::<TaskBody>().id, first.json::<TaskBody>().id);
    for other in [
        json!({"prompt": "p"}),
        json!({"prompt": "p", "loras": [{"name": "anime", "scale": 0.5}]}),
        json!({"prompt": "p", "loras": [{"name": "anime"}], "guidance_2": 1}),
    ] {
        submit(other).await.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
    }
}
