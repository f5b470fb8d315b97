//! The Lua scripts, the only ones that change a store. Each is a function from a MessagePack request
//! to a MessagePack reply.

use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::link::{self, Link};
use crate::store::Error;

/// Every key of a store, without its prefix. Each script is told all of them: so a cluster that moves
/// their slot refuses a script as a whole, before it has begun.
const KEYS: &[&str] = &[
    "meta",
    "terms",
    "tenant",
    "models",
    "pools",
    "account",
    "turn",
    "floor",
    "minute",
    "task",
    "claim",
    "place",
    "list",
    "ready",
    "avoid",
    "backoff",
    "deadline",
    "delete",
    "gone",
    "gone_until",
    "live",
    "progress",
    "holder",
    "key",
    "grave",
    "worker",
    "seen",
    "drained",
    "garbage",
    "folder",
    "api_key",
    "secret",
    "launch",
    "delivery",
    "due",
    "due_at",
    "input",
    "content",
    "named",
    "held",
    "look",
    "file",
    "file_place",
    "file_list",
    "file_expiry",
    "file_bytes",
    "events",
];

/// Entries of the stream of events that are kept, about.
const TRIM: u32 = 100_000;

/// One script, ready to be called.
struct Script {
    source: String,
    hash: String,
}

impl Script {
    /// What many scripts need comes before what this one does, and is part of every call's cost.
    fn new(parts: &[&str]) -> Self {
        let source = format!(
            "local TRIM, PLACE_MS = {TRIM}, {}\n{}\n{}",
            crate::store::PLACE_MS,
            include_str!("lua/common.lua"),
            parts.join("\n"),
        );
        let hash = redis::Script::new(&source).get_hash().to_owned();
        Self { source, hash }
    }
}

macro_rules! scripts {
    ($($name:ident $(with $part:literal)*),+ $(,)?) => {
        #[derive(Clone, Copy)]
        #[expect(non_camel_case_types, reason = "they are named like their files")]
        pub(super) enum Name { $($name),+ }

        /// In the order of [`Name`].
        fn all() -> Vec<Script> {
            vec![$(Script::new(&[
                $(include_str!(concat!("lua/", $part, ".lua")),)*
                include_str!(concat!("lua/", stringify!($name), ".lua")),
            ])),+]
        }
    };
}

scripts!(
    submit with "account" with "task",
    claim with "account" with "task" with "worker_of",
    beat with "worker_of",
    change with "account" with "task" with "worker_of",
    look with "account" with "task" with "worker_of",
    list with "account" with "task",
    advance with "account" with "task" with "inputs",
    worker with "worker_of",
    survey,
    start,
    file with "inputs",
    delivery,
    record,
    check with "account" with "task",
);

/// The scripts over one connection.
pub(super) struct Scripts {
    link: Arc<Link>,
    keys: Vec<String>,
    all: Vec<Script>,
}

impl Scripts {
    pub(super) fn new(link: Arc<Link>, prefix: &str) -> Self {
        let keys = KEYS.iter().map(|key| format!("{{{prefix}}}:{key}")).collect();
        Self { link, keys, all: all() }
    }

    /// The full name of a key.
    pub(super) fn key(&self, name: &str) -> &str {
        let index = KEYS.iter().position(|key| *key == name).expect("it is in the list");
        &self.keys[index]
    }

    pub(super) async fn run<Q: Serialize, A: DeserializeOwned>(
        &self,
        name: Name,
        request: &Q,
    ) -> Result<A, Error> {
        let request = rmp_serde::to_vec_named(request).expect("requests are plain data");
        let script = &self.all[name as usize];
        let answer = match self.evaluate("EVALSHA", &script.hash, &request).await {
            // It was started anew: it learns the script by being given it.
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.evaluate("EVAL", &script.source, &request).await
            }
            answer => answer,
        };
        let answer = answer.map_err(link::failed)?;
        rmp_serde::from_slice(&answer)
            .map_err(|error| Error::Corrupt(format!("an answer of the store: {error}")))
    }

    async fn evaluate(
        &self,
        verb: &str,
        script: &str,
        request: &[u8],
    ) -> Result<Vec<u8>, RedisError> {
        let mut command = redis::cmd(verb);
        command.arg(script).arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        command.arg(request);
        self.link.send(&command).await
    }
}
