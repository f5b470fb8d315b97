//! How far a task is, as it happens: a bar on a terminal, a line a change elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rayreel_domain::wire::api::{EventBody, TaskBody};
use rayreel_domain::{State, TaskId};

use crate::out::Out;
use crate::text;

/// Shows one task.
#[derive(Debug)]
pub(crate) struct Progress {
    out: Out,
    id: TaskId,
    bar: Option<ProgressBar>,
    shown: Option<(State, u32)>,
    /// Why it waits, as it was told last.
    told: Option<String>,
}

impl Progress {
    pub(crate) fn new(out: Out, id: TaskId) -> Self {
        let bar = out.is_live().then(|| {
            let bar = ProgressBar::new(100);
            bar.set_style(waiting());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            out,
            id,
            bar,
            // Whoever has submitted it knows.
            shown: Some((State::Queued, 0)),
            told: None,
        }
    }

    /// A change, or progress, of the task.
    pub(crate) fn event(&mut self, event: &EventBody) {
        let change = (event.status, event.attempt);
        if self.shown != Some(change) {
            self.shown = Some(change);
            self.changed(event);
        }
        let (Some(bar), State::Running) = (&self.bar, event.status) else {
            return;
        };
        bar.set_position(event.progress.into());
        bar.set_message(match &event.stage {
            Some(stage) if stage.steps > 1 => {
                let name = text::one_line(&stage.stage, 20);
                format!("{name} {}/{}", stage.step, stage.steps)
            }
            Some(stage) => text::one_line(&stage.stage, 20),
            None => "starting".to_owned(),
        });
    }

    fn changed(&mut self, event: &EventBody) {
        let again = match event.reason {
            Some(reason) => format!(" again ({reason})"),
            None => String::new(),
        };
        let state = event.status.as_str().to_lowercase();
        let Some(bar) = &self.bar else {
            self.out.note(&format!("{} is {state}{again}", self.id));
            return;
        };
        match event.status {
            State::Queued => {
                bar.set_style(waiting());
                bar.set_message(format!("queued{again}"));
            }
            State::Running => {
                bar.set_style(running());
                bar.reset();
            }
            _ => bar.finish_and_clear(),
        }
    }

    /// What the server expects.
    pub(crate) fn expect(&mut self, task: &TaskBody) {
        if let Some(reason) = &task.waiting_reason {
            // The number of seconds until the next try is no news.
            let gist: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
            if self.told.as_ref() != Some(&gist) {
                // A line of its own: it may be longer than the bar, and its end says what to do.
                self.note(&format!("it waits: {}", text::one_line(reason, 1_000)));
                self.told = Some(gist);
            }
        }
        let Some(bar) = &self.bar else { return };
        if task.status == State::Running {
            let left = task.eta_seconds.map(text::duration);
            bar.set_prefix(left.map_or(String::new(), |left| format!(", about {left} left")));
            return;
        }
        let mut message = match task.queue_position {
            Some(0) | None => "queued".to_owned(),
            Some(before) => format!("queued, {before} before it"),
        };
        if let Some(eta) = task.eta_seconds.filter(|_| task.waiting_reason.is_none()) {
            message = format!("{message}, ready in about {}", text::duration(eta));
        }
        bar.set_message(message);
    }

    /// Something to say in between.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.out.note(text)),
            None => self.out.note(text),
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn waiting() -> ProgressStyle {
    style("{spinner} {wide_msg} {elapsed}")
}

fn running() -> ProgressStyle {
    style("{spinner} [{bar:30}] {pos:>3} %  {msg}  {elapsed}{prefix}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template is well formed")
        .progress_chars("=> ")
}
