//! How many workers a pool should have.
//!
//! Scale on queued work over target wait; workers that are starting count as capacity; only idle
//! workers are released, and only after the idle timeout. The plan is a target: the fleet starts
//! what is missing, and an idle worker is told to leave by the answer to its own claim.

/// What an operator sets for a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub min: u32,
    pub max: u32,
    /// Queued work should start within this; more workers until it does.
    pub target_wait_ms: u64,
    /// An idle worker above `min` leaves after this.
    pub idle_timeout_ms: u64,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Tasks that could start now.
    pub queued: u64,
    /// Their estimated GPU-milliseconds.
    pub queued_ms: u64,
    pub busy: u32,
    /// Launched, but not yet asking for work.
    pub starting: u32,
    /// For each idle worker, how long it has been idle.
    pub idle_ms: alloc::vec::Vec<u64>,
}

impl Snapshot {
    /// Workers that are there or about to be.
    pub fn live(&self) -> u32 {
        let idle = u32::try_from(self.idle_ms.len()).unwrap_or(u32::MAX);
        self.busy.saturating_add(idle).saturating_add(self.starting)
    }
}

/// What should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Workers that should live; idle ones above it leave.
    pub target: u32,
    /// Workers to launch now.
    pub launch: u32,
}

/// Decides the plan for one pool.
pub fn plan(policy: Policy, now: &Snapshot) -> Plan {
    let by_wait = now.queued_ms.div_ceil(policy.target_wait_ms.max(1));
    // A task needs one worker at most, and a queue that is not empty at least one.
    let wanted = by_wait.min(now.queued).max(u64::from(now.queued > 0));
    let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
    let needed = now.busy.saturating_add(wanted).max(policy.min).min(policy.max);
    let keep_idle = now.idle_ms.iter().filter(|&&idle_ms| idle_ms < policy.idle_timeout_ms).count();
    let kept = now
        .busy
        .saturating_add(now.starting)
        .saturating_add(u32::try_from(keep_idle).unwrap_or(u32::MAX));
    // Busy workers above a lowered maximum finish their task: the target never goes below them.
    let target = needed.max(kept.min(policy.max)).max(now.busy);
    Plan { target, launch: needed.saturating_sub(now.live()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy =
        Policy { min: 0, max: 8, target_wait_ms: 60_000, idle_timeout_ms: 600_000 };

    fn queue(queued: u64, each_ms: u64) -> Snapshot {
        Snapshot { queued, queued_ms: queued * each_ms, ..Snapshot::default() }
    }

    #[test]
    fn nothing_to_do_needs_nobody() {
        assert_eq!(plan(POLICY, &Snapshot::default()), Plan { target: 0, launch: 0 });
    }

    #[test]
    fn the_first_task_starts_the_first_worker_however_short_it_is() {
        assert_eq!(plan(POLICY, &queue(1, 1)).launch, 1);
    }

    #[test]
    fn workers_grow_with_queued_work_over_target_wait() {
        assert_eq!(plan(POLICY, &queue(100, 3_000)).launch, 5);
        assert_eq!(plan(POLICY, &queue(100, 60_000)).launch, 8, "the maximum");
        assert_eq!(plan(POLICY, &queue(2, 900_000)).launch, 2, "one worker a task is enough");
    }

    #[test]
    fn starting_workers_count() {
        let now = Snapshot { starting: 3, ..queue(100, 3_000) };
        assert_eq!(plan(POLICY, &now).launch, 2);
    }

    #[test]
    fn only_what_was_idle_too_long_is_released() {
        let now = Snapshot { busy: 2, idle_ms: alloc::vec![1_000, 600_000], ..Snapshot::default() };
        assert_eq!(plan(POLICY, &now), Plan { target: 3, launch: 0 });
    }

    #[test]
    fn the_minimum_stays_warm() {
        let policy = Policy { min: 1, ..POLICY };
        let now = Snapshot { idle_ms: alloc::vec![700_000, 700_000], ..Snapshot::default() };
        assert_eq!(plan(policy, &now), Plan { target: 1, launch: 0 });
        assert_eq!(plan(policy, &Snapshot::default()).launch, 1);
    }

    proptest! {
        #[test]
        fn a_plan_stays_within_its_bounds_and_spares_the_busy(
            queued in 0u64..1000, each in 0u64..1_000_000, busy in 0u32..20, starting in 0u32..20,
            idle in prop::collection::vec(0u64..1_200_000, 0..20), min in 0u32..4, more in 0u32..16,
        ) {
            let policy = Policy { min, max: min + more, ..POLICY };
            let now = Snapshot { queued, queued_ms: queued * each, busy, starting, idle_ms: idle };
            let live = busy + starting + now.idle_ms.len() as u32;
            let plan = plan(policy, &now);
            prop_assert!(plan.target >= busy);
            prop_assert!(plan.target <= policy.max.max(busy));
            prop_assert!(plan.launch == 0 || live + plan.launch <= policy.max);
            prop_assert!(plan.target >= min);
            if queued > 0 && policy.max > busy { prop_assert!(plan.target > busy); }
        }
    }
}
