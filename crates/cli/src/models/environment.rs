//! The Python that runs an engine: tried, and made on request.
//!
//! The program brings the sources of its Python package, so that engines and program always fit. They
//! are written into the data directory, and uv installs them from there, with what they need.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rayreel_domain::{Code, ModelName};
use rayreel_server::config::Settings;
use rayreel_server::home;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::program;
use crate::failure::Failure;
use crate::out::Out;

/// Every file of the Python package, by its path.
const PACKAGE: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/package.rs"));

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The first import of torch after a start of the machine reads gigabytes.
const LIMIT: Duration = Duration::from_secs(180);

/// Imports what the engine does, and has it read settings.
const TRIAL: &str = include_str!("trial.py");

/// A model, of which the engine is asked whether it could run it.
#[derive(Debug, Serialize)]
pub(super) struct Asked<'a> {
    pub settings: &'a Map<String, Value>,
    /// The class of its checkpoint's pipeline, if that is known.
    pub pipeline: Option<&'a str>,
}

/// Models by their names.
pub(super) type Models<'a> = BTreeMap<&'a ModelName, Asked<'a>>;

/// What a Python has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    pub python: String,
    pub rayreel: Option<String>,
    #[serde(default)]
    pub torch: Option<String>,
    #[serde(default)]
    pub diffusers: Option<String>,
    /// What its torch was built for.
    #[serde(default)]
    pub cuda: Option<String>,
    #[serde(default)]
    pub devices: u32,
    #[serde(skip_serializing)]
    missing: BTreeMap<String, String>,
    /// Why the engine can't run some of the models, by their names.
    #[serde(default, skip_serializing)]
    pub wrong: BTreeMap<String, String>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Python {}", self.python)?;
        let parts =
            [("rayreel", &self.rayreel), ("diffusers", &self.diffusers), ("torch", &self.torch)];
        for (name, version) in parts {
            write!(f, ", {name} {}", version.as_deref().unwrap_or("of no version"))?;
        }
        match (self.devices, &self.cuda) {
            (0, Some(_)) => f.write_str(", which sees no GPU"),
            (0, None) => f.write_str(", built without CUDA"),
            (1, _) => f.write_str(", which sees a GPU"),
            (count, _) => write!(f, ", which sees {count} GPUs"),
        }?;
        match &self.rayreel {
            Some(version) if version != VERSION => {
                write!(f, "; this program is rayreel {VERSION}, and they should be the same")
            }
            _ => Ok(()),
        }
    }
}

/// Why a Python can't run an engine.
#[derive(Debug)]
pub(super) struct Unfit {
    why: String,
    /// What it said, for whoever wants to know.
    said: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)?;
        if !self.said.is_empty() {
            write!(f, ": {}", self.said)?;
        }
        Ok(())
    }
}

/// Runs a Python, imports what the engine does, and asks the engine about models.
pub(super) fn try_python(python: &Path, engine: &str, models: &Models<'_>) -> Result<Found, Unfit> {
    let unfit = |why: String| Unfit { why, said: String::new() };
    let models = serde_json::to_string(models).map_err(|error| unfit(error.to_string()))?;
    let said = program::ask(Command::new(python).args(["-c", TRIAL, engine, &models]), LIMIT)
        .map_err(|error| unfit(error.to_string()))?;
    let last = said.stdout.lines().rfind(|line| !line.is_empty()).unwrap_or_default();
    let found: Option<Found> = serde_json::from_str(last).ok();
    match found {
        Some(found) if said.success && found.missing.is_empty() => Ok(found),
        Some(found) if said.success => {
            let names: Vec<&str> = found.missing.keys().map(String::as_str).collect();
            let whys: Vec<&str> = found.missing.values().map(String::as_str).collect();
            let why = format!("{} can't be imported", names.join(", "));
            Err(Unfit { why, said: whys.join("; ") })
        }
        _ => Err(Unfit { why: "it failed".to_owned(), said: tail(&said.stderr) }),
    }
}

/// The last lines of a program that failed.
fn tail(said: &str) -> String {
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// The environment in the data directory.
#[derive(Debug)]
pub(super) struct Environment {
    data: PathBuf,
    path: PathBuf,
}

impl Environment {
    pub(super) fn of(settings: &Settings) -> Self {
        Self { data: settings.data.clone(), path: settings.environment() }
    }

    pub(super) fn python(&self) -> PathBuf {
        self.path.join("bin/python")
    }

    /// Says of what the environment was made.
    fn stamp(&self) -> PathBuf {
        self.path.join("rayreel-package")
    }

    fn sources(&self) -> PathBuf {
        self.data.join("python-src").join(VERSION)
    }

    /// Was it made, to the end, by this very program?
    pub(super) fn is_current(&self) -> bool {
        fs::read_to_string(self.stamp()).is_ok_and(|stamp| stamp == package_stamp())
    }

    /// Makes it, or brings it up to date, unless it is, and runs the engine.
    pub(super) fn create(
        &self,
        engine: &str,
        models: &Models<'_>,
        out: Out,
    ) -> Result<Found, Failure> {
        let mut is_new = !self.python().exists();
        if self.is_current() {
            match try_python(&self.python(), engine, models) {
                Ok(found) => return Ok(found),
                Err(unfit) => {
                    out.note(&format!("{}: {unfit}", self.python().display()));
                    is_new = true;
                }
            }
        }
        let sources = self.unpack().map_err(|error| not_written(&self.data, &error))?;
        out.note(&format!(
            "making a Python environment with torch and diffusers in {}: about 6 GB on the disk",
            self.path.display()
        ));
        if is_new {
            uv(&["venv", "--python", ">=3.11", "--clear"], &[&self.path], out)?;
        }
        let wanted = format!("{}[diffusers]", sources.display());
        let constraints = sources.join("constraints.txt");
        // What is not compiled costs the first start of an engine seconds.
        let words = ["pip", "install", "--compile-bytecode", "--reinstall-package", "rayreel"];
        let words =
            [words.as_slice(), &["--refresh-package", "rayreel", &wanted, "--python"]].concat();
        uv(&words, &[&self.python(), Path::new("--constraints"), &constraints], out)?;
        fs::write(self.stamp(), package_stamp())
            .map_err(|error| not_written(&self.path, &error))?;
        try_python(&self.python(), engine, models)
            .map_err(|unfit| self.unfit(&self.python(), engine, &unfit))
    }

    /// A Python can't run an engine: why, and what helps.
    pub(super) fn unfit(&self, python: &Path, engine: &str, unfit: &Unfit) -> Failure {
        let message = format!("{} can't run the engine `{engine}`: {unfit}", python.display());
        Failure::new(Code::InvalidConfig, message).helped(self.remedy(python))
    }

    /// Writes the package's sources where it is installed from.
    fn unpack(&self) -> io::Result<PathBuf> {
        let sources = self.sources();
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700).create(&self.data)?;
        // Of an older build there may be files that are no more.
        match fs::remove_dir_all(&sources) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for (name, bytes) in PACKAGE {
            let path = sources.join(name);
            private.create(path.parent().unwrap_or(&sources))?;
            fs::write(path, bytes)?;
        }
        Ok(sources)
    }

    /// What helps if a Python can't run an engine.
    fn remedy(&self, python: &Path) -> String {
        if python == self.python() {
            return "`--create-env` makes it, with uv; or name a Python of your own with `python`"
                .to_owned();
        }
        let Ok(sources) = self.unpack() else {
            return "install rayreel and its dependencies into it".to_owned();
        };
        format!(
            "`uv pip install --python {} '{}[diffusers]'` installs what is missing, if it is an \
             environment of its own; or leave out --python and give --create-env",
            python.display(),
            sources.display()
        )
    }
}

fn not_written(path: &Path, error: &io::Error) -> Failure {
    let message = format!("{} can't be written: {}", path.display(), home::reason(error));
    Failure::new(Code::StorageFull, message).helped("See that its disk has room, and whose it is.")
}

/// The version, and a digest of the files: two builds of one version may differ.
fn package_stamp() -> String {
    let mut digest = Sha256::new();
    for (name, bytes) in PACKAGE {
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name);
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    }
    let mut stamp = format!("{VERSION} ");
    for byte in digest.finalize() {
        _ = write!(stamp, "{byte:02x}");
    }
    stamp.push('\n');
    stamp
}

/// Runs uv, whose progress the user sees.
fn uv(words: &[&str], paths: &[&Path], out: Out) -> Result<(), Failure> {
    let mut command = Command::new("uv");
    command.args(words).args(paths).stdin(Stdio::null()).stdout(Stdio::null());
    if !out.is_talkative() {
        command.arg("--quiet");
    }
    rayreel_process::die_with_parent(&mut command);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let doing = words.iter().take_while(|word| !word.starts_with('-'));
            let doing: Vec<&str> = doing.copied().collect();
            let message = format!("`uv {}` failed, {status}: see above", doing.join(" "));
            Err(Failure::new(Code::InvalidConfig, message)
                .helped("What is made already is kept: the same command goes on from there."))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message = "there is no uv, which makes Python environments";
            Err(Failure::new(Code::InvalidConfig, message).helped(
                "Install it with `pip install uv`, or as https://docs.astral.sh/uv says; or make an \
                 environment yourself and name it with --python.",
            ))
        }
        Err(error) => {
            Err(Failure::new(Code::InvalidConfig, format!("uv can't be started: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_whole_and_of_this_version() {
        let text = |name: &str| {
            let (_, bytes) = PACKAGE.iter().find(|(file, _)| *file == name).expect(name);
            std::str::from_utf8(bytes).expect("UTF-8")
        };
        assert!(text("pyproject.toml").contains(&format!("\nversion = \"{VERSION}\"\n")));
        let init = text("src/rayreel/__init__.py");
        assert!(init.contains(&format!("\n__version__ = \"{VERSION}\"\n")), "{init}");
        for name in ["README.md", "constraints.txt", "src/rayreel/engines/wan.py"] {
            assert!(!text(name).is_empty());
        }
        assert!(PACKAGE.iter().all(|(name, _)| !name.contains("__pycache__")));
    }

    #[test]
    fn an_environment_of_another_build_is_not_current() {
        let data = tempfile::tempdir().expect("a directory");
        let environment =
            Environment { data: data.path().to_owned(), path: data.path().join("python") };
        assert!(!environment.is_current());
        fs::create_dir(&environment.path).expect("made");
        fs::write(environment.stamp(), format!("{VERSION} 00\n")).expect("written");
        assert!(!environment.is_current());
        fs::write(environment.stamp(), package_stamp()).expect("written");
        assert!(environment.is_current());
    }

    #[test]
    fn sources_are_written_anew() {
        let data = tempfile::tempdir().expect("a directory");
        let environment = Environment { data: data.path().join("a/b"), path: "/none".into() };
        let sources = environment.unpack().expect("written");
        fs::write(sources.join("src/rayreel/gone.py"), "").expect("written");
        assert_eq!(environment.unpack().expect("written"), sources);
        assert!(sources.join("pyproject.toml").exists());
        assert!(!sources.join("src/rayreel/gone.py").exists());
    }

    /// A Python that says so.
    fn python(script: &str) -> tempfile::TempDir {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("python");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        directory
    }

    #[test]
    fn what_a_python_has_is_told_and_what_it_lacks() {
        let whole = r#"echo '{"python": "3.13.1", "rayreel": "0.0.9", "torch": "2.15.0",
            "diffusers": "0.42.1", "cuda": "13.0", "devices": 0, "missing": {}}' | tr -d '\n'"#;
        let found = try_python(&python(whole).path().join("python"), "wan", &Models::new())
            .expect("it fits");
        assert_eq!(
            found.to_string(),
            format!(
                "Python 3.13.1, rayreel 0.0.9, diffusers 0.42.1, torch 2.15.0, which sees no GPU; \
                 this program is rayreel {VERSION}, and they should be the same"
            )
        );
        for (script, says) in [
            (
                r#"echo '{"python": "3.13.1", "rayreel": null,
                    "missing": {"torch": "ModuleNotFoundError: no torch"}}' | tr -d '\n'"#,
                "torch can't be imported: ModuleNotFoundError: no torch",
            ),
            ("echo 'Segmentation fault' >&2; exit 139", "it failed: Segmentation fault"),
            ("echo nonsense", "it failed"),
        ] {
            let unfit = try_python(&python(script).path().join("python"), "wan", &Models::new());
            assert_eq!(unfit.expect_err("it does not fit").to_string(), says);
        }
        let none =
            try_python(Path::new("/there/is/none"), "wan", &Models::new()).expect_err("none");
        assert!(none.to_string().starts_with("it does not exist"), "{none}");
    }
}
