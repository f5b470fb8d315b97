//! From JPEG pictures to H.264 in MP4.

use std::path::Path;

use crate::still::{self, ReadError};
use crate::video::{Video, VideoError};

/// Why there is no video.
#[derive(Debug, thiserror::Error)]
pub enum FromJpegsError {
    #[error("picture {0} {1}")]
    Read(usize, String),
    #[error("there is no picture")]
    Empty,
    #[error("picture {0} has another size than the first, or an odd one")]
    Size(usize),
    #[error("{0}")]
    Write(String),
    #[error("it was told to stop")]
    Stopped,
}

/// Makes the pictures, all of one size, the frames of a new MP4 file. Asks `go_on` before each.
pub fn mp4_from_jpegs<'a>(
    path: &Path,
    fps: u32,
    pictures: impl IntoIterator<Item = &'a [u8]>,
    mut go_on: impl FnMut() -> bool,
) -> Result<(), FromJpegsError> {
    let write = |error: VideoError| FromJpegsError::Write(error.to_string());
    let mut open: Option<(Video, (usize, usize))> = None;
    for (index, jpeg) in pictures.into_iter().enumerate() {
        if !go_on() {
            return Err(FromJpegsError::Stopped);
        }
        let wrong = |error: ReadError| FromJpegsError::Read(index, error.to_string());
        let picture = still::decode_jpeg(jpeg).map_err(wrong)?;
        let size = (picture.width(), picture.height());
        let (video, first) = match &mut open {
            Some(open) => open,
            None if size.0 % 2 != 0 || size.1 % 2 != 0 => return Err(FromJpegsError::Size(index)),
            none => {
                let video = Video::create(path, size.0 as u32, size.1 as u32, fps.max(1));
                none.insert((video.map_err(write)?, size))
            }
        };
        if *first != size {
            return Err(FromJpegsError::Size(index));
        }
        video.push(&picture).map_err(write)?;
    }
    let (video, _) = open.ok_or(FromJpegsError::Empty)?;
    video.finish().map_err(write)
}
