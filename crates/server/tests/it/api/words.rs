//! Messages are for people: they say what is allowed, in the words of HTTP and JSON.

use reqwest::Method;
use serde_json::json;

use super::client::{Answer, Server, TASKS, TOKEN};

/// Words that only a reader of the source understands.
const INTERNAL: &[&str] = &[
    "u8",
    "u16",
    "u32",
    "u64",
    "usize",
    "i32",
    "i64",
    "f32",
    "f64",
    "bool",
    "struct",
    "enum",
    "unknown variant",
    "untagged",
    "sequence",
    "map",
    "tuple",
    "Option",
    "None",
    "Some(",
    "Err(",
    "Ok(",
    "unit",
    "invalid type",
    "invalid value",
    "floating point",
    "serde",
    "deserial",
    "panicked",
    "::",
    "SubmitBody",
    "DecodeError",
    "InvalidByte",
    "std",
    "elapsed",
    "hyper",
];

fn spoken(message: &str, of: &str) {
    let words: Vec<&str> =
        message.split(|c: char| !(c.is_alphanumeric() || "_:(".contains(c))).collect();
    for internal in INTERNAL {
        let found = if internal.contains(' ') {
            message.contains(internal)
        } else {
            words.iter().any(|word| word == internal || word.contains("::"))
        };
        assert!(!found, "{of}: `{internal}` in: {message}");
    }
}

#[tokio::test]
async fn a_wrong_field_is_told_what_is_allowed() {
    let server = Server::start().await;
    for (field, value, told) in [
        ("frames", json!(5.5), "`frames` must be a whole number from 1 to 321"),
        ("frames", json!(-1), "`frames` must be a whole number from 1 to 321"),
        ("frames", json!(5_000_000_000_u64), "`frames` must be a whole number from 1 to 321"),
        ("frames", json!("5"), "`frames` must be a whole number from 1 to 321"),
        ("frames", json!({}), "not an object"),
        ("frames", json!([5]), "not an array"),
        ("frames", json!(true), "not `true`"),
        ("frames", json!(6), "4n+1"),
        ("steps", json!(0), "`steps` must be a whole number from 1 to 100, not 0"),
        ("steps", json!(1.0), "`steps` must be a whole number from 1 to 100"),
        ("fps", json!("fast"), "`fps` must be a whole number from 1 to 60, not a string"),
        ("seed", json!(-1), "`seed` must be a whole number from 0 to 9007199254740991, not -1"),
        ("seed", json!(u64::MAX), "`seed` must be a whole number from 0 to 9007199254740991"),
        ("guidance", json!("high"), "`guidance` must be a number from 0 to 100, not a string"),
        ("guidance", json!(101), "`guidance` must be a number from 0 to 100, not 101"),
        ("seconds", json!("3"), "`seconds` must be a number above 0"),
        ("seconds", json!(0), "`seconds` must be a number above 0"),
        ("duration", json!("3"), "`duration` must be a number above 0"),
        ("width", json!("640"), "`width` must be a multiple of 2 from 64 to 1920, not a string"),
        ("height", json!(-1), "`height` must be a multiple of 2 from 64 to 1920, not -1"),
        ("n", json!(9), "`n` must be a whole number from 1 to 8, not 9"),
        ("n", json!("two"), "`n` must be a whole number from 1 to 8, not a string"),
        ("priority", json!(6), "`priority` must be a whole number from 1 to 5"),
        ("priority", json!("high"), "`priority` must be a whole number from 1 to 5"),
        ("priority", json!(256), "`priority` must be a whole number from 1 to 5"),
        ("deadline", json!("tomorrow"), "`deadline` must be a Unix time in seconds, in the future"),
        ("deadline", json!(1.5), "`deadline` must be a Unix time in seconds, in the future"),
        ("deadline", json!(1_800_000_000_000_u64), "1800000000000 looks like milliseconds"),
        ("deadline", json!(u64::MAX), "`deadline` is a Unix time in seconds"),
        ("deadline", json!(5), "`deadline` must be a Unix time in seconds, in the future"),
        ("format", json!("avi"), "`format` must be one of `mp4`, `png`, `jpeg`, `webp`, not `avi`"),
        ("format", json!(4), "`format` must be"),
        ("prompt", json!(5), "`prompt` must be a string, not 5"),
        ("prompt", json!(["a"]), "`prompt` must be a string, not an array"),
        ("prompt", json!({"a": 1}), "`prompt` must be a string, not an object"),
        ("model", json!(5), "`model` must be a string"),
        ("size", json!([832, 480]), "`size` must be a string"),
        ("image", json!(5), "`image` must be a string"),
        ("metadata", json!([1]), "`metadata` must be an object of strings, not an array"),
        ("metadata", json!("a"), "`metadata` must be an object of strings, not a string"),
    ] {
        let mut body = json!({"prompt": "p"});
        body[field] = value.clone();
        let answer = server.post(TASKS, &body).await;
        let refusal = answer.refused(400, "invalid_value", Some(field));
        assert!(refusal.message.contains(told), "{value}: {}", refusal.message);
        spoken(&refusal.message, &body.to_string());
    }
    let answer = server.post(TASKS, &json!({"prompt": "p", "metadata": {"a": 1}})).await;
    let refusal = answer.refused(400, "invalid_value", Some("metadata.a"));
    assert!(refusal.message.contains("must be a string, not 1"), "{}", refusal.message);
    assert_eq!(server.count().await, 0);
}

#[tokio::test]
async fn no_refusal_speaks_of_the_insides() {
    let server = Server::start().await;
    let id = server.submit("p").await.id;
    let wide = "[".repeat(1000);
    let nested = format!("{{\"metadata\":{}", "{\"a\":".repeat(1000));
    let bodies: Vec<Vec<u8>> = [
        "", "{", "[", "null", "true", "5", "\"p\"", "nul", "{]", "{\"prompt\":}", "{\"prompt\":\"p\",}",
        "{\"prompt\":\"\u{1}\"}", "{\"prompt\":\"\\ud800\"}", "{\"prompt\":1e999}", "{\"seconds\":1e999}",
        "{prompt:1}", "{\"prompt\":\"p\"}{}", "{\"prompt\":\"p\",\"prompt\":\"q\"}", "{\"a\":1}", "{1:2}",
        "{\"prompt\":\"p\",\"metadata\":{\"a\":\"1\",\"a\":\"2\"}}", "{\"prompt\":\"p\",\"seed\":1e30}",
        "{\"prompt\":\"p\",\"image\":\"data:image/png;base64,@@@@\"}",
        "{\"prompt\":\"p\",\"image\":\"data:image/png;base64,AAA\"}",
        "{\"prompt\":\"p\",\"image\":\"data:image/png;base64,AAAA\"}",
        "{\"prompt\":\"p\",\"image\":\"data:image/png;base64,iVBORw0KGgoAAAANSUhEUg==\"}",
        "{\"prompt\":\"p\",\"image\":\"data:image/jpeg;base64,AAAA\"}",
        "{\"prompt\":\"p\",\"image\":\"data:image/jpeg;base64,/9j/4AAQ\"}",
        "{\"prompt\":\"p\",\"image\":\"data:image/jpeg;base64,/9j/wAARCP//////AwEiAAIRAQMRAf/Z\"}",
        "{\"worker\":5}", "{\"worker\":\"\"}", "{\"worker\":\"w\",\"incarnation\":\"x\"}",
        "{\"worker\":\"w\",\"incarnation\":-1}", "{\"worker\":\"w\",\"incarnation\":1,\"fence\":5}",
        "{\"worker\":\"w\",\"incarnation\":1,\"fence\":[]}", "{\"worker\":\"w\",\"incarnation\":1,\"fence\":{\"task\":5}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"fence\":{\"task\":\"task_1\"}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"fence\":{\"nonce\":\"x\"}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"failure\":{\"code\":\"x\"}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"failure\":{\"code\":5}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"manifest\":{}}", "{\"worker\":\"w\",\"incarnation\":1,\"manifest\":[5]}",
        "{\"worker\":\"w\",\"incarnation\":1,\"manifest\":[{\"role\":\"x\"}]}",
        "{\"worker\":\"w\",\"incarnation\":1,\"seq\":1,\"self_test\":5}",
        "{\"worker\":\"w\",\"incarnation\":1,\"seq\":1,\"self_test\":{}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"seq\":1,\"self_test\":{\"result\":\"x\"}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"seq\":1,\"self_test\":{\"result\":5}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"seq\":1,\"self_test\":{\"result\":\"failed\",\"message\":5}}",
        "{\"worker\":\"w\",\"incarnation\":1,\"progress\":[]}",
        "{\"worker\":\"w\",\"incarnation\":1,\"metrics\":{\"a\":\"b\"}}", "{\"worker\":\"w\",\"pool\":5}",
        &wide, &nested,
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .chain([b"\xff".to_vec(), b"{\"prompt\":\"\xff\"}".to_vec()])
    .collect();
    let calls = [
        "register",
        "deregister",
        "claim",
        "control",
        "beat",
        "fail",
        "release",
        "uploads",
        "commit",
    ];
    let mut routes = vec![TASKS.to_owned(), "/generate".to_owned()];
    routes.extend(calls.iter().map(|call| format!("/v1/worker/{call}")));
    for route in &routes {
        for body in &bodies {
            let request = server.request(Method::POST, route).bearer_auth(TOKEN);
            let request = request.header("content-type", "application/json").body(body.clone());
            let answer = Answer::of(request).await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
            assert_ne!(answer.status, 500, "{route} {shown}");
            spoken(&answer.refusal().message, &format!("{route} {shown}"));
        }
    }
    let upload = format!("/v1/worker/uploads/{id}/1/0123456789abcdef/0");
    let sum = "0".repeat(64);
    for (method, path) in [
        (Method::GET, format!("{TASKS}?limit=x")),
        (Method::GET, format!("{TASKS}?limit=")),
        (Method::GET, format!("{TASKS}?limit=1e3")),
        (Method::GET, format!("{TASKS}?limit=99999999999999999999")),
        (Method::GET, format!("{TASKS}?limit=%ff")),
        (Method::GET, format!("{TASKS}?limit=1&limit=2")),
        (Method::GET, format!("{TASKS}?created_after=-1")),
        (Method::GET, format!("{TASKS}?created_before=now")),
        (Method::GET, format!("{TASKS}?state=5")),
        (Method::GET, format!("{TASKS}?model=%00")),
        (Method::GET, format!("{TASKS}?model=")),
        (Method::GET, format!("{TASKS}?cursor=%f0%9f%98%80")),
        (Method::GET, format!("{TASKS}?%")),
        (Method::GET, format!("{TASKS}?&&=&")),
        (Method::GET, format!("{TASKS}/%ff")),
        (Method::GET, format!("{TASKS}/task_%30")),
        (Method::GET, format!("{TASKS}/{id}%2fevents")),
        (Method::GET, format!("{TASKS}/{id}/content?variant=")),
        (Method::GET, format!("{TASKS}/{id}/content")),
        (Method::DELETE, format!("{TASKS}/{id}?only=")),
        (Method::PUT, upload.clone()),
        (Method::PUT, format!("{upload}?bytes=x")),
        (Method::PUT, format!("{upload}?bytes=1&sha256={sum}")),
        (Method::PUT, format!("/v1/worker/uploads/x/y/z/%ff?bytes=1&sha256={sum}")),
        (Method::GET, "/v1/worker/inputs/x/y/%ff".to_owned()),
    ] {
        let request = server.request(method, &path).bearer_auth(TOKEN);
        let answer = Answer::of(request).await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.status);
        spoken(&answer.refusal().message, &path);
    }
    for (name, value) in [
        ("idempotency-key", &b"a b"[..]),
        ("idempotency-key", b"\xff"),
        ("idempotency-key", b""),
        ("content-type", b"\xff"),
        ("content-type", b";"),
        ("host", b"\xff"),
        ("origin", b"\xff"),
        ("authorization", b"\xff"),
    ] {
        let value = reqwest::header::HeaderValue::from_bytes(value).unwrap();
        for route in &routes[..2] {
            let request = server.request(Method::POST, route).header(name, value.clone());
            let answer = Answer::of(request.body("{}")).await;
            assert!(answer.status.is_client_error(), "{name}");
            spoken(&answer.refusal().message, name);
        }
    }
}
