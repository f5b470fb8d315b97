//! What a tenant may use: its share, and its limits.
//!
//! Shares say who is next when there is not enough for all ([`crate::schedule`]); limits refuse
//! before that. Whether a submit is within them is decided in one place, [`admit`], on counts that
//! the store takes in the submit's own transaction: so they hold exactly, however many submit at
//! once.

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::TenantName;
use crate::schedule::UNIT_WEIGHT;

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 86_400_000;

/// Terms of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Share of a pool, in thousandths: twice the weight gets twice the GPU time.
    pub weight: u32,
    /// Tasks submitted within a minute.
    pub per_minute: Option<u32>,
    /// Tasks that are queued at once.
    pub queued: Option<u64>,
    /// Tasks that run at once. Beyond it tasks wait, nothing is refused.
    pub running: Option<u64>,
    /// GPU-milliseconds used within a day (UTC).
    pub day_ms: Option<u64>,
    /// Tasks that have ended are deleted after so long, with their files.
    pub keep_ms: Option<u64>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            weight: UNIT_WEIGHT,
            per_minute: None,
            queued: None,
            running: None,
            day_ms: None,
            keep_ms: None,
        }
    }
}

/// The terms of all tenants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tenancy {
    /// Of those that have none of their own.
    pub common: Terms,
    pub own: BTreeMap<TenantName, Terms>,
}

impl Tenancy {
    pub fn of(&self, tenant: &TenantName) -> Terms {
        self.own.get(tenant).copied().unwrap_or(self.common)
    }
}

/// A limit of [`Terms`] that a submit can meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    PerMinute,
    Queued,
    GpuSecondsADay,
}

/// A submit that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    pub limit: Limit,
    /// What is allowed: tasks, or GPU-milliseconds.
    pub allowed: u64,
    /// When it may be tried again.
    pub retry_ms: u64,
}

/// What a tenant uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub queued: u64,
    /// Estimates of what is queued, in GPU-milliseconds.
    pub queued_ms: u64,
    /// GPU-milliseconds charged today.
    pub day_ms: u64,
    /// Theoretical time of the next arrival on the monotonic clock, in microseconds.
    pub rate_at_us: u64,
}

/// May `tasks` more, which are expected to take `work_ms` in all, be submitted? Answers the new
/// [`Usage::rate_at_us`].
///
/// The rate is the generic cell rate algorithm (ITU-T I.371): each task moves a theoretical time
/// of arrival on by a minute divided by the limit, and is refused if that would be more than a
/// minute ahead. So a minute's tasks may come at once, and after that one comes free after the other.
/// `mono_ms` is a monotonic clock, `wall_ms` Unix time.
pub fn admit(
    terms: &Terms,
    usage: &Usage,
    tasks: u64,
    work_ms: u64,
    mono_ms: u64,
    wall_ms: u64,
) -> Result<u64, Exceeded> {
    if let Some(allowed) = terms.queued
        && usage.queued.saturating_add(tasks) > allowed
    {
        return Err(Exceeded { limit: Limit::Queued, allowed, retry_ms: MINUTE_MS / 6 });
    }
    if let Some(allowed) = terms.day_ms {
        let used = usage.day_ms.saturating_add(work_ms);
        if used.saturating_add(usage.queued_ms) > allowed {
            // What is queued may be cancelled, or take less; what is used stays until midnight.
            let retry_ms = if used > allowed { DAY_MS - wall_ms % DAY_MS } else { MINUTE_MS };
            return Err(Exceeded { limit: Limit::GpuSecondsADay, allowed, retry_ms });
        }
    }
    let Some(allowed) = terms.per_minute else { return Ok(usage.rate_at_us) };
    // In microseconds, so that limits that do not divide a minute lose nothing.
    let each_us = 1000 * MINUTE_MS / u64::from(allowed.max(1));
    let cost_us = each_us.saturating_mul(tasks);
    let start_us = usage.rate_at_us.max(mono_ms.saturating_mul(1000));
    let next_us = start_us.saturating_add(cost_us);
    let ahead_us = next_us.saturating_sub(mono_ms.saturating_mul(1000));
    if allowed == 0 || ahead_us > 1000 * MINUTE_MS {
        let retry_ms = ahead_us.saturating_sub(1000 * MINUTE_MS).div_ceil(1000).max(1);
        return Err(Exceeded { limit: Limit::PerMinute, allowed: allowed.into(), retry_ms });
    }
    Ok(next_us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A day and a second after the epoch.
    const WALL: u64 = DAY_MS + 1_000;

    fn refused(terms: Terms, usage: Usage, tasks: u64, work_ms: u64) -> Option<Exceeded> {
        admit(&terms, &usage, tasks, work_ms, 0, WALL).err()
    }

    #[test]
    fn without_limits_everything_is_admitted() {
        let usage = Usage { queued: 1 << 40, queued_ms: 1 << 50, day_ms: 1 << 50, rate_at_us: 0 };
        assert_eq!(refused(Terms::default(), usage, 1000, 1 << 50), None);
    }

    #[test]
    fn so_many_may_be_queued_and_not_one_more() {
        let terms = Terms { queued: Some(10), ..Terms::default() };
        assert_eq!(refused(terms, Usage { queued: 8, ..Usage::default() }, 2, 0), None);
        let refusal = refused(terms, Usage { queued: 8, ..Usage::default() }, 3, 0);
        assert_eq!(refusal.map(|r| (r.limit, r.allowed)), Some((Limit::Queued, 10)));
    }

    #[test]
    fn a_days_work_counts_what_was_used_and_what_is_queued() {
        let terms = Terms { day_ms: Some(10_000), ..Terms::default() };
        let usage = Usage { day_ms: 5_000, queued_ms: 3_000, ..Usage::default() };
        assert_eq!(refused(terms, usage, 1, 2_000), None);
        let soon = refused(terms, usage, 1, 2_001).expect("refused");
        assert_eq!((soon.limit, soon.retry_ms), (Limit::GpuSecondsADay, MINUTE_MS));
        // Nothing but the next day helps.
        let usage = Usage { day_ms: 9_000, ..usage };
        let later = refused(terms, usage, 1, 2_000).expect("refused");
        assert_eq!(later.retry_ms, DAY_MS - 1_000);
    }

    #[test]
    fn a_minutes_tasks_may_come_at_once_and_then_one_after_the_other() {
        let terms = Terms { per_minute: Some(3), ..Terms::default() };
        let mut usage = Usage::default();
        let mut ask = |tasks, at| {
            let admitted = admit(&terms, &usage, tasks, 0, at, WALL);
            usage.rate_at_us = admitted.unwrap_or(usage.rate_at_us);
            admitted.map(|_| ()).map_err(|refusal| refusal.retry_ms)
        };
        assert_eq!(ask(2, 1_000), Ok(()));
        assert_eq!(ask(2, 1_000), Err(20_000), "both or none");
        assert_eq!(ask(1, 1_000), Ok(()));
        assert_eq!(ask(1, 1_000), Err(20_000));
        assert_eq!(ask(1, 20_999), Err(1));
        assert_eq!(ask(1, 21_000), Ok(()));
        assert_eq!(ask(1, 21_000), Err(20_000));
        assert_eq!(ask(3, 200_000), Ok(()), "a pause fills it again, and no further");
        assert_eq!(ask(1, 200_000), Err(20_000));
    }

    #[test]
    fn a_limit_of_nothing_admits_nothing() {
        for terms in [
            Terms { per_minute: Some(0), ..Terms::default() },
            Terms { queued: Some(0), ..Terms::default() },
        ] {
            assert!(refused(terms, Usage::default(), 1, 0).is_some());
        }
    }

    proptest! {
        /// Whoever waits as long as he is told is admitted; who comes a millisecond earlier is not.
        #[test]
        fn retry_after_is_exact(
            per_minute in 1u32..10_000, at in 0u64..1_000_000, tasks in 1u64..5, tries in 0usize..50,
        ) {
            let terms = Terms { per_minute: Some(per_minute.max(5)), ..Terms::default() };
            let mut usage = Usage::default();
            for _ in 0..tries {
                usage.rate_at_us = admit(&terms, &usage, tasks, 0, at, WALL).unwrap_or(usage.rate_at_us);
            }
            if let Err(refusal) = admit(&terms, &usage, tasks, 0, at, WALL) {
                prop_assert!(admit(&terms, &usage, tasks, 0, at + refusal.retry_ms, WALL).is_ok());
                prop_assert!(admit(&terms, &usage, tasks, 0, at + refusal.retry_ms - 1, WALL).is_err());
            }
        }
    }
}
