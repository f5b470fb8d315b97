//! What the workers of a pool amount to.

use std::collections::{BTreeMap, HashMap};

use rayreel_domain::id::ModelName;
use rayreel_domain::scale::Snapshot;

use crate::store::{Activity, Ready, WorkerView};

/// However short leases are, a busy worker may pause for this long.
const HANGING_MS: u64 = 5_000;
/// So many workers on which a model does not work are enough to tell whose fault it is: no further
/// one is started for its tasks.
const WITNESSES: usize = 2;

/// The workers that can be counted on, and the work that asks for some. Those that the fleet has
/// started and that have not asked for work yet are counted by their launch.
pub(super) fn snapshot(
    crew: &[&WorkerView],
    ready: &BTreeMap<ModelName, Ready>,
    lease_ms: u64,
) -> Snapshot {
    // A busy worker beats; one that has been silent for a lease has lost its task, and hangs.
    let hangs = |silent_ms| silent_ms >= lease_ms.max(HANGING_MS);
    let bars =
        |worker: &WorkerView, model: &ModelName| worker.quarantined.iter().any(|(m, _)| m == model);
    // It can have nothing of what there is: not capacity, but not to be sent away either.
    let useless =
        |worker: &WorkerView| !ready.is_empty() && ready.keys().all(|model| bars(worker, model));
    let mut snapshot = Snapshot::default();
    for worker in crew {
        match worker.activity {
            Activity::Busy if hangs(worker.silent_ms) => {}
            // It takes nothing more, and its place until it has gone.
            _ if worker.draining => snapshot.busy += 1,
            Activity::Busy => snapshot.busy += 1,
            Activity::Idle { .. } if useless(worker) => snapshot.busy += 1,
            // Who has come by himself stays, however long nothing is to do.
            Activity::Idle { .. } if worker.launch.is_none() => snapshot.idle_ms.push(0),
            Activity::Idle { for_ms } => snapshot.idle_ms.push(for_ms),
            Activity::Starting if worker.launch.is_none() => snapshot.busy += 1,
            Activity::Starting => {}
        }
    }
    for (model, work) in ready {
        if crew.iter().filter(|worker| bars(worker, model)).count() < WITNESSES {
            snapshot.queued += work.tasks;
            snapshot.queued_ms += work.ms;
        }
    }
    snapshot
}

/// Models that none of these workers may have tasks of, and why.
pub(super) fn barred(crew: &[&WorkerView]) -> HashMap<ModelName, String> {
    let Some((first, others)) = crew.split_first() else { return HashMap::new() };
    let everywhere = first.quarantined.iter().filter(|(model, _)| {
        others.iter().all(|worker| worker.quarantined.iter().any(|(m, _)| m == model))
    });
    everywhere
        .map(|(model, message)| {
            let workers = if crew.len() == 1 { "its worker" } else { "every worker" };
            let reason = format!(
                "`{model}` failed on three tasks in a row on {workers} of the pool, and is tested \
                 again until it works: {message}"
            );
            (model.clone(), reason)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Identity;

    fn worker(name: &str, idle_ms: u64, barred: &[&str]) -> WorkerView {
        let model = |name: &&str| (name.parse().expect("a name"), "it broke".to_owned());
        WorkerView {
            by: Identity { worker: name.parse().expect("a name"), incarnation: 1 },
            pool: "local".parse().expect("a name"),
            launch: Some(name.to_owned()),
            silent_ms: 0,
            activity: Activity::Idle { for_ms: idle_ms },
            loaded: None,
            version: String::new(),
            draining: false,
            quarantined: barred.iter().map(model).collect(),
        }
    }

    fn ready(models: &[&str]) -> BTreeMap<ModelName, Ready> {
        let work = Ready { tasks: 2, ms: 1000 };
        models.iter().map(|name| (name.parse().expect("a name"), work)).collect()
    }

    fn count(crew: &[WorkerView], models: &[&str]) -> Snapshot {
        let crew: Vec<&WorkerView> = crew.iter().collect();
        snapshot(&crew, &ready(models), 30_000)
    }

    #[test]
    fn a_worker_that_can_have_nothing_of_what_waits_is_not_capacity() {
        let crew = [worker("a", 7, &["broken"])];
        let now = count(&crew, &["broken"]);
        assert_eq!((now.busy, now.idle_ms.len(), now.queued), (1, 0, 2), "another may do better");
        let now = count(&crew, &["broken", "sound"]);
        assert_eq!((now.busy, now.idle_ms.len(), now.queued), (0, 1, 4), "it has work");
        let now = count(&crew, &[]);
        assert_eq!((now.busy, now.idle_ms), (0, vec![7]), "it goes when nothing waits");
    }

    #[test]
    fn who_has_come_by_himself_does_not_grow_old() {
        let crew = [WorkerView { launch: None, ..worker("a", 7, &[]) }];
        assert_eq!(count(&crew, &[]).idle_ms, [0]);
    }

    #[test]
    fn who_is_drained_is_no_capacity_and_keeps_its_place() {
        let crew = [WorkerView { draining: true, ..worker("a", 7, &[]) }];
        let now = count(&crew, &["sound"]);
        assert_eq!((now.busy, now.idle_ms.len(), now.queued), (1, 0, 2));
    }

    #[test]
    fn work_of_a_model_that_two_workers_can_not_do_starts_no_third() {
        let crew = [worker("a", 7, &["broken"]), worker("b", 7, &["broken"])];
        let now = count(&crew, &["broken", "sound"]);
        assert_eq!((now.queued, now.queued_ms), (2, 1000), "the sound one's");
    }

    #[test]
    fn a_model_is_barred_when_no_worker_may_have_it() {
        let crew = [worker("a", 0, &["one", "two"]), worker("b", 0, &["two"])];
        let all: Vec<&WorkerView> = crew.iter().collect();
        let names: Vec<String> = barred(&all).into_keys().map(|model| model.to_string()).collect();
        assert_eq!(names, ["two"]);
        let reason = barred(&all[1..]).into_values().next().expect("one");
        assert!(reason.contains("it broke"), "{reason}");
        assert!(barred(&[]).is_empty());
    }
}
