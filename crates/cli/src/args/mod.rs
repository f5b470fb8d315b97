//! The command line: what can be asked, and how it is explained.

mod commands;
mod help;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use commands::{
    AddModel, CheckModels, Config, CreateKey, Doctor, Download, Engine, Generate, Keys, List,
    Models, Pools, Request, Serve, Task, Tenants, Worker, Workers,
};
use help::{
    ADMIN_HELP, AFTER_HELP, CLIENT_HELP, COMPLETIONS_HELP, CONFIG_HELP, DOCTOR_HELP, GENERATE_HELP,
    KEYS_HELP, MODELS_HELP, REQUEST_HELP, SERVE_HELP, WORKER_HELP,
};

#[derive(Debug, Parser)]
#[command(
    name = "rayreel",
    version,
    about = "Video generation as a service, on your own GPUs",
    after_help = AFTER_HELP,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the command line. An option that the command would pass over is an error.
    pub(crate) fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(words)?;
        refuse_useless(&mut command, &matches)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

/// The commands as they are explained: with those options only that they heed.
pub(crate) fn command() -> clap::Command {
    fn hide(command: &mut clap::Command, path: &[&str], global: &[clap::Arg]) {
        for option in
            global.iter().filter(|option| useless(path).contains(&option.get_id().as_str()))
        {
            // One of its own goes before the global one.
            *command = std::mem::take(command).arg(option.clone().hide(true));
        }
        for below in command.get_subcommands_mut() {
            let name = below.get_name().to_owned();
            hide(below, &[path, &[name.as_str()]].concat(), global);
        }
    }
    let mut command = Cli::command();
    let global: Vec<clap::Arg> =
        command.get_arguments().filter(|option| option.is_global_set()).cloned().collect();
    hide(&mut command, &[], &global);
    command
}

/// The global options that mean nothing to a command.
fn useless(path: &[&str]) -> &'static [&'static str] {
    match path {
        ["serve"] | ["config", ..] if path != ["config", "default"] => &["server"],
        ["models", "add" | "check"] => &["server"],
        ["config", "default"] | ["completions" | "engine", ..] => {
            &["server", "data", "config", "json", "quiet"]
        }
        _ => &[],
    }
}

fn refuse_useless(command: &mut clap::Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let (mut path, mut innermost) = (Vec::new(), matches);
    while let Some((name, below)) = innermost.subcommand() {
        path.push(name);
        innermost = below;
    }
    let given = |option: &str| innermost.value_source(option) == Some(ValueSource::CommandLine);
    let mut refuse = |why: String| Err(command.error(ErrorKind::ArgumentConflict, why));
    if let Some(option) = useless(&path).iter().find(|option| given(option)) {
        let instead = match path.as_slice() {
            ["serve"] => ", which is a server itself: --listen says where",
            _ => "",
        };
        return refuse(format!(
            "`--{option}` means nothing to `rayreel {}`{instead}",
            path.join(" ")
        ));
    }
    let is_client = !matches!(
        path.as_slice(),
        ["serve" | "worker" | "config", ..] | ["models", "add" | "check"]
    );
    let server = innermost.get_one::<String>("server").filter(|server| !server.is_empty());
    let local = ["data", "config"].into_iter().find(|option| given(option));
    if let (true, Some(server), Some(option)) = (is_client, server, local) {
        let named = if given("server") { "--server" } else { "RAYREEL_SERVER" };
        return refuse(format!(
            "`--{option}` means nothing to {server}, the server that {named} names: leave out one \
             of them"
        ));
    }
    Ok(())
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Address of a server, such as http://127.0.0.1:8088, instead of the one on the data directory
    #[arg(
        long,
        global = true,
        env = "RAYREEL_SERVER",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    pub server: Option<String>,
    /// Data directory [env: RAYREEL_DATA] [default: the platform's, as in ~/.local/share/rayreel]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub data: Option<PathBuf>,
    /// Configuration file [env: RAYREEL_CONFIG] [default: rayreel.toml here or in ~/.config/rayreel]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub config: Option<PathBuf>,
    /// Print results and errors as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Print no progress and no notes
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a video or a still: submit, follow to the end, save the file
    #[command(after_help = GENERATE_HELP)]
    Generate(Generate),
    /// Run the server
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
    /// Queue a task and print its id
    #[command(after_help = REQUEST_HELP)]
    Submit(Request),
    /// Show a task
    #[command(after_help = CLIENT_HELP)]
    Get(Task),
    /// Follow a task to its end (Ctrl-C leaves; the task goes on)
    #[command(after_help = CLIENT_HELP)]
    Watch(Task),
    /// List tasks, newest first
    #[command(after_help = CLIENT_HELP)]
    List(List),
    /// Cancel a queued or running task; never deletes
    #[command(after_help = CLIENT_HELP)]
    Cancel(Task),
    /// Delete a task that has ended, and its files
    #[command(after_help = CLIENT_HELP)]
    Delete(Task),
    /// Save a task's result
    #[command(after_help = CLIENT_HELP)]
    Download(Download),
    /// Run a worker: claim tasks of a pool, run the engine, deliver the files
    #[command(after_help = WORKER_HELP)]
    Worker(Worker),
    /// List, check and add models
    #[command(after_help = MODELS_HELP)]
    Models {
        #[command(subcommand)]
        command: Option<Models>,
    },
    /// Check that the task store is sound
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Doctor),
    /// Make, list and revoke API keys
    #[command(after_help = KEYS_HELP)]
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
    /// Show tenants: their terms, and what they use now
    #[command(after_help = ADMIN_HELP)]
    Tenants {
        #[command(subcommand)]
        command: Tenants,
    },
    /// Show workers and what they are at; let one go
    #[command(after_help = ADMIN_HELP)]
    Workers {
        #[command(subcommand)]
        command: Workers,
    },
    /// Show pools and their work; close one to claims, and open it again
    #[command(after_help = ADMIN_HELP)]
    Pools {
        #[command(subcommand)]
        command: Pools,
    },
    /// Check, show or explain the configuration
    #[command(after_help = CONFIG_HELP)]
    Config {
        #[command(subcommand)]
        command: Config,
    },
    /// Print the completions of a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Advanced: run a built-in engine on standard input and output
    Engine {
        #[command(subcommand)]
        engine: Engine,
    },
}

#[cfg(test)]
mod tests;
