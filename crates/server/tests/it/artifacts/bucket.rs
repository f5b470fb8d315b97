//! What is special to a bucket.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream;
use rayreel_server::artifacts::{Artifacts, Bucket, Error, Key, Variables, sha256};
use rayreel_server::clock::Random;

use super::{Stand, fence, noise};
use crate::gateway::{self, Gateway};

pub(crate) fn bucket(gateway: &Gateway) -> Bucket {
    let variables =
        [("AWS_ACCESS_KEY_ID", gateway::KEY), ("AWS_SECRET_ACCESS_KEY", gateway::SECRET)];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Bucket {
        name: gateway::BUCKET.to_owned(),
        prefix: "some/where".to_owned(),
        endpoint: Some(gateway.endpoint()),
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
    let error = open(&missing).start().await.unwrap_err().to_string();
    assert!(error.starts_with("there is no bucket s3://another/some/where at http://"), "{error}");
    let mut locked = bucket(&gateway);
    locked.variables.0[1].1 = "not-the-secret".to_owned();
    let error = open(&locked).start().await.unwrap_err().to_string();
    let told = "the credentials do not open s3://videos/some/where at http://";
    assert!(error.starts_with(told), "{error}");
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
