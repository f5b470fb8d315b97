//! A file that a program should have written: is it there, and is it what was asked for?

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayreel_domain::wire::engine::{Format, Role};
use rustix::fs::{Mode, OFlags};

/// What a file of this format is for.
pub(crate) fn role(format: Format) -> Role {
    match format.media_type() {
        "video/mp4" => Role::Video,
        _ => Role::Image,
    }
}

/// Checks that there is a regular file, not empty, which begins as its format does. The error is for
/// the task's owner.
pub(crate) fn check(path: &Path, format: Format) -> Result<(), String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Err("wrote no file".into()),
        Err(rustix::io::Errno::LOOP) => return Err("made a link instead of a file".into()),
        Err(error) => return Err(format!("wrote a file that can't be opened: {error}")),
    };
    let unreadable = |error| format!("wrote a file that can't be read: {error}");
    let about = file.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err("made something that is no regular file".into());
    }
    if about.len() == 0 {
        return Err("wrote an empty file".into());
    }
    let mut start = Vec::with_capacity(12);
    (&mut file).take(12).read_to_end(&mut start).map_err(unreadable)?;
    let asked = format.media_type();
    if begins_as(&start, asked) {
        return Ok(());
    }
    let known = ["video/mp4", "image/png", "image/jpeg", "image/webp"];
    Err(match known.into_iter().find(|other| begins_as(&start, other)) {
        Some(other) => format!("wrote {other}, where {asked} was asked for"),
        None => format!("wrote a file that is not {asked}"),
    })
}

fn begins_as(start: &[u8], media_type: &str) -> bool {
    let at = |offset: usize, magic: &[u8]| {
        start.get(offset..).is_some_and(|start| start.starts_with(magic))
    };
    match media_type {
        "video/mp4" => at(4, b"ftyp"),
        "image/png" => at(0, b"\x89PNG\r\n\x1a\n"),
        "image/jpeg" => at(0, b"\xff\xd8\xff"),
        "image/webp" => at(0, b"RIFF") && at(8, b"WEBP"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_what_its_first_bytes_say() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        let put = |bytes: &[u8]| fs::write(&path, bytes).unwrap();
        put(b"\0\0\0\x20ftypisom");
        assert_eq!(check(&path, Format::Mp4), Ok(()));
        let wrong = "wrote video/mp4, where image/png was asked for";
        assert_eq!(check(&path, Format::Png), Err(wrong.into()));
        put(b"\x89PNG\r\n\x1a\n");
        assert_eq!(check(&path, Format::Png), Ok(()));
        put(b"hello");
        assert_eq!(check(&path, Format::Mp4), Err("wrote a file that is not video/mp4".into()));
        put(b"");
        assert_eq!(check(&path, Format::Mp4), Err("wrote an empty file".into()));
    }

    #[test]
    fn what_is_no_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        assert_eq!(check(&path, Format::Mp4), Err("wrote no file".into()));
        let secret = dir.path().join("secret");
        fs::write(&secret, b"\0\0\0\x20ftypisom").unwrap();
        symlink(&secret, &path).unwrap();
        assert_eq!(check(&path, Format::Mp4), Err("made a link instead of a file".into()));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(check(&path, Format::Mp4), Err("made something that is no regular file".into()));
    }
}
