//! Engines that are other people's programs: they speak the engine protocol of
//! [`rayreel_domain::wire::engine`] with the worker, and whatever the program speaks with it.
//!
//! ```text
//!  worker ◀── talk (protocol) ──▶ engine ◀── program (process, lines, tree) ──▶ the program
//! ```

#![expect(dead_code, unused_imports, unreachable_pub, reason = "no engine uses it yet")]

mod inbox;
mod program;
mod settings;
mod talk;
