//! `/v1/files`: what is uploaded, to whom it belongs, and how long it is there.

use std::time::Duration;

use rayreel_domain::wire::files::{FileBody, FileList};
use serde_json::{Value, json};

use super::client::{Answer, Server, TASKS};
use super::uploads::{files, pixels, png};

const FILES: &str = "/v1/files";

async fn upload(server: &Server, name: &str) -> FileBody {
    let answer = server.form(FILES, &[("purpose", "vision")], &[("file", name, &png())]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn list(server: &Server, query: &str) -> FileList {
    let answer = server.get(&format!("{FILES}?{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn a_file_is_shown_listed_downloaded_and_deleted() {
    let server = Server::start().await;
    let file = upload(&server, "../../fox.jpg").await;
    assert!(file.id.starts_with("file_"));
    assert_eq!((&*file.object, &*file.filename, &*file.purpose), ("file", "fox.jpg", "vision"));
    assert_eq!(file.expires_at - file.created_at, 604_800);
    let path = format!("{FILES}/{}", file.id);
    assert_eq!(server.get(&path).await.json::<FileBody>(), file);
    let content = server.get(&format!("{path}/content")).await;
    assert_eq!((content.status.as_u16(), content.header("content-type")), (200, "image/png"));
    assert_eq!(content.body.len() as u64, file.bytes);
    assert_eq!(pixels(&content.body), pixels(&png()));
    assert_eq!(
        content.header("content-disposition"),
        format!("attachment; filename=\"{}.png\"", file.id)
    );
    assert_eq!(content.header("x-content-type-options"), "nosniff");
    let deleted: Value = server.delete(&path).await.json();
    assert_eq!(deleted, json!({"id": file.id, "object": "file", "deleted": true}));
    for answer in [
        server.get(&path).await,
        server.get(&format!("{path}/content")).await,
        server.delete(&path).await,
    ] {
        answer.refused(404, "file_not_found", None);
    }
    assert!(list(&server, "").await.data.is_empty());
}

#[tokio::test]
async fn a_file_may_be_asked_to_expire_earlier_but_not_later() {
    let server = Server::start().await;
    let asked = async |anchor: &str, seconds: &str| {
        let fields = [("expires_after[anchor]", anchor), ("expires_after[seconds]", seconds)];
        server.form(FILES, &fields, &[("file", "a.png", &png())]).await
    };
    for seconds in [3_600, 604_800] {
        let file: FileBody = asked("created_at", &seconds.to_string()).await.json();
        assert_eq!(file.expires_at - file.created_at, seconds);
    }
    let short: FileBody = asked("created_at", "3600").await.json();
    server.world.clock.advance(Duration::from_secs(3_600));
    let path = format!("{FILES}/{}", short.id);
    server.get(&path).await.refused(404, "file_not_found", None);
    for (anchor, seconds, param) in [
        ("created_at", "3599", "expires_after.seconds"),
        ("created_at", "604801", "expires_after.seconds"),
        ("created_at", "-1", "expires_after.seconds"),
        ("created_at", "1e4", "expires_after.seconds"),
        ("created_at", "", "expires_after.seconds"),
        ("last_active_at", "3600", "expires_after.anchor"),
    ] {
        let refusal = asked(anchor, seconds).await.refused(400, "invalid_value", Some(param));
        if param.ends_with("seconds") {
            assert!(refusal.message.contains("3600 to 604800"), "{}", refusal.message);
        }
    }
    let alone = [("expires_after[seconds]", "3600")];
    let alone = server.form(FILES, &alone, &[("file", "a.png", &png())]).await;
    alone.refused(400, "missing_field", Some("expires_after.anchor"));
}

#[tokio::test]
async fn files_are_listed_page_by_page() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(upload(&server, &format!("{n}.png")).await.id);
        server.world.clock.advance(Duration::from_secs(1));
    }
    let of = |list: &FileList| list.data.iter().map(|file| file.id.clone()).collect::<Vec<_>>();
    let newest: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(of(&list(&server, "").await), newest);
    assert_eq!(of(&list(&server, "order=asc").await), ids);
    let page = list(&server, "limit=2").await;
    assert_eq!((of(&page), page.has_more), (newest[..2].to_vec(), true));
    assert_eq!(page.first_id.as_deref(), Some(&*newest[0]));
    let after = page.last_id.unwrap();
    let rest = list(&server, &format!("limit=3&after={after}")).await;
    assert_eq!((of(&rest), rest.has_more), (newest[2..].to_vec(), false));
    assert!(list(&server, "purpose=batch").await.data.is_empty());
    for (query, status, code, param) in [
        ("limit=0", 400, "invalid_value", "limit"),
        ("limit=1001", 400, "invalid_value", "limit"),
        ("order=up", 400, "invalid_value", "order"),
        ("after=file_018bcfe5680070707070707070707070", 400, "invalid_cursor", "after"),
        ("after=x", 400, "invalid_cursor", "after"),
        ("page=2", 400, "unknown_field", "page"),
    ] {
        let answer = server.get(&format!("{FILES}?{query}")).await;
        answer.refused(status, code, Some(param));
    }
}

#[tokio::test]
async fn a_task_keeps_the_image_of_a_file_that_is_gone() {
    let server = Server::start().await;
    let file = upload(&server, "fox.png").await;
    let answer = server.post(TASKS, &json!({"prompt": "p", "image": file.id})).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(files(&server).len(), 1, "it is the same content");
    server.delete(&format!("{FILES}/{}", file.id)).await;
    let again = server.post(TASKS, &json!({"prompt": "p", "image": file.id})).await;
    assert!(again.refused(400, "invalid_value", Some("image")).message.contains(&file.id));
    server.world.clock.advance(Duration::from_secs(7_200));
    let store = &server.app.components.store;
    store.advance().await.unwrap();
    assert!(store.garbage(10).await.unwrap().is_empty());
    let worker = server.worker("w").await;
    assert!(worker.take(1).await.request.image.is_some());
}

#[tokio::test]
async fn files_expire_and_have_a_limit() {
    let server = Server::with(&[
        ("RAYREEL_INPUTS__FILE_SECONDS", "60"),
        ("RAYREEL_INPUTS__MAX_TENANT_BYTES", "131072"),
    ])
    .await;
    let first = upload(&server, "1.png").await;
    upload(&server, "2.png").await;
    let full = server.form(FILES, &[], &[("file", "3.png", &png())]).await;
    assert!(
        full.refused(429, "limit_reached", Some("inputs.max_tenant_bytes"))
            .message
            .contains("131072")
    );
    assert_eq!(full.header("retry-after"), "60");
    server.world.clock.advance(Duration::from_secs(60));
    server.get(&format!("{FILES}/{}", first.id)).await.refused(404, "file_not_found", None);
    server.app.components.store.advance().await.unwrap();
    upload(&server, "3.png").await;
}

#[tokio::test]
async fn where_no_files_are_kept_none_is_decoded_or_written() {
    let server = Server::with(&[("RAYREEL_INPUTS__MAX_TENANT_BYTES", "0")]).await;
    for bytes in [&png()[..], b"no picture"] {
        let answer = server.form(FILES, &[], &[("file", "a.png", bytes)]).await;
        let refused = answer.refused(429, "limit_reached", Some("inputs.max_tenant_bytes"));
        assert!(refused.message.contains("this request alone is more"), "{}", refused.message);
        assert_eq!(answer.header("retry-after"), "3600");
    }
    assert!(files(&server).is_empty());
}

#[tokio::test]
async fn a_file_that_does_not_fit_is_not_written() {
    let server = Server::with(&[("RAYREEL_INPUTS__MAX_TENANT_BYTES", "65536")]).await;
    let noise: Vec<u8> =
        (0..200 * 200_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut large = Vec::new();
    let mut encoder = png::Encoder::new(&mut large, 200, 200);
    encoder.set_color(png::ColorType::Rgb);
    let rgb = [&noise[..], &noise, &noise].concat();
    encoder.write_header().unwrap().write_image_data(&rgb).unwrap();
    let answer = server.form(FILES, &[], &[("file", "a.png", &large)]).await;
    answer.refused(429, "limit_reached", Some("inputs.max_tenant_bytes"));
    assert!(files(&server).is_empty());
    upload(&server, "small.png").await;
}

#[tokio::test]
async fn an_upload_says_what_it_needs() {
    let server = Server::with(&[("RAYREEL_MAX_BODY_BYTES", "65536")]).await;
    let good = png();
    let file = ("file", "a.png", &good[..]);
    let long = "x".repeat(300);
    let large = vec![0; 70_000];
    let refused = |answer: Answer, status, code, param| {
        answer.refused(status, code, param);
    };
    let form = async |fields: &[(&str, &str)], files: &[(&str, &str, &[u8])]| {
        server.form(FILES, fields, files).await
    };
    refused(form(&[], &[]).await, 400, "missing_field", Some("file"));
    refused(form(&[("file", "x")], &[]).await, 400, "missing_field", Some("file"));
    refused(form(&[], &[file, file]).await, 400, "invalid_request", Some("file"));
    refused(form(&[], &[file, ("mask", "b.png", &good)]).await, 400, "unknown_field", Some("mask"));
    refused(form(&[("purpos", "x")], &[file]).await, 400, "unknown_field", Some("purpos"));
    refused(form(&[("purpose", "a b")], &[file]).await, 400, "invalid_value", Some("purpose"));
    refused(form(&[("purpose", "")], &[file]).await, 400, "invalid_value", Some("purpose"));
    refused(form(&[], &[("file", &long, &good)]).await, 400, "invalid_value", Some("file"));
    refused(form(&[], &[("file", "a.gif", b"GIF89a")]).await, 400, "invalid_value", Some("file"));
    refused(form(&[], &[("file", "a", &large)]).await, 413, "body_too_large", None);
    let json = server.post(FILES, &json!({"file": "x"})).await;
    refused(json, 415, "unsupported_media_type", Some("Content-Type"));
    assert!(list(&server, "").await.data.is_empty());
    assert!(files(&server).is_empty());
}
