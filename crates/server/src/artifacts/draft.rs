//! A file on its way in: it lies beside its place until it is known to be what was announced.
//!
//! What costs time goes on side by side: while a batch is hashed and written, the next one is
//! received; while bytes come at all, the folders become durable. What is left at the end is one
//! sync of the file and one of its folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use sha2::{Digest, Sha256};
use tokio::task::{JoinHandle, spawn_blocking};

use super::directory::{blocking, joined, sync_folder};
use super::{Error, hex};

/// Bytes that are written at a time.
const BATCH: usize = 1 << 19;

/// Tells drafts of the same file apart, which two tries of an upload may write at once.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A file that is being written. Dropped before it is published, it is removed.
pub(super) struct Draft {
    path: PathBuf,
    place: PathBuf,
    /// Received, and not handed on to be written.
    batch: Vec<Bytes>,
    length: usize,
    /// Gives the file back when all that was handed on is written.
    writing: Option<JoinHandle<io::Result<Written>>>,
    folders: Option<JoinHandle<io::Result<()>>>,
    published: bool,
}

struct Written {
    file: File,
    hash: Sha256,
}

impl Draft {
    /// Begins a file for this place, which is somewhere below `root`.
    pub(super) async fn begin(root: &Path, place: PathBuf) -> Result<Self, Error> {
        let at = place.clone();
        let (file, path) = blocking(move || create(&at)).await?;
        let (root, of) = (root.to_owned(), path.clone());
        // Its own folder is synced when the file has its name. Those above it get no more news, but
        // whoever made them may have stopped before they were synced.
        let sync_folders = move || {
            of.ancestors()
                .skip(2)
                .take_while(|folder| folder.starts_with(&root))
                .try_for_each(sync_folder)
        };
        Ok(Self {
            path,
            place,
            batch: Vec::new(),
            length: 0,
            writing: Some(spawn_blocking(move || Ok(Written { file, hash: Sha256::new() }))),
            folders: Some(spawn_blocking(sync_folders)),
            published: false,
        })
    }

    pub(super) async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        self.length += chunk.len();
        self.batch.push(chunk);
        if self.length < BATCH { Ok(()) } else { self.hand_on().await }
    }

    /// Waits until the batch before is written, and has this one written.
    async fn hand_on(&mut self) -> Result<(), Error> {
        let mut written = self.written().await?;
        let batch = std::mem::take(&mut self.batch);
        self.length = 0;
        self.writing = Some(spawn_blocking(move || {
            for chunk in batch {
                written.hash.update(&chunk);
                written.file.write_all(&chunk)?;
            }
            Ok(written)
        }));
        Ok(())
    }

    async fn written(&mut self) -> Result<Written, Error> {
        match self.writing.take() {
            Some(writing) => joined(writing).await,
            None => Err(Error::Other("the file could not be written before".to_owned())),
        }
    }

    /// Gives the file its name, durably, if it has this checksum; else says which it has.
    pub(super) async fn publish(mut self, sha256: &str) -> Result<Result<(), String>, Error> {
        self.hand_on().await?;
        let Written { file, hash } = self.written().await?;
        let found = hex(&hash.finalize());
        if found != sha256 {
            return Ok(Err(found));
        }
        let (path, place) = (self.path.clone(), self.place.clone());
        let publish = move || {
            // Before it has its name: what lies there is whole, even after a power cut.
            file.sync_all()?;
            fs::rename(&path, &place)?;
            place.parent().map_or(Ok(()), sync_folder)
        };
        blocking(publish).await?;
        self.published = true;
        if let Some(folders) = self.folders.take() {
            joined(folders).await?;
        }
        Ok(Ok(()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        let path = std::mem::take(&mut self.path);
        let remove = move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "leftovers of an upload stay");
            }
            _ => {}
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Makes an empty file beside its place, and its folders.
fn create(place: &Path) -> io::Result<(File, PathBuf)> {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(format!("#{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let path = place.with_file_name(name);
    loop {
        // One that a dead server has left under this name is nobody's.
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        match opened {
            // Also if the folder was removed between the two, being empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            }
            opened => return Ok((opened?, path)),
        }
    }
}
