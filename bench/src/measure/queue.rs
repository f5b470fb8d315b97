//! What a long queue costs: memory, disk, and time until the first claim after a kill.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Bench, OTHERS, others, submit_tasks};
use crate::fleet::FakeWorker;
use crate::machine::Usage;
use crate::report::{Report, Section, Target, number};
use crate::server::{Memory, Server, Site};

pub(super) async fn measure(
    bench: &Bench,
    report: &mut Report,
    memory: bool,
    restart: bool,
) -> anyhow::Result<()> {
    bench.quiet().await;
    let usage = Usage::now();
    let site = bench.site()?;
    let server = site.serve().await?;
    let columns = [
        "queued tasks",
        "server MB",
        "of it anonymous",
        "peak MB",
        "database MB",
        "submits/s on the way",
        OTHERS,
    ];
    let mut section = Section::new("Memory", &columns);
    let idle = settled(&server).await?;
    show(&mut section, 0, idle, &site, f64::NAN, usage);
    let long = bench.pick(1_000_000, 50_000);
    let mut queued = 0;
    let mut most = 0.0f64;
    for goal in [10_000, long] {
        let (usage, start) = (Usage::now(), Instant::now());
        submit_tasks(&server, goal - queued).await?;
        let rate = (goal - queued) as f64 / start.elapsed().as_secs_f64();
        queued = goal;
        let now = settled(&server).await?;
        most = most.max(now.resident);
        show(&mut section, queued, now, &site, rate, usage);
    }
    if memory {
        report.goal("memory, idle", "MB", Target::Below(40.0), idle.resident);
        if !bench.quick {
            let name = "memory with 1,000,000 queued tasks";
            report.goal(name, "MB", Target::Below(400.0), most);
        }
        section.about(
            "Resident memory of the server two seconds after the last submit, in 10^6 bytes; \
             anonymous is what the kernel cannot drop.",
        );
        report.add(section);
    }
    if restart {
        restarts(bench, &site, server, queued, report).await?;
    }
    Ok(())
}

/// Memory once the server has nothing to do any more.
async fn settled(server: &Server) -> anyhow::Result<Memory> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.memory()
}

fn show(section: &mut Section, queued: u64, memory: Memory, site: &Site, rate: f64, usage: Usage) {
    section.row([
        (queued as f64).into(),
        memory.resident.into(),
        memory.anonymous.into(),
        memory.peak.into(),
        (site.store_bytes() as f64 / 1e6).into(),
        rate.into(),
        others(usage),
    ]);
}

async fn restarts(
    bench: &Bench,
    site: &Site,
    mut server: Server,
    queued: u64,
    report: &mut Report,
) -> anyhow::Result<()> {
    let columns = [
        "restart",
        "listens after, ms",
        "first claim answered after, ms",
        "server MB then",
        OTHERS,
    ];
    let mut section = Section::new("From a kill to the first claim", &columns);
    let token = server.worker_token.clone();
    let mut slowest = 0.0f64;
    let kinds = [
        ("after kill -9 of the submits", false),
        ("after kill -9", false),
        ("after kill -9, page cache of the data dropped", true),
    ];
    for (number, (name, forget)) in kinds.into_iter().enumerate() {
        server.kill()?;
        bench.quiet().await;
        if forget {
            site.forget_cache().context("the page cache could not be dropped")?;
        }
        let (usage, start) = (Usage::now(), Instant::now());
        let connection;
        (server, connection) = site.serve_again(&token).await?;
        let listens = start.elapsed().as_secs_f64() * 1e3;
        let name_of_worker = format!("restart-{number}");
        let mut worker = FakeWorker::register_on(connection, &token, &name_of_worker).await?;
        worker.claim().await?.context("no task after the restart")?;
        let claimed = start.elapsed().as_secs_f64() * 1e3;
        slowest = slowest.max(claimed);
        let memory = settled(&server).await?;
        section.row([
            name.into(),
            listens.into(),
            claimed.into(),
            memory.resident.into(),
            others(usage),
        ]);
    }
    if !bench.quick {
        let name = "kill -9 → first claim, 1,000,000 queued";
        report.goal(name, "s", Target::Below(1.0), slowest / 1e3);
    }
    section.about(format!(
        "{} queued tasks; from the start of the process until a worker that registers has \
         its task.",
        number(queued as f64)
    ));
    report.add(section);
    Ok(())
}
