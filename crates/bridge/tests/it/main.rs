//! The engines as the worker has them: a process, a line of JSON each way, and real programs.

#![expect(
    clippy::unwrap_used,
    reason = "in tests, helpers included, a panic is a failed assertion"
)]

mod command;
mod rig;
mod server;
mod wan;
