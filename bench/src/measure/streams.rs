//! What open event streams cost, and whether an event reaches all of them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rayreel_domain::wire::api::TASKS_PATH;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Bench, OTHERS, others, submit_tasks};
use crate::http::{Connection, Events, Request};
use crate::load::TaskHex;
use crate::machine::Usage;
use crate::report::{Report, Section, Target};
use crate::server::Server;

/// Opened at once.
const LANES: usize = 32;

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let columns = [
        "streams",
        "on tasks",
        "server MB before",
        "server MB with them",
        "kB/stream",
        "opened/s",
        "the event reached",
        "the last after, ms",
        OTHERS,
    ];
    let mut section = Section::new("Event streams", &columns);
    let streams = bench.pick(10_000, 2_000);
    for tasks in [streams, 1] {
        bench.quiet().await;
        let usage = Usage::now();
        let site = bench.site()?;
        let server = site.serve().await?;
        let tasks = submit_tasks(&server, tasks as u64).await?;
        let before = server.memory()?.resident;
        let start = Instant::now();
        let open = open(&server, &tasks, streams).await?;
        let rate = streams as f64 / start.elapsed().as_secs_f64();
        let with = server.memory()?.resident;
        let (reached, last) = cancel_all(&server, &tasks, open).await?;
        section.row([
            (streams as f64).into(),
            (tasks.len() as f64).into(),
            before.into(),
            with.into(),
            ((with - before) * 1e3 / streams as f64).into(),
            rate.into(),
            (reached as f64).into(),
            last.into(),
            others(usage),
        ]);
        ensure!(reached == streams, "{} streams did not get the event", streams - reached);
        if tasks.len() > 1 && !bench.quick {
            let name = "memory that 10,000 open event streams take";
            report.goal(name, "MB", Target::Below(150.0), with - before);
        }
    }
    section.about(
        "Each stream has got its first event before memory is read (resident, the whole server). \
         Then every task is cancelled, one after the other; the time is from the first cancel to \
         the last stream that tells.",
    );
    report.add(section);
    Ok(())
}

/// Opens streams, one task after the other, and waits for the first event of each.
async fn open(server: &Server, tasks: &[TaskHex], streams: usize) -> anyhow::Result<Vec<Events>> {
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let address = server.address;
        let tasks: Vec<TaskHex> =
            (lane..streams).step_by(LANES).map(|n| tasks[n % tasks.len()]).collect();
        lanes.spawn(async move {
            let mut open = Vec::with_capacity(tasks.len());
            for task in tasks {
                let path = format!("{TASKS_PATH}/task_{}/events", String::from_utf8_lossy(&task));
                let connection = Connection::open(address).await?;
                let mut events = connection.stream(&Request::get(&path)).await?;
                events.wait_for("QUEUED").await?;
                open.push(events);
            }
            anyhow::Ok(open)
        });
    }
    let mut open = Vec::with_capacity(streams);
    while let Some(lane) = lanes.join_next().await {
        open.append(&mut lane?.context("a stream could not be opened")?);
    }
    Ok(open)
}

/// Cancels every task; answers how many streams told so, and after how many milliseconds the last.
async fn cancel_all(
    server: &Server,
    tasks: &[TaskHex],
    open: Vec<Events>,
) -> anyhow::Result<(usize, f64)> {
    let (told, mut telling) = mpsc::unbounded_channel();
    for mut events in open {
        let told = told.clone();
        tokio::spawn(async move {
            if events.wait_for("CANCELLED").await.is_ok() {
                // Nobody counts any more if this fails.
                let _ = told.send(Instant::now());
            }
        });
    }
    drop(told);
    let start = Instant::now();
    let mut connection = Connection::open(server.address).await?;
    for task in tasks {
        let path = format!("{TASKS_PATH}/task_{}/cancel", String::from_utf8_lossy(task));
        connection.call(&Request::post(&path, None, b"")).await?.expect(200)?;
    }
    let (mut reached, mut last) = (0, start);
    while let Ok(Some(at)) = timeout(Duration::from_secs(30), telling.recv()).await {
        reached += 1;
        last = last.max(at);
    }
    Ok((reached, (last - start).as_secs_f64() * 1e3))
}
