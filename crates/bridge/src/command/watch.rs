//! What a program's output says about its work, and whether it still works at all.

use std::time::Duration;

use regex_lite::Regex;
use tokio::time::Instant;

use super::settings::Settings;
use crate::talk::Job;

/// Share of one processor below which a program does nothing: launchers that only wait for others
/// wake up now and then, too.
const IDLE: f64 = 0.05;

/// The longest line in which something is looked for, in bytes: matching takes time.
const MAX_LINE: usize = 1_000;

/// How many of the last lines may say that memory has run out: behind it come traces, those of other
/// ranks and of their launcher. A program that has gone on longer has helped itself.
const LAST_WORDS: u32 = 100;

/// Follows one run of a program.
pub(super) struct Watch<'a> {
    settings: &'a Settings,
    stage: String,
    step: u32,
    steps: u32,
    /// The worker has not been told of it yet.
    unsaid: bool,
    /// Lines since one that said that memory has run out, with itself.
    out_of_memory: Option<u32>,
    /// When the program last did something.
    alive: Instant,
    looked: Instant,
    processor_time: Option<Duration>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(settings: &'a Settings) -> Watch<'a> {
        let now = Instant::now();
        Watch {
            settings,
            // Whoever says nothing of steps is at one that takes all the time.
            stage: "run".into(),
            step: 0,
            steps: 1,
            unsaid: true,
            out_of_memory: None,
            alive: now,
            looked: now,
            processor_time: None,
        }
    }

    /// Takes a line of the output.
    pub(super) fn hear(&mut self, line: &str) {
        self.alive = Instant::now();
        let line = &line[..line.floor_char_boundary(MAX_LINE)];
        self.out_of_memory = if self.settings.out_of_memory.is_match(line) {
            Some(1)
        } else {
            self.out_of_memory.map(|lines| lines.saturating_add(1))
        };
        if let Some(regex) = &self.settings.progress
            && let Some((stage, step, steps)) = progress(regex, line)
        {
            // Several processes may each tell their own progress: it doesn't go back and forth.
            let same = stage == self.stage && steps == self.steps;
            if !(same && step <= self.step) {
                self.unsaid = true;
                (self.stage, self.step, self.steps) = (stage.to_owned(), step, steps);
            }
        }
    }

    /// Takes the processor time that has been used so far. The worker hears that this engine lives.
    pub(super) fn look(&mut self, processor_time: Option<Duration>) {
        self.unsaid = true;
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.looked, now);
        let before = std::mem::replace(&mut self.processor_time, processor_time);
        let works = match (before, processor_time) {
            (Some(before), Some(after)) => {
                // Less than before: one of its processes has ended, which is something, too.
                after < before || (after - before).as_secs_f64() >= IDLE * passed.as_secs_f64()
            }
            _ => false,
        };
        if works && !passed.is_zero() {
            self.alive = now;
        }
    }

    pub(super) fn is_silent(&self, limit: Duration) -> bool {
        self.alive.elapsed() >= limit
    }

    /// Did its last words say that memory has run out?
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.out_of_memory.is_some_and(|lines| lines <= LAST_WORDS)
    }

    pub(super) fn is_unsaid(&self) -> bool {
        self.unsaid
    }

    pub(super) fn report(&mut self, job: &Job<'_>) {
        self.unsaid &= !job.progress(&self.stage, self.step, self.steps);
    }
}

/// Stage, step and steps of a line, if it has them.
fn progress<'a>(regex: &Regex, line: &'a str) -> Option<(&'a str, u32, u32)> {
    let found = regex.captures(line)?;
    let number = |name| found.name(name)?.as_str().parse::<u32>().ok();
    let (step, steps) = (number("step")?, number("steps")?);
    let stage = found.name("stage").map_or("denoise", |stage| stage.as_str().trim());
    (steps > 0).then_some((stage, step.min(steps), steps))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_writes_or_computes_is_not_silent() {
        let settings = json!({"run": ["p", "--prompt={prompt}"]});
        let settings = Settings::read(settings.as_object().unwrap()).unwrap();
        let limit = Duration::from_secs(1);
        let ms = Duration::from_millis;

        let mut writes = Watch::new(&settings);
        let mut computes = Watch::new(&settings);
        let mut idles = Watch::new(&settings);
        let mut used = Duration::ZERO;
        for _ in 0..20 {
            advance(ms(250)).await;
            used += ms(13);
            writes.hear("step");
            writes.look(Some(Duration::ZERO));
            computes.look(Some(used));
            assert!(!writes.is_silent(limit) && !computes.is_silent(limit));
            // Launchers wake up now and then.
            idles.look(Some(used / 13));
        }
        assert!(idles.is_silent(limit));

        advance(limit).await;
        assert!(writes.is_silent(limit) && computes.is_silent(limit), "neither any more");
        // Who ends takes its time along, which is something that happens.
        computes.look(Some(used / 2));
        assert!(!computes.is_silent(limit));
    }
}
