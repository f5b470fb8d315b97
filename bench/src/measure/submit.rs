//! How many submits a second the server makes durable, and how long each waits.

use std::time::Duration;

use super::{Bench, OTHERS, others, submit_request, submit_request_with};
use crate::load::{End, Load, write_number};
use crate::machine::{Usage, own_cpu_time};
use crate::report::{Report, Section, Target};

const CONNECTIONS: [usize; 4] = [1, 32, 64, 128];

pub(super) async fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let columns = [
        "connections",
        "submits/s",
        "p50 ms",
        "p99 ms",
        "max ms",
        "server CPU µs/submit",
        "load generator CPU µs/submit",
        "written bytes/submit",
        "stored bytes/task",
        OTHERS,
    ];
    let mut section = Section::new("Durable submits", &columns);
    for connections in CONNECTIONS {
        bench.quiet().await;
        let site = bench.site()?;
        let server = site.serve().await?;
        let load = |end| Load {
            connections,
            end,
            request: submit_request("instant", 20),
            fill: write_number,
            expect: 202,
            keep: false,
            pace: None,
        };
        load(End::Requests(500)).run(server.address).await?;
        let usage = Usage::now();
        let (own, cpu, written) = (own_cpu_time(), server.cpu_time(), server.written());
        let run =
            load(End::After(Duration::from_secs(bench.pick(10, 3)))).run(server.address).await?;
        let count = run.times.len() as f64;
        let cpu = (server.cpu_time() - cpu).as_secs_f64() * 1e6 / count;
        let own = (own_cpu_time() - own).as_secs_f64() * 1e6 / count;
        let written = (server.written() - written) as f64 / count;
        let others = others(usage);
        // Once it has stopped, the log has gone into the database.
        server.stop().await?;
        let stored = site.store_bytes() as f64 / (count + 500.0);
        section.row([
            (connections as f64).into(),
            run.per_second().into(),
            run.times.p50().into(),
            run.times.p99().into(),
            run.times.max().into(),
            cpu.into(),
            own.into(),
            written.into(),
            stored.into(),
            others,
        ]);
        if connections == 64 {
            let (rate, p99) = (run.per_second(), run.times.p99());
            report.goal("durable submits, 64 connections", "/s", Target::AtLeast(27_200.0), rate);
            report.goal("p99 of these", "ms", Target::Below(10.0), p99);
        }
    }
    section.about(
        "A prompt of 200 characters, each task on the disk before its answer leaves, a fresh store \
         a row, one request under way a connection.",
    );
    report.add(section);
    gateway(bench, report).await
}

/// What a key and limits cost: with them and without, in turn.
async fn gateway(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    const ROUNDS: u32 = 3;
    let columns =
        ["the caller", "rounds", "submits/s, median", "server CPU µs/submit, median", OTHERS];
    let mut section = Section::new("What the gateway costs a submit", &columns);
    bench.quiet().await;
    let usage = Usage::now();
    let mut rounds: [Vec<(f64, f64)>; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (with_key, rounds) in rounds.iter_mut().enumerate() {
            let site = bench.site()?;
            let server = site.serve().await?;
            let key = match with_key {
                0 => None,
                _ => Some(server.create_key("limited").await?),
            };
            let load = |end| Load {
                connections: 64,
                end,
                request: submit_request_with("instant", 20, key.as_deref()),
                fill: write_number,
                expect: 202,
                keep: false,
                pace: None,
            };
            load(End::Requests(500)).run(server.address).await?;
            let cpu = server.cpu_time();
            let seconds = bench.pick(5, 2);
            let run = load(End::After(Duration::from_secs(seconds))).run(server.address).await?;
            let cpu = (server.cpu_time() - cpu).as_secs_f64() * 1e6 / run.times.len() as f64;
            rounds.push((run.per_second(), cpu));
            server.stop().await?;
        }
    }
    let median = |mut numbers: Vec<f64>| {
        numbers.sort_by(f64::total_cmp);
        numbers[numbers.len() / 2]
    };
    let rates = rounds.each_ref().map(|r| median(r.iter().map(|(rate, _)| *rate).collect()));
    let cpus = rounds.each_ref().map(|r| median(r.iter().map(|(_, cpu)| *cpu).collect()));
    for (index, caller) in ["needs no key", "has a key, and limits"].into_iter().enumerate() {
        let count = f64::from(ROUNDS);
        let others = others(usage);
        section.row([caller.into(), count.into(), rates[index].into(), cpus[index].into(), others]);
    }
    let share = rates[1] / rates[0] * 100.0;
    report.goal(
        "submits/s with a key and limits, of those without",
        "%",
        Target::AtLeast(85.0),
        share,
    );
    section.about(
        "64 connections. The key's tenant has every limit, none of which is reached: tasks a minute, \
         queued, running, GPU-seconds a day.",
    );
    report.add(section);
    Ok(())
}
