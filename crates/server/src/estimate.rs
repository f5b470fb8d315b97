//! How long a request will take: learned from the attempts that succeeded.
//!
//! A model's running time has a part that grows with pixels, frames and steps
//! ([`Request::work`]), and a part that does not: the text encoder, the start of the encoder, the
//! delivery. So what is learned of the newest attempts is a line, `fixed + work × pace`, neither
//! part below zero: whatever it is asked about, the answer lies between "as long as those" and "in
//! proportion to those".
//!
//! - Attempts of about the same work count as one point, their median: a cold start or a stuck disk
//!   among them moves nothing.
//! - The line is the one with the least squares of *relative* errors over these points, each as
//!   heavy as it has attempts. Minutes of a large video then don't drown the seconds of a small
//!   one, and a lone point that is much too slow weighs next to nothing.
//! - One point alone tells of no slope. The line goes through it and, as far as it can, through
//!   what the configuration says of the default request; if that says nothing, through zero.
//!
//! Until there are any attempts, the model's `estimate_seconds` stands for its default request.
//! Nothing is kept over a restart: the first few tasks teach it again.

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
/// Attempts whose work differs by no more than this factor tell the same.
const ALIKE: f64 = 1.5;
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

/// How long something has taken, or should.
#[derive(Debug, Clone, Copy)]
struct Point {
    work: f64,
    ms: f64,
    /// Attempts that say so.
    weight: f64,
}

/// Running time by work: `fixed_ms + work * ms_per_work`.
#[derive(Debug, Clone, Copy)]
struct Line {
    fixed_ms: f64,
    ms_per_work: f64,
}

/// What is known of one model.
#[derive(Debug)]
struct Pace {
    line: Line,
    /// The default request, if the configuration says something of it.
    configured: Option<Point>,
    seen: Vec<Point>,
    next: usize,
}

impl Estimates {
    /// Starts with what the configuration says.
    pub fn new(settings: &Settings) -> Self {
        let paces = settings.models.iter().map(|(name, model)| (name.clone(), Pace::new(model)));
        Self(RwLock::new(paces.collect()))
    }

    /// GPU-milliseconds that this request will probably take.
    pub fn estimate_ms(&self, model: &ModelName, request: &Request) -> u64 {
        let paces = self.0.read().expect("nothing panics while it holds this lock");
        let Some(pace) = paces.get(model) else { return UNKNOWN_MS };
        bounded(pace.line.at(request.work() as f64))
    }

    /// An attempt has succeeded, having held its lease for so long.
    pub fn observe(&self, model: &ModelName, request: &Request, held_ms: u64) {
        let mut paces = self.0.write().expect("nothing panics while it holds this lock");
        // A model that is not configured any more still ends its tasks, but gets no new ones.
        let Some(pace) = paces.get_mut(model) else { return };
        pace.learn(Point { work: request.work() as f64, ms: held_ms.max(1) as f64, weight: 1.0 });
    }
}

impl Pace {
    fn new(model: &Model) -> Self {
        let asked = model.estimate_seconds.map(|seconds| seconds.ms());
        let asked = asked.or(model.is_test_pattern().then_some(TEST_PATTERN_MS));
        let default = |ms: u64| Point { work: default_work(model), ms: ms as f64, weight: 1.0 };
        Self {
            line: Line::proportional(&[default(asked.unwrap_or(UNKNOWN_MS))]),
            configured: asked.map(default),
            seen: Vec::new(),
            next: 0,
        }
    }

    fn learn(&mut self, point: Point) {
        if self.seen.len() < WINDOW {
            self.seen.push(point);
        } else {
            self.seen[self.next] = point;
        }
        self.next = (self.next + 1) % WINDOW;
        self.line = match medians(&self.seen).as_slice() {
            &[only] => Line::through(only, self.configured),
            points => Line::least_squares(points),
        };
    }
}

impl Line {
    fn at(self, work: f64) -> f64 {
        self.fixed_ms + work * self.ms_per_work
    }

    /// Through a point that is sure, and towards one that is not.
    fn through(sure: Point, other: Option<Point>) -> Self {
        let steepest = sure.ms / sure.work;
        let slope = match other {
            Some(other) if !alike(sure, other) => {
                ((other.ms - sure.ms) / (other.work - sure.work)).clamp(0.0, steepest)
            }
            _ => steepest,
        };
        Self { fixed_ms: (sure.ms - slope * sure.work).max(0.0), ms_per_work: slope }
    }

    /// The line of the least relative errors, without a part below zero.
    fn least_squares(points: &[Point]) -> Self {
        // Dividing by the time makes each error relative: x·fixed + y·pace should be 1.
        let (mut xx, mut xy, mut yy, mut x1, mut y1) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &Point { work, ms, weight } in points {
            let (x, y) = (1.0 / ms, work / ms);
            xx += weight * x * x;
            xy += weight * x * y;
            yy += weight * y * y;
            x1 += weight * x;
            y1 += weight * y;
        }
        // Positive: the points differ in their work.
        let determinant = xx * yy - xy * xy;
        let fixed_ms = (x1 * yy - y1 * xy) / determinant;
        let ms_per_work = (y1 * xx - x1 * xy) / determinant;
        if fixed_ms < 0.0 {
            Self::proportional(points)
        } else if ms_per_work < 0.0 {
            Self { fixed_ms: x1 / xx, ms_per_work: 0.0 }
        } else {
            Self { fixed_ms, ms_per_work }
        }
    }

    fn proportional(points: &[Point]) -> Self {
        let (mut yy, mut y1) = (0.0, 0.0);
        for &Point { work, ms, weight } in points {
            let y = work / ms;
            yy += weight * y * y;
            y1 += weight * y;
        }
        Self { fixed_ms: 0.0, ms_per_work: y1 / yy }
    }
}

fn alike(one: Point, other: Point) -> bool {
    one.work.max(other.work) <= ALIKE * one.work.min(other.work)
}

/// Attempts of about the same work as one point each.
fn medians(seen: &[Point]) -> Vec<Point> {
    let mut sorted = seen.to_vec();
    sorted.sort_by(|a, b| a.work.total_cmp(&b.work));
    let mut rest = sorted.as_mut_slice();
    let mut points = Vec::new();
    while let Some(&first) = rest.first() {
        let count = rest.iter().take_while(|point| alike(first, **point)).count();
        let (group, others) = rest.split_at_mut(count);
        // Of two, the quicker one: what disturbs an attempt makes it slower.
        let middle = (count - 1) / 2;
        let work = group[middle].work;
        group.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        points.push(Point { work, ms: group[middle].ms, weight: count as f64 });
        rest = others;
    }
    points
}

fn default_work(model: &Model) -> f64 {
    let defaults = &model.defaults;
    let request = Request {
        prompt: String::new(),
        negative_prompt: String::new(),
        size: defaults.size,
        frames: defaults.frames,
        fps: defaults.fps,
        steps: defaults.steps,
        guidance: None,
        guidance_2: None,
        loras: Vec::new(),
        seed: 0,
        format: Default::default(),
        image: None,
        last_image: None,
        metadata: Default::default(),
    };
    request.work() as f64
}

fn bounded(ms: f64) -> u64 {
    ms.clamp(1.0, LONGEST_MS).round() as u64
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
    use proptest::prelude::*;
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
            guidance_2: None,
            loras: Vec::new(),
            seed: 0,
            format: Default::default(),
            image: None,
            last_image: None,
            metadata: Default::default(),
        }
    }

    fn model() -> ModelName {
        "testcard".parse().expect("a name")
    }

    fn estimates() -> Estimates {
        let pace = pace(None);
        Estimates(RwLock::new(HashMap::from([(model(), pace)])))
    }

    fn point(work: f64, ms: f64) -> Point {
        Point { work, ms, weight: 1.0 }
    }

    /// A model whose configuration says this of its default request, in work and milliseconds.
    fn pace(configured: Option<(f64, f64)>) -> Pace {
        let configured = configured.map(|(work, ms)| point(work, ms));
        let line = Line::proportional(&[configured.unwrap_or(point(100.0, 200.0))]);
        Pace { line, configured, seen: Vec::new(), next: 0 }
    }

    /// What is expected after these attempts, each in work and milliseconds.
    fn taught(mut pace: Pace, attempts: impl IntoIterator<Item = (f64, f64)>) -> Line {
        for (work, ms) in attempts {
            pace.learn(point(work, ms));
        }
        pace.line
    }

    #[track_caller]
    fn near(line: Line, work: f64, ms: f64) {
        let at = line.at(work);
        assert!((at / ms - 1.0).abs() < 0.01, "{at} ms instead of {ms} ms for {work}: {line:?}");
    }

    #[test]
    fn until_something_is_learned_an_estimate_grows_with_the_work() {
        let estimates = estimates();
        let (short, long) = (request(1), request(321));
        assert_eq!(estimates.estimate_ms(&model(), &short), 2 * short.work());
        assert_eq!(estimates.estimate_ms(&model(), &long), 2 * long.work());
    }

    #[test]
    fn the_newest_attempts_are_what_counts() {
        let estimates = estimates();
        let (short, long) = (request(5), request(321));
        for held in [7_000, 70_000] {
            for _ in 0..WINDOW {
                estimates.observe(&model(), &short, held);
                estimates.observe(&model(), &long, held * 2);
            }
            assert_eq!(estimates.estimate_ms(&model(), &short), held);
            assert_eq!(estimates.estimate_ms(&model(), &long), held * 2);
        }
    }

    #[test]
    fn one_attempt_is_in_proportion_unless_the_configuration_knows_better() {
        near(taught(pace(None), [(10.0, 500.0)]), 40.0, 2_000.0);
        // 500 ms for 10 and 1,400 for 100: 400 of it are fixed.
        let line = taught(pace(Some((100.0, 1_400.0))), [(10.0, 500.0)]);
        near(line, 10.0, 500.0);
        near(line, 1.0, 410.0);
        near(line, 1_000.0, 10_400.0);
        // What is seen is right, whatever was configured.
        for wrong in [(100.0, 1.0), (100.0, 1e9), (1.0, 1e9), (11.0, 1.0)] {
            near(taught(pace(Some(wrong)), [(10.0, 500.0)]), 10.0, 500.0);
        }
    }

    #[test]
    fn a_time_that_does_not_grow_with_the_work_is_learned_as_such() {
        let line = taught(pace(None), [(1.0, 300.0), (2_000.0, 300.0), (40.0, 300.0)]);
        near(line, 1.0, 300.0);
        near(line, 20_000.0, 300.0);
        // Even if the larger ones happen to be quicker.
        let line = taught(pace(None), [(1.0, 303.0), (2_000.0, 297.0)]);
        near(line, 20_000.0, 300.0);
    }

    #[test]
    fn a_test_card_is_known_after_two_sizes() {
        // 20 steps of 10 ms, 15 ms around it, and the encoder with 15 ms a frame of a megapixel.
        let card = |work: f64| 215.0 + work / 20.0 * 15.0;
        let line =
            taught(pace(Some((392.0, 1_000.0))), [1.0, 1.0, 392.0].map(|work| (work, card(work))));
        for work in [1.0, 40.0, 392.0, 13_000.0] {
            near(line, work, card(work));
        }
    }

    #[test]
    fn one_attempt_that_takes_far_too_long_moves_nothing() {
        let model = |work: f64| 1_000.0 + 20.0 * work;
        let works = [10.0, 100.0, 100.0, 1_000.0, 1_000.0, 1_000.0];
        for slow in 1..works.len() {
            let attempts = works.iter().enumerate();
            let attempts = attempts
                .map(|(n, &work)| (work, if n == slow { 40.0 * model(work) } else { model(work) }));
            let line = taught(pace(None), attempts);
            for work in works {
                near(line, work, model(work));
            }
        }
        // Nor the others' size much, if it is the only one of its own.
        let cold = (100.0, 40.0 * model(100.0));
        let line = taught(pace(None), [(10.0, model(10.0)); 3].into_iter().chain([cold]));
        assert!((line.at(10.0) / model(10.0) - 1.0).abs() < 0.05, "{line:?}");
    }

    proptest! {
        #[test]
        fn any_line_is_found(
            fixed in 0.0..60_000.0f64,
            pace_ms in 0.0..500.0f64,
            works in proptest::collection::vec(1.0..1e6f64, 1..WINDOW),
        ) {
            let truth = |work: f64| 1.0 + fixed + pace_ms * work;
            let line = taught(pace(None), works.iter().map(|&work| (work, truth(work))));
            prop_assert!(line.fixed_ms >= 0.0 && line.ms_per_work >= 0.0, "{:?}", line);
            let groups = medians(&works.iter().map(|&work| point(work, 1.0)).collect::<Vec<_>>());
            if groups.len() > 1 {
                for &work in &works {
                    prop_assert!((line.at(work) / truth(work) - 1.0).abs() < 0.01, "{:?}", line);
                }
            }
        }

        #[test]
        fn whatever_the_attempts_were_an_estimate_is_a_number(
            attempts in proptest::collection::vec((1.0..1e12f64, 1.0..1e12f64), 1..2 * WINDOW),
            configured in proptest::option::of((1.0..1e12f64, 1.0..1e12f64)),
            work in 1.0..1e12f64,
        ) {
            let line = taught(pace(configured), attempts);
            prop_assert!(line.at(work).is_finite() && line.at(work) >= 0.0, "{:?}", line);
            prop_assert!(line.at(2.0 * work) <= 2.0 * line.at(work) * 1.000_001, "{:?}", line);
        }
    }

    #[test]
    fn what_is_unknown_still_has_an_estimate() {
        let estimates = estimates();
        let other = "other".parse().expect("a name");
        estimates.observe(&other, &request(5), 10);
        assert_eq!(estimates.estimate_ms(&other, &request(5)), UNKNOWN_MS);
    }

    fn task(estimate_ms: u64) -> Task {
        let (tenant, pool) = ("default".parse().expect("a name"), "local".parse().expect("a name"));
        let id = TaskId::new(1, [1; 10]);
        let record = Record::new(id, tenant, pool, model(), request(5), Timestamp(1_000));
        Task::new(Record { estimate_ms, ..record })
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
