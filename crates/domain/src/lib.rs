//! The rules of rayreel, and nothing else: what a task is and how it may change, who is next, how
//! many workers there should be, and what goes over the wire.
//!
//! The crate is `no_std` on purpose: without an operating system there is no clock, no file, no
//! socket and no random number to reach for. Time, randomness and ids are arguments. (The feature
//! `openapi` needs `std` for the derived schemas; the tests check the crate without it.)

#![cfg_attr(not(any(test, feature = "openapi")), no_std)]
extern crate alloc;

pub mod code;
pub mod file;
pub mod id;
pub mod key;
pub mod lease;
pub mod request;
pub mod scale;
pub mod schedule;
pub mod task;
pub mod tenant;
pub mod testcard;
pub mod time;
pub mod webhook;
pub mod wire;

pub use code::Code;
pub use id::{ModelName, Nonce, PoolName, TaskId, TenantName, WorkerName};
pub use lease::{Fence, Lease};
pub use request::Request;
pub use task::{State, Task};
pub use time::Timestamp;
