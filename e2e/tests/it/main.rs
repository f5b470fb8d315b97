//! The real binary, end to end: real processes, sockets, files, signals and kills.
//!
//! Each test has a data directory and a server of its own ([`rig`]), so they run side by side.
//! What must hold is said in the names of the tests. The binary is `target/release/rayreel`, or
//! what `RAYREEL_BIN` names.

mod rig;

#[path = "../../../crates/server/tests/it/gateway.rs"]
#[expect(clippy::unwrap_used, reason = "the panic is the failed assertion")]
#[expect(dead_code, reason = "tests of the server use more of it")]
#[expect(unreachable_pub, reason = "a test binary has no callers outside")]
mod gateway;

mod bucket;
mod cancel;
mod chaos;
mod commands;
mod damage;
mod engine_faults;
mod engine_servers;
mod fleet;
mod garbage;
mod generate;
mod leases;
mod many_servers;
mod outage;
mod programs;
mod quarantine;
mod requests;
mod stopping;
