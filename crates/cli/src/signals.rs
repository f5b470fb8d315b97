//! Ctrl-C and SIGTERM: the first asks, the second insists.

use rayreel_domain::Code;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, INTERRUPTED};

/// What has been heard so far.
#[derive(Debug, Clone)]
pub(crate) struct Interrupts {
    pub first: CancellationToken,
    pub second: CancellationToken,
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
        let heard = Self { first: CancellationToken::new(), second: CancellationToken::new() };
        let tell = heard.clone();
        // Lives as long as the runtime; can't fail.
        tokio::spawn(async move {
            for token in [&tell.first, &tell.second] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
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
        let second = self.second.clone();
        tokio::spawn(async move {
            second.cancelled().await;
            std::process::exit(INTERRUPTED.into());
        });
    }
}
