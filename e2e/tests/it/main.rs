//! The real binary, end to end: real processes, sockets, files, signals and kills.
//!
//! Each test has a data directory and a server of its own ([`rig`]), so they run side by side.
//! What must hold is said in the names of the tests. The binary is `target/release/rayreel`, or
//! what `RAYREEL_BIN` names.

mod rig;

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
