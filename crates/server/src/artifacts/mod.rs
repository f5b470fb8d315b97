//! Files that belong to tasks: what was sent with a request, and what attempts have made.
//!
//! A file's place follows from ids and its checksum alone, so that a name from outside can't lead
//! anywhere else, two attempts never share a file, and what lies at a place is what its name says:
//! a file appears there only after its length and checksum were found right.
//!
//! They lie in a directory of this machine ([`directory`]), which is the default, or below a prefix of
//! a bucket ([`s3`]), under the same names: any number of servers can share one.
//! Why so: `docs/design/files.md`.
//!
//! ```text
//! tenant-{name}/{sha256}-{place}/0             what a tenant has sent
//! task_…/{hash of the fence}/{index}-{sha256}  an output of an attempt
//! task_…/input/0                               the image of a request, as the first versions had it
//! ```

mod directory;
mod draft;
mod s3;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream::{BoxStream, Stream};
use http::HeaderMap;
use object_store::path::Path;
use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::lease::Fence;
use rayreel_domain::request::Input;
use rayreel_domain::task::Task;
use sha2::{Digest, Sha256};

use crate::clock::Random;
use directory::Directory;
use s3::S3;
pub use s3::{Bucket, Variables};

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
    /// The store does not do it now, and may do it later.
    #[error("{0}")]
    Unavailable(String),
    /// It can't be used as it is configured.
    #[error("{0}")]
    Unusable(String),
    #[error("{0}")]
    Other(String),
}

impl Error {
    fn too_long(announced: u64) -> Self {
        Self::Mismatch(format!("more than the announced {announced} bytes"))
    }

    fn too_short(came: u64, announced: u64) -> Self {
        Self::Mismatch(format!("{came} bytes came, {announced} were announced"))
    }

    fn other_bytes(found: &str, announced: &str) -> Self {
        let what = format!("the bytes have the checksum {found}, announced was {announced}");
        Self::Mismatch(what)
    }
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

/// A folder that may be deleted: `task_…`, `task_…/name` or `tenant-…/name`.
#[derive(Debug, Clone, Copy)]
struct Folder<'a> {
    path: &'a str,
    owner: &'a str,
    /// None if all of the owner's goes.
    inner: Option<&'a str>,
}

impl<'a> Folder<'a> {
    fn named(path: &'a str) -> Option<Self> {
        let (owner, inner) = match path.split_once('/') {
            Some((owner, inner)) => (owner, Some(inner)),
            None => (path, None),
        };
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let tenant = owner.strip_prefix("tenant-").filter(|_| inner.is_some());
        let owned = owner.parse::<TaskId>().is_ok()
            || tenant.is_some_and(|name| name.parse::<TenantName>().is_ok());
        (owned && inner.is_none_or(plain)).then_some(Self { path, owner, inner })
    }
}

/// The files of all tasks: in one directory, or below one prefix of a bucket.
#[derive(Debug, Clone)]
pub struct Artifacts(Backend);

#[derive(Debug, Clone)]
enum Backend {
    Directory(Directory),
    S3(Arc<S3>),
}

/// What is there under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal, if the store itself has computed one.
    pub sha256: Option<String>,
}

/// How a file gets to its place.
#[derive(Debug)]
pub enum Place {
    /// Through the server.
    Here,
    /// By the worker itself.
    There(Put),
    /// By the worker itself, in parts of so many bytes; or through the server.
    InParts(u64),
}

/// A file that a worker puts to its place in parts.
#[derive(Debug, Clone, Copy)]
pub struct Pieces<'a> {
    pub bytes: u64,
    pub media_type: &'a str,
    /// Of each part.
    pub sha256: &'a [String],
    /// What [`Missing`] called the upload.
    pub upload: Option<&'a str>,
}

/// Parts that are not there yet.
#[derive(Debug)]
pub struct Missing {
    pub upload: String,
    /// Some of them by their number, the first one 0, and where each goes.
    pub parts: Vec<(u32, Put)>,
}

/// A PUT that a worker may send.
#[derive(Debug)]
pub struct Put {
    pub url: String,
    /// It must send these, as they are.
    pub headers: HeaderMap,
}

/// How a file is shown to who downloads it.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    pub media_type: &'a str,
    pub disposition: &'a str,
    pub cache_control: &'a str,
    /// Longest time for which the address may be good.
    pub life: Option<Duration>,
}

impl Artifacts {
    /// Keeps files under `root`, which is made if it is missing.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        Directory::open(root).map(Backend::Directory).map(Self)
    }

    /// Keeps files in a bucket. Asks nothing of it yet.
    pub fn in_bucket(bucket: &Bucket, random: Arc<Random>) -> Result<Self, Error> {
        S3::open(bucket, random).map(|s3| Self(Backend::S3(Arc::new(s3))))
    }

    /// Finds out what the store can do, and says so in the log. That it does not answer just now is no
    /// error: it is asked again when it is needed.
    pub async fn start(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::Directory(_) => Ok(()),
            Backend::S3(s3) => match s3.abilities().await {
                Err(error @ Error::Unavailable(_)) => {
                    tracing::warn!(%error, "the artifact store does not answer; going on without");
                    Ok(())
                }
                looked => looked.map(drop),
            },
        }
    }

    /// Is there room, and may it be written to? A directory is asked by writing, and nothing stays.
    pub async fn probe(&self) -> Result<(), Error> {
        match &self.0 {
            Backend::Directory(directory) => directory.probe().await,
            Backend::S3(s3) => s3.probe().await,
        }
    }

    /// Writes a small file at once, durably.
    pub async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), Error> {
        match &self.0 {
            Backend::Directory(directory) => directory.put(key, bytes).await,
            Backend::S3(s3) => s3.put(key, bytes).await,
        }
    }

    /// Writes a stream, durably, if it turns out to have this length and checksum.
    pub async fn put_stream<E: std::fmt::Display>(
        &self,
        key: &Key,
        stream: impl Stream<Item = Result<Bytes, E>> + Unpin,
        bytes: u64,
        sha256: &str,
    ) -> Result<(), Error> {
        match &self.0 {
            Backend::Directory(directory) => directory.put_stream(key, stream, bytes, sha256).await,
            Backend::S3(s3) => s3.put_stream(key, stream, bytes, sha256).await,
        }
    }

    /// How a worker brings a file of this length and checksum. Where it is to go itself, its address is
    /// good for this key, these bytes and a short time.
    pub async fn place(
        &self,
        key: &Key,
        bytes: u64,
        sha256: &str,
        media_type: &str,
    ) -> Result<Place, Error> {
        match &self.0 {
            Backend::Directory(_) => Ok(Place::Here),
            Backend::S3(s3) => s3.place(key, bytes, sha256, media_type).await,
        }
    }

    /// What is missing of a file that comes in parts; if nothing is, it is put together, and there is
    /// nothing to answer.
    pub async fn parts(&self, key: &Key, pieces: Pieces<'_>) -> Result<Option<Missing>, Error> {
        match &self.0 {
            Backend::Directory(_) => {
                Err(Error::Mismatch("files do not come in parts here".to_owned()))
            }
            Backend::S3(s3) => s3.parts(key, pieces).await,
        }
    }

    /// Where a client gets a file itself, for a short time. None if the server gives it.
    pub async fn address(&self, key: &Key, shown: Shown<'_>) -> Result<Option<String>, Error> {
        match &self.0 {
            Backend::Directory(_) => Ok(None),
            Backend::S3(s3) => s3.address(key, shown).await,
        }
    }

    /// Reads a range of a file.
    pub async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        match &self.0 {
            Backend::Directory(directory) => directory.get(key, range).await,
            Backend::S3(s3) => s3.get(key, range).await,
        }
    }

    /// Looks at a file.
    pub async fn head(&self, key: &Key) -> Result<Found, Error> {
        match &self.0 {
            Backend::Directory(directory) => directory.head(key).await,
            Backend::S3(s3) => s3.head(key).await,
        }
    }

    /// Deletes a file, and its folders if it was the last in them. That it is not there is no
    /// error.
    pub async fn delete(&self, key: &Key) -> Result<(), Error> {
        match &self.0 {
            Backend::Directory(directory) => directory.delete(key).await,
            Backend::S3(s3) => s3.delete(key).await,
        }
    }

    #[cfg(test)]
    fn root(&self) -> &std::path::Path {
        match &self.0 {
            Backend::Directory(directory) => directory.root(),
            Backend::S3(_) => panic!("a bucket is no directory"),
        }
    }

    /// Deletes what uploads of the attempt that broke off have left beside these files.
    pub async fn keep_only(&self, fence: &Fence, keys: &[Key]) -> Result<(), Error> {
        match &self.0 {
            Backend::Directory(directory) => directory.keep_only(fence, keys).await,
            // A bucket shows nothing of an upload that broke off; what it keeps of it goes with the
            // task's folder.
            Backend::S3(_) => Ok(()),
        }
    }

    /// Deletes a folder with all that lies in it, unfinished files too: `task_…`, `task_…/name` or
    /// `tenant-…/name`. That it is not there is no error.
    pub async fn delete_folder(&self, folder: &str) -> Result<(), Error> {
        let folder = Folder::named(folder)
            .ok_or_else(|| Error::Other(format!("`{folder}` is not a folder to delete")))?;
        match &self.0 {
            Backend::Directory(directory) => directory.delete_folder(folder).await,
            Backend::S3(s3) => s3.delete_folder(folder.path).await,
        }
    }
}

#[cfg(test)]
mod tests;
