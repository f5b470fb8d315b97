//! What the tests are built with: servers that can be killed, clients, workers that misbehave.

mod api;
mod command;
mod engine;
mod process;
mod proxy;
mod raw_worker;
mod redis;
mod server;
mod wait;

pub(crate) use api::{Api, Refusal};
pub(crate) use command::{Command, Finished};
pub(crate) use engine::Faults;
pub(crate) use process::Process;
pub(crate) use proxy::Proxy;
pub(crate) use raw_worker::RawWorker;
pub(crate) use redis::Redis;
pub(crate) use server::Server;
pub(crate) use wait::{LONG, found_within, only, until, within};

use std::path::PathBuf;

/// The binary under test.
pub(crate) fn rayreel() -> PathBuf {
    let path = std::env::var_os("RAYREEL_BIN").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/rayreel")),
        PathBuf::from,
    );
    path.canonicalize().unwrap_or_else(|error| {
        panic!(
            "{}: {error}. Build the binary first: `cargo build --release -p rayreel`, or name \
             one with RAYREEL_BIN",
            path.display()
        )
    })
}

/// SHA-256 in lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
