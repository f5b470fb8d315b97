//! The HTTP API over a real socket and a real store: every sentence of its documentation.

mod client;
mod content;
mod cors;
mod docs;
mod events;
mod files;
mod gate;
mod generate;
mod hostile;
mod inputs;
mod keys;
mod limits;
mod models;
mod outage;
mod probes;
mod refusals;
mod several;
mod tasks;
mod uploads;
mod urls;
mod wait;
mod webhooks;
mod wire;
mod words;
mod worker;
