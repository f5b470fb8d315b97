//! Which server a command talks to, and what happens when it goes away.
//!
//! A server that was named is the one. Otherwise it is whichever works on the data directory; if
//! none does, this process runs one. It may end while others use it, as a `generate` does when it
//! is done: they look again, and one of them becomes the server. Nothing is lost by that, since the
//! tasks are on the disk and workers look for the new address.
//!
//! A server of `rayreel serve` is another matter. Somebody has started it, and will start it again;
//! a client that took its place would stand in its way.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rayreel_client::{self as client, Client};
use rayreel_domain::{Code, ModelName};
use rayreel_server::config::Loaded;
use rayreel_server::home;
use tokio::time::Instant;

use crate::args::Global;
use crate::failure::Failure;
use crate::log;
use crate::out::Out;
use crate::serve::Server;
use crate::settings;

/// How long a data directory may have a server that does not answer: it starts, stops or hangs.
const HANDOVER: Duration = Duration::from_secs(30);
/// How long a named server may fail to answer a single call.
const HICCUP: Duration = Duration::from_millis(500);
/// Whoever waits for longer is told for what.
const MUTE: Duration = Duration::from_secs(2);
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
    Local(Box<Loaded>),
}

/// The server of another process, as it was last seen on the data directory.
#[derive(Debug)]
struct Seen {
    url: String,
    /// Is it a `rayreel serve`?
    is_service: bool,
}

/// The server of this command.
#[derive(Debug)]
pub(crate) struct Session {
    place: Place,
    client: Option<Client>,
    embedded: Option<Server>,
    seen: Option<Seen>,
    /// What an embedded server will have to run.
    model: Option<ModelName>,
    hint: Hint,
}

impl Session {
    pub(crate) fn new(global: &Global, workers: Workers, out: Out) -> Result<Self, Failure> {
        let place = match global.server.as_deref().filter(|address| !address.is_empty()) {
            Some(address) => {
                let token = std::env::var("RAYREEL_TOKEN").ok().filter(|token| !token.is_empty());
                Place::Named(connect(address, token.as_deref())?)
            }
            None => {
                let mut loaded = settings::load(global)?;
                if workers == Workers::None {
                    for pool in loaded.settings.pools.values_mut() {
                        (pool.min, pool.max) = (0, 0);
                    }
                }
                Place::Local(Box::new(loaded))
            }
        };
        Ok(Self::at(place, out))
    }

    fn at(place: Place, out: Out) -> Self {
        let hint = Hint { told: Arc::new(AtomicBool::new(!out.is_live())), out };
        Self { place, client: None, embedded: None, seen: None, model: None, hint }
    }

    /// It is for this model, or for the default one: whose files must be there if the server is to be
    /// in this process.
    pub(crate) fn for_model(mut self, model: Option<&str>) -> Self {
        self.model = match (model, &self.place) {
            // One that is no name is refused by the server.
            (Some(model), _) => model.parse().ok(),
            (None, Place::Local(loaded)) => Some(loaded.settings.default_model.clone()),
            (None, Place::Named(_)) => None,
        };
        self
    }

    /// The server, which is found or started if need be; waits while one starts, stops or hangs.
    pub(crate) async fn client(&mut self) -> Result<Client, Failure> {
        let since = Instant::now();
        let (hint, whom) = (self.hint.clone(), self.whom());
        let found = async {
            loop {
                match self.look().await {
                    Err(failure) if is_handover(&failure) && since.elapsed() < HANDOVER => {
                        tokio::time::sleep(PAUSE).await;
                    }
                    found => return found,
                }
            }
        };
        hint.while_it_lasts(since, whom, found).await
    }

    /// The server, if it is there just now; started if there is none to wait for.
    pub(crate) async fn look(&mut self) -> Result<Client, Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client = match &self.place {
            Place::Named(client) => client.clone(),
            Place::Local(loaded) => {
                let loaded = loaded.clone();
                self.find_or_start(&loaded).await?
            }
        };
        self.client = Some(client.clone());
        Ok(client)
    }

    async fn find_or_start(&mut self, loaded: &Loaded) -> Result<Client, Failure> {
        if let Some(server) = self.embedded.take() {
            if server.has_ended() {
                // It says why.
                server.stop().await?;
            } else {
                let client = connect(&server.url, Some(&server.client_token))?;
                self.embedded = Some(server);
                return Ok(client);
            }
        }
        match (home::running(&loaded.settings.data), &self.seen) {
            (Some(running), _) => {
                let client = connect(&running.url, Some(running.token.as_str()))?;
                self.seen = Some(Seen { url: running.url, is_service: !running.embedded });
                client.is_alive().await?;
                Ok(client)
            }
            (None, Some(Seen { url, is_service: true })) => {
                let message = format!("the server at {url} is gone");
                Err(Failure::new(Code::ServerUnreachable, message)
                    .helped("Start it again with `rayreel serve`; it has every task still."))
            }
            (None, _) => self.start(loaded).await,
        }
    }

    /// The server that this command waits for, in words.
    pub(crate) fn whom(&self) -> String {
        let address = match &self.place {
            Place::Named(client) => Some(client.address().to_owned()),
            Place::Local(loaded) => {
                let running = home::running(&loaded.settings.data).map(|running| running.url);
                running.or_else(|| self.seen.as_ref().map(|seen| seen.url.clone()))
            }
        };
        match (address, &self.place) {
            (Some(address), _) => format!("the server at {address}"),
            (None, Place::Named(_)) => "the server".to_owned(),
            (None, Place::Local(loaded)) => {
                format!("the server of {}", loaded.settings.data.display())
            }
        }
    }

    /// Has the server's process ended, as far as can be seen from here?
    pub(crate) fn is_gone(&self) -> bool {
        match &self.place {
            Place::Named(_) => false,
            Place::Local(loaded) => home::running(&loaded.settings.data).is_none(),
        }
    }

    /// From now on somebody else tells whoever waits what for.
    pub(crate) fn hush(&self) {
        self.hint.told.store(true, Ordering::Relaxed);
    }

    async fn start(&mut self, loaded: &Loaded) -> Result<Client, Failure> {
        let settings = &loaded.settings;
        if let Some(name) = self.model.as_ref().and_then(|model| settings.canonical(model)) {
            loaded.check_files_of(name)?;
        }
        log::to_file(&settings.data, settings.log.level)?;
        let server = Server::start_embedded(settings.clone()).await?;
        let client = connect(&server.url, Some(&server.client_token))?;
        self.embedded = Some(server);
        Ok(client)
    }

    /// The server did not answer: look for it again next time.
    pub(crate) fn lost(&mut self) {
        self.client = None;
    }

    /// Does the server run in this process?
    pub(crate) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Makes a call that may be repeated, on whichever server there is.
    pub(crate) async fn call<T, F>(&mut self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, client::Error>>,
    {
        let since = Instant::now();
        let patience = match self.place {
            Place::Named(_) => HICCUP,
            Place::Local(_) => HANDOVER,
        };
        loop {
            let client = self.client().await?;
            let (hint, whom) = (self.hint.clone(), self.whom());
            let answer = hint.while_it_lasts(since, whom, call(client)).await;
            match answer.map_err(Failure::from) {
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

/// Tells, once, whoever waits at a terminal for what.
#[derive(Debug, Clone)]
struct Hint {
    out: Out,
    told: Arc<AtomicBool>,
}

impl Hint {
    async fn while_it_lasts<T>(
        &self,
        since: Instant,
        whom: String,
        wait: impl Future<Output = T>,
    ) -> T {
        let mut wait = pin!(wait);
        tokio::select! {
            done = &mut wait => return done,
            () = tokio::time::sleep_until(since + MUTE) => {}
        }
        if !self.told.swap(true, Ordering::Relaxed) {
            self.out.note(&format!("{whom} has not answered yet; waiting for it"));
        }
        wait.await
    }
}

/// A client of the server at an address. It makes each call once: what is tried again, and on which
/// server, is decided here.
fn connect(address: &str, token: Option<&str>) -> Result<Client, Failure> {
    let builder = Client::builder(address).retries(0);
    let builder = match token {
        Some(token) => builder.key(token),
        None => builder,
    };
    Ok(builder.build()?)
}

/// Is it that a server is just starting or ending?
pub(crate) fn is_handover(failure: &Failure) -> bool {
    failure.is_lost() || failure.code == Code::DataDirectoryInUse
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that takes connections and never answers, as one that is stopped.
    fn hung() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        (listener, url)
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_given_up_after_a_limit_and_named() {
        let (_listener, url) = hung();
        let place = Place::Named(connect(&url, None).expect("right"));
        let mut session = Session::at(place, Out::new(false, true));
        let since = Instant::now();
        let failure = session
            .call(|client| async move { client.list(&Default::default()).await })
            .await
            .expect_err("it hangs");
        assert_eq!(failure.code, Code::ServerUnreachable);
        let text = failure.text();
        assert!(text.contains(&format!("{url} takes calls, but does not answer")), "{text}");
        assert!(text.contains("It hangs or is overloaded"), "{text}");
        assert_eq!(since.elapsed().as_secs(), 30);
    }
}
