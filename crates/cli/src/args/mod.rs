//! The command line: what can be asked, and how it is explained.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use rayreel_domain::key::Scope;
use rayreel_domain::request::Size;
use rayreel_domain::task::{Priority, State};
use rayreel_domain::wire::engine::Format;
use rayreel_domain::{PoolName, TaskId, TenantName, WorkerName};

const AFTER_HELP: &str = "\
The first video:  rayreel generate \"a red fox running through snow\" -o fox.mp4
As a service:     rayreel serve, then submit, watch and download from anywhere on this machine

Without --server, a command talks to the server that runs on the data directory; if none does, it \
runs one itself for as long as it takes.
With --json, results are JSON on standard output; an error is one line of JSON, the last on \
standard error.

The exit status tells what went wrong:
  1  anything else             7  try again later
  2  bad request or setting    8  damaged data
  4  no such task              9  the task was cancelled, or expired
  5  not allowed              10  the task failed
  6  conflict                130  left on Ctrl-C

Environment:
  RAYREEL_SERVER        --server
  RAYREEL_TOKEN         sent to that server; a server of this user needs none
  RAYREEL_DATA          --data
  RAYREEL_CONFIG        --config
  RAYREEL_LISTEN        serve --listen
  RAYREEL_WORKER_TOKEN  sent by `worker`
  RAYREEL_ADMIN_KEY     serve: a key with every scope
  RAYREEL_LOG           how much is logged: `debug`, `info,rayreel_server=debug`
  RAYREEL_…             every other setting: `rayreel config default` explains them";

const REQUEST_HELP: &str = "\
What is not given is the model's default: `rayreel config show`.

Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

const CONFIG_HELP: &str = "\
Settings come from, the later the stronger: the defaults; a file; the environment, RAYREEL_LISTEN
for `listen`, RAYREEL_POOLS__LOCAL__MAX for `pools.local.max`; flags.";

const COMPLETIONS_HELP: &str = "\
bash:  source <(rayreel completions bash)
zsh:   rayreel completions zsh >~/.zfunc/_rayreel    (a directory of $fpath)
fish:  rayreel completions fish >~/.config/fish/completions/rayreel.fish";

const CLIENT_HELP: &str = "\
Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

const GENERATE_HELP: &str = "\
What is not given is the model's default: `rayreel config show`.
Ctrl-C cancels the task; a second Ctrl-C leaves at once.

Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

const SERVE_HELP: &str = "\
Ctrl-C or SIGTERM stops it; tasks that are queued stay so.

On 127.0.0.1 and [::1] whoever is on this machine may call, until there is a key; any other address
needs one first: `rayreel keys create`.

Environment:
  RAYREEL_ADMIN_KEY  a key with every scope, of 32 to 200 characters, which is not stored
  RAYREEL_LOG        how much is logged: `debug`, `info,rayreel_server=debug`
  RAYREEL_…          every other setting: `rayreel config default` explains them";

const KEYS_HELP: &str = "\
As long as there is no key, whoever is on this machine may call. From the first one on every request
needs one, as `Authorization: Bearer rr_…`; commands of this user on this machine need none.

Environment:
  RAYREEL_TOKEN  sent to the server that --server names; a server of this user needs none";

const WORKER_HELP: &str = "\
Ctrl-C or SIGTERM lets it finish its task and leave; a second one ends it at once.

Environment:
  RAYREEL_WORKER_TOKEN  sent to the server; by default that of the server on the data directory
  RAYREEL_LOG           how much is logged: `debug`, `info,rayreel_worker=debug`";

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
    let is_client = !matches!(path.as_slice(), ["serve" | "worker" | "config", ..]);
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
    /// Make, list and revoke API keys
    #[command(after_help = KEYS_HELP)]
    Keys {
        #[command(subcommand)]
        command: Keys,
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

#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    pub request: Request,
    /// Where to save; a name that ends in .png asks for a still, `-` is standard output [default: a
    /// file named after the task, in this directory]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What to generate. What is not given is the model's default.
#[derive(Debug, Args)]
pub(crate) struct Request {
    /// What to show
    pub prompt: String,
    /// Name of a configured model
    #[arg(long)]
    pub model: Option<String>,
    /// What not to show
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// First frame: a PNG, JPEG or WebP file
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Last frame, of models that take one
    #[arg(long, value_name = "FILE", requires = "image")]
    pub last_image: Option<PathBuf>,
    /// Width and height in pixels, such as 832x480
    #[arg(long, value_name = "WxH")]
    pub size: Option<Size>,
    /// Number of frames: 1, 5, 9 …
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub frames: Option<u32>,
    /// Length; becomes the nearest number of frames that is allowed
    #[arg(long, value_name = "S", value_parser = finite)]
    pub seconds: Option<f64>,
    /// Frames a second
    #[arg(long, value_name = "N")]
    pub fps: Option<u32>,
    /// Denoising steps
    #[arg(long, value_name = "N")]
    pub steps: Option<u32>,
    /// Classifier-free guidance scale
    #[arg(long, value_name = "X", value_parser = finite)]
    pub guidance: Option<f64>,
    /// The same seed and request give the same video [default: random]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// 1 (last) to 5 (first) among your own tasks
    #[arg(long, value_name = "1-5", value_parser = priority)]
    pub priority: Option<Priority>,
    /// A video or a still [default: mp4]
    #[arg(long)]
    pub format: Option<OutputFormat>,
}

fn priority(text: &str) -> Result<Priority, &'static str> {
    text.parse().ok().and_then(Priority::new).ok_or("a priority is 1 to 5")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Mp4,
    Png,
}

impl From<OutputFormat> for Format {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Mp4 => Self::Mp4,
            OutputFormat::Png => Self::Png,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address to listen on; port 0 takes a free one [env: RAYREEL_LISTEN] [default: 127.0.0.1:8088]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Task {
    /// Id of the task
    pub id: TaskId,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only tasks in this state: queued, running, succeeded, failed, cancelled or expired
    #[arg(long, value_parser = state)]
    pub state: Option<State>,
    /// Only tasks of this model
    #[arg(long)]
    pub model: Option<String>,
    /// How many at most, 1 to 100 [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub limit: Option<u8>,
    /// Go on where another list ended
    #[arg(long)]
    pub cursor: Option<String>,
    /// Every task, not only the newest
    #[arg(long, conflicts_with_all = ["limit", "cursor"])]
    pub all: bool,
}

fn state(text: &str) -> Result<State, String> {
    State::from_text(text).ok_or_else(|| {
        let states = State::ALL.map(|state| state.as_str().to_ascii_lowercase());
        format!("a state is one of {}", states.join(", "))
    })
}

#[derive(Debug, Args)]
pub(crate) struct Download {
    /// Id of the task
    pub id: TaskId,
    /// Where to save; `-` is standard output [default: a file named after the task, in this
    /// directory]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The thumbnail instead
    #[arg(long)]
    pub thumbnail: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The pool whose tasks it takes
    #[arg(long, default_value = "local")]
    pub pool: PoolName,
    /// A name that no other worker has [default: a random one]
    #[arg(long)]
    pub name: Option<WorkerName>,
    /// The fleet's number of this start
    #[arg(long, hide = true)]
    pub launch: Option<String>,
    /// Data directory in which the server's address is looked up again
    #[arg(long, hide = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make a key, and print it this once
    #[command(after_help = KEYS_HELP)]
    Create(CreateKey),
    /// List the keys, without their text
    #[command(after_help = KEYS_HELP)]
    List,
    /// Revoke a key, at once and for good
    #[command(after_help = KEYS_HELP)]
    Revoke {
        /// Id of the key: what stands between `rr_` and the next `_`
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateKey {
    /// What it is for, in your words
    #[arg(long)]
    pub name: Option<String>,
    /// Whose tasks it makes and sees [default: default]
    #[arg(long)]
    pub tenant: Option<TenantName>,
    /// What it is good for: submit, read, admin, worker [default: submit,read]
    #[arg(long, value_delimiter = ',', value_name = "SCOPE,…")]
    pub scopes: Vec<Scope>,
    /// With the scope worker: the only pool whose workers it is good for [default: every pool]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<PoolName>,
    /// Days from now on after which it is refused [default: never]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub expires_in_days: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check every layer, and show what differs from the defaults
    Check,
    /// Print every setting that is in force, and where it comes from
    Show,
    /// Print the commented default file
    Default,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Engine {
    /// The test card; workers start it
    Testcard,
}

/// A number that JSON can carry.
fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("it is not a number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words = line.split_whitespace().map(|word| word.replace('_', " ").into());
        Cli::read(std::iter::once("rayreel".into()).chain(words))
    }

    fn refused(line: &str) -> String {
        let error = parse(line).expect_err("wrong");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn the_commands_are_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn an_option_that_would_be_passed_over_is_refused() {
        for (line, words) in [
            ("serve --server http://x", "`--server` means nothing to `rayreel serve`"),
            ("--server http://x serve", "--listen says where"),
            (
                "config check --server http://x",
                "`--server` means nothing to `rayreel config check`",
            ),
            ("config default --json", "`--json` means nothing to `rayreel config default`"),
            ("completions bash --data /d", "`--data` means nothing to `rayreel completions`"),
            ("engine testcard --config f", "`--config` means nothing to `rayreel engine testcard`"),
            ("list --server http://x --data /d", "the server that --server names"),
            ("generate x --config f --server http://x", "`--config` means nothing to http://x"),
        ] {
            let message = refused(line);
            assert!(message.contains(words), "{line}: {message}");
        }
        for line in
            ["serve --data /d", "config show --data /d --json", "worker --server x --data /d"]
        {
            parse(line).expect(line);
        }
    }

    #[test]
    fn help_shows_the_options_that_a_command_heeds_and_its_environment() {
        let help = |path: &[&str]| {
            let mut command = command();
            // Global options reach the commands only now.
            command.build();
            let inner = path.iter().fold(&mut command, |command, name| {
                command.find_subcommand_mut(name).expect("a command")
            });
            inner.render_long_help().to_string()
        };
        for (path, shown, hidden) in [
            (&["serve"][..], &["--listen", "RAYREEL_LISTEN", "RAYREEL_LOG"][..], "--server"),
            (&["worker"], &["--server", "RAYREEL_WORKER_TOKEN", "RAYREEL_LOG"], "RAYREEL_TOKEN"),
            (&["generate"], &["RAYREEL_TOKEN", "RAYREEL_SERVER", "RAYREEL_DATA"], "LISTEN"),
            (&["config", "show"], &["RAYREEL_CONFIG", "--json"], "--server"),
            (&["completions"], &["bash"], "--data"),
        ] {
            let help = help(path);
            for word in shown {
                assert!(help.contains(word), "{path:?} lacks {word}: {help}");
            }
            assert!(!help.contains(hidden), "{path:?} has {hidden}: {help}");
        }
    }

    #[test]
    fn every_command_and_option_explains_itself() {
        fn check(command: &clap::Command) {
            for option in command.get_arguments() {
                assert!(option.get_help().is_some(), "{} {option}", command.get_name());
            }
            for command in command.get_subcommands() {
                assert!(command.get_about().is_some(), "{}", command.get_name());
                check(command);
            }
        }
        check(&command());
    }

    #[test]
    fn a_request_is_read_whole() {
        let cli = parse(
            "generate a_red_fox --model m --negative-prompt blur --size 64*80 --seconds 1.5 --fps 8 \
             --steps 4 --guidance 3.5 --seed 7 --priority 5 --format png -o x.png --json",
        )
        .expect("right");
        assert!(cli.global.json);
        let Command::Generate(generate) = cli.command else { panic!("{:?}", cli.command) };
        let request = generate.request;
        assert_eq!(request.prompt, "a red fox");
        assert_eq!(request.size, Some(Size { width: 64, height: 80 }));
        assert_eq!((request.seconds, request.fps, request.steps), (Some(1.5), Some(8), Some(4)));
        assert_eq!((request.guidance, request.seed), (Some(3.5), Some(7)));
        assert_eq!(request.priority.map(Priority::get), Some(5));
        assert_eq!(request.format, Some(OutputFormat::Png));
        assert_eq!(generate.output, Some(PathBuf::from("x.png")));
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in ["--data /d list --state RUNNING", "list --state running --data /d"] {
            let cli = parse(line).expect("right");
            assert_eq!(cli.global.data, Some(PathBuf::from("/d")));
            let Command::List(list) = cli.command else { panic!("{:?}", cli.command) };
            assert_eq!(list.state, Some(State::Running));
        }
    }

    #[test]
    fn the_fleet_can_start_a_worker() {
        let cli =
            parse("worker --server http://127.0.0.1:1 --pool p --name p-1 --launch p-1 --home /d")
                .expect("right");
        assert_eq!(cli.global.server.as_deref(), Some("http://127.0.0.1:1"));
        let Command::Worker(worker) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(worker.pool.as_str(), "p");
        assert_eq!(worker.launch.as_deref(), Some("p-1"));
        assert_eq!(worker.home, Some(PathBuf::from("/d")));
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_is_allowed() {
        for (line, words) in [
            ("generate", "<PROMPT>"),
            ("generate x --size big", "write it as 832x480"),
            ("generate x --frames 5 --seconds 1", "cannot be used with"),
            ("generate x --priority 6", "a priority is 1 to 5"),
            ("generate x --format gif", "mp4, png"),
            ("generate x --step 3", "--steps"),
            ("get fox", "a task id is `task_` and 32 hexadecimal digits"),
            ("list --state done", "queued, running, succeeded"),
            ("list --limit 0", "1..=100"),
            ("list --limit 101", "1..=100"),
            ("list --all --limit 5", "cannot be used with"),
            ("worker --name /x", "the name of a worker is 1 to 64 letters"),
            ("generat x", "generate"),
        ] {
            let message = refused(line);
            assert!(message.contains(words), "{line}: {message}");
        }
    }
}
