//! `rayreel models add`: from a checkpoint to a model that requests can name.

use std::path::{Path, PathBuf};

use rayreel_domain::{Code, ModelName, PoolName};
use rayreel_server::checkpoint::{self, Checkpoint, Kind};
use rayreel_server::config::{Loaded, Pool, Settings, TEST_MODEL};
use rayreel_server::home;
use serde::Serialize;
use serde_json::{Map, Value};

use super::block::{Block, shell};
use super::environment::{self, Asked, Environment, Found, Models};
use super::gpu::{self, Gpu};
use super::target::Target;
use crate::args::{AddModel, Global};
use crate::failure::{Exit, Failure};
use crate::out::Out;
use crate::text;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Added<'a> {
    name: &'a ModelName,
    engine: &'a str,
    /// What Wan2.2's authors call it.
    task: Option<&'a str>,
    checkpoint: &'a str,
    /// Of the weights, on the disk. None, as whatever follows from the files, if they are elsewhere.
    bytes: Option<u64>,
    /// Of the weights, in a GPU's memory.
    gpu_bytes: Option<u64>,
    gpus: &'a [Gpu],
    python: Option<Found>,
    file: &'a Path,
    written: bool,
    /// Keys of the model that it replaces, and has not.
    dropped: &'a [String],
    block: &'a str,
    /// To try it.
    command: &'a str,
}

/// The configuration file with the model in it.
struct Plan {
    block: String,
    /// Keys of the old model that are gone.
    dropped: Vec<String>,
    /// Of the whole file.
    text: String,
    loaded: Loaded,
}

impl Plan {
    /// What follows from a file as it is.
    fn new(target: &Target, asked: &AddModel, block: &Block<'_>) -> Result<Self, Failure> {
        let settings = &target.loaded.settings;
        if settings.models.contains_key(&asked.name) && !asked.force {
            let message = format!("there is a model `{}` already", asked.name);
            let failure = Failure::value("name", message);
            return Err(failure.helped("Choose another name, or replace it with --force."));
        }
        let kind = block.checkpoint.map(|checkpoint| checkpoint.kind);
        let block = Block { aliases: aliases(&target.loaded, asked, kind), ..block.clone() };
        let dropped = block.dropped_from(target.text());
        let text = block.written_into(target.text()).map_err(|error| {
            Failure::new(Code::InvalidConfig, format!("{}: {error}", target.path.display()))
        })?;
        let loaded = target.with(&text)?;
        Ok(Self { block: block.text(), dropped, text, loaded })
    }
}

pub(super) fn run(global: &Global, asked: &AddModel, out: Out) -> Result<(), Exit> {
    let target = Target::find(global)?;
    if asked.name.as_str() == TEST_MODEL {
        let message = format!("`{}` is the name of the model that needs no weights", asked.name);
        return Err(Failure::value("name", message).helped("Choose another name.").into());
    }
    let path = absolute(&asked.checkpoint)?;
    let pool = pool(&target.loaded.settings, asked);
    // One that there is not is told of when the file is checked.
    let elsewhere = pool.filter(|(_, pool)| !pool.is_here()).map(|(name, _)| name);
    let checkpoint = match elsewhere {
        Some(_) if !Path::new(&path).exists() => None,
        _ => Some(inspect(Path::new(&path), asked)?),
    };
    let named = asked.engine.map(|engine| engine.name());
    let Some(engine) = checkpoint.as_ref().map(|found| found.kind.engine()).or(named) else {
        let message = format!("{path} is not on this machine, and would say what runs it");
        let failure = Failure::value("engine", message);
        return Err(failure.helped("Name the engine with --engine.").into());
    };
    let gpus = asked.gpus.unwrap_or(1);
    gpu::check_shared(gpus, engine, checkpoint.as_ref().and_then(|found| found.heads))?;
    let offload = asked.offload.map(|offload| offload.name());
    let python = asked.python.as_deref().map(absolute).transpose()?;
    let block = Block {
        name: &asked.name,
        engine,
        checkpoint: checkpoint.as_ref(),
        path: &path,
        python: python.as_deref(),
        aliases: Vec::new(),
        pool: asked.pool.as_ref(),
        offload,
        gpus: asked.gpus,
    };
    // Whether the file would be right is seen before anything takes its time.
    let plan = Plan::new(&target, asked, &block)?;
    let after = &plan.loaded.settings;
    let Some(model) = after.models.get(&asked.name) else {
        return Err(Failure::new(Code::Internal, "the model is not in what was written").into());
    };
    if !asked.dry_run {
        target.check_writable()?;
    }
    out.note(&match &checkpoint {
        Some(checkpoint) => format!("checkpoint  {path}: {}", describe(checkpoint)),
        None => format!("checkpoint  {path}: not on this machine, and not checked"),
    });
    let looked = if elsewhere.is_some() { Ok(Vec::new()) } else { gpu::find() };
    out.note(&match (elsewhere, &checkpoint) {
        (None, Some(found)) => {
            let gpus = looked.as_deref().map_err(String::as_str);
            format!("GPU         {}", gpu::verdict(gpus, found.on_gpu(), offload))
        }
        _ => format!("GPU         not looked at: the workers of `{}` run elsewhere", model.pool),
    });
    let found_gpus = looked.unwrap_or_default();
    if elsewhere.is_none() && !found_gpus.is_empty() && usize::from(gpus) > found_gpus.len() {
        let count = found_gpus.len();
        out.note(&format!(
            "            {gpus} are to share the work, and nvidia-smi shows {count}"
        ));
    }
    if let Some(needs) = pool.and_then(|(name, pool)| gpu::pool_needs(gpus, name, pool)) {
        out.note(&format!("pool        {needs}"));
    }
    let environment = Environment::of(after);
    let trial = Trial {
        python: match after.named_python(model) {
            None if asked.create_env => environment.python(),
            _ => after.python_of(model),
        },
        environment,
        engine,
        settings: &model.settings,
        pipeline: checkpoint.as_ref().map(|found| found.pipeline.as_str()),
        may_be_missing: elsewhere.is_some(),
    };
    let found = trial.run(asked, out)?;
    if !asked.dry_run {
        target.write(|target| Ok(Plan::new(target, asked, &block)?.text))?;
    }
    let command = command(global, &block);
    if !plan.dropped.is_empty() {
        let whether = if asked.dry_run { "would be" } else { "are" };
        let dropped = plan.dropped.join(", ");
        out.note(&format!("replaced    {dropped} of the old model {whether} gone"));
    }
    if out.json {
        return out.json(&Added {
            name: &asked.name,
            engine,
            task: checkpoint.as_ref().and_then(|found| found.kind.task()),
            checkpoint: &path,
            bytes: checkpoint.as_ref().map(Checkpoint::bytes),
            gpu_bytes: checkpoint.as_ref().map(|found| found.on_gpu().0),
            gpus: &found_gpus,
            python: found,
            file: &target.path,
            written: !asked.dry_run,
            dropped: &plan.dropped,
            block: &plan.block,
            command: &command,
        });
    }
    if asked.dry_run {
        out.note(&format!("{} would get:\n", target.path.display()));
        return out.line(plan.block.trim_end());
    }
    out.line(&format!("{} has the model `{}`; try it:", target.path.display(), asked.name))?;
    out.line(&format!("  {command}"))?;
    if let Some(running) = home::running(&after.data) {
        out.note(&format!("the server at {} knows of it when it is started again", running.url));
    }
    Ok(())
}

/// The pool that the model will have, if there is such a one: models that name none have `local`.
fn pool<'a>(settings: &'a Settings, asked: &AddModel) -> Option<(&'a PoolName, &'a Pool)> {
    let name = asked.pool.as_ref().map_or("local", PoolName::as_str);
    settings.pools.iter().find(|(known, _)| known.as_str() == name)
}

/// As it can stand in a configuration: links stay, so that what they lead to may change.
fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.into_os_string().into_string().map_err(|path| {
        Failure::new(Code::InvalidValue, format!("the path {} is not UTF-8", path.display()))
    })
}

fn inspect(path: &Path, asked: &AddModel) -> Result<Checkpoint, Failure> {
    checkpoint::inspect(path, asked.engine.map(|engine| engine.name())).map_err(|faults| {
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        match texts.as_slice() {
            [fault] => Failure::new(Code::InvalidConfig, fault),
            faults => Failure {
                detail: Some(faults.join("\n")),
                ..Failure::new(
                    Code::InvalidConfig,
                    format!("{} has {} faults", path.display(), faults.len()),
                )
            },
        }
    })
}

fn describe(checkpoint: &Checkpoint) -> String {
    let kind = match checkpoint.kind {
        // Whether it makes stills is for diffusers to say.
        Kind::Still => checkpoint.pipeline.clone(),
        kind => kind.to_string(),
    };
    format!("{kind}; {} of weights, whole", text::bytes(checkpoint.bytes()))
}

/// Those that were asked for; else what Wan's authors call it, if no other model is called so.
fn aliases(loaded: &Loaded, asked: &AddModel, kind: Option<Kind>) -> Vec<ModelName> {
    if !asked.aliases.is_empty() {
        return asked.aliases.clone();
    }
    let free = |alias: &ModelName| {
        let meant = loaded.settings.canonical(alias);
        *alias != asked.name && meant.is_none_or(|meant| *meant == asked.name)
    };
    let alias = kind.and_then(Kind::task).and_then(|task| task.parse().ok());
    alias.into_iter().filter(free).collect()
}

/// The Python that is to run the model.
struct Trial<'a> {
    environment: Environment,
    python: PathBuf,
    engine: &'a str,
    settings: &'a Map<String, Value>,
    /// If the checkpoint is there.
    pipeline: Option<&'a str>,
    /// It is for another machine.
    may_be_missing: bool,
}

impl Trial<'_> {
    /// Tries it, and makes it before if that was asked for. None if it would have to be made first.
    fn run(&self, asked: &AddModel, out: Out) -> Result<Option<Found>, Failure> {
        let python = self.python.display();
        if asked.create_env {
            if self.python != self.environment.python() {
                let message = format!(
                    "--create-env would make {}, but `python` in the configuration names {python}",
                    self.environment.python().display()
                );
                return Err(Failure::new(Code::InvalidConfig, message)
                    .helped("Take `python` out of the configuration, or leave out --create-env."));
            }
            if asked.dry_run && !self.environment.is_current() {
                out.note(&format!("Python      {python} would be made"));
                return Ok(None);
            }
        }
        if self.may_be_missing && !asked.create_env && !self.python.exists() {
            out.note(&format!("Python      {python}: not on this machine, and not tried"));
            return Ok(None);
        }
        let model = Asked { settings: self.settings, pipeline: self.pipeline };
        let models = Models::from([(&asked.name, model)]);
        let found = match asked.create_env {
            true => self.environment.create(self.engine, &models, out)?,
            false => environment::try_python(&self.python, self.engine, &models)
                .map_err(|unfit| self.environment.unfit(&self.python, self.engine, &unfit))?,
        };
        out.note(&format!("Python      {python}: {found}"));
        if let Some(why) = found.wrong.get(asked.name.as_str()) {
            let message = format!("the engine `{}` refuses this model: {why}", self.engine);
            return Err(Failure::new(Code::InvalidConfig, message));
        }
        Ok(Some(found))
    }
}

/// What makes the first video with it.
fn command(global: &Global, block: &Block<'_>) -> String {
    let mut words = vec!["rayreel".to_owned()];
    for (option, path) in [("--config", &global.config), ("--data", &global.data)] {
        words.extend(path.iter().map(|path| format!("{option} {}", shell(path))));
    }
    words.push(format!("generate --model {} \"a red fox running through snow\"", block.name));
    words.push(match block.checkpoint.map(|checkpoint| checkpoint.kind) {
        Some(Kind::I2vA14b | Kind::WanI2v) => "--image fox.png -o fox.mp4".to_owned(),
        _ if block.engine == "stable-diffusion" => "-o fox.png".to_owned(),
        _ => "-o fox.mp4".to_owned(),
    });
    words.join(" ")
}
