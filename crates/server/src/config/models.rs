//! What models need besides their settings: which Python runs an engine, and whether the files that
//! are named are there.
//!
//! Those of models whose workers are started on this machine are looked at before a server starts:
//! what is missing is told then, and where it is configured, not when the first task fails.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rayreel_bridge::Kind;
use rayreel_domain::ModelName;
use rayreel_domain::wire::worker::EngineSetup;
use rustix::fs::Access;

use super::check::Place;
use super::{Error, Loaded, Model, Pool, Provider, Settings};
use crate::checkpoint::{self, Checkpoint};

/// Engines that come with the Python package `rayreel`.
pub const PYTHON_ENGINES: &[&str] = &["stable-diffusion", "wan"];

/// What a model's files are like.
#[derive(Debug)]
pub struct Examined {
    /// Of engines that run one in diffusers' format, if it is whole.
    pub checkpoint: Option<Checkpoint>,
    pub faults: Vec<Error>,
}

impl Model {
    /// Its engine, if that needs a Python with the package `rayreel`.
    pub fn python_engine(&self) -> Option<&str> {
        self.engine.as_deref().filter(|engine| PYTHON_ENGINES.contains(engine))
    }
}

impl Pool {
    /// Are its workers started on this machine?
    pub fn is_here(&self) -> bool {
        self.provider == Provider::Local && self.max > 0
    }
}

impl Settings {
    /// Where the program makes a Python environment, on request.
    pub fn environment(&self) -> PathBuf {
        self.data.join("python")
    }

    /// The Python that the configuration names for a model's engine: its own, or that of all.
    pub fn named_python(&self, model: &Model) -> Option<PathBuf> {
        model.python.as_ref().or(self.python.as_ref()).map(PathBuf::from)
    }

    /// The Python that runs a model's engine: the one that is named, the one that the program has
    /// made, or the one that the program was installed with, as a wheel brings both.
    pub fn python_of(&self, model: &Model) -> PathBuf {
        self.named_python(model).unwrap_or_else(|| {
            let made = self.environment().join("bin/python");
            let installed = || std::env::current_exe().ok().and_then(|exe| beside(&exe));
            if made.exists() { made } else { installed().unwrap_or(made) }
        })
    }

    /// Are workers of the model started on this machine?
    pub fn is_run_here(&self, model: &Model) -> bool {
        self.pools.get(&model.pool).is_some_and(Pool::is_here)
    }

    pub(super) fn engine_setup(&self, model: &Model) -> Option<EngineSetup> {
        match (&model.engine, &model.command) {
            (Some(engine), None) if model.python_engine().is_some() => {
                let python = self.python_of(model).to_string_lossy().into_owned();
                let words = [python.as_str(), "-m", "rayreel", engine];
                Some(EngineSetup::Command(words.map(str::to_owned).into()))
            }
            (Some(name), None) => Some(EngineSetup::BuiltIn(name.clone())),
            (None, Some(command)) => Some(EngineSetup::Command(command.clone())),
            _ => None,
        }
    }
}

impl Loaded {
    /// Looks at the files of every model that is run here. The first fault is the error.
    pub fn check_files(&self) -> Result<(), Error> {
        self.settings.models.keys().try_for_each(|name| self.check_files_of(name))
    }

    /// Looks at the files of a model, if it is run here.
    pub fn check_files_of(&self, name: &ModelName) -> Result<(), Error> {
        let model = self.settings.models.get(name);
        if !model.is_some_and(|model| self.settings.is_run_here(model)) {
            return Ok(());
        }
        self.examine(name).faults.into_iter().next().map_or(Ok(()), Err)
    }

    /// Looks at the files of a model.
    pub fn examine(&self, name: &ModelName) -> Examined {
        let mut examined = Examined { checkpoint: None, faults: Vec::new() };
        let Some(model) = self.settings.models.get(name) else {
            return examined;
        };
        let at = Place::root(&self.tree);
        let at_model = at.key("models").key(name.as_str());
        let inspected = match (&model.checkpoint, model.python_engine()) {
            (None, _) => Ok(None),
            (Some(path), Some(engine)) => {
                checkpoint::inspect(Path::new(path), Some(engine)).map(Some)
            }
            (Some(path), None) => {
                checkpoint::directory(Path::new(path)).map(|()| None).map_err(|fault| vec![fault])
            }
        };
        match inspected {
            Ok(checkpoint) => examined.checkpoint = checkpoint,
            Err(faults) => {
                let at = at_model.key("checkpoint");
                examined.faults.extend(faults.into_iter().map(|fault| at.wrong(fault)));
            }
        }
        // Other engines may be servers that have them elsewhere, or programs that take what they like.
        let is_python = model.python_engine().is_some();
        if is_python || model.engine.as_deref() == Some("command") {
            let at = at_model.key("loras");
            for (name, lora) in &model.loras {
                let at = at.key(name.as_str());
                for (key, path) in lora.paths() {
                    if let Err(fault) = checkpoint::lora(Path::new(path), is_python) {
                        let at_file = key.map(|key| at.key(key));
                        examined.faults.push(at_file.as_ref().unwrap_or(&at).wrong(fault));
                    }
                }
            }
        }
        if let Some(kind) = model.engine.as_deref().and_then(Kind::named) {
            let at = at_model.key("settings").key("headers");
            for (header, variable) in rayreel_bridge::headers(kind, &model.settings) {
                if !self.engine_variables.contains(OsStr::new(&variable)) {
                    examined.faults.push(at.key(&header).wrong(format_args!(
                        "the environment has no variable {variable}: set it for the server, whose \
                         workers have it from there"
                    )));
                }
            }
        }
        if is_python {
            let python = self.settings.python_of(model);
            if let Err(why) = is_program(&python) {
                let python = python.display();
                examined.faults.push(match (&model.python, &self.settings.python) {
                    (Some(_), _) => at_model.key("python").wrong(format_args!("{python} {why}")),
                    (None, Some(_)) => at.key("python").wrong(format_args!("{python} {why}")),
                    (None, None) => at_model.key("engine").wrong(format_args!(
                        "there is no Python for it yet: {python} {why}; `rayreel models check \
                         --create-env` makes it, or name one of your own with `python`"
                    )),
                });
            }
        }
        examined
    }
}

/// The Python of the environment in which a program is installed, if it is in one (PEP 405).
fn beside(program: &Path) -> Option<PathBuf> {
    let folder = program.parent()?;
    let python = folder.join("python");
    (folder.parent()?.join("pyvenv.cfg").exists() && python.exists()).then_some(python)
}

fn is_program(path: &Path) -> Result<(), &'static str> {
    if !path.exists() {
        Err("does not exist")
    } else if !path.is_file() {
        Err("is no program")
    } else if rustix::fs::access(path, Access::EXEC_OK).is_err() {
        Err("can't be executed by this user")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
