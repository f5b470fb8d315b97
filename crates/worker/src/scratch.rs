//! Where unfinished files lie: `SCRATCH/WORKER/TASK-ATTEMPT/`, with the engine's files below `out`,
//! and `SCRATCH/WORKER/engine-N/` for what else an engine writes as long as it runs.
//!
//! Only `SCRATCH/.keep/` stays when workers die: what an engine must know of the one before it, such as
//! a job that still runs at a server elsewhere. No worker's name begins with a dot.
//!
//! Nothing in a path comes from a user. A worker that can't write here can't do any task: it gives
//! back what it has and ends, and another one starts only when there is room again.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rayreel_domain::WorkerName;
use rustix::fs::{Mode, OFlags};

/// A worker that has less room than this, in bytes, does not start. Most videos need far less.
const ROOM: u64 = 64 << 20;

/// What outlives workers.
const KEEP: &str = ".keep";

/// The directory of one worker.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes the worker's directory, empty: what lies there is left over from a dead worker of the
    /// same name.
    pub(crate) fn open(parent: &Path, worker: &WorkerName) -> Result<Self, crate::Error> {
        let error_at = |path: &Path| {
            let path = path.to_owned();
            move |error| crate::Error::Scratch { path, error }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(error_at(parent))?;
        // The engine is told absolute paths.
        let parent = parent.canonicalize().map_err(error_at(parent))?;
        let path = parent.join(worker.as_str());
        remove(&path).and_then(|()| private(&path)).map_err(error_at(&path))?;
        check_room(&path).map_err(error_at(&path))?;
        Ok(Self { path })
    }

    /// Makes a fresh directory that lives as long as the answer.
    pub(crate) fn desk(&self, name: &str) -> io::Result<Desk> {
        check_room(&self.path)?;
        let path = self.path.join(name);
        match private(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove(&path)?;
                private(&path)?;
            }
            made => made?,
        }
        let mut desk = Desk { out: path.join("out"), path, beneath: None };
        private(&desk.out)?;
        // Opened before any engine could put something else in its place.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        desk.beneath = Some(rustix::fs::open(&desk.out, flags, Mode::empty())?);
        Ok(desk)
    }

    /// Where this worker's engines may write.
    pub(crate) fn rooms(&self) -> Rooms {
        let parent = self.path.parent().unwrap_or(&self.path);
        Rooms { own: self.path.clone(), keep: parent.join(KEEP), count: 0 }
    }

    /// What the worker ends with when it can't write here.
    pub(crate) fn unfit(&self, error: io::Error) -> crate::Error {
        crate::Error::Scratch { path: self.path.clone(), error }
    }

    /// Is there room for what an engine may make? One that has none fails in ways of its own.
    pub(crate) fn check_room(&self) -> io::Result<()> {
        check_room(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        tidy(&self.path);
    }
}

/// The directory of one attempt; it and everything in it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Desk {
    path: PathBuf,
    out: PathBuf,
    beneath: Option<OwnedFd>,
}

impl Desk {
    /// The engine's output directory.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// The same, held open since before the engine knew it.
    pub(crate) fn beneath(&self) -> &OwnedFd {
        self.beneath.as_ref().expect("a desk that was given out is open")
    }

    /// A file beside the output directory, which is the engine's to fill.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        tidy(&self.path);
    }
}

/// Directories for one engine after the other.
#[derive(Debug)]
pub(crate) struct Rooms {
    own: PathBuf,
    keep: PathBuf,
    count: u64,
}

impl Rooms {
    /// An empty directory for a new engine.
    pub(crate) fn next(&mut self) -> io::Result<Room> {
        self.count += 1;
        let path = self.own.join(format!("engine-{}", self.count));
        private(&path)?;
        Ok(Room { path, keep: self.keep.clone() })
    }
}

/// The directory of one engine; it and everything in it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    path: PathBuf,
    keep: PathBuf,
}

impl Room {
    /// The variables that name it to the engine: its own directory, and the one that stays, which
    /// whoever needs it makes.
    pub(crate) fn variables(&self) -> [(&'static str, &Path); 2] {
        [("RAYREEL_SCRATCH", &self.path), ("RAYREEL_KEEP", &self.keep)]
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        tidy(&self.path);
    }
}

fn check_room(path: &Path) -> io::Result<()> {
    let disk = rustix::fs::statvfs(path)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= ROOM {
        return Ok(());
    }
    let (free, room) = (free >> 20, ROOM >> 20);
    let message = format!("only {free} MiB are free, a worker needs {room} MiB; free some space");
    Err(io::Error::new(io::ErrorKind::StorageFull, message))
}

fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn tidy(path: &Path) {
    if let Err(error) = remove(path) {
        tracing::warn!(path = %path.display(), %error, "scratch files could not be removed");
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_worker_left_goes_and_other_workers_files_stay() {
        let parent = tempfile::tempdir().unwrap();
        for left in ["a/task_1-1/out/video.mp4", "b/task_2-1/out/video.mp4"] {
            let path = parent.path().join(left);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "old").unwrap();
        }
        let scratch = Scratch::open(parent.path(), &"a".parse().unwrap()).unwrap();
        assert_eq!(fs::read_dir(parent.path().join("a")).unwrap().count(), 0);
        assert!(parent.path().join("b/task_2-1/out/video.mp4").exists());
        drop(scratch);
        assert!(!parent.path().join("a").exists());
    }

    #[test]
    fn a_desk_is_fresh_and_goes_with_all_that_is_on_it() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::open(parent.path(), &"w".parse().unwrap()).unwrap();
        let stale = parent.path().canonicalize().unwrap().join("w/x");
        fs::create_dir_all(stale.join("out")).unwrap();
        fs::write(stale.join("out/old"), "old").unwrap();
        let desk = scratch.desk("x").unwrap();
        assert!(desk.out().is_absolute());
        assert_eq!(fs::read_dir(desk.out()).unwrap().count(), 0);
        fs::write(desk.out().join("new"), "new").unwrap();
        fs::write(desk.beside("input.png"), "new").unwrap();
        drop(desk);
        assert!(!stale.exists());
    }

    #[test]
    fn a_parent_that_is_a_file_is_a_clear_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Scratch::open(file.path(), &"w".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    }
}
