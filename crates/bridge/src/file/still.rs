//! The sides of a picture, from the first bytes of its file, and whether the file has its end.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use rayreel_domain::wire::engine::Format;

use super::Facts;

/// How much is read in search of a JPEG's frame header, in bytes: what stands before it (a colour
/// profile, a preview) has at most 64 KiB a piece.
const MAX_START: u64 = 1 << 20;

/// How many zeros may stand behind a JPEG, in bytes.
const MAX_PADDING: u64 = 4 << 10;

/// What the file says; none if it can't be understood.
pub(super) fn facts(file: &mut File, format: Format) -> Option<Facts> {
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(MAX_START).read_to_end(&mut start).ok()?;
    let (width, height) = match format {
        Format::Png => png(&start),
        Format::Jpeg => jpeg(&start),
        Format::Webp => webp(&start),
        Format::Mp4 => None,
    }?;
    (width > 0 && height > 0).then_some(Facts { width, height, frames: 1, fps: 0 })
}

/// Does the picture's file end as its format does?
pub(super) fn is_whole(file: &mut File, format: Format) -> io::Result<bool> {
    if facts(file, format).is_none() {
        return Ok(false);
    }
    match format {
        Format::Png => is_whole_png(file),
        Format::Jpeg => is_whole_jpeg(file),
        Format::Webp => is_whole_webp(file),
        Format::Mp4 => Ok(false),
    }
}

/// Chunks, each with its length before it and a checksum behind, up to the one that ends the picture
/// (PNG specification, 5.3, 11.2).
fn is_whole_png(file: &mut File) -> io::Result<bool> {
    let end = file.metadata()?.len();
    let (mut at, mut has_pixels) = (8, false);
    while at < end {
        let mut head = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut head)?;
        let [a, b, c, d, kind @ ..] = head;
        at += 12 + u64::from(u32::from_be_bytes([a, b, c, d]));
        has_pixels |= &kind == b"IDAT";
        if &kind == b"IEND" {
            return Ok(has_pixels && at <= end);
        }
    }
    Ok(false)
}

/// The last marker, behind which some writers put zeros (ITU-T T.81, B.1.1.3).
fn is_whole_jpeg(file: &mut File) -> io::Result<bool> {
    let end = file.metadata()?.len();
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(end.saturating_sub(MAX_PADDING)))?;
    file.take(MAX_PADDING).read_to_end(&mut tail)?;
    while tail.last() == Some(&0) {
        tail.pop();
    }
    Ok(tail.ends_with(b"\xff\xd9"))
}

/// The length in the header is that of all that follows it (RFC 9649, 2.4).
fn is_whole_webp(file: &mut File) -> io::Result<bool> {
    let mut head = [0; 8];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut head)?;
    let [.., a, b, c, d] = head;
    let length = u64::from(u32::from_le_bytes([a, b, c, d]));
    Ok(file.metadata()?.len() >= 8 + length)
}

/// The header is the first chunk of every file (PNG specification, 11.2.1). Sides have 31 bits.
fn png(file: &[u8]) -> Option<(u32, u32)> {
    let header = file.get(8..)?.strip_prefix(b"\0\0\0\x0dIHDR")?;
    let side = |at: usize| Some(u32::from_be_bytes(*header.get(at..)?.first_chunk()?));
    let sides = (side(0)?, side(4)?);
    (sides.0.max(sides.1) <= i32::MAX as u32).then_some(sides)
}

/// Segments, each with its length, up to the frame header (ITU-T T.81, B.2.2).
fn jpeg(file: &[u8]) -> Option<(u32, u32)> {
    let short = |bytes: &[u8]| bytes.first_chunk().map(|side| u16::from_be_bytes(*side));
    let mut rest = file.strip_prefix(b"\xff\xd8")?;
    loop {
        // Any number of fill bytes may stand before a marker.
        while rest.starts_with(b"\xff\xff") {
            rest = rest.get(1..)?;
        }
        let &[0xff, marker, ref segment @ ..] = rest else {
            return None;
        };
        match marker {
            // Tables for Huffman and arithmetic coding, and an extension, have numbers in between.
            0xc4 | 0xc8 | 0xcc => {}
            0xc0..=0xcf => {
                let side = |at: usize| short(segment.get(at..)?).map(u32::from);
                return Some((side(5)?, side(3)?));
            }
            // The picture itself, or its end.
            0xda | 0xd9 => return None,
            _ => {}
        }
        rest = segment.get(usize::from(short(segment)?)..)?;
    }
}

/// The first chunk of the container: extended, lossless or lossy (RFC 9649, 2.7, 3.4; RFC 6386, 9.1).
fn webp(file: &[u8]) -> Option<(u32, u32)> {
    let (kind, chunk) = (file.get(12..16)?, file.get(20..)?);
    let little = |at: usize, count: usize| {
        let bytes = chunk.get(at..at + count)?.iter().rev();
        Some(bytes.fold(0, |number, byte| number << 8 | u32::from(*byte)))
    };
    match kind {
        b"VP8X" => Some((little(4, 3)? + 1, little(7, 3)? + 1)),
        b"VP8L" if chunk.first() == Some(&0x2f) => {
            let sides = little(1, 4)?;
            Some(((sides & 0x3fff) + 1, (sides >> 14 & 0x3fff) + 1))
        }
        // Two bits of each are a scale.
        b"VP8 " if chunk.get(3..6)? == b"\x9d\x01\x2a" => {
            Some((little(6, 2)? & 0x3fff, little(8, 2)? & 0x3fff))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(format: Format, content: &[u8]) -> Option<(u32, u32)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        facts(&mut file, format).map(|Facts { width, height, frames, fps }| {
            assert_eq!((frames, fps), (1, 0));
            (width, height)
        })
    }

    /// The first bytes of pictures of 300x17 pixels, as libpng, libjpeg and libwebp write them.
    fn pictures() -> Vec<(Format, Vec<u8>)> {
        let jpeg = |frame: u8| {
            [
                b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0".as_slice(),
                b"\xff\xdb\0C\0",
                &[1; 64],
                b"\xff\xff\xc4\0\x04\0\0\xff",
                &[frame],
                b"\0\x11\x08\0\x11\x01\x2c\x03\x01",
            ]
            .concat()
        };
        let webp = |chunk: &[u8]| [b"RIFFD\0\0\0WEBP".as_slice(), chunk].concat();
        vec![
            (Format::Png, b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x01\x2c\0\0\0\x11".to_vec()),
            (Format::Jpeg, jpeg(0xc0)),
            (Format::Jpeg, jpeg(0xc2)),
            (Format::Webp, webp(b"VP8 8\0\0\0\xb0\x04\0\x9d\x01*,\x01\x11\0")),
            (Format::Webp, webp(b"VP8L\x14\0\0\0/+\x01\x04\0")),
            (Format::Webp, webp(b"VP8X\x0a\0\0\0\x10\0\0\0\x2b\x01\0\x10\0\0")),
        ]
    }

    #[test]
    fn sides_stand_in_the_file() {
        for (format, content) in pictures() {
            assert_eq!(read(format, &content), Some((300, 17)), "{}", content.escape_ascii());
        }
    }

    #[test]
    fn what_is_cut_off_or_senseless_is_not_understood() {
        for (format, content) in pictures() {
            let needed = if format == Format::Jpeg { content.len() - 2 } else { content.len() };
            for length in 0..needed {
                assert_eq!(read(format, &content[..length]), None, "{}", content.escape_ascii());
            }
            assert_eq!(read(format, &[0xff; 64]), None);
        }
        let png = |header: &[u8]| read(Format::Png, &[b"\x89PNG\r\n\x1a\n", header].concat());
        assert_eq!(png(b"\0\0\0\x0dIHDR\0\0\0\0\0\0\0\x11"), None, "no width");
        assert_eq!(png(b"\0\0\0\x0dIHDR\0\0\0\x11\0\0\0\0"), None, "no height");
        assert_eq!(png(b"\0\0\0\x0dIHDR\xff\xff\xff\xff\0\0\0\x11"), None, "too wide");
        assert_eq!(png(b"\0\0\0\x0dIDAT\0\0\0\x11\0\0\0\x11"), None, "no header");
        let still = b"\xff\xd8\xff\xda\0\x02\xff\xc0\0\x11\x08\0\x11\x01\x2c";
        assert_eq!(read(Format::Jpeg, still), None, "no frame header");
    }

    #[test]
    fn a_picture_that_is_cut_off_is_not_whole() {
        let ends = |format| -> &'static [u8] {
            match format {
                Format::Png => {
                    b"\x08\x02\0\0\0crc.\0\0\0\x02IDAT..crc.\0\0\0\0IEND\xae\x42\x60\x82"
                }
                Format::Jpeg => b"\0\0\xff\xda\0\x02scan\xff\xd9",
                _ => &[7; 0x4c],
            }
        };
        let is_whole = |format: Format, content: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content).unwrap();
            is_whole(&mut file, format).unwrap_or(false)
        };
        for (format, start) in pictures() {
            let mut whole = [&start[..], ends(format)].concat();
            if format == Format::Webp {
                // As the header says.
                whole.truncate(8 + 0x44);
            }
            assert!(is_whole(format, &whole), "{}", whole.escape_ascii());
            for length in 0..whole.len() {
                assert!(!is_whole(format, &whole[..length]), "{format:?}, {length}");
            }
            assert!(is_whole(format, &[&whole[..], &[0; 100]].concat()), "padded");
        }
    }
}
