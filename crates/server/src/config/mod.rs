//! Settings: plain data, read once from layers and passed on.
//!
//! `config.default.toml` documents every key and is itself the first layer, so that a default
//! stands in one place; a file, the environment and flags are laid over it. Every value keeps its
//! origin until it has been checked, so that each error names where the fault stands and what is
//! right: [`Error`].

mod artifacts;
mod check;
mod lora;
mod models;
mod read;
mod tenant;
mod tree;
mod values;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy;
use rayreel_domain::id::LoraName;
use rayreel_domain::lease::Terms;
use rayreel_domain::request::{Defaults, Images, Limits, ModelSpec};
use rayreel_domain::scale::Policy;
use rayreel_domain::schedule::Locality;
use rayreel_domain::task::Rules;
use rayreel_domain::wire::worker::ModelSetup;
use rayreel_domain::{Code, ModelName, PoolName, TenantName};
use rustix::fs::OFlags;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::outbound::{self, Allowed};
pub use artifacts::Artifacts;
pub use lora::Lora;
pub use models::{Examined, PYTHON_ENGINES};
pub use tenant::Tenant;
use tree::Node;
pub use tree::Origin;
pub use values::{InputRoot, StoreAt};

/// The commented default file.
pub const DEFAULT_FILE: &str = include_str!("config.default.toml");

/// Name of the configuration file.
pub const FILE_NAME: &str = "rayreel.toml";

/// Engines that are part of the program.
pub const BUILT_IN_ENGINES: &[&str] = &["testcard", "command", "server"];

/// The model that exists without being configured.
pub const TEST_MODEL: &str = "testcard";

/// Variables RAYREEL_… that the program reads, but not as settings.
const OTHER_VARIABLES: &[&str] =
    &["config", "server", "token", "admin_key", "worker_token", "launch", "log"];

/// A configuration file is not longer than this.
const MAX_FILE: u64 = 1 << 20;

/// What a server is told. Every key is described in `config.default.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Without a slash at its end.
    #[serde(
        default,
        deserialize_with = "values::public_url",
        skip_serializing_if = "Option::is_none"
    )]
    pub public_url: Option<String>,
    /// Absolute.
    pub data: PathBuf,
    pub store: StoreAt,
    /// One of `models`.
    pub default_model: ModelName,
    /// Absolute; of models that name no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    pub cors_origins: Vec<String>,
    pub max_body_bytes: u64,
    pub max_bodies_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    pub max_stall_seconds: Seconds,
    pub input_roots: Vec<InputRoot>,
    pub max_queued: u64,
    pub lease_seconds: Seconds,
    pub max_run_seconds: Seconds,
    pub max_wait_seconds: Seconds,
    pub garbage_after_seconds: Seconds,
    pub retry: Retry,
    pub schedule: Schedule,
    pub inputs: Inputs,
    pub outbound: Outbound,
    pub artifacts: Artifacts,
    pub log: Log,
    pub tenants: BTreeMap<TenantName, Tenant>,
    pub pools: BTreeMap<PoolName, Pool>,
    pub models: BTreeMap<ModelName, Model>,
}

/// How often a task is tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    pub max_failures: u32,
    pub max_losses: u32,
    pub max_releases: u32,
    pub backoff_seconds: Seconds,
    pub max_backoff_seconds: Seconds,
}

/// What locality may cost fairness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub max_lead_seconds: Seconds,
    pub max_streak: u32,
}

/// Images that come with requests, and files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    pub max_pixels: u64,
    pub file_seconds: Seconds,
    pub max_tenant_bytes: u64,
}

/// What tenants' URLs may lead to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    pub allow: Vec<Allowed>,
    pub ports: Vec<u16>,
    pub connect_seconds: Seconds,
    pub whole_seconds: Seconds,
    /// Absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    pub access: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Workers that are alike.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    pub provider: Provider,
    pub min: u32,
    pub max: u32,
    pub target_wait_seconds: Seconds,
    pub idle_timeout_seconds: Seconds,
    pub start_timeout_seconds: Seconds,
    /// As CUDA_VISIBLE_DEVICES names them.
    pub gpus: Vec<String>,
    pub gpus_per_worker: u32,
}

/// Who starts the workers of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    Local,
}

/// A model: an engine with settings, and what may be asked of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Other names of it.
    #[serde(default)]
    pub aliases: Vec<ModelName>,
    /// One of [`BUILT_IN_ENGINES`] or [`PYTHON_ENGINES`]; either this or `command` is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Absolute; of [`PYTHON_ENGINES`] only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    /// One of `pools`.
    pub pool: PoolName,
    /// Absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_seconds: Option<Seconds>,
    pub silence_seconds: Seconds,
    pub grace_seconds: Seconds,
    #[serde(default)]
    pub images: Images,
    #[serde(default)]
    pub image_required: bool,
    #[serde(default)]
    pub settings: Map<String, Value>,
    #[serde(default)]
    pub loras: BTreeMap<LoraName, Lora>,
    pub limits: Limits,
    pub defaults: Defaults,
}

/// A time in seconds, decimals allowed; once checked, positive and at most some days.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(f64);

impl Seconds {
    pub fn ms(self) -> u64 {
        (self.0 * 1000.0).round() as u64
    }

    pub fn duration(self) -> Duration {
        Duration::from_millis(self.ms())
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where settings come from. The default is nowhere but the default file.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file that was asked for; without it, RAYREEL_CONFIG.
    pub file: Option<PathBuf>,
    /// Without either, the first of these that exists.
    pub search: Vec<PathBuf>,
    /// The environment; only RAYREEL_… is looked at.
    pub variables: Vec<(OsString, OsString)>,
    pub flags: Flags,
    /// Relative paths in variables and flags are relative to this.
    pub directory: PathBuf,
    /// The data directory unless one is set.
    pub data: Option<PathBuf>,
}

/// Settings that have a flag.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub listen: Option<String>,
    pub data: Option<PathBuf>,
}

impl Sources {
    /// Those of this process, by the platform's conventions.
    pub fn of_process() -> Self {
        let platform = etcetera::choose_base_strategy().ok();
        let mut search = vec![PathBuf::from(FILE_NAME)];
        search.extend(
            platform.as_ref().map(|dirs| dirs.config_dir().join("rayreel").join(FILE_NAME)),
        );
        Self {
            file: None,
            search,
            variables: std::env::vars_os().collect(),
            flags: Flags::default(),
            directory: std::env::current_dir().unwrap_or_default(),
            data: platform.map(|dirs| dirs.data_dir().join("rayreel")),
        }
    }

    /// The configuration file that is read.
    pub fn chosen(&self) -> Option<PathBuf> {
        let named = || {
            let (_, value) = self.variables.iter().find(|(name, _)| name == "RAYREEL_CONFIG")?;
            (!value.is_empty()).then(|| PathBuf::from(value))
        };
        let found = || self.search.iter().find(|path| path.exists()).cloned();
        self.file.clone().or_else(named).or_else(found)
    }
}

/// Settings that are not right: where, and what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// None if the fault is that something is not there.
    origin: Option<Origin>,
    /// Path of the key; empty if the message says it all.
    key: String,
    message: String,
}

impl Error {
    fn new(origin: Option<Origin>, key: &str, message: impl Into<String>) -> Self {
        Self { origin, key: key.to_owned(), message: message.into() }
    }

    pub fn code(&self) -> Code {
        Code::InvalidConfig
    }

    /// Path of the key; empty if the message says it all.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        // A variable or a flag names its key.
        let named = matches!(self.origin, Some(Origin::Variable(_) | Origin::Flag(_)));
        if !named && !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Settings, and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub settings: Settings,
    /// The file that was read.
    pub file: Option<PathBuf>,
    tree: Node,
    /// Those of the environment that are handed to engines.
    engine_variables: BTreeSet<OsString>,
}

/// One setting as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, as TOML's dotted key.
    pub key: String,
    /// As it would be written in TOML.
    pub value: String,
    pub origin: Origin,
}

impl Loaded {
    /// Every setting in force, by its path.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        flatten(&self.tree, "", &mut entries);
        entries
    }
}

fn flatten(node: &Node, path: &str, entries: &mut Vec<Entry>) {
    let Some(children) = node.entries() else {
        entries.push(Entry {
            key: path.to_owned(),
            value: node.value.to_string(),
            origin: node.origin.clone(),
        });
        return;
    };
    for (key, child) in children {
        let dot = if path.is_empty() { "" } else { "." };
        flatten(child, &format!("{path}{dot}{}", tree::Key(key)), entries);
    }
}

impl Settings {
    /// Reads, lays over one another and checks all layers.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        load(sources).map(|loaded| loaded.settings)
    }
}

/// Like [`Settings::load`], and keeps the origins.
pub fn load(sources: &Sources) -> Result<Loaded, Error> {
    match sources.chosen() {
        Some(path) => layers(sources, Some((&path, &read_file(&path)?))),
        None => layers(sources, None),
    }
}

/// Like [`load`], if the configuration file were this one, with this text.
pub fn load_text(sources: &Sources, path: &Path, text: &str) -> Result<Loaded, Error> {
    layers(sources, Some((path, text)))
}

fn layers(sources: &Sources, file: Option<(&Path, &str)>) -> Result<Loaded, Error> {
    let defaults = tree::parse(DEFAULT_FILE, &|line| Origin::Default { line })?;
    let mut tree = defaults.clone();
    if let Some((path, text)) = file {
        let mut layer = tree::parse(text, &|line| Origin::File { path: path.to_owned(), line })?;
        anchor(&mut layer, path.parent().unwrap_or(Path::new("")), &sources.directory);
        tree.overlay(layer);
        layer_is_right(&tree, &defaults)?;
    }
    for (name, value) in &sources.variables {
        apply_variable(&mut tree, name, value, &sources.directory)?;
    }
    layer_is_right(&tree, &defaults)?;
    apply_flags(&mut tree, &sources.flags, &sources.directory)?;
    complete(&mut tree, &defaults, sources);
    if tree.get(&["data"]).is_none() {
        let message = "is not set, and there is no home directory to put it in; \
                       set `data`, RAYREEL_DATA or --data";
        return Err(Error::new(None, "data", message));
    }
    let mut settings: Settings = read::read(&tree, &defaults)?;
    check::check(&settings, &tree)?;
    if let Some(name) = settings.canonical(&settings.default_model) {
        settings.default_model = name.clone();
    }
    let given = sources.variables.iter().filter(|(_, value)| !value.is_empty());
    let for_engines = |name: &&OsString| {
        name.to_str().is_some_and(|name| name.starts_with(rayreel_bridge::VARIABLES))
    };
    let engine_variables = given.map(|(name, _)| name).filter(for_engines).cloned().collect();
    Ok(Loaded { settings, file: file.map(|(path, _)| path.to_owned()), tree, engine_variables })
}

/// What is wrong in a layer is so even where a stronger one says otherwise: it would be in force as
/// soon as that one is gone. Only what a layer lacks may come from a stronger one.
fn layer_is_right(tree: &Node, defaults: &Node) -> Result<(), Error> {
    let mut whole = tree.clone();
    complete(&mut whole, defaults, &Sources { data: Some(PathBuf::new()), ..Sources::default() });
    check::engine_settings(&read::read(&whole, defaults)?, &whole)
}

/// The first GPUs of a machine, as `gpus` of a pool lists them; of many, the first.
pub fn gpu_list(count: u64) -> String {
    let names: Vec<String> = (0..count.min(8)).map(|number| format!("\"{number}\"")).collect();
    format!("[{}{}]", names.join(", "), if count > 8 { ", …" } else { "" })
}

/// The text of a configuration file.
pub fn read_file(path: &Path) -> Result<String, Error> {
    let fail = |message: String| Error::new(None, &path.display().to_string(), message);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => fail("there is no such configuration file".to_owned()),
        _ => fail(format!("the configuration file can't be read: {error}")),
    };
    // To open a pipe would wait for somebody who writes to it.
    let how = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(how).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(fail("a configuration is a regular file, and this is none".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail(format!("a configuration file has at most {MAX_FILE} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        fail(format!("line {line} is not UTF-8"))
    })
}

/// Makes the data directory's path absolute, seen from the layer that it stands in.
fn anchor(layer: &mut Node, beside: &Path, directory: &Path) {
    if let Some(node) = layer.entries_mut().and_then(|entries| entries.get_mut("data"))
        && let tree::Value::String(text) | tree::Value::Text(text) = &mut node.value
        && !text.is_empty()
        && !text.starts_with('~')
    {
        *text = directory.join(beside).join(&*text).to_string_lossy().into_owned();
    }
}

fn apply_variable(
    tree: &mut Node,
    name: &OsString,
    value: &OsString,
    directory: &Path,
) -> Result<(), Error> {
    let name = name.to_string_lossy();
    let Some(path) = name.strip_prefix("RAYREEL_") else {
        return Ok(());
    };
    let is_other = OTHER_VARIABLES.iter().any(|other| tree::as_variable(other) == path);
    if is_other || name.starts_with(rayreel_bridge::VARIABLES) || value.is_empty() {
        return Ok(());
    }
    let fail = |message: String| Error::new(Some(Origin::Variable(name.to_string())), "", message);
    let text = value.to_str().ok_or_else(|| fail("is not UTF-8".to_owned()))?;
    let segments: Vec<&str> = path.split("__").collect();
    tree.set_variable(&segments, &name, text)?;
    if path == "DATA" {
        anchor(tree, Path::new(""), directory);
    }
    Ok(())
}

fn apply_flags(tree: &mut Node, flags: &Flags, directory: &Path) -> Result<(), Error> {
    let data = match &flags.data {
        None => None,
        Some(path) => Some(path.to_str().ok_or_else(|| {
            Error::new(Some(Origin::Flag("--data")), "", "the path is not UTF-8")
        })?),
    };
    let given = [("listen", "--listen", flags.listen.as_deref()), ("data", "--data", data)];
    for (key, flag, value) in given {
        if let (Some(value), Some(entries)) = (value, tree.entries_mut()) {
            entries.insert(key.to_owned(), Node::text(value, Origin::Flag(flag)));
        }
    }
    if data.is_some() {
        anchor(tree, Path::new(""), directory);
    }
    Ok(())
}

/// Fills in what depends on the platform, or on other settings.
fn complete(tree: &mut Node, defaults: &Node, sources: &Sources) {
    inherit(tree, defaults, "pools", "local", None);
    tenant::inherit(tree);
    let shared = ["pool", "silence_seconds", "grace_seconds", "limits", "defaults"];
    inherit(tree, defaults, "models", TEST_MODEL, Some(&shared));
    let model = tree.get(&["models"]).and_then(Node::entries).and_then(|models| {
        let configured = models.iter().filter(|(name, _)| *name != TEST_MODEL);
        configured.min_by_key(|(_, node)| &node.origin).map(|(name, _)| name.clone())
    });
    let (model, why) = match model {
        Some(model) => (model, "the first model configured"),
        None => (TEST_MODEL.to_owned(), "the only model there is"),
    };
    let data = sources.data.as_ref().map(|path| path.to_string_lossy().into_owned());
    let derived = [
        ("default_model", Some(model), why),
        ("data", data, "where this platform keeps a user's data"),
    ];
    if let Some(entries) = tree.entries_mut() {
        for (key, value, why) in derived {
            if let Some(value) = value {
                let node = || Node::text(value, Origin::Derived(why));
                entries.entry(key.to_owned()).or_insert_with(node);
            }
        }
    }
}

/// Gives every entry of a table of names what the default file says of one of them.
fn inherit(tree: &mut Node, defaults: &Node, table: &str, from: &str, keys: Option<&[&str]>) {
    let Some(mut template) = defaults.get(&[table, from]).cloned() else {
        return;
    };
    if let (Some(keys), Some(entries)) = (keys, template.entries_mut()) {
        entries.retain(|key, _| keys.contains(&key.as_str()));
    }
    let named = tree.entries_mut().and_then(|entries| entries.get_mut(table));
    if let Some(named) = named.and_then(Node::entries_mut) {
        named.values_mut().for_each(|node| node.underlay(&template));
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        serde::de::Error::custom(format_args!(
            "`{text}` is not an address; write it as 127.0.0.1:8088 or [::1]:8088"
        ))
    })
}

impl Settings {
    /// The name of the model that is called so, by its name or an alias.
    pub fn canonical(&self, called: &ModelName) -> Option<&ModelName> {
        let named = self.models.get_key_value(called);
        let alias = || self.models.iter().find(|(_, model)| model.aliases.contains(called));
        named.or_else(alias).map(|(name, _)| name)
    }

    /// A model as the API knows it.
    pub fn model_spec(&self, name: &ModelName) -> Option<ModelSpec> {
        let model = self.models.get(name)?;
        Some(ModelSpec {
            name: name.clone(),
            pool: model.pool.clone(),
            images: model.images,
            image_required: model.image_required,
            loras: model.loras.keys().cloned().collect(),
            limits: model.limits.clone(),
            defaults: model.defaults.clone(),
        })
    }

    /// What a worker needs to run a model.
    pub fn model_setup(&self, name: &ModelName) -> Option<ModelSetup> {
        let model = self.models.get(name)?;
        Some(ModelSetup {
            name: name.clone(),
            engine: self.engine_setup(model)?,
            checkpoint: model.checkpoint.clone(),
            settings: model.settings.clone(),
            loras: model.loras.iter().map(|(name, l)| (name.clone(), l.files().clone())).collect(),
            silence_ms: model.silence_seconds.ms(),
            grace_ms: model.grace_seconds.ms(),
        })
    }

    pub fn rules(&self) -> Rules {
        let retry = &self.retry;
        Rules {
            max_failures: retry.max_failures,
            max_losses: retry.max_losses,
            max_releases: retry.max_releases,
            backoff_ms: retry.backoff_seconds.ms(),
            max_backoff_ms: retry.max_backoff_seconds.ms(),
        }
    }

    pub fn terms(&self) -> Terms {
        Terms { lease_ms: self.lease_seconds.ms(), ..Terms::default() }
    }

    pub fn locality(&self) -> Locality {
        Locality {
            max_lead_ms: self.schedule.max_lead_seconds.ms(),
            max_streak: self.schedule.max_streak,
        }
    }
}

impl Outbound {
    pub fn options(&self) -> outbound::Options {
        outbound::Options {
            allow: self.allow.clone(),
            ports: self.ports.clone(),
            connect: self.connect_seconds.duration(),
            whole: self.whole_seconds.duration(),
            certificates: self.certificates.clone(),
        }
    }
}

impl Pool {
    pub fn policy(&self) -> Policy {
        Policy {
            min: self.min,
            max: self.max,
            target_wait_ms: self.target_wait_seconds.ms(),
            idle_timeout_ms: self.idle_timeout_seconds.ms(),
        }
    }
}

impl Model {
    /// Is this the built-in test card, which draws a pattern and runs no model?
    pub fn is_test_pattern(&self) -> bool {
        self.engine.as_deref() == Some("testcard")
    }
}
