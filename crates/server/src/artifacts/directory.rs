//! The artifact store in a directory of this machine.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use rayreel_domain::lease::Fence;
use tokio::task::JoinHandle;

use super::draft::Draft;
use super::{Error, Folder, Found, Key};

/// What must fit for the store to be called writable: more than one change of a task writes.
const PROBE_BYTES: usize = 64 << 10;

/// The files of all tasks, in one directory.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    files: Arc<LocalFileSystem>,
    root: PathBuf,
}

impl Directory {
    pub(super) fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        std::fs::create_dir_all(&root)?;
        // An acknowledged upload must survive a power cut: the file, its name, and its folders.
        let files = LocalFileSystem::new_with_prefix(&root)?.with_fsync(true);
        Ok(Self { files: Arc::new(files), root })
    }

    #[cfg(test)]
    pub(super) fn root(&self) -> &std::path::Path {
        &self.root
    }

    pub(super) async fn probe(&self) -> Result<(), Error> {
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

    pub(super) async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), Error> {
        self.files.put(&key.0, bytes.into()).await?;
        Ok(())
    }

    pub(super) async fn put_stream<E: std::fmt::Display>(
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
                return Err(Error::too_long(bytes));
            }
            draft.write(chunk).await?;
        }
        if length < bytes {
            return Err(Error::too_short(length, bytes));
        }
        draft.publish(sha256).await?.map_err(|found| Error::other_bytes(&found, sha256))
    }

    pub(super) async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let found = self.files.get_opts(&key.0, options).await?;
        Ok(found.into_stream().map_err(Error::from).boxed())
    }

    pub(super) async fn head(&self, key: &Key) -> Result<Found, Error> {
        // It has got its name with the checksum that the name tells.
        Ok(Found { bytes: self.files.head(&key.0).await?.size, sha256: None })
    }

    pub(super) async fn delete(&self, key: &Key) -> Result<(), Error> {
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

    pub(super) async fn keep_only(&self, fence: &Fence, keys: &[Key]) -> Result<(), Error> {
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

    pub(super) async fn delete_folder(&self, folder: Folder<'_>) -> Result<(), Error> {
        let (owner, inner) = (folder.owner, folder.inner.is_some());
        let root = self.root.clone();
        let owner = root.join(owner);
        let folder = root.join(folder.path);
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
pub(super) fn sync_folder(path: &std::path::Path) -> io::Result<()> {
    match std::fs::File::open(path) {
        Ok(folder) => folder.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    joined(tokio::task::spawn_blocking(work)).await
}

pub(super) async fn joined<T>(work: JoinHandle<io::Result<T>>) -> Result<T, Error> {
    match work.await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Error::Other(error.to_string())),
    }
}
