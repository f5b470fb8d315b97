//! The file that a server has made, and what it leaves behind.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use rayreel_domain::wire::engine::{EngineRequest, Format, OutputFile};

use crate::file;

/// Sides are multiples of this at the most, in pixels.
const ROUND: u32 = 64;
/// A picture with so many times the pixels that were asked for is another one.
const SEVERAL: u64 = 4;

/// How deep a server may hide its files below its directory.
const DEPTH: u32 = 4;

pub(super) fn file_name(format: Format) -> String {
    let stem = if format == Format::Mp4 { "video" } else { "image" };
    format!("{stem}.{}", format.extension())
}

/// Looks whether the file is what was asked for, and of what size it really is: servers round sizes
/// and numbers of frames. An error goes on after "the server …".
pub(super) fn inspect(
    directory: &Path,
    name: &str,
    wish: &EngineRequest,
) -> Result<OutputFile, String> {
    let path = directory.join(name);
    let checked = file::check(directory, name, wish);
    let checked = checked.map_err(|why| format!("{why}{}", beginning(&path)))?;
    if !file::is_whole(&path, wish.format) {
        let what = if wish.format == Format::Mp4 { "an MP4 file" } else { "a picture" };
        return Err(format!("wrote {what} that is cut off"));
    }
    let (width, height) = (checked.width, checked.height);
    if wish.format.is_still() && pixels(width, height) > most_pixels(wish) {
        return Err(format!(
            "made a picture of {width}x{height} pixels, where {}x{} was asked for",
            wish.width, wish.height
        ));
    }
    Ok(checked)
}

fn pixels(width: u32, height: u32) -> u64 {
    u64::from(width) * u64::from(height)
}

/// Some take an area for the size of a picture; all round its sides, at most to the next multiple of 64.
fn most_pixels(wish: &EngineRequest) -> u64 {
    let round = |side: u32| side.div_ceil(ROUND).saturating_mul(ROUND);
    pixels(round(wish.width), round(wish.height)).saturating_mul(SEVERAL)
}

/// How a file begins, for whoever wonders what it is.
fn beginning(path: &Path) -> String {
    let mut start = [0; 24];
    let read = File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or_default();
    if read == 0 {
        return String::new();
    }
    format!(": it begins with `{}`", start[..read].escape_ascii())
}

/// Removes regular files below `directory` that are named after a job.
pub(super) fn remove_named_after(job: &str, directory: &Path) {
    fn walk(job: &str, directory: &Path, depth: u32) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth > 0 {
                walk(job, &entry.path(), depth - 1);
            } else if kind.is_file() && entry.file_name().to_string_lossy().contains(job) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    // What is short may be in any name.
    if job.len() >= 16 {
        walk(job, directory, DEPTH);
    }
}
