//! `rayreel worker`: runs a worker in this process.

use rayreel_domain::{Code, WorkerName};
use rayreel_server::clock::Random;
use rayreel_server::config::{LogFormat, LogLevel};
use rayreel_server::home;
use rayreel_worker::{Exit as Ended, Options, Signals};

use crate::args;
use crate::failure::{Exit, Failure, INTERRUPTED};
use crate::log;
use crate::settings;
use crate::signals::Interrupts;

pub(crate) async fn run(global: &args::Global, arguments: args::Worker) -> Result<(), Exit> {
    let (options, level, format) = options(global, arguments)?;
    log::to_stderr(level, format)?;
    let interrupts = Interrupts::listen()?;
    let signals = Signals { drain: interrupts.first, abort: interrupts.second };
    match rayreel_worker::run(options, signals).await {
        Ok(Ended::Drained | Ended::Orphaned) => Ok(()),
        Ok(Ended::Aborted) => Err(Exit::Silent(INTERRUPTED)),
        Err(error) => Err(Failure::new(error.code(), error.to_string()).into()),
    }
}

fn options(
    global: &args::Global,
    arguments: args::Worker,
) -> Result<(Options, LogLevel, LogFormat), Failure> {
    let token = std::env::var("RAYREEL_WORKER_TOKEN").ok().filter(|token| !token.is_empty());
    let server = global.server.clone().filter(|address| !address.is_empty());
    // Whom the fleet starts is told everything, and must not fail on a changed configuration.
    let (data, level, format) = match &arguments.home {
        Some(home) => (home.clone(), LogLevel::Info, LogFormat::Text),
        None => {
            let settings = settings::load(global)?.settings;
            (settings.data, settings.log.level, settings.log.format)
        }
    };
    let running = home::running(&data);
    let mut home = arguments.home;
    let server = match (server, &running) {
        (Some(server), _) => server,
        (None, Some(running)) => {
            home.get_or_insert_with(|| data.clone());
            running.url.clone()
        }
        (None, None) => {
            let message = format!("no server runs on {}; name one with --server", data.display());
            return Err(Failure::new(Code::ServerUnreachable, message));
        }
    };
    let token = match (token, running) {
        (Some(token), _) => token,
        (None, Some(running)) if running.url == server.trim_end_matches('/') => {
            running.worker_token.as_str().to_owned()
        }
        (None, _) => {
            let message = format!("a worker of {server} needs its token in RAYREEL_WORKER_TOKEN");
            return Err(Failure::new(Code::Unauthorized, message));
        }
    };
    let name = match arguments.name {
        Some(name) => name,
        None => random_name()?,
    };
    let engine_program = std::env::current_exe().map_err(|error| {
        Failure::new(Code::Internal, format!("this program's own path is not known: {error}"))
    })?;
    let options = Options {
        server,
        token,
        pool: arguments.pool,
        name,
        launch: arguments.launch,
        home,
        scratch: data.join("scratch"),
        engine_program,
        alone: true,
        outage_keep: Options::OUTAGE_KEEP,
        orphan_idle: Options::ORPHAN_IDLE,
        drain_grace: Options::DRAIN_GRACE,
    };
    Ok((options, level, format))
}

fn random_name() -> Result<WorkerName, Failure> {
    format!("worker-{:012x}", Random::from_system().number() >> 16)
        .parse()
        .map_err(|error: rayreel_domain::id::Malformed| Failure::new(Code::Internal, error.0))
}
