//! What goes over the wire: the public API, the worker API, the engine protocol.
//!
//! Every message is a plain data type here, so that the two ends can't disagree, and each message
//! of the worker API and of the engine protocol has a golden file under `golden/`.

pub mod admin;
pub mod api;
pub mod delivery;
pub mod engine;
pub mod files;
pub mod generate;
pub mod models;
pub mod openai;
pub mod worker;
