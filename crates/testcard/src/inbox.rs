//! What the worker says, read by a thread of its own, so that it is heard during the work.

use std::io::{self, BufRead, Read as _};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Instant;

use rayreel_domain::wire::engine::{MAX_LINE, ToEngine};

/// Messages that may wait unread; a worker that sends more is made to wait itself.
const WAITING: usize = 64;

/// The worker's messages, in order.
pub(crate) struct Inbox {
    messages: Receiver<io::Result<ToEngine>>,
}

impl Inbox {
    /// Starts the reading thread. It ends with the input, after `exit`, and after a line that is
    /// no message.
    pub(crate) fn open(input: impl BufRead + Send + 'static) -> io::Result<Inbox> {
        let (sender, messages) = sync_channel(WAITING);
        thread::Builder::new().name("stdin".into()).spawn(move || read_all(input, &sender))?;
        Ok(Inbox { messages })
    }

    /// Waits for the next message; none when the worker has hung up.
    pub(crate) fn next(&self) -> io::Result<Option<ToEngine>> {
        self.messages.recv().ok().transpose()
    }

    /// The next message if it comes before the deadline; what has come already is heard even when
    /// the deadline has passed.
    pub(crate) fn next_until(&self, deadline: Instant) -> io::Result<Heard> {
        let heard = match self.messages.try_recv() {
            Err(TryRecvError::Empty) => {
                self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            }
            Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Ok(message) => Ok(message),
        };
        match heard {
            Ok(message) => Ok(Heard::Message(message?)),
            Err(RecvTimeoutError::Timeout) => Ok(Heard::Nothing),
            Err(RecvTimeoutError::Disconnected) => Ok(Heard::HungUp),
        }
    }
}

/// What was heard in a span of time.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once, and never kept")]
pub(crate) enum Heard {
    Message(ToEngine),
    Nothing,
    HungUp,
}

fn read_all(mut input: impl BufRead, messages: &SyncSender<io::Result<ToEngine>>) {
    while let Some(message) = read_message(&mut input).transpose() {
        let last = matches!(message, Ok(ToEngine::Exit) | Err(_));
        if messages.send(message).is_err() || last {
            return;
        }
    }
}

/// Reads one line; none at the end of the input.
fn read_message(input: &mut impl BufRead) -> io::Result<Option<ToEngine>> {
    let mut line = Vec::new();
    input.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() > MAX_LINE {
        let text = format!("the worker sent a line of more than {MAX_LINE} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let message = serde_json::from_slice(&line).map_err(|error| {
        let text = format!("the worker sent a line that is no message: {error}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })?;
    Ok(Some(message))
}
