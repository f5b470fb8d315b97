//! The way to Redis: connecting, finding the primary again after a failover, and what an error means
//! to whoever calls the store.

use std::sync::RwLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, RedisError,
};
use redis::{ErrorKind, IntoConnectionInfo, ServerErrorKind};
use tokio::sync::Mutex;

use super::address::{Address, Kind};
use crate::store::Error;

/// How long a connection may take to come about, and an answer.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);

/// One server's way to the store.
pub(super) struct Link {
    source: Source,
    /// None while there is none, or it broke.
    current: RwLock<Option<Connection>>,
    /// Whoever holds it connects; the others wait for him.
    connecting: Mutex<()>,
}

enum Source {
    Node(redis::Client),
    Sentinel(Box<Mutex<SentinelClient>>),
    Cluster(redis::cluster::ClusterClient),
}

/// A way to Redis that is used by many.
#[derive(Clone)]
enum Connection {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A way to Redis that is used by one.
pub(super) enum Own {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) fn new(address: &Address) -> Result<Self, Error> {
        let source = match &address.kind {
            Kind::Node(info) => Source::Node(redis::Client::open(info.clone()).map_err(failed)?),
            Kind::Cluster(nodes) => {
                let client = ClusterClientBuilder::new(nodes.clone())
                    .connection_timeout(CONNECT)
                    .response_timeout(ANSWER)
                    .retries(3)
                    .build()
                    .map_err(failed)?;
                Source::Cluster(client)
            }
            Kind::Sentinel { sentinels, master, node } => {
                Source::Sentinel(Box::new(Mutex::new(sentinel(sentinels, master, node)?)))
            }
        };
        Ok(Self { source, current: RwLock::new(None), connecting: Mutex::new(()) })
    }

    /// Sends a command. An error that may have been sent says so.
    pub(super) async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        let answer = match &mut connection {
            Connection::Node(node) => command.query_async(node).await,
            Connection::Cluster(cluster) => command.query_async(cluster).await,
        };
        if let Err(error) = &answer
            && gives_up(error)
        {
            // The next call connects anew, and asks who is the primary.
            *self.current.write().expect("nothing panics while it holds this lock") = None;
        }
        answer
    }

    async fn connection(&self) -> Result<Connection, RedisError> {
        let known =
            || self.current.read().expect("nothing panics while it holds this lock").clone();
        if let Some(connection) = known() {
            return Ok(connection);
        }
        let _one = self.connecting.lock().await;
        if let Some(connection) = known() {
            return Ok(connection);
        }
        let connection = match &self.source {
            Source::Cluster(client) => {
                Connection::Cluster(client.get_async_connection().await.map_err(unsent)?)
            }
            _ => Connection::Node(self.node(ANSWER).await?),
        };
        *self.current.write().expect("nothing panics while it holds this lock") =
            Some(connection.clone());
        Ok(connection)
    }

    /// A connection of its own, for what blocks. `answer`: how long an answer may take.
    pub(super) async fn own(&self, answer: Duration) -> Result<Own, RedisError> {
        match &self.source {
            Source::Cluster(client) => {
                let config = redis::cluster::ClusterConfig::new()
                    .set_connection_timeout(CONNECT)
                    .set_response_timeout(answer);
                let made = client.get_async_connection_with_config(config).await;
                Ok(Own::Cluster(made.map_err(unsent)?))
            }
            _ => Ok(Own::Node(self.node(answer).await?)),
        }
    }

    async fn node(&self, answer: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(answer));
        let made = match &self.source {
            Source::Node(client) => {
                client.get_multiplexed_async_connection_with_config(&config).await
            }
            Source::Sentinel(client) => {
                client.lock().await.get_async_connection_with_config(&config).await
            }
            Source::Cluster(_) => return Err(unsent_text("a cluster has many nodes")),
        };
        made.map_err(unsent)
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.source, Source::Cluster(_))
    }
}

fn sentinel(
    sentinels: &[ConnectionAddr],
    master: &str,
    node: &ConnectionInfo,
) -> Result<SentinelClient, Error> {
    let settings = node.redis_settings();
    let mut builder = SentinelClientBuilder::new(
        sentinels.to_vec(),
        master.to_owned(),
        SentinelServerType::Master,
    )
    .map_err(failed)?
    .set_client_to_redis_db(settings.db());
    if let Some(user) = settings.username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = settings.password() {
        builder = builder.set_client_to_redis_password(password);
    }
    builder.build().map_err(failed)
}

/// Marks an error of which nothing can have reached the server.
const UNSENT: &str = "no connection to Redis";

fn unsent(error: RedisError) -> RedisError {
    unsent_text(&error.to_string())
}

fn unsent_text(why: &str) -> RedisError {
    RedisError::from((ErrorKind::Client, UNSENT, why.to_owned()))
}

/// Is the connection of no use after this?
fn gives_up(error: &RedisError) -> bool {
    let demoted = matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
    );
    // After a timeout nobody knows whether the other side still lives.
    demoted || error.is_unrecoverable_error() || error.is_io_error()
}

/// What an error of Redis means to whoever calls the store.
pub(super) fn failed(error: RedisError) -> Error {
    // Refusals of the server, before a script has begun.
    const REFUSALS: [&str; 12] = [
        "LOADING",
        "READONLY",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "MISCONF",
        "NOREPLICAS",
        "NOAUTH",
        "NOPERM",
        "WRONGPASS",
        "MOVED",
        "ASK",
    ];
    let text = error.to_string();
    let refused = error.code().is_some_and(|code| REFUSALS.contains(&code))
        || error.code() == Some("OOM")
        || matches!(
            error.kind(),
            ErrorKind::Client
                | ErrorKind::InvalidClientConfig
                | ErrorKind::AuthenticationFailed
                | ErrorKind::ClusterConnectionNotFound
                | ErrorKind::MasterNameNotFoundBySentinel
                | ErrorKind::EmptySentinelList
        );
    match error.kind() {
        _ if refused => Error::Unavailable(text),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Error::Corrupt(text),
        _ => Error::OutcomeUnknown(text),
    }
}

impl Address {
    /// Reads one address of a node.
    pub(super) fn info(url: &str) -> Result<ConnectionInfo, String> {
        url.into_connection_info().map_err(|error| error.to_string())
    }
}
