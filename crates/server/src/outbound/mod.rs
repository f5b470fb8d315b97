//! The only way in which the server calls an address that somebody else has named: a tenant's
//! image, a tenant's webhook.
//!
//! What may be called is decided in [`guard`], from the URL and then from the addresses to which
//! its name leads. The connection is made to exactly those addresses: the check is part of the one
//! lookup ([`Guarded`]), so DNS that changes its answer changes nothing. No proxy, no connection
//! that is kept, no decompression, no cookies; redirects are followed by hand, each under the same
//! checks. See `docs/design/inputs.md`.

mod address;
mod guard;
mod system;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Response, redirect};
use tokio::sync::OnceCell;

pub use guard::{Allowed, MAX_URL};
pub use system::SystemResolver;

use guard::{Guard, Reach, Target};

/// Most redirects of one call.
const MAX_REDIRECTS: usize = 3;
/// As much of the answer to a post as is kept.
const MAX_ANSWER: usize = 4_096;

/// What a client is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What may be called although it is not public, without TLS and at any port.
    pub allow: Vec<Allowed>,
    /// The ports of public addresses.
    pub ports: Vec<u16>,
    /// Until a connection stands, its TLS included.
    pub connect: Duration,
    /// For a whole call, with its redirects and the last byte of the answer.
    pub whole: Duration,
    /// A file of certificates in PEM that are trusted besides the system's.
    pub certificates: Option<PathBuf>,
}

/// Says to which addresses a name leads.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// Why a call came to nothing. The messages are for whoever named the URL: they quote what he
/// wrote, and nothing of what is inside this network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The URL, or what it leads to, must not be called. Trying again changes nothing.
    #[error("{0}")]
    Refused(String),
    /// Nobody answered, or not in HTTP.
    #[error("`{host}` could not be reached: {why}")]
    Unreachable { host: String, why: &'static str },
    #[error("`{host}` took longer than {seconds} s")]
    TimedOut { host: String, seconds: u64 },
    #[error("`{host}` sends more than {limit} bytes")]
    TooLarge { host: String, limit: u64 },
    /// Asked for a file, the host answered something else.
    #[error("`{host}` answers with status {status}")]
    Status { host: String, status: u16 },
    /// The fault is here.
    #[error("no call can be made: {0}")]
    Broken(String),
}

/// A file that was fetched.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub bytes: Bytes,
    /// As the host says.
    pub content_type: Option<String>,
}

/// The answer to a post.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// Its first bytes.
    pub body: Bytes,
    pub headers: HeaderMap,
}

/// Calls what others have named.
pub struct Client {
    guard: Arc<Guard>,
    resolver: Arc<dyn Resolver>,
    options: Options,
    /// Made when first needed: reading the system's certificates takes its time.
    public: OnceCell<reqwest::Client>,
    allowed: OnceCell<reqwest::Client>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(options: Options, resolver: Arc<dyn Resolver>) -> Self {
        let guard = Guard { allow: options.allow.clone(), ports: options.ports.clone() };
        Self {
            guard: Arc::new(guard),
            resolver,
            options,
            public: OnceCell::new(),
            allowed: OnceCell::new(),
        }
    }

    /// Refuses a URL that would be refused whatever its name leads to; calls nobody.
    pub fn check(&self, url: &str) -> Result<(), Error> {
        self.guard.read(url).map(drop)
    }

    /// Fetches a file of at most `limit` bytes.
    pub async fn get(&self, url: &str, limit: u64) -> Result<Fetched, Error> {
        let target = self.guard.read(url)?;
        let host = guard::shown(&target.url);
        self.in_time(host, self.fetch(target, limit)).await
    }

    /// Posts a body. A redirect is an answer: what was meant for one host goes to no other.
    pub async fn post(&self, url: &str, headers: HeaderMap, body: Bytes) -> Result<Answer, Error> {
        let target = self.guard.read(url)?;
        let host = guard::shown(&target.url);
        let call = async {
            let mut response = self.send(&target, Method::POST, headers, Some(body)).await?;
            let mut first = Vec::new();
            while first.len() < MAX_ANSWER
                && let Some(chunk) = chunk(&mut response, &target).await?
            {
                first.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER - first.len())]);
            }
            Ok(Answer {
                status: response.status().as_u16(),
                body: first.into(),
                headers: std::mem::take(response.headers_mut()),
            })
        };
        self.in_time(host, call).await
    }

    async fn in_time<T>(
        &self,
        host: String,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let limit = self.options.whole;
        let late = |_| Error::TimedOut { host, seconds: limit.as_secs_f64().ceil() as u64 };
        tokio::time::timeout(limit, call).await.map_err(late)?
    }

    async fn fetch(&self, mut target: Target, limit: u64) -> Result<Fetched, Error> {
        let mut redirects = 0;
        loop {
            let response = self.send(&target, Method::GET, HeaderMap::new(), None).await?;
            let location = response.headers().get(LOCATION).filter(|_| {
                // Those that tell where the same file is found by the same method.
                matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
            });
            let Some(location) = location else {
                return read(response, &target, limit).await;
            };
            let host = guard::shown(&target.url);
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                let why = format!("`{host}` redirects once more after {MAX_REDIRECTS} redirects");
                return Err(Error::Refused(why));
            }
            let location = location.to_str().map_err(|_| {
                Error::Refused(format!("`{host}` redirects to something that is no URL"))
            })?;
            target = self.guard.follow(&target, location)?;
        }
    }

    async fn send(
        &self,
        target: &Target,
        method: Method,
        headers: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response, Error> {
        let cell = match target.reach {
            Reach::Public => &self.public,
            Reach::Allowed => &self.allowed,
        };
        let client = cell.get_or_try_init(|| self.connect(target.reach)).await?;
        let mut request = client.request(method, target.url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        request.send().await.map_err(|error| said(&error, target))
    }

    async fn connect(&self, reach: Reach) -> Result<reqwest::Client, Error> {
        let (guard, resolver) = (Arc::clone(&self.guard), Arc::clone(&self.resolver));
        let resolver = Guarded { guard, resolver, reach };
        let options = self.options.clone();
        let built = tokio::task::spawn_blocking(move || build(&options, resolver)).await;
        built.map_err(|error| error.to_string()).flatten().map_err(Error::Broken)
    }
}

/// The certificates of the setting, or what is wrong with their file.
pub fn certificates(path: &std::path::Path) -> Result<Vec<Certificate>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("can't be read: {error}"))?;
    let found = Certificate::from_pem_bundle(&pem)
        .map_err(|error| format!("has no readable certificates: {error}"))?;
    if found.is_empty() {
        return Err("has no certificate in PEM".to_owned());
    }
    Ok(found)
}

fn build(options: &Options, resolver: Guarded) -> Result<reqwest::Client, String> {
    // An error says that there is a provider already, which does as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut own = HeaderMap::new();
    own.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("rayreel/", env!("CARGO_PKG_VERSION")))
        .default_headers(own)
        .dns_resolver(Arc::new(resolver))
        .redirect(redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .http1_only()
        .connect_timeout(options.connect)
        // Each call looks up and checks anew; callers are too few to share connections.
        .pool_max_idle_per_host(0);
    if let Some(path) = &options.certificates {
        let more = certificates(path).map_err(|why| format!("{} {why}", path.display()))?;
        builder = builder.tls_certs_merge(more);
    }
    builder.build().map_err(|error| error.to_string())
}

/// The lookup of a connection, and the check of what it says: no address comes out of it that may
/// not be called.
struct Guarded {
    guard: Arc<Guard>,
    resolver: Arc<dyn Resolver>,
    reach: Reach,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, resolver) = (Arc::clone(&self.guard), Arc::clone(&self.resolver));
        let reach = self.reach;
        Box::pin(async move {
            let name = name.as_str();
            let addresses = resolver.lookup(name).await.unwrap_or_else(|error| {
                tracing::debug!(%error, name, "a name could not be resolved");
                Vec::new()
            });
            if let Err(error) = guard.admit(name, &addresses, reach) {
                tracing::debug!(name, ?addresses, "a name leads to where nobody may call");
                return Err(error.into());
            }
            // Port 0 stands for that of the URL.
            let sockets = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(sockets.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

async fn read(mut response: Response, target: &Target, limit: u64) -> Result<Fetched, Error> {
    let host = || guard::shown(&target.url);
    let status = response.status().as_u16();
    if status != 200 {
        return Err(Error::Status { host: host(), status });
    }
    let coded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if response.headers().get_all(CONTENT_ENCODING).iter().any(coded) {
        let why = "it compresses what it sends, although it was asked not to";
        return Err(Error::Unreachable { host: host(), why });
    }
    let too_large = || Error::TooLarge { host: host(), limit };
    let announced = response.content_length().unwrap_or(0);
    if announced > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(announced).unwrap_or(0));
    while let Some(chunk) = chunk(&mut response, target).await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.map(str::to_owned);
    Ok(Fetched { bytes: bytes.into(), content_type })
}

async fn chunk(response: &mut Response, target: &Target) -> Result<Option<Bytes>, Error> {
    response.chunk().await.map_err(|error| said(&error, target))
}

/// What an error of the HTTP client says to whoever named the URL.
fn said(error: &reqwest::Error, target: &Target) -> Error {
    let host = guard::shown(&target.url);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut insecure = false;
    while let Some(at) = cause {
        if let Some(refused) = at.downcast_ref::<Error>() {
            return refused.clone();
        }
        insecure |= at.is::<rustls::Error>();
        // An io::Error keeps what it was made of to itself.
        let inner = at.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => at.source(),
        };
    }
    tracing::debug!(%error, host, "an outbound call failed");
    let why = match () {
        () if insecure => "its TLS certificate is not trusted, or it speaks no TLS",
        () if error.is_timeout() => "no connection in time",
        () if error.is_connect() => "no connection",
        () => "it does not answer in HTTP, or stopped in the middle",
    };
    Error::Unreachable { host, why }
}
