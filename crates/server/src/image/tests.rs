use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

const MOST: u64 = 1_000_000;

/// Eight by eight grey pixels.
const JPEG: &str = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////////////////////////////////wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAA//EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AN//Z";

fn jpeg() -> Vec<u8> {
    STANDARD.decode(JPEG).expect("base64")
}

/// A picture whose pixels differ.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&rgb(width, height)).expect("rows");
    writer.finish().expect("an end");
    bytes
}

fn rgb(width: u32, height: u32) -> Vec<u8> {
    (0..width * height * 3).map(|n| (n * 7) as u8).collect()
}

fn webp(width: u32, height: u32, exif: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif.to_vec());
    }
    let colour = image_webp::ColorType::Rgb8;
    encoder.encode(&rgb(width, height), width, height, colour).expect("encoded");
    bytes
}

/// What tells that the picture lies on its side.
const LYING: &[u8] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";

fn shown(bytes: &[u8]) -> Picture {
    let normal = normalise(bytes, MOST).expect("an image");
    assert_eq!(Format::of(&normal), Some(Format::Png));
    decode::png(&normal, MOST).expect("a PNG").0
}

fn refused(bytes: &[u8]) -> String {
    normalise(bytes, MOST).map(drop).expect_err("refused").to_string()
}

#[test]
fn each_format_becomes_the_same_png() {
    let from_png = shown(&png(3, 2));
    assert_eq!(from_png, Picture { width: 3, height: 2, channels: 3, pixels: rgb(3, 2) });
    assert_eq!(shown(&webp(3, 2, None)), from_png);
    assert_eq!(
        normalise(&webp(3, 2, None), MOST).expect("an image"),
        normalise(&png(3, 2), MOST).expect("an image"),
        "the same pixels are the same bytes, however they came"
    );
    let picture = shown(&jpeg());
    assert_eq!((picture.width, picture.height, picture.channels), (8, 8, 3));
    let lossy = shown(&STANDARD.decode(LOSSY_WEBP).expect("base64"));
    assert!(lossy.width == 8 && lossy.pixels[0] > 200 && lossy.pixels[1] < 50, "red");
}

#[test]
fn what_is_upright_only_by_its_exif_is_turned() {
    let turned = |bytes: &[u8]| {
        let picture = shown(bytes);
        (picture.width, picture.height)
    };
    assert_eq!(turned(&webp(3, 2, Some(LYING))), (2, 3));
    let lying = with_chunk(&png(3, 2), b"eXIf", LYING);
    assert_eq!(turned(&lying), (2, 3));
    let segment = [b"Exif\0\0", LYING].concat();
    let length = (segment.len() as u16 + 2).to_be_bytes();
    let jpeg = jpeg();
    let lying = [&jpeg[..2], b"\xff\xe1", &length, &segment, &jpeg[2..]].concat();
    // Eight by eight, so that only the decoder can tell.
    let exif = decode::jpeg(&lying, MOST).expect("a JPEG").1.expect("it has one");
    assert_ne!(orientation::of(&exif), orientation::of(b""));
}

#[test]
fn nothing_but_the_picture_is_kept() {
    let secret = b"secret: 52.5 N 13.4 E";
    let plain = png(4, 4);
    let told = with_chunk(&plain, b"tEXt", &[b"Comment\0", &secret[..]].concat());
    let told = with_chunk(&told, b"prVt", secret);
    let trailing = [&told[..], secret].concat();
    for bytes in [told, trailing] {
        let normal = normalise(&bytes, MOST).expect("an image");
        assert!(!normal.windows(secret.len()).any(|part| part == secret));
        assert_eq!(normal, normalise(&plain, MOST).expect("an image"));
    }
}

#[test]
fn palettes_and_sixteen_bits_are_eight_bits() {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![1, 2, 3, 4, 5, 6]);
    encoder.set_trns(vec![255, 0]);
    encoder.write_header().expect("a header").write_image_data(&[0, 1]).expect("rows");
    assert_eq!(shown(&bytes).pixels, [1, 2, 3, 255, 4, 5, 6, 0]);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
    encoder.set_color(png::ColorType::GrayscaleAlpha);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.write_header().expect("a header").write_image_data(&[9, 0, 8, 0]).expect("rows");
    let picture = shown(&bytes);
    assert_eq!((picture.channels, &picture.pixels[..]), (2, &[9, 8][..]));
}

#[test]
fn other_formats_are_named() {
    for (bytes, name) in [
        (&b"GIF89a\x01\0\x01\0"[..], "a GIF file"),
        (b"II*\0\x08\0\0\0", "a TIFF file"),
        (b"BM\x46\0\0\0", "a BMP file"),
        (b"\0\0\0\x20ftypavif", "a AVIF file"),
        (b"\0\0\0\x20ftypheic", "a HEIC file"),
        (b"\0\0\0\x20ftypisom", "a video file"),
        (b"\0\0\x01\0\x01\0", "a ICO file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"PK\x03\x04", "a ZIP file"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"\xff\x0a", "a JPEG XL file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a SVG or HTML file"),
        (b"\xef\xbb\xbf <?XML version='1.0'?><svg/>", "a SVG or HTML file"),
        (b"<!DOCTYPE html>", "a SVG or HTML file"),
        (b"", "no image that is known"),
        (b"hello", "no image that is known"),
        (b"\x89PNG\n", "no image that is known"),
    ] {
        let why = refused(bytes);
        assert!(why.contains(name) && why.contains("send a PNG, JPEG or WebP"), "{why}");
    }
    let animated = STANDARD.decode(ANIMATED_WEBP).expect("base64");
    assert!(refused(&animated).contains("animated"));
}

#[test]
fn what_only_begins_like_an_image_is_refused() {
    for whole in [png(64, 64), webp(64, 64, None)] {
        for cut in [8, 16, 40, whole.len() / 2, whole.len() - 13] {
            refused(&whole[..cut]);
        }
    }
    for cut in [3, 40, 100] {
        refused(&jpeg()[..cut]);
    }
    let mut damaged = png(64, 64);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    assert!(refused(&damaged).contains("not a readable PNG"));
}

/// A JPEG of pixels that differ.
fn photo(change: impl FnOnce(&mut jpeg_encoder::Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    change(&mut encoder);
    encoder.encode(&rgb(96, 80), 96, 80, jpeg_encoder::ColorType::Rgb).expect("encoded");
    bytes
}

/// The decoder of JPEGs fills up with grey what is missing.
#[test]
fn an_image_that_was_cut_off_anywhere_is_refused() {
    let baseline = photo(|_| {});
    let thumbnail = [LYING, &jpeg(), b"\0\0"].concat();
    assert!(thumbnail.windows(2).any(|pair| pair == b"\xff\xd9"), "it has an end of its own");
    for (name, whole) in [
        ("baseline", baseline.clone()),
        ("progressive", photo(|encoder| encoder.set_progressive(true))),
        ("with restarts", photo(|encoder| encoder.set_restart_interval(2))),
        ("with a thumbnail", photo(|encoder| encoder.add_exif_metadata(&thumbnail).expect("fits"))),
        ("PNG", png(96, 80)),
        ("WebP", webp(96, 80, None)),
        ("lossy WebP", STANDARD.decode(LOSSY_WEBP).expect("base64")),
    ] {
        shown(&whole);
        let cuts = (5..100).step_by(5).map(|percent| whole.len() * percent / 100);
        // With fewer bytes it is not known what it was.
        for cut in cuts.filter(|cut| *cut >= 12) {
            let why = normalise(&whole[..cut], MOST).map(drop).map_err(|fault| fault.to_string());
            let why = why.expect_err(&format!("{name} cut at {cut} of {}", whole.len()));
            assert!(why.contains("is the file whole?"), "{name} cut at {cut}: {why}");
        }
    }
    for missing in [1, 2] {
        refused(&baseline[..baseline.len() - missing]);
    }
    let trailed = [&baseline[..], b"what cameras write behind the end"].concat();
    assert_eq!(shown(&trailed), shown(&baseline));
}

#[test]
fn a_progressive_jpeg_that_was_cut_between_two_scans_is_refused() {
    let whole = photo(|encoder| encoder.set_progressive(true));
    let pairs = whole.windows(2).enumerate();
    let scans: Vec<usize> =
        pairs.filter(|(_, pair)| *pair == b"\xff\xda").map(|(at, _)| at).collect();
    assert!(scans.len() > 2);
    for scan in &scans[1..] {
        assert!(refused(&whole[..*scan]).contains("is the file whole?"));
    }
}

#[test]
fn an_image_with_too_many_pixels_is_not_decoded() {
    let mut bomb = png(1, 1);
    // Width and height stand behind the signature and the chunk's head; then the checksum.
    bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let sum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&sum.to_be_bytes());
    assert!(refused(&bomb).contains("60000x60000 pixels"));
    let mut bomb = jpeg();
    let frame = bomb.windows(2).position(|pair| pair == b"\xff\xc0").expect("a frame");
    bomb[frame + 5..frame + 9].copy_from_slice(b"\xff\xff\xff\xff");
    assert!(refused(&bomb).contains("65535x65535 pixels"));
    assert!(
        normalise(&webp(20, 20, None), 399).is_err() && normalise(&webp(20, 20, None), 400).is_ok()
    );
    let wide = png(2_000_000, 1);
    assert!(refused(&wide).contains("2000000x1 pixels"));
}

/// The compressed pixels of a picture that is nothing but black: very many from very few bytes.
fn inflating(rows: u32) -> Vec<u8> {
    let width = 10_000;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, rows);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&vec![0; (width * rows) as usize]).expect("rows");
    writer.finish().expect("an end");
    let mut data = Vec::new();
    let mut rest = &bytes[8..];
    while let Some((head, more)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if &head[4..] == b"IDAT" {
            data.extend_from_slice(&more[..length]);
        }
        rest = &more[length + 4..];
    }
    data
}

/// Chunks that say little and hold much are not unpacked, or not beyond the picture's size.
#[test]
fn what_inflates_beyond_the_picture_is_left_packed() {
    let much = inflating(4_000);
    assert!(much.len() < 200_000, "{}", much.len());
    let plain = png(4, 4);
    let normal = normalise(&plain, MOST).expect("an image");
    for (kind, before) in
        [(b"iCCP", &b"a\0\0"[..]), (b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\x01\0\0\0"), (b"prVt", b"")]
    {
        let packed = with_chunk(&plain, kind, &[before, &much].concat());
        assert_eq!(normalise(&packed, MOST).expect("an image"), normal, "{kind:?}");
    }
    // Four by four grey pixels, and forty million behind them.
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 4, 4);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header().expect("a header").write_image_data(&[0; 16]).expect("rows");
    let (head, end) = (&bytes[..33], &bytes[bytes.len() - 12..]);
    let only = with_chunk(&[head, end].concat(), b"IDAT", &much);
    let picture = shown(&only);
    assert_eq!((picture.width, picture.height, picture.pixels), (4, 4, vec![0; 16]));
}

/// Each of them would go over all of the picture again.
#[test]
fn a_jpeg_has_not_very_many_scans() {
    let jpeg = jpeg();
    let at = |marker: &[u8]| jpeg.windows(2).position(|pair| pair == marker).expect("a segment");
    let mut head = jpeg[..at(b"\xff\xda")].to_vec();
    // Progressive, and as large as may be.
    let frame = at(b"\xff\xc0");
    head[frame + 1] = 0xc2;
    head[frame + 5..frame + 9].copy_from_slice(&[3, 0xe8, 3, 0xe8]);
    let scan = |first, last| [0xff, 0xda, 0, 8, 1, 1, 0, first, last, 0, 0, 0];
    let scans = |count: usize| [&scan(0, 0)[..], &scan(1, 63).repeat(count), b"\xff\xd9"].concat();
    let few = normalise(&[&head[..], &scans(3)].concat(), MOST);
    assert!(few.is_ok(), "a few are well");
    assert!(refused(&[&head[..], &scans(20_000)].concat()).contains("not a readable JPEG"));
}

#[test]
fn a_webp_that_says_it_is_large_is_not_decoded() {
    let mut bomb = webp(1, 1, None);
    let at = bomb.windows(4).position(|word| word == b"VP8L").expect("lossless") + 9;
    // Both sides less one, in fourteen bits each: one less than could be.
    bomb[at..at + 4].copy_from_slice(&0x0fff_bffeu32.to_le_bytes());
    assert!(refused(&bomb).contains("16383x16383 pixels"));
    let mut bomb = STANDARD.decode(LOSSY_WEBP).expect("base64");
    let at = bomb.windows(3).position(|word| word == b"\x9d\x01\x2a").expect("a frame") + 3;
    bomb[at..at + 4].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
    assert!(refused(&bomb).contains("16383x16383 pixels"));
}

/// However the bytes are broken: an answer, and no panic.
#[test]
fn broken_bytes_never_break_us() {
    let mut random = 1u64;
    let mut next = || {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize
    };
    let lossy = STANDARD.decode(LOSSY_WEBP).expect("base64");
    for whole in [png(16, 16), jpeg(), webp(16, 16, Some(LYING)), lossy] {
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..1 + next() % 4 {
                let at = next() % bytes.len();
                bytes[at] = next() as u8;
            }
            let _ = normalise(&bytes, MOST);
        }
    }
}

/// The PNG with one more chunk behind its header.
fn with_chunk(png: &[u8], kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [&kind[..], data].concat();
    let (length, sum) = ((data.len() as u32).to_be_bytes(), crc32(&body).to_be_bytes());
    [&png[..33], &length, &body, &sum, &png[33..]].concat()
}

/// CRC-32 as PNG uses it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

/// Eight by eight red pixels, lossy.
const LOSSY_WEBP: &str =
    "UklGRjwAAABXRUJQVlA4IDAAAADQAQCdASoIAAgAAgA0JaACdLoB+AADsAD+8Oj3/yC5YXXI1/8gP+QH/ID/+PIAAAA=";

/// Two frames.
const ANIMATED_WEBP: &str = "UklGRjYBAABXRUJQVlA4WAoAAAACAAAABwAABwAAQU5JTQYAAAD/////AABBTk1GnAAAAAAAAAAAAAcAAAcAAPQBAAJWUDgghAAAAJACAJ0BKggACAACADQlsAJ0MoA6QApUpcrXQxZgAP7xvH4Mzb5PUl9i8SYs9LsFD/mLNfTXj+3K+k/E8uCJ8vCnQEvw9SdXs9lPAjJ3odwBPlSj/8dnY7CkJkH77/lRVtH//KBw/5UP9ORJax/E7974hFQGF5P97z3xQ9bdz/mhn0gAAEFOTUZmAAAAAAAAAwAABwAAAQAA9AEAAFZQOCBOAAAAtAIAnQEqCAACAAAANCWoAnRHAH8AygD9AAUqbGagAP7nSYH9b/tXyV8HYjP/+PlcTv+O9//x8rid4aP/+i118n//gN1//sWuvk/9FgAA";
