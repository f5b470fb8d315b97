//! What a tenant may use: its share, and its limits.
//!
//! Shares say who is next when there is not enough for all ([`crate::schedule`]); limits refuse
//! before that. Whether a submit is within them is decided in one place, [`admit`], on counts that
//! the store takes in the submit's own transaction: so they hold exactly, however many submit at
//! once.

use alloc::collections::{BTreeMap, VecDeque};

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
    /// Tasks submitted within any minute.
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
    /// When it may be tried again; none if so much never fits.
    pub retry_ms: Option<u64>,
}

/// What a tenant uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub queued: u64,
    /// Estimates of what is queued, in GPU-milliseconds.
    pub queued_ms: u64,
    /// GPU-milliseconds charged today.
    pub day_ms: u64,
}

/// How many tasks a tenant has submitted in the last minute, to a quarter of a second.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Minute {
    /// Slots in which some were, the oldest first: at most as many as a minute has, and one.
    slots: VecDeque<(u64, u64)>,
}

impl Minute {
    const SLOT_MS: u64 = 250;
    const SLOTS: u64 = MINUTE_MS / Self::SLOT_MS;

    /// A slot counts until its last moment is a minute ago, so that no minute, wherever it begins,
    /// has more than is allowed.
    fn counted(&self, mono_ms: u64) -> impl Iterator<Item = &(u64, u64)> {
        let slot = mono_ms / Self::SLOT_MS;
        self.slots.iter().filter(move |(at, _)| at + Self::SLOTS >= slot)
    }

    /// So many came within the last minute.
    pub fn count(&self, mono_ms: u64) -> u64 {
        self.counted(mono_ms).map(|(_, count)| count).sum()
    }

    /// May so many more come now? If not, when: never, if they are more than are allowed.
    fn admit(&self, allowed: u64, tasks: u64, mono_ms: u64) -> Result<(), Option<u64>> {
        let mut sum = self.count(mono_ms);
        if sum.saturating_add(tasks) <= allowed {
            return Ok(());
        }
        for (at, count) in self.counted(mono_ms) {
            sum -= count;
            if sum.saturating_add(tasks) <= allowed {
                return Err(Some((at + Self::SLOTS + 1) * Self::SLOT_MS - mono_ms));
            }
        }
        Err(None)
    }

    /// So many came now; `mono_ms` is a monotonic clock.
    pub fn add(&mut self, tasks: u64, mono_ms: u64) {
        let slot = mono_ms / Self::SLOT_MS;
        while self.slots.front().is_some_and(|(at, _)| at + Self::SLOTS < slot) {
            self.slots.pop_front();
        }
        match self.slots.back_mut() {
            Some((at, count)) if *at >= slot => *count += tasks,
            _ => self.slots.push_back((slot, tasks)),
        }
    }
}

/// May `tasks` more, which are expected to take `work_ms` in all, be submitted? `mono_ms` is the
/// monotonic clock of `minute`, `wall_ms` Unix time.
pub fn admit(
    terms: &Terms,
    usage: &Usage,
    minute: &Minute,
    (tasks, work_ms): (u64, u64),
    (mono_ms, wall_ms): (u64, u64),
) -> Result<(), Exceeded> {
    let exceeded = |limit, allowed, retry_ms| Err(Exceeded { limit, allowed, retry_ms });
    if let Some(allowed) = terms.queued
        && usage.queued.saturating_add(tasks) > allowed
    {
        let retry_ms = (tasks <= allowed).then_some(MINUTE_MS / 6);
        return exceeded(Limit::Queued, allowed, retry_ms);
    }
    if let Some(allowed) = terms.day_ms {
        let used = usage.day_ms.saturating_add(work_ms);
        if used.saturating_add(usage.queued_ms) > allowed {
            // What is queued may be cancelled, or take less; what is used stays until midnight.
            let retry_ms = if used > allowed { DAY_MS - wall_ms % DAY_MS } else { MINUTE_MS };
            let retry_ms = (work_ms <= allowed).then_some(retry_ms);
            return exceeded(Limit::GpuSecondsADay, allowed, retry_ms);
        }
    }
    if let Some(allowed) = terms.per_minute.map(u64::from)
        && let Err(retry_ms) = minute.admit(allowed, tasks, mono_ms)
    {
        return exceeded(Limit::PerMinute, allowed, retry_ms);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// A day and a second after the epoch.
    const WALL: u64 = DAY_MS + 1_000;

    fn refused(terms: Terms, usage: Usage, tasks: u64, work_ms: u64) -> Option<Exceeded> {
        admit(&terms, &usage, &Minute::default(), (tasks, work_ms), (0, WALL)).err()
    }

    #[test]
    fn without_limits_everything_is_admitted() {
        let usage = Usage { queued: 1 << 40, queued_ms: 1 << 50, day_ms: 1 << 50 };
        assert_eq!(refused(Terms::default(), usage, 1000, 1 << 50), None);
    }

    #[test]
    fn so_many_may_be_queued_and_not_one_more() {
        let terms = Terms { queued: Some(10), ..Terms::default() };
        assert_eq!(refused(terms, Usage { queued: 8, ..Usage::default() }, 2, 0), None);
        let refusal = refused(terms, Usage { queued: 8, ..Usage::default() }, 3, 0);
        let retry_ms = Some(MINUTE_MS / 6);
        assert_eq!(refusal, Some(Exceeded { limit: Limit::Queued, allowed: 10, retry_ms }));
    }

    #[test]
    fn a_days_work_counts_what_was_used_and_what_is_queued() {
        let terms = Terms { day_ms: Some(10_000), ..Terms::default() };
        let usage = Usage { day_ms: 5_000, queued_ms: 3_000, ..Usage::default() };
        assert_eq!(refused(terms, usage, 1, 2_000), None);
        let soon = refused(terms, usage, 1, 2_001).expect("refused");
        assert_eq!((soon.limit, soon.retry_ms), (Limit::GpuSecondsADay, Some(MINUTE_MS)));
        // Nothing but the next day helps.
        let usage = Usage { day_ms: 9_000, ..usage };
        let later = refused(terms, usage, 1, 2_000).expect("refused");
        assert_eq!(later.retry_ms, Some(DAY_MS - 1_000));
    }

    #[test]
    fn a_minutes_tasks_may_come_at_once_and_then_no_more_until_it_is_over() {
        let terms = Terms { per_minute: Some(3), ..Terms::default() };
        let mut minute = Minute::default();
        let mut ask = |tasks, at| {
            let admitted = admit(&terms, &Usage::default(), &minute, (tasks, 0), (at, WALL));
            if admitted.is_ok() {
                minute.add(tasks, at);
            }
            admitted.map_err(|refusal| refusal.retry_ms)
        };
        assert_eq!(ask(2, 1_000), Ok(()));
        assert_eq!(ask(2, 1_000), Err(Some(60_250)), "both or none");
        assert_eq!(ask(1, 21_100), Ok(()));
        assert_eq!(ask(1, 21_100), Err(Some(40_150)), "two are over then");
        assert_eq!(ask(1, 61_249), Err(Some(1)));
        assert_eq!(ask(2, 61_250), Ok(()));
        assert_eq!(ask(1, 61_250), Err(Some(20_000)));
        assert_eq!(ask(3, 200_000), Ok(()), "a pause frees it all, and no more than that");
        assert_eq!(ask(1, 200_000), Err(Some(60_250)));
    }

    #[test]
    fn what_is_more_than_the_limit_never_fits() {
        for terms in [
            Terms { per_minute: Some(0), ..Terms::default() },
            Terms { queued: Some(0), ..Terms::default() },
            Terms { per_minute: Some(3), ..Terms::default() },
            Terms { queued: Some(3), ..Terms::default() },
            Terms { day_ms: Some(3_999), ..Terms::default() },
        ] {
            let refusal = refused(terms, Usage::default(), 4, 4_000);
            assert_eq!(refusal.map(|refusal| refusal.retry_ms), Some(None), "{terms:?}");
        }
    }

    proptest! {
        /// Whoever waits as long as he is told is admitted; who comes a millisecond earlier is not.
        #[test]
        fn retry_after_is_exact(
            allowed in 5u32..100, waits in proptest::collection::vec((0u64..9_000, 1u64..5), 1..80),
        ) {
            let terms = Terms { per_minute: Some(allowed), ..Terms::default() };
            let (mut minute, mut now, mut admitted) = (Minute::default(), 0, Vec::new());
            for (wait, tasks) in waits {
                now += wait;
                let ask = |now| admit(&terms, &Usage::default(), &minute, (tasks, 0), (now, WALL));
                if let Err(refusal) = ask(now) {
                    let retry_ms = refusal.retry_ms.expect("it fits at some time");
                    prop_assert!(ask(now + retry_ms - 1).is_err());
                    prop_assert!(ask(now + retry_ms).is_ok());
                } else {
                    minute.add(tasks, now);
                    admitted.push((now, tasks));
                }
                prop_assert!(minute.slots.len() as u64 <= Minute::SLOTS + 1);
            }
            let late = |at: u64| now.saturating_sub(at) < MINUTE_MS;
            let least: u64 = admitted.iter().filter(|(at, _)| late(*at)).map(|(_, tasks)| tasks).sum();
            prop_assert!(minute.count(now) >= least, "none within the minute is forgotten");
            prop_assert_eq!(minute.count(now + MINUTE_MS + Minute::SLOT_MS), 0);
            // No minute has more, wherever it begins.
            for (from, _) in &admitted {
                let within = admitted.iter().filter(|(at, _)| (*from..from + MINUTE_MS).contains(at));
                prop_assert!(within.map(|(_, tasks)| tasks).sum::<u64>() <= u64::from(allowed));
            }
        }
    }
}
