//! What the end of an attempt says of the engine that made it, and what becomes of its worker.

use rayreel_domain::lease::Fence;
use rayreel_domain::task::Task;

use super::rows::{Barred, FailedAttempt, FenceText, WorkerRecord};

/// Failures on so many different tasks of a model in a row quarantine it on the worker.
const QUARANTINE_AFTER: usize = 3;

/// What the end of an attempt says of the engine that made it.
pub(super) enum Verdict {
    Works,
    Broken(String),
    Neither,
}

/// What becomes of the worker's record, and the attempts that are forgiven.
pub(super) struct Judged {
    pub(super) worker: WorkerRecord,
    pub(super) excused: Vec<FenceText>,
}

/// Keeps the record of failures in a row. At the third of a model, the model is quarantined on this
/// worker, and they are excused. None if nothing changes.
pub(super) fn judge(
    mut worker: WorkerRecord,
    task: &Task,
    fence: Fence,
    verdict: Verdict,
    mono: u64,
) -> Option<Judged> {
    let model = task.model.as_str();
    let message = match verdict {
        Verdict::Neither => return None,
        Verdict::Works => {
            let before = worker.failures.len();
            worker.failures.retain(|failed| failed.model != model);
            let changed = worker.failures.len() != before;
            return changed.then_some(Judged { worker, excused: Vec::new() });
        }
        Verdict::Broken(message) => message,
    };
    let FenceText { task: id, attempt, nonce } = fence.into();
    worker.failures.retain(|failed| failed.model != model || failed.task != id);
    worker.failures.push(FailedAttempt { model: model.to_owned(), task: id, attempt, nonce });
    let known = worker.quarantine.iter().any(|barred| barred.model == model);
    let count = worker.failures.iter().filter(|failed| failed.model == model).count();
    if known || count < QUARANTINE_AFTER {
        return Some(Judged { worker, excused: Vec::new() });
    }
    tracing::warn!(
        worker = worker.name,
        model,
        message,
        "quarantined: the engine failed on {QUARANTINE_AFTER} tasks in a row"
    );
    let (of_it, others) = worker.failures.into_iter().partition(|failed| failed.model == model);
    worker.failures = others;
    let barred = Barred { model: model.to_owned(), message, failed_tests: 0, due: mono };
    worker.quarantine.push(barred);
    let excused = |failed: FailedAttempt| FenceText {
        task: failed.task,
        attempt: failed.attempt,
        nonce: failed.nonce,
    };
    let of_it: Vec<FailedAttempt> = of_it;
    Some(Judged { worker, excused: of_it.into_iter().map(excused).collect() })
}
