//! Telling a tenant's receiver that a task has ended: what is tried, when, and what becomes of it.
//!
//! A [`Delivery`] is written in the transaction that ends its task, so that no end goes untold. It
//! is taken, called, and reported on; a report that is not of the newest take changes nothing but the
//! list of attempts. Whoever dies in between leaves a delivery that falls due again: it is made at
//! least once.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::id::{TaskId, TenantName};
use crate::time::Timestamp;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// Waits after the first failure, the second and so on. After the last one it is given up: sixteen
/// hours in all, so that a receiver that breaks in the evening is mended in the morning.
pub const WAITS_MS: [u64; 9] = [
    5 * SECOND,
    30 * SECOND,
    2 * MINUTE,
    10 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    4 * HOUR,
    8 * HOUR,
];
/// A receiver that asks for more patience than this is tried after it all the same.
pub const MAX_WAIT_MS: u64 = 8 * HOUR;
/// No delivery is ever due later than this: one that is, was written before the clock fell back.
pub const HORIZON_MS: u64 = 10 * HOUR;
/// Newest attempts that are kept.
pub const MAX_ATTEMPTS: usize = 50;
/// What a receiver answers that wants to hear no more of it.
const GONE: u16 = 410;

/// Where a task's end is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    pub url: String,
    /// What the URLs in the event begin with: where the submit has reached the server.
    pub base: String,
}

/// How a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Standing {
    /// The task has not ended.
    Waiting,
    /// It is to be delivered, for the first time or again.
    Pending,
    Delivered,
    /// Given up: too many attempts, or the receiver answered 410.
    Failed,
}

/// One call of the receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub at: Timestamp,
    /// What the receiver answered; none if there was no answer.
    pub status: Option<u16>,
    /// Why it does not count as delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub attempt: Attempt,
    /// The receiver asked for so much patience.
    pub retry_after_ms: Option<u64>,
}

/// The telling of one task's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub task: TaskId,
    pub tenant: TenantName,
    pub standing: Standing,
    /// When it is to be made, or made again if whoever has taken it does not report; none once it is
    /// over.
    pub due: Option<Timestamp>,
    /// Counts the takes, and what made older ones worthless.
    pub number: u32,
    /// Calls since it was first, or by hand, set going.
    pub tries: u32,
    /// Is it being made? Then `due` is when it is taken for lost.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub taken: bool,
    #[serde(default)]
    pub attempts: Vec<Attempt>,
}

impl Delivery {
    /// One that is due at once.
    pub fn new(task: TaskId, tenant: TenantName, now: Timestamp) -> Self {
        Self {
            task,
            tenant,
            standing: Standing::Pending,
            due: Some(now),
            number: 0,
            tries: 0,
            taken: false,
            attempts: Vec::new(),
        }
    }

    /// When it is to be made next; none while it is being made, and once it is over.
    pub fn next(&self) -> Option<Timestamp> {
        self.due.filter(|_| !self.taken)
    }

    /// Is it to be made now?
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.due.is_some_and(|due| due <= now || due > now.plus_ms(HORIZON_MS))
    }

    /// Takes it, to be made now; without a report it falls due again after `hold_ms`.
    pub fn take(&mut self, hold_ms: u64, now: Timestamp) {
        self.number += 1;
        self.tries += 1;
        self.taken = true;
        self.due = Some(now.plus_ms(hold_ms.min(HORIZON_MS)));
    }

    /// Reports on the take with this number; `jitter` is any random number.
    pub fn report(&mut self, number: u32, report: Report, jitter: u64, now: Timestamp) {
        let Report { attempt, retry_after_ms } = report;
        let (delivered, gone) = (attempt.error.is_none(), attempt.status == Some(GONE));
        if self.attempts.len() >= MAX_ATTEMPTS {
            self.attempts.remove(0);
        }
        self.attempts.push(attempt);
        if number != self.number || self.standing != Standing::Pending {
            return;
        }
        self.taken = false;
        let wait = WAITS_MS.get(self.tries.saturating_sub(1) as usize);
        (self.standing, self.due) = match wait {
            _ if delivered => (Standing::Delivered, None),
            Some(wait) if !gone => {
                let asked = retry_after_ms.unwrap_or(0).min(MAX_WAIT_MS);
                (Standing::Pending, Some(now.plus_ms(jittered(*wait, jitter).max(asked))))
            }
            _ => (Standing::Failed, None),
        };
    }

    /// Sets it going anew, however it stands: its attempts stay, and are not counted.
    pub fn restart(&mut self, now: Timestamp) {
        self.standing = Standing::Pending;
        self.due = Some(now);
        self.number += 1;
        self.tries = 0;
        self.taken = false;
    }
}

/// A fifth more or less, so that what failed together does not come back together.
fn jittered(wait: u64, jitter: u64) -> u64 {
    let fifth = wait / 5;
    wait - fifth + jitter % (2 * fifth + 1)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const HOLD: u64 = 90 * SECOND;

    fn delivery() -> Delivery {
        let tenant = "anna".parse().expect("a name");
        Delivery::new(TaskId::new(1, [1; 10]), tenant, Timestamp(0))
    }

    fn answered(status: u16) -> Report {
        let error = (!(200..300).contains(&status)).then(|| "refused".into());
        let attempt = Attempt { at: Timestamp(0), status: Some(status), error };
        Report { attempt, retry_after_ms: None }
    }

    fn asking_for(ms: u64) -> Report {
        Report { retry_after_ms: Some(ms), ..answered(503) }
    }

    /// Takes and reports at once.
    fn play(delivery: &mut Delivery, report: Report, jitter: u64, now: Timestamp) {
        delivery.take(HOLD, now);
        delivery.report(delivery.number, report, jitter, now);
    }

    #[test]
    fn a_receiver_that_accepts_is_called_once() {
        let mut delivery = delivery();
        assert!(delivery.is_due(Timestamp(0)));
        play(&mut delivery, answered(204), 0, Timestamp(0));
        assert_eq!((delivery.standing, delivery.due), (Standing::Delivered, None));
        assert_eq!(delivery.attempts.len(), 1);
    }

    #[test]
    fn one_that_refuses_is_called_ten_times_over_sixteen_hours() {
        let (mut delivery, mut now) = (delivery(), Timestamp(0));
        let mut waits = vec![];
        while delivery.standing == Standing::Pending {
            play(&mut delivery, answered(500), u64::MAX / 2, now);
            if let Some(due) = delivery.due {
                waits.push(due.ms_since(now));
                now = due;
            }
        }
        assert_eq!((delivery.standing, delivery.attempts.len()), (Standing::Failed, 10));
        for (wait, expected) in waits.iter().zip(WAITS_MS) {
            assert!((expected * 4 / 5..=expected * 6 / 5).contains(wait), "{wait} for {expected}");
        }
        assert!((12 * HOUR..20 * HOUR).contains(&now.0));
    }

    #[test]
    fn waits_differ_by_chance_within_a_fifth() {
        let waits: Vec<u64> = (0..2_001).map(|jitter| jittered(5_000, jitter)).collect();
        assert_eq!((waits[0], waits[1_000], waits[2_000]), (4_000, 5_000, 6_000));
    }

    #[test]
    fn a_receiver_may_ask_for_more_patience_but_not_for_ever_nor_for_less() {
        let wait = |asked| {
            let mut delivery = delivery();
            play(&mut delivery, asking_for(asked), 1_000, Timestamp(0));
            delivery.due.map(|due| due.0)
        };
        assert_eq!(wait(60_000), Some(60_000));
        assert_eq!(wait(1), Some(5_000));
        assert_eq!(wait(u64::MAX), Some(MAX_WAIT_MS));
    }

    #[test]
    fn one_that_is_gone_is_left_alone() {
        let mut delivery = delivery();
        play(&mut delivery, answered(410), 0, Timestamp(0));
        assert_eq!((delivery.standing, delivery.due), (Standing::Failed, None));
    }

    #[test]
    fn what_is_taken_and_not_reported_falls_due_again() {
        let mut delivery = delivery();
        delivery.take(HOLD, Timestamp(0));
        assert!(!delivery.is_due(Timestamp(HOLD - 1)) && delivery.is_due(Timestamp(HOLD)));
        let first = delivery.number;
        delivery.take(HOLD, Timestamp(HOLD));
        // The first one was slow, not dead: its answer is told, and decides nothing.
        delivery.report(first, answered(200), 0, Timestamp(HOLD));
        assert_eq!((delivery.standing, delivery.attempts.len()), (Standing::Pending, 1));
        delivery.report(delivery.number, answered(200), 0, Timestamp(HOLD));
        assert_eq!(delivery.standing, Standing::Delivered);
    }

    #[test]
    fn while_it_is_made_no_next_time_is_told() {
        let mut delivery = delivery();
        assert_eq!(delivery.next(), Some(Timestamp(0)));
        delivery.take(HOLD, Timestamp(1));
        assert_eq!(delivery.next(), None, "the end of the hold is nobody's business");
        delivery.report(delivery.number, answered(500), 1_000, Timestamp(2));
        assert_eq!(delivery.next(), Some(Timestamp(5_002)));
        delivery.take(HOLD, Timestamp(5_002));
        delivery.restart(Timestamp(6_000));
        assert_eq!(delivery.next(), Some(Timestamp(6_000)));
    }

    #[test]
    fn by_hand_it_begins_anew() {
        let mut delivery = delivery();
        play(&mut delivery, answered(410), 0, Timestamp(0));
        delivery.restart(Timestamp(7));
        assert_eq!((delivery.standing, delivery.due), (Standing::Pending, Some(Timestamp(7))));
        play(&mut delivery, answered(500), 1_000, Timestamp(7));
        assert_eq!(delivery.due, Some(Timestamp(5_007)), "the first wait again");
        assert_eq!(delivery.attempts.len(), 2, "and the old attempts are still told");

        // While a call is under way, it is not that call which was asked for.
        delivery.take(HOLD, Timestamp(9_000));
        let under_way = delivery.number;
        delivery.restart(Timestamp(9_001));
        delivery.report(under_way, answered(200), 0, Timestamp(9_002));
        assert!(delivery.is_due(Timestamp(9_002)));
    }

    #[test]
    fn a_clock_that_falls_back_delays_nothing_for_long() {
        let mut delivery = Delivery { due: Some(Timestamp(HORIZON_MS * 3)), ..delivery() };
        assert!(delivery.is_due(Timestamp(HORIZON_MS)));
        assert!(!delivery.is_due(Timestamp(HORIZON_MS * 2)));
        delivery.due = None;
        assert!(!delivery.is_due(Timestamp(0)));
    }

    #[test]
    fn only_the_newest_attempts_are_kept() {
        let mut delivery = delivery();
        for at in 0..60 {
            delivery.restart(Timestamp(at));
            let mut report = answered(500);
            report.attempt.at = Timestamp(at);
            play(&mut delivery, report, 0, Timestamp(at));
        }
        let kept = (delivery.attempts.len(), delivery.attempts[0].at, delivery.attempts[49].at);
        assert_eq!(kept, (50, Timestamp(10), Timestamp(59)));
    }
}
