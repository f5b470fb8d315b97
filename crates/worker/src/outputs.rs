//! The files that an engine announces, checked: regular, not empty, and truly in its directory.
//!
//! An engine is not trusted with paths: one that follows a link out of its directory could have
//! any file of the machine delivered to a user.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::Arc;

use rayreel_domain::task::Output;
use rayreel_domain::wire::engine::{Format, OutputFile};
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};

/// Most files of one task.
const MAX_FILES: usize = 16;
/// Longest media type that is passed on.
const MAX_MEDIA_TYPE: usize = 100;

/// A file to deliver. It stays open, so that what is uploaded is what was looked at.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) output: Output,
    pub(crate) file: Arc<File>,
}

/// Opens, checks and hashes the announced files; blocks. The error is for people.
pub(crate) fn collect(
    beneath: impl AsFd,
    announced: &[OutputFile],
    format: Format,
) -> Result<Vec<Found>, String> {
    let main = announced.first().ok_or("the engine announced no file")?;
    if main.media_type != format.media_type() {
        let (expected, got) = (format.media_type(), shown(&main.media_type));
        return Err(format!("the main file should be {expected}, but the engine says {got}"));
    }
    if announced.len() > MAX_FILES {
        let count = announced.len();
        return Err(format!("the engine announced {count} files; {MAX_FILES} are the most"));
    }
    let mut seen = HashSet::new();
    let mut found = Vec::with_capacity(announced.len());
    for (index, announced) in (0..).zip(announced) {
        let path = &announced.path;
        if !seen.insert(path) {
            return Err(format!("the engine announced {} twice", shown(path)));
        }
        let output = one(&beneath, announced, index)
            .map_err(|why| format!("the file {} that the engine announced {why}", shown(path)))?;
        found.push(output);
    }
    Ok(found)
}

fn one(beneath: impl AsFd, announced: &OutputFile, index: u32) -> Result<Found, String> {
    let media_type = &announced.media_type;
    let plain =
        media_type.len() <= MAX_MEDIA_TYPE && media_type.bytes().all(|b| b.is_ascii_graphic());
    if !plain || !media_type.contains('/') {
        return Err(format!("has no media type: {}", shown(media_type)));
    }
    let file = File::from(open(beneath, Path::new(&announced.path))?);
    let kind = file.metadata().map_err(|error| format!("can't be looked at: {error}"))?.file_type();
    if !kind.is_file() {
        return Err("is not a regular file".into());
    }
    let (bytes, sha256) = hash(&file).map_err(|error| format!("can't be read: {error}"))?;
    if bytes == 0 {
        return Err("is empty".into());
    }
    let &OutputFile { role, width, height, frames, fps, .. } = announced;
    let media_type = media_type.clone();
    let output = Output { index, role, media_type, bytes, sha256, width, height, frames, fps };
    Ok(Found { output, file: Arc::new(file) })
}

/// Opens a file below a directory, a component at a time, through no link.
fn open(beneath: impl AsFd, path: &Path) -> Result<OwnedFd, String> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            _ => return Err("lies outside its directory".into()),
        }
    }
    let (last, folders) = names.split_last().ok_or("has no name")?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    for folder in folders {
        let from = at.as_ref().map_or(beneath.as_fd(), |fd| fd.as_fd());
        let opened = rustix::fs::openat(from, *folder, flags | OFlags::DIRECTORY, Mode::empty());
        at = Some(opened.map_err(told)?);
    }
    let from = at.as_ref().map_or(beneath.as_fd(), |fd| fd.as_fd());
    // Without blocking: nobody may ever write into a pipe that poses as a file.
    rustix::fs::openat(from, *last, flags | OFlags::NONBLOCK, Mode::empty()).map_err(told)
}

fn told(error: rustix::io::Errno) -> String {
    match error {
        rustix::io::Errno::NOENT => "does not exist".into(),
        rustix::io::Errno::LOOP => "is a link".into(),
        rustix::io::Errno::NOTDIR => "lies below a link or a file".into(),
        error => format!("can't be opened: {error}"),
    }
}

/// Length and SHA-256, in lower-case hexadecimal.
fn hash(mut file: &File) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hex(&hash.finalize()))),
            Ok(count) => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rayreel_domain::wire::engine::Role;
    use rustix::fs::{CWD, mkfifoat};
    use tempfile::TempDir;

    use super::*;

    fn announce(path: &str) -> OutputFile {
        OutputFile {
            path: path.into(),
            role: Role::Video,
            media_type: "video/mp4".into(),
            width: 64,
            height: 64,
            frames: 5,
            fps: 8,
        }
    }

    fn collect_in(dir: &TempDir, paths: &[&str]) -> Result<Vec<Found>, String> {
        let beneath = File::open(dir.path()).unwrap();
        let files: Vec<_> = paths.iter().map(|path| announce(path)).collect();
        collect(&beneath, &files, Format::Mp4)
    }

    #[test]
    fn a_file_is_measured_and_hashed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        fs::write(dir.path().join("deep/a.mp4"), "abc").unwrap();
        let found = collect_in(&dir, &["deep/a.mp4"]).unwrap();
        let output = &found[0].output;
        assert_eq!((output.index, output.bytes), (0, 3));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(output.sha256, abc);
    }

    #[test]
    fn whatever_is_no_regular_file_of_the_directory_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        symlink(outside.path().join("secret"), path("link.mp4")).unwrap();
        symlink(outside.path(), path("folder")).unwrap();
        mkfifoat(CWD, path("pipe.mp4"), Mode::RUSR | Mode::WUSR).unwrap();
        fs::write(path("empty.mp4"), "").unwrap();
        fs::create_dir(path("sub")).unwrap();
        let absolute = outside.path().join("secret");
        let climb = format!("../{}/secret", outside.path().file_name().unwrap().display());
        for (announced, why) in [
            ("link.mp4", "is a link"),
            ("folder/secret", "lies below a link"),
            ("pipe.mp4", "is not a regular file"),
            ("empty.mp4", "is empty"),
            ("sub", "is not a regular file"),
            ("missing.mp4", "does not exist"),
            (absolute.to_str().unwrap(), "lies outside"),
            (climb.as_str(), "lies outside"),
            ("sub/../../x", "lies outside"),
            ("", "has no name"),
            ("nul\0.mp4", "can't be opened"),
        ] {
            let error = collect_in(&dir, &[announced]).unwrap_err();
            assert!(error.contains(why), "{announced:?}: {error}");
        }
    }

    #[test]
    fn a_list_of_files_has_bounds() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.mp4"), "abc").unwrap();
        assert!(collect_in(&dir, &[]).unwrap_err().contains("no file"));
        assert!(collect_in(&dir, &["a.mp4", "a.mp4"]).unwrap_err().contains("twice"));
        assert!(collect_in(&dir, &["a.mp4"; 17]).unwrap_err().contains("17 files"));
    }

    #[test]
    fn the_main_file_is_of_the_kind_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.mp4"), "abc").unwrap();
        let beneath = File::open(dir.path()).unwrap();
        let html = OutputFile { media_type: "text/html".into(), ..announce("a.mp4") };
        let error = collect(&beneath, &[html], Format::Mp4).unwrap_err();
        assert!(error.contains("should be video/mp4"), "{error}");
        for format in Format::ALL {
            let media_type = format.media_type().to_owned();
            let made = [OutputFile { media_type: media_type.clone(), ..announce("a.mp4") }];
            assert_eq!(collect(&beneath, &made, format).unwrap()[0].output.media_type, media_type);
            for other in Format::ALL.into_iter().filter(|other| *other != format) {
                let error = collect(&beneath, &made, other).unwrap_err();
                let told = format!("should be {}, but the engine says", other.media_type());
                assert!(error.contains(&told), "{error}");
            }
        }
        fs::write(dir.path().join("b.png"), "abc").unwrap();
        let split = OutputFile { media_type: "image/png\r\nx: y".into(), ..announce("b.png") };
        let error = collect(&beneath, &[announce("a.mp4"), split], Format::Mp4).unwrap_err();
        assert!(error.contains("no media type"), "{error}");
    }
}
