//! The worker against a scripted server and scripted engines, over the real protocols.
//!
//! The server side ([`peer::Peer`]) says what a test tells it to and notes every call; the engines
//! are Python scripts ([`rig`]). Nothing sleeps: tests wait for calls, for pipes and for processes.

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
