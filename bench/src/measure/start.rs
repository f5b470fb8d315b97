//! How long a task waits for a warm worker, and how much time the control plane adds to a video.

use std::time::Duration;

use anyhow::ensure;
use rayreel_domain::wire::api::TASKS_PATH;

use super::{Bench, MARK, OTHERS, others, poll_load, submit_request, submit_tasks};
use crate::engine::Witness;
use crate::http::{Connection, Request};
use crate::load::{End, Load, TaskHex, Times, mix, task_hex, write_number};
use crate::machine::{Usage, monotonic_ns};
use crate::report::{Report, Section, Target, number};
use crate::server::{Server, Worker};

/// Polls a second in the background of the second row.
const POLLS: u32 = 10_000;

/// A server, its only worker, and the ear at the engine.
struct Line {
    connection: Connection,
    witness: Witness,
    worker: Worker,
    /// Number of the newest task.
    number: u64,
}

/// When things happened to one task, in nanoseconds of the machine's clock.
struct Trip {
    task: TaskHex,
    number: u64,
    sent: u64,
    answered: u64,
    started: u64,
}

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let site = bench.site()?;
    let witness = Witness::listen(&site.witness())?;
    let server = site.serve().await?;
    let mut line = Line {
        connection: Connection::open(server.address).await?,
        witness,
        worker: site.work(&server)?,
        number: 0,
    };
    starts(bench, &server, &mut line, report).await?;
    lost(bench, &server, &mut line, report).await?;
    line.worker.stop().await?;
    server.stop().await
}

async fn starts(
    bench: &Bench,
    server: &Server,
    line: &mut Line,
    report: &mut Report,
) -> anyhow::Result<()> {
    let columns = [
        "meanwhile",
        "tasks",
        "p50 ms",
        "p99 ms",
        "max ms",
        "of it until the POST is answered, p50 ms",
        OTHERS,
    ];
    let mut section = Section::new("From the submit to the start of the engine", &columns);
    let count = bench.pick(1_000, 100);
    line.quiet(bench, server).await?;
    // The first one starts the engine.
    line.several(20).await?;
    let usage = Usage::now();
    let trips = line.several(count).await?;
    let (p50, p99) = row("nothing", trips, usage, &mut section);
    report.goal("queued → engine starts, warm, p50", "ms", Target::Below(3.0), p50);
    report.goal("queued → engine starts, warm, p99", "ms", Target::Below(15.0), p99);

    let ids = line.several(20).await?.iter().map(|trip| trip.task).collect();
    let polls = poll_load(ids, 16, End::Requests(u64::MAX));
    line.quiet(bench, server).await?;
    let polls = tokio::spawn(Load { pace: Some(POLLS), ..polls }.run(server.address));
    let usage = Usage::now();
    let trips = line.several(count).await?;
    row(&format!("{} polls/s", number(f64::from(POLLS))), trips, usage, &mut section);
    ensure!(!polls.is_finished(), "the polls ended: {:?}", polls.await?.err());
    polls.abort();

    section.about(
        "One task after the other through a real worker and a real engine process, which notes \
         when it reads the order; counted from before the POST is sent.",
    );
    report.add(section);
    Ok(())
}

fn row(name: &str, trips: Vec<Trip>, usage: Usage, section: &mut Section) -> (f64, f64) {
    let times = |of: fn(&Trip) -> u64| Times::new(trips.iter().map(of).collect());
    let waited = times(|trip| trip.started - trip.sent);
    let answered = times(|trip| trip.answered - trip.sent);
    section.row([
        name.into(),
        (waited.len() as f64).into(),
        waited.p50().into(),
        waited.p99().into(),
        waited.max().into(),
        answered.p50().into(),
        others(usage),
    ]);
    (waited.p50(), waited.p99())
}

async fn lost(
    bench: &Bench,
    server: &Server,
    line: &mut Line,
    report: &mut Report,
) -> anyhow::Result<()> {
    let columns = [
        "videos",
        "from submit to success, s",
        "lost ms, median",
        "of it before the engine, ms",
        "after it, ms",
        "lost ms, most",
        "lost %, median",
        OTHERS,
    ];
    let mut section = Section::new("Time lost on a video of 40 steps", &columns);
    let (mut totals, mut before, mut after) = (Vec::new(), Vec::new(), Vec::new());
    line.quiet(bench, server).await?;
    let usage = Usage::now();
    // One more than counts: the first one loads the model.
    for turn in 0..=bench.pick(10, 2) {
        let trip = line.submit("video", 40).await?;
        let path = format!("{TASKS_PATH}/task_{}/events", String::from_utf8_lossy(&trip.task));
        let events = Connection::open(server.address).await?;
        let mut events = events.stream(&Request::get(&path)).await?;
        events.wait_for("SUCCEEDED").await?;
        let succeeded = monotonic_ns();
        let ended = line.witness.wait_for(false, trip.number).await?;
        if turn > 0 {
            totals.push(succeeded - trip.sent);
            before.push(trip.started - trip.sent);
            after.push(succeeded - ended);
        }
        line.settle().await;
    }
    let losses = Times::new(before.iter().zip(&after).map(|(a, b)| a + b).collect());
    let (total, before, after) = (Times::new(totals), Times::new(before), Times::new(after));
    let part = losses.p50() / total.p50() * 100.0;
    section.row([
        (losses.len() as f64).into(),
        (total.p50() / 1e3).into(),
        losses.p50().into(),
        before.p50().into(),
        after.p50().into(),
        losses.max().into(),
        part.into(),
        others(usage),
    ]);
    report.goal("lost by the control plane on 40 steps of 100 ms", "%", Target::Below(0.1), part);
    section.about(
        "Steps of 100 ms and a file of 2 MB, which is checksummed, uploaded and synced; all that \
         is not the engine's counts as lost. A real step takes seconds, the loss stays.",
    );
    report.add(section);
    Ok(())
}

impl Line {
    /// Waits for a quiet moment; the server may have closed an idle connection by then.
    async fn quiet(&mut self, bench: &Bench, server: &Server) -> anyhow::Result<()> {
        bench.quiet().await;
        self.connection = Connection::open(server.address).await?;
        Ok(())
    }

    /// Submits a task and waits until the engine has started it.
    async fn submit(&mut self, model: &str, steps: u32) -> anyhow::Result<Trip> {
        self.worker.check()?;
        self.number += 1;
        let number = self.number;
        let mut request = submit_request(model, steps);
        debug_assert_eq!(request.hole().len(), MARK.len());
        write_number(number, request.hole());
        let sent = monotonic_ns();
        let answer = self.connection.call(&request).await?;
        let answered = monotonic_ns();
        let task = task_hex(answer.expect(202)?)?;
        let started = self.witness.wait_for(true, number).await?;
        Ok(Trip { task, number, sent, answered, started })
    }

    /// Some tasks, each after the one before has succeeded and the worker waits again.
    async fn several(&mut self, count: u64) -> anyhow::Result<Vec<Trip>> {
        let mut trips = Vec::new();
        for _ in 0..count {
            let trip = self.submit("instant", 1).await?;
            let path = format!("{TASKS_PATH}/task_{}", String::from_utf8_lossy(&trip.task));
            let poll = Request::get(&path);
            loop {
                let answer = self.connection.call(&poll).await?;
                if crate::http::find(answer.expect(200)?, b"\"SUCCEEDED\"").is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            trips.push(trip);
            self.settle().await;
        }
        Ok(trips)
    }

    /// A user's pause, never the same: the worker is back at its claim by then.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_micros(10_000 + mix(self.number) % 10_000)).await;
    }
}

/// Tasks a second through one worker and an engine that does nothing.
pub(super) async fn through_one_worker(bench: &Bench) -> anyhow::Result<f64> {
    let site = bench.site()?;
    let mut witness = Witness::listen(&site.witness())?;
    let server = site.serve().await?;
    let count = bench.pick(1_000, 100);
    submit_tasks(&server, count).await?;
    let worker = site.work(&server)?;
    let mut starts = Vec::new();
    while starts.len() < count as usize {
        let event = witness.next().await?;
        if event.started {
            starts.push(event.ns);
        }
    }
    worker.stop().await?;
    server.stop().await?;
    let (first, last) = (starts[0], starts[starts.len() - 1]);
    Ok((count - 1) as f64 / ((last - first) as f64 / 1e9))
}
