//! The server's integration tests, in one binary.

mod api;
mod fleet;
mod rescue;
mod world;
