//! Examples for the OpenAPI document: of what stands in paths, and of every answer in JSON. Examples
//! of requests stand with their handlers. `e2e/schema` holds all of them against their schemas.

use serde_json::{Value, json};
use utoipa::Modify;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::{OpenApi, RefOr, schema::Schema};

const TASK: &str = "task_018bcfe5680070707070707070707070";
const FILE: &str = "file_018bcfe5680070707070707070707070";

/// Writes them into the document.
pub(super) struct Examples;

impl Modify for Examples {
    fn modify(&self, document: &mut OpenApi) {
        for (path, item) in &mut document.paths.paths {
            let operations = [&mut item.get, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                for parameter in operation.parameters.iter_mut().flatten() {
                    if let RefOr::T(parameter) = parameter
                        && parameter.parameter_in == ParameterIn::Path
                    {
                        let example = in_path(path, &parameter.name).into();
                        let named = ParameterBuilder::from(parameter.clone());
                        *parameter = named.example(Some(example)).build();
                    }
                }
                for (status, response) in &mut operation.responses.responses {
                    if let RefOr::T(response) = response
                        && status.starts_with('2')
                        && let Some(RefOr::T(content)) =
                            response.content.get_mut("application/json")
                    {
                        let schema = content.schema.as_ref().and_then(name);
                        content.example = schema.and_then(answer);
                    }
                }
            }
        }
    }
}

fn in_path(path: &str, parameter: &str) -> &'static str {
    match parameter {
        "name" if path.starts_with("/v1/admin/tenants/") => "default",
        "name" if path.starts_with("/v1/admin/pools/") => "h200",
        "name" if path.starts_with("/v1/admin/workers/") => "gpu-1",
        "name" => "testcard",
        _ if path.starts_with("/v1/admin/keys/") => "k3v9x0q2m7ab",
        _ if path.starts_with("/v1/files/") => FILE,
        _ => TASK,
    }
}

/// The schema that is referred to.
fn name(schema: &RefOr<Schema>) -> Option<&str> {
    match schema {
        RefOr::Ref(reference) => reference.ref_location.rsplit('/').next(),
        RefOr::T(_) => None,
    }
}

/// An answer of this schema.
fn answer(schema: &str) -> Option<Value> {
    Some(match schema {
        "TaskBody" => task(),
        "SubmitAnswer" => queued(),
        "TaskList" => {
            json!({"object": "list", "data": [task()], "next_cursor": null, "has_more": false})
        }
        "CancelBody" => {
            json!({"id": TASK, "status": "CANCELLED", "cancelled": true, "deleted": false})
        }
        "LinkAnswer" => json!({
            "url": format!("https://video.example.com/v1/video/generations/{TASK}/content?expires=1700003600&signature=q1w2e3r4t5y6"),
            "expires_at": 1_700_003_600,
        }),
        "WebhookBody" => webhook(),
        "SecretBody" => json!({
            "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=",
            "created_at": 1_700_000_000,
            "previous": [{"expires_at": 1_700_086_400}],
        }),
        "VideoBody" => video(),
        "VideoList" => json!({
            "object": "list", "data": [video()], "first_id": TASK, "last_id": TASK,
            "has_more": false,
        }),
        "VideoDeleted" => json!({"id": TASK, "deleted": true, "object": "video.deleted"}),
        "ImagesBody" => json!({
            "created": 1_700_000_012,
            "data": [{"b64_json": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mM4YSQHAALeARlA67ihAAAAAElFTkSuQmCC"}],
            "output_format": "png",
            "size": "1024x1024",
        }),
        "KeyBody" => key(),
        "KeyList" => json!({"data": [key()]}),
        "TenantBody" => tenant(),
        "TenantList" => json!({"data": [tenant()]}),
        "WorkerBody" => worker(),
        "WorkerList" => json!({"data": [worker()]}),
        "PoolBody" => pool(),
        "PoolList" => json!({"data": [pool()]}),
        "ModelBody" => model(),
        "ModelList" => json!({"object": "list", "data": [model()]}),
        "FileBody" => file(),
        "FileList" => json!({
            "object": "list", "data": [file()], "first_id": FILE, "last_id": FILE,
            "has_more": false,
        }),
        "FileDeleted" => json!({"id": FILE, "object": "file", "deleted": true}),
        _ => return None,
    })
}

/// A task that has succeeded.
fn task() -> Value {
    let urls = urls();
    let mut task = queued();
    task["status"] = "SUCCEEDED".into();
    task["progress"] = 100.into();
    task["queue_position"] = Value::Null;
    task["eta_seconds"] = Value::Null;
    task["started_at"] = 1_700_000_001.into();
    task["finished_at"] = 1_700_000_042.into();
    task["attempts"] = json!([{
        "attempt": 1, "worker": "gpu-1", "started_at": 1_700_000_001, "ended_at": 1_700_000_042,
        "outcome": "succeeded", "error": null,
        "metrics": {"load_ms": 1_200.0, "generate_ms": 38_000.0},
    }]);
    task["result"] = json!({
        "url": urls["content"],
        "thumbnail_url": format!("{}?variant=thumbnail", urls["content"].as_str().unwrap_or_default()),
        "media_type": "video/mp4",
        "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        "bytes": 1_482_913, "width": 832, "height": 480, "frames": 49, "fps": 16,
        "test_pattern": false,
    });
    task
}

/// What a receiver is told of a task that has succeeded, and of one that was cancelled.
pub(super) fn completed() -> Value {
    event("video.completed", task())
}

pub(super) fn failed() -> Value {
    let mut task = task();
    task["status"] = "CANCELLED".into();
    task["progress"] = 0.into();
    task["result"] = Value::Null;
    task["attempts"][0]["outcome"] = "cancelled".into();
    task["attempts"][0]["metrics"] = json!({});
    task["error"] = json!({"code": "cancelled", "message": "the task was cancelled"});
    event("video.failed", task)
}

fn event(kind: &str, data: Value) -> Value {
    json!({
        "id": TASK.replace("task_", "evt_"), "object": "event", "type": kind,
        "created_at": data["finished_at"], "data": data,
    })
}

/// A task that waits.
fn queued() -> Value {
    json!({
        "id": TASK, "task_id": TASK, "object": "video.generation", "model": "wan2.2-t2v-a14b",
        "status": "QUEUED", "progress": 0, "queue_position": 0, "waiting_reason": null,
        "eta_seconds": 41, "created_at": 1_700_000_000, "started_at": null, "finished_at": null,
        "expires_at": null,
        "request": {
            "prompt": "a red fox running through snow", "size": "832x480", "frames": 49,
            "fps": 16, "steps": 20, "guidance": null, "seed": 42, "format": "mp4", "image": false,
            "priority": 3, "deadline": null, "metadata": {"order": "1234"},
        },
        "attempts": [], "result": null, "error": null, "webhook": null, "urls": urls(),
    })
}

fn urls() -> Value {
    let task = format!("https://video.example.com/v1/video/generations/{TASK}");
    json!({
        "get": task, "cancel": format!("{task}/cancel"), "events": format!("{task}/events"),
        "content": format!("{task}/content"),
    })
}

fn webhook() -> Value {
    json!({
        "url": "https://hooks.example.com/rayreel", "state": "pending", "attempts": [],
        "next_attempt_at": 1_700_000_050,
    })
}

fn video() -> Value {
    json!({
        "id": TASK, "object": "video", "model": "wan2.2-t2v-a14b", "status": "completed",
        "progress": 100, "created_at": 1_700_000_000, "completed_at": 1_700_000_042,
        "expires_at": null, "error": null, "prompt": "a red fox running through snow",
        "remixed_from_video_id": null, "seconds": "3", "size": "832x480",
    })
}

fn key() -> Value {
    json!({
        "id": "k3v9x0q2m7ab", "name": "frontend", "tenant": "default",
        "scopes": ["submit", "read"], "created_at": 1_700_000_000, "expires_at": null,
    })
}

fn tenant() -> Value {
    json!({
        "name": "acme", "configured": true,
        "limits": {
            "weight": 2.0, "tasks_per_minute": 60, "max_queued": 1_000, "max_running": 4,
            "gpu_seconds_per_day": 86_400, "keep_days": 30.0, "max_file_bytes": 1_073_741_824,
        },
        "usage": {
            "queued": 12, "running": 2, "queued_gpu_seconds": 496.5, "gpu_seconds_today": 8_121.25,
            "tasks_last_minute": 3, "file_bytes": 482_113, "keys": 2,
        },
    })
}

fn worker() -> Value {
    json!({
        "name": "gpu-1", "pool": "h200", "state": "draining", "model": "wan2.2-t2v-a14b",
        "task": {"id": TASK, "attempt": 1, "started_at": 1_700_000_001},
        "quarantined": [{"model": "wan2.2-i2v-a14b", "reason": "out of memory"}],
        "last_seen_at": 1_700_000_010, "version": "0.1.0",
        "launch": {"pid": 4711, "created_at": 1_699_999_000},
    })
}

fn pool() -> Value {
    json!({
        "name": "h200", "provider": "local", "min": 0, "max": 4, "target": 2, "drained": true,
        "workers": {
            "live": 2, "starting": 0, "idle": 1, "busy": 1, "draining": 0, "quarantined": 0,
            "silent": 0,
        },
        "queued": 12, "running": 1, "queued_gpu_seconds": 496.5,
        "breaker": {"open": false, "reason": null},
        "waiting_reason": "pool `h200` is drained: its tasks wait until an operator resumes it",
    })
}

fn model() -> Value {
    json!({
        "id": "wan2.2-t2v-a14b", "object": "model", "created": 0, "owned_by": "rayreel",
        "aliases": ["t2v-A14B"], "default": true, "test_pattern": false, "images": "first",
        "limits": {
            "min_side": 64, "max_side": 1280, "max_pixels": 921_600, "multiple": 16,
            "max_frames": 81, "max_fps": 24, "max_steps": 50,
        },
        "defaults": {"size": "832x480", "frames": 49, "fps": 16, "steps": 20},
    })
}

fn file() -> Value {
    json!({
        "id": FILE, "object": "file", "bytes": 482_113, "created_at": 1_700_000_000,
        "expires_at": 1_700_604_800, "filename": "fox.jpg", "purpose": "vision",
        "status": "processed",
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    #[test]
    fn every_request_and_every_answer_in_json_has_an_example() {
        let document: Value = serde_json::from_str(&crate::api::document()).expect("JSON");
        let mut seen = 0;
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let responses = operation["responses"].as_object().expect("responses");
                let answers = responses
                    .iter()
                    .filter(|(status, _)| status.starts_with('2'))
                    .filter_map(|(_, response)| response["content"].get("application/json"));
                let requests = operation["requestBody"]["content"].as_object();
                let requests = requests.into_iter().flat_map(|content| content.values());
                // The document itself has no schema, and is its own example.
                for content in
                    answers.chain(requests).filter(|content| content["schema"].is_object())
                {
                    let given = ["example", "examples"].map(|name| content.get(name));
                    assert!(given.iter().any(Option::is_some), "{method} {path}: {content}");
                    if let Some(example) = given[0] {
                        let schema = &content["schema"];
                        complete(&document, schema, example, &format!("{method} {path}"));
                    }
                    seen += 1;
                }
            }
        }
        assert!(seen > 30, "{seen}");
    }

    /// Fails if an example lacks what its schema requires, at any depth.
    fn complete(document: &Value, schema: &Value, example: &Value, at: &str) {
        let name = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        let schema = name.map_or(schema, |name| &document["components"]["schemas"][name]);
        for item in example.as_array().into_iter().flatten() {
            complete(document, &schema["items"], item, at);
        }
        let Some(fields) = example.as_object() else { return };
        for required in schema["required"].as_array().into_iter().flatten() {
            let required = required.as_str().expect("a name");
            assert!(fields.contains_key(required), "{at}: the example lacks `{required}`");
        }
        for (field, value) in fields {
            complete(document, &schema["properties"][field], value, &format!("{at}, {field}"));
        }
    }
}
