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
}

impl Splitter {
    fn add(&mut self, byte: u8) -> Option<Line> {
        match byte {
            b'\n' => {
                self.returned = false;
                Some(self.take(false))
            }
            b'\r' => {
                // Reported at once: the next byte may come minutes later.
                self.returned = true;
                (!self.open.is_empty()).then(|| Line { text: self.text(), redrawn: true })
            }
            byte => {
                if self.returned {
                    self.open.clear();
                    self.returned = false;
                }
                if self.open.len() < MAX_LINE {
                    self.open.push(byte);
                }
                None
            }
        }
    }

    /// The line that has no end, if there is one.
    fn end(&mut self) -> Option<Line> {
        (!self.open.is_empty()).then(|| self.take(false))
    }

    fn take(&mut self, redrawn: bool) -> Line {
        let text = self.text();
        self.open.clear();
        Line { text, redrawn }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.open).into_owned()
    }
}
