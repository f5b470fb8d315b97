//! The last lines of an engine's standard error, for the log and for whoever asks why it failed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};

use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::plain::plain;

const MAX_LINES: usize = 50;
/// Longest line that is kept whole, in bytes.
const MAX_LINE: usize = 1_000;
/// Most that is kept, in bytes.
const MAX_BYTES: usize = 8_000;

/// How lines begin that an engine of rayreel's says in its own name. They are few, and for the operator.
/// All others are as many as somebody else's program likes, and may have prompts in them.
const OURS: &str = "rayreel: ";

/// At least what a pipe holds at a time, in bytes.
const PIPE: usize = 1 << 17;

/// May there be more to read?
enum More {
    Maybe,
    Never,
}

/// Reads a pipe into memory, the newest lines only.
#[derive(Debug)]
pub(crate) struct Tail {
    pipe: pipe::Receiver,
    text: Mutex<Text>,
}

#[derive(Debug)]
struct Text {
    lines: VecDeque<String>,
    bytes: usize,
    /// The line that has no end yet.
    open: Vec<u8>,
    /// A carriage return has come: what follows it overwrites the line, as on a terminal, unless
    /// it is the end of the line.
    returned: bool,
    heard: Instant,
}

impl Tail {
    pub(crate) fn new(pipe: OwnedFd) -> io::Result<Self> {
        let text = Text {
            lines: VecDeque::new(),
            bytes: 0,
            open: Vec::new(),
            returned: false,
            heard: Instant::now(),
        };
        Ok(Self { pipe: pipe::Receiver::from_owned_fd(pipe)?, text: Mutex::new(text) })
    }

    /// Reads on until the pipe ends; an engine whose standard error nobody reads would stall.
    pub(crate) async fn follow(&self) {
        while self.pipe.readable().await.is_ok() {
            match self.take(|buffer| self.pipe.try_read(buffer)) {
                Ok(More::Maybe) => tokio::task::yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(More::Never) | Err(_) => return,
            }
        }
    }

    /// The last lines, with everything that the engine has written so far.
    pub(crate) fn text(&self) -> Option<String> {
        // What was written before the message that failed may still be in the pipe.
        self.drain();
        let text = self.lock();
        let open = plain(&String::from_utf8_lossy(&text.open));
        let lines: Vec<&str> = text
            .lines
            .iter()
            .map(String::as_str)
            .chain((!open.is_empty()).then_some(open.as_str()))
            .collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// Forgets what was written so far: it belongs to an earlier task, maybe of another tenant.
    pub(crate) fn forget(&self) {
        self.drain();
        let mut text = self.lock();
        text.lines.clear();
        text.bytes = 0;
        text.open.clear();
    }

    /// When the engine last wrote something.
    pub(crate) fn heard(&self) -> Instant {
        self.lock().heard
    }

    /// Takes what is in the pipe now, whether or not the runtime has noticed it yet.
    fn drain(&self) {
        let _ = self.take(|buffer| Ok(rustix::io::read(&self.pipe, buffer)?));
    }

    /// Reads what one pipe holds, or until an error, of which `WouldBlock` is the usual one.
    fn take(&self, read: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<More> {
        // Held while reading: two readers must not swap what they have read.
        let mut text = self.lock();
        let mut buffer = [0; 4096];
        let mut taken = 0;
        // Bounded, because an engine can write as fast as this reads.
        while taken < PIPE {
            match read(&mut buffer) {
                Ok(0) => return Ok(More::Never),
                Ok(count) => {
                    text.add(&buffer[..count]);
                    taken += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(More::Maybe)
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().expect("nothing panics while it holds this lock")
    }
}

impl Text {
    fn add(&mut self, bytes: &[u8]) {
        self.heard = Instant::now();
        for &byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                b'\r' => self.returned = true,
                byte => {
                    if self.returned {
                        self.open.clear();
                        self.returned = false;
                    }
                    if self.open.len() < MAX_LINE {
                        self.open.push(byte);
                    }
                }
            }
        }
    }

    fn end_line(&mut self) {
        self.returned = false;
        let line = plain(&String::from_utf8_lossy(&self.open));
        self.open.clear();
        if line.starts_with(OURS) {
            tracing::info!(line, "engine");
        } else {
            tracing::debug!(line, "engine");
        }
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > MAX_LINES || self.bytes > MAX_BYTES {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(written: &[u8]) -> Vec<String> {
        let mut text = Text {
            lines: VecDeque::new(),
            bytes: 0,
            open: Vec::new(),
            returned: false,
            heard: Instant::now(),
        };
        text.add(written);
        text.lines.into()
    }

    #[test]
    fn the_newest_lines_are_kept() {
        let written: String = (0..200).map(|n| format!("line {n}\n")).collect();
        let lines = lines(written.as_bytes());
        assert_eq!(lines.len(), MAX_LINES);
        assert_eq!(lines.last().unwrap(), "line 199");
    }

    #[test]
    fn neither_a_long_line_nor_many_grow_without_bound() {
        let written = [b"x".repeat(1 << 20), b"\n".to_vec()].concat();
        assert_eq!(lines(&written)[0].len(), MAX_LINE);
        let written = [b"y".repeat(900), b"\n".to_vec()].concat().repeat(40);
        assert!(lines(&written).iter().map(String::len).sum::<usize>() <= MAX_BYTES);
    }

    #[test]
    fn a_progress_bar_is_one_line() {
        assert_eq!(lines(b" 10%\r 20%\r100%\ndone\r\n"), ["100%", "done"]);
    }

    #[test]
    fn colours_stay_in_the_terminal() {
        assert_eq!(lines(b"\x1b[31mout of memory\x1b[0m\n"), ["out of memory"]);
    }

    #[test]
    fn what_is_no_text_is_shown_as_well_as_it_can_be() {
        assert_eq!(lines(b"a\xffb\n"), ["a\u{fffd}b"]);
    }
}
