//! The image of a request: decoded once to prove that it is what it says.

use std::io::Cursor;

use axum::body::Bytes;
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use rayreel_domain::request::Input;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::error::Error;
use crate::artifacts::sha256;

/// Largest image, in pixels. A JPEG is decoded in memory: some six bytes a pixel at worst.
const MAX_PIXELS: u64 = 36_000_000;
/// What a PNG decoder may allocate besides its rows.
const MAX_PNG_BYTES: usize = 64 << 20;

const PARAM: &str = "image";
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes an image, or says why not.
type Prove = fn(&[u8]) -> Result<(), Fault>;

enum Fault {
    /// The message is for the caller.
    TooLarge(String),
    /// The cause, in a decoder's words, is for the log.
    Unreadable(String),
}

/// An image that is known to be one.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) bytes: Bytes,
    pub(super) input: Input,
}

/// Where an image comes from.
#[derive(Debug)]
pub(super) enum Source {
    DataUri(String),
    /// A file, as it was read.
    File(Vec<u8>),
}

/// Reads and proves an image; takes its time.
pub(super) fn read(source: Source) -> Result<Image, Error> {
    match source {
        Source::DataUri(uri) => read_data_uri(&uri),
        Source::File(bytes) if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => {
            proved(bytes, "image/png", prove_png)
        }
        Source::File(bytes) if bytes.starts_with(b"\xff\xd8\xff") => {
            proved(bytes, "image/jpeg", prove_jpeg)
        }
        Source::File(_) => Err(Error::invalid(PARAM, "the file is neither a PNG nor a JPEG")),
    }
}

fn read_data_uri(uri: &str) -> Result<Image, Error> {
    let wrong = |message: String| Error::invalid(PARAM, message);
    let Some((head, data)) = uri.strip_prefix("data:").and_then(|rest| rest.split_once(',')) else {
        return Err(wrong(
            "only data URIs are accepted: `data:image/png;base64,…` or `data:image/jpeg;base64,…`"
                .to_owned(),
        ));
    };
    let (media_type, prove): (_, Prove) = match head {
        "image/png;base64" => ("image/png", prove_png),
        "image/jpeg;base64" => ("image/jpeg", prove_jpeg),
        _ => {
            return Err(wrong(
                "the image is `data:image/png;base64,…` or `data:image/jpeg;base64,…`".to_owned(),
            ));
        }
    };
    let bytes = BASE64
        .decode(data)
        .map_err(|_| wrong("what stands behind `base64,` is not base64".to_owned()))?;
    proved(bytes, media_type, prove)
}

fn proved(bytes: Vec<u8>, media_type: &str, prove: Prove) -> Result<Image, Error> {
    let wrong = |message: String| Error::invalid(PARAM, message);
    prove(&bytes).map_err(|fault| match fault {
        Fault::TooLarge(message) => wrong(message),
        Fault::Unreadable(cause) => {
            let message = format!("this is not a readable {media_type}; is the file whole?");
            wrong(message).because(cause)
        }
    })?;
    let input = Input {
        place: None,
        sha256: sha256(&bytes),
        media_type: media_type.to_owned(),
        bytes: bytes.len() as u64,
    };
    Ok(Image { bytes: bytes.into(), input })
}

fn check_size(width: u64, height: u64) -> Result<(), Fault> {
    if width.saturating_mul(height) > MAX_PIXELS {
        let message =
            format!("the image has {width}x{height} pixels; at most {MAX_PIXELS} are read");
        return Err(Fault::TooLarge(message));
    }
    Ok(())
}

/// Row by row: the whole image is never in memory.
fn prove_png(bytes: &[u8]) -> Result<(), Fault> {
    let text = |error: png::DecodingError| Fault::Unreadable(error.to_string());
    let limits = png::Limits { bytes: MAX_PNG_BYTES };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(text)?;
    check_size(info.width.into(), info.height.into())?;
    let mut reader = decoder.read_info().map_err(text)?;
    while reader.next_row().map_err(text)?.is_some() {}
    reader.finish().map_err(text)
}

fn prove_jpeg(bytes: &[u8]) -> Result<(), Fault> {
    let text = |error: &dyn std::fmt::Display| Fault::Unreadable(error.to_string());
    let most = usize::try_from(MAX_PIXELS).unwrap_or(usize::MAX);
    let options = DecoderOptions::default().set_max_width(most).set_max_height(most);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|error| text(&error))?;
    let (width, height) = decoder.dimensions().ok_or_else(|| text(&"it has no size"))?;
    check_size(width as u64, height as u64)?;
    decoder.decode().map(drop).map_err(|error| text(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of one colour.
    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().expect("a header");
        writer.write_image_data(&vec![90; (width * height * 3) as usize]).expect("rows");
        writer.finish().expect("an end");
        bytes
    }

    /// Eight by eight grey pixels.
    const JPEG: &str = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////////////////////////wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AN//Z";

    fn uri(media_type: &str, bytes: &[u8]) -> String {
        format!("data:{media_type};base64,{}", BASE64.encode(bytes))
    }

    fn refused(uri: &str) -> String {
        read_data_uri(uri).expect_err("refused").cause().to_owned()
    }

    #[test]
    fn a_png_and_a_jpeg_are_taken_as_they_are() {
        let bytes = png(3, 2);
        let image = read_data_uri(&uri("image/png", &bytes)).expect("an image");
        assert_eq!(image.bytes, bytes);
        assert_eq!(image.input.bytes, bytes.len() as u64);
        assert_eq!(image.input.sha256, sha256(&bytes));
        let image = read_data_uri(&format!("data:image/jpeg;base64,{JPEG}")).expect("an image");
        assert_eq!(image.input.media_type, "image/jpeg");
        for (bytes, media_type) in
            [(bytes, "image/png"), (BASE64.decode(JPEG).expect("base64"), "image/jpeg")]
        {
            let image = read(Source::File(bytes.clone())).expect("an image");
            assert_eq!((&*image.input.media_type, &*image.bytes), (media_type, &*bytes));
        }
    }

    #[test]
    fn only_data_uris_are_read() {
        for other in ["https://example.com/a.png", "file:///etc/passwd", "/etc/passwd", "data:x"] {
            assert!(refused(other).contains("only data URIs"), "{other}");
        }
        for other in ["data:image/gif;base64,AA", "data:image/png,AA", "data:;base64,AA"] {
            assert!(refused(other).contains("data:image/png;base64"), "{other}");
        }
        assert!(refused("data:image/png;base64,@@").contains("base64"));
    }

    #[test]
    fn what_only_says_that_it_is_an_image_is_refused() {
        let whole = png(64, 64);
        refused(&uri("image/png", &whole[..whole.len() / 2]));
        refused(&uri("image/jpeg", &whole));
        refused(&uri("image/png", b""));
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        refused(&uri("image/png", &damaged));
        refused(&format!("data:image/jpeg;base64,{}", &JPEG[..40]));
    }

    #[test]
    fn an_image_with_too_many_pixels_is_not_decoded() {
        let mut header = png(1, 1);
        // Width and height stand behind the signature and the chunk's head; then the checksum.
        header[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        header[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let sum = crc32(&header[12..29]);
        header[29..33].copy_from_slice(&sum.to_be_bytes());
        assert!(refused(&uri("image/png", &header)).contains("pixels"));
    }

    /// CRC-32 as PNG uses it.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
            })
        })
    }
}
