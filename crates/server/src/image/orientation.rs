//! Which way is up: cameras write the picture as the sensor lies, and say in Exif how to turn it.

use super::Picture;

/// How a picture is turned upright: first a mirror image, then a turn clockwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation {
    mirrored: bool,
    quarters: u8,
}

/// The orientation that this Exif (a TIFF, perhaps behind `Exif\0\0`) tells; upright if none.
pub(super) fn of(exif: &[u8]) -> Orientation {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let (mirrored, quarters) = match tag(tiff) {
        Some(2) => (true, 0),
        Some(3) => (false, 2),
        Some(4) => (true, 2),
        Some(5) => (true, 3),
        Some(6) => (false, 1),
        Some(7) => (true, 1),
        Some(8) => (false, 3),
        _ => (false, 0),
    };
    Orientation { mirrored, quarters }
}

/// Tag 0x0112, a short, of the first directory.
fn tag(tiff: &[u8]) -> Option<u16> {
    let big = match tiff.get(..4)? {
        b"MM\0*" => true,
        b"II*\0" => false,
        _ => return None,
    };
    let bytes = |at: usize, count: usize| tiff.get(at..at.checked_add(count)?);
    let short = |at: usize| {
        let pair: [u8; 2] = bytes(at, 2)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) })
    };
    let four: [u8; 4] = bytes(4, 4)?.try_into().ok()?;
    let start = if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) } as usize;
    let entries = usize::from(short(start)?);
    (0..entries).find_map(|n| {
        // Tag, type, count and value, of twelve bytes together.
        let entry = start.checked_add(2 + 12 * n)?;
        (short(entry)? == 0x0112 && short(entry + 2)? == 3).then(|| short(entry + 8)).flatten()
    })
}

impl Orientation {
    pub(super) fn turn(self, picture: Picture) -> Picture {
        if !self.mirrored && self.quarters == 0 {
            return picture;
        }
        let (width, height) = (picture.width as usize, picture.height as usize);
        let lies = self.quarters % 2 == 1;
        let (new_width, new_height) = if lies { (height, width) } else { (width, height) };
        let channels = usize::from(picture.channels);
        let mut pixels = Vec::with_capacity(picture.pixels.len());
        for y in 0..new_height {
            for x in 0..new_width {
                // Where this pixel was before the turn, and before the mirror.
                let (old_x, old_y) = match self.quarters {
                    0 => (x, y),
                    1 => (y, height - 1 - x),
                    2 => (width - 1 - x, height - 1 - y),
                    _ => (width - 1 - y, x),
                };
                let old_x = if self.mirrored { width - 1 - old_x } else { old_x };
                let at = (old_y * width + old_x) * channels;
                pixels.extend_from_slice(&picture.pixels[at..at + channels]);
            }
        }
        let (width, height) = (new_width as u32, new_height as u32);
        Picture { width, height, channels: picture.channels, pixels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An Exif with this orientation, in either byte order.
    fn exif(value: u16, big: bool) -> Vec<u8> {
        let (two, four) = if big {
            (u16::to_be_bytes as fn(u16) -> [u8; 2], u32::to_be_bytes as fn(u32) -> [u8; 4])
        } else {
            (u16::to_le_bytes as fn(u16) -> [u8; 2], u32::to_le_bytes as fn(u32) -> [u8; 4])
        };
        let mut bytes = if big { b"MM".to_vec() } else { b"II".to_vec() };
        bytes.extend(two(42));
        bytes.extend(four(8));
        bytes.extend(two(2));
        for (tag, value) in [(0x0100, 640), (0x0112, value)] {
            bytes.extend(two(tag));
            bytes.extend(two(3));
            bytes.extend(four(1));
            bytes.extend(two(value));
            bytes.extend(two(0));
        }
        bytes.extend(four(0));
        bytes
    }

    /// The letter F, which looks another way however it is turned, as each orientation stores it.
    #[test]
    fn every_orientation_is_turned_upright() {
        let stored = [
            ["xxx", "x..", "xx.", "x..", "x.."],
            ["xxx", "..x", ".xx", "..x", "..x"],
            ["..x", "..x", ".xx", "..x", "xxx"],
            ["x..", "x..", "xx.", "x..", "xxx"],
        ];
        let lying = [
            ["xxxxx", "x.x..", "x...."],
            ["x....", "x.x..", "xxxxx"],
            ["....x", "..x.x", "xxxxx"],
            ["xxxxx", "..x.x", "....x"],
        ];
        let picture = |rows: &[&str]| Picture {
            width: rows[0].len() as u32,
            height: rows.len() as u32,
            channels: 1,
            pixels: rows.concat().into_bytes(),
        };
        let stored = stored.iter().map(|rows| picture(rows));
        let stored = stored.chain(lying.iter().map(|rows| picture(rows)));
        let upright = stored.clone().next().expect("the first is upright");
        for (n, picture) in (1..).zip(stored) {
            for big in [true, false] {
                assert_eq!(of(&exif(n, big)).turn(picture.clone()), upright, "orientation {n}");
            }
        }
    }

    #[test]
    fn pixels_of_several_channels_stay_together() {
        let picture = Picture { width: 2, height: 1, channels: 3, pixels: vec![1, 2, 3, 4, 5, 6] };
        let turned = of(&exif(6, true)).turn(picture);
        assert_eq!((turned.width, turned.height), (1, 2));
        assert_eq!(turned.pixels, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_tells_nothing_is_upright() {
        let upright = Orientation { mirrored: false, quarters: 0 };
        let whole = exif(6, true);
        for cut in 0..whole.len() - 6 {
            // Cut in the middle of the entry or before: nothing is told, and nothing breaks.
            let _ = of(&whole[..cut]);
        }
        for bytes in [&b""[..], b"Exif\0\0", b"MM\0*\xff\xff\xff\xff", &whole[..20]] {
            assert_eq!(of(bytes), upright);
        }
        for value in [0, 1, 9, u16::MAX] {
            assert_eq!(of(&exif(value, false)), upright);
        }
        assert_eq!(of(&[b"Exif\0\0", &whole[..]].concat()).quarters, 1);
    }
}
