//! Tasks in words, for people.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use rayreel_domain::State;
use rayreel_domain::key::Scope;
use rayreel_domain::wire::admin::{KeyBody, KeyList};
use rayreel_domain::wire::api::{ResultBody, TaskBody, TaskList};

/// Text of others on one line of a terminal: no control characters, and not too long.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.chars().take(most).map(clean).collect();
    if text.chars().nth(most).is_some() {
        line.pop();
        line.push('…');
    }
    line
}

/// `300 kB`.
pub(crate) fn bytes(count: u64) -> String {
    let scaled = |unit: f64| {
        let value = count as f64 / unit;
        if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
    };
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{} kB", scaled(1e3)),
        1_000_000..1_000_000_000 => format!("{} MB", scaled(1e6)),
        _ => format!("{} GB", scaled(1e9)),
    }
}

/// `49 s`, `3 min`, `2 h`, `5 d`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

pub(crate) fn age(since: u64) -> String {
    duration(now().saturating_sub(since))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// `832x480, 49 frames, 3.1 s, 300 kB`, and what it is not.
pub(crate) fn result(result: &ResultBody) -> String {
    let mut text = format!("({}x{}", result.width, result.height);
    if result.frames > 1 {
        let seconds = f64::from(result.frames) / f64::from(result.fps.max(1));
        _ = write!(text, ", {} frames, {seconds:.1} s", result.frames);
    }
    _ = write!(text, ", {})", bytes(result.bytes));
    if result.test_pattern {
        text.push_str(" – test pattern");
    }
    text
}

/// Everything about a task.
pub(crate) fn task(task: &TaskBody) -> String {
    let request = &task.request;
    let mut text = format!("{}  {}", task.id, task.status);
    if task.status == State::Running {
        _ = write!(text, "  {} %", task.progress);
    }
    let mut line = |name: &str, value: String| _ = write!(text, "\n  {name:<9} {value}");
    line("prompt", one_line(&request.prompt, 200));
    if !request.negative_prompt.is_empty() {
        line("not", one_line(&request.negative_prompt, 200));
    }
    line("model", task.model.clone());
    let frames = match request.frames {
        1 => String::new(),
        frames => format!(", {frames} frames at {} a second", request.fps),
    };
    let guidance = request.guidance.map_or(String::new(), |scale| format!(", guidance {scale}"));
    let second = request.guidance_2.map_or(String::new(), |scale| format!(", guidance 2 {scale}"));
    let loras = request.loras.iter().map(|lora| format!(", lora {}={}", lora.name, lora.scale));
    let loras: String = loras.collect();
    line(
        "request",
        format!(
            "{}{frames}, {} steps{guidance}{second}{loras}, seed {}",
            request.size, request.steps, request.seed
        ),
    );
    line("created", format!("{} ago", age(task.created_at)));
    if task.status == State::Queued {
        let before = task.queue_position.map_or("…".to_owned(), |before| before.to_string());
        line("before it", before);
    }
    if let Some(eta) = task.eta_seconds {
        line("ready in", format!("about {}", duration(eta)));
    }
    if let Some(reason) = &task.waiting_reason {
        line("waits", one_line(reason, 500));
    }
    if let (Some(started), Some(finished)) = (task.started_at, task.finished_at) {
        line("took", duration(finished.saturating_sub(started)));
    }
    for attempt in &task.attempts {
        let ended = match (&attempt.outcome, &attempt.error) {
            (Some(_), Some(error)) => format!("{}: {}", error.code, one_line(&error.message, 500)),
            (Some(outcome), None) => format!("{outcome:?}").to_lowercase(),
            (None, _) => "running".to_owned(),
        };
        line("attempt", format!("{} on {}: {ended}", attempt.attempt, attempt.worker));
    }
    if let Some(error) = &task.error {
        line("error", format!("{}: {}", error.code, one_line(&error.message, 500)));
    }
    if let Some(body) = &task.result {
        line("result", format!("{} {}", body.media_type, result(body)));
        line("sha256", body.sha256.clone());
    }
    text
}

/// A page of tasks as a table.
pub(crate) fn table(list: &TaskList, head: bool) -> String {
    let mut text = String::new();
    if head {
        _ = writeln!(
            text,
            "{:<37}  {:<9}  {:>4}  {:>6}  {:<16}  PROMPT",
            "ID", "STATE", "%", "AGE", "MODEL"
        );
    }
    for task in &list.data {
        _ = writeln!(
            text,
            "{:<37}  {:<9}  {:>4}  {:>6}  {:<16}  {}",
            task.id,
            task.status.as_str(),
            task.progress,
            age(task.created_at),
            task.model,
            one_line(&task.request.prompt, 60)
        );
    }
    text
}

/// What a key is good for.
pub(crate) fn scopes(key: &KeyBody) -> String {
    let scope = |scope: &Scope| match (scope, &key.pool) {
        (Scope::Worker, Some(pool)) => format!("worker of {pool}"),
        _ => scope.to_string(),
    };
    key.scopes.iter().map(scope).collect::<Vec<_>>().join(", ")
}

/// Keys as a table.
pub(crate) fn keys(list: &KeyList) -> String {
    let mut text = String::from(
        "ID            TENANT            SCOPES                   CREATED  STATE    NAME\n",
    );
    for key in &list.data {
        let state = match (key.revoked_at, key.expires_at) {
            (Some(_), _) => "revoked",
            (None, Some(at)) if at <= now() => "expired",
            _ => "live",
        };
        _ = writeln!(
            text,
            "{:<12}  {:<16}  {:<23}  {:>7}  {state:<7}  {}",
            key.id,
            key.tenant,
            scopes(key),
            age(key.created_at),
            one_line(&key.name, 60)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (300_400, "300 kB"),
            (1_500_000, "1.5 MB"),
            (12_000_000_000, "12 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (200_000, "2 d")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn a_prompt_can_not_write_to_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2J\nfox", 60), "a [2J fox");
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("狐狸在雪地里奔跑", 4), "狐狸在…");
    }

    #[test]
    fn a_result_says_what_it_is() {
        let mut body = ResultBody {
            url: String::new(),
            thumbnail_url: None,
            media_type: "video/mp4".to_owned(),
            sha256: String::new(),
            bytes: 300_000,
            width: 832,
            height: 480,
            frames: 49,
            fps: 16,
            test_pattern: true,
        };
        assert_eq!(result(&body), "(832x480, 49 frames, 3.1 s, 300 kB) – test pattern");
        body.frames = 1;
        body.test_pattern = false;
        assert_eq!(result(&body), "(832x480, 300 kB)");
    }
}
