//! Where the log goes, and how much of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayreel_server::config::{LogFormat, LogLevel};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The log of servers that run inside a command; a longer one is set aside.
const EMBEDDED_LOG: &str = "embedded.log";
const MAX_EMBEDDED_LOG: u64 = 1 << 20;

/// Logs on standard error, for commands that are services.
pub(crate) fn to_stderr(level: LogLevel, format: LogFormat) {
    let registry = tracing_subscriber::registry();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !plain);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // Only one command runs in a process, so nobody has been here before.
    _ = registry.with(layer.with_filter(filter(level))).try_init();
}

/// Logs into the data directory, for commands whose standard error is for people.
pub(crate) fn to_file(directory: &Path, level: LogLevel) {
    let file = LogFile {
        path: directory.join(EMBEDDED_LOG),
        file: None,
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(Mutex::new(file))
        .with_ansi(false);
    // A command that starts a server again goes on with the same log.
    _ = tracing_subscriber::registry()
        .with(layer.with_filter(filter(level)))
        .try_init();
}

/// A file that is opened when there is something to write: by then its directory exists.
struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                if fs::metadata(&self.path).is_ok_and(|file| file.len() > MAX_EMBEDDED_LOG) {
                    fs::rename(&self.path, self.path.with_extension("log.1"))?;
                }
                let opened = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(&self.path)?;
                self.file.insert(opened)
            }
        };
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// RAYREEL_LOG, if it can be read, else the level of the settings.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Other crates' details are rarely what is looked for.
    let usual = Targets::new()
        .with_default(level.min(LevelFilter::INFO))
        .with_targets(["rayreel", "rayreel_server", "rayreel_worker"].map(|ours| (ours, level)));
    let asked = std::env::var("RAYREEL_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    asked.and_then(|text| text.parse().ok()).unwrap_or(usual)
}
