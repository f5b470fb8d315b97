//! What is special to a bucket.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream;
use rayreel_server::artifacts::{Artifacts, Bucket, Error, Key, Place, Shown, Variables, sha256};
use rayreel_server::clock::Random;

use super::careless::Careless;
use super::{Stand, fence, noise};
use crate::gateway::{self, Gateway};

pub(crate) fn bucket(gateway: &Gateway) -> Bucket {
    bucket_at(gateway.endpoint())
}

fn bucket_at(endpoint: String) -> Bucket {
    let variables =
        [("AWS_ACCESS_KEY_ID", gateway::KEY), ("AWS_SECRET_ACCESS_KEY", gateway::SECRET)];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Bucket {
        name: gateway::BUCKET.to_owned(),
        prefix: "some/where".to_owned(),
        endpoint: Some(endpoint),
        path_style: true,
        region: None,
        allow_http: true,
        redirect: true,
        public_endpoint: None,
        signed_life: Duration::from_secs(60),
        part_bytes: 5 << 20,
        variables: Variables(variables.to_vec()),
    }
}

pub(crate) fn open(bucket: &Bucket) -> Artifacts {
    Artifacts::in_bucket(bucket, Arc::new(Random::from_seed(1))).unwrap()
}

pub(crate) fn stand() -> Stand<Gateway> {
    let below = Gateway::start();
    Stand { artifacts: open(&bucket(&below)), below }
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn files_lie_below_the_prefix_and_a_trial_leaves_none() {
    let Stand { artifacts, below } = stand();
    artifacts.start().await.unwrap();
    assert_eq!(below.files(), [""; 0].map(std::path::PathBuf::from));
    let key = Key::output(&fence(1), 0, &sha256(b"x")).unwrap();
    artifacts.put(&key, Bytes::from_static(b"x")).await.unwrap();
    let place = format!("some/where/{}/0-{}", fence(1).folder(), sha256(b"x"));
    assert_eq!(below.files(), [std::path::PathBuf::from(&place)]);
    assert_eq!(below.read(place), b"x");
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn a_bucket_that_can_not_be_used_is_named_at_the_start() {
    let gateway = Gateway::start();
    let missing = Bucket { name: "another".to_owned(), ..bucket(&gateway) };
    let Err(Error::Unusable(error)) = open(&missing).start().await else { panic!("it is missing") };
    let told = format!(
        "there is no bucket s3://another/some/where at {} (NoSuchBucket): make it, or correct \
         `artifacts.url` or `artifacts.endpoint`",
        gateway.endpoint()
    );
    assert_eq!(error, told);
    let mut locked = bucket(&gateway);
    locked.variables.0[1].1 = "not-the-secret".to_owned();
    let Err(Error::Unusable(error)) = open(&locked).start().await else { panic!("it is locked") };
    let told = format!(
        "the credentials do not open s3://videos/some/where at {} for writing \
         (SignatureDoesNotMatch): correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or whatever \
         gives them, or what they allow",
        gateway.endpoint()
    );
    assert_eq!(error, told);
    assert!(!error.contains("not-the-secret") && !format!("{locked:?}").contains("not-the-secret"));
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn a_store_that_is_gone_for_a_while_is_waited_for() {
    let Stand { artifacts, below: mut gateway } = stand();
    gateway.kill();
    artifacts.start().await.expect("the server starts without it");
    let key = Key::output(&fence(1), 0, &sha256(b"x")).unwrap();
    let x = || Bytes::from_static(b"x");
    for fails in [
        artifacts.probe().await,
        artifacts.put(&key, x()).await,
        artifacts.head(&key).await.map(drop),
        artifacts.get(&key, 0..1).await.map(drop),
        artifacts.delete(&key).await,
        artifacts.delete_folder(&fence(1).folder()).await,
    ] {
        assert!(matches!(fails, Err(Error::Unavailable(_))), "{fails:?}");
    }
    gateway.restart();
    artifacts.probe().await.unwrap();
    artifacts.put(&key, x()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn an_upload_that_is_dropped_in_the_middle_leaves_nothing() {
    let Stand { artifacts, below } = stand();
    let whole = noise(10 << 20);
    let key = Key::output(&fence(1), 0, &sha256(&whole)).unwrap();
    let (first, length) = (Bytes::from(whole[..9 << 20].to_vec()), whole.len() as u64);
    let never = Box::pin(stream::unfold(Some(first), async |left| {
        let Some(chunk) = left else { return std::future::pending().await };
        Some((Ok::<_, String>(chunk), None))
    }));
    let sum = sha256(&whole);
    let put = artifacts.put_stream(&key, never, length, &sum);
    let mut put = Box::pin(put);
    // Its first part has arrived.
    let arrived = async {
        while below.files().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        put = &mut put => panic!("{put:?}"),
        () = arrived => {}
    }
    drop(put);
    let gone = async {
        while !below.files().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("in time");
}

#[tokio::test]
#[ignore = "needs an S3 server: scripts/test s3"]
async fn a_store_that_checks_what_it_is_given_is_written_to_by_workers() {
    let Stand { artifacts, below: _gateway } = stand();
    let key = Key::output(&fence(1), 0, &sha256(b"x")).unwrap();
    let place = async |bytes| artifacts.place(&key, bytes, &sha256(b"x"), "video/mp4").await;
    let Place::There(put) = place(5 << 20).await.unwrap() else { panic!("it checks") };
    let names: Vec<&str> = put.headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(names, ["x-amz-checksum-sha256", "content-type", "if-none-match"]);
    let long = place((5 << 20) + 1).await.unwrap();
    assert!(matches!(long, Place::InParts(part) if part == 5 << 20), "{long:?}");
}

#[tokio::test]
async fn a_store_that_checks_nothing_is_found_out_and_written_to_by_the_server_alone() {
    let store = Careless::start().await;
    let artifacts = open(&bucket_at(store.endpoint.clone()));
    artifacts.start().await.expect("files can be kept there");
    let key = Key::output(&fence(1), 0, &sha256(b"x")).unwrap();
    for bytes in [1, 100 << 20] {
        let place = artifacts.place(&key, bytes, &sha256(b"x"), "video/mp4").await.unwrap();
        assert!(matches!(place, Place::Here), "{place:?}");
    }
    let x = stream::iter([Ok::<_, String>(Bytes::from_static(b"x"))]);
    artifacts.put_stream(&key, x, 1, &sha256(b"x")).await.unwrap();
    assert_eq!(artifacts.head(&key).await.unwrap().bytes, 1);
    assert_eq!(store.files().len(), 1, "and nothing of the trial is left: {:?}", store.files());
}

#[tokio::test]
async fn an_address_is_written_as_those_know_the_store_who_get_it() {
    let key = Key::output(&fence(1), 0, &sha256(b"x")).unwrap();
    let address = async |bucket: Bucket| {
        let shown = Shown {
            media_type: "video/mp4",
            disposition: "inline; filename=\"a b.mp4\"",
            cache_control: "private",
            life: None,
        };
        open(&bucket).address(&key, shown).await.unwrap()
    };
    let minio = || bucket_at("http://minio:9000".to_owned());
    let plain = address(minio()).await.unwrap();
    assert!(plain.starts_with("http://minio:9000/videos/some/where/task_"), "{plain}");
    assert!(plain.contains("X-Amz-Expires=60&"), "{plain}");
    assert!(plain.contains("filename%3D%22a%20b.mp4%22"), "{plain}");
    let hosted = address(Bucket { path_style: false, ..minio() }).await.unwrap();
    assert!(hosted.starts_with("http://videos.minio:9000/some/where/task_"), "{hosted}");
    let outside = Some("https://s3.example.com".to_owned());
    let outside = address(Bucket { public_endpoint: outside, ..minio() }).await.unwrap();
    assert!(outside.starts_with("https://s3.example.com/videos/some/where/task_"), "{outside}");
    let aws = Bucket {
        endpoint: None,
        path_style: false,
        region: Some("eu-central-1".into()),
        ..minio()
    };
    let aws = address(aws).await.unwrap();
    assert!(aws.starts_with("https://videos.s3.eu-central-1.amazonaws.com/some/"), "{aws}");
    assert_eq!(address(Bucket { redirect: false, ..minio() }).await, None);
}
