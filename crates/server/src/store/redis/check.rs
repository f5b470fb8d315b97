//! The invariants, checked on what is stored: some tasks at a time, each lot at one moment, then the
//! counts, at one moment too.

use rayreel_domain::task::Task;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::rows::{Place, Slot, Views};
use super::scripts::Name;
use super::submit::MOST_MS;
use super::tasks::avoided;
use crate::store::{Error, check};

const STEP: u32 = 200;

#[derive(Serialize)]
struct Call {
    accounts: bool,
    cursor: String,
    step: u32,
}

#[derive(Deserialize)]
struct Reply {
    faults: Vec<String>,
    #[serde(default)]
    cursor: String,
    #[serde(flatten)]
    seen: Option<Views>,
}

impl RedisStore {
    pub(super) async fn faults(&self) -> Result<Vec<String>, Error> {
        let mut faults = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let call = Call { accounts: false, cursor, step: STEP };
            let reply: Reply = self.scripts.run(Name::check, &call).await?;
            faults.extend(reply.faults);
            for seen in reply.seen.iter().flat_map(|views| &views.views) {
                match seen.task() {
                    Ok(task) => {
                        let mut fault = |text: &str| faults.push(format!("{}: {text}", task.id));
                        check_place(&task, &seen.place, &mut fault);
                        check::task(&task, &mut fault);
                    }
                    Err(error) => faults.push(format!("a task can't be read: {error}")),
                }
            }
            cursor = reply.cursor;
            if cursor == "0" {
                break;
            }
        }
        let call = Call { accounts: true, cursor: "0".to_owned(), step: STEP };
        let reply: Reply = self.scripts.run(Name::check, &call).await?;
        faults.extend(reply.faults);
        Ok(faults)
    }
}

/// The indexes say what the task says.
fn check_place(task: &Task, place: &Place, fault: &mut impl FnMut(&str)) {
    let slot = Slot::of(task);
    // Once its time has come it is ready, and still says since when.
    let waited = slot == Slot::Backoff && place.slot == Slot::Ready;
    if task.state as u8 != place.state || !(slot == place.slot || waited) {
        fault("its place in the queue does not fit its state");
    }
    if place.slot == Slot::Backoff && place.not_before != task.not_before.0 {
        fault("it does not wait for the time that it should");
    }
    if place.tenant != task.tenant.as_str()
        || place.pool != task.pool.as_str()
        || place.model != task.model.as_str()
    {
        fault("its place has another tenant, pool or model");
    }
    if place.rank != 5 - task.priority.get() || place.attempt != task.attempt {
        fault("its place has another priority or attempt");
    }
    if place.estimate_ms != task.estimate_ms.min(MOST_MS)
        || (place.slot == Slot::Ready && place.avoid.as_deref() != avoided(task))
    {
        fault("its place has another estimate, or avoids another worker");
    }
    if place.deadline != task.deadline.map(|at| at.0)
        || place.created != task.created_at.0
        || place.delete_at != task.delete_at.map(|at| at.0)
        || place.format != task.request.format.extension()
    {
        fault("its place has another time or format");
    }
}
