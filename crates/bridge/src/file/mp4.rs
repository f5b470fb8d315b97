//! What an MP4 file says of its first video track. Only the few fields that are needed, of files whose
//! index is whole (ISO/IEC 14496-12); the crates that read all of the format build for longer than the
//! rest of this one.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use super::Facts;

/// The longest index that is read, in bytes: hours of video.
const MAX_INDEX: u64 = 16 << 20;

/// What the file says; none if it can't be understood.
pub(super) fn facts(file: &mut File) -> Option<Facts> {
    let moov = index(file).ok()??;
    children(&moov).filter(|(kind, _)| *kind == b"trak").find_map(|(_, track)| video(track))
}

/// The contents of the box `moov`, which may stand before the media or behind it.
fn index(file: &mut File) -> io::Result<Option<Vec<u8>>> {
    let mut moov = None;
    walk(file, |file, kind, body| {
        if kind == b"moov" {
            let mut bytes = Vec::new();
            file.take(body.min(MAX_INDEX)).read_to_end(&mut bytes)?;
            moov = Some(bytes);
        }
        Ok(moov.is_none())
    })?;
    Ok(moov)
}

/// Are the index and the media there, and do all boxes end within the file?
pub(super) fn is_whole(file: &mut File) -> io::Result<bool> {
    let (mut index, mut media) = (false, false);
    let fits = walk(file, |_, kind, _| {
        index |= kind == b"moov";
        media |= kind == b"mdat";
        Ok(true)
    })?;
    Ok(fits && index && media)
}

/// Goes through the boxes that fill the file, with the file at the content of each and its length,
/// until told not to go on. Says whether they end where the file does, as far as it went.
fn walk(
    file: &mut File,
    mut visit: impl FnMut(&mut File, &[u8], u64) -> io::Result<bool>,
) -> io::Result<bool> {
    let end = file.metadata()?.len();
    let mut at = 0;
    while at < end {
        file.seek(SeekFrom::Start(at))?;
        let mut head = [0; 16];
        let (short, long) = head.split_at_mut(8);
        file.read_exact(short)?;
        let mut size = u64::from(number(short, 0).unwrap_or_default());
        let mut start = 8;
        if size == 1 {
            file.read_exact(long)?;
            size = long.iter().fold(0, |size, byte| size << 8 | u64::from(*byte));
            start = 16;
        } else if size == 0 {
            size = end - at;
        }
        if !visit(file, &short[4..], size.saturating_sub(start))? {
            return Ok(true);
        }
        at = at.saturating_add(size.max(8));
    }
    Ok(at == end)
}

fn video(track: &[u8]) -> Option<Facts> {
    let header = child(track, b"tkhd")?;
    let media = child(track, b"mdia")?;
    if child(media, b"hdlr")?.get(8..12)? != b"vide" {
        return None;
    }
    // Sides are fixed-point numbers of 16 bits before and 16 behind the point, the last of the header.
    let side = |back: usize| number(header, header.len().checked_sub(back)?).map(|side| side >> 16);
    let (width, height) = (side(8)?, side(4)?);
    let clock = child(media, b"mdhd")?;
    let (ticks, duration) = match clock.first()? {
        0 => (number(clock, 12)?, u64::from(number(clock, 16)?)),
        _ => (
            number(clock, 20)?,
            u64::from(number(clock, 24)?) << 32 | u64::from(number(clock, 28)?),
        ),
    };
    let table = child(child(media, b"minf")?, b"stbl")?;
    let frames = number(child(table, b"stsz")?, 8)?;
    let fps = (f64::from(frames) * f64::from(ticks) / duration as f64).round();
    let whole = width > 0 && height > 0 && frames > 0 && duration > 0;
    whole.then_some(Facts { width, height, frames, fps: fps as u32 })
}

/// The boxes in a box.
fn children(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let size = number(bytes, 0)? as usize;
        let kind = bytes.get(4..8)?.first_chunk()?;
        let body = bytes.get(8..size)?;
        bytes = &bytes[size..];
        Some((kind, body))
    })
}

fn child<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    children(bytes).find(|(own, _)| *own == kind).map(|(_, body)| body)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn boxed(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let size = 8 + body.len() as u32;
        [&size.to_be_bytes(), &kind[..], body].concat()
    }

    fn track(kind: &[u8; 4], sides: [u32; 2], ticks: u32, duration: u32, frames: u32) -> Vec<u8> {
        let sides: Vec<u8> = sides.iter().flat_map(|side| (side << 16).to_be_bytes()).collect();
        let header = boxed(b"tkhd", &[&[0; 76][..], &sides].concat());
        let clock = [[0; 4], [0; 4], [0; 4], ticks.to_be_bytes(), duration.to_be_bytes()].concat();
        let handler = boxed(b"hdlr", &[&[0; 8][..], kind, &[0; 12]].concat());
        let sizes = boxed(b"stsz", &[[0; 4], [0; 4], frames.to_be_bytes()].concat());
        let table = boxed(b"minf", &boxed(b"stbl", &sizes));
        let media = boxed(b"mdia", &[boxed(b"mdhd", &clock), handler, table].concat());
        boxed(b"trak", &[header, media].concat())
    }

    fn read(content: &[u8]) -> Option<Facts> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        facts(&mut file)
    }

    #[test]
    fn the_first_video_track_is_told_wherever_the_index_stands() {
        let sound = track(b"soun", [0, 0], 44_100, 44_100, 43);
        let video = track(b"vide", [832, 480], 16_000, 81_000, 81);
        let index = boxed(b"moov", &[boxed(b"mvhd", &[0; 100]), sound, video].concat());
        let (start, media) = (boxed(b"ftyp", b"isom"), boxed(b"mdat", &[7; 1000]));
        let long = [&[0, 0, 0, 1][..], b"mdat", &1016_u64.to_be_bytes(), &[7; 1000]].concat();
        let expected = Some(Facts { width: 832, height: 480, frames: 81, fps: 16 });
        assert_eq!(read(&[&start[..], &index, &media].concat()), expected);
        assert_eq!(read(&[&start[..], &media, &index].concat()), expected);
        assert_eq!(read(&[&start[..], &long, &index].concat()), expected);
    }

    #[test]
    fn a_file_that_is_cut_off_is_not_whole() {
        let index = boxed(b"moov", &track(b"vide", [832, 480], 16_000, 81_000, 81));
        let whole = [boxed(b"ftyp", b"isom"), index.clone(), boxed(b"mdat", &[7; 100])].concat();
        let is_whole = |content: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content).unwrap();
            super::is_whole(&mut file).unwrap_or(false)
        };
        assert!(is_whole(&whole));
        for length in 0..whole.len() {
            assert!(!is_whole(&whole[..length]), "{length}");
        }
        assert!(!is_whole(&[boxed(b"ftyp", b"isom"), index].concat()), "no media");
    }

    #[test]
    fn what_is_cut_off_or_senseless_is_not_understood() {
        let index = boxed(b"moov", &track(b"vide", [832, 480], 16_000, 81_000, 81));
        assert!(read(&index).is_some());
        for length in 0..index.len() {
            assert_eq!(read(&index[..length]), None, "{length}");
        }
        assert_eq!(read(&boxed(b"moov", &track(b"vide", [832, 480], 16, 0, 81))), None);
        assert_eq!(read(&[0; 64]), None);
        assert_eq!(read(&[0xff; 64]), None);
    }
}
