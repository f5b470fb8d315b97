//! The rayreel server: API, store, artifacts, fleet and duties, behind one [`run`].

pub mod api;
pub mod artifacts;
pub mod checkpoint;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod duties;
pub mod estimate;
pub mod feed;
pub mod fleet;
pub mod home;
pub mod image;
pub mod keyring;
pub mod metrics;
pub mod outbound;
pub mod signing;
pub mod store;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use rayreel_domain::code::Code;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use artifacts::{Artifacts, Variables};
use clock::{Clock, Random, SystemClock};
use config::{Settings, StoreAt};
use estimate::Estimates;
use feed::Feed;
use fleet::{Fleet, Targets};
use home::Home;
use keyring::{Credentials, Keyring};
use store::redis::{RedisStore, SharedClock};
use store::sqlite::SqliteStore;
use store::{Options, Store};

/// What a server works with; passed in, so that tests can bring their own.
#[derive(Clone)]
pub struct Components {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<Random>,
    pub store: Arc<dyn Store>,
    /// The feed to which the store publishes.
    pub feed: Arc<Feed>,
    pub artifacts: Artifacts,
    /// Calls what tenants name.
    pub outbound: Arc<outbound::Client>,
    /// Starts the workers of local pools.
    pub provider: Arc<dyn fleet::Provider>,
    pub credentials: Credentials,
}

/// What every handler and duty shares.
pub struct App {
    pub settings: Settings,
    pub components: Components,
    pub estimates: Estimates,
    pub targets: Targets,
    pub metrics: metrics::Metrics,
    pub keyring: Keyring,
    /// Cancelled when the server is about to stop: whoever waits answers at once.
    pub stopping: CancellationToken,
}

impl App {
    pub fn new(settings: Settings, components: Components) -> Self {
        Self {
            estimates: Estimates::new(&settings),
            targets: Targets::default(),
            metrics: metrics::Metrics::default(),
            keyring: Keyring::new(components.credentials.clone()),
            stopping: CancellationToken::new(),
            settings,
            components,
        }
    }
}

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {error}")]
    Store { path: String, error: store::Error },
    #[error("a store in a file is in a data directory, and none is open")]
    NoDirectory,
    #[error(transparent)]
    Artifacts(#[from] artifacts::Error),
    #[error("the server's socket failed: {0}")]
    Io(#[from] std::io::Error),
    #[error(
        "{0} can be reached by others, and there is no API key yet: make one with `rayreel keys \
         create --scopes admin,submit,read`, or set RAYREEL_ADMIN_KEY"
    )]
    NoKeys(SocketAddr),
}

impl Error {
    pub fn code(&self) -> Code {
        match self {
            Self::Store { error: store::Error::TooNew { .. }, .. } => Code::StoreTooNew,
            Self::Store { error: store::Error::Corrupt(_), .. } => Code::StoreCorrupt,
            Self::Artifacts(artifacts::Error::Unusable(_)) => Code::InvalidConfig,
            Self::Store { .. } | Self::Artifacts(_) => Code::StoreUnavailable,
            Self::Io(_) | Self::NoDirectory => Code::Internal,
            Self::NoKeys(_) => Code::InvalidConfig,
        }
    }
}

impl Components {
    /// May such an address be served? Others than this machine's own need a key first.
    pub async fn may_listen(&self, address: SocketAddr) -> Result<(), Error> {
        if is_private(address) || self.credentials.admin_key.is_some() {
            return Ok(());
        }
        let broken = |error| Error::Store { path: "the store".to_owned(), error };
        match keyring::stored(&*self.store).await.map_err(broken)?.is_empty() {
            true => Err(Error::NoKeys(address)),
            false => Ok(()),
        }
    }

    /// The production components over a data directory that this process has locked.
    /// `worker_command` is the program, with its first arguments, that understands `worker …`.
    pub async fn open(
        settings: &Settings,
        home: &Home,
        worker_command: Vec<String>,
    ) -> Result<Self, Error> {
        let clock = clock_of(settings).await?;
        let random = Arc::new(Random::from_system());
        let feed = Arc::new(Feed::default());
        let store = open_store(settings, Some(home), &clock, &random, &feed).await?;
        let credentials = Credentials {
            worker_token: home.worker_token().to_owned(),
            client_token: home.client_token().to_owned(),
            admin_key: None,
        };
        let provider = Arc::new(fleet::local::Local::new(
            worker_command,
            home.path().to_owned(),
            home.identity(),
            credentials.worker_token.clone(),
        ));
        Ok(Self {
            clock,
            artifacts: match settings.artifacts.bucket(Variables::of_process()) {
                Some(bucket) => Artifacts::in_bucket(&bucket, Arc::clone(&random))?,
                None => Artifacts::open(home.artifacts())?,
            },
            random,
            store,
            feed,
            outbound: Arc::new(outbound::Client::new(
                settings.outbound.options(),
                Arc::new(outbound::SystemResolver),
            )),
            provider,
            credentials,
        })
    }
}

/// Checks the invariants of the store that the settings name, and says what breaks them. One in a data
/// directory must be this process's.
pub async fn check_store(settings: &Settings, home: Option<&Home>) -> Result<Vec<String>, Error> {
    let clock = clock_of(settings).await?;
    let random = Arc::new(Random::from_system());
    let store = open_store(settings, home, &clock, &random, &Arc::default()).await?;
    store.check().await.map_err(|error| Error::Store { path: "the store".to_owned(), error })
}

async fn clock_of(settings: &Settings) -> Result<Arc<dyn Clock>, Error> {
    let local: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let StoreAt::Redis(address) = &settings.store else { return Ok(local) };
    let broken = |error| Error::Store { path: address.to_string(), error };
    Ok(SharedClock::of(address, local).await.map_err(broken)?)
}

async fn open_store(
    settings: &Settings,
    home: Option<&Home>,
    clock: &Arc<dyn Clock>,
    random: &Arc<Random>,
    feed: &Arc<Feed>,
) -> Result<Arc<dyn Store>, Error> {
    let options = Options {
        clock: Arc::clone(clock),
        random: Arc::clone(random),
        feed: Arc::clone(feed),
        rules: settings.rules(),
        locality: settings.locality(),
        max_queued: settings.max_queued,
        tenancy: Arc::new(settings.tenancy()),
        garbage_after_ms: settings.garbage_after_seconds.ms(),
        worker_silence_ms: fleet::SILENT_MS,
    };
    if let StoreAt::Redis(address) = &settings.store {
        let broken = |error| Error::Store { path: address.to_string(), error };
        return Ok(Arc::new(RedisStore::open(address, options).await.map_err(broken)?));
    }
    let home = home.ok_or(Error::NoDirectory)?;
    let path = home.database();
    let broken = |error| Error::Store { path: path.display().to_string(), error };
    if let Some(missing) = home.missing() {
        return Err(broken(store::Error::Corrupt(missing)));
    }
    let file = path.clone();
    // It reads and writes files before it serves.
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(file, options)).await;
    let opened = opened.unwrap_or_else(|error| {
        Err(store::Error::Unavailable(format!("its opening panicked: {error}")))
    });
    Ok(Arc::new(opened.map_err(broken)?))
}

/// The URL under which this machine's own processes reach a server that listens there.
pub fn local_url(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
}

/// Can only this machine reach it, under a name that the API knows as its own?
fn is_private(address: SocketAddr) -> bool {
    [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()].contains(&address.ip())
}

/// Serves until `shutdown`, then lets requests end and stops. The production entry and the tests'.
pub async fn run(
    settings: Settings,
    components: Components,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let address = local_url(listener.local_addr()?);
    let app = Arc::new(App::new(settings, components));
    let broken = |error| Error::Store { path: "the store".to_owned(), error };
    app.keyring.load(&app.components).await.map_err(broken)?;
    app.components.may_listen(listener.local_addr()?).await?;
    let mut duties = JoinSet::new();
    let lead = duties::start(&app, &mut duties);
    let mut fleet = Fleet::new(Arc::clone(&app), address).led_by(lead);
    // Before the first claim: leases of workers that died with the machine are free at once.
    fleet.look().await.map_err(broken)?;
    duties.spawn(fleet.run(app.stopping.clone()));
    let served = api::serve(listener, Arc::clone(&app), shutdown).await;
    app.stopping.cancel();
    app.components.feed.wake_everyone();
    while let Some(ended) = duties.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a duty of the server panicked");
        }
    }
    Ok(served?)
}
