//! Pictures in files: reading the first frame that a request brings, writing stills.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use png::{BitDepth, ColorType, Transformations};
use rayreel_domain::wire::engine::Format;
use resize::px::RGB;
use resize::{Pixel, Type};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::canvas::{Canvas, Color, mix};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// The most pixels that are decoded: what a phone's camera makes, with room above.
const MAX_PIXELS: usize = 32 << 20;

/// Neither side may be longer, in pixels.
const MAX_SIDE: usize = 16_384;

/// Why a picture can't be used; the message is for the request's author.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("can't be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("is over {} MiB", MAX_FILE >> 20)]
    TooManyBytes,
    #[error("is neither a PNG nor a JPEG file")]
    UnknownFormat,
    #[error("of {0} by {1} pixels is too large: at most {MAX_PIXELS} pixels, {MAX_SIDE} a side")]
    TooManyPixels(usize, usize),
    #[error("can't be decoded: {0}")]
    Png(#[from] png::DecodingError),
    #[error("can't be decoded: {0}")]
    Jpeg(#[from] zune_jpeg::errors::DecodeErrors),
    #[error("can't be decoded: it is not 8 bits RGB or grey after conversion")]
    UnexpectedPixels,
}

/// Reads a PNG or JPEG file; transparent parts become black.
pub(crate) fn read(path: &Path) -> Result<Canvas, ReadError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(ReadError::TooManyBytes);
    }
    match bytes.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => read_png(&bytes),
        [0xff, 0xd8, 0xff, ..] => decode_jpeg(&bytes),
        _ => Err(ReadError::UnknownFormat),
    }
}

fn check_size(width: usize, height: usize) -> Result<(), ReadError> {
    if width.max(height) > MAX_SIDE || width * height > MAX_PIXELS {
        return Err(ReadError::TooManyPixels(width, height));
    }
    Ok(())
}

fn read_png(bytes: &[u8]) -> Result<Canvas, ReadError> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes));
    decoder.set_transformations(Transformations::normalize_to_color8());
    let header = decoder.read_header_info()?;
    let (width, height) = (header.width as usize, header.height as usize);
    check_size(width, height)?;
    let mut reader = decoder.read_info()?;
    let size = reader.output_buffer_size().ok_or(ReadError::TooManyPixels(width, height))?;
    let mut samples = vec![0; size];
    let info = reader.next_frame(&mut samples)?;
    if info.bit_depth != BitDepth::Eight || (info.width, info.height) != reader.info().size() {
        return Err(ReadError::UnexpectedPixels);
    }
    let on_black = |color: Color, alpha: u8| mix(Color::default(), color, alpha);
    let pixels = match info.color_type {
        ColorType::Rgb => samples.as_chunks().0.iter().map(|&[r, g, b]| RGB { r, g, b }).collect(),
        ColorType::Rgba => {
            let rgba = samples.as_chunks().0.iter();
            rgba.map(|&[r, g, b, a]| on_black(RGB { r, g, b }, a)).collect()
        }
        ColorType::Grayscale => samples.iter().map(|&l| RGB { r: l, g: l, b: l }).collect(),
        ColorType::GrayscaleAlpha => {
            let grey = samples.as_chunks().0.iter();
            grey.map(|&[l, a]| on_black(RGB { r: l, g: l, b: l }, a)).collect()
        }
        ColorType::Indexed => return Err(ReadError::UnexpectedPixels),
    };
    Ok(Canvas::from_pixels(width, height, pixels))
}

pub(crate) fn decode_jpeg(bytes: &[u8]) -> Result<Canvas, ReadError> {
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers()?;
    let (width, height) = decoder.dimensions().ok_or(ReadError::UnexpectedPixels)?;
    check_size(width, height)?;
    let samples = decoder.decode()?;
    if samples.len() != width * height * 3 {
        return Err(ReadError::UnexpectedPixels);
    }
    let pixels = samples.as_chunks().0.iter().map(|&[r, g, b]| RGB { r, g, b }).collect();
    Ok(Canvas::from_pixels(width, height, pixels))
}

/// The largest part from the middle of `picture` that has the wanted shape, scaled to that size.
pub(crate) fn cover(picture: &Canvas, width: usize, height: usize) -> Canvas {
    // Compared as products: the sides' ratio without rounding.
    let (from_width, from_height) = (picture.width(), picture.height());
    let (part_width, part_height) = match from_width * height > width * from_height {
        true => ((width * from_height / height).max(1), from_height),
        false => (from_width, (height * from_width / width).max(1)),
    };
    let start = (from_height - part_height) / 2 * from_width + (from_width - part_width) / 2;
    let mut pixels = vec![Color::default(); width * height];
    resize::new(part_width, part_height, width, height, Pixel::RGB8, Type::Triangle)
        .and_then(|mut scaler| {
            scaler.resize_stride(&picture.pixels()[start..], from_width, &mut pixels)
        })
        .expect("both pictures have pixels, and the part lies within the picture");
    Canvas::from_pixels(width, height, pixels)
}

/// `picture` at most `width` pixels wide, its shape kept.
pub(crate) fn thumbnail(picture: &Canvas, width: usize) -> Canvas {
    if picture.width() <= width {
        return picture.clone();
    }
    let height = (picture.height() * width).div_ceil(picture.width());
    cover(picture, width, height)
}

/// Quality of JPEG files, in per cent. From 90 on, the encoder keeps the colours of each pixel: text
/// stays readable.
const JPEG_QUALITY: u8 = 92;

/// Why a picture can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Png(#[from] png::EncodingError),
    #[error(transparent)]
    Jpeg(#[from] jpeg_encoder::EncodingError),
    #[error(transparent)]
    Webp(#[from] image_webp::EncodingError),
    #[error("it is not the format of a still")]
    NoStill,
}

/// Writes a file, which must not exist yet; PNG and WebP without loss. The same picture gives the same
/// bytes.
pub(crate) fn write(path: &Path, picture: &Canvas, format: Format) -> Result<(), WriteError> {
    let mut file = BufWriter::new(File::create_new(path)?);
    let samples: Vec<u8> = picture.pixels().iter().flat_map(|p| [p.r, p.g, p.b]).collect();
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    match format {
        Format::Png => write_png(&mut file, &samples, width, height)?,
        Format::Jpeg => jpeg_encoder::Encoder::new(&mut file, JPEG_QUALITY).encode(
            &samples,
            // A canvas has far fewer pixels a side.
            width as u16,
            height as u16,
            jpeg_encoder::ColorType::Rgb,
        )?,
        Format::Webp => image_webp::WebPEncoder::new(&mut file).encode(
            &samples,
            width,
            height,
            image_webp::ColorType::Rgb8,
        )?,
        Format::Mp4 => return Err(WriteError::NoStill),
    }
    file.flush()?;
    Ok(())
}

fn write_png(
    file: impl Write,
    samples: &[u8],
    width: u32,
    height: u32,
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(file, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(samples)?;
    writer.finish()
}
