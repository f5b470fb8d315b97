//! The measures, each in a file of its own, each with fresh servers.

mod claims;
mod polls;
mod queue;
mod start;
mod streams;
mod submit;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::http::Request;
use crate::load::{End, Load, TaskHex, mix, write_number};
use crate::machine::Usage;
use crate::report::{Cell, Report};
use crate::server::{Server, Site};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Measure {
    /// Durable submits a second
    Submit,
    /// From the submit to the start of the engine, and time lost on a video
    Start,
    /// Status polls a second
    Polls,
    /// Open event streams
    Streams,
    /// Claims a second, and tasks a second through one worker
    Claims,
    /// Memory with a long queue
    Memory,
    /// From a kill to the first claim, with a long queue
    Restart,
}

/// What every measure works with.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) binary: PathBuf,
    pub(crate) data: PathBuf,
    /// Address of a Redis, if not SQLite.
    pub(crate) store: Option<String>,
    pub(crate) quick: bool,
    pub(crate) patience: Duration,
}

impl Bench {
    fn site(&self) -> anyhow::Result<Site> {
        Site::new(&self.binary, &self.data, self.store.as_deref())
    }

    /// Waits until nobody else uses the machine, or patience is over.
    async fn quiet(&self) {
        let start = Instant::now();
        while start.elapsed() < self.patience {
            let usage = Usage::now();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if usage.others_since() < 0.05 {
                return;
            }
        }
    }

    /// One of two numbers: for a full run and for a quick one.
    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

/// Runs those that are asked for; all if none is named.
pub(crate) async fn all(
    bench: &Bench,
    only: &[Measure],
    report: &mut Report,
) -> anyhow::Result<()> {
    let wanted = |measure: Measure| only.is_empty() || only.contains(&measure);
    for measure in Measure::value_variants().iter().copied().filter(|m| wanted(*m)) {
        // The long queue is made once for both.
        if measure == Measure::Restart && wanted(Measure::Memory) {
            continue;
        }
        eprintln!("{measure:?}");
        match measure {
            Measure::Submit => submit::measure(bench, report).await?,
            Measure::Start => start::measure(bench, report).await?,
            Measure::Polls => polls::measure(bench, report).await?,
            Measure::Streams => streams::measure(bench, report).await?,
            Measure::Claims => claims::measure(bench, report).await?,
            Measure::Memory | Measure::Restart => {
                let (memory, restart) = (wanted(Measure::Memory), wanted(Measure::Restart));
                queue::measure(bench, report, memory, restart).await?;
            }
        }
    }
    Ok(())
}

/// Where the number of the task goes.
const MARK: &str = "########";

/// A submit as it comes from a user, with the task's number at the end of its prompt.
fn submit_request(model: &str, steps: u32) -> Request {
    submit_request_with(model, steps, None)
}

/// The same, with an API key.
fn submit_request_with(model: &str, steps: u32, key: Option<&str>) -> Request {
    let prompt = format!(
        "A red fox runs through deep snow at dawn, low winter sun behind birch trees, powder \
         flying from its paws, slow tracking shot at eye level, shallow depth of field, film \
         grain, muted colours, take {MARK}"
    );
    let body = serde_json::json!({
        "model": model, "prompt": prompt, "negative_prompt": "blurry, watermark, text",
        "size": "832x480", "frames": 49, "steps": steps, "metadata": {"client": "bench"},
    });
    let path = rayreel_domain::wire::api::TASKS_PATH;
    Request::post(path, key, body.to_string().as_bytes()).with_hole(MARK)
}

/// Submits so many tasks, and answers their ids.
async fn submit_tasks(server: &Server, count: u64) -> anyhow::Result<Vec<TaskHex>> {
    let load = Load {
        connections: 64,
        end: End::Requests(count),
        request: submit_request("instant", 20),
        fill: write_number,
        expect: 202,
        keep: true,
        pace: None,
    };
    Ok(load.run(server.address).await?.tasks)
}

/// GET of one of these tasks after the other, in no order.
fn poll_load(
    tasks: Vec<TaskHex>,
    connections: usize,
    end: End,
) -> Load<impl Fn(u64, &mut [u8]) + Clone + Send + 'static> {
    let tasks: std::sync::Arc<[TaskHex]> = tasks.into();
    let mark = "#".repeat(32);
    let path = format!("{}/task_{mark}", rayreel_domain::wire::api::TASKS_PATH);
    let request = Request::get(&path).with_hole(&mark);
    let fill = move |n: u64, hole: &mut [u8]| {
        hole.copy_from_slice(&tasks[(mix(n) % tasks.len() as u64) as usize]);
    };
    Load { connections, end, request, fill, expect: 200, keep: false, pace: None }
}

/// Name of the column that says how much of the machine others used: figures are worth less then.
const OTHERS: &str = "others used, %";

fn others(since: Usage) -> Cell {
    Cell::Number((since.others_since() * 100.0).round())
}
