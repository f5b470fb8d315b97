//! What the files hold.

use std::fs::File;
use std::io::Cursor;
use std::path::Path;

use openh264::decoder::Decoder;
use openh264::formats::YUVSource as _;
use rayreel_domain::wire::engine::{EngineErrorCode, EngineRequest, Format};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::mp4::Mp4;
use crate::{Engine, files_in, generate, still, video};

/// A decoded PNG file.
#[derive(PartialEq)]
struct Picture {
    width: usize,
    height: usize,
    samples: Vec<u8>,
}

impl Picture {
    fn decode(bytes: &[u8]) -> Picture {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().expect("a PNG file");
        let mut samples = vec![0; reader.output_buffer_size().expect("its size")];
        let info = reader.next_frame(&mut samples).expect("its pixels");
        assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
        Picture { width: info.width as usize, height: info.height as usize, samples }
    }

    fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let start = (y * self.width + x) * 3;
        self.samples[start..start + 3].try_into().expect("three samples")
    }

    /// The rows in which two pictures of one size differ, as the first and the last.
    fn rows_that_differ(&self, other: &Picture) -> Option<(usize, usize)> {
        assert_eq!((self.width, self.height), (other.width, other.height));
        let rows = self.samples.chunks(self.width * 3).zip(other.samples.chunks(self.width * 3));
        let mut differ = rows.enumerate().filter(|(_, (a, b))| a != b).map(|(y, _)| y);
        let first = differ.next()?;
        Some((first, differ.next_back().unwrap_or(first)))
    }
}

fn picture(request: EngineRequest) -> Picture {
    Picture::decode(&generate(request).1[0])
}

fn with_prompt(prompt: &str) -> EngineRequest {
    EngineRequest { prompt: prompt.into(), ..still() }
}

#[test]
fn the_same_request_gives_the_same_bytes_and_another_seed_others() {
    let stills = Format::ALL.into_iter().filter(|format| format.is_still());
    let stills = stills.map(|format| EngineRequest { format, ..still() });
    for request in [video()].into_iter().chain(stills) {
        let first = generate(request.clone()).1;
        assert!(first == generate(request.clone()).1, "same bytes");
        let other = generate(EngineRequest { seed: 43, ..request }).1;
        assert!(first.iter().zip(&other).all(|(first, other)| first != other), "other bytes");
    }
}

#[test]
fn a_still_is_the_same_picture_in_each_format() {
    let of = |format| generate(EngineRequest { format, ..still() });
    let drawn = Picture::decode(&of(Format::Png).1[0]);

    let (done, files) = of(Format::Webp);
    assert_eq!((&*done.files[0].path, &*done.files[0].media_type), ("image.webp", "image/webp"));
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(&files[0])).expect("a WebP file");
    assert_eq!(decoder.dimensions(), (320, 192));
    assert!(!decoder.has_alpha() && !decoder.is_lossy());
    let mut samples = vec![0; decoder.output_buffer_size().expect("its size")];
    decoder.read_image(&mut samples).expect("its pixels");
    assert!(samples == drawn.samples, "without loss");

    let (done, files) = of(Format::Jpeg);
    assert_eq!((&*done.files[0].path, &*done.files[0].media_type), ("image.jpg", "image/jpeg"));
    let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&files[0]), options);
    let samples = decoder.decode().expect("a JPEG file");
    assert_eq!(decoder.dimensions(), Some((320, 192)));
    let pairs = samples.iter().zip(&drawn.samples);
    let error = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
    let mean = error as f64 / drawn.samples.len() as f64;
    assert!(samples.len() == drawn.samples.len() && mean < 3.0, "{mean} of 255 off, on average");
}

#[test]
fn a_video_has_the_size_frames_and_length_that_were_asked_for() {
    for (width, height, frames, fps) in [
        (320, 192, 5, 16),
        (64, 64, 1, 1),
        (64, 64, 321, 60),
        (66, 70, 9, 7),
        (64, 1920, 5, 24),
        (1920, 64, 5, 25),
        (1920, 1088, 5, 30),
        (1088, 1920, 1, 60),
    ] {
        let request = EngineRequest { width, height, frames, fps, ..video() };
        let (done, files) = generate(request);
        let asked = (width, height, frames, fps);
        let file = &done.files[0];
        assert_eq!((file.width, file.height, file.frames, file.fps), asked);

        let mp4 = Mp4(&files[0]);
        assert_eq!(mp4.names(), ["ftyp", "moov", "mdat"]);
        assert_eq!((mp4.size(), mp4.frames()), ((width, height), frames));
        let (each, whole) = mp4.durations();
        assert_eq!(each.len(), frames as usize);
        let seconds = 1.0 / f64::from(fps);
        assert!(each.iter().all(|each| (each - seconds).abs() < 2e-5), "{asked:?}: {each:?}");
        let seconds = f64::from(frames) / f64::from(fps);
        assert!(whole.iter().all(|whole| (whole - seconds).abs() < 2e-3), "{asked:?}: {whole:?}");

        let mut decoder = Decoder::new().expect("a decoder");
        let mut decoded = 0;
        for frame in mp4.stream() {
            let picture = decoder.decode(&frame).expect("a frame that decodes");
            let picture = picture.expect("a picture for each frame");
            assert_eq!(picture.dimensions(), (width as usize, height as usize));
            decoded += 1;
        }
        assert_eq!(decoded, frames);

        let thumbnail = Picture::decode(&files[1]);
        let file = &done.files[1];
        assert_eq!((file.width, file.height), (thumbnail.width as u32, thumbnail.height as u32));
        assert_eq!(file.width, width.min(320));
        assert_eq!(file.height, (height * file.width).div_ceil(width));
    }
}

#[test]
fn a_video_shows_what_the_still_shows_and_moves() {
    let request = EngineRequest { frames: 17, ..video() };
    let files = generate(request).1;
    let mut decoder = Decoder::new().unwrap();
    let mut lumas = Vec::new();
    for frame in Mp4(&files[0]).stream() {
        let picture = decoder.decode(&frame).unwrap().unwrap();
        let (stride, (width, height)) = (picture.strides().0, picture.dimensions());
        let rows = picture.y().chunks(stride).take(height);
        lumas.push(rows.flat_map(|row| row[..width].to_vec()).collect::<Vec<u8>>());
    }
    // The thumbnail is the first frame, before the encoder: at this width nothing is scaled.
    let thumbnail = Picture::decode(&files[1]);
    let luma = |[r, g, b]: [u8; 3]| {
        16.0 + (0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b)) * 219.0
            / 255.0
    };
    let error: f64 = (0..192 * 320)
        .map(|i| (luma(thumbnail.pixel(i % 320, i / 320)) - f64::from(lumas[0][i])).powi(2))
        .sum();
    assert!(error / (192.0 * 320.0) < 10.0, "mean square error {}", error / (192.0 * 320.0));

    for (index, pair) in lumas.windows(2).enumerate() {
        let moved = pair[0].iter().zip(&pair[1]).filter(|(a, b)| a.abs_diff(**b) > 16).count();
        assert!(moved > 100, "{moved} pixels moved after frame {index}");
    }
}

#[test]
fn the_prompt_can_be_read_off_in_chinese_too() {
    let without = picture(with_prompt(""));
    let english = picture(with_prompt("a red fox"));
    let chinese = picture(with_prompt("一只红色的狐狸在雪地里奔跑"));
    let other = picture(with_prompt("两只黑色的兔子在草原上睡觉"));
    for (one, two) in
        [(&without, &english), (&without, &chinese), (&english, &chinese), (&chinese, &other)]
    {
        let (first, last) = one.rows_that_differ(two).expect("other pictures");
        assert!(first > 192 * 6 / 10 && last < 192, "rows {first} to {last}: outside the panel");
    }
}

#[test]
fn every_parameter_shows() {
    let still = EngineRequest { width: 832, height: 480, ..still() };
    let plain = picture(still.clone());
    for request in [
        EngineRequest { steps: 4, ..still.clone() },
        EngineRequest { guidance: None, ..still.clone() },
        EngineRequest { guidance: Some(5.1), ..still.clone() },
        EngineRequest { guidance_2: Some(4.0), ..still },
    ] {
        assert!(plain != picture(request.clone()), "{request:?}");
    }
}

#[test]
fn no_prompt_is_too_odd() {
    let control: String = (0..=0x9f).map(char::from).collect();
    let scripts: String = (0..0x2_ffff).step_by(37).filter_map(char::from_u32).collect();
    let marks = "\u{301}".repeat(10_000);
    let long = "雪".repeat(10_000);
    let word = "x".repeat(10_000);
    let blank = " \n\t\r\n\u{3000}\u{2028}".repeat(500);
    for prompt in [
        "\0\u{1b}[31m\u{7f}\u{85}",
        "مرحبا بالعالم שלום עולם \u{202e}reversed\u{202c}",
        "👩‍👩‍👧‍👦🇨🇳🦊\u{fe0f}\u{200d}",
        "\u{10ffff}\u{e0001}\u{feff}\u{fffe}",
        &control,
        &scripts,
        &marks,
        &long,
        &word,
        &blank,
    ] {
        for (width, height) in [(64, 64), (96, 128), (832, 480), (64, 640)] {
            generate(EngineRequest { width, height, ..with_prompt(prompt) });
        }
    }
    let request = EngineRequest { seed: u64::MAX, guidance: Some(1e300), steps: 100, ..still() };
    generate(EngineRequest { width: 832, height: 480, ..request });
}

/// A PNG file whose left half has one colour and whose right half has another.
fn halves(path: &Path, width: u32, height: u32, left: [u8; 3], right: [u8; 3]) {
    let file = File::create(path).expect("a file for the image");
    let mut encoder = png::Encoder::new(file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let row = (0..width).flat_map(|x| if x < width / 2 { left } else { right });
    let samples = row.collect::<Vec<u8>>().repeat(height as usize);
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&samples))
        .expect("an image that can be written");
}

fn with_image(path: &Path) -> EngineRequest {
    let path = path.to_str().expect("a UTF-8 path");
    EngineRequest { image: Some(path.into()), ..still() }
}

#[test]
fn an_image_takes_the_place_of_the_bars() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("halves.png");
    let (left, right) = ([200, 30, 10], [20, 40, 190]);
    // Wide, tall, and much smaller or larger than the card: the middle of it covers the card.
    for (width, height) in [(900, 300), (200, 1000), (40, 20), (3200, 1920)] {
        halves(&path, width, height, left, right);
        let picture = picture(with_image(&path));
        // Where neither disc nor beam is in the first frame: the lower edge of the upper part.
        assert_eq!((picture.pixel(4, 112), picture.pixel(315, 112)), (left, right));
        // Under the text it shines through, darkened.
        let [r, _, b] = picture.pixel(2, 150);
        assert!(r > b && r < 60, "{:?}", picture.pixel(2, 150));
    }
    let blue = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/blue.jpg");
    let [r, g, b] = picture(with_image(&blue)).pixel(4, 112);
    assert!(r < 10 && g < 10 && b > 240, "{r} {g} {b}");
    assert_ne!(picture(still()).pixel(4, 100), [0, 0, 254]);
}

/// The brightness of the upper part of each frame: that of half of its pixels is below it. What
/// moves there, and the label, are less than half.
fn brightness(video: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new().expect("a decoder");
    let frames = Mp4(video).stream();
    let brightness = frames.iter().map(|frame| {
        let picture = decoder.decode(frame).expect("a frame that decodes").expect("a picture");
        let (stride, (width, height)) = (picture.strides().0, picture.dimensions());
        let rows = picture.y().chunks(stride).take(height * 6 / 10);
        let mut lumas: Vec<u8> = rows.flat_map(|row| row[..width].to_vec()).collect();
        lumas.sort_unstable();
        lumas[lumas.len() / 2]
    });
    brightness.collect()
}

#[test]
fn the_first_image_turns_into_the_last_one() {
    let directory = tempfile::tempdir().unwrap();
    let (dark, bright) = (directory.path().join("dark.png"), directory.path().join("bright.png"));
    halves(&dark, 64, 48, [40; 3], [40; 3]);
    halves(&bright, 90, 30, [200; 3], [200; 3]);
    let path = |path: &Path| path.to_str().map(String::from);
    let request =
        EngineRequest { image: path(&dark), last_image: path(&bright), frames: 9, ..video() };
    let seen = brightness(&generate(request.clone()).1[0]);
    // Studio range: 16 is black, 235 white.
    let luma = |level: f64| 16.0 + level * 219.0 / 255.0;
    for (index, seen) in (0..9).zip(&seen) {
        let expected = luma(40.0 + 160.0 * f64::from(index) / 8.0);
        assert!((f64::from(*seen) - expected).abs() < 4.0, "frame {index}: {seen}, {expected}");
    }
    let still = brightness(&generate(EngineRequest { last_image: None, ..request }).1[0]);
    assert!(still.iter().all(|seen| (f64::from(*seen) - luma(40.0)).abs() < 4.0), "{still:?}");
}

#[test]
fn a_last_image_that_can_not_be_the_last_frame_makes_the_request_invalid() {
    let directory = tempfile::tempdir().unwrap();
    let outputs = tempfile::tempdir().unwrap();
    let engine = Engine::loaded(0);
    let path = directory.path().join("grey.png");
    halves(&path, 64, 64, [90; 3], [90; 3]);
    let grey = path.to_str().map(String::from);
    let missing = directory.path().join("missing.png").to_str().map(String::from);
    for (request, told) in [
        (EngineRequest { last_image: grey.clone(), ..video() }, "needs an image"),
        (EngineRequest { image: grey.clone(), last_image: grey.clone(), ..still() }, "1 frame"),
        (EngineRequest { image: grey, last_image: missing, ..video() }, "last_image can't be read"),
    ] {
        engine.generate("one", outputs.path(), request);
        let refused = engine.hear_error();
        assert_eq!(refused.code, EngineErrorCode::InvalidRequest);
        assert!(refused.message.contains(told), "{}", refused.message);
        assert_eq!(files_in(outputs.path()), [""; 0]);
    }
}

#[test]
fn an_image_that_can_not_be_used_makes_the_request_invalid() {
    let directory = tempfile::tempdir().unwrap();
    let outputs = tempfile::tempdir().unwrap();
    let engine = Engine::loaded(0);
    let refused = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        engine.generate("one", outputs.path(), with_image(&path));
        let refused = engine.hear_error();
        assert_eq!(refused.code, EngineErrorCode::InvalidRequest, "{name}");
        assert_eq!(files_in(outputs.path()), [""; 0]);
        refused.message
    };
    let path = directory.path().join("whole.png");
    halves(&path, 64, 64, [1, 2, 3], [4, 5, 6]);
    let whole = std::fs::read(&path).unwrap();
    assert!(refused("cut.png", &whole[..whole.len() / 2]).starts_with("image can't be decoded: "));
    let jpeg = include_bytes!("blue.jpg");
    assert!(refused("cut.jpg", &jpeg[..100]).starts_with("image can't be decoded: "));
    let neither = "image is neither a PNG nor a JPEG file";
    assert_eq!(refused("empty", b""), neither);
    assert_eq!(refused("text.png", b"not an image"), neither);

    // A header that promises a gigantic picture: refused before memory is taken for it.
    let mut giant = Vec::new();
    let mut encoder = png::Encoder::new(&mut giant, 16_000, 16_000);
    encoder.set_color(png::ColorType::Rgb);
    let _ = encoder.write_header().unwrap().finish();
    assert!(refused("giant.png", &giant).contains("16000 by 16000 pixels is too large"));

    let missing = directory.path().join("missing.png");
    engine.generate("one", outputs.path(), with_image(&missing));
    assert!(engine.hear_error().message.starts_with("image can't be read: "));
}
