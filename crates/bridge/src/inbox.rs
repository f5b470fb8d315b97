//! What the worker says, read by a thread of its own: standard input has no other way to be
//! waited for that works with files, pipes and terminals alike.

use std::io::{self, BufRead, Read as _};
use std::thread;

use rayreel_domain::wire::engine::{MAX_LINE, ToEngine};
use tokio::sync::mpsc::{self, Receiver, Sender};

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
        let (sender, messages) = mpsc::channel(WAITING);
        thread::Builder::new().name("stdin".into()).spawn(move || read_all(input, &sender))?;
        Ok(Inbox { messages })
    }

    /// Waits for the next message; none when the worker has hung up. Cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<ToEngine>> {
        self.messages.recv().await.transpose()
    }
}

fn read_all(mut input: impl BufRead, messages: &Sender<io::Result<ToEngine>>) {
    while let Some(message) = read_message(&mut input).transpose() {
        let last = matches!(message, Ok(ToEngine::Exit) | Err(_));
        if messages.blocking_send(message).is_err() || last {
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
