//! The Lua scripts, the only ones that change a store. Each is a function from a MessagePack request
//! to a MessagePack reply.

use std::sync::Arc;

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind};
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
    "lead",
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
    lead,
);

impl Name {
    /// Whoever asks again is told the same: nothing is decided by it.
    fn only_reads(self) -> bool {
        matches!(self, Self::look | Self::list | Self::survey | Self::check)
    }
}

/// The scripts over one link.
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
        let mut answer = self.link.send(&self.command("EVALSHA", name, &request)).await;
        if answer.as_ref().is_err_and(is_unknown) {
            answer = self.link.send(&self.command("EVAL", name, &request)).await;
        }
        if name.only_reads() {
            if answer.as_ref().is_err_and(link::may_have_run) {
                answer = self.link.send(&self.command("EVAL", name, &request)).await;
            }
            return unpack(answer.map_err(link::failed_to_read)?);
        }
        unpack(answer.map_err(link::failed)?)
    }

    /// Runs a script that makes a promise to whoever asked, and waits until it is kept where the
    /// address says so. `promises`: does this answer promise something?
    pub(super) async fn promise<Q: Serialize, A: DeserializeOwned>(
        &self,
        name: Name,
        request: &Q,
        promises: impl FnOnce(&A) -> bool,
    ) -> Result<A, Error> {
        let request = rmp_serde::to_vec_named(request).expect("requests are plain data");
        let marked = |verb| {
            let mut command = self.command(verb, name, &request);
            // Also who only repeats what another has written waits for it.
            command.arg(1);
            command
        };
        let mut answer = self.link.promise(&marked("EVALSHA")).await;
        if answer.as_ref().is_err_and(is_unknown) {
            answer = self.link.promise(&marked("EVAL")).await;
        }
        let (answer, promise) = answer.map_err(link::failed)?;
        let answer = unpack(answer)?;
        match promise {
            Some(promise) if promises(&answer) => promise.kept().await?,
            Some(promise) => promise.free(),
            None => {}
        }
        Ok(answer)
    }

    fn command(&self, verb: &str, name: Name, request: &[u8]) -> Cmd {
        let script = &self.all[name as usize];
        let mut command = redis::cmd(verb);
        command.arg(if verb == "EVAL" { &script.source } else { &script.hash });
        command.arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        command.arg(request);
        command
    }
}

/// It was started anew: it learns the script by being given it.
fn is_unknown(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn unpack<A: DeserializeOwned>(answer: Vec<u8>) -> Result<A, Error> {
    rmp_serde::from_slice(&answer)
        .map_err(|error| Error::Corrupt(format!("an answer of the store: {error}")))
}
