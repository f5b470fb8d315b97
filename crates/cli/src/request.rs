//! From the command line's words to the body of a submit.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rayreel_domain::wire::api::SubmitBody;
use rayreel_domain::wire::engine::Format;
use rayreel_server::home;

use crate::args::Request;
use crate::failure::Failure;

/// An image is read up to this; how much of it is accepted is the server's to say.
const MAX_IMAGE: u64 = 64 << 20;

/// The body for a request; the format is `named` unless one was asked for.
pub(crate) fn body(request: &Request, named: Option<Format>) -> Result<SubmitBody, Failure> {
    Ok(SubmitBody {
        model: request.model.clone(),
        prompt: Some(request.prompt.clone()),
        negative_prompt: request.negative_prompt.clone(),
        image: request.image.as_deref().map(|path| FIRST.read(path)).transpose()?,
        last_image: request.last_image.as_deref().map(|path| LAST.read(path)).transpose()?,
        size: request.size.map(|size| size.to_string()),
        frames: request.frames,
        seconds: request.seconds,
        fps: request.fps,
        steps: request.steps,
        guidance: request.guidance,
        guidance_2: request.guidance_2,
        loras: Some(request.loras.clone()).filter(|loras| !loras.is_empty()),
        seed: request.seed,
        format: request.format.map(Format::from).or(named),
        priority: request.priority,
        ..SubmitBody::default()
    })
}

/// A frame that a picture can be.
struct Frame {
    field: &'static str,
    flag: &'static str,
    name: &'static str,
}

const FIRST: Frame = Frame { field: "image", flag: "--image", name: "first" };
const LAST: Frame = Frame { field: "last_image", flag: "--last-image", name: "last" };

impl Frame {
    /// A picture as a data URI.
    fn read(&self, path: &Path) -> Result<String, Failure> {
        let Self { field, flag, name } = self;
        let fail = |why: &str| {
            let path = path.display();
            Failure::value(field, format!("{path} can't be the {name} frame: {why}"))
                .helped(format!("Give {flag} a PNG, JPEG or WebP file."))
        };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_IMAGE + 1).read_to_end(&mut bytes))
            .map_err(|error| fail(&home::reason(&error)))?;
        if bytes.len() as u64 > MAX_IMAGE {
            return Err(fail("it has more than 64 MB"));
        }
        let media_type = match bytes.as_slice() {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => "image/png",
            [0xff, 0xd8, 0xff, ..] => "image/jpeg",
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
            _ => return Err(fail("it is no PNG, JPEG or WebP file")),
        };
        Ok(format!("data:{media_type};base64,{}", STANDARD.encode(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::args::{Cli, Command};

    fn request(line: &[&str]) -> Request {
        let words = ["rayreel", "submit"].iter().chain(line);
        let Command::Submit(request) = Cli::try_parse_from(words).expect("right").command else {
            panic!("it is a submit")
        };
        request
    }

    #[test]
    fn only_what_was_given_is_sent() {
        let body = body(&request(&["a fox", "--size", "64*64", "--seed", "7"]), None);
        assert_eq!(
            serde_json::to_value(body.expect("right")).expect("plain data"),
            json!({"prompt": "a fox", "size": "64x64", "seed": 7})
        );
        let styled = ["x", "--lora", "anime", "--lora", "studio/film=-0.5", "--guidance-2", "3.5"];
        let body = super::body(&request(&styled), None).expect("right");
        let loras =
            json!([{"name": "anime", "scale": 1.0}, {"name": "studio/film", "scale": -0.5}]);
        assert_eq!(
            serde_json::to_value(body).expect("plain data"),
            json!({"prompt": "x", "guidance_2": 3.5, "loras": loras})
        );
    }

    #[test]
    fn a_format_that_was_asked_for_beats_that_of_the_name() {
        let format = |line: &[&str], named| body(&request(line), named).expect("right").format;
        assert_eq!(format(&["x"], Some(Format::Png)), Some(Format::Png));
        assert_eq!(format(&["x", "--format", "mp4"], Some(Format::Png)), Some(Format::Mp4));
        assert_eq!(format(&["x"], None), None);
    }

    #[test]
    fn an_image_is_sent_inline_if_it_is_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.jpg");
        let word = path.to_str().expect("UTF-8");
        std::fs::write(&path, b"\xff\xd8\xff\xe0").expect("written");
        let sent = body(&request(&["x", "--image", word]), None).expect("right").image;
        assert_eq!(sent.as_deref(), Some("data:image/jpeg;base64,/9j/4A=="));

        std::fs::write(&path, b"RIFF\x04\0\0\0WEBP").expect("written");
        let both = body(&request(&["x", "--image", word, "--last-image", word]), None);
        let last = both.expect("right").last_image;
        assert_eq!(last.as_deref(), Some("data:image/webp;base64,UklGRgQAAABXRUJQ"));

        std::fs::write(&path, b"GIF89a").expect("written");
        let failure = body(&request(&["x", "--image", word]), None).expect_err("wrong");
        assert_eq!(failure.param.as_deref(), Some("image"));
        std::fs::remove_file(&path).expect("removed");
        let failure = body(&request(&["x", "--image", word]), None).expect_err("missing");
        assert_eq!(failure.message, format!("{word} can't be the first frame: it does not exist"));
        let folder = directory.path().to_str().expect("UTF-8");
        let failure = body(&request(&["x", "--image", folder]), None).expect_err("a directory");
        assert_eq!(
            failure.message,
            format!("{folder} can't be the first frame: it is a directory")
        );
    }
}
