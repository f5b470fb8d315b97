//! An engine that does no work but to say when it was asked to: what is then between the submit
//! and its word is the control plane's. It is this program again, with the argument `engine`.

use std::fs;
use std::io::{self, BufRead, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rayreel_domain::wire::engine::{
    Done, EngineError, EngineErrorCode, FromEngine, Generate, Load, OutputFile, PROTOCOL, Role,
    ToEngine,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::machine::monotonic_ns;

/// A message, and when it was read.
type Heard = (ToEngine, u64);

/// Speaks the engine protocol on standard input and output.
pub(crate) fn run(witness: &Path) -> anyhow::Result<()> {
    let mut witness = UnixStream::connect(witness).context("nobody listens to the engine")?;
    let (heard, messages) = channel();
    // Its end is the process's end: it holds nothing.
    thread::spawn(move || listen(&heard));
    let mut settings = Settings::default();
    while let Ok((message, at)) = messages.recv() {
        match message {
            ToEngine::Load(load) => {
                settings = Settings {
                    step: Duration::from_millis(number(&load, "step_ms")),
                    bytes: number(&load, "bytes"),
                };
                say(&FromEngine::Ready {
                    protocol: PROTOCOL,
                    engine: "bench".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                })?;
            }
            ToEngine::Generate(order) => {
                // Every prompt ends with the number of its task.
                let number = order.request.prompt.rsplit(' ').next().unwrap_or_default().to_owned();
                writeln!(witness, "started {number} {at}")?;
                let end = generate(&order, &settings, &messages)?;
                writeln!(witness, "ended {number} {}", monotonic_ns())?;
                say(&end)?;
            }
            ToEngine::Cancel { .. } => {}
            ToEngine::Exit => break,
        }
    }
    Ok(())
}

#[derive(Default)]
struct Settings {
    step: Duration,
    bytes: u64,
}

fn number(load: &Load, setting: &str) -> u64 {
    load.settings.get(setting).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

fn listen(heard: &Sender<Heard>) {
    for line in io::stdin().lock().lines() {
        let at = monotonic_ns();
        let Some(message) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else {
            return;
        };
        if heard.send((message, at)).is_err() {
            return;
        }
    }
}

fn say(message: &FromEngine) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()?;
    Ok(())
}

/// Waits as long as the steps should take, and writes a file of the size that was set.
fn generate(
    order: &Generate,
    settings: &Settings,
    messages: &Receiver<Heard>,
) -> anyhow::Result<FromEngine> {
    let (id, steps) = (order.id.clone(), order.request.steps);
    for step in 1..=steps {
        if settings.step.is_zero() {
            break;
        }
        match messages.recv_timeout(settings.step) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the worker is gone"),
            Ok((ToEngine::Cancel { id: cancelled }, _)) if cancelled == id => {
                let message = "cancelled".to_owned();
                let code = EngineErrorCode::Cancelled;
                let error = EngineError { id: Some(id), code, message, retryable: false };
                return Ok(FromEngine::Error(error));
            }
            Ok((message, _)) => bail!("{message:?} came while the engine generated"),
        }
        say(&FromEngine::Progress { id: id.clone(), step, steps, stage: "denoise".to_owned() })?;
    }
    fs::write(Path::new(&order.output_dir).join("video.mp4"), vec![0; settings.bytes as usize])?;
    let request = &order.request;
    let file = OutputFile {
        path: "video.mp4".to_owned(),
        role: Role::Video,
        media_type: request.format.media_type().to_owned(),
        width: request.width,
        height: request.height,
        frames: request.frames,
        fps: request.fps,
    };
    Ok(FromEngine::Done(Done {
        id,
        files: vec![file],
        metrics: Default::default(),
        test_pattern: true,
    }))
}

/// Hears when the engine starts and ends.
#[derive(Debug)]
pub(crate) struct Witness {
    events: UnboundedReceiver<Event>,
}

/// What the engine told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) started: bool,
    /// The number at the end of the prompt.
    pub(crate) number: u64,
    /// On the machine's monotonic clock.
    pub(crate) ns: u64,
}

impl Witness {
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        // A later server of the same site has a witness of its own.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let (sender, events) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok((engine, _)) = listener.accept().await {
                tokio::spawn(hear(engine, sender.clone()));
            }
        });
        Ok(Self { events })
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Event> {
        tokio::time::timeout(Duration::from_secs(30), self.events.recv())
            .await
            .context("the engine has not been asked for anything for 30 s")?
            .context("the witness has gone")
    }

    /// Waits for one event of one task, and skips others.
    pub(crate) async fn wait_for(&mut self, started: bool, number: u64) -> anyhow::Result<u64> {
        loop {
            let event = self.next().await?;
            if (event.started, event.number) == (started, number) {
                return Ok(event.ns);
            }
        }
    }
}

async fn hear(engine: tokio::net::UnixStream, sender: UnboundedSender<Event>) {
    let mut lines = BufReader::new(engine).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(event) = event(&line)
            && sender.send(event).is_err()
        {
            return;
        }
    }
}

fn event(line: &str) -> Option<Event> {
    let mut words = line.split(' ');
    let started = match words.next()? {
        "started" => true,
        "ended" => false,
        _ => return None,
    };
    // Prompts without a number are not of interest.
    Some(Event { started, number: words.next()?.parse().ok()?, ns: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_tells_is_read_back() {
        let told = Event { started: true, number: 42, ns: 1_000_000_007 };
        assert_eq!(event("started 00000042 1000000007"), Some(told));
        assert_eq!(event("ended 42 1"), Some(Event { started: false, number: 42, ns: 1 }));
        assert_eq!(event("started fox 1"), None);
    }

    #[tokio::test]
    async fn a_witness_hears_the_engine() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("witness");
        let mut witness = Witness::listen(&path).unwrap();
        let mut engine = UnixStream::connect(&path).unwrap();
        writeln!(engine, "started 1 10\nended 1 20\nstarted 2 30").unwrap();
        assert_eq!(witness.wait_for(false, 1).await.unwrap(), 20);
        assert_eq!(witness.wait_for(true, 2).await.unwrap(), 30);
    }
}
