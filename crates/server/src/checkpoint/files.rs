//! Files of a checkpoint, read with bounds, and what stands in their place.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use rustix::io::Errno;
use serde_json::{Map, Value};

use super::{AGAIN, Fault};
use crate::home;

/// No JSON file of a checkpoint is longer, but for headers of weights.
const MAX_JSON: u64 = 16 << 20;

/// No directory of a checkpoint has more files.
const MAX_FILES: usize = 10_000;

/// A pointer of Git LFS is shorter.
const MAX_POINTER: u64 = 1024;

/// A file behind all links; none if there is nothing at all.
pub(super) fn metadata(path: &Path) -> Result<Option<Metadata>, Fault> {
    let error = match fs::metadata(path) {
        Ok(metadata) => return Ok(Some(metadata)),
        Err(error) => error,
    };
    if Errno::from_io_error(&error) == Some(Errno::LOOP) {
        return Err(Fault::new(path, "is a link that leads in a circle", AGAIN));
    }
    match (error.kind(), fs::read_link(path)) {
        (io::ErrorKind::NotFound, Ok(target)) => {
            let at = target.display();
            Err(match target.to_string_lossy().contains("annex/objects/") {
                true => annex(path),
                false => {
                    Fault::new(path, format!("is a link to {at}, which does not exist"), AGAIN)
                }
            })
        }
        (io::ErrorKind::NotFound, Err(_)) => Ok(None),
        _ => Err(unreadable(path, &error)),
    }
}

fn annex(path: &Path) -> Fault {
    let what = "is a pointer of git-annex, not the file itself";
    Fault::new(path, what, "run `git annex get .` in the checkpoint's directory")
}

fn unreadable(path: &Path, error: &io::Error) -> Fault {
    Fault::new(
        path,
        format!("can't be read: {}", home::reason(error)),
        "see that the user of the server may read it",
    )
}

/// Opens a regular file; anything else might never end, or never begin.
pub(super) fn open(path: &Path) -> Result<(File, u64), Fault> {
    match metadata(path)? {
        None => Err(Fault::new(path, "is missing", AGAIN)),
        Some(metadata) if !metadata.is_file() => Err(Fault::new(path, "is no file", AGAIN)),
        Some(metadata) => {
            let file = File::open(path).map_err(|error| unreadable(path, &error))?;
            Ok((file, metadata.len()))
        }
    }
}

/// So many bytes of a file, which has them.
pub(super) fn read(file: &mut impl Read, path: &Path, bytes: u64) -> Result<Vec<u8>, Fault> {
    let mut read = Vec::new();
    file.take(bytes).read_to_end(&mut read).map_err(|error| unreadable(path, &error))?;
    if (read.len() as u64) < bytes {
        return Err(Fault::new(path, "became shorter while it was read", AGAIN));
    }
    Ok(read)
}

/// A JSON object.
pub(super) fn json(path: &Path) -> Result<Map<String, Value>, Fault> {
    let (mut file, bytes) = open(path)?;
    if let Some(fault) = placeholder(path) {
        return Err(fault);
    }
    if bytes > MAX_JSON {
        return Err(Fault::new(path, format!("has {bytes} bytes, more than any such file"), AGAIN));
    }
    let text = read(&mut file, path, bytes)?;
    match serde_json::from_slice(&text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Fault::new(path, "is no JSON object", AGAIN)),
        Err(_) if text.is_empty() => Err(Fault::new(path, "is empty", AGAIN)),
        Err(error) => Err(Fault::new(path, format!("is not JSON: {error}"), AGAIN)),
    }
}

/// The names in a directory.
pub(super) fn list(path: &Path) -> Result<Vec<String>, Fault> {
    match metadata(path)? {
        None => return Err(Fault::new(path, "is missing", AGAIN)),
        Some(metadata) if !metadata.is_dir() => {
            return Err(Fault::new(path, "is no directory", AGAIN));
        }
        Some(_) => {}
    }
    let entries = fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
    let mut names = Vec::new();
    for entry in entries.take(MAX_FILES) {
        let entry = entry.map_err(|error| unreadable(path, &error))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// What stands in place of a file that a repository keeps elsewhere.
pub(super) fn placeholder(path: &Path) -> Option<Fault> {
    let metadata = match metadata(path) {
        Ok(metadata) => metadata?,
        Err(fault) => return Some(fault),
    };
    if !metadata.is_file() || metadata.len() > MAX_POINTER {
        return None;
    }
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_POINTER).read_to_end(&mut text).ok()?;
    if text.starts_with(b"version https://git-lfs.github.com/spec/") {
        let what = "is a pointer of Git LFS, not the file itself";
        return Some(Fault::new(path, what, "run `git lfs pull` in the checkpoint's directory"));
    }
    text.starts_with(b"/annex/objects/").then(|| annex(path))
}

/// Can it be the name of something in a directory?
pub(super) fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// A name from a file, in a message.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
