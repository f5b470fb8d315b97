//! The client of a rayreel server: submits requests for videos, follows them, and downloads the
//! files.
//!
//! ```no_run
//! use rayreel_client::{Client, SubmitBody, Variant};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("http://127.0.0.1:8088").key("rr_…").build()?;
//! let request = SubmitBody {
//!     prompt: Some("a red fox running through snow".to_owned()),
//!     size: Some("832x480".to_owned()),
//!     ..SubmitBody::default()
//! };
//! let submitted = client.submit(&request).await?;
//!
//! let mut events = client.events(submitted.id);
//! while let Some(event) = events.next().await {
//!     let event = event?;
//!     println!("{} {} %", event.body.status, event.body.progress);
//! }
//!
//! let task = client.task(submitted.id).await?;
//! if let Some(error) = &task.error {
//!     return Err(format!("{}: {}", error.code, error.message).into());
//! }
//! let mut file = tokio::fs::File::create("fox.mp4").await?;
//! client.download(submitted.id, Variant::Main, &mut file).await?;
//! # Ok(())
//! # }
//! ```
//!
//! What may be repeated is: a server that is busy (429, 503) or away for a moment is asked again
//! after the pause that it names, a few times; streams of events connect again and resume behind
//! the last event; a broken download goes on where it broke. [`Builder`] bounds all of it. What is
//! left is an [`Error`]; a refusal is [`Error::Api`], with its code, its message, the field at fault
//! and the request id.
//!
//! Bodies are those of the API, which `/docs` of every server describes. It runs on Tokio, with
//! rustls.

#![deny(missing_docs)]

mod admin;
mod client;
mod content;
mod error;
mod events;
pub mod http;
mod pages;
mod retry;
mod sse;

pub use client::{Builder, Client, Submitted, idempotency_key};
pub use content::{Content, Downloaded, Variant};
pub use error::{AddressFault, ApiError, Error, Transport, TransportKind};
pub use events::{Connection, Event, EventKind, Events};
pub use pages::{Filter, Tasks};

pub use rayreel_domain as domain;
pub use rayreel_domain::key::Scope;
pub use rayreel_domain::task::Priority;
pub use rayreel_domain::wire::admin::{CreateKey, KeyBody, KeyList};
pub use rayreel_domain::wire::api::{
    AttemptBody, CancelBody, EventBody, FailureBody, RequestBody, ResultBody, SubmitBody, TaskBody,
    TaskList,
};
pub use rayreel_domain::wire::delivery::{WebhookBody, WebhookEvent, WebhookTarget};
pub use rayreel_domain::wire::engine::{Format, Lora};
pub use rayreel_domain::wire::files::{FileBody, FileDeleted, FileList};
pub use rayreel_domain::wire::models::{ModelBody, ModelList};
pub use rayreel_domain::{Code, State, TaskId};
