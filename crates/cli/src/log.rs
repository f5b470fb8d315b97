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

use crate::failure::Failure;

/// The log of servers that run inside a command; a longer one is set aside.
const EMBEDDED_LOG: &str = "embedded.log";
const MAX_EMBEDDED_LOG: u64 = 1 << 20;

/// Logs on standard error, for commands that are services.
pub(crate) fn to_stderr(level: LogLevel, format: LogFormat) -> Result<(), Failure> {
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
    _ = registry.with(layer.with_filter(filter(level)?)).try_init();
    Ok(())
}

/// Logs into the data directory, for commands whose standard error is for people.
pub(crate) fn to_file(directory: &Path, level: LogLevel) -> Result<(), Failure> {
    let file = LogFile { path: directory.join(EMBEDDED_LOG), file: None };
    let layer = tracing_subscriber::fmt::layer().with_writer(Mutex::new(file)).with_ansi(false);
    // A command that starts a server again goes on with the same log.
    _ = tracing_subscriber::registry().with(layer.with_filter(filter(level)?)).try_init();
    Ok(())
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
                let opened =
                    OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
                self.file.insert(opened)
            }
        };
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What RAYREEL_LOG says, else the level of the settings.
fn filter(level: LogLevel) -> Result<Targets, Failure> {
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
    match std::env::var("RAYREEL_LOG") {
        Ok(text) if !text.is_empty() => read_filter(&text).ok_or_else(|| {
            Failure::value(
                "RAYREEL_LOG",
                format!(
                    "RAYREEL_LOG: `{text}` is not such as `debug` or `info,rayreel_server=debug`"
                ),
            )
        }),
        _ => Ok(usual),
    }
}

/// Levels, for everything or for parts. A word that is no level would be read as the name of a
/// part, so that a misspelt level silenced everything.
fn read_filter(text: &str) -> Option<Targets> {
    let is_right = |word: &str| {
        !word.is_empty() && (word.contains('=') || word.parse::<LevelFilter>().is_ok())
    };
    text.split(',').all(is_right).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused() {
        for right in
            ["debug", "WARN", "info,rayreel_server::fleet=debug", "rayreel_worker=trace,off"]
        {
            assert!(read_filter(right).is_some(), "{right}");
        }
        for wrong in ["dbug", "info,rayreel_server", "rayreel_server=dbug", ","] {
            assert!(read_filter(wrong).is_none(), "{wrong}");
        }
    }
}
