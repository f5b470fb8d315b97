//! stable-diffusion.cpp's `sd-server`: `POST /sdcpp/v1/vid_gen`, `/img_gen`, `GET …/jobs/{id}`.
//!
//! From its sources (`examples/server/api.md`, `async_jobs.cpp`, as of the snapshot in
//! stable-diffusion-cpp-python 0.4.7): the result comes as base64 with the state of the job; a video
//! is WebM, animated WebP or an AVI of JPEG frames, never MP4; only a job that waits can be
//! cancelled; there is no progress; ended jobs are dropped after 600 s and answered with 410.
//!
//! So a video is asked for as AVI, with JPEG at its best, and made into MP4 here.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rayreel_domain::wire::engine::{EngineRequest, Format};
use serde_json::{Value, json};

use super::{
    Adapter, Answer, Body, Call, Completed, Fault, Method, Picture, State, failed, handle,
    no_loras, odd_state, text, unable,
};
use crate::talk::Failure;

pub(super) struct SdServer;

impl Adapter for SdServer {
    fn health(&self) -> &'static str {
        "/sdcpp/v1/capabilities"
    }

    fn submit(&self, _: &str, wish: &EngineRequest) -> Result<Call, Failure> {
        no_loras("sd-server", wish)?;
        let mut job = json!({
            "prompt": wish.prompt,
            "negative_prompt": wish.negative_prompt,
            "width": wish.width,
            "height": wish.height,
            "seed": wish.seed,
            "sample_params": {"sample_steps": wish.steps},
            "output_compression": 100,
        });
        // Models with one expert look at the first only.
        if let Some(low_noise) = wish.guidance_2.or(wish.guidance) {
            job["sample_params"]["guidance"] = json!({"txt_cfg": low_noise});
        }
        if let Some(high_noise) = wish.guidance {
            job["high_noise_sample_params"] = json!({"guidance": {"txt_cfg": high_noise}});
        }
        if let Some(path) = &wish.image {
            job["init_image"] = Value::String(Picture::read("image", path)?.base64());
        }
        let path = if wish.format == Format::Mp4 {
            if let Some(path) = &wish.last_image {
                job["end_image"] = Value::String(Picture::read("last_image", path)?.base64());
            }
            job["video_frames"] = json!(wish.frames);
            job["fps"] = json!(wish.fps);
            job["output_format"] = json!("avi");
            "/sdcpp/v1/vid_gen"
        } else {
            if wish.last_image.is_some() {
                return Err(unable("sd-server", "takes no last image for a still"));
            }
            job["batch_count"] = json!(1);
            // The prompt, as text inside the picture.
            job["embed_image_metadata"] = json!(false);
            job["output_format"] = json!(wish.format.media_type().strip_prefix("image/"));
            "/sdcpp/v1/img_gen"
        };
        Ok(Call::post(path, Body::Json(job)))
    }

    fn submitted(&self, answer: &Answer) -> Result<String, Fault> {
        handle(&answer.expected()?, "id")
    }

    fn poll(&self, handle: &str) -> Call {
        Call::new(Method::Get, format!("/sdcpp/v1/jobs/{handle}"))
    }

    fn polled(&self, answer: &Answer) -> Result<State, Fault> {
        if matches!(answer.status, 404 | 410) {
            return Ok(State::Unknown);
        }
        let job = answer.expected()?;
        match text(&job, "status")? {
            "queued" | "generating" => Ok(State::Running(None)),
            "completed" => {
                let result = job.get("result").unwrap_or(&Value::Null);
                let encoded = match &result["images"] {
                    Value::Array(images) => images.first().map(|image| &image["b64_json"]),
                    _ => Some(&result["b64_json"]),
                };
                let file = encoded.and_then(Value::as_str).ok_or("has no file");
                let file = file.and_then(|file| {
                    BASE64_STANDARD.decode(file).map_err(|_| "has a file that is no base64")
                });
                let file = file.map_err(|what| {
                    Fault::Failure(Failure::failed(format!("the server's completed job {what}")))
                })?;
                let avi = result["output_format"].as_str() == Some("avi");
                Ok(State::Completed(Completed { file: Some(file), avi }))
            }
            "failed" => {
                let error = job.get("error").unwrap_or(&Value::Null);
                Ok(State::Failed(failed(error["message"].as_str())))
            }
            "cancelled" => Ok(State::Cancelled),
            other => Err(odd_state(other)),
        }
    }

    fn content(&self, _: &str) -> Option<Call> {
        None
    }

    fn cancel(&self, _: &str) -> Option<Call> {
        None
    }

    /// Ended jobs go by themselves.
    fn forget(&self, _: &str) -> Option<Call> {
        None
    }
}
