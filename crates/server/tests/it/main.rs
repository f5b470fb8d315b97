//! The server's integration tests, in one binary.

#![expect(clippy::unwrap_used, reason = "helpers are tests too: the panic is the failed assertion")]
#![expect(unreachable_pub, reason = "a test binary has no callers outside")]

mod api;
mod artifacts;
mod conformance;
mod fleet;
mod gateway;
mod outbound;
mod receiver;
mod redis;
mod rescue;
mod store;
mod world;
