//! `rayreel models`: which there are, whether their files are there, and how another is added.

mod add;
mod block;
mod environment;
mod gpu;
mod program;
mod target;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use rayreel_client::ModelBody;
use rayreel_domain::request::Images;
use rayreel_domain::{Code, ModelName};
use rayreel_server::config::{self, Examined, Loaded, Model, Settings};
use serde::Serialize;

use crate::args::{self, Global};
use crate::failure::{Exit, Failure};
use crate::on_runtime;
use crate::out::Out;
use crate::session::{Session, Workers};
use crate::settings;
use crate::text::{self, one_line};
use environment::Environment;

pub(crate) fn run(global: &Global, command: Option<args::Models>, out: Out) -> Result<(), Exit> {
    match command.unwrap_or(args::Models::List) {
        args::Models::List => match global.server.as_deref() {
            Some(server) if !server.is_empty() => on_runtime(list_of_server(global, out)),
            _ => list(global, out),
        },
        args::Models::Check(asked) => check(global, &asked, out),
        args::Models::Add(asked) => add::run(global, &asked, out),
    }
}

/// Says so in the log if a model is run by an environment that another build of this program has
/// made: most often that works, and if it does not, this is why.
pub(crate) fn warn_of_environment(settings: &Settings) {
    let environment = Environment::of(settings);
    let mut here = settings.models.values().filter(|model| settings.is_run_here(model));
    let is_used = here.any(|model| {
        model.python_engine().is_some() && settings.python_of(model) == environment.python()
    });
    if is_used && !environment.is_current() {
        let python = environment.python().display().to_string();
        tracing::warn!(
            python,
            "the Python environment was made by another version of rayreel: \
             `rayreel models check --create-env` brings it up to date"
        );
    }
}

/// A model as the configuration has it, and as its files are.
#[derive(Debug, Serialize)]
struct Line<'a> {
    name: &'a ModelName,
    aliases: &'a [ModelName],
    default: bool,
    /// `command` if it is no engine of ours.
    engine: &'a str,
    pool: String,
    checkpoint: Option<&'a str>,
    /// Of the weights, on the disk.
    bytes: Option<u64>,
    state: State,
    faults: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Faulty,
    /// Its workers are not started on this machine.
    Elsewhere,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Faulty => "faulty",
            Self::Elsewhere => "runs elsewhere",
        }
    }
}

impl<'a> Line<'a> {
    fn new(name: &'a ModelName, model: &'a Model, loaded: &Loaded, examined: &Examined) -> Self {
        let here = loaded.settings.is_run_here(model);
        Self {
            name,
            aliases: &model.aliases,
            default: loaded.settings.default_model == *name,
            engine: model.engine.as_deref().unwrap_or("command"),
            pool: model.pool.to_string(),
            checkpoint: model.checkpoint.as_deref(),
            bytes: examined.checkpoint.as_ref().map(|checkpoint| checkpoint.bytes()),
            state: match examined.faults.is_empty() {
                _ if !here => State::Elsewhere,
                true => State::Ok,
                false => State::Faulty,
            },
            faults: examined.faults.iter().map(ToString::to_string).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Line<'a>>,
}

fn list(global: &Global, out: Out) -> Result<(), Exit> {
    let loaded = config::load(&settings::sources(global, None)).map_err(Failure::from)?;
    let lines = loaded.settings.models.iter().map(|(name, model)| {
        let examined = match loaded.settings.is_run_here(model) {
            true => loaded.examine(name),
            false => Examined { checkpoint: None, faults: Vec::new() },
        };
        Line::new(name, model, &loaded, &examined)
    });
    let data: Vec<Line<'_>> = lines.collect();
    if out.json {
        return out.json(&List { object: "list", data });
    }
    out.line(table(&data).trim_end())
}

fn table(lines: &[Line<'_>]) -> String {
    let mut table = String::from(
        "MODEL                     ALIASES           ENGINE            POOL            SIZE  STATE\n",
    );
    for line in lines {
        let names: Vec<&str> = line.aliases.iter().map(ModelName::as_str).collect();
        let default = if line.default { ", default" } else { "" };
        _ = writeln!(
            table,
            "{:<24}  {:<16}  {:<16}  {:<12}  {:>6}  {}{default}",
            line.name.as_str(),
            names.join(","),
            line.engine,
            line.pool,
            line.bytes.map_or("–".to_owned(), text::bytes),
            line.state.word(),
        );
        for fault in &line.faults {
            _ = writeln!(table, "  {}", one_line(fault, 1000));
        }
    }
    table
}

async fn list_of_server(global: &Global, out: Out) -> Result<(), Exit> {
    let mut session = Session::new(global, Workers::None, out)?;
    let list = session.call(|client| async move { client.models().await }).await;
    let closed = session.close().await;
    let list = list?;
    if out.json {
        out.json(&list)?;
    } else {
        out.line(served(&list.data).trim_end())?;
    }
    Ok(closed?)
}

fn served(models: &[ModelBody]) -> String {
    let mut table =
        String::from("MODEL                     ALIASES           IMAGES      DEFAULTS\n");
    for model in models {
        let defaults = &model.defaults;
        let frames = match defaults.frames {
            1 => "a still".to_owned(),
            frames => format!("{frames} frames at {} fps", defaults.fps),
        };
        let notes = [(model.default, ", default"), (model.test_pattern, ", test pattern")];
        let notes: String = notes.iter().filter(|(is, _)| *is).map(|(_, note)| *note).collect();
        _ = writeln!(
            table,
            "{:<24}  {:<16}  {:<10}  {}, {frames}, {} steps{notes}",
            one_line(&model.id, 64),
            one_line(&model.aliases.join(","), 200),
            match model.images {
                Images::None => "none",
                Images::First => "first",
                Images::FirstLast => "first-last",
            },
            defaults.size,
            defaults.steps,
        );
    }
    table
}

fn check(global: &Global, asked: &args::CheckModels, out: Out) -> Result<(), Exit> {
    let loaded = config::load(&settings::sources(global, None)).map_err(Failure::from)?;
    let settings = &loaded.settings;
    let names: Vec<&ModelName> = match &asked.name {
        Some(name) => {
            let found = settings.canonical(name).ok_or_else(|| {
                let known: Vec<&str> = settings.models.keys().map(ModelName::as_str).collect();
                let message =
                    format!("there is no model `{name}`; there are: {}", known.join(", "));
                Failure::new(Code::UnknownModel, message)
            })?;
            vec![found]
        }
        None => {
            let here = settings.models.iter().filter(|(_, model)| settings.is_run_here(model));
            here.map(|(name, _)| name).collect()
        }
    };
    let environment = Environment::of(settings);
    if asked.create_env {
        let mut engines = names.iter().filter_map(|name| settings.models[*name].python_engine());
        let engine = engines.next().unwrap_or("wan");
        environment.create(engine, &environment::Models::new(), out)?;
    }
    let examined: Vec<Examined> = names.iter().map(|name| loaded.examine(name)).collect();
    // Each Python is tried once for each engine.
    let mut trials: BTreeMap<(PathBuf, &str), environment::Models<'_>> = BTreeMap::new();
    for (name, examined) in names.iter().zip(&examined) {
        let model = &settings.models[*name];
        let is_there = !examined.faults.iter().any(is_of_python);
        if let (Some(engine), true) = (model.python_engine(), is_there) {
            let pipeline = examined.checkpoint.as_ref().map(|found| found.pipeline.as_str());
            let asked = environment::Asked { settings: &model.settings, pipeline };
            trials.entry((settings.python_of(model), engine)).or_default().insert(name, asked);
        }
    }
    let mut lines: Vec<Line<'_>> = (names.iter().zip(&examined))
        .map(|(name, examined)| Line::new(name, &settings.models[*name], &loaded, examined))
        .collect();
    for ((python, engine), models) in &trials {
        let tried = environment::try_python(python, engine, models);
        if let Ok(found) = &tried {
            out.note(&format!("{}: {found}", python.display()));
        }
        for line in lines.iter_mut().filter(|line| models.contains_key(line.name)) {
            line.faults.extend(match &tried {
                Ok(found) => found.wrong.get(line.name.as_str()).map(|why| {
                    format!("models.{}: the engine `{engine}` refuses it: {why}", line.name)
                }),
                Err(unfit) => Some(format!("{}: {unfit}", python.display())),
            });
        }
    }
    for line in &mut lines {
        // It was asked for, wherever it runs.
        line.state = if line.faults.is_empty() { State::Ok } else { State::Faulty };
    }
    let faulty = lines.iter().filter(|line| line.state == State::Faulty).count();
    if out.json {
        out.json(&List { object: "list", data: lines })?;
    } else {
        out.line(table(&lines).trim_end())?;
    }
    match faulty {
        0 => Ok(()),
        // Everything has been said.
        _ => Err(Exit::Silent(Code::InvalidConfig.exit())),
    }
}

/// Is it that there is no Python that could be tried?
fn is_of_python(fault: &config::Error) -> bool {
    [".python", ".engine"].iter().any(|end| fault.key().ends_with(end)) || fault.key() == "python"
}
