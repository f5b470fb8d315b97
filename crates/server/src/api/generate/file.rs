//! A file of this machine that a request names: only below a configured folder, whatever stands in
//! the path and whatever links lie on the way.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::api::error::Error;
use crate::config::InputRoot;

/// Reads a file below one of the roots, of at most `limit` bytes; blocks.
pub(super) fn read(roots: &[InputRoot], path: &str, limit: u64) -> Result<Vec<u8>, Error> {
    let wrong = |message: String| Error::invalid("image", message);
    let asked = Path::new(path);
    if asked.components().any(|part| part == Component::ParentDir) {
        return Err(wrong("`image` must be a path without `..`".to_owned()));
    }
    // Of a folder within a folder, the inner one is meant.
    let below = roots.iter().filter_map(|root| Some((root, asked.strip_prefix(&root.named).ok()?)));
    let Some((root, below)) = below.min_by_key(|(_, below)| below.components().count()) else {
        return Err(wrong(
            "`image` is a path, but not below one of the server's `input_roots`, from which alone \
             it reads files; send the picture as a data URI, or ask the operator"
                .to_owned(),
        ));
    };
    let missing =
        || wrong("there is no file at the path `image` that the server can read".to_owned());
    if below.as_os_str().is_empty() || path.contains('\0') {
        return Err(missing());
    }
    let folder = rustix::fs::open(
        &root.directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| missing().because(format!("{}: {error}", root.directory.display())))?;
    // Without blocking: nobody may ever write into a pipe that poses as a file.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(folder, below, flags, Mode::empty(), resolve);
    let file = File::from(file.map_err(|error| match error {
        Errno::XDEV | Errno::LOOP => wrong("`image` leads out of its folder by a link".to_owned()),
        Errno::NOSYS | Errno::PERM => Error::internal(format!("openat2: {error}")),
        error => missing().because(error),
    })?);
    let metadata = file.metadata().map_err(|error| missing().because(error))?;
    if !metadata.is_file() {
        return Err(wrong("`image` is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    if metadata.len() <= limit {
        // It may grow while it is read.
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| missing().because(error))?;
    }
    if metadata.len() > limit || bytes.len() as u64 > limit {
        return Err(wrong(format!("the file `image` is longer than {limit} bytes")));
    }
    Ok(bytes)
}
