//! Models: what there is, and by which names.

use rayreel_domain::request::Images;
use rayreel_domain::wire::api::{TaskBody, TaskList};
use rayreel_domain::wire::models::{ModelBody, ModelList};
use serde_json::{Value, json};

use super::client::{Server, TASKS};

const MODELS: &str = "/v1/models";

/// The test card under two more names, and a model of our own.
async fn server() -> Server {
    Server::with(&[
        ("RAYREEL_MODELS__TESTCARD__ALIASES", r#"["sora-2", "i2v-A14B"]"#),
        ("RAYREEL_MODELS__REAL__COMMAND", r#"["engine"]"#),
        ("RAYREEL_MODELS__REAL__LIMITS__MAX_FRAMES", "81"),
        ("RAYREEL_MODELS__REAL__DEFAULTS__SIZE", "640x360"),
    ])
    .await
}

#[tokio::test]
async fn the_list_has_openais_shape_and_what_a_client_needs_to_know() {
    let server = server().await;
    let answer = server.get(MODELS).await;
    assert_eq!(answer.status, 200);
    let list: ModelList = answer.json();
    assert_eq!(list.object, "list");
    let [real, card] = list.data.as_slice() else { panic!("{list:?}") };
    assert_eq!((&*real.id, &*real.object, real.default), ("real", "model", true));
    assert_eq!(
        (real.limits.max_frames, real.defaults.size.to_string()),
        (81, "640x360".to_owned())
    );
    assert_eq!((real.aliases.len(), real.test_pattern), (0, false));
    assert_eq!((real.images, card.images), (Images::First, Images::FirstLast));
    assert_eq!((&*card.id, card.default, card.test_pattern), ("testcard", false, true));
    assert_eq!(card.aliases, ["sora-2", "i2v-A14B"]);
    for model in answer.json::<Value>()["data"].as_array().unwrap() {
        assert!(model["created"].is_u64() && model["owned_by"].is_string(), "{model}");
    }
}

#[tokio::test]
async fn a_model_is_shown_by_its_name_or_an_alias() {
    let server = server().await;
    let list: ModelList = server.get(MODELS).await.json();
    for name in ["testcard", "sora-2", "i2v-A14B", "i2v%2DA14B"] {
        let shown: ModelBody = server.get(&format!("{MODELS}/{name}")).await.json();
        assert_eq!(shown, list.data[1], "{name}");
    }
    for name in ["sora", "no%20name", "%ff", "..%2f"] {
        let answer = server.get(&format!("{MODELS}/{name}")).await;
        let refusal = answer.refused(404, "unknown_model", Some("model"));
        let there = "there are: real, testcard (or sora-2, i2v-A14B)";
        assert!(refusal.message.ends_with(there), "{}", refusal.message);
    }
    server.get(&format!("{MODELS}?limit=1")).await.refused(400, "unknown_field", Some("limit"));
}

#[tokio::test]
async fn an_alias_is_the_model_wherever_one_is_named() {
    let server = server().await;
    let body = json!({"prompt": "p", "model": "sora-2"});
    let answer = server.post(TASKS, &body).await;
    assert_eq!(answer.header("x-rayreel-test-pattern"), "true");
    let task: TaskBody = answer.json();
    assert_eq!(task.model, "testcard");
    for name in ["sora-2", "i2v-A14B", "testcard"] {
        let found: TaskList = server.get(&format!("{TASKS}?model={name}")).await.json();
        assert_eq!(found.data.len(), 1, "{name}");
    }
    let found: TaskList = server.get(&format!("{TASKS}?model=real")).await.json();
    assert_eq!(found.data.len(), 0);
    let long = json!({"prompt": "p", "model": "i2v-A14B", "frames": "many"});
    let refusal = server.post(TASKS, &long).await.refused(400, "invalid_value", Some("frames"));
    assert!(
        refusal.message.contains("from 1 to 321"),
        "the limits of that model: {}",
        refusal.message
    );
}

#[tokio::test]
async fn the_refusal_of_an_unknown_model_lists_those_that_there_are() {
    let server = server().await;
    let answer = server.post(TASKS, &json!({"prompt": "p", "model": "sora-3"})).await;
    let refusal = answer.refused(400, "unknown_model", Some("model"));
    assert_eq!(
        refusal.message,
        "there is no model `sora-3`; there are: real, testcard (or sora-2, i2v-A14B)"
    );
}
