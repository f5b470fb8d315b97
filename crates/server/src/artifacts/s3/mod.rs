//! The artifact store below a prefix of a bucket, through the S3 API: AWS, MinIO, Ceph and their like.
//!
//! What the server does itself goes through `object_store`, which knows credentials, their renewal and
//! when to try again. Workers and clients get signed addresses instead of credentials: each is good for
//! one request on one key, and for a short time. What stores differ in is tried out: [`abilities`].
//!
//! Whatever goes wrong with a store that was found right is taken for passing: it is somebody else's,
//! it may be mended at any time, and a task that is given up is lost.

mod abilities;
mod direct;
mod parts;
mod request;
mod upload;

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, RetryConfig,
};
use tokio::sync::OnceCell;

use super::{Error, Key, hex};
use crate::clock::Random;
use abilities::Abilities;

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(3);
/// Without a byte for so long, a request has failed.
const SILENCE: Duration = Duration::from_secs(30);
/// For how long, and how often, `object_store` repeats a request by itself. Callers repeat theirs.
const RETRY: Duration = Duration::from_secs(5);
const RETRIES: usize = 2;

/// Which bucket, where, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub name: String,
    /// What all keys begin with; none if empty.
    pub prefix: String,
    /// `https://minio.internal:9000`; AWS's own if absent.
    pub endpoint: Option<String>,
    /// The name comes after the endpoint, and not before its host.
    pub path_style: bool,
    pub region: Option<String>,
    pub allow_http: bool,
    /// Who downloads is sent to the store.
    pub redirect: bool,
    /// Its address for them, if it is another.
    pub public_endpoint: Option<String>,
    /// How long signed addresses are good.
    pub signed_life: Duration,
    /// Longer files are put there in parts of so many bytes.
    pub part_bytes: u64,
    /// Variables `AWS_…`: where credentials come from, above all.
    pub variables: Variables,
}

/// Names and values, of which only the names are ever shown.
#[derive(Clone, Default)]
pub struct Variables(pub Vec<(String, String)>);

impl Variables {
    /// Those of this process.
    pub fn of_process() -> Self {
        let text = std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            name.starts_with("AWS_").then_some((name, value))
        });
        Self(text.collect())
    }
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[derive(Debug)]
pub(super) struct S3 {
    bucket: Bucket,
    prefix: Path,
    store: AmazonS3,
    /// The same as those know it who download.
    public: AmazonS3,
    http: reqwest::Client,
    random: Arc<Random>,
    /// Empty until the store has been asked, and has answered.
    abilities: OnceCell<Abilities>,
}

impl S3 {
    pub(super) fn open(bucket: &Bucket, random: Arc<Random>) -> Result<Self, Error> {
        // An error says that there is a provider already, which does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("rayreel/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(request::LIMIT)
            .build()
            .map_err(|error| Error::Other(told(&error)))?;
        let store = bucket.connect(bucket.endpoint.as_deref())?;
        Ok(Self {
            prefix: Path::from(bucket.prefix.as_str()),
            public: match &bucket.public_endpoint {
                Some(endpoint) => bucket.connect(Some(endpoint))?,
                None => store.clone(),
            },
            store,
            http,
            random,
            abilities: OnceCell::new(),
            bucket: bucket.clone(),
        })
    }

    /// Where a key lies in the bucket.
    fn at(&self, key: &Path) -> Path {
        self.prefix.parts().chain(key.parts()).collect()
    }

    pub(super) async fn probe(&self) -> Result<(), Error> {
        // There is nothing, and that is an answer.
        match self.store.head(&self.at(&Path::from(".probe"))).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    pub(super) async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), Error> {
        self.store.put(&self.at(&key.0), bytes.into()).await.map_err(failed)?;
        Ok(())
    }

    pub(super) async fn get(
        &self,
        key: &Key,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let found = self.store.get_opts(&self.at(&key.0), options).await.map_err(failed)?;
        Ok(found.into_stream().map_err(failed).boxed())
    }

    pub(super) async fn delete(&self, key: &Key) -> Result<(), Error> {
        match self.store.delete(&self.at(&key.0)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            deleted => deleted.map_err(failed),
        }
    }

    pub(super) async fn delete_folder(&self, folder: &str) -> Result<(), Error> {
        let folder = self.at(&Path::from(folder));
        // First: what is put together meanwhile is then deleted as well.
        self.abort_below(&folder).await?;
        self.delete_below(&folder).await
    }

    /// Deletes what lies below a path of the bucket.
    async fn delete_below(&self, folder: &Path) -> Result<(), Error> {
        let files = self.store.list(Some(folder)).map_ok(|file| file.location).boxed();
        // One by one: not every store knows how to delete many at once, and a folder has few.
        self.store.delete_stream(files).try_for_each(async |_| Ok(())).await.map_err(failed)
    }
}

impl Bucket {
    fn connect(&self, endpoint: Option<&str>) -> Result<AmazonS3, Error> {
        let client = ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_connect_timeout(CONNECT)
            .with_timeout_disabled()
            .with_read_timeout(SILENCE);
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES,
            retry_timeout: RETRY,
        };
        let mut builder = AmazonS3Builder::new().with_client_options(client).with_retry(retry);
        for (name, value) in &self.variables.0 {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        builder = builder
            .with_bucket_name(&self.name)
            .with_virtual_hosted_style_request(!self.path_style)
            .with_disable_bulk_delete(true);
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(self.host_of(endpoint));
        }
        builder.build().map_err(|error| Error::Other(told(&error)))
    }

    /// What the first request that fails means, for the operator.
    fn explain(&self, error: object_store::Error) -> Error {
        let told = told(&error);
        let said = said(&told);
        match error {
            object_store::Error::NotFound { .. } => Error::Unusable(format!(
                "there is no bucket {self} ({said}): make it, or correct `artifacts.url` or \
                 `artifacts.endpoint`"
            )),
            object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. } => Error::Unusable(format!(
                "the credentials do not open {self} for writing ({said}): correct AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, or whatever gives them, or what they allow"
            )),
            _ if !self.names_credentials() => Error::Unavailable(format!(
                "the environment names no credentials, such as AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, and the machine gives none: {told}"
            )),
            error => failed(error),
        }
    }

    /// Does the environment say where credentials come from?
    fn names_credentials(&self) -> bool {
        const NAMES: [&str; 4] = [
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        self.variables.0.iter().any(|(name, _)| NAMES.contains(&&**name))
    }

    /// The endpoint, with the bucket before its host if that is the style.
    fn host_of(&self, endpoint: &str) -> String {
        match endpoint.split_once("://") {
            Some((scheme, host)) if !self.path_style => {
                format!("{scheme}://{}.{host}", self.name)
            }
            _ => endpoint.to_owned(),
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.name)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        match &self.endpoint {
            Some(endpoint) => write!(f, " at {endpoint}"),
            None => Ok(()),
        }
    }
}

fn failed(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::NotFound,
        error => Error::Unavailable(told(&error)),
    }
}

/// The code of a service's answer in XML; the rest says what was signed, with whose key.
fn said(text: &str) -> &str {
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or("the service says no more", |(code, _)| code)
}

/// An error with its causes, as far as they say something new.
fn told(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
