//! stable-diffusion.cpp's `sd-server`: `POST /sdcpp/v1/vid_gen`, `/img_gen`, `GET …/jobs/{id}`.
//!
//! From its sources (`examples/server/api.md`, `async_jobs.cpp`, as of the snapshot in
//! stable-diffusion-cpp-python 0.4.7): the result comes as base64 with the state of the job; a video
//! is WebM, animated WebP or an AVI of JPEG frames, never MP4; only a job that waits can be
//! cancelled; there is no progress; ended jobs are dropped after 600 s and answered with 410.
//!
//! So a video is asked for as AVI, with JPEG at its best, and made into MP4 here.

use std::ops::Range;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rayreel_domain::wire::engine::{EngineRequest, Format};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Adapter, Answer, Body, Call, Completed, Fault, Method, Picture, State, failed, handle, missing,
    no_loras, odd_state, unable,
};
use crate::talk::Failure;

/// What is said of a job. The file is not copied out of the answer: its base64 has no letter that JSON
/// must escape, and the server escapes no other.
#[derive(Deserialize)]
struct Told<'a> {
    status: Option<String>,
    #[serde(borrow)]
    result: Option<Made<'a>>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Made<'a> {
    #[serde(borrow)]
    b64_json: Option<&'a str>,
    #[serde(borrow)]
    images: Option<Vec<Image<'a>>>,
    output_format: Option<String>,
}

#[derive(Deserialize)]
struct Image<'a> {
    b64_json: &'a str,
}

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

    fn submitted(&self, _: &str, answer: &Answer) -> Result<String, Fault> {
        handle(&answer.expected()?, "id")
    }

    fn poll(&self, handle: &str) -> Call {
        Call::new(Method::Get, format!("/sdcpp/v1/jobs/{handle}"))
    }

    fn polled(&self, answer: Answer) -> Result<State, Fault> {
        if matches!(answer.status, 404 | 410) {
            return Ok(State::Unknown);
        }
        if !answer.is_success() {
            return Err(answer.fault());
        }
        let Told { status, result, error } = answer.read()?;
        match status.as_deref().ok_or_else(|| missing("status"))? {
            "queued" | "generating" => Ok(State::Running(None)),
            "completed" => {
                let (place, avi) = place(result.as_ref(), &answer.body)?;
                let file = decoded_in_place(answer.body, place);
                let file = file.ok_or_else(|| broken("has a file that is no base64"))?;
                Ok(State::Completed(Completed { file: Some(file), avi }))
            }
            "failed" => Ok(State::Failed(failed(error.unwrap_or_default()["message"].as_str()))),
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

/// Where in the answer the file is, as base64, and whether it is an AVI.
fn place(made: Option<&Made<'_>>, body: &[u8]) -> Result<(Range<usize>, bool), Fault> {
    let image = made.and_then(|made| made.images.as_ref()?.first()).map(|image| image.b64_json);
    let file =
        image.or(made.and_then(|made| made.b64_json)).ok_or_else(|| broken("has no file"))?;
    let start = file.as_ptr().addr() - body.as_ptr().addr();
    let avi = made.and_then(|made| made.output_format.as_deref()) == Some("avi");
    Ok((start..start + file.len(), avi))
}

fn broken(what: &str) -> Fault {
    Fault::Failure(Failure::failed(format!("the server's completed job {what}")))
}

/// The file whose base64 is at `range`. It takes the room of the text: a long one is hundreds of MiB.
fn decoded_in_place(mut body: Vec<u8>, range: Range<usize>) -> Option<Vec<u8>> {
    let mut piece = [0; 3 << 10];
    let mut length = 0;
    for start in range.clone().step_by(4 << 10) {
        let end = range.end.min(start + (4 << 10));
        let count = BASE64_STANDARD.decode_slice(&body[start..end], &mut piece).ok()?;
        if end < range.end && count < piece.len() {
            return None;
        }
        // Always behind what is still to be read.
        body[length..length + count].copy_from_slice(&piece[..count]);
        length += count;
    }
    body.truncate(length);
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polled(body: String) -> Result<State, Fault> {
        SdServer.polled(Answer { status: 200, body: body.into_bytes() })
    }

    fn file(body: String) -> Vec<u8> {
        match polled(body) {
            Ok(State::Completed(Completed { file: Some(file), avi: true })) => file,
            other => panic!("{other:?}"),
        }
    }

    fn completed(encoded: &str) -> String {
        format!(
            r#"{{"status": "completed", "result": {{"output_format": "avi", "b64_json": "{encoded}"}}}}"#
        )
    }

    #[test]
    fn a_file_of_any_length_is_decoded_where_it_lies() {
        for length in [0, 1, 2, 3, 3071, 3072, 3073, 6144, 100_001] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
            let encoded = BASE64_STANDARD.encode(&bytes);
            assert!(file(completed(&encoded)) == bytes, "{length}");
        }
    }

    #[test]
    fn what_is_no_base64_is_an_error() {
        let padded_too_early = BASE64_STANDARD.encode([7; 3071]) + "AAAA";
        for encoded in ["A", "%%%%", &padded_too_early] {
            let Err(Fault::Failure(failure)) = polled(completed(encoded)) else { panic!() };
            assert!(failure.message.contains("no base64"), "{failure:?}");
        }
        let Err(Fault::Failure(failure)) = polled(r#"{"status": "completed"}"#.into()) else {
            panic!()
        };
        assert!(failure.message.contains("has no file"), "{failure:?}");
    }
}
