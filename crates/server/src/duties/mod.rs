//! What the server does by itself. Each duty takes no input, may run at any moment, and wakes on a
//! signal and on a timer; an error is logged, and the next turn is a new try.

mod garbage;
mod keys;
mod lead;
mod rescue;
mod timers;
mod webhook;

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::App;

pub use lead::{LEASE, Lead};
pub use rescue::Rescuer;

/// The duty of the rescuer, whose change of hands the store takes note of.
pub const RESCUE: &str = "rescue";

/// Starts every duty; they end when the server stops. What one server of the fleet does for all is
/// done by whichever has its lease. Every server follows keys, for itself, and calls webhooks: who has
/// taken a delivery has it alone. Answers who starts workers.
pub(crate) fn start(app: &Arc<App>, tasks: &mut JoinSet<()>) -> Lead {
    let rescue = lead::seek(app, RESCUE, tasks);
    tasks.spawn(rescue::run(Arc::clone(app), rescue));
    let timers = lead::seek(app, "timers", tasks);
    tasks.spawn(timers::run(Arc::clone(app), timers));
    let garbage = lead::seek(app, "garbage", tasks);
    tasks.spawn(garbage::run(Arc::clone(app), garbage));
    tasks.spawn(keys::run(Arc::clone(app)));
    tasks.spawn(webhook::run(Arc::clone(app)));
    lead::seek(app, "fleet", tasks)
}
