//! From an AVI of JPEG frames, which sd-server makes, to MP4.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rayreel_testcard::{FromJpegsError, mp4_from_jpegs};
use tokio::time::interval;

use crate::talk::{Failure, Job};

/// How often the worker hears that this goes on.
const SIGN: Duration = Duration::from_secs(1);

/// Writes the frames into a new MP4 file at `path`, with the frame rate of the request.
pub(super) async fn to_mp4(avi: Vec<u8>, path: &Path, job: &Job<'_>) -> Result<(), Failure> {
    let (path, fps) = (PathBuf::from(path), job.generate.request.fps);
    let go_on = Arc::new(AtomicBool::new(true));
    // The thread can't be stopped from outside when this is dropped.
    let _stop = Stop(Arc::clone(&go_on));
    let mut working = tokio::task::spawn_blocking(move || {
        let frames = frames(&avi).ok_or("is no AVI file")?;
        match mp4_from_jpegs(&path, fps, frames, || go_on.load(Ordering::Relaxed)) {
            Ok(()) => Ok(()),
            Err(FromJpegsError::Write(why)) => Err(format!("can't be made into MP4: {why}")),
            Err(error) => Err(format!("can't be made into MP4: {error}")),
        }
    });
    let mut signs = interval(SIGN);
    loop {
        tokio::select! {
            biased;
            made = &mut working => {
                let made = made.unwrap_or_else(|error| Err(error.to_string()));
                return made.map_err(|why| {
                    let message = format!("the server's result {why}");
                    Failure { retryable: false, ..Failure::failed(message) }
                });
            }
            _ = signs.tick() => {
                job.progress("encode", 0, 1);
            }
        }
    }
}

struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// The compressed frames of the first list of frames, in order; none if this is no AVI file.
fn frames(avi: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let (riff, _) = chunk(avi)?;
    let inside = riff.strip(b"RIFF")?.strip_prefix(b"AVI ")?;
    let list = chunks(inside).find_map(|chunk| chunk.strip(b"LIST")?.strip_prefix(b"movi"))?;
    // 00dc: compressed frames of the stream 0.
    Some(chunks(list).filter(|chunk| chunk.name.ends_with(b"dc")).map(|chunk| chunk.data))
}

struct Chunk<'a> {
    name: &'a [u8],
    data: &'a [u8],
}

impl<'a> Chunk<'a> {
    fn strip(&self, name: &[u8]) -> Option<&'a [u8]> {
        (self.name == name).then_some(self.data)
    }
}

/// The first chunk, and what follows it. One that is cut off counts for nothing.
fn chunk(bytes: &[u8]) -> Option<(Chunk<'_>, &[u8])> {
    let (name, rest) = bytes.split_at_checked(4)?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    let (data, rest) = rest.split_at_checked(length)?;
    // They begin at even places.
    Some((Chunk { name, data }, rest.get(length % 2..).unwrap_or_default()))
}

fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    std::iter::from_fn(move || {
        let (first, rest) = chunk(bytes)?;
        bytes = rest;
        Some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk_of(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut chunk = [name.as_slice(), &(data.len() as u32).to_le_bytes(), data].concat();
        chunk.resize(chunk.len().next_multiple_of(2), 0);
        chunk
    }

    #[test]
    fn the_frames_are_found_between_other_chunks() {
        let header = chunk_of(b"LIST", b"hdrlwhatever");
        let frames_list = [
            b"movi".to_vec(),
            chunk_of(b"00dc", b"odd"),
            chunk_of(b"01wb", b"sound"),
            chunk_of(b"00dc", b"even"),
        ]
        .concat();
        let inside =
            [b"AVI ".to_vec(), header, chunk_of(b"JUNK", b"x"), chunk_of(b"LIST", &frames_list)];
        let avi = chunk_of(b"RIFF", &inside.concat());
        assert_eq!(frames(&avi).unwrap().collect::<Vec<_>>(), [b"odd".as_slice(), b"even"]);
    }

    #[test]
    fn what_is_no_avi_or_is_cut_off_has_no_frames() {
        for bytes in [&b""[..], b"RIFF", b"RIFF\x04\0\0\0WAVE", b"RIFF\xff\xff\xff\xffAVI "] {
            assert!(frames(bytes).is_none(), "{bytes:?}");
        }
    }
}
