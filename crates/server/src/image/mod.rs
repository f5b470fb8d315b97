//! Images from outside: decoded within limits and written anew, so that what is stored is a picture
//! and nothing else.
//!
//! What comes out is a PNG of eight bits a channel, upright, without metadata: no camera's location,
//! nothing hidden behind the pixels, and for engines one format.

mod decode;
mod orientation;

use std::fmt;

/// A format that is known by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Png,
    Jpeg,
    WebP,
    /// One that is not decoded.
    Other(&'static str),
}

impl Format {
    /// The format of these bytes; none if nobody knows them.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let begins = |with: &[u8]| bytes.starts_with(with);
        let brand = bytes.get(4..8).filter(|kind| *kind == b"ftyp").and_then(|_| bytes.get(8..12));
        Some(match bytes {
            _ if begins(b"\x89PNG\r\n\x1a\n") => Self::Png,
            _ if begins(b"\xff\xd8\xff") => Self::Jpeg,
            _ if begins(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") => Self::WebP,
            _ if begins(b"GIF8") => Self::Other("GIF"),
            _ if begins(b"II*\0") || begins(b"MM\0*") => Self::Other("TIFF"),
            _ if begins(b"BM") => Self::Other("BMP"),
            _ if begins(b"\0\0\x01\0") => Self::Other("ICO"),
            _ if begins(b"%PDF") => Self::Other("PDF"),
            _ if begins(b"PK\x03\x04") => Self::Other("ZIP"),
            _ if begins(b"\x1f\x8b") => Self::Other("gzip"),
            _ if begins(b"\xff\x0a") || begins(b"\0\0\0\x0cJXL ") => Self::Other("JPEG XL"),
            _ if is_markup(bytes) => Self::Other("SVG or HTML"),
            _ => match brand? {
                b"avif" | b"avis" => Self::Other("AVIF"),
                b"heic" | b"heix" | b"mif1" | b"msf1" => Self::Other("HEIC"),
                _ => Self::Other("video"),
            },
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::WebP => "WebP",
            Self::Other(name) => name,
        }
    }
}

fn is_markup(bytes: &[u8]) -> bool {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    [&b"<?xml"[..], b"<svg", b"<!doctype", b"<html"]
        .iter()
        .any(|start| text.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start)))
}

/// Why an image is not taken. The message is for the caller.
#[derive(Debug)]
pub enum Fault {
    Refused(String),
    /// The cause, in a decoder's words, is for the log.
    Unreadable {
        format: Format,
        cause: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(message) => f.write_str(message),
            Self::Unreadable { format, .. } => {
                write!(f, "this is not a readable {}; is the file whole?", format.name())
            }
        }
    }
}

/// An image that was decoded: rows from the top, one byte a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Picture {
    width: u32,
    height: u32,
    /// Grey, grey and alpha, RGB, RGBA.
    channels: u8,
    pixels: Vec<u8>,
}

/// Decodes an image of at most so many pixels, turns it upright, and writes it as a PNG. Takes its
/// time, and up to some twelve bytes a pixel.
pub fn normalise(bytes: &[u8], max_pixels: u64) -> Result<Vec<u8>, Fault> {
    let refused = |message: String| Err(Fault::Refused(message));
    let Some(format) = Format::of(bytes) else {
        return refused("this is no image that is known; send a PNG, JPEG or WebP".to_owned());
    };
    let (picture, exif) = match format {
        Format::Png => decode::png(bytes, max_pixels),
        Format::Jpeg => decode::jpeg(bytes, max_pixels),
        Format::WebP => decode::webp(bytes, max_pixels),
        Format::Other(name) => {
            return refused(format!("this is a {name} file; send a PNG, JPEG or WebP"));
        }
    }?;
    let upright = orientation::of(exif.as_deref().unwrap_or_default()).turn(picture);
    encode(&upright).map_err(|error| Fault::Unreadable { format, cause: error.to_string() })
}

fn encode(picture: &Picture) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width, picture.height);
    encoder.set_color(match picture.channels {
        1 => png::ColorType::Grayscale,
        2 => png::ColorType::GrayscaleAlpha,
        3 => png::ColorType::Rgb,
        _ => png::ColorType::Rgba,
    });
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.pixels)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
