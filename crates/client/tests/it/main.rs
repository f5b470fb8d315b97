//! The client against the real server, and against what is not one.

#![expect(clippy::unwrap_used, reason = "helpers are tests too: the panic is the failed assertion")]

mod foreign;
mod real;
mod scripted;
mod server;
