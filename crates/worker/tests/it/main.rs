//! The worker against a scripted server and scripted engines, over the real protocols.
//!
//! The server side ([`peer::Peer`]) says what a test tells it to and notes every call; the engines
//! are Python scripts ([`rig`]). Nothing sleeps: tests wait for calls, for pipes and for processes.

#![expect(
    clippy::unwrap_used,
    reason = "in tests, helpers included, a panic is a failed assertion"
)]

mod cancel;
mod deliver;
mod drain;
mod engine;
mod lease;
mod outage;
mod peer;
mod quarantine;
mod rig;
mod work;
