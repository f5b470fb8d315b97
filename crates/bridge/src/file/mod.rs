//! A file that a program should have written: is it there, is it what was asked for, and how large is
//! its picture?

mod mp4;
mod still;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayreel_domain::wire::engine::{EngineRequest, Format, OutputFile, Role};
use rustix::fs::{Mode, OFlags};

/// What a file says of its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    width: u32,
    height: u32,
    frames: u32,
    fps: u32,
}

/// Checks that there is a regular file, not empty, which begins as its format does, and announces it
/// with the figures that stand in it; what it does not tell is as requested. The error, for the task's
/// owner, says what the program did instead.
pub(crate) fn check(
    directory: &Path,
    name: &str,
    request: &EngineRequest,
) -> Result<OutputFile, String> {
    let format = request.format;
    let mut file = open(&directory.join(name), format)?;
    let media_type = format.media_type();
    let facts = match format {
        Format::Mp4 => mp4::facts(&mut file),
        still => still::facts(&mut file, still),
    };
    let &EngineRequest { width, height, frames, fps, .. } = request;
    let Facts { width, height, frames, fps } =
        facts.unwrap_or(Facts { width, height, frames, fps });
    let role = if format.is_still() { Role::Image } else { Role::Video };
    let (path, media_type) = (name.to_owned(), media_type.to_owned());
    Ok(OutputFile { path, role, media_type, width, height, frames, fps })
}

/// Does the file end as its format does, with all that has to be in it? One that was cut off on its
/// way does not. Whether what is in between can be decoded is not looked at.
pub(crate) fn is_whole(path: &Path, format: Format) -> bool {
    let whole = File::open(path).and_then(|mut file| match format {
        Format::Mp4 => mp4::is_whole(&mut file),
        still => still::is_whole(&mut file, still),
    });
    whole.unwrap_or(false)
}

fn open(path: &Path, format: Format) -> Result<File, String> {
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
        return Ok(file);
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
        assert_eq!(open(&path, Format::Mp4).map(drop), Ok(()));
        let wrong = "wrote video/mp4, where image/png was asked for";
        assert_eq!(open(&path, Format::Png).map(drop), Err(wrong.into()));
        put(b"\x89PNG\r\n\x1a\n");
        assert_eq!(open(&path, Format::Png).map(drop), Ok(()));
        put(b"hello");
        assert_eq!(
            open(&path, Format::Mp4).map(drop),
            Err("wrote a file that is not video/mp4".into())
        );
        put(b"");
        assert_eq!(open(&path, Format::Mp4).map(drop), Err("wrote an empty file".into()));
    }

    #[test]
    fn what_is_no_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        assert_eq!(open(&path, Format::Mp4).map(drop), Err("wrote no file".into()));
        let secret = dir.path().join("secret");
        fs::write(&secret, b"\0\0\0\x20ftypisom").unwrap();
        symlink(&secret, &path).unwrap();
        assert_eq!(open(&path, Format::Mp4).map(drop), Err("made a link instead of a file".into()));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(
            open(&path, Format::Mp4).map(drop),
            Err("made something that is no regular file".into())
        );
    }
}
