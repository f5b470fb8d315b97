//! What every store of files must do, done with each of them; and what is special to a bucket.

pub(crate) mod bucket;
mod careless;

use axum::body::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use rayreel_domain::id::{Nonce, TaskId};
use rayreel_domain::lease::Fence;
use rayreel_domain::request::Input;
use rayreel_server::artifacts::{Artifacts, Error, Key, sha256};

/// A store, and what it lives on.
pub(crate) struct Stand<T> {
    pub(crate) artifacts: Artifacts,
    pub(crate) below: T,
}

/// Each of these is a test with a directory, and one with a bucket.
macro_rules! conformance {
    ($($name:ident)*) => {
        mod directory {
            $(#[tokio::test]
            async fn $name() {
                let below = tempfile::tempdir().unwrap();
                let artifacts = super::Artifacts::open(below.path()).unwrap();
                super::$name(artifacts).await;
            })*
        }

        mod s3 {
            $(#[tokio::test]
            #[ignore = "needs an S3 server: scripts/test s3"]
            async fn $name() {
                let stand = super::bucket::stand();
                super::$name(stand.artifacts).await;
            })*
        }
    };
}

conformance! {
    a_stream_is_read_back_whole_and_in_ranges
    what_is_not_as_announced_never_appears
    a_long_file_is_whole_or_not_there
    a_deleted_folder_leaves_nothing_and_may_be_deleted_again
    a_small_file_may_be_put_and_deleted_twice
    only_what_can_be_a_folder_is_deleted
    a_store_that_works_says_so
}

pub(crate) fn fence(attempt: u32) -> Fence {
    Fence { task: TaskId::new(1, [7; 10]), attempt, nonce: Nonce(9) }
}

fn chunks(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, &'static str>> + Unpin {
    let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
    stream::iter(parts)
}

/// Bytes that do not repeat.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

async fn read(artifacts: &Artifacts, key: &Key, range: std::ops::Range<u64>) -> Vec<u8> {
    let parts: Vec<Bytes> = artifacts.get(key, range).await.unwrap().try_collect().await.unwrap();
    parts.concat()
}

async fn is_there(artifacts: &Artifacts, key: &Key) -> bool {
    match artifacts.head(key).await {
        Ok(_) => true,
        Err(Error::NotFound) => false,
        Err(error) => panic!("{error}"),
    }
}

async fn a_stream_is_read_back_whole_and_in_ranges(artifacts: Artifacts) {
    let sum = sha256(b"hello, world");
    let key = Key::output(&fence(1), 0, &sum).unwrap();
    assert!(!is_there(&artifacts, &key).await);
    // Twice: the worker may have missed the answer.
    for _ in 0..2 {
        artifacts.put_stream(&key, chunks(&["hello", ", ", "world"]), 12, &sum).await.unwrap();
    }
    assert_eq!(artifacts.head(&key).await.unwrap().bytes, 12);
    for (range, bytes) in [(0..12, &b"hello, world"[..]), (7..10, b"wor"), (11..12, b"d")] {
        assert_eq!(read(&artifacts, &key, range).await, bytes);
    }
}

async fn what_is_not_as_announced_never_appears(artifacts: Artifacts) {
    let sum = sha256(b"hello");
    let key = Key::output(&fence(1), 0, &sum).unwrap();
    for (parts, bytes) in [(&["hel"][..], 5), (&["hello", "!"], 5), (&["jello"], 5)] {
        let put = artifacts.put_stream(&key, chunks(parts), bytes, &sum).await;
        assert!(matches!(put, Err(Error::Mismatch(_))), "{put:?}");
    }
    let broken = stream::iter([Ok(Bytes::from_static(b"he")), Err("reset")]);
    let put = artifacts.put_stream(&key, broken, 5, &sum).await;
    assert!(matches!(put, Err(Error::Interrupted(_))), "{put:?}");
    assert!(!is_there(&artifacts, &key).await);
}

async fn a_long_file_is_whole_or_not_there(artifacts: Artifacts) {
    // As long as parts of a bucket's file are, twice, and some more; in pieces that don't fit.
    let whole = noise((16 << 20) + 12_345);
    let length = whole.len() as u64;
    let sum = sha256(&whole);
    let key = Key::output(&fence(1), 0, &sum).unwrap();
    let pieces = |upto: usize| {
        let pieces: Vec<Result<Bytes, &str>> =
            whole[..upto].chunks(700_001).map(|it| Ok(Bytes::copy_from_slice(it))).collect();
        stream::iter(pieces)
    };
    let short = artifacts.put_stream(&key, pieces(whole.len() - 1), length, &sum).await;
    assert!(matches!(short, Err(Error::Mismatch(_))), "{short:?}");
    assert!(!is_there(&artifacts, &key).await);
    artifacts.put_stream(&key, pieces(whole.len()), length, &sum).await.unwrap();
    assert_eq!(artifacts.head(&key).await.unwrap().bytes, length);
    assert!(read(&artifacts, &key, 0..length).await == whole);
    let middle = (8 << 20) - 10..(8 << 20) + 10;
    let found = read(&artifacts, &key, middle.clone()).await;
    assert_eq!(found, whole[middle.start as usize..middle.end as usize]);
}

async fn put(artifacts: &Artifacts, key: &Key) {
    artifacts.put_stream(key, chunks(&["x"]), 1, &sha256(b"x")).await.unwrap();
}

async fn a_deleted_folder_leaves_nothing_and_may_be_deleted_again(artifacts: Artifacts) {
    let key = |attempt| Key::output(&fence(attempt), 0, &sha256(b"x")).unwrap();
    for attempt in [1, 2] {
        put(&artifacts, &key(attempt)).await;
    }
    for _ in 0..2 {
        artifacts.delete_folder(&fence(1).folder()).await.unwrap();
        assert!(!is_there(&artifacts, &key(1)).await);
        assert!(is_there(&artifacts, &key(2)).await, "the other attempt's stays");
    }
    put(&artifacts, &key(1)).await;
    for _ in 0..2 {
        artifacts.delete_folder(&fence(1).task.to_string()).await.unwrap();
        assert!(!is_there(&artifacts, &key(1)).await && !is_there(&artifacts, &key(2)).await);
    }
}

async fn a_small_file_may_be_put_and_deleted_twice(artifacts: Artifacts) {
    let tenant = "anna.b".parse().unwrap();
    let input = Input {
        place: Some(7),
        sha256: sha256(b"png"),
        media_type: "image/png".to_owned(),
        bytes: 3,
    };
    let key = Key::content(&tenant, &input).unwrap();
    for _ in 0..2 {
        artifacts.put(&key, Bytes::from_static(b"png")).await.unwrap();
        assert_eq!(read(&artifacts, &key, 0..3).await, b"png");
    }
    for _ in 0..2 {
        artifacts.delete(&key).await.unwrap();
        assert!(!is_there(&artifacts, &key).await);
    }
    artifacts.put(&key, Bytes::from_static(b"png")).await.unwrap();
    artifacts.delete_folder(&input.folder(&tenant).unwrap()).await.unwrap();
    assert!(!is_there(&artifacts, &key).await);
}

async fn only_what_can_be_a_folder_is_deleted(artifacts: Artifacts) {
    let key = Key::output(&fence(1), 0, &sha256(b"x")).unwrap();
    put(&artifacts, &key).await;
    let task = fence(1).task;
    for folder in ["", "/", "..", &format!("{task}/.."), "tenant-anna", "tenant-anna/.."] {
        assert!(artifacts.delete_folder(folder).await.is_err(), "{folder:?}");
    }
    assert!(is_there(&artifacts, &key).await);
}

async fn a_store_that_works_says_so(artifacts: Artifacts) {
    artifacts.start().await.unwrap();
    artifacts.probe().await.unwrap();
}
