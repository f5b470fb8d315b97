//! The figures of rayreel: measures the real binary under load and prints what it found beside
//! what it should reach.
//!
//! Server, worker and engine are processes of their own, so that memory and processor time are
//! theirs alone; the load generator shares the machine with them, as the targets say. The data
//! lies on a real disk, beside the program unless told otherwise: on a RAM disk, durability costs
//! nothing and the figures mean nothing.

mod engine;
mod fleet;
mod http;
mod load;
mod machine;
mod measure;
mod report;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use machine::Machine;
use measure::{Bench, Measure};
use report::Report;

/// Measures what the rayreel binary does under load; `scripts/bench` builds both first
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    internal: Option<Internal>,
    /// A minute instead of ten: shorter runs, a queue of 50,000
    #[arg(long)]
    quick: bool,
    /// Only these measures
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Measure>,
    /// The rayreel binary [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where servers keep their data meanwhile [default: the directory of this program]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Keep tasks in this Redis instead of a file; each server gets a prefix of its own there
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Before each row, wait up to so many seconds until nobody else uses the machine
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    patience: u64,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the figures into this page, between its marks
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// The engine that tells when it is started
    #[command(hide = true)]
    Engine { witness: PathBuf },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.internal {
        Some(Internal::Engine { witness }) => engine::run(&witness),
        None => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(run(arguments)),
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let beside = own.parent().unwrap_or(Path::new("."));
    let binary = arguments.binary.unwrap_or_else(|| beside.join("rayreel"));
    let binary = binary.canonicalize().with_context(|| {
        let binary = binary.display();
        format!("there is no {binary}; build it with `cargo build --release -p rayreel`")
    })?;
    let data = arguments.data.unwrap_or_else(|| beside.to_owned()).canonicalize()?;
    allow_many_files()?;

    let machine = Machine::look(&data)?;
    ensure!(
        machine.file_system != "tmpfs",
        "{} is a RAM disk; name a directory on a real one with --data",
        data.display()
    );
    let patience = Duration::from_secs(arguments.patience);
    let bench = Bench { binary, data, store: arguments.store, quick: arguments.quick, patience };
    let mut report = Report::new(machine, arguments.quick);
    let mut terminate = signal(SignalKind::terminate())?;
    // Dropped when it is interrupted, it ends the processes that it has started.
    tokio::select! {
        measured = measure::all(&bench, &arguments.only, &mut report) => measured?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }

    print!("{}", report.page());
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&report)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &arguments.write {
        report.write_into(path)?;
    }
    Ok(())
}

/// Ten thousand connections need as many files, here and in the servers, which inherit this.
fn allow_many_files() -> anyhow::Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}
