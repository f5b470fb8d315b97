//! H.264 in MP4, one frame after the other, the index before the frames.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, Write as _};
use std::ops::Range;
use std::path::Path;

use muxide::api::{Muxer, MuxerBuilder, MuxerError, VideoCodec};
use openh264::encoder::{
    Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, RateControlMode, VuiConfig,
};
use openh264::formats::YUVSlices;
use openh264::{OpenH264API, Timestamp};

use crate::canvas::Canvas;

/// Seconds between the frames at which a player can start.
const KEYFRAME_SECONDS: u32 = 2;

/// Ticks a second in which the muxer counts.
const MEDIA_TIMESCALE: u32 = 90_000;

/// Why a video could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VideoError {
    #[error("encoding H.264: {0}")]
    Encode(#[from] openh264::Error),
    #[error("the encoder left out frame {0}")]
    Skipped(u32),
    #[error("writing MP4: {0}")]
    Mux(#[from] MuxerError),
    #[error("writing MP4: {0}")]
    Io(#[from] io::Error),
}

/// An MP4 file in the making. Encoded frames are held until the end, because the index, whose
/// length isn't known before, comes first; raw frames are not.
pub(crate) struct Video {
    encoder: Encoder,
    muxer: Muxer<BufWriter<File>>,
    yuv: Vec<u8>,
    size: (usize, usize),
    fps: u32,
    frames: u32,
}

impl Video {
    /// Creates the file, which must not exist yet.
    pub(crate) fn create(
        path: &Path,
        width: u32,
        height: u32,
        fps: u32,
    ) -> Result<Video, VideoError> {
        let config = EncoderConfig::new()
            // One quantiser for all frames. The modes that aim at a bit rate do so by leaving out
            // frames; told not to, they warn on standard error each time.
            .rate_control_mode(RateControlMode::Off)
            .skip_frames(false)
            // What it takes for background keeps traces of what has moved over it.
            .background_detection(false)
            .max_frame_rate(FrameRate::from_hz(fps as f32))
            .intra_frame_period(IntraFramePeriod::from_num_frames(KEYFRAME_SECONDS * fps))
            .vui(VuiConfig::bt709())
            // More threads would cut the picture into slices by the number of cores, so that the
            // same request gave other bytes on another machine.
            .num_threads(1);
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Video {
            encoder: Encoder::with_api_config(OpenH264API::from_source(), config)?,
            muxer: MuxerBuilder::new(BufWriter::new(file))
                .video(VideoCodec::H264, width, height, f64::from(fps))
                .with_fast_start(true)
                .build()?,
            yuv: vec![0; (width * height * 3 / 2) as usize],
            size: (width as usize, height as usize),
            fps,
            frames: 0,
        })
    }

    /// Encodes the next frame.
    pub(crate) fn push(&mut self, picture: &Canvas) -> Result<(), VideoError> {
        picture.to_yuv(&mut self.yuv);
        let (width, height) = self.size;
        let (luma, chroma) = self.yuv.split_at(width * height);
        let (u, v) = chroma.split_at(chroma.len() / 2);
        let planes = YUVSlices::new((luma, u, v), self.size, (width, width / 2, width / 2));
        let millis = u64::from(self.frames) * 1000 / u64::from(self.fps);
        let encoded = self.encoder.encode_at(&planes, Timestamp::from_millis(millis))?;
        let key = match encoded.frame_type() {
            FrameType::IDR => true,
            FrameType::I | FrameType::P => false,
            FrameType::Skip | FrameType::Invalid | FrameType::IPMixed => {
                return Err(VideoError::Skipped(self.frames));
            }
        };
        let start = f64::from(self.frames) / f64::from(self.fps);
        self.muxer.write_video(start, &encoded.to_vec(), key)?;
        self.frames += 1;
        Ok(())
    }

    /// Writes the file and closes it.
    pub(crate) fn finish(self) -> Result<(), VideoError> {
        let Video { mut muxer, fps, frames, .. } = self;
        muxer.finish_in_place()?;
        let mut file = muxer.into_writer().into_inner().map_err(io::IntoInnerError::into_error)?;
        if frames == 1 {
            let mut mp4 = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut mp4)?;
            set_duration_of_only_frame(&mut mp4, fps);
            file.rewind()?;
            file.write_all(&mp4)?;
        }
        Ok(())
    }
}

/// The muxer takes the last frame's duration from the one before it, and gives a frame that is
/// alone one tick of 1/90,000 s, which players show as nothing; this writes the right one.
fn set_duration_of_only_frame(mp4: &mut [u8], fps: u32) {
    let (milliseconds, ticks) = (1000 / fps, MEDIA_TIMESCALE / fps);
    let fields: [(&[&[u8; 4]], usize, u32); 4] = [
        (&[b"moov", b"mvhd"], 16, milliseconds),
        (&[b"moov", b"trak", b"tkhd"], 20, milliseconds),
        (&[b"moov", b"trak", b"mdia", b"mdhd"], 16, ticks),
        (&[b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"], 12, ticks),
    ];
    for (path, offset, value) in fields {
        let payload = path
            .iter()
            .try_fold(0..mp4.len(), |inside, name| find_box(mp4, inside, name))
            .expect("the muxer writes these boxes into every file");
        mp4[payload][offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    }
}

/// Where the payload of the first box of this name is, among the boxes that fill `inside`.
fn find_box(mp4: &[u8], inside: Range<usize>, name: &[u8; 4]) -> Option<Range<usize>> {
    let mut start = inside.start;
    loop {
        let header = mp4.get(start..start + 8).filter(|_| start + 8 <= inside.end)?;
        let length = u32::from_be_bytes(header[..4].try_into().ok()?) as usize;
        if &header[4..] == name {
            return Some(start + 8..start + length);
        }
        start += length.max(8);
    }
}
