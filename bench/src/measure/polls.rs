//! How many status polls a second the server answers.

use std::time::Duration;

use super::{Bench, OTHERS, others, poll_load, submit_tasks};
use crate::fleet::{Ending, drain};
use crate::load::{End, TaskHex};
use crate::machine::{Usage, own_cpu_time};
use crate::report::{Report, Section, Target};
use crate::server::Server;

const CONNECTIONS: usize = 64;

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let columns = [
        "tasks asked for",
        "polls/s",
        "p50 ms",
        "p99 ms",
        "max ms",
        "server CPU µs/poll",
        "load generator CPU µs/poll",
        OTHERS,
    ];
    let mut section = Section::new("Status polls", &columns);
    let site = bench.site()?;
    let server = site.serve().await?;

    let few = submit_tasks(&server, 1_000).await?;
    poll(bench, &server, "1,000 queued", few.clone(), &mut section).await?;
    drain(&server, 4, Ending::Finish).await?;
    let rate = poll(bench, &server, "1,000 succeeded", few, &mut section).await?;
    report.goal("status polls of succeeded tasks", "/s", Target::AtLeast(50_000.0), rate);
    let many = submit_tasks(&server, bench.pick(100_000, 10_000)).await?;
    let name = bench.pick("100,000 queued", "10,000 queued");
    let rate = poll(bench, &server, name, many, &mut section).await?;
    report.goal("status polls of tasks in a long queue", "/s", Target::AtLeast(50_000.0), rate);

    section.about(format!(
        "GET of one task after the other in random order, over {CONNECTIONS} connections."
    ));
    report.add(section);
    Ok(())
}

async fn poll(
    bench: &Bench,
    server: &Server,
    name: &str,
    tasks: Vec<TaskHex>,
    section: &mut Section,
) -> anyhow::Result<f64> {
    let load = |end| poll_load(tasks.clone(), CONNECTIONS, end);
    load(End::Requests(2_000)).run(server.address).await?;
    bench.quiet().await;
    let usage = Usage::now();
    let (own, cpu) = (own_cpu_time(), server.cpu_time());
    let run = load(End::After(Duration::from_secs(bench.pick(8, 3)))).run(server.address).await?;
    let count = run.times.len() as f64;
    let cpu = (server.cpu_time() - cpu).as_secs_f64() * 1e6 / count;
    let own = (own_cpu_time() - own).as_secs_f64() * 1e6 / count;
    let (p50, p99, max) = (run.times.p50(), run.times.p99(), run.times.max());
    let rate = run.per_second();
    section.row([
        name.into(),
        rate.into(),
        p50.into(),
        p99.into(),
        max.into(),
        cpu.into(),
        own.into(),
        others(usage),
    ]);
    Ok(rate)
}
