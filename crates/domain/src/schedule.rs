//! Who is next: fair sharing between tenants by virtual time.
//!
//! Each tenant has, per pool, a counter of virtual GPU-milliseconds: charged with the estimate at
//! the claim, divided by the tenant's weight, and corrected at the end (VTC, arXiv 2401.00588). The
//! tenant with the smallest counter is next; of its tasks the one of the highest priority, then the
//! oldest. A tenant that becomes active is lifted to the pool's floor, the largest counter that was
//! ever the smallest, so that nobody saves up time by staying away.
//!
//! A worker may take another task of the model it has loaded, although a tenant with less virtual
//! time waits for another model, as long as the lead stays under a bound and for a bounded number
//! of claims in a row (the locality of DLPM, arXiv 2501.14312).

use crate::task::Priority;

/// A weight of 1; weights are in thousandths.
pub const UNIT_WEIGHT: u32 = 1000;

/// Virtual GPU-milliseconds for `ms` of work of a tenant with this weight.
pub fn virtual_ms(ms: u64, weight: u32) -> u64 {
    ms.saturating_mul(u64::from(UNIT_WEIGHT)) / u64::from(weight.max(1))
}

/// How much locality may cost fairness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locality {
    /// A tenant may be served out of turn while it leads the smallest counter by at most this.
    pub max_lead_ms: u64,
    /// After so many claims of one model in a row a worker takes the global choice.
    pub max_streak: u32,
}

impl Default for Locality {
    fn default() -> Self {
        Self { max_lead_ms: 60_000, max_streak: 8 }
    }
}

/// The first ready task of one tenant and model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<K> {
    /// The store's number of the model.
    pub model: K,
    pub priority: Priority,
    /// Place in the queue: smaller came earlier.
    pub seq: u64,
}

/// A tenant with ready tasks.
#[derive(Debug, Clone)]
pub struct Candidate<'a, K> {
    /// The store's number of the tenant: breaks ties.
    pub tenant: K,
    pub virtual_ms: u64,
    pub heads: &'a [Head<K>],
}

/// Whose task, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice<K> {
    pub tenant: K,
    pub head: Head<K>,
}

/// The next task for a worker that has `loaded` a model and has claimed it `streak` times in a row.
pub fn choose<K: Copy + Ord>(
    candidates: &[Candidate<'_, K>],
    loaded: Option<K>,
    streak: u32,
    locality: Locality,
) -> Option<Choice<K>> {
    let fair = candidates
        .iter()
        .filter(|c| !c.heads.is_empty())
        .min_by_key(|c| (c.virtual_ms, c.tenant))?;
    let global = Choice { tenant: fair.tenant, head: first(fair.heads)? };
    let Some(model) = loaded.filter(|_| streak < locality.max_streak) else {
        return Some(global);
    };
    let limit = fair.virtual_ms.saturating_add(locality.max_lead_ms);
    let near = candidates
        .iter()
        .filter(|c| c.virtual_ms <= limit)
        .filter_map(|c| {
            // Priority is strict within a tenant, even against locality.
            let top = first(c.heads)?.priority;
            let head = c.heads.iter().find(|h| h.model == model && h.priority == top)?;
            Some(((c.virtual_ms, c.tenant), Choice { tenant: c.tenant, head: *head }))
        })
        .min_by_key(|(order, _)| *order);
    Some(near.map_or(global, |(_, choice)| choice))
}

fn first<K: Copy>(heads: &[Head<K>]) -> Option<Head<K>> {
    heads.iter().copied().min_by_key(|h| (core::cmp::Reverse(h.priority), h.seq))
}

/// Queued work of another tenant, for [`position`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rival {
    pub virtual_ms: u64,
    pub weight: u32,
    pub queued: u64,
    pub queued_ms: u64,
}

/// How many tasks will probably start before a task that has `ahead` tasks of its own tenant in
/// front of it: those, and of each rival as many as fit before its turn comes.
pub fn position(virtual_now: u64, weight: u32, ahead: u64, ahead_ms: u64, rivals: &[Rival]) -> u64 {
    let turn = virtual_now.saturating_add(virtual_ms(ahead_ms, weight));
    rivals.iter().fold(ahead, |sum, rival| {
        let each = virtual_ms(rival.queued_ms, rival.weight) / rival.queued.max(1);
        let fits = (turn.saturating_sub(rival.virtual_ms)).div_ceil(each.max(1));
        sum.saturating_add(fits.min(rival.queued))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn head(model: u32, priority: u8, seq: u64) -> Head<u32> {
        Head { model, priority: Priority::new(priority).expect("1 to 5"), seq }
    }

    fn candidate(tenant: u32, virtual_ms: u64, heads: &[Head<u32>]) -> Candidate<'_, u32> {
        Candidate { tenant, virtual_ms, heads }
    }

    #[test]
    fn the_tenant_that_had_least_is_next() {
        let (a, b) = ([head(1, 3, 1)], [head(1, 3, 2)]);
        let candidates = [candidate(1, 500, &a), candidate(2, 400, &b)];
        let choice = choose(&candidates, None, 0, Locality::default()).expect("a choice");
        assert_eq!((choice.tenant, choice.head.seq), (2, 2));
    }

    #[test]
    fn within_a_tenant_priority_then_age() {
        let heads = [head(1, 3, 1), head(2, 5, 9), head(3, 5, 8)];
        let candidates = [candidate(1, 0, &heads)];
        assert_eq!(choose(&candidates, None, 0, Locality::default()).map(|c| c.head.seq), Some(8));
    }

    #[test]
    fn priority_does_not_count_across_tenants() {
        let (a, b) = ([head(1, 5, 1)], [head(1, 1, 2)]);
        let candidates = [candidate(1, 10, &a), candidate(2, 9, &b)];
        assert_eq!(choose(&candidates, None, 0, Locality::default()).map(|c| c.tenant), Some(2));
    }

    #[test]
    fn a_worker_keeps_its_model_while_the_lead_is_small_and_the_streak_short() {
        let (a, b) = ([head(1, 3, 5)], [head(2, 3, 1)]);
        let locality = Locality { max_lead_ms: 100, max_streak: 3 };
        let near = [candidate(1, 100, &a), candidate(2, 0, &b)];
        assert_eq!(choose(&near, Some(1), 0, locality).map(|c| c.tenant), Some(1));
        assert_eq!(choose(&near, Some(1), 3, locality).map(|c| c.tenant), Some(2), "streak over");
        let far = [candidate(1, 101, &a), candidate(2, 0, &b)];
        assert_eq!(choose(&far, Some(1), 0, locality).map(|c| c.tenant), Some(2), "lead too large");
    }

    #[test]
    fn locality_never_passes_a_higher_priority_of_the_same_tenant() {
        let heads = [head(1, 3, 1), head(2, 4, 2)];
        let candidates = [candidate(1, 0, &heads)];
        assert_eq!(
            choose(&candidates, Some(1), 0, Locality::default()).map(|c| c.head.seq),
            Some(2)
        );
    }

    #[test]
    fn a_position_counts_ones_own_and_what_others_may_run_before() {
        assert_eq!(position(0, UNIT_WEIGHT, 3, 3000, &[]), 3);
        let rival = Rival { virtual_ms: 0, weight: UNIT_WEIGHT, queued: 100, queued_ms: 100_000 };
        assert_eq!(position(0, UNIT_WEIGHT, 3, 3000, &[rival]), 6);
        assert_eq!(position(0, UNIT_WEIGHT, 0, 0, &[Rival { queued: 2, ..rival }]), 0);
    }

    proptest! {
        /// Backlogged tenants get work in proportion to their weights: the gap between any two
        /// virtual times never exceeds the largest task plus the allowed lead.
        #[test]
        fn the_fairness_gap_is_bounded(
            weights in prop::collection::vec(100u32..5000, 2..6),
            costs in prop::collection::vec(1u64..5000, 200),
            max_lead_ms in 0u64..20_000,
        ) {
            let locality = Locality { max_lead_ms, max_streak: 4 };
            let mut times: Vec<u64> = weights.iter().map(|_| 0).collect();
            let (mut loaded, mut streak) = (None, 0);
            let slowest = weights.iter().copied().min().unwrap_or(UNIT_WEIGHT);
            let bound = virtual_ms(5000, slowest) + max_lead_ms;
            for cost in costs {
                // Every tenant always has a task of its own model.
                let heads: Vec<[Head<u32>; 1]> =
                    (0..weights.len()).map(|t| [head(t as u32, 3, 0)]).collect();
                let candidates: Vec<_> = (0..weights.len())
                    .map(|t| candidate(t as u32, times[t], &heads[t]))
                    .collect();
                let choice = choose(&candidates, loaded, streak, locality).expect("backlogged");
                streak = if loaded == Some(choice.head.model) { streak + 1 } else { 0 };
                loaded = Some(choice.head.model);
                let tenant = choice.tenant as usize;
                times[tenant] += virtual_ms(cost, weights[tenant]);
                let (min, max) = (times.iter().min(), times.iter().max());
                prop_assert!(max.expect("some") - min.expect("some") <= bound);
            }
        }
    }
}
