//! `rayreel tenants`, `workers` and `pools`: what an operator sees, and does.

use std::fmt::Write as _;
use std::future::Future;

use rayreel_client::{Client, Error};
use rayreel_domain::wire::admin::{PoolBody, TenantBody, WorkerBody};
use serde::Serialize;

use crate::args::{self, Global};
use crate::failure::Exit;
use crate::out::Out;
use crate::session::{self, Session};
use crate::text::{self, one_line};

pub(crate) async fn tenants(global: &Global, command: args::Tenants, out: Out) -> Result<(), Exit> {
    match command {
        args::Tenants::List => {
            let ask = |client: Client| async move { client.tenants().await };
            tell(global, out, ask, |list| tenant_table(&list.data)).await
        }
        args::Tenants::Show { name } => {
            let ask = |client: Client| {
                let name = name.clone();
                async move { client.tenant(name.as_str()).await }
            };
            tell(global, out, ask, tenant).await
        }
    }
}

pub(crate) async fn workers(global: &Global, command: args::Workers, out: Out) -> Result<(), Exit> {
    match command {
        args::Workers::List => {
            let ask = |client: Client| async move { client.workers().await };
            tell(global, out, ask, |list| worker_table(&list.data)).await
        }
        args::Workers::Drain { name } => {
            let ask = |client: Client| {
                let name = name.clone();
                async move { client.drain_worker(name.as_str()).await }
            };
            tell(global, out, ask, drained).await
        }
    }
}

pub(crate) async fn pools(global: &Global, command: args::Pools, out: Out) -> Result<(), Exit> {
    match command {
        args::Pools::List => {
            let ask = |client: Client| async move { client.pools().await };
            tell(global, out, ask, |list| pool_table(&list.data)).await
        }
        args::Pools::Drain { name } => {
            let ask = |client: Client| {
                let name = name.clone();
                async move { client.drain_pool(name.as_str()).await }
            };
            tell(global, out, ask, |pool| {
                let (name, running) = (&pool.name, pool.running);
                format!("pool {name} is drained: {running} running, {} wait", pool.queued)
            })
            .await
        }
        args::Pools::Resume { name } => {
            let ask = |client: Client| {
                let name = name.clone();
                async move { client.resume_pool(name.as_str()).await }
            };
            tell(global, out, ask, |pool| format!("pool {} is open", pool.name)).await
        }
    }
}

/// Asks the server, and prints its answer: in words, or as it is.
async fn tell<T, F>(
    global: &Global,
    out: Out,
    ask: impl Fn(Client) -> F,
    words: impl FnOnce(&T) -> String,
) -> Result<(), Exit>
where
    T: Serialize,
    F: Future<Output = Result<T, Error>>,
{
    let mut session = Session::new(global, session::Workers::None, out)?;
    let answer = session.call(ask).await;
    if session.is_embedded() {
        out.note("no server runs on the data directory: this is what is stored there");
    }
    let closed = session.close().await;
    let answer = answer?;
    if out.json {
        out.json(&answer)?
    } else {
        out.line(words(&answer).trim_end())?
    }
    Ok(closed?)
}

/// `7/70`, or `7` without a limit.
fn of(used: impl ToString, most: Option<impl ToString>) -> String {
    let used = used.to_string();
    most.map_or(used.clone(), |most| format!("{used}/{}", most.to_string()))
}

fn gpu(seconds: f64) -> String {
    text::duration(seconds.ceil() as u64)
}

fn tenant_table(tenants: &[TenantBody]) -> String {
    let mut table = String::from(
        "TENANT            WEIGHT      QUEUED   RUNNING  GPU QUEUED  GPU TODAY  LAST MIN    FILES  KEYS\n",
    );
    for TenantBody { name, limits, usage, .. } in tenants {
        _ = writeln!(
            table,
            "{name:<16}  {:>6}  {:>10}  {:>8}  {:>10}  {:>9}  {:>8}  {:>7}  {:>4}",
            limits.weight,
            of(usage.queued, limits.max_queued),
            of(usage.running, limits.max_running),
            gpu(usage.queued_gpu_seconds),
            gpu(usage.gpu_seconds_today),
            of(usage.tasks_last_minute, limits.tasks_per_minute),
            text::bytes(usage.file_bytes),
            usage.keys
        );
    }
    table
}

fn tenant(tenant: &TenantBody) -> String {
    let TenantBody { name, configured, limits, usage } = tenant;
    let mut shown = name.clone();
    let mut line = |what: &str, value: String| _ = write!(shown, "\n  {what:<12} {value}");
    let whose = if *configured { "its own" } else { "those of `default`" };
    line("terms", format!("{whose}, weight {}", limits.weight));
    line(
        "queued",
        format!("{}, {}", of(usage.queued, limits.max_queued), gpu(usage.queued_gpu_seconds)),
    );
    line("running", of(usage.running, limits.max_running));
    let day = limits.gpu_seconds_per_day.map(|seconds| gpu(seconds as f64));
    line("GPU today", of(gpu(usage.gpu_seconds_today), day));
    line("last minute", of(usage.tasks_last_minute, limits.tasks_per_minute));
    line("files", of(text::bytes(usage.file_bytes), Some(text::bytes(limits.max_file_bytes))));
    line("keys", usage.keys.to_string());
    let keep = limits.keep_days.map_or("for ever".to_owned(), |days| format!("{days} days"));
    line("tasks kept", keep);
    shown
}

fn worker_table(workers: &[WorkerBody]) -> String {
    let mut table = String::from(
        "WORKER                      POOL          STATE          SEEN  VERSION   MODEL             WORKS ON\n",
    );
    for worker in workers {
        let task = worker.task.as_ref().map_or(String::new(), |task| {
            format!("{} for {}", task.id, text::age(task.started_at))
        });
        _ = writeln!(
            table,
            "{:<26}  {:<12}  {:<11}  {:>6}  {:<8}  {:<16}  {task}",
            worker.name,
            worker.pool,
            worker.state.as_str(),
            worker.last_seen_at.map_or("–".to_owned(), text::age),
            worker.version.as_deref().unwrap_or("–"),
            worker.model.as_deref().unwrap_or("–"),
        );
        for barred in &worker.quarantined {
            let reason = one_line(&barred.reason, 200);
            _ = writeln!(table, "  gets no tasks of {}: {reason}", barred.model);
        }
    }
    table
}

fn drained(worker: &WorkerBody) -> String {
    match &worker.task {
        Some(task) => format!("worker {} goes when it has finished {}", worker.name, task.id),
        None => format!("worker {} goes", worker.name),
    }
}

fn pool_table(pools: &[PoolBody]) -> String {
    let mut table = String::from(
        "POOL          STATE     MIN  MAX  TARGET  LIVE  STARTING  IDLE  BUSY  QUEUED  RUNNING  GPU QUEUED\n",
    );
    for pool in pools {
        let state = match (pool.drained, pool.breaker.open) {
            (true, _) => "drained",
            (_, true) => "broken",
            _ => "open",
        };
        _ = writeln!(
            table,
            "{:<12}  {state:<8}  {:>3}  {:>3}  {:>6}  {:>4}  {:>8}  {:>4}  {:>4}  {:>6}  {:>7}  {:>10}",
            pool.name,
            pool.min,
            pool.max,
            pool.target.map_or("–".to_owned(), |target| target.to_string()),
            pool.workers.live,
            pool.workers.starting,
            pool.workers.idle,
            pool.workers.busy,
            pool.queued,
            pool.running,
            gpu(pool.queued_gpu_seconds)
        );
        let breaker = pool.breaker.reason.as_ref().filter(|_| pool.breaker.open);
        for reason in pool
            .waiting_reason
            .iter()
            .chain(breaker.filter(|b| pool.waiting_reason.as_ref() != Some(b)))
        {
            _ = writeln!(table, "  {}", one_line(reason, 500));
        }
    }
    table
}
