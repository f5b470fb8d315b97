//! A program's output, read a line at a time from both of its pipes.

use std::io::{self, Write};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStderr, ChildStdout};
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Most of a line that is kept, in bytes.
const MAX_LINE: usize = 4096;
/// Lines that may wait unread; then the program waits.
const WAITING: usize = 256;

/// A line of a program's output, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    /// It ended with a carriage return: the program will write over it, as progress bars do.
    pub(crate) redrawn: bool,
}

/// Reads both pipes to their ends. Lines also go to the log, unless the program writes over them.
pub(crate) fn read(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Receiver<Line> {
    let (sender, lines) = mpsc::channel(WAITING);
    if let Some(stdout) = stdout {
        tokio::spawn(follow(stdout, sender.clone()));
    }
    if let Some(stderr) = stderr {
        tokio::spawn(follow(stderr, sender));
    }
    lines
}

async fn follow(mut pipe: impl AsyncRead + Unpin, lines: Sender<Line>) {
    let mut splitter = Splitter::default();
    let mut buffer = [0; 4096];
    loop {
        let count = match pipe.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for &byte in &buffer[..count] {
            if let Some(line) = splitter.add(byte)
                && !pass_on(line, &lines).await
            {
                return;
            }
        }
        // A program writes a line in one go, and this was all that there is.
        if count < buffer.len()
            && let Some(line) = splitter.look()
            && !pass_on(line, &lines).await
        {
            return;
        }
    }
    if let Some(line) = splitter.end() {
        pass_on(line, &lines).await;
    }
}

async fn pass_on(line: Line, lines: &Sender<Line>) -> bool {
    if !line.redrawn {
        // Without a log there is still the work.
        let _ = writeln!(io::stderr(), "{}", line.text);
    }
    lines.send(line).await.is_ok()
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
struct Splitter {
    open: Vec<u8>,
    /// A carriage return has come: the next byte says whether the line has ended or is redrawn.
    returned: bool,
    /// The line is drawn over another one: it may never get an end of its own.
    drawn: bool,
    /// Nothing has been added since the line was given away.
    given: bool,
}

impl Splitter {
    fn add(&mut self, byte: u8) -> Option<Line> {
        match byte {
            b'\n' => {
                let text = self.text();
                *self = Splitter::default();
                Some(Line { text, redrawn: false })
            }
            b'\r' => {
                self.returned = true;
                self.give()
            }
            byte => {
                if self.returned {
                    *self = Splitter { drawn: true, ..Splitter::default() };
                }
                if self.open.len() < MAX_LINE {
                    self.open.push(byte);
                }
                self.given = false;
                None
            }
        }
    }

    /// What stands there so far, if it is a line that draws over others: the next byte may come
    /// minutes later.
    fn look(&mut self) -> Option<Line> {
        if self.drawn { self.give() } else { None }
    }

    fn give(&mut self) -> Option<Line> {
        let new = !self.open.is_empty() && !std::mem::replace(&mut self.given, true);
        new.then(|| Line { text: self.text(), redrawn: true })
    }

    /// The line that has no end, if there is one.
    fn end(&mut self) -> Option<Line> {
        (!self.open.is_empty()).then(|| Line { text: self.text(), redrawn: false })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.open).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of what is read chunk by chunk; those that are drawn over have a `~`.
    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        for chunk in chunks {
            lines.extend(chunk.iter().filter_map(|byte| splitter.add(*byte)));
            lines.extend(splitter.look());
        }
        lines.extend(splitter.end());
        let shown = |Line { text, redrawn }| if redrawn { format!("~{text}") } else { text };
        lines.into_iter().map(shown).collect()
    }

    #[test]
    fn lines_end_where_they_end() {
        assert_eq!(lines(&[b"a\nb", b"c\n\nd"]), ["a", "bc", "", "d"]);
        assert_eq!(lines(&[b"a\xff\n"]), ["a\u{fffd}"]);
    }

    #[test]
    fn a_progress_bar_is_read_at_each_step_and_logged_once() {
        assert_eq!(
            lines(&[b"\r 0/2", b"\r 1/2", b"\r 2/2", b"\ndone\r\n"]),
            ["~ 0/2", "~ 1/2", "~ 2/2", " 2/2", "~done", "done"]
        );
        assert_eq!(lines(&[b"0/2\r", b"1/2\r", b"2/2\r\n"]), ["~0/2", "~1/2", "~2/2", "2/2"]);
    }

    #[test]
    fn a_line_without_end_does_not_grow_without_bound() {
        assert_eq!(lines(&[&[b'x'; 1 << 20], b"\n"])[0].len(), MAX_LINE);
    }
}
