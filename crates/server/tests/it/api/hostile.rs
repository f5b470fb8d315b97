//! What nobody should send, and what each of it is answered: nothing is called that must not be,
//! nothing is stored, and no answer tells what is inside.

use std::io::Write;

use rayreel_domain::wire::api::TaskBody;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Answer, Server, TASKS};
use super::inputs;
use super::keys;
use super::uploads::{files, png};
use crate::outbound::{Names, Peer, ok};

/// What must never be seen from outside.
const SECRET: &str = "the-secret-of-the-house";

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

/// URLs that lead where they must not, whatever DNS says.
const URLS: &[(&str, &str)] = &[
    // Addresses of this machine, its network and its cloud, in every spelling.
    ("https://127.0.0.2/", "not a public address"),
    ("https://127.2/", "not a public address"),
    ("https://2130706434/", "not a public address"),
    ("https://0x7f000002/", "not a public address"),
    ("https://0x7f.0.0.2/", "not a public address"),
    ("https://0177.0.0.2/", "not a public address"),
    ("https://017700000002/", "not a public address"),
    ("https://127.0.0.2./", "not a public address"),
    ("https://１２７.0.0.2/", "not a public address"),
    ("https://127。0。0。2/", "not a public address"),
    ("https://%31%32%37.0.0.2/", "not a public address"),
    ("https://0/", "not a public address"),
    ("https://0.0.0.0/", "not a public address"),
    ("https://10.0.0.1/", "not a public address"),
    ("https://172.16.0.1/", "not a public address"),
    ("https://192.168.0.1/", "not a public address"),
    ("https://100.64.0.1/", "not a public address"),
    ("https://169.254.169.254/latest/meta-data/", "not a public address"),
    ("https://2852039166/", "not a public address"),
    ("https://100.100.100.200/", "not a public address"),
    ("https://168.63.129.16/", "not a public address"),
    ("https://192.0.2.1/", "not a public address"),
    ("https://198.18.0.1/", "not a public address"),
    ("https://224.0.0.1/", "not a public address"),
    ("https://255.255.255.255/", "not a public address"),
    ("https://[::]/", "not a public address"),
    ("https://[::1]/", "not a public address"),
    ("https://[::ffff:127.0.0.2]/", "not a public address"),
    ("https://[::ffff:a9fe:a9fe]/", "not a public address"),
    ("https://[::127.0.0.2]/", "not a public address"),
    ("https://[64:ff9b::7f00:2]/", "not a public address"),
    ("https://[2002:7f00:2::]/", "not a public address"),
    ("https://[2001:0:7f00:2::]/", "not a public address"),
    ("https://[fe80::1]/", "not a public address"),
    ("https://[fc00::1]/", "not a public address"),
    ("https://[fd00:ec2::254]/", "not a public address"),
    ("https://[ff02::1]/", "not a public address"),
    ("https://[2001:db8::1]/", "not a public address"),
    ("https://[fe80::1%25eth0]/", "can't be read"),
    // Names that lead inside.
    ("https://localhost/", "does not lead to an address"),
    ("https://LOCALHOST./", "does not lead to an address"),
    ("https://metadata.internal/", "does not lead to an address"),
    ("https://mapped.example/", "does not lead to an address"),
    ("https://mixed.example/", "does not lead to an address"),
    ("https://empty.example/", "does not lead to an address"),
    ("https://nowhere.example/", "does not lead to an address"),
    // What is no plain https URL.
    ("http://1.1.1.1/", "without TLS"),
    ("ftp://1.1.1.1/a.png", "`ftp:` URLs"),
    ("file:///etc/passwd", "`file:` URLs"),
    ("FILE:/etc/passwd", "`file:` URLs"),
    ("gopher://127.0.0.2:6379/_FLUSHALL", "`gopher:` URLs"),
    ("dict://127.0.0.2:11211/stats", "`dict:` URLs"),
    ("jar:https://1.1.1.1/a.jar!/b", "`jar:` URLs"),
    ("javascript:alert(1)", "`javascript:` URLs"),
    ("blob:https://1.1.1.1/a", "`blob:` URLs"),
    ("https://1.1.1.1:22/", "port 22"),
    ("https://1.1.1.1:6379/", "port 6379"),
    ("https://1.1.1.1:0/", "port 0"),
    ("https://1.1.1.1:65536/", "can't be read"),
    ("https://root@1.1.1.1/", "user name"),
    ("https://1.1.1.1@127.0.0.2/", "user name"),
    ("https://:password@1.1.1.1/", "user name"),
    ("https://1.1.1.1/\r\nX-Evil: 1", "control character"),
    ("https://1.1.1.1/ HTTP/1.1", "a space"),
    ("https://1.1.1.1\t/", "control character"),
    ("https:\\\\127.0.0.2\\", "a backslash"),
    ("https://1.1.1.1\u{0}.example/", "control character"),
    ("https://", "can't be read"),
    ("https://256.256.256.256/", "can't be read"),
    ("://", "can't be read"),
    // Paths and ids that are none.
    ("/etc/passwd", "is an https:// URL"),
    ("../../client_token", "is an https:// URL"),
    ("//127.0.0.2/a.png", "is an https:// URL"),
    ("C:\\secrets.png", "a backslash"),
    ("file_../../../etc/passwd", "there is no file"),
    ("file_018bcfe5680070707070707070707070", "there is no file"),
    ("file_018BCFE5680070707070707070707070", "there is no file"),
    // Data URIs that carry something else.
    ("data:text/html;base64,PGh0bWw+", "write a data URI"),
    ("data:image/png,raw", "write a data URI"),
    ("data:image/png;base64,", "no image that is known"),
    ("data:image/png;base64,R0lGODlhAQABAAAAACw=", "a GIF file"),
    ("data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=", "a SVG or HTML file"),
    ("data:image/png;base64,JVBERi0xLjc=", "a PDF file"),
    ("data:image/png;base64,iVBORw0KGgo=", "not a readable PNG"),
];

fn names() -> std::sync::Arc<Names> {
    Names::of(&[
        ("localhost", &[&["127.0.0.2", "::1"]]),
        ("localhost.", &[&["127.0.0.2", "::1"]]),
        ("metadata.internal", &[&["169.254.169.254"]]),
        ("mapped.example", &[&["::ffff:10.0.0.1"]]),
        ("mixed.example", &[&["1.1.1.1", "127.0.0.2"]]),
        ("empty.example", &[&[]]),
        // The first answer is what the operator allows, the second is not.
        ("turns.example", &[&["127.0.0.1"], &["127.0.0.2"]]),
    ])
}

/// The route, the field, and what is sent with this URL.
type Place = (&'static str, &'static str, fn(&str) -> Value);

/// Where a URL can be sent.
const PLACES: &[Place] = &[
    (TASKS, "image", |url| json!({"prompt": "p", "image": url})),
    (TASKS, "webhook", |url| json!({"prompt": "p", "webhook": url})),
    (
        "/v1/videos",
        "input_reference",
        |url| json!({"prompt": "p", "input_reference": {"image_url": url}}),
    ),
    ("/generate", "image", |url| json!({"prompt": "p", "image": url})),
];

/// Asserts a refusal that tells nothing.
fn refused(answer: &Answer, status: u16, code: &str, param: Option<&str>, told: &str, what: &str) {
    let refusal = answer.refused(status, code, param);
    assert!(refusal.message.contains(told), "{what}: {}", refusal.message);
    // An address that the caller has written is his, however he has spelt it.
    let inner = if told == "not a public address" { SECRET } else { "169.254.169.254" };
    for secret in [SECRET, inner, "::ffff:10.0.0.1", "src/", "panicked"] {
        assert!(!answer.text().contains(secret), "{what}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_url_leads_nowhere_but_out() {
    const { assert!(URLS.len() >= 60) };
    let server = inputs::server(names()).await;
    for (url, told) in URLS {
        for (path, param, body) in PLACES {
            let answer = server.post(path, &body(url)).await;
            let what = format!("{path} {param} {url}");
            let told = match *param {
                // Names are looked up when it is called (`webhooks.rs`), lest they change meanwhile.
                "webhook" if *told == "does not lead to an address" => {
                    assert_eq!(answer.status, 202, "{what}: {}", answer.text());
                    server.delete(&format!("{TASKS}/{}", answer.json::<TaskBody>().id)).await;
                    server.delete(&format!("{TASKS}/{}", answer.json::<TaskBody>().id)).await;
                    continue;
                }
                // These are images, or might be.
                "webhook" if url.starts_with("data:") || !url.contains("://") => "",
                // Here a path is one of the server's folders of images.
                "image" if *path == "/generate" && url.starts_with(['/', '.']) => "path",
                _ => told,
            };
            refused(&answer, 400, "invalid_value", Some(param), told, &what);
        }
    }
    let long = format!("https://1.1.1.1/{}", "a".repeat(5_000));
    let answer = server.post(TASKS, &json!({"prompt": "p", "image": long})).await;
    refused(&answer, 400, "invalid_value", Some("image"), "at most 4096", "a long URL");
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn a_host_that_is_allowed_can_not_lead_on() {
    let inside = Peer::answering(ok(SECRET.as_bytes())).await;
    let server = inputs::server(names()).await;
    let port = inside.port;
    for (location, told) in [
        (format!("http://127.0.0.2:{port}/"), "not a public address"),
        (format!("http://2130706434:{port}/"), "not a public address"),
        (format!("http://[::ffff:127.0.0.2]:{port}/"), "not a public address"),
        (format!("http://localhost:{port}/"), "does not lead to an address"),
        (format!("//127.0.0.2:{port}/"), "not a public address"),
        ("http://169.254.169.254/latest/".to_owned(), "not a public address"),
        ("https://metadata.internal/".to_owned(), "does not lead to an address"),
        ("file:///etc/passwd".to_owned(), "`file:` URLs"),
        ("https://a:b@1.1.1.1/".to_owned(), "user name"),
        ("https://1.1.1.1:22/".to_owned(), "port 22"),
        ("http://[".to_owned(), "no URL"),
    ] {
        let hop = Peer::answering(redirect(&location)).await;
        let image = format!("http://127.0.0.1:{}/", hop.port);
        let answer = server.post(TASKS, &json!({"prompt": "p", "image": image})).await;
        refused(&answer, 400, "invalid_value", Some("image"), told, &location);
    }
    let round = Peer::answering(redirect("/again")).await;
    let image = format!("http://127.0.0.1:{}/", round.port);
    let answer = server.post(TASKS, &json!({"prompt": "p", "image": image})).await;
    refused(&answer, 400, "invalid_value", Some("image"), "once more after 3", "in a circle");
    assert_eq!(round.heard().len(), 4);
    assert_eq!(inside.heard(), [""; 0]);
    nothing_is_left(&server).await;
}

#[tokio::test]
async fn dns_that_changes_its_answer_changes_nothing() {
    let peer = Peer::answering(ok(&png())).await;
    let server = inputs::server(names()).await;
    let image = format!("http://turns.example:{}/", peer.port);
    let body = json!({"prompt": "p", "image": image});
    assert_eq!(server.post(TASKS, &body).await.status, 202);
    let answer = server.post(TASKS, &body).await;
    refused(&answer, 400, "invalid_value", Some("image"), "`turns.example` does not lead", &image);
    assert_eq!(peer.heard().len(), 1);
}

#[tokio::test]
async fn what_is_fetched_is_bounded_and_proven() {
    let server = inputs::server(names()).await;
    let head = "HTTP/1.1 200 OK\r\n";
    let length = |body: &str| format!("content-length: {}\r\n\r\n{body}", body.len());
    for (answer, told) in [
        (format!("{head}content-length: 99999999999\r\n\r\n"), "more than 16777216 bytes"),
        (format!("{head}content-encoding: gzip\r\n{}", length(SECRET)), "compresses"),
        (format!("{head}content-type: image/png\r\n{}", length(SECRET)), "no image that is known"),
        (format!("{head}{}", length("<svg/>")), "a SVG or HTML file"),
        (format!("HTTP/1.1 404 {SECRET}\r\n{}", length(SECRET)), "status 404"),
        (format!("HTTP/1.1 500 No\r\n{}", length(SECRET)), "status 500"),
        (format!("HTTP/1.1 206 Part\r\n{}", length(SECRET)), "status 206"),
        (format!("{SECRET}\r\n\r\n"), "does not answer in HTTP"),
        (format!("{head}content-length: 100\r\n\r\n{SECRET}"), "stopped in the middle"),
        (format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n"), "in HTTP"),
        (format!("{head}x: {}\r\n\r\n", "y".repeat(1_000_000)), "in HTTP"),
    ] {
        let peer = Peer::answering(answer.clone()).await;
        let image = format!("http://127.0.0.1:{}/", peer.port);
        let answered = server.post(TASKS, &json!({"prompt": "p", "image": image})).await;
        let what = answer.chars().take(40).collect::<String>().replace(SECRET, "");
        refused(&answered, 400, "invalid_value", Some("image"), told, &what);
    }
    let silent = Peer::stalling(&format!("{head}content-length: 9\r\n\r\nabc")).await;
    let image = format!("http://127.0.0.1:{}/", silent.port);
    let answer = server.post(TASKS, &json!({"prompt": "p", "image": image})).await;
    refused(&answer, 400, "invalid_value", Some("image"), "took longer than 2 s", "a slow body");
    nothing_is_left(&server).await;
}

/// A PNG whose few bytes say that they are very many pixels: all black.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().unwrap();
    let mut rows = writer.stream_writer().unwrap();
    for _ in 0..height {
        rows.write_all(&vec![0; width as usize]).unwrap();
    }
    rows.finish().unwrap();
    writer.finish().unwrap();
    bytes
}

#[tokio::test]
async fn what_is_uploaded_is_an_image_and_a_small_one() {
    let server = Server::with(&[("RAYREEL_INPUTS__MAX_PIXELS", "1000000")]).await;
    let half = &png()[..40];
    let bomb = bomb(10_000, 2_000);
    assert!(bomb.len() < 200_000, "{}", bomb.len());
    let polyglot = [&b"GIF89a"[..], &png()].concat();
    for (name, bytes, told) in [
        ("a.png", &b""[..], "no image that is known"),
        ("a.png", half, "not a readable PNG"),
        ("a.png", &bomb, "10000x2000 pixels"),
        ("a.png", &polyglot, "a GIF file"),
        ("a.png", b"GIF89a\x01\0\x01\0", "a GIF file"),
        ("a.png", b"<?xml version=\"1.0\"?><svg onload=\"alert(1)\"/>", "a SVG or HTML file"),
        ("a.png", b"#!/bin/sh\nrm -rf /", "no image that is known"),
        ("a.png", b"\x1f\x8b\x08\0\0\0\0\0", "a gzip file"),
        ("a.png", b"PK\x03\x04", "a ZIP file"),
        ("a.png", b"\x7fELF", "no image that is known"),
        ("a.webp", b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff", "not a readable WebP"),
        ("a.jpg", b"\xff\xd8\xff\xe0\xff\xff", "not a readable JPEG"),
        (&"x".repeat(5_000), &png(), "at most 255 characters"),
    ] {
        let answer = server.form("/v1/files", &[], &[("file", name, bytes)]).await;
        refused(&answer, 400, "invalid_value", Some("file"), told, told);
        let answer = server.form(TASKS, &[("prompt", "p")], &[("image", name, bytes)]).await;
        if name.len() < 100 {
            refused(&answer, 400, "invalid_value", Some("image"), told, told);
        }
    }
    for (sent, kept) in [
        ("../../../etc/passwd", "passwd"),
        ("..\\\\..\\\\boot.ini", "boot.ini"),
        ("/etc/shadow", "shadow"),
        ("..", ".."),
        ("", "upload"),
        ("a\u{202e}gnp.exe", "a\u{202e}gnp.exe"),
        ("a%0d%0aX-Evil:%201.png", "a%0d%0aX-Evil:%201.png"),
        ("a%22; filename=evil.html", "a%22; filename=evil.html"),
        ("a; filename*=UTF-8''evil.html", "a; filename*=UTF-8''evil.html"),
    ] {
        let answer = server.form("/v1/files", &[], &[("file", sent, &png())]).await;
        assert_eq!(answer.status, 200, "{sent}: {}", answer.text());
        let file: serde_json::Value = answer.json();
        assert_eq!(file["filename"], kept, "a name is kept to be shown, and names nothing here");
        let id = file["id"].as_str().unwrap();
        let content = server.get(&format!("/v1/files/{id}/content")).await;
        assert_eq!(
            content.header("content-disposition"),
            format!("attachment; filename=\"{id}.png\"")
        );
        assert_eq!(content.header("content-type"), "image/png");
        assert!(!content.headers.contains_key("x-evil"));
    }
    // A line of its own within the name: the part has another head then, and no name.
    for name in ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\0b", "a\u{7f}b"] {
        let answer = server.form("/v1/files", &[], &[("file", name, &png())]).await;
        assert!(!answer.headers.contains_key("x-evil"), "{name:?}");
        assert!([200, 400].contains(&answer.status.as_u16()), "{name:?}: {}", answer.text());
        let shown = answer.json::<Value>()["filename"].clone();
        let shown = shown.as_str().unwrap_or_default();
        assert!(!shown.contains(char::is_control), "{name:?}: {shown:?}");
    }
    let stored = files(&server);
    assert!(stored.iter().all(|path| path.ends_with("0")), "{stored:?}");
    assert_eq!(server.count().await, 1, "the long name was that of a good image");
}

#[tokio::test]
async fn forms_that_are_none_are_refused() {
    let server = Server::with(&[("RAYREEL_MAX_BODY_BYTES", "65536")]).await;
    let head = "--b\r\nContent-Disposition: form-data; name=";
    let end = "\r\n--b--\r\n";
    let many: String = (0..1_000).map(|n| format!("{head}\"{n}\"\r\n\r\nx\r\n")).collect();
    let form = "multipart/form-data; boundary=b";
    for (content_type, body, status, code) in [
        ("multipart/form-data", String::new(), 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=", String::new(), 415, "unsupported_media_type"),
        ("multipart/mixed; boundary=b", String::new(), 415, "unsupported_media_type"),
        (&format!("{form}{}", "b".repeat(100)), String::new(), 415, "unsupported_media_type"),
        (form, String::new(), 400, "invalid_request"),
        (form, "--c--\r\n".to_owned(), 400, "invalid_request"),
        (form, format!("{head}\"prompt\"\r\n\r\nno end"), 400, "invalid_request"),
        (form, format!("{head}\"prompt\""), 400, "invalid_request"),
        (form, format!("--b\r\n\r\nno name{end}"), 400, "invalid_request"),
        (form, format!("{head}\"{}\"\r\n\r\nx{end}", "n".repeat(200)), 400, "invalid_request"),
        (form, format!("{many}--b--\r\n"), 400, "invalid_request"),
        (form, format!("{head}\"p\"\r\nX: {}", "y".repeat(60_000)), 400, "invalid_request"),
        (
            form,
            format!("{head}\"prompt\"\r\n\r\na\r\n{head}\"prompt\"\r\n\r\nb{end}"),
            400,
            "invalid_request",
        ),
        (form, format!("{head}\"prompt[a][b]\"\r\n\r\na{end}"), 400, "unknown_field"),
        (form, format!("{head}\"__proto__[a]\"\r\n\r\na{end}"), 400, "unknown_field"),
        (form, format!("{head}\"output_path\"\r\n\r\n/etc/x{end}"), 400, "unknown_field"),
        (form, format!("{head}\"prompt\"; filename=\"a\"\r\n\r\na{end}"), 400, "unknown_field"),
        (
            form,
            format!("{head}\"prompt\"\r\n\r\n{}{end}", "x".repeat(70_000)),
            413,
            "body_too_large",
        ),
    ] {
        for path in [TASKS, "/v1/files"] {
            let request = server.request(Method::POST, path).header("content-type", content_type);
            let answer = Answer::of(request.body(body.clone())).await;
            let start: String = body.chars().take(60).collect();
            // The two routes have other fields; a form that is none is none for both.
            if path == TASKS || code != "unknown_field" {
                assert_eq!(answer.refusal().code, code, "{path} {content_type} {start}");
                assert_eq!(answer.status, status);
            } else {
                assert_eq!(answer.refusal_status(), 400);
            }
        }
    }
    nothing_is_left(&server).await;
}

/// Whoever believes in the other length takes the rest of the body for a request.
#[tokio::test]
async fn a_request_of_two_lengths_ends_its_connection() {
    let server = Server::start().await;
    let smuggled = format!("DELETE {TASKS}/x HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let body = format!("f\r\n{{\"prompt\": \"p\"}}\r\n0\r\n\r\n{smuggled}");
    let length = body.len();
    for lengths in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n".to_owned(),
    ] {
        let head = format!("POST {TASKS} HTTP/1.1\r\nHost: localhost\r\n{lengths}");
        let request = format!("{head}Content-Type: application/json\r\n\r\n{body}");
        let mut socket = TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).await.unwrap();
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{lengths}: {said}");
        assert!(said.starts_with("HTTP/1.1 202 "), "read as chunks: {lengths}: {said}");
    }
}

#[tokio::test]
async fn ids_in_addresses_name_nothing_else() {
    let server = Server::start().await;
    let other = server.form("/v1/files", &[], &[("file", "a.png", &png())]).await;
    let id = other.json::<serde_json::Value>()["id"].as_str().unwrap().to_owned();
    for id in [
        "..%2f..%2fclient_token",
        "%2e%2e",
        "file_",
        "file_%00",
        "file_018bcfe5680070707070707070707070",
        &id.to_uppercase(),
        &format!("{id}%20"),
        &format!("{id}%2fcontent%2f.."),
        &id.replace("file_", "task_"),
        "' OR 1=1 --",
        &"9".repeat(10_000),
    ] {
        let id = id.replace(' ', "%20");
        for (method, path) in [
            (Method::GET, format!("/v1/files/{id}")),
            (Method::DELETE, format!("/v1/files/{id}")),
            (Method::GET, format!("/v1/files/{id}/content")),
        ] {
            // By hand: a client would tidy the address up.
            let line = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let answer = server.raw(line.as_bytes()).await;
            assert_eq!(answer.refusal_status(), 404, "{path}");
        }
    }
    assert_eq!(server.get(&format!("/v1/files/{id}")).await.status, 200);
}

#[tokio::test]
async fn files_of_others_do_not_exist() {
    let server = Server::start().await;
    let [anna, bert] = ["anna", "bert"].map(|tenant| json!({"tenant": tenant}));
    let (anna, bert) = (keys::make(&server, anna).await.0, keys::make(&server, bert).await.0);
    let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\r\n";
    let body = [part.as_bytes(), &png(), b"\r\n--b--\r\n"].concat();
    let upload = async |key: &str| {
        let request = server.request(Method::POST, "/v1/files").bearer_auth(key);
        let form = "multipart/form-data; boundary=b";
        let answer = Answer::of(request.header("content-type", form).body(body.clone())).await;
        answer.json::<serde_json::Value>()["id"].as_str().unwrap().to_owned()
    };
    let id = upload(&anna).await;
    let file = format!("/v1/files/{id}");
    let call =
        async |method, path: &str, body| keys::call(&server, method, path, &bert, body).await;
    for (method, path) in [
        (Method::GET, file.clone()),
        (Method::GET, format!("{file}/content")),
        (Method::DELETE, file.clone()),
    ] {
        call(method, &path, &json!(null)).await.refused(404, "file_not_found", None);
    }
    let list = call(Method::GET, "/v1/files", &json!(null)).await;
    assert_eq!(list.json::<serde_json::Value>()["data"], json!([]));
    let after = format!("/v1/files?after={id}");
    call(Method::GET, &after, &json!(null)).await.refused(400, "invalid_cursor", Some("after"));
    let task = json!({"prompt": "p", "image": id});
    call(Method::POST, TASKS, &task).await.refused(400, "invalid_value", Some("image"));
    // Not even that somebody has sent the same picture can be seen.
    upload(&bert).await;
    assert_eq!(files(&server).len(), 2);
    let own = keys::call(&server, Method::GET, &file, &anna, &json!(null)).await;
    assert_eq!(own.status, 200);
    let nobody = server.get(&file).await;
    nobody.refused(401, "unauthorized", None);
}

async fn nothing_is_left(server: &Server) {
    assert_eq!(server.count().await, 0);
    assert_eq!(files(server), [""; 0].map(std::path::PathBuf::from));
}
