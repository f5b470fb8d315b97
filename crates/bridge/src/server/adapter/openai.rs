//! `POST /v1/videos` and kin, as SGLang and vLLM-Omni speak it.
//!
//! Both take a form and tell states as OpenAI's Videos API did. The differences, from the sources of
//! sglang 0.5.23 (`multimodal_gen/runtime/entrypoints/openai/video_api.py`) and vllm-omni 0.30.0
//! (`entrypoints/openai/api_server.py`, `…/video/generation/helpers.py`):
//!
//! - SGLang tells the per cent of steps done; vLLM-Omni tells 0 until it is 100.
//! - A failed job of vLLM-Omni is an HTTP error, 4xx or 5xx, whose body is the job.
//! - DELETE of a job that runs: SGLang forgets its record and computes on. vLLM-Omni asks its engine
//!   to abort, waits 2 s, ends its own waiting (409 if that lasts longer), and forgets the record, too.
//!   Models that do not look for an abort compute to their end: all but MiniMax H3, the only one that
//!   has `supports_request_cancellation`. Nothing that the server tells afterwards shows it: the job is
//!   unknown, and no longer counted in its metrics.
//! - SGLang answers 400 for the content of a job whose file it has put into cloud storage.
//!
//! Both count the second scale of guidance, `guidance_scale_2`, as that of low noise; vLLM-Omni's own
//! description says high, its pipeline does not.

use rayreel_domain::wire::engine::EngineRequest;

use super::{
    Adapter, Answer, Body, Call, Completed, Fault, Field, Method, Picture, State, failed, handle,
    no_loras, odd_state, only_videos, percent, text, unable,
};
use crate::talk::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sglang,
    VllmOmni,
}

pub(super) struct OpenAi(pub(super) Dialect);

impl Dialect {
    fn name(self) -> &'static str {
        match self {
            Dialect::Sglang => "SGLang",
            Dialect::VllmOmni => "vLLM-Omni",
        }
    }
}

impl Adapter for OpenAi {
    fn health(&self) -> &'static str {
        "/health"
    }

    fn submit(&self, _: &str, wish: &EngineRequest) -> Result<Call, Failure> {
        let server = self.0.name();
        only_videos(server, wish)?;
        no_loras(server, wish)?;
        if wish.last_image.is_some() {
            return Err(unable(server, "takes no last image"));
        }
        let mut fields = Vec::new();
        let mut say = |name, value: String| fields.push(Field::Text { name, value });
        say("prompt", wish.prompt.clone());
        say("size", format!("{}x{}", wish.width, wish.height));
        say("num_frames", wish.frames.to_string());
        say("fps", wish.fps.to_string());
        say("num_inference_steps", wish.steps.to_string());
        say("seed", wish.seed.to_string());
        if !wish.negative_prompt.is_empty() {
            say("negative_prompt", wish.negative_prompt.clone());
        }
        if let Some(guidance) = wish.guidance {
            say("guidance_scale", guidance.to_string());
        }
        if let Some(guidance) = wish.guidance_2 {
            say("guidance_scale_2", guidance.to_string());
        }
        if let Some(path) = &wish.image {
            let picture = Picture::read("image", path)?;
            fields.push(Field::File { name: "input_reference", picture });
        }
        Ok(Call::post("/v1/videos", Body::Form(fields)))
    }

    fn submitted(&self, _: &str, answer: &Answer) -> Result<String, Fault> {
        handle(&answer.expected()?, "id")
    }

    fn poll(&self, handle: &str) -> Call {
        Call::new(Method::Get, format!("/v1/videos/{handle}"))
    }

    fn polled(&self, answer: Answer) -> Result<State, Fault> {
        // vLLM-Omni's failed job first: its status may be any error's, 404 as well.
        let job = match answer.object() {
            Ok(job) if answer.is_success() || job.get("status").is_some() => job,
            _ if answer.status == 404 => return Ok(State::Unknown),
            Err(fault) if answer.is_success() => return Err(fault),
            _ => return Err(answer.fault()),
        };
        match text(&job, "status")? {
            "queued" | "in_progress" => Ok(State::Running(percent(job.get("progress")))),
            "completed" => Ok(State::Completed(Completed::default())),
            "failed" => {
                let error = job.get("error");
                let said = error.and_then(|error| error["message"].as_str());
                let mut failure = failed(said);
                // vLLM-Omni gives the code that its engine's error has as an HTTP status.
                let code = error.and_then(|error| error["code"].as_u64());
                if code.is_some_and(|code| matches!(code, 400 | 413 | 415 | 422)) {
                    failure = Failure::invalid(failure.message);
                }
                Ok(State::Failed(failure))
            }
            "deleted" | "cancelled" => Ok(State::Cancelled),
            other => Err(odd_state(other)),
        }
    }

    fn content(&self, handle: &str) -> Option<Call> {
        Some(Call::new(Method::Get, format!("/v1/videos/{handle}/content")))
    }

    fn cancel(&self, handle: &str) -> Option<Call> {
        (self.0 == Dialect::VllmOmni).then(|| self.delete(handle))
    }

    fn forget(&self, handle: &str) -> Option<Call> {
        Some(self.delete(handle))
    }
}

impl OpenAi {
    fn delete(&self, handle: &str) -> Call {
        Call::new(Method::Delete, format!("/v1/videos/{handle}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn polled(status: u16, body: Value) -> Result<State, Fault> {
        OpenAi(Dialect::VllmOmni).polled(Answer { status, body: body.to_string().into_bytes() })
    }

    #[test]
    fn a_failed_job_is_found_in_an_http_error() {
        let job = json!({"id": "v", "object": "video", "status": "failed",
            "error": {"code": 500, "message": "EngineGenerateError: CUDA error"}});
        let Ok(State::Failed(failure)) = polled(500, job) else { panic!() };
        assert_eq!(
            failure,
            Failure::failed("the server failed to generate: EngineGenerateError: CUDA error")
        );

        let job = json!({"id": "v", "status": "failed",
            "error": {"code": 400, "message": "seconds must be 5"}});
        let Ok(State::Failed(failure)) = polled(400, job) else { panic!() };
        assert_eq!(failure, Failure::invalid("the server failed to generate: seconds must be 5"));

        // The job has failed with 404; it has not vanished.
        let job = json!({"id": "v", "status": "failed", "error": {"code": 404, "message": "LoRA"}});
        assert!(matches!(polled(404, job), Ok(State::Failed(_))));
        assert_eq!(polled(404, json!({"detail": "Video not found"})), Ok(State::Unknown));
    }

    #[test]
    fn memory_that_has_run_out_is_told_apart() {
        let said = "CUDA out of memory. Tried to allocate 2.00 GiB";
        let job = json!({"id": "v", "status": "failed", "error": {"message": said}});
        let Ok(State::Failed(failure)) = polled(200, job) else { panic!() };
        assert_eq!(
            failure,
            Failure::out_of_memory(format!("the server failed to generate: {said}"))
        );
    }

    #[test]
    fn progress_that_makes_no_sense_is_no_progress() {
        let job = |progress| json!({"id": "v", "status": "in_progress", "progress": progress});
        assert_eq!(polled(200, job(json!(25))), Ok(State::Running(Some(25.0))));
        for odd in [json!(250), json!(-1), json!("half"), json!(null)] {
            assert_eq!(polled(200, job(odd)), Ok(State::Running(None)));
        }
    }

    #[test]
    fn odd_answers_are_errors_that_say_what_came() {
        let Err(Fault::Failure(failure)) = polled(200, json!({"status": "exploded"})) else {
            panic!()
        };
        assert!(failure.message.contains("`exploded`"), "{failure:?}");
        let html = Answer { status: 200, body: b"<html>proxy</html>".to_vec() };
        let Err(Fault::Failure(failure)) = OpenAi(Dialect::Sglang).polled(html) else { panic!() };
        assert!(failure.message.contains("<html>proxy</html>"), "{failure:?}");
        assert!(matches!(polled(503, json!({"detail": "warming up"})), Err(Fault::Busy(_))));
    }
}
