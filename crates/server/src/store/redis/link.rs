//! The way to Redis: connecting, finding the primary again after a failover, and what an error means
//! to whoever calls the store.

use std::sync::{Mutex as Lock, MutexGuard, RwLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, RedisError,
};
use redis::{ErrorKind, IntoConnectionInfo, ServerErrorKind};
use tokio::sync::{Mutex, Semaphore};

use super::address::{Address, Kind, Wait};
use super::cluster::Slot;
use crate::store::Error;

/// How long a connection may take to come about, and an answer.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(5);
/// Sentinels and nodes that are gone are asked one after the other, for so long.
const SEARCH: Duration = Duration::from_secs(6);
/// Waits that may be under way at once. A wait holds up its connection, so each has one of its own.
const WAITS: usize = 64;

/// One server's way to the store.
pub(super) struct Link {
    source: Source,
    current: RwLock<Current>,
    /// Whoever holds it connects; the others wait for him.
    connecting: Mutex<()>,
    /// What every promise waits for, if anything.
    wait: Option<Wait>,
    waits: Semaphore,
    /// Connections that nobody waits on.
    resting: Lock<Vec<Lane>>,
}

enum Source {
    Node(redis::Client),
    Sentinel(Box<Mutex<SentinelClient>>),
    Cluster(Slot),
}

/// The connection that is used by many.
#[derive(Default)]
struct Current {
    /// None while there is none, or it broke.
    connection: Option<MultiplexedConnection>,
    /// Counts the connections that broke.
    broken: u64,
    /// What the latest try to connect came to, if it failed.
    failed: Option<(u64, RedisError)>,
    tries: u64,
}

/// A connection that one change, and the wait for it, has to itself.
pub(super) struct Lane {
    connection: MultiplexedConnection,
    /// Connections that had broken when it was made: it leads to where they led.
    made: u64,
}

impl Link {
    pub(super) fn new(address: &Address) -> Result<Self, Error> {
        let source = match &*address.kind {
            Kind::Node(info) => Source::Node(redis::Client::open(info.clone()).map_err(failed)?),
            Kind::Cluster(nodes) => {
                Source::Cluster(Slot::new(nodes.clone(), format!("{{{}}}:meta", address.prefix)))
            }
            Kind::Sentinel { sentinels, master, node } => {
                Source::Sentinel(Box::new(Mutex::new(sentinel(sentinels, master, node)?)))
            }
        };
        Ok(Self {
            source,
            current: RwLock::default(),
            connecting: Mutex::new(()),
            wait: address.wait,
            waits: Semaphore::new(WAITS),
            resting: Lock::default(),
        })
    }

    /// Sends a command. An error that may have been sent says so.
    pub(super) async fn send<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let mut retried = false;
        loop {
            let (mut connection, made) = self.connection().await?;
            let answer = command.query_async(&mut connection).await;
            match &answer {
                // It has not begun; another node has the store now.
                Err(error) if has_moved(error) && !retried => retried = true,
                Err(error) if gives_up(error) => {
                    self.give_up(made);
                    return answer;
                }
                _ => return answer,
            }
            self.give_up(made);
        }
    }

    /// Sends a command that makes a promise on a connection of its own, on which [`Link::kept`] then
    /// waits. Without anything to wait for it goes the way of all others.
    pub(super) async fn promise<T: FromRedisValue>(
        &self,
        command: &Cmd,
    ) -> Result<(T, Option<Promise<'_>>), RedisError> {
        let Some(wait) = self.wait else { return Ok((self.send(command).await?, None)) };
        let room = tokio::time::timeout(ANSWER, self.waits.acquire()).await;
        let Ok(Ok(permit)) = room else {
            return Err(unsent_text("all connections wait for replicas"));
        };
        let mut retried = false;
        loop {
            let mut lane = self.lane(wait).await?;
            let answer = command.query_async(&mut lane.connection).await;
            match answer {
                Ok(value) => {
                    return Ok((value, Some(Promise { link: self, wait, lane, _permit: permit })));
                }
                Err(error) if has_moved(&error) && !retried => retried = true,
                Err(error) => {
                    match gives_up(&error) {
                        true => self.give_up(lane.made),
                        false => self.rest(lane),
                    }
                    return Err(error);
                }
            }
            self.give_up(lane.made);
        }
    }

    /// Is anything waited for?
    pub(super) fn waits(&self) -> bool {
        self.wait.is_some()
    }

    async fn lane(&self, wait: Wait) -> Result<Lane, RedisError> {
        let made = self.read().broken;
        if let Some(lane) = self.resting().pop() {
            return Ok(lane);
        }
        let connection = self.own(ANSWER.max(wait.within + CONNECT)).await?;
        Ok(Lane { connection, made })
    }

    /// Nobody waits on it any more.
    fn rest(&self, lane: Lane) {
        let mut resting = self.resting();
        if lane.made == self.read().broken {
            resting.push(lane);
        }
    }

    /// The primary's connections are of no use any more: the next call connects anew, and asks who is
    /// the primary.
    pub(super) fn give_up(&self, made: u64) {
        let mut resting = self.resting();
        let mut current = self.current.write().expect("nothing panics while it holds this lock");
        if made == current.broken {
            current.connection = None;
            current.broken += 1;
            resting.clear();
        }
    }

    /// Connections that have broken so far.
    pub(super) fn broken(&self) -> u64 {
        self.read().broken
    }

    fn resting(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.resting.lock().expect("nothing panics while it holds this lock")
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().expect("nothing panics while it holds this lock")
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), RedisError> {
        let (known, tries, made) = {
            let current = self.read();
            (current.connection.clone(), current.tries, current.broken)
        };
        if let Some(connection) = known {
            return Ok((connection, made));
        }
        let _one = self.connecting.lock().await;
        {
            let current = self.read();
            if let Some(connection) = &current.connection {
                return Ok((connection.clone(), current.broken));
            }
            // Somebody has tried since this call came: to try again would only keep it waiting.
            if let Some((_, error)) = current.failed.as_ref().filter(|(at, _)| *at > tries) {
                return Err(error.clone());
            }
        }
        let made = self.own(ANSWER).await;
        let mut current = self.current.write().expect("nothing panics while it holds this lock");
        current.tries += 1;
        match made {
            Ok(connection) => {
                current.failed = None;
                current.connection = Some(connection.clone());
                Ok((connection, current.broken))
            }
            Err(error) => {
                current.failed = Some((current.tries, error.clone()));
                Err(error)
            }
        }
    }

    /// A connection of its own, for what blocks. `answer`: how long an answer may take.
    pub(super) async fn own(&self, answer: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(answer));
        let connect = async {
            match &self.source {
                Source::Node(client) => {
                    client.get_multiplexed_async_connection_with_config(&config).await
                }
                Source::Sentinel(client) => {
                    client.lock().await.get_async_connection_with_config(&config).await
                }
                Source::Cluster(slot) => {
                    let owner = slot.owner(CONNECT).await?;
                    owner.get_multiplexed_async_connection_with_config(&config).await
                }
            }
        };
        match tokio::time::timeout(SEARCH, connect).await {
            Ok(made) => made.map_err(unsent),
            Err(_) => Err(unsent_text("the primary was not found in time")),
        }
    }
}

/// A change that was made, and is yet to be had by those who shall have it.
pub(super) struct Promise<'a> {
    link: &'a Link,
    wait: Wait,
    lane: Lane,
    _permit: tokio::sync::SemaphorePermit<'a>,
}

impl Promise<'_> {
    /// Waits until they have it. If they have not in time, nobody knows whether it will last.
    pub(super) async fn kept(mut self) -> Result<(), Error> {
        match self.shortfall().await {
            Ok(shortfall) => {
                self.link.rest(self.lane);
                shortfall.map_or(Ok(()), |text| Err(Error::OutcomeUnknown(text)))
            }
            Err(error) => {
                self.link.give_up(self.lane.made);
                Err(Error::OutcomeUnknown(format!("nobody has confirmed it: {error}")))
            }
        }
    }

    /// Nothing was promised after all.
    pub(super) fn free(self) {
        self.link.rest(self.lane);
    }

    /// Who does not have it in time, if somebody does not.
    async fn shortfall(&mut self) -> Result<Option<String>, RedisError> {
        let Wait { replicas, disks, within } = self.wait;
        let ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        if replicas > 0 {
            let mut wait = redis::cmd("WAIT");
            wait.arg(replicas).arg(ms);
            let got: u32 = wait.query_async(&mut self.lane.connection).await?;
            if got < replicas {
                let text = format!("{got} of {replicas} replicas confirmed it within {ms} ms");
                return Ok(Some(text));
            }
        }
        if let Some((own, others)) = disks {
            let mut wait = redis::cmd("WAITAOF");
            wait.arg(own).arg(others).arg(ms);
            let (local, remote): (u32, u32) = wait.query_async(&mut self.lane.connection).await?;
            if local < own || remote < others {
                return Ok(Some(format!(
                    "within {ms} ms it was on {local} of {own} disks of the primary and on {remote} \
                     of {others} of replicas"
                )));
            }
        }
        Ok(None)
    }
}

fn sentinel(
    sentinels: &[ConnectionAddr],
    master: &str,
    node: &ConnectionInfo,
) -> Result<SentinelClient, Error> {
    let settings = node.redis_settings();
    let mut builder =
        SentinelClientBuilder::new(sentinels.to_vec(), master, SentinelServerType::Master)
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

/// Has another node the store now?
fn has_moved(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::Moved | ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown
        )
    )
}

/// Is the connection of no use after this?
fn gives_up(error: &RedisError) -> bool {
    // After a timeout nobody knows whether the other side still lives.
    has_moved(error) || error.is_unrecoverable_error() || error.is_io_error()
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

/// What an error of Redis means to whoever has only read.
pub(super) fn failed_to_read(error: RedisError) -> Error {
    match failed(error) {
        Error::OutcomeUnknown(text) => Error::Unavailable(text),
        error => error,
    }
}

/// Was the connection lost under way? Not after a timeout: to ask once more would take as long.
pub(super) fn may_have_run(error: &RedisError) -> bool {
    gives_up(error) && !error.is_timeout() && error.kind() != ErrorKind::Client
}

impl Address {
    /// Reads one address of a node.
    pub(super) fn info(url: &str) -> Result<ConnectionInfo, String> {
        url.into_connection_info().map_err(|error| error.to_string())
    }
}
