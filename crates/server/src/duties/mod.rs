//! What the server does by itself. Each duty takes no input, may run at any moment, and wakes on a
//! signal and on a timer; an error is logged, and the next turn is a new try.

mod garbage;
mod keys;
mod rescue;
mod timers;
mod webhook;

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::App;

pub use rescue::Rescuer;

/// Starts every duty; they end when the server stops.
pub(crate) fn start(app: &Arc<App>, tasks: &mut JoinSet<()>) {
    tasks.spawn(rescue::run(Arc::clone(app)));
    tasks.spawn(timers::run(Arc::clone(app)));
    tasks.spawn(garbage::run(Arc::clone(app)));
    tasks.spawn(keys::run(Arc::clone(app)));
    tasks.spawn(webhook::run(Arc::clone(app)));
}
