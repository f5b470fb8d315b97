//! What the configuration says to the engine `command`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rayreel_domain::request::Images;
use regex_lite::Regex;
use serde_json::{Map, Value};

use super::template::{Placeholder, Template};
use super::wan;
use crate::Model;
use crate::settings::{NO_VARIABLE, Table, Wrong, is_variable, text};

const KEYS: &[&str] = &[
    "run",
    "reads_request",
    "preset",
    "environment",
    "directory",
    "progress",
    "output",
    "out_of_memory",
    "stop_seconds",
    "silence_seconds",
];

const PRESETS: &[&str] = &["wan2.2"];

/// What torch says when a GPU's memory has run out, in its several ways.
const OUT_OF_MEMORY: &str =
    r"OutOfMemoryError|CUDA out of memory|HIP out of memory|CUDA error: out of memory";

const DAY: f64 = 86_400.0;

/// A command line, and how to understand what it does.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(super) run: Template,
    /// The program finds in the request's file, or in its environment, what `run` doesn't tell it.
    pub(super) reads_request: bool,
    pub(super) environment: BTreeMap<String, String>,
    /// The program's working directory, absolute; the request's output directory if there is none.
    pub(super) directory: Option<PathBuf>,
    /// Finds `step` and `steps`, and maybe `stage`, in a line of the output.
    pub(super) progress: Option<Regex>,
    /// Name of the file that the program writes; `output` with the format's extension if none.
    pub(super) output: Option<String>,
    /// Finds in the output that memory has run out.
    pub(super) out_of_memory: Regex,
    /// How long a program may take to end after SIGTERM.
    pub(super) stop: Duration,
    /// A program that neither writes nor computes for so long hangs.
    pub(super) silence: Duration,
    /// A preset that knows what its program can't do.
    pub(super) wan: Option<wan::Task>,
}

impl Settings {
    pub(crate) fn read(given: &Map<String, Value>) -> Result<Settings, Wrong> {
        match given.get("preset") {
            None => Settings::own(given),
            Some(Value::String(name)) if name == "wan2.2" => wan::settings(given),
            Some(other) => {
                let presets = PRESETS.join(", ");
                Err(Wrong::value(
                    "preset",
                    format!("there is no preset {other}; there is {presets}"),
                ))
            }
        }
    }

    /// Says what of a request the program would not learn, if there is something: it must not be
    /// dropped in silence.
    pub(super) fn untold(&self, value: &impl Fn(Placeholder) -> Option<String>) -> Option<String> {
        let mut wishes = Placeholder::WISHES.iter().copied();
        let untold = wishes.find(|wish| {
            let told = || self.reads_request || self.run.tells(*wish, value);
            value(*wish).is_some() && !told()
        })?;
        let name = untold.name();
        Some(format!(
            "this model's program would not be told `{name}`: leave it out. (For the operator: the \
             command line needs {{{name}}} or {{request_file}}, or, if the program reads the \
             request's file or its environment, the setting `reads_request = true`)"
        ))
    }

    /// Says what of its model can't be had from this command line.
    pub(crate) fn check_model(&self, model: &Model<'_>) -> Result<(), Wrong> {
        let (stop, grace) = (self.stop.as_secs_f64(), model.grace.as_secs_f64());
        if self.stop >= model.grace {
            let message = format!(
                "{stop} must be less than the model's `grace_seconds`, {grace}: after that the \
                 engine is killed, before it could end all that the program has started"
            );
            return Err(Wrong::value("stop_seconds", message));
        }
        if model.checkpoint.is_none() && self.run.needs(Placeholder::Checkpoint) {
            let message = "is missing: the command line has `{checkpoint}`";
            return Err(Wrong::model(&["checkpoint"], message));
        }
        if let Some(task) = self.wan {
            return task.check_model(model);
        }
        if model.images == Images::None && self.run.needs(Placeholder::Image) {
            let message = "must be \"first\" or \"first-last\": the command line always has \
                           `{image}`; or put that into a group, such as [\"--image={image}\"]";
            return Err(Wrong::model(&["images"], message));
        }
        let guidance = model.defaults;
        let offers: [(_, &[&str], _); 4] = [
            (model.has_loras, &["loras"], Placeholder::Loras),
            (model.images == Images::FirstLast, &["images"], Placeholder::LastImage),
            (guidance.guidance.is_some(), &["defaults", "guidance"], Placeholder::Guidance),
            (guidance.guidance_2.is_some(), &["defaults", "guidance_2"], Placeholder::Guidance2),
        ];
        // With all that a request may have, each group is there.
        let told = |what| self.reads_request || self.run.tells(what, &|_| Some(String::new()));
        match offers.into_iter().find(|(offered, _, what)| *offered && !told(*what)) {
            None => Ok(()),
            Some((_, path, what)) => {
                let name = what.name();
                let message = format!(
                    "the program would not be told of it: add the placeholder to \
                     `settings.run`, such as the group [\"--{}={{{name}}}\"], or `{{request_file}}`; \
                     or write `reads_request = true`, if it reads the request's file or its \
                     environment",
                    name.replace('_', "-")
                );
                Err(Wrong::model(path, message))
            }
        }
    }

    /// A command line of the operator's own.
    fn own(given: &Map<String, Value>) -> Result<Settings, Wrong> {
        let table = Table::new(given, KEYS)?;
        let run = table.list("run")?.ok_or_else(|| {
            Wrong::whole("`run`, the program and its arguments, is missing; or name a `preset`")
        })?;
        let run = Template::read(run)?;
        let program = run.program();
        if program.contains('/') && !Path::new(program).is_absolute() {
            let message = format!(
                "the program `{program}` must be an absolute path, or a name that is found in PATH"
            );
            return Err(Wrong::value("run", message));
        }
        let progress = table.text("progress")?.map(progress).transpose()?;
        let output = table.text("output")?.map(file_name).transpose()?;
        let directory = directory(&table, "directory")?;
        let reads_request = table.flag("reads_request")?.unwrap_or(false);
        Ok(Settings { reads_request, directory, progress, output, ..Settings::with(run, &table)? })
    }

    /// What every command line has, whoever wrote it.
    pub(super) fn with(run: Template, table: &Table<'_>) -> Result<Settings, Wrong> {
        let out_of_memory = table.text("out_of_memory")?.unwrap_or(OUT_OF_MEMORY);
        let seconds = |key, default, allowed| {
            let seconds = table.number(key, allowed)?.unwrap_or(default);
            Ok::<_, Wrong>(Duration::from_secs_f64(seconds))
        };
        Ok(Settings {
            run,
            reads_request: false,
            environment: table.table("environment", environment)?.unwrap_or_default(),
            directory: None,
            progress: None,
            output: None,
            out_of_memory: pattern("out_of_memory", out_of_memory)?,
            stop: seconds("stop_seconds", 5.0, 0.0..=3600.0)?,
            silence: seconds("silence_seconds", 300.0, 0.1..=DAY)?,
            wan: None,
        })
    }
}

/// An absolute path of a directory; whether it exists is known on the worker's machine.
pub(super) fn directory(table: &Table<'_>, key: &str) -> Result<Option<PathBuf>, Wrong> {
    let read = |text: &str| match Path::new(text) {
        path if path.is_absolute() => Ok(path.to_owned()),
        _ => Err(Wrong::value(key, format!("must be an absolute path, not `{text}`"))),
    };
    table.text(key)?.map(read).transpose()
}

fn progress(text: &str) -> Result<Regex, Wrong> {
    let regex = pattern("progress", text)?;
    for name in ["step", "steps"] {
        if !regex.capture_names().flatten().any(|own| own == name) {
            let message = format!("must have a group `(?P<{name}>\\d+)`");
            return Err(Wrong::value("progress", message));
        }
    }
    Ok(regex)
}

pub(super) fn pattern(key: &str, text: &str) -> Result<Regex, Wrong> {
    Regex::new(text)
        .map_err(|error| Wrong::value(key, format!("is no regular expression: {error}")))
}

fn file_name(text: &str) -> Result<String, Wrong> {
    if text.contains('/') || matches!(text, "." | "..") {
        let message = format!("must be the name of a file, without a directory, not `{text}`");
        return Err(Wrong::value("output", message));
    }
    Ok(text.to_owned())
}

fn environment(given: &Map<String, Value>) -> Result<BTreeMap<String, String>, Wrong> {
    let read = |(name, value): (&String, &Value)| {
        let wrong = |why: String| Wrong::value(name, why);
        if !is_variable(name) {
            return Err(wrong(NO_VARIABLE.into()));
        }
        if name.starts_with("RAYREEL_") {
            return Err(wrong("is set by the engine itself".into()));
        }
        match value {
            Value::String(text) if text.is_empty() => Ok((name.clone(), String::new())),
            value => Ok((name.clone(), text(value).map_err(wrong)?.to_owned())),
        }
    };
    given.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(given: Value) -> Result<Settings, String> {
        Settings::read(given.as_object().unwrap()).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn only_the_command_line_must_be_said() {
        let settings = read(json!({"run": ["generate"]})).unwrap();
        assert_eq!(
            (settings.stop, settings.silence),
            (Duration::from_secs(5), Duration::from_secs(300))
        );
        assert!(settings.progress.is_none() && settings.environment.is_empty());
        for said in
            ["torch.OutOfMemoryError: CUDA out of memory. Tried", "CUDA error: out of memory"]
        {
            assert!(settings.out_of_memory.is_match(said), "{said}");
        }
        assert!(!settings.out_of_memory.is_match("the shop is out of stock"));
    }

    #[test]
    fn every_error_names_its_setting_and_what_is_right() {
        let run = |more: Value| {
            let mut all = json!({"run": ["p"]});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        for (given, message) in [
            (json!({}), "the settings: `run`, the program and its arguments, is missing"),
            (json!({"run": "p"}), "setting `run`: must be a list, not `\"p\"`"),
            (json!({"run": ["./p"]}), "setting `run`: the program `./p` must be an absolute path"),
            (
                json!({"preset": "wan"}),
                "setting `preset`: there is no preset \"wan\"; there is wan2.2",
            ),
            (json!({"rum": ["p"]}), "there is no setting `rum`; there is run, reads_request"),
            (run(json!({"progress": "("})), "setting `progress`: is no regular expression"),
            (
                run(json!({"progress": "a"})),
                "setting `progress`: must have a group `(?P<step>\\d+)`",
            ),
            (run(json!({"output": "../a"})), "setting `output`: must be the name of a file"),
            (run(json!({"output": ""})), "setting `output`: must not be empty"),
            (
                run(json!({"directory": "a"})),
                "setting `directory`: must be an absolute path, not `a`",
            ),
            (
                run(json!({"stop_seconds": -1})),
                "setting `stop_seconds`: must be a number from 0 to 3600",
            ),
            (
                run(json!({"silence_seconds": 0})),
                "setting `silence_seconds`: must be a number from 0.1 to 86400, not `0`",
            ),
            (run(json!({"silence_seconds": "1"})), "setting `silence_seconds`: must be a number"),
            (run(json!({"environment": []})), "setting `environment`: must be a table, not `[]`"),
            (
                run(json!({"environment": {"A": 1}})),
                "setting `environment.A`: must be text, not `1`",
            ),
            (run(json!({"environment": {"A=": ""}})), "setting `environment.A=`: is no name"),
            (run(json!({"environment": {"": ""}})), "setting `environment.`: is no name"),
            (run(json!({"environment": {"1A": ""}})), "setting `environment.1A`: is no name"),
            (run(json!({"environment": {"RAYREEL_SEED": "1"}})), "is set by the engine itself"),
            (run(json!({"out_of_memory": "["})), "setting `out_of_memory`: is no regular"),
        ] {
            let wrong = read(given.clone()).unwrap_err();
            assert!(wrong.contains(message), "{given}: {wrong}");
        }
    }

    #[test]
    fn every_key_is_read() {
        for key in KEYS {
            let wrong = read(json!({"run": ["p"], *key: [false]})).unwrap_err();
            assert!(wrong.contains(&format!("`{key}`: ")), "{key}: {wrong}");
        }
    }
}
