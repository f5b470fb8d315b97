use super::*;
use futures_util::TryStreamExt;
use futures_util::stream;
use rayreel_domain::id::Nonce;

fn fence(attempt: u32) -> Fence {
    Fence { task: TaskId::new(1, [7; 10]), attempt, nonce: Nonce(9) }
}

fn chunks(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, &'static str>> + Unpin {
    stream::iter(
        parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect::<Vec<_>>(),
    )
}

fn store() -> (tempfile::TempDir, Artifacts) {
    let dir = tempfile::tempdir().expect("a directory");
    let artifacts = Artifacts::open(dir.path().join("artifacts")).expect("opens");
    (dir, artifacts)
}

/// Every file and folder below the root.
fn tree(artifacts: &Artifacts) -> Vec<String> {
    fn walk(at: &std::path::Path, root: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(at).expect("a folder") {
            let path = entry.expect("an entry").path();
            found.push(path.strip_prefix(root).expect("below").display().to_string());
            if path.is_dir() {
                walk(&path, root, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(artifacts.root(), artifacts.root(), &mut found);
    found.sort();
    found
}

async fn text(artifacts: &Artifacts, key: &Key, range: Range<u64>) -> String {
    let parts: Vec<Bytes> =
        artifacts.get(key, range).await.expect("opens").try_collect().await.expect("reads");
    String::from_utf8(parts.concat()).expect("text")
}

#[tokio::test]
async fn a_stream_is_read_back_whole_and_in_ranges() {
    let (_dir, artifacts) = store();
    let sum = sha256(b"hello, world");
    let key = Key::output(&fence(1), 0, &sum).expect("a key");
    // Twice: the worker may have missed the answer.
    for _ in 0..2 {
        artifacts.put_stream(&key, chunks(&["hello", ", ", "world"]), 12, &sum).await.expect("put");
    }
    assert_eq!(artifacts.head(&key).await.expect("there").bytes, 12);
    assert_eq!(text(&artifacts, &key, 0..12).await, "hello, world");
    assert_eq!(text(&artifacts, &key, 7..10).await, "wor");
}

#[tokio::test]
async fn what_is_not_as_announced_never_appears() {
    let (_dir, artifacts) = store();
    let sum = sha256(b"hello");
    let key = Key::output(&fence(1), 0, &sum).expect("a key");
    for (parts, bytes) in [(&["hel"][..], 5), (&["hello", "!"], 5), (&["jello"], 5)] {
        let put = artifacts.put_stream(&key, chunks(parts), bytes, &sum).await;
        assert!(matches!(put, Err(Error::Mismatch(_))), "{put:?}");
    }
    let broken = stream::iter([Ok(Bytes::from_static(b"he")), Err("reset")]);
    let put = artifacts.put_stream(&key, broken, 5, &sum).await;
    assert!(matches!(put, Err(Error::Interrupted(_))), "{put:?}");
    assert!(matches!(artifacts.head(&key).await, Err(Error::NotFound)));
    // Whoever drops an upload does not wait for this.
    while tree(&artifacts).iter().any(|name| name.contains('#')) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_file_of_many_batches_is_whole() {
    let (_dir, artifacts) = store();
    let whole: Vec<u8> = (0..3_000_001_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    let sum = sha256(&whole);
    let key = Key::output(&fence(1), 0, &sum).expect("a key");
    let chunks = whole.chunks(100_003).map(|part| Ok::<_, String>(Bytes::copy_from_slice(part)));
    let length = whole.len() as u64;
    artifacts.put_stream(&key, stream::iter(chunks), length, &sum).await.expect("put");
    let parts: Vec<Bytes> =
        artifacts.get(&key, 0..length).await.expect("opens").try_collect().await.expect("reads");
    assert!(parts.concat() == whole);
    assert_eq!(tree(&artifacts).len(), 3, "two folders and the file");
}

fn tenant() -> rayreel_domain::TenantName {
    "anna.b".parse().expect("a name")
}

fn content() -> Input {
    Input { place: Some(7), sha256: sha256(b"png"), media_type: "image/png".to_owned(), bytes: 3 }
}

#[tokio::test]
async fn a_deleted_folder_leaves_nothing_and_may_be_deleted_again() {
    let (_dir, artifacts) = store();
    let sum = sha256(b"x");
    for attempt in [1, 2] {
        let key = Key::output(&fence(attempt), 0, &sum).expect("a key");
        artifacts.put_stream(&key, chunks(&["x"]), 1, &sum).await.expect("put");
    }
    // As left behind by a server that was killed in the middle of an upload.
    let stray = artifacts.root().join(fence(1).folder()).join(format!("0-{sum}#1"));
    std::fs::write(stray, "partial").expect("written");

    artifacts.delete_folder(&fence(1).folder()).await.expect("deleted");
    let key = Key::output(&fence(2), 0, &sum).expect("a key");
    assert_eq!(artifacts.head(&key).await.expect("the other attempt's stays").bytes, 1);
    for _ in 0..2 {
        artifacts.delete_folder(&fence(2).folder()).await.expect("deleted");
        assert_eq!(tree(&artifacts), [""; 0], "the task's folder went with its last attempt");
    }
    let key = Key::output(&fence(1), 0, &sum).expect("a key");
    artifacts.put(&key, Bytes::from_static(b"png")).await.expect("put");
    artifacts.delete_folder(&fence(1).task.to_string()).await.expect("deleted");
    assert_eq!(tree(&artifacts), [""; 0]);
    let input = content();
    let key = Key::content(&tenant(), &input).expect("a key");
    artifacts.put(&key, Bytes::from_static(b"png")).await.expect("put");
    artifacts.delete_folder(&input.folder(&tenant()).expect("a folder")).await.expect("deleted");
    assert_eq!(tree(&artifacts), [""; 0]);
}

#[tokio::test]
async fn what_broken_uploads_left_goes_with_the_commit() {
    let (_dir, artifacts) = store();
    let sum = sha256(b"x");
    let key = Key::output(&fence(1), 0, &sum).expect("a key");
    artifacts.put_stream(&key, chunks(&["x"]), 1, &sum).await.expect("put");
    let folder = artifacts.root().join(fence(1).folder());
    std::fs::write(folder.join(format!("0-{sum}#1")), "partial").expect("written");
    artifacts.keep_only(&fence(1), std::slice::from_ref(&key)).await.expect("cleaned");
    assert_eq!(std::fs::read_dir(folder).expect("a folder").count(), 1);
    assert_eq!(artifacts.head(&key).await.expect("there").bytes, 1);
}

#[tokio::test]
async fn only_folders_of_tasks_can_be_deleted() {
    let (_dir, artifacts) = store();
    let task = fence(1).task;
    for folder in [
        "",
        "/",
        "..",
        "a",
        &format!("{task}/.."),
        &format!("{task}/a/b"),
        "task_/..",
        "tenant-anna",
        "tenant-anna/",
        "tenant-anna/..",
        "tenant-anna/a/b",
        "tenant-../a",
        "tenant-/a",
    ] {
        assert!(artifacts.delete_folder(folder).await.is_err(), "{folder:?}");
    }
}

#[test]
fn a_checksum_is_64_hexadecimal_digits() {
    for bad in ["", "../../x", &"A".repeat(64), &"a".repeat(63)] {
        assert_eq!(Key::output(&fence(1), 0, bad), None, "{bad:?}");
    }
}

#[test]
fn a_full_disk_is_told_from_other_errors() {
    let wrapped = |kind| object_store::Error::Generic {
        store: "LocalFileSystem",
        source: Box::new(io::Error::from(kind)),
    };
    assert!(matches!(Error::from(wrapped(io::ErrorKind::StorageFull)), Error::Full));
    assert!(matches!(Error::from(wrapped(io::ErrorKind::PermissionDenied)), Error::Other(_)));
}
