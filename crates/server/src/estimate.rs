//! How long a request will take: learned from the attempts that succeeded.
//!
//! A model's running time grows with pixels, frames and steps, so what is learned is milliseconds
//! per unit of [`Request::work`]: the median of the newest attempts, which a cold start or a stuck
//! disk does not move. Until there are any, the model's `estimate_seconds` stands for its default
//! request. Nothing is kept over a restart: the first few tasks teach it again.

use std::collections::HashMap;
use std::sync::RwLock;

use rayreel_domain::id::ModelName;
use rayreel_domain::request::Request;
use rayreel_domain::task::{State, Task};
use rayreel_domain::time::Timestamp;
use rayreel_domain::wire::api::percent;
use rayreel_domain::wire::worker::Progress;

use crate::config::{Model, Settings};

/// Attempts that count.
const WINDOW: usize = 32;
/// What a default request is taken for if the configuration doesn't say.
const UNKNOWN_MS: u64 = 60_000;
const TEST_PATTERN_MS: u64 = 1_000;
/// No estimate is longer: thirty days.
const LONGEST_MS: f64 = 30.0 * 86_400_000.0;
/// Progress tells more than the estimate from here on, in per cent.
const TELLING: u8 = 5;

/// What is known of running times.
#[derive(Debug, Default)]
pub struct Estimates(RwLock<HashMap<ModelName, Pace>>);

/// Milliseconds per unit of work of one model.
#[derive(Debug)]
struct Pace {
    ms_per_work: f64,
    seen: Vec<f64>,
    next: usize,
}

impl Estimates {
    /// Starts with what the configuration says.
    pub fn new(settings: &Settings) -> Self {
        let paces = settings.models.iter().map(|(name, model)| {
            let pace = Pace { ms_per_work: configured(model), seen: Vec::new(), next: 0 };
            (name.clone(), pace)
        });
        Self(RwLock::new(paces.collect()))
    }

    /// GPU-milliseconds that this request will probably take.
    pub fn estimate_ms(&self, model: &ModelName, request: &Request) -> u64 {
        let paces = self.0.read().expect("nothing panics while it holds this lock");
        let Some(pace) = paces.get(model) else { return UNKNOWN_MS };
        bounded(pace.ms_per_work * request.work() as f64)
    }

    /// An attempt has succeeded, having held its lease for so long.
    pub fn observe(&self, model: &ModelName, request: &Request, held_ms: u64) {
        let mut paces = self.0.write().expect("nothing panics while it holds this lock");
        // A model that is not configured any more still ends its tasks, but gets no new ones.
        let Some(pace) = paces.get_mut(model) else { return };
        let seen = held_ms as f64 / request.work() as f64;
        if pace.seen.len() < WINDOW {
            pace.seen.push(seen);
        } else {
            pace.seen[pace.next] = seen;
        }
        pace.next = (pace.next + 1) % WINDOW;
        let mut sorted = pace.seen.clone();
        sorted.sort_by(f64::total_cmp);
        pace.ms_per_work = sorted[sorted.len() / 2];
    }
}

/// Milliseconds per unit of work, from the configuration.
fn configured(model: &Model) -> f64 {
    let asked = model.estimate_seconds.map(|seconds| seconds.ms());
    let ms = asked.unwrap_or(if model.is_test_pattern() { TEST_PATTERN_MS } else { UNKNOWN_MS });
    let defaults = &model.defaults;
    let request = Request {
        prompt: String::new(),
        negative_prompt: String::new(),
        size: defaults.size,
        frames: defaults.frames,
        fps: defaults.fps,
        steps: defaults.steps,
        guidance: None,
        seed: 0,
        format: Default::default(),
        image: None,
        metadata: Default::default(),
    };
    ms as f64 / request.work() as f64
}

fn bounded(ms: f64) -> u64 {
    ms.clamp(1.0, LONGEST_MS) as u64
}

/// Milliseconds until the task has its result; none if it has ended or nothing is known.
/// `workers` share what is queued before it.
pub fn eta_ms(
    task: &Task,
    position: Option<u64>,
    progress: Option<&Progress>,
    workers: u32,
    now: Timestamp,
) -> Option<u64> {
    match task.state {
        State::Queued => {
            // What is before it is taken to be like it.
            let turns = position? / u64::from(workers.max(1));
            let queue = task.estimate_ms.saturating_mul(turns);
            let backoff = task.not_before.ms_since(now);
            Some(queue.max(backoff).saturating_add(task.estimate_ms))
        }
        State::Running => {
            let elapsed = now.ms_since(task.started_at?);
            match percent(task.state, progress) {
                done if done >= TELLING => {
                    Some(elapsed.saturating_mul(u64::from(100 - done)) / u64::from(done))
                }
                _ => Some(task.estimate_ms.saturating_sub(elapsed)),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayreel_domain::id::{Nonce, TaskId};
    use rayreel_domain::task::{Claimant, Record};

    fn request(frames: u32) -> Request {
        let size = "832x480".parse().expect("a size");
        Request {
            prompt: "p".to_owned(),
            negative_prompt: String::new(),
            size,
            frames,
            fps: 16,
            steps: 20,
            guidance: None,
            seed: 0,
            format: Default::default(),
            image: None,
            metadata: Default::default(),
        }
    }

    fn model() -> ModelName {
        "testcard".parse().expect("a name")
    }

    fn estimates() -> Estimates {
        let pace = Pace { ms_per_work: 2.0, seen: Vec::new(), next: 0 };
        Estimates(RwLock::new(HashMap::from([(model(), pace)])))
    }

    #[test]
    fn an_estimate_grows_with_the_work() {
        let estimates = estimates();
        let (short, long) = (request(1), request(321));
        assert_eq!(estimates.estimate_ms(&model(), &short), 2 * short.work());
        assert_eq!(estimates.estimate_ms(&model(), &long), 2 * long.work());
    }

    #[test]
    fn the_median_of_the_newest_attempts_is_learned() {
        let estimates = estimates();
        let short = request(5);
        for held in [10, 11, 12, 900_000] {
            estimates.observe(&model(), &short, held * short.work());
        }
        let learned = estimates.estimate_ms(&model(), &short) / short.work();
        assert_eq!(learned, 12, "one cold start among them moves nothing");
        for _ in 0..WINDOW {
            estimates.observe(&model(), &short, 5 * short.work());
        }
        assert_eq!(estimates.estimate_ms(&model(), &short), 5 * short.work(), "old ones fade");
    }

    #[test]
    fn what_is_unknown_still_has_an_estimate() {
        let estimates = estimates();
        let other = "other".parse().expect("a name");
        estimates.observe(&other, &request(5), 10);
        assert_eq!(estimates.estimate_ms(&other, &request(5)), UNKNOWN_MS);
    }

    fn task(estimate_ms: u64) -> Task {
        Task::new(Record {
            id: TaskId::new(1, [1; 10]),
            tenant: "default".parse().expect("a name"),
            pool: "local".parse().expect("a name"),
            model: model(),
            request: request(5),
            priority: Default::default(),
            idempotency: None,
            siblings: Vec::new(),
            estimate_ms,
            created_at: Timestamp(1_000),
            deadline: None,
            state: State::Queued,
            not_before: Timestamp::ZERO,
            attempt: 0,
            lease: None,
            failures: 0,
            losses: 0,
            releases: 0,
            attempts: Vec::new(),
            history: Vec::new(),
            outputs: Vec::new(),
            test_pattern: false,
            error: None,
            started_at: None,
            finished_at: None,
            delete_at: None,
        })
    }

    #[test]
    fn the_queue_before_a_task_is_shared_by_the_workers() {
        let task = task(10_000);
        let eta = |position, workers| eta_ms(&task, position, None, workers, Timestamp(1_000));
        assert_eq!(eta(Some(0), 1), Some(10_000));
        assert_eq!(eta(Some(6), 1), Some(70_000));
        assert_eq!(eta(Some(6), 3), Some(30_000));
        assert_eq!(eta(Some(6), 0), Some(70_000), "the first worker is yet to come");
        assert_eq!(eta(None, 1), None);
    }

    #[test]
    fn progress_corrects_the_estimate_of_a_running_task() {
        let mut task = task(10_000);
        let by = Claimant { worker: "w".parse().expect("a name"), incarnation: 1, seq: 1 };
        task.claim(by, Nonce(1), Timestamp(2_000)).expect("queued");
        let denoise = |step| Progress { stage: "denoise".to_owned(), step, steps: 20 };
        let eta =
            |progress: Option<&Progress>, now| eta_ms(&task, None, progress, 1, Timestamp(now));
        assert_eq!(eta(None, 5_000), Some(7_000));
        assert_eq!(eta(Some(&denoise(0)), 5_000), Some(7_000), "it has only begun");
        // Half of the steps are 46 per cent of the whole.
        assert_eq!(eta(Some(&denoise(10)), 48_000), Some(54_000));
        assert_eq!(eta(None, 60_000), Some(0));
    }
}
