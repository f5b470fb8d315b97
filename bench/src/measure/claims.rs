//! How fast the queue gives work to workers, and how fast one real worker goes through it.

use std::time::Instant;

use super::start::through_one_worker;
use super::{Bench, OTHERS, others, submit_tasks};
use crate::fleet::{Ending, drain};
use crate::machine::Usage;
use crate::report::{Report, Section};

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let columns = ["workers", "each task", "tasks/s", "server CPU µs/task", OTHERS];
    let mut section = Section::new("Tasks through workers", &columns);
    let lives = [
        (Ending::Fail, "claim, beat, fail", bench.pick(20_000, 2_000)),
        (Ending::Finish, "claim, beat, upload of 1 KiB, commit", bench.pick(4_000, 500)),
    ];
    for (ending, name, count) in lives {
        for workers in [1, 8, 32] {
            bench.quiet().await;
            let site = bench.site()?;
            let server = site.serve().await?;
            // One worker alone waits for the disk at each step.
            let count = if workers == 1 { count / 4 } else { count };
            submit_tasks(&server, count).await?;
            let usage = Usage::now();
            let (cpu, start) = (server.cpu_time(), Instant::now());
            let done = drain(&server, workers, ending).await? as f64;
            let rate = done / start.elapsed().as_secs_f64();
            anyhow::ensure!(done == count as f64, "{done} of {count} tasks were done");
            let cpu = (server.cpu_time() - cpu).as_secs_f64() * 1e6 / done;
            section.row([
                (workers as f64).into(),
                name.into(),
                rate.into(),
                cpu.into(),
                others(usage),
            ]);
        }
    }
    bench.quiet().await;
    let usage = Usage::now();
    let rate = through_one_worker(bench).await?;
    section.row([
        "1 real".into(),
        "all of it, with an engine process that does nothing".into(),
        rate.into(),
        f64::NAN.into(),
        others(usage),
    ]);
    section.about(
        "Each step is durable before its answer. The workers of all rows but the last are \
         connections that speak the worker API and have no engine.",
    );
    report.add(section);
    Ok(())
}
