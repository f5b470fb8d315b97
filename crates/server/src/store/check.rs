//! What must hold of every single task, wherever it is stored.

use rayreel_domain::task::{Outcome, State, Task};

/// Says what is wrong with a task.
pub(super) fn task(task: &Task, fault: &mut impl FnMut(&str)) {
    if (task.state == State::Running) != task.lease.is_some() {
        fault("it runs without a lease, or has one and does not run");
    }
    if task.state.is_terminal() != task.finished_at.is_some() {
        fault("it has ended without a time, or has a time and has not ended");
    }
    if task.state == State::Succeeded
        && (task.outputs.is_empty() || task.outputs.iter().any(|o| o.sha256.len() != 64))
    {
        fault("it has succeeded without files and checksums");
    }
    if !task.attempts.iter().map(|a| a.number).is_sorted_by(|a, b| a < b)
        || task.attempts.last().is_some_and(|a| a.number > task.attempt)
    {
        fault("its attempts do not rise");
    }
    let ends = task.attempts.iter().filter(|a| a.outcome == Some(Outcome::Succeeded)).count();
    if ends != usize::from(task.state == State::Succeeded) {
        fault("it has not exactly one successful attempt, or has one and has not succeeded");
    }
    if !task.history.is_sorted_by(|a, b| a.seq + 1 == b.seq)
        || task.history.last().map(|c| c.state) != Some(task.state)
        || task.history.iter().rev().skip(1).any(|c| c.state.is_terminal())
    {
        fault("its history does not lead to its state");
    }
}
