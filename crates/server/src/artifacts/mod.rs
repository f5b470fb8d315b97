//! Files that belong to tasks: what was sent with a request, and what attempts have made.
//!
//! A file's place follows from ids and its checksum alone, so that a name from outside can't lead
//! anywhere else, two attempts never share a file, and what lies at a place is what its name says:
//! a file appears there only after its length and checksum were found right.
//!
//! ```text
//! tenant-{name}/{sha256}-{place}/0             what a tenant has sent
//! task_…/{hash of the fence}/{index}-{sha256}  an output of an attempt
//! task_…/input/0                               the image of a request, as the first versions had it
//! ```

mod draft;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::lease::Fence;
use rayreel_domain::request::Input;
use rayreel_domain::task::Task;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use draft::Draft;

/// What must fit for the store to be called writable: more than one change of a task writes.
const PROBE_BYTES: usize = 64 << 10;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no such file")]
    NotFound,
    #[error("no space is left")]
    Full,
    /// What arrived is not what was announced; nothing was kept.
    #[error("{0}")]
    Mismatch(String),
    /// The sender stopped in the middle; nothing was kept.
    #[error("the sender stopped: {0}")]
    Interrupted(String),
    #[error("{0}")]
    Other(String),
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        if matches!(error, object_store::Error::NotFound { .. }) {
            return Self::NotFound;
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(at) = cause {
            if at.downcast_ref::<io::Error>().is_some_and(is_full) {
                return Self::Full;
            }
            cause = at.source();
        }
        Self::Other(error.to_string())
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        if is_full(&error) { Self::Full } else { Self::Other(error.to_string()) }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Where a file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(Path);

impl Key {
    /// What a tenant has sent, once the store has given it a place.
    pub fn content(tenant: &TenantName, input: &Input) -> Option<Self> {
        input.folder(tenant).map(|folder| Self(Path::from(format!("{folder}/0"))))
    }

    /// The image of a task's request.
    pub fn input(task: &Task) -> Option<Self> {
        let own = || Self(Path::from(format!("{}/input/0", task.id)));
        let input = task.request.image.as_ref()?;
        Some(Self::content(&task.tenant, input).unwrap_or_else(own))
    }

    /// The last frame of a task's request.
    pub fn last_input(task: &Task) -> Option<Self> {
        Self::content(&task.tenant, task.request.last_image.as_ref()?)
    }

    /// An output of an attempt; none if `sha256` is not a checksum in lower-case hexadecimal.
    pub fn output(fence: &Fence, index: u32, sha256: &str) -> Option<Self> {
        is_sha256(sha256).then(|| Self(Path::from(format!("{}/{index}-{sha256}", fence.folder()))))
    }
}

/// Is this a SHA-256 in lower-case hexadecimal?
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write;
    digest.iter().fold(String::with_capacity(digest.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The files of all tasks, in one directory.
#[derive(Debug, Clone)]
pub struct Artifacts {
    files: Arc<LocalFileSystem>,
    root: PathBuf,
}

impl Artifacts {
    /// Keeps files under `root`, which is made if it is missing.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        std::fs::create_dir_all(&root)?;
        // An acknowledged upload must survive a power cut: the file, its name, and its folders.
        let files = LocalFileSystem::new_with_prefix(&root)?.with_fsync(true);
        Ok(Self { files: Arc::new(files), root })
    }

    /// Is there room, and may it be written to? Finds out by writing, and leaves nothing.
    pub async fn probe(&self) -> Result<(), Error> {
        let file = self.root.join(".probe");
        blocking(move || {
            let written = std::fs::write(&file, [0; PROBE_BYTES]);
            match std::fs::remove_file(&file) {
                // Another probe was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => written,
                removed => written.and(removed),
            }
        })
        .await
    }

    /// Writes a small file at once, durably.
    pub async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), Error> {
        self.files.put(&key.0, bytes.into()).await?;
        Ok(())
    }

    /// Writes a stream, durably, if it turns out to have this length and checksum.
    pub async fn put_stream<E: std::fmt::Display>(
        &self,
        key: &Key,
        mut stream: impl Stream<Item = Result<Bytes, E>> + Unpin,
        bytes: u64,
        sha256: &str,
    ) -> Result<(), Error> {
        // Dropped before it is published, for whatever reason, it removes what it has written.
        let mut draft = Draft::begin(&self.root, self.root.join(key.0.as_ref())).await?;
        let mut length = 0u64;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| Error::Interrupted(error.to_string()))?;
            length += chunk.len() as u64;
            if length > bytes {
                return Err(Error::Mismatch(format!("more than the announced {bytes} bytes")));
            }
            draft.write(chunk).await?;
        }
        if length < bytes {
            return Err(Error::Mismatch(format!("{length} bytes came, {bytes} were announced")));
        }
        draft.publish(sha256).await?.map_err(|found| {
            let what = format!("the bytes have the checksum {found}, announced was {sha256}");
            Error::Mismatch(what)
        })
    }

    /// Reads a range of a file.
    pub async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let found = self.files.get_opts(&key.0, options).await?;
        Ok(found.into_stream().map_err(Error::from).boxed())
    }

    /// Length of a file.
    pub async fn head(&self, key: &Key) -> Result<u64, Error> {
        Ok(self.files.head(&key.0).await?.size)
    }

    /// Deletes a file, and its folders if it was the last in them. That it is not there is no
    /// error.
    pub async fn delete(&self, key: &Key) -> Result<(), Error> {
        let (root, file) = (self.root.clone(), self.root.join(key.0.as_ref()));
        blocking(move || {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut folder = file.parent();
            while let Some(at) = folder.filter(|at| *at != root) {
                if std::fs::remove_dir(at).is_err() {
                    return sync_folder(at);
                }
                folder = at.parent();
            }
            sync_folder(&root)
        })
        .await
    }

    /// Deletes every other file of the attempt: what uploads that broke off have left.
    pub async fn keep_only(&self, fence: &Fence, keys: &[Key]) -> Result<(), Error> {
        let folder = self.root.join(fence.folder());
        let kept: Vec<_> = keys.iter().map(|key| self.root.join(key.0.as_ref())).collect();
        blocking(move || {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if !kept.contains(&path) {
                    std::fs::remove_file(path)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Deletes a folder with all that lies in it, unfinished files too: `task_…`, `task_…/name` or
    /// `tenant-…/name`. That it is not there is no error.
    pub async fn delete_folder(&self, folder: &str) -> Result<(), Error> {
        let (owner, inner) = match folder.split_once('/') {
            Some((owner, inner)) => (owner, Some(inner)),
            None => (folder, None),
        };
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let tenant = owner.strip_prefix("tenant-").filter(|_| inner.is_some());
        if !(owner.parse::<TaskId>().is_ok()
            || tenant.is_some_and(|name| name.parse::<TenantName>().is_ok()))
            || inner.is_some_and(|name| !plain(name))
        {
            return Err(Error::Other(format!("`{folder}` is not a folder to delete")));
        }
        let root = self.root.clone();
        let owner = root.join(owner);
        let folder = root.join(folder);
        let inner = inner.is_some();
        blocking(move || {
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // The owner's folder goes with the last one in it; it stays while there are others.
            if inner && std::fs::remove_dir(&owner).is_err() {
                return sync_folder(&owner);
            }
            sync_folder(&root)
        })
        .await
    }
}

/// What was deleted must not come back with a power cut: nobody would know of it any more.
fn sync_folder(path: &std::path::Path) -> io::Result<()> {
    match std::fs::File::open(path) {
        Ok(folder) => folder.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    joined(tokio::task::spawn_blocking(work)).await
}

async fn joined<T>(work: JoinHandle<io::Result<T>>) -> Result<T, Error> {
    match work.await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Error::Other(error.to_string())),
    }
}

#[cfg(test)]
mod tests;
