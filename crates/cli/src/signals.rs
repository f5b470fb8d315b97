//! Ctrl-C, SIGTERM and SIGHUP: the first asks, the second insists.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayreel_domain::Code;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, INTERRUPTED};

/// What has been heard so far.
#[derive(Debug, Clone)]
pub(crate) struct Interrupts {
    pub first: CancellationToken,
    pub second: CancellationToken,
    pub drafts: Drafts,
}

/// The file that is being written and must not stay behind, even if the process ends at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drafts(Arc<Mutex<Option<PathBuf>>>);

impl Drafts {
    /// Makes a file, and removes it if the process ends before it is [`done`](Self::done).
    pub(crate) fn make<T, E>(
        &self,
        make: impl FnOnce() -> Result<T, E>,
        path: impl FnOnce(&T) -> &Path,
    ) -> Result<T, E> {
        // Held meanwhile, so that the process does not end between the two.
        let mut draft = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = make()?;
        *draft = Some(path(&made).to_owned());
        Ok(made)
    }

    /// There is nothing to remove any more.
    pub(crate) fn done(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn exit(&self, status: u8) -> ! {
        // Held to the end: no other is made.
        let draft = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = draft.as_deref() {
            // It may have got its name meanwhile.
            _ = fs::remove_file(path);
        }
        std::process::exit(status.into())
    }
}

impl Interrupts {
    /// Takes the signals over; from now on they do not end the process by themselves.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let open = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(Code::Internal, format!("signals can't be listened to: {error}"))
            })
        };
        let mut interrupt = open(SignalKind::interrupt())?;
        let mut terminate = open(SignalKind::terminate())?;
        // Of a terminal that was closed, unless it is to go on (nohup).
        let mut hangup =
            if hangups_are_ignored() { None } else { Some(open(SignalKind::hangup())?) };
        let heard = Self {
            first: CancellationToken::new(),
            second: CancellationToken::new(),
            drafts: Drafts::default(),
        };
        let tell = heard.clone();
        // Lives as long as the runtime; can't fail.
        tokio::spawn(async move {
            for token in [&tell.first, &tell.second] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = async { hangup.as_mut()?.recv().await }, if hangup.is_some() => {}
                }
                token.cancel();
            }
        });
        Ok(heard)
    }

    pub(crate) async fn first(&self) {
        self.first.cancelled().await;
    }

    /// From now on the second signal ends the process at once, whatever it is at.
    pub(crate) fn exit_on_second(&self) {
        let (second, drafts) = (self.second.clone(), self.drafts.clone());
        tokio::spawn(async move {
            second.cancelled().await;
            drafts.exit(INTERRUPTED);
        });
    }
}

/// Does this process leave SIGHUP alone, as it was started? To listen would undo that.
fn hangups_are_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangups(&status))
}

/// The same of a process with this status (proc(5)).
fn ignores_hangups(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // A bit a signal; SIGHUP is the first.
    mask.is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::ignores_hangups;

    #[test]
    fn a_process_that_is_to_survive_its_terminal_is_known_by_its_mask() {
        for mask in ["0000000000000001", "0000000000001003"] {
            assert!(ignores_hangups(&format!("SigBlk:\t0\nSigIgn:\t{mask}\n")), "{mask}");
        }
        for status in ["SigIgn:\t0000000000001002\n", "SigBlk:\t0000000000000001\n", ""] {
            assert!(!ignores_hangups(status), "{status}");
        }
    }
}
