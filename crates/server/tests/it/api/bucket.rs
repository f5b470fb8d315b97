//! A server whose files are in a bucket: workers put them there, and clients get them there.

use std::time::Duration;

use rayreel_domain::lease::Fence;
use rayreel_domain::task::{Output, State};
use rayreel_domain::wire::engine::Role;
use rayreel_domain::wire::worker::{PartTarget, PartTargets, UploadTarget, UploadTargets};
use rayreel_server::artifacts::{Bucket, Key};
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::client::{Answer, Server, TASKS, TOKEN, Worker, output, video};
use super::uploads::{pixels, png, with_image};
use crate::artifacts::bucket::{bucket, open};
use crate::artifacts::noise;
use crate::gateway::Gateway;
use crate::world::World;

const VIDEO: &[u8] = b"moving pictures";
const STILL: &[u8] = b"a still";

async fn server(bucket: &Bucket) -> Server {
    let world = World::with_artifacts(&[], open(bucket));
    let app = world.app.clone();
    Server::serve(world, app).await
}

async fn start() -> (Gateway, Server) {
    let gateway = Gateway::start();
    let server = server(&bucket(&gateway)).await;
    (gateway, server)
}

async fn announce(worker: &Worker<'_>, fence: Fence, manifest: &[Output]) -> Vec<UploadTarget> {
    let answer = worker.call("uploads", json!({"fence": fence, "manifest": manifest})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json::<UploadTargets>().targets
}

/// Does what a worker does with a target that is no path: without a token.
async fn put(server: &Server, target: &UploadTarget, bytes: &[u8]) -> Answer {
    let request = server.http.put(&target.url).body(bytes.to_vec());
    let headers = target.headers.iter();
    Answer::of(headers.fold(request, |request, (name, value)| request.header(name, value))).await
}

/// A task that has succeeded, its video and its still put into the bucket by the worker.
async fn finished(server: &Server) -> String {
    let worker = server.worker("w").await;
    let task = server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let manifest = [video(VIDEO), output(1, Role::Thumbnail, STILL)];
    let targets = announce(&worker, fence, &manifest).await;
    for (target, bytes) in targets.iter().zip([VIDEO, STILL]) {
        let answer = put(server, target, bytes).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let commit = worker.commit(fence, &manifest).await;
    assert_eq!(commit.status, 200, "{}", commit.text());
    task.id
}

/// Where the server sends whoever asks for this.
async fn sent_to(server: &Server, path: &str) -> String {
    let answer = server.get(path).await;
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.header("location").to_owned()
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn files_go_past_the_server_both_ways() {
    let (gateway, server) = start().await;
    let id = finished(&server).await;
    assert_eq!(server.task(&id).await.status, State::Succeeded);
    assert_eq!(gateway.files().len(), 2);
    let path = format!("{TASKS}/{id}/content");
    let location = sent_to(&server, &path).await;
    assert!(location.starts_with(&gateway.endpoint()), "{location}");
    let whole = Answer::of(server.http.get(&location)).await;
    assert_eq!((whole.status.as_u16(), &*whole.body), (200, VIDEO));
    let name = format!("inline; filename=\"{id}.mp4\"");
    for (header, value) in [("content-type", "video/mp4"), ("content-disposition", &name)] {
        assert_eq!(whole.header(header), value);
    }
    let part = Answer::of(server.http.get(&location).header("range", "bytes=7-14")).await;
    assert_eq!((part.status.as_u16(), &*part.body), (206, &b"pictures"[..]));
    let still = sent_to(&server, &format!("{path}?variant=thumbnail")).await;
    let still = Answer::of(server.http.get(still)).await;
    assert_eq!((still.header("content-type"), &*still.body), ("image/png", STILL));

    // What needs no bytes is answered here.
    let head = Answer::of(server.request(Method::HEAD, &path)).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, "15"));
    let etag = head.header("etag").to_owned();
    assert_eq!(server.get(&path).await.header("etag"), etag, "the checksum comes with the address");
    let known = server.request(Method::GET, &path).header("if-none-match", etag);
    assert_eq!(Answer::of(known).await.status, 304);
    let beyond = server.request(Method::GET, &path).header("range", "bytes=15-");
    Answer::of(beyond).await.refused(416, "range_not_satisfiable", Some("Range"));
    assert_eq!(server.metric("rayreel_artifacts_served_bytes_total").await, Some(0.0));
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn a_signed_link_and_openais_path_lead_to_the_bucket_too() {
    let (_gateway, server) = start().await;
    let id = finished(&server).await;
    let link = server.post(&format!("{TASKS}/{id}/link"), &json!({"expires_in": 5})).await;
    let link: serde_json::Value = link.json();
    let link = link["url"].as_str().unwrap().split_once(&server.address).unwrap().1.to_owned();
    let location = sent_to(&server, &link).await;
    assert!(location.contains("X-Amz-Expires=5&"), "no longer than the link: {location}");
    assert_eq!(Answer::of(server.http.get(location)).await.body, VIDEO);
    let location = sent_to(&server, &format!("/v1/videos/{id}/content")).await;
    assert_eq!(Answer::of(server.http.get(location)).await.body, VIDEO);
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn an_address_is_good_for_one_file_of_one_attempt() {
    let (gateway, server) = start().await;
    let worker = server.worker("w").await;
    server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let target = announce(&worker, fence, &[video(VIDEO)]).await.remove(0);
    let with = |change: &dyn Fn(&mut UploadTarget)| {
        let mut changed = target.clone();
        change(&mut changed);
        changed
    };
    let sum = rayreel_server::artifacts::sha256(VIDEO);
    let other_key = with(&|it| it.url = it.url.replace(&sum, &sum.replace('a', "b")));
    let other_header = with(&|it| _ = it.headers.insert("content-type".into(), "text/html".into()));
    let no_header = with(&|it| _ = it.headers.remove("x-amz-checksum-sha256"));
    for (target, bytes, status) in [
        (&other_key, VIDEO, 403),
        (&other_header, VIDEO, 403),
        (&no_header, VIDEO, 403),
        (&target, b"MOVING PICTURES", 400),
        (&target, b"moving", 400),
    ] {
        let answer = put(&server, target, bytes).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    assert!(gateway.files().is_empty());
    let commit = worker.commit(fence, &[video(VIDEO)]).await;
    let refused = commit.refused(422, "upload_mismatch", Some("manifest"));
    assert_eq!(refused.message, "output 0 has not been uploaded");
    assert_eq!(put(&server, &target, VIDEO).await.status, 200);
    assert_eq!(put(&server, &target, VIDEO).await.status, 412, "it is there, and stays as it is");
    let got = Answer::of(server.http.get(&target.url)).await;
    assert_eq!(got.status, 403, "to put is not to get");
    assert_eq!(worker.commit(fence, &[video(VIDEO)]).await.status, 200);
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn an_address_expires() {
    let gateway = Gateway::start();
    let server = server(&Bucket { signed_life: Duration::from_secs(1), ..bucket(&gateway) }).await;
    let worker = server.worker("w").await;
    server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let target = announce(&worker, fence, &[video(VIDEO)]).await.remove(0);
    let expired = async {
        // Refused for its bytes as long as the address is good.
        while put(&server, &target, b"MOVING PICTURES").await.status != 403 {}
    };
    tokio::time::timeout(Duration::from_secs(20), expired).await.expect("in time");
    let late = put(&server, &target, VIDEO).await;
    assert_eq!(late.status, 403, "{}", late.text());
    assert!(late.text().to_lowercase().contains("expired"), "{}", late.text());
    // A worker asks again.
    let target = announce(&worker, fence, &[video(VIDEO)]).await.remove(0);
    assert_eq!(put(&server, &target, VIDEO).await.status, 200);
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn a_file_of_another_length_is_no_output() {
    let (_gateway, server) = start().await;
    let worker = server.worker("w").await;
    server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let key = Key::output(&fence, 0, &rayreel_server::artifacts::sha256(VIDEO)).unwrap();
    let artifacts = &server.app.components.artifacts;
    artifacts.put(&key, axum::body::Bytes::from_static(b"moving")).await.unwrap();
    let commit = worker.commit(fence, &[video(VIDEO)]).await;
    let refused = commit.refused(422, "upload_mismatch", Some("manifest"));
    assert_eq!(refused.message, "output 0 has 6 bytes, not 15");
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn files_go_through_the_server_if_the_operator_wants_that() {
    let gateway = Gateway::start();
    let server = server(&Bucket { redirect: false, ..bucket(&gateway) }).await;
    let id = finished(&server).await;
    let path = format!("{TASKS}/{id}/content");
    let whole = server.get(&path).await;
    assert_eq!((whole.status.as_u16(), &*whole.body), (200, VIDEO));
    let part = server.request(Method::GET, &path).header("range", "bytes=7-14");
    let part = Answer::of(part).await;
    assert_eq!((part.status.as_u16(), &*part.body), (206, &b"pictures"[..]));
    assert_eq!(server.metric("rayreel_artifacts_served_bytes_total").await, Some(23.0));
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn a_worker_may_still_upload_through_the_server() {
    let (gateway, server) = start().await;
    let worker = server.worker("w").await;
    server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let sum = rayreel_server::artifacts::sha256(VIDEO);
    let Fence { task, attempt, nonce } = fence;
    let path = format!("/v1/worker/uploads/{task}/{attempt}/{nonce}/0?sha256={sum}&bytes=15");
    worker.put(&path, b"MOVING PICTURES").await.refused(422, "upload_mismatch", None);
    assert!(gateway.files().is_empty());
    assert_eq!(worker.put(&path, VIDEO).await.status, 200);
    assert_eq!(worker.commit(fence, &[video(VIDEO)]).await.status, 200);
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn while_the_bucket_is_away_callers_are_told_to_come_back() {
    let (mut gateway, server) = start().await;
    let done = finished(&server).await;
    let worker = server.worker("w").await;
    server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let target = announce(&worker, fence, &[video(VIDEO)]).await.remove(0);
    assert_eq!(put(&server, &target, VIDEO).await.status, 200);
    gateway.kill();
    let away = |answer: Answer| {
        let refused = answer.refused(503, "store_unavailable", None);
        assert_eq!(
            refused.message,
            "the artifact store is not available just now; nothing is lost"
        );
        assert_eq!(answer.header("retry-after"), "2");
    };
    away(worker.commit(fence, &[video(VIDEO)]).await);
    away(server.post(TASKS, &with_image()).await);
    let head = server.request(Method::HEAD, &format!("{TASKS}/{done}/content"));
    assert_eq!(Answer::of(head).await.status, 503);
    let ready = server.get("/readyz").await.refused(503, "store_unavailable", None);
    assert_eq!(ready.message, "the artifact store is not available; the log says why");
    gateway.restart();
    assert_eq!(server.get("/readyz").await.status, 200);
    let commit = worker.commit(fence, &[video(VIDEO)]).await;
    assert_eq!(commit.status, 200, "{}", commit.text());
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn images_lie_in_the_bucket_and_reach_the_worker() {
    let (gateway, server) = start().await;
    let answer = server.post(TASKS, &with_image()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(gateway.files().len(), 1);
    let worker = server.worker("w").await;
    let Fence { task, attempt, nonce } = worker.take(1).await.fence;
    let path = format!("/v1/worker/inputs/{task}/{attempt}/{nonce}");
    let given = Answer::of(server.request(Method::GET, &path).bearer_auth(TOKEN)).await;
    assert_eq!(pixels(&given.body), pixels(&png()));
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn the_files_of_a_deleted_task_go() {
    let (gateway, server) = start().await;
    let id = finished(&server).await;
    server.delete(&format!("{TASKS}/{id}")).await;
    server.world.clock.advance(Duration::from_secs(3_600));
    let components = &server.app.components;
    for _ in 0..2 {
        // Twice: whoever collects may die before it says so.
        for item in components.store.garbage(10).await.unwrap() {
            components.artifacts.delete_folder(&item.folder).await.unwrap();
        }
        assert!(gateway.files().is_empty());
    }
}

/// As long as two parts and some more.
const LONG: usize = (10 << 20) + 7;
const PART: usize = 5 << 20;

fn sums(whole: &[u8]) -> Vec<String> {
    whole.chunks(PART).map(rayreel_server::artifacts::sha256).collect()
}

async fn parts(worker: &Worker<'_>, fence: Fence, whole: &[u8], upload: Option<&str>) -> Answer {
    let mut call = json!({"fence": fence, "output": video(whole), "sha256": sums(whole)});
    if let Some(upload) = upload {
        call["upload"] = upload.into();
    }
    worker.call("parts", call).await
}

async fn put_part(server: &Server, target: &PartTarget, bytes: &[u8]) -> Answer {
    let PartTarget { part, url, headers } = target.clone();
    let target = UploadTarget { index: part, url, headers, part_bytes: None };
    put(server, &target, bytes).await
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn a_long_file_comes_in_parts_and_goes_on_where_it_stopped() {
    let (gateway, server) = start().await;
    let worker = server.worker("w").await;
    let task = server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let whole = noise(LONG);
    let target = announce(&worker, fence, &[video(&whole)]).await.remove(0);
    assert_eq!(target.part_bytes, Some(PART as u64));
    assert!(target.url.starts_with("/v1/worker/uploads/"), "for workers that know no parts");
    let first: PartTargets = parts(&worker, fence, &whole, None).await.json();
    assert_eq!(first.parts.iter().map(|it| it.part).collect::<Vec<_>>(), [0, 1, 2]);
    let pieces: Vec<&[u8]> = whole.chunks(PART).collect();
    for (target, bytes, status) in [
        (&first.parts[0], pieces[1], 400),
        (&first.parts[0], &pieces[0][1..], 400),
        (&first.parts[1], pieces[1], 200),
        (&first.parts[2], pieces[2], 200),
    ] {
        let answer = put_part(&server, target, bytes).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    worker.commit(fence, &[video(&whole)]).await.refused(422, "upload_mismatch", Some("manifest"));
    let upload = first.upload.as_deref();
    let second: PartTargets = parts(&worker, fence, &whole, upload).await.json();
    assert_eq!(second.upload.as_deref(), upload);
    assert_eq!(second.parts.iter().map(|it| it.part).collect::<Vec<_>>(), [0]);
    assert_eq!(put_part(&server, &second.parts[0], pieces[0]).await.status, 200);
    for upload in [upload, upload, None] {
        // Asked again, because the answer was lost, it is whole all the same.
        let third: PartTargets = parts(&worker, fence, &whole, upload).await.json();
        assert!(third.parts.is_empty());
    }
    assert_eq!(gateway.files().len(), 1);
    assert_eq!(worker.commit(fence, &[video(&whole)]).await.status, 200);
    let location = sent_to(&server, &format!("{TASKS}/{}/content", task.id)).await;
    let got = Answer::of(server.http.get(location)).await;
    assert!(got.body == whole);
    assert_eq!(got.header("content-type"), "video/mp4");
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn parts_are_only_for_the_holder_of_the_attempt_and_as_announced() {
    let (_gateway, server) = start().await;
    let worker = server.worker("w").await;
    server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let whole = noise(LONG);
    let call = |output: Output, sums: &[String]| {
        worker.call("parts", json!({"fence": fence, "output": output, "sha256": sums}))
    };
    let few = &sums(&whole)[1..];
    call(video(&whole), few).await.refused(400, "invalid_value", Some("sha256"));
    call(video(VIDEO), &sums(VIDEO)).await.refused(400, "invalid_value", Some("output"));
    let bad = Output { index: 99, ..video(&whole) };
    call(bad, &sums(&whole)).await.refused(400, "invalid_value", Some("output"));
    let other = parts(&worker, fence, &whole, Some("made-up")).await;
    let other: PartTargets = other.json();
    assert_ne!(other.upload.as_deref(), Some("made-up"), "what is not known is begun anew");
    let stale = Fence { attempt: 9, ..fence };
    parts(&worker, stale, &whole, None).await.refused(409, "stale_lease", None);
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn parts_of_an_attempt_that_came_to_nothing_go_with_its_folder() {
    let (gateway, server) = start().await;
    let worker = server.worker("w").await;
    server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let whole = noise(LONG);
    let targets: PartTargets = parts(&worker, fence, &whole, None).await.json();
    let put = put_part(&server, &targets.parts[0], &whole[..PART]).await;
    assert_eq!(put.status, 200, "{}", put.text());
    assert!(!gateway.files().is_empty());
    for _ in 0..2 {
        server.app.components.artifacts.delete_folder(&fence.folder()).await.unwrap();
        assert!(gateway.files().is_empty());
    }
}

#[tokio::test]
async fn a_directory_takes_no_parts() {
    let server = Server::start().await;
    let worker = server.worker("w").await;
    server.submit("p").await;
    let fence = worker.take(1).await.fence;
    let whole = noise(LONG);
    let target = announce(&worker, fence, &[video(&whole)]).await.remove(0);
    assert_eq!(target.part_bytes, None);
    let refused = parts(&worker, fence, &whole, None).await;
    let refused = refused.refused(400, "invalid_value", Some("output"));
    assert_eq!(refused.message, "this file does not go in parts; announce it again");
}
