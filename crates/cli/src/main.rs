//! The command `rayreel`: server, worker and client in one binary.
//!
//! Each command is a small module over the libraries. What a command prints, and with which status
//! it exits, is decided in [`out`] and [`failure`]; which server it talks to, in [`session`].

mod admin;
mod args;
mod doctor;
mod failure;
mod follow;
mod generate;
mod keys;
mod log;
mod models;
mod out;
mod progress;
mod request;
mod save;
mod serve;
mod session;
mod settings;
mod signals;
mod tasks;
mod text;
mod worker;

use std::future::Future;
use std::io::BufReader;
use std::process::ExitCode;

use clap::error::ErrorKind;
use rayreel_domain::Code;

use args::{Cli, Command, Engine};
use failure::{Exit, Failure};
use out::Out;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    let out = Out::new(cli.global.json, cli.global.quiet);
    match run(cli, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Silent(status)) => ExitCode::from(status),
        Err(Exit::Failed(failure)) => {
            out.failure(&failure);
            ExitCode::from(failure.code.exit())
        }
    }
}

fn run(cli: Cli, out: Out) -> Result<(), Exit> {
    let global = &cli.global;
    match cli.command {
        Command::Generate(arguments) => on_runtime(generate::run(global, arguments, out)),
        Command::Serve(arguments) => on_runtime(serve::run(global, arguments, out)),
        Command::Worker(arguments) => on_runtime(worker::run(global, arguments)),
        Command::Models { command } => models::run(global, command, out),
        Command::Doctor(arguments) => on_runtime(doctor::run(global, arguments, out)),
        Command::Keys { command } => on_runtime(keys::run(global, command, out)),
        Command::Tenants { command } => on_runtime(admin::tenants(global, command, out)),
        Command::Workers { command } => on_runtime(admin::workers(global, command, out)),
        Command::Pools { command } => on_runtime(admin::pools(global, command, out)),
        Command::Config { command } => settings::run(global, &command, out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "rayreel", &mut script);
            out.raw(&script)
        }
        Command::Engine { engine } => serve_worker(engine)
            .map_err(|error| Failure::new(Code::EngineProtocol, error.to_string()).into()),
        command => on_runtime(tasks::run(global, command, out)),
    }
}

/// Runs a built-in engine.
fn serve_worker(engine: Engine) -> std::io::Result<()> {
    let (input, output) = (BufReader::new(std::io::stdin()), std::io::stdout());
    match engine {
        Engine::Testcard => rayreel_testcard::run(input, output),
        Engine::Command => rayreel_bridge::run(rayreel_bridge::Kind::Command, input, output),
        Engine::Server => rayreel_bridge::run(rayreel_bridge::Kind::Server, input, output),
    }
}

/// Runs a command on as many threads as there are processors; blocking work, such as opening a
/// database, gets threads of its own, of which few are ever needed.
fn on_runtime(command: impl Future<Output = Result<(), Exit>>) -> Result<(), Exit> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build()
        .map_err(|error| Failure::new(Code::Internal, format!("no threads: {error}")))?
        .block_on(command)
}

/// Help that was asked for, or a command line that can't be read.
fn misused(error: &clap::Error) -> ExitCode {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !asked && std::env::args_os().any(|word| word == "--json") {
        let message = error.to_string();
        let message = message.trim_start_matches("error: ").trim_end();
        Out::new(true, true).failure(&Failure::new(Code::InvalidValue, message));
    } else {
        // Nobody is left to tell if this fails.
        _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
