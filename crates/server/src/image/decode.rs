//! One decoder for each format, each within the same limits.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::Cursor;

use image_webp::WebPDecoder;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Fault, Format, Picture};

/// What a decoder may allocate besides the pixels.
const MAX_ASIDE: usize = 64 << 20;

/// A picture, and its Exif if it has one.
type Decoded = Result<(Picture, Option<Vec<u8>>), Fault>;

fn unreadable(format: Format) -> impl Fn(&dyn Display) -> Fault {
    move |cause| Fault::Unreadable { format, cause: cause.to_string() }
}

/// Before anything is allocated for pixels.
fn check(width: u64, height: u64, max_pixels: u64) -> Result<(), Fault> {
    if width.saturating_mul(height) <= max_pixels {
        return Ok(());
    }
    Err(Fault::Refused(format!(
        "the image has {width}x{height} pixels; at most {max_pixels} are read"
    )))
}

pub(super) fn png(bytes: &[u8], max_pixels: u64) -> Decoded {
    let fault = unreadable(Format::Png);
    let limits = png::Limits { bytes: MAX_ASIDE };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let info = decoder.read_header_info().map_err(|error| fault(&error))?;
    check(info.width.into(), info.height.into(), max_pixels)?;
    let mut reader = decoder.read_info().map_err(|error| fault(&error))?;
    let size = reader.output_buffer_size().ok_or_else(|| fault(&"its size is none"))?;
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(|error| fault(&error))?;
    // What was cut off behind the pixels may be missing before them as well.
    reader.finish().map_err(|error| fault(&error))?;
    pixels.truncate(frame.buffer_size());
    let exif = reader.info().exif_metadata.clone().map(Cow::into_owned);
    let channels = frame.color_type.samples() as u8;
    Ok((Picture { width: frame.width, height: frame.height, channels, pixels }, exif))
}

pub(super) fn jpeg(bytes: &[u8], max_pixels: u64) -> Decoded {
    let fault = unreadable(Format::Jpeg);
    // Each side is at most 65,535 in a JPEG.
    let most = usize::from(u16::MAX);
    let options = DecoderOptions::default()
        .set_max_width(most)
        .set_max_height(most)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| fault(&error))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| fault(&"it has no size"))?;
    check(width as u64, height as u64, max_pixels)?;
    if !is_whole(bytes) {
        return Err(fault(&"it has no end"));
    }
    let pixels = decoder.decode().map_err(|error| fault(&error))?;
    if pixels.len() != width * height * 3 {
        return Err(fault(&"its pixels are not RGB"));
    }
    let picture = Picture { width: width as u32, height: height as u32, channels: 3, pixels };
    Ok((picture, decoder.exif().cloned()))
}

/// Does a JPEG come to its end? The decoder takes one that is cut off for a grey one.
///
/// Its markers are followed to that of the end (ITU-T T.81, annex B): a segment, with whatever looks
/// like an end in it, is passed over by its length, and the data of a scan has no other markers than
/// those that belong to it. What stands behind the end is of no concern.
fn is_whole(bytes: &[u8]) -> bool {
    const START: u8 = 0xd8;
    const END: u8 = 0xd9;
    let follow = |mut rest: &'_ [u8]| loop {
        // Escaped data, restarts and filling bytes are no segments.
        let at = rest.windows(2).position(|pair| {
            pair[0] == 0xff && !matches!(pair[1], 0x00 | 0x01 | 0xd0..=0xd7 | 0xff)
        })?;
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match marker {
            END => return Some(()),
            START => {}
            _ => {
                let length = u16::from_be_bytes(*rest.first_chunk()?);
                rest = rest.get(length.into()..)?;
            }
        }
    };
    follow(bytes).is_some()
}

pub(super) fn webp(bytes: &[u8], max_pixels: u64) -> Decoded {
    let fault = unreadable(Format::WebP);
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|error| fault(&error))?;
    decoder.set_memory_limit(MAX_ASIDE);
    let (width, height) = decoder.dimensions();
    check(width.into(), height.into(), max_pixels)?;
    if decoder.is_animated() {
        return Err(Fault::Refused("the WebP is animated; send a still image".to_owned()));
    }
    let size = decoder.output_buffer_size().ok_or_else(|| fault(&"its size is none"))?;
    let mut pixels = vec![0; size];
    decoder.read_image(&mut pixels).map_err(|error| fault(&error))?;
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    // What tells how to turn it is worth less than the picture.
    let exif = decoder.exif_metadata().unwrap_or_default();
    Ok((Picture { width, height, channels, pixels }, exif))
}
