//! LightX2V's `POST /v1/tasks/video/` and kin.
//!
//! From its sources of August 2026 (`lightx2v/server/api`, `task_manager.py`): the address ends with a
//! slash, without which the answer is 405; the caller may name the task, once; there is no progress; a
//! full queue is 503, and so is a name that it has heard before; the video stays in the server's cache
//! directory for ever. DELETE marks a running task as cancelled; its GPU computes on, and in the end the
//! task is completed. What is computed tells the state of the queue.
//!
//! A request can't set the scale of guidance nor the frame rate, which are the server's own
//! (`--config_json`): a request that asks for a scale is refused, and the rate of the video is read
//! from its file.

use rayreel_domain::wire::engine::EngineRequest;
use serde_json::{Value, json};

use super::{
    Adapter, Answer, Body, Call, Completed, Fault, Method, Picture, State, failed, handle,
    no_loras, odd_state, only_videos, text, unable,
};
use crate::talk::Failure;

const NAME: &str = "LightX2V";

pub(super) struct LightX2v;

impl Adapter for LightX2v {
    fn health(&self) -> &'static str {
        "/health"
    }

    fn submit(&self, id: &str, wish: &EngineRequest) -> Result<Call, Failure> {
        only_videos(NAME, wish)?;
        no_loras(NAME, wish)?;
        if wish.guidance.is_some() || wish.guidance_2.is_some() {
            let why = "takes no scale of guidance with a request; set it in its configuration file \
                       (`--config_json`), and none for the model";
            return Err(unable(NAME, why));
        }
        if wish.last_image.is_some() {
            // Its JSON takes one, but nothing writes it to a file as is done with the first.
            return Err(unable(NAME, "takes no last image over JSON"));
        }
        let mut task = json!({
            "task_id": id,
            "prompt": wish.prompt,
            "negative_prompt": wish.negative_prompt,
            "infer_steps": wish.steps,
            "seed": wish.seed,
            "target_video_length": wish.frames,
            "target_shape": [wish.height, wish.width],
        });
        if let Some(path) = &wish.image {
            task["image_path"] = Value::String(Picture::read("image", path)?.data_url());
        }
        Ok(Call::post("/v1/tasks/video/", Body::Json(task)))
    }

    fn submitted(&self, id: &str, answer: &Answer) -> Result<String, Fault> {
        let said = if answer.status == 503 { answer.said() } else { None };
        // Nobody else has this name: the answer to an earlier try has been lost.
        if said.is_some_and(|said| said.contains(&format!("{id} already exists"))) {
            return Ok(id.to_owned());
        }
        handle(&answer.expected()?, "task_id")
    }

    fn handle_of(&self, id: &str) -> Option<String> {
        Some(id.to_owned())
    }

    fn poll(&self, handle: &str) -> Call {
        Call::new(Method::Get, format!("/v1/tasks/{handle}/status"))
    }

    fn polled(&self, answer: Answer) -> Result<State, Fault> {
        if answer.status == 404 {
            return Ok(State::Unknown);
        }
        let task = answer.expected()?;
        match text(&task, "status")? {
            "pending" | "processing" => Ok(State::Running(None)),
            "completed" => Ok(State::Completed(Completed::default())),
            "failed" => {
                let said = task.get("error").and_then(Value::as_str);
                let kind = task.get("error_type").and_then(Value::as_str).unwrap_or_default();
                let mut failure = failed(said);
                if kind == "OutOfMemoryError" {
                    failure = Failure::out_of_memory(failure.message);
                }
                Ok(State::Failed(failure))
            }
            "cancelled" => Ok(State::Cancelled),
            other => Err(odd_state(other)),
        }
    }

    fn at_work(&self) -> Option<Call> {
        Some(Call::new(Method::Get, "/v1/tasks/queue/status"))
    }

    fn is_at(&self, handle: &str, answer: &Answer) -> bool {
        let queue = answer.expected().unwrap_or_default();
        queue.get("current_task").and_then(Value::as_str) == Some(handle)
    }

    fn content(&self, handle: &str) -> Option<Call> {
        Some(Call::new(Method::Get, format!("/v1/tasks/{handle}/result")))
    }

    fn cancel(&self, _: &str) -> Option<Call> {
        None
    }

    /// Nothing that has ended can be removed.
    fn forget(&self, _: &str) -> Option<Call> {
        None
    }
}
