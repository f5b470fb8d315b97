//! The server's integration tests, in one binary.

#![expect(clippy::unwrap_used, reason = "helpers are tests too: the panic is the failed assertion")]

mod api;
mod fleet;
mod rescue;
mod world;
