//! Which server a command talks to, and what happens when it goes away.
//!
//! A server that was named is the one. Otherwise it is whichever works on the data directory; if
//! none does, this process runs one. It may end while others use it, as a `generate` does when it
//! is done: they look again, and one of them becomes the server. Nothing is lost by that, since the
//! tasks are on the disk and workers look for the new address.

use std::future::Future;
use std::time::{Duration, Instant};

use rayreel_domain::Code;
use rayreel_server::config::Settings;
use rayreel_server::home;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::log;
use crate::serve::Server;
use crate::settings;

/// How long a data directory may have a server that does not answer: it starts, or stops.
const HANDOVER: Duration = Duration::from_secs(30);
/// How long a named server may fail to answer a single call.
const HICCUP: Duration = Duration::from_millis(500);
/// A server that was there gets so long to come back, as a service does whose manager restarts it,
/// before one of its clients takes its place.
const COMEBACK: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(25);

/// What an embedded server may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Workers {
    /// Start workers: this command stays until its task has ended.
    Start,
    /// Start none: this command is gone before they could do anything.
    None,
}

#[derive(Debug)]
enum Place {
    Named(Client),
    Local(Box<Settings>),
}

/// The server of this command.
#[derive(Debug)]
pub(crate) struct Session {
    place: Place,
    client: Option<Client>,
    embedded: Option<Server>,
    /// When the server of another process was lost.
    lost_at: Option<Instant>,
}

impl Session {
    pub(crate) fn new(global: &Global, workers: Workers) -> Result<Self, Failure> {
        let place = match global.server.as_deref().filter(|address| !address.is_empty()) {
            Some(address) => {
                let token = std::env::var("RAYREEL_TOKEN").ok().filter(|token| !token.is_empty());
                Place::Named(Client::new(address, token.as_deref())?)
            }
            None => {
                let mut settings = settings::load(global, None)?;
                if workers == Workers::None {
                    for pool in settings.pools.values_mut() {
                        (pool.min, pool.max) = (0, 0);
                    }
                }
                Place::Local(Box::new(settings))
            }
        };
        Ok(Self { place, client: None, embedded: None, lost_at: None })
    }

    /// The server, which is found or started if need be.
    pub(crate) async fn client(&mut self) -> Result<Client, Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = match &self.place {
            Place::Named(client) => client.clone(),
            Place::Local(settings) => {
                let settings = settings.clone();
                self.find_or_start(&settings).await?
            }
        };
        self.client = Some(client.clone());
        Ok(client)
    }

    async fn find_or_start(&mut self, settings: &Settings) -> Result<Client, Failure> {
        if let Some(server) = self.embedded.take() {
            if server.has_ended() {
                // It says why.
                server.stop().await?;
            } else {
                let client = Client::new(&server.url, Some(&server.client_token))?;
                self.embedded = Some(server);
                return Ok(client);
            }
        }
        let since = Instant::now();
        loop {
            let found = match home::running(&settings.data) {
                Some(running) => {
                    let client = Client::new(&running.url, Some(running.token.as_str()))?;
                    client.is_alive().await.map(|()| client)
                }
                None if self.lost_at.is_some_and(|lost| lost.elapsed() < COMEBACK) => {
                    Err(Failure::new(Code::ServerUnreachable, "the server has gone"))
                }
                None => self.start(settings).await,
            };
            match found {
                Err(failure) if is_handover(&failure) && since.elapsed() < HANDOVER => {
                    tokio::time::sleep(PAUSE).await;
                }
                found => return found,
            }
        }
    }

    async fn start(&mut self, settings: &Settings) -> Result<Client, Failure> {
        log::to_file(&settings.data, settings.log.level)?;
        let server = Server::start_embedded(settings.clone()).await?;
        let client = Client::new(&server.url, Some(&server.client_token))?;
        self.embedded = Some(server);
        Ok(client)
    }

    /// The server did not answer: look for it again next time.
    pub(crate) fn lost(&mut self) {
        if self.client.take().is_some() && self.embedded.is_none() {
            self.lost_at = Some(Instant::now());
        }
    }

    /// Does the server run in this process?
    pub(crate) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Makes a call that may be repeated, on whichever server there is.
    pub(crate) async fn call<T, F>(&mut self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let since = Instant::now();
        let patience = match self.place {
            Place::Named(_) => HICCUP,
            Place::Local(_) => HANDOVER,
        };
        loop {
            let client = self.client().await?;
            match call(client).await {
                Err(failure)
                    if (failure.is_lost() || failure.code == Code::OutcomeUnknown)
                        && since.elapsed() < patience =>
                {
                    self.lost();
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    /// Stops the embedded server, if there is one.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        match self.embedded {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }
}

/// Is it that a server is just starting or ending?
fn is_handover(failure: &Failure) -> bool {
    failure.is_lost() || failure.code == Code::DataDirectoryInUse
}
