use alloc::vec;

use super::*;
use crate::id::TaskId;
use crate::request::{Request, Size};
use crate::wire::engine::{Format, Role};

const RULES: Rules = Rules {
    max_failures: 3,
    max_losses: 2,
    max_releases: 2,
    backoff_ms: 1_000,
    max_backoff_ms: 3_000,
};

fn queued() -> Task {
    let request = Request {
        prompt: "p".into(),
        negative_prompt: String::new(),
        size: Size { width: 64, height: 64 },
        frames: 1,
        fps: 16,
        steps: 1,
        guidance: None,
        guidance_2: None,
        loras: Vec::new(),
        seed: 1,
        format: Format::Mp4,
        image: None,
        last_image: None,
        metadata: BTreeMap::new(),
    };
    let (tenant, pool) = ("default".parse().expect("a name"), "local".parse().expect("a name"));
    let model = "testcard".parse().expect("a name");
    let record = Record::new(TaskId::new(1, [1; 10]), tenant, pool, model, request, Timestamp(10));
    Task::new(Record { estimate_ms: 500, ..record })
}

fn claim(task: &mut Task) -> Fence {
    let by = Claimant { worker: "w".parse().expect("a name"), incarnation: 1, seq: 1 };
    let nonce = Nonce(u64::from(task.attempt) + 100);
    let effect = task.claim(by, nonce, Timestamp(20)).expect("claimed");
    assert_eq!(effect.charge_ms, 500, "the estimate is charged at the claim");
    task.fence().expect("running")
}

fn confirmed(task: &mut Task) -> Fence {
    let fence = claim(task);
    task.confirm(fence).expect("confirmed");
    fence
}

fn end(task: &mut Task, fence: Fence, end: End) -> Result<Effect, Refusal> {
    task.end(fence, end, &RULES, 700, 0, Timestamp(30))
}

fn failure(retryable: bool) -> End {
    End::Fail(Failure { retryable, ..Failure::new(Code::EngineFailed, "no") })
}

fn commit() -> End {
    End::Commit(Commit {
        outputs: vec![Output {
            index: 0,
            role: Role::Video,
            media_type: "video/mp4".into(),
            bytes: 3,
            sha256: "00".into(),
            width: 64,
            height: 64,
            frames: 1,
            fps: 16,
        }],
        metrics: BTreeMap::new(),
        test_pattern: true,
    })
}

#[test]
fn a_task_runs_and_succeeds() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    let effect = end(&mut task, fence, commit()).expect("committed");
    assert_eq!(task.state, State::Succeeded);
    assert_eq!(effect, Effect { charge_ms: 200, garbage: None }, "settled to the time held");
    let states: Vec<_> = task.history.iter().map(|c| (c.seq, c.state)).collect();
    assert_eq!(states, [(1, State::Queued), (2, State::Running), (3, State::Succeeded)]);
}

#[test]
fn a_repeated_commit_finds_the_stored_success_and_another_one_is_stale() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    end(&mut task, fence, commit()).expect("committed");
    assert_eq!(end(&mut task, fence, commit()), Err(Refusal::Repeated));
    let End::Commit(mut other) = commit() else { unreachable!("a commit") };
    other.outputs[0].sha256 = "11".into();
    assert_eq!(end(&mut task, fence, End::Commit(other)), Err(Refusal::Stale { cancelled: false }));
}

#[test]
fn a_worker_from_the_dead_changes_nothing() {
    let mut task = queued();
    let old = confirmed(&mut task);
    end(&mut task, old, End::Lose).expect("lost");
    let before = task.clone();
    for dead in [commit(), failure(true), End::Release, End::Lose, End::Vanish] {
        assert_eq!(end(&mut task, old, dead), Err(Refusal::Stale { cancelled: false }));
    }
    assert_eq!(task, before);
    let new = confirmed(&mut task);
    assert_eq!(end(&mut task, old, commit()), Err(Refusal::Stale { cancelled: false }));
    let forged = Fence { nonce: Nonce(0), ..new };
    assert_eq!(end(&mut task, forged, commit()), Err(Refusal::Stale { cancelled: false }));
    assert!(end(&mut task, new, commit()).is_ok());
}

#[test]
fn failures_back_off_and_end_the_task_at_their_limit() {
    let mut task = queued();
    let mut waits = vec![];
    for _ in 0..2 {
        let fence = confirmed(&mut task);
        let effect = end(&mut task, fence, failure(true)).expect("failed");
        assert_eq!(effect, Effect { charge_ms: 200, garbage: Some(fence) });
        assert_eq!(task.state, State::Queued);
        waits.push(task.not_before.ms_since(Timestamp(30)));
    }
    assert_eq!(waits, [500, 1_000], "half of 1 s, half of 2 s, without jitter");
    let fence = confirmed(&mut task);
    end(&mut task, fence, failure(true)).expect("failed");
    assert_eq!(task.state, State::Failed);
    assert_eq!(task.attempts.len(), 3, "every attempt stays readable");
}

#[test]
fn backoff_is_bounded_with_any_jitter() {
    for failures in 1..100 {
        for jitter in [0, 1, 12_345, u64::MAX] {
            let wait = RULES.backoff(failures, jitter);
            assert!((500..=3_000).contains(&wait), "{failures} {jitter} {wait}");
        }
    }
}

#[test]
fn a_failure_that_cannot_be_mended_by_trying_ends_the_task_at_once() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    end(&mut task, fence, failure(false)).expect("failed");
    assert_eq!(task.state, State::Failed);
    assert_eq!(task.error.as_ref().map(|e| e.code), Some(Code::EngineFailed));
}

#[test]
fn losses_are_counted_apart_and_refunded() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    let effect = end(&mut task, fence, End::Lose).expect("lost");
    assert_eq!(effect, Effect { charge_ms: -500, garbage: Some(fence) });
    assert_eq!((task.failures, task.losses, task.state), (0, 1, State::Queued));
    let fence = confirmed(&mut task);
    end(&mut task, fence, End::Lose).expect("lost");
    assert_eq!(task.state, State::Failed);
    assert_eq!(task.error.as_ref().map(|e| e.code), Some(Code::WorkersLost));
}

#[test]
fn an_unconfirmed_claim_costs_nothing_and_keeps_its_place() {
    let mut task = queued();
    for number in 1..=50 {
        let fence = claim(&mut task);
        assert_eq!(fence.attempt, number, "attempts only rise");
        let effect = end(&mut task, fence, End::Lose).expect("lost");
        assert_eq!(effect.charge_ms, -500);
    }
    assert_eq!((task.losses, task.releases, task.state), (0, 0, State::Queued));
    assert!(task.attempts.is_empty());
    assert!(task.history.len() <= 100, "the history is bounded");
}

#[test]
fn giving_back_is_free_up_to_a_bound() {
    let mut task = queued();
    for _ in 0..2 {
        let fence = confirmed(&mut task);
        let effect = end(&mut task, fence, End::Release).expect("released");
        assert_eq!(effect.charge_ms, -500);
        assert_eq!(task.state, State::Queued);
    }
    let fence = confirmed(&mut task);
    end(&mut task, fence, End::Release).expect("released");
    assert_eq!(task.error.as_ref().map(|e| e.code), Some(Code::Interrupted));
}

#[test]
fn a_cancel_is_terminal_at_once_and_the_worker_learns_of_it() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    let effect = task.cancel(700, Timestamp(40)).expect("cancelled");
    assert_eq!(effect, Effect { charge_ms: 200, garbage: Some(fence) });
    assert_eq!(task.state, State::Cancelled);
    assert_eq!(task.check(fence), Err(Refusal::Stale { cancelled: true }));
    assert_eq!(end(&mut task, fence, commit()), Err(Refusal::Stale { cancelled: true }));
    assert_eq!(task.cancel(0, Timestamp(50)), Err(Refusal::State(State::Cancelled)));
}

#[test]
fn the_first_end_wins() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    end(&mut task, fence, commit()).expect("committed");
    assert_eq!(task.cancel(0, Timestamp(50)), Err(Refusal::State(State::Succeeded)));
    assert_eq!(task.state, State::Succeeded);
}

#[test]
fn a_deadline_ends_what_still_waits_and_nothing_else() {
    let mut record = queued().0;
    record.deadline = Some(Timestamp(100));
    record.history.clear();
    let mut task = Task::new(record);
    assert!(task.expire(Timestamp(99)).is_err());
    let mut running = task.clone();
    let _ = claim(&mut running);
    assert_eq!(running.expire(Timestamp(100)), Err(Refusal::State(State::Running)));
    task.expire(Timestamp(100)).expect("expired");
    assert_eq!(task.state, State::Expired);
}

#[test]
fn a_failure_that_was_the_workers_fault_is_excused_once() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    end(&mut task, fence, failure(true)).expect("failed");
    assert_eq!(task.avoided().count(), 1);
    assert!(task.excuse(fence));
    assert_eq!((task.failures, task.losses), (0, 0), "neither is it a loss");
    assert_eq!(task.avoided().count(), 0);
    assert!(!task.excuse(fence), "it is already");
    assert_eq!(end(&mut task, fence, failure(true)), Err(Refusal::Repeated));
    for _ in 0..3 {
        let fence = confirmed(&mut task);
        end(&mut task, fence, failure(true)).expect("failed");
        assert!(!task.excuse(fence), "once in its life");
    }
    assert_eq!((task.state, task.attempts.len()), (State::Failed, 4));
}

#[test]
fn what_an_engine_says_is_cut_to_a_bound() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    let failure = Failure {
        detail: Some("字".repeat(MAX_DETAIL) + "the end"),
        ..Failure::new(Code::EngineCrashed, "x".repeat(MAX_MESSAGE + 1))
    };
    end(&mut task, fence, End::Fail(failure)).expect("failed");
    let error = task.error.as_ref().expect("an error");
    assert_eq!(error.message.chars().count(), MAX_MESSAGE);
    assert!(error.detail.as_ref().expect("a detail").ends_with("the end"));
}

#[test]
fn a_task_is_read_back_as_it_was_written() {
    let mut task = queued();
    let fence = confirmed(&mut task);
    end(&mut task, fence, failure(true)).expect("failed");
    let _ = confirmed(&mut task);
    let text = serde_json::to_string(&task).expect("written");
    assert_eq!(serde_json::from_str::<Task>(&text).expect("read"), task);
}
