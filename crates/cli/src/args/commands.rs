//! What each command takes.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use rayreel_domain::key::Scope;
use rayreel_domain::request::Size;
use rayreel_domain::task::{Priority, State};
use rayreel_domain::wire::engine::{Format, Lora};
use rayreel_domain::{ModelName, PoolName, TaskId, TenantName, WorkerName};

use super::help::{ADMIN_HELP, KEYS_HELP, MODELS_HELP};

#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    pub request: Request,
    /// Where to save; a name that ends in .png, .jpg or .webp asks for a still, `-` is standard output
    /// [default: a file named after the task, in this directory]
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
    /// Guidance scale of the second expert, that of low noise, of models that have two
    #[arg(long = "guidance-2", value_name = "X", value_parser = finite)]
    pub guidance_2: Option<f64>,
    /// A LoRA of the model, and how strongly it acts [default: 1]; again for each further one
    #[arg(long = "lora", value_name = "NAME[=SCALE]", value_parser = lora)]
    pub loras: Vec<Lora>,
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
    #[value(alias = "jpg")]
    Jpeg,
    Webp,
}

impl From<OutputFormat> for Format {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Mp4 => Self::Mp4,
            OutputFormat::Png => Self::Png,
            OutputFormat::Jpeg => Self::Jpeg,
            OutputFormat::Webp => Self::Webp,
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

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Another store than the configured one: `sqlite`, or the address of a Redis
    #[arg(long, value_name = "STORE")]
    pub store: Option<String>,
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
pub(crate) enum Tenants {
    /// List the tenants
    #[command(after_help = ADMIN_HELP)]
    List,
    /// Show one tenant
    #[command(after_help = ADMIN_HELP)]
    Show {
        /// Name of the tenant
        name: TenantName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Workers {
    /// List the workers
    #[command(after_help = ADMIN_HELP)]
    List,
    /// Let a worker finish its task, give it no other, and have it exit; costs the task nothing
    #[command(after_help = ADMIN_HELP)]
    Drain {
        /// Name of the worker
        name: WorkerName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pools {
    /// List the pools
    #[command(after_help = ADMIN_HELP)]
    List,
    /// Close a pool, over restarts too: what runs finishes, what is queued waits, no worker is started
    #[command(after_help = ADMIN_HELP)]
    Drain {
        /// Name of the pool
        name: PoolName,
    },
    /// Open a pool again
    #[command(after_help = ADMIN_HELP)]
    Resume {
        /// Name of the pool
        name: PoolName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Models {
    /// List the models, and whether their files are there (as without a command)
    List,
    /// Look over the files of models that run on this machine, and try their Python
    #[command(after_help = MODELS_HELP)]
    Check(CheckModels),
    /// Check a checkpoint, and write the model into the configuration file
    #[command(after_help = MODELS_HELP)]
    Add(Box<AddModel>),
}

#[derive(Debug, Args)]
pub(crate) struct CheckModels {
    /// Only this one, wherever it runs
    pub name: Option<ModelName>,
    /// Make or update the Python environment in the data directory first, with uv
    #[arg(long)]
    pub create_env: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AddModel {
    /// What requests will call it
    pub name: ModelName,
    /// Directory of the weights, in diffusers' format
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// What runs it [default: as the checkpoint has it]
    #[arg(long)]
    pub engine: Option<PythonEngine>,
    /// The Python that runs it [default: `python` of the configuration, else the environment in the
    /// data directory]
    #[arg(long, value_name = "PATH", conflicts_with = "create_env")]
    pub python: Option<PathBuf>,
    /// Make or update the Python environment in the data directory, with uv: about 6 GB
    #[arg(long)]
    pub create_env: bool,
    /// Another name of it; may be given several times [default: t2v-A14B and its like]
    #[arg(long = "alias", value_name = "NAME")]
    pub aliases: Vec<ModelName>,
    /// The pool whose workers run it [default: local]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<PoolName>,
    /// What waits in the machine's memory instead of the GPU's
    #[arg(long, value_name = "MODE")]
    pub offload: Option<Offload>,
    /// GPUs that share the work on one video; each has all the weights, and the pool hands them out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub gpus: Option<u8>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Replace the model of this name, with all that it has
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PythonEngine {
    Wan,
    StableDiffusion,
}

impl PythonEngine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wan => "wan",
            Self::StableDiffusion => "stable-diffusion",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Offload {
    /// Whole models, but for the one at work
    Model,
    /// A few layers at a time
    Group,
    /// Every layer: by far the slowest
    Sequential,
}

impl Offload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Group => "group",
            Self::Sequential => "sequential",
        }
    }
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
    /// A command line for each task; workers start it
    Command,
    /// Somebody else's engine server; workers start it
    Server,
}

/// `anime`, or `anime=0.8`.
fn lora(text: &str) -> Result<Lora, String> {
    let (name, scale) = match text.split_once('=') {
        Some((name, scale)) => (name, finite(scale).map_err(|_| format!("`{scale}` is no scale"))?),
        None => (text, 1.0),
    };
    if name.is_empty() {
        return Err("write it as NAME or NAME=SCALE, such as anime=0.8".to_owned());
    }
    Ok(Lora { name: name.to_owned(), scale })
}

/// A number that JSON can carry.
fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("it is not a number".to_owned()),
    }
}
