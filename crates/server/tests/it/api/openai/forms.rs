//! `/v1/videos` as a form, which is what the SDKs send.

use rayreel_domain::wire::openai::VideoBody;
use reqwest::Method;

use super::super::client::{Answer, Server};
use super::super::inputs::given;
use super::super::uploads::{pixels, png};
use super::VIDEOS;

/// A part: what stands behind `form-data; `, and its content.
type Part<'p> = (&'p str, &'p [u8]);

async fn send(server: &Server, parts: &[Part<'_>], key: Option<&str>) -> Answer {
    let mut body = Vec::new();
    for (head, content) in parts {
        body.extend(format!("--xx\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--xx--\r\n");
    let mut request = server.request(Method::POST, VIDEOS);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    let request = request.header("content-type", "multipart/form-data; boundary=xx");
    Answer::of(request.body(body)).await
}

#[tokio::test]
async fn texts_become_what_their_fields_are() {
    let server = Server::start().await;
    let parts: &[Part<'_>] = &[
        ("name=\"prompt\"", b"2"),
        ("name=\"model\"", b"testcard"),
        ("name=\"seconds\"", b"2"),
        ("name=\"size\"", b"640x352"),
        ("name=\"seed\"", b"7"),
        ("name=\"fps\"", b"8"),
        ("name=\"num_inference_steps\"", b"5"),
        ("name=\"guidance_scale\"", b"4.5"),
        ("name=\"priority\"", b"4"),
        ("name=\"metadata[a]\"", b"7"),
        ("name=\"metadata[b c]\"", b"true"),
        ("name=\"user\"", b"me"),
        ("name=\"webhook[url]\"", b"https://hooks.example.com/"),
    ];
    let answer = send(&server, parts, None).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let video: VideoBody = answer.json();
    assert_eq!((&*video.prompt, &*video.seconds, &*video.size), ("2", "2", "640x352"));
    let task = server.task(&video.id).await;
    assert_eq!(task.webhook.unwrap().url, "https://hooks.example.com/");
    let request = task.request;
    assert_eq!((request.seed, request.frames, request.steps, request.priority), (7, 17, 5, 4));
    assert_eq!(request.guidance, Some(4.5));
    let metadata: Vec<_> = request.metadata.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(metadata, [("a", "7"), ("b c", "true")]);
}

#[tokio::test]
async fn a_file_is_the_image_whatever_it_calls_itself() {
    let server = Server::start().await;
    let picture = png();
    let head = "name=\"input_reference\"; filename=\"../fox.bin\"";
    let with_type = format!("{head}\r\nContent-Type: application/octet-stream");
    for (seq, head) in [(1, head), (2, &*with_type)] {
        let answer = send(&server, &[("name=\"prompt\"", b"p"), (head, &picture)], None).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(pixels(&given(&server, seq).await), pixels(&picture));
    }
    for wrong in [&b"no picture"[..], b"", &picture[..picture.len() / 2]] {
        let answer = send(&server, &[("name=\"prompt\"", b"p"), (head, wrong)], None).await;
        answer.refused(400, "invalid_value", Some("input_reference"));
    }
}

#[tokio::test]
async fn a_form_is_refused_in_the_same_words_as_json() {
    let server = Server::start().await;
    for (parts, code, param) in [
        (&[][..], "missing_field", "prompt"),
        (&[("name=\"prompt\"", &b"p"[..]), ("name=\"seed\"", b"seven")], "invalid_value", "seed"),
        (&[("name=\"promt\"", b"p")], "unknown_field", "promt"),
        (
            &[("name=\"prompt\"", b"p"), ("name=\"output_path\"", b"/x")],
            "unknown_field",
            "output_path",
        ),
        (&[("name=\"prompt\"; filename=\"a\"", b"p")], "unknown_field", "prompt"),
        (&[("name=\"prompt\"", b"p"), ("name=\"prompt\"", b"q")], "invalid_request", "prompt"),
        (&[("name=\"prompt\"", b"p"), ("name=\"metadata\"", b"q")], "invalid_value", "metadata"),
        (
            &[("name=\"prompt\"", b"p"), ("name=\"input_reference\"", b"a.png")],
            "invalid_value",
            "input_reference",
        ),
    ] {
        send(&server, parts, None).await.refused(400, code, Some(param));
    }
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_form_has_the_limits_of_every_body() {
    let server = Server::with(&[("RAYREEL_MAX_BODY_BYTES", "65536")]).await;
    let long = vec![b'x'; 65_536];
    let answer = send(&server, &[("name=\"prompt\"", &long)], None).await;
    answer.refused(413, "body_too_large", None);
    let half = server
        .request(Method::POST, VIDEOS)
        .header("content-type", "multipart/form-data; boundary=xx")
        .body("--xx\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\nhalf");
    Answer::of(half).await.refused(400, "invalid_request", None);
    let bare = server.request(Method::POST, VIDEOS).header("content-type", "multipart/form-data");
    Answer::of(bare.body("x")).await.refused(415, "unsupported_media_type", Some("Content-Type"));
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn a_key_stands_for_the_file_too() {
    let server = Server::start().await;
    let (fox, picture) = (b"p".as_slice(), png());
    let head = "name=\"input_reference\"; filename=\"a.png\"";
    let with = [("name=\"prompt\"", fox), (head, &*picture)];
    let first: VideoBody = send(&server, &with, Some("k")).await.json();
    let again: VideoBody = send(&server, &with, Some("k")).await.json();
    assert_eq!(first.id, again.id);
    let without = send(&server, &with[..1], Some("k")).await;
    without.refused(409, "idempotency_mismatch", Some("Idempotency-Key"));
}
