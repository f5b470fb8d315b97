//! Runs a server in this process, for `rayreel serve` and for commands that find none.

use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;

use rayreel_domain::Code;
use rayreel_server::Components;
use rayreel_server::clock::Random;
use rayreel_server::config::Settings;
use rayreel_server::home::Home;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args;
use crate::failure::{Exit, Failure};
use crate::log;
use crate::models;
use crate::out::Out;
use crate::settings;
use crate::signals::Interrupts;

/// A server that runs in this process.
#[derive(Debug)]
pub(crate) struct Server {
    pub url: String,
    pub client_token: String,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), rayreel_server::Error>>,
}

impl Server {
    /// Takes the data directory, listens, and tells clients of the same user where.
    async fn start(
        settings: Settings,
        address: SocketAddr,
        embedded: bool,
    ) -> Result<Self, Failure> {
        // Locking comes first: whoever has the directory is told of by name, not by its port.
        let directory = settings.data.clone();
        let home = blocking(move || Ok(Home::open(&directory, &Random::from_system())?)).await?;
        let listener =
            TcpListener::bind(address).await.map_err(|error| not_listening(address, &error))?;
        let address = listener
            .local_addr()
            .map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        let url = rayreel_server::local_url(address);
        let admin_key = admin_key()?;
        let mut home = home;
        let mut components = Components::open(&settings, &home, worker_command()?).await?;
        components.credentials.admin_key = admin_key;
        components.may_listen(address).await?;
        components.artifacts.start().await.map_err(rayreel_server::Error::from)?;
        home.announce(&url, embedded)?;
        let client_token = home.client_token().to_owned();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        // Ends by `stop`, or with an error; whoever holds the handle learns of either.
        let task = tokio::spawn(async move {
            let mut run = pin!(rayreel_server::run(settings, components, listener, stop.clone()));
            let ended = tokio::select! {
                ended = run.as_mut() => ended,
                () = stop.cancelled() => {
                    // Before the store is closed: who finds the announcement knows that it was not.
                    home.withdraw();
                    run.await
                }
            };
            // Only now may another server have the directory.
            drop(home);
            ended
        });
        Ok(Self { url, client_token, shutdown, task })
    }

    /// One on a free port, for this process and those that find it.
    pub(crate) async fn start_embedded(settings: Settings) -> Result<Self, Failure> {
        Self::start(settings, (Ipv4Addr::LOCALHOST, 0).into(), true).await
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until the server has ended by itself, which is an error.
    async fn ended(&mut self) -> Result<(), Failure> {
        outcome((&mut self.task).await)
    }

    /// Lets requests end, releases what is idle, and gives the directory back.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        self.shutdown.cancel();
        outcome(self.task.await)
    }
}

fn not_listening(address: SocketAddr, error: &io::Error) -> Failure {
    let failure = |message: String| Failure::new(Code::InvalidConfig, message);
    match error.kind() {
        io::ErrorKind::AddrInUse => Failure::new(
            Code::AddressInUse,
            format!("{address} is in use: another program, or another rayreel, listens there"),
        ),
        io::ErrorKind::PermissionDenied => {
            failure(format!("this user may not listen on {address}"))
                .helped("Choose a port above 1023 with --listen; port 0 takes a free one.")
        }
        io::ErrorKind::AddrNotAvailable => {
            failure(format!("this machine has no address {}", address.ip()))
                .helped("Choose another address with --listen, such as 127.0.0.1:8088.")
        }
        _ => failure(format!("{address} can't be listened on: {error}"))
            .helped("Choose another address with --listen."),
    }
}

fn outcome(
    joined: Result<Result<(), rayreel_server::Error>, tokio::task::JoinError>,
) -> Result<(), Failure> {
    match joined {
        Ok(ended) => Ok(ended?),
        Err(error) => Err(Failure::new(Code::Internal, format!("the server panicked: {error}"))),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::new(Code::Internal, error.to_string())))
}

/// The operator's own key.
fn admin_key() -> Result<Option<String>, Failure> {
    const NAME: &str = "RAYREEL_ADMIN_KEY";
    match std::env::var(NAME) {
        Err(std::env::VarError::NotPresent) => Ok(None),
        Ok(key) if key.is_empty() => Ok(None),
        Ok(key) if (32..=200).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some(key))
        }
        _ => Err(Failure::value(
            NAME,
            "RAYREEL_ADMIN_KEY must have 32 to 200 visible ASCII characters",
        )
        .helped("`openssl rand -hex 32` makes one.")),
    }
}

/// Local workers are this program again.
fn worker_command() -> Result<Vec<String>, Failure> {
    let fail = |why: String| {
        Failure::new(Code::Internal, format!("this program's own path is not known: {why}"))
    };
    let path = std::env::current_exe().map_err(|error| fail(error.to_string()))?;
    let path = path.into_os_string().into_string();
    Ok(vec![path.map_err(|path| fail(format!("{} is not UTF-8", path.display())))?])
}

/// `rayreel serve`.
pub(crate) async fn run(
    global: &args::Global,
    arguments: args::Serve,
    out: Out,
) -> Result<(), Exit> {
    let mut settings = settings::load_for_serving(global, arguments.listen)?;
    // A path through a link is still the same directory tomorrow.
    settings.data = std::path::absolute(&settings.data).unwrap_or(settings.data);
    log::to_stderr(settings.log.level, settings.log.format)?;
    models::warn_of_environment(&settings);
    let interrupts = Interrupts::listen()?;
    let data = settings.data.display().to_string();
    let address = settings.listen;
    let mut server = Server::start(settings, address, false).await?;
    tracing::info!(url = server.url, data, "serving");
    if out.json {
        let pid = std::process::id();
        out.json(&serde_json::json!({ "url": server.url, "data": data, "pid": pid }))?;
    } else {
        out.line(&format!("rayreel serves {}, data in {data}", server.url))?;
        if std::io::stdout().is_terminal() {
            out.note("Ctrl-C stops it; tasks that are queued stay so");
        }
    }
    tokio::select! {
        ended = server.ended() => return Ok(ended?),
        () = interrupts.first() => {}
    }
    tracing::info!("stopping; a second signal ends at once");
    interrupts.exit_on_second();
    Ok(server.stop().await?)
}
