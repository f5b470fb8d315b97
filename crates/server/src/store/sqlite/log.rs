//! Is the write-ahead log whole? SQLite reads it up to the first frame whose checksum is wrong and
//! takes that for the end: right after a power cut, when the newest frames may not have reached the
//! disk, and wrong after damage, when acknowledged commits behind it would vanish without a word.
//!
//! The two can be told apart, because with `synchronous = FULL` nothing is written behind a commit
//! before that commit is on the disk: a bad frame with a later transaction behind it was good once.
//! The format is that of <https://www.sqlite.org/fileformat2.html#walformat>.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Beside the database.
pub(super) fn path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Says what is wrong with the log of this database, if something is.
pub(super) fn damage(database: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path(database)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    if length <= HEADER as u64 {
        // Nothing has been written behind the header, if that is whole.
        return Ok(None);
    }
    let mut log = BufReader::with_capacity(1 << 16, file);
    let mut header = [0; HEADER];
    log.read_exact(&mut header)?;
    let magic = word(&header, 0);
    let mut sum = Sum { big_endian: magic & 1 == 1, value: (0, 0) };
    sum.add(&header[..24]);
    if magic | 1 != 0x377f_0683 || sum.value != (word(&header, 24), word(&header, 28)) {
        return Ok(Some("the header of its log (`-wal`) is damaged".to_owned()));
    }
    let salts = &header[16..24];
    let mut frame = vec![0; FRAME_HEADER + word(&header, 8) as usize];
    // Of the first bad frame, and whether a commit stands at it or behind it.
    let (mut bad, mut committed) = (None, false);
    for number in 1u64.. {
        match log.read_exact(&mut frame) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        let ours = &frame[8..16] == salts;
        if let Some(bad) = bad {
            if ours && committed {
                let what = format!(
                    "its log (`-wal`) is damaged at frame {bad}: commits behind it are on the disk"
                );
                return Ok(Some(what));
            }
        } else {
            sum.add(&frame[..8]);
            sum.add(&frame[FRAME_HEADER..]);
            if !ours || sum.value != (word(&frame, 16), word(&frame, 20)) {
                bad = Some(number);
            }
        }
        // The size of the database after the commit, in pages; zero in the other frames.
        committed |= bad.is_some() && ours && word(&frame, 4) != 0;
    }
    Ok(None)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The log's running checksum.
struct Sum {
    big_endian: bool,
    value: (u32, u32),
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let read = if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        for pair in bytes.as_chunks::<8>().0 {
            let (first, second) = pair.split_at(4);
            let [x, y] = [first, second].map(|w| read([w[0], w[1], w[2], w[3]]));
            self.value.0 = self.value.0.wrapping_add(x).wrapping_add(self.value.1);
            self.value.1 = self.value.1.wrapping_add(y).wrapping_add(self.value.0);
        }
    }
}
