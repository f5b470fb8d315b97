//! The engine `command`: starts a command line for each task, and delivers the file that it writes.
//!
//! The request goes into the arguments ([`template`]), into a file of JSON and into the environment;
//! progress is found in the program's output. What the program and all that it has started leave
//! running is killed at the end of each task.

mod code;
mod settings;
mod template;
mod wan;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rayreel_domain::id::LoraName;
use rayreel_domain::wire::engine::{EngineRequest, Generate, Load, Lora, LoraFiles};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, interval, sleep};

use crate::file;
use crate::program::{Event, Program};
use crate::talk::{Engine, Failure, Job, Made, Ready};
use template::{Placeholder, Unfit};
use watch::Watch;

pub(crate) use settings::Settings;

/// How often a program is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long a step may go untold.
const SOON: Duration = Duration::from_millis(100);

/// A program for each task.
#[derive(Debug, Default)]
pub(crate) struct Command {
    loaded: Option<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    settings: Settings,
    model: String,
    checkpoint: Option<String>,
    loras: BTreeMap<LoraName, LoraFiles>,
}

impl Engine for Command {
    async fn load(&mut self, load: Load) -> Result<Ready, Failure> {
        let settings = Settings::read(&load.settings)
            .map_err(|wrong| Failure::load_failed(wrong.to_string()))?;
        let Load { model, checkpoint, loras, .. } = load;
        let loaded = Loaded { settings, model, checkpoint, loras };
        loaded.check_machine().map_err(Failure::load_failed)?;
        self.loaded = Some(loaded);
        Ok(Ready { engine: "command".into(), version: env!("CARGO_PKG_VERSION").into() })
    }

    async fn generate(&mut self, job: &Job<'_>) -> Result<Made, Failure> {
        let Some(loaded) = &self.loaded else {
            return Err(Failure::failed("no model is loaded"));
        };
        loaded.generate(job).await
    }

    /// Between two tasks nothing runs.
    async fn leave(&mut self) {}
}

impl Loaded {
    /// Finds what the first task would not, on this machine.
    fn check_machine(&self) -> Result<(), String> {
        let settings = &self.settings;
        if let Some(directory) = &settings.directory
            && !directory.is_dir()
        {
            return Err(format!("there is no directory {}", directory.display()));
        }
        if let Some(directory) = &settings.directory
            && settings.wan.is_some()
            && !directory.join("generate.py").is_file()
        {
            let directory = directory.display();
            return Err(format!("{directory} is no repository of Wan2.2: it has no generate.py"));
        }
        match &self.checkpoint {
            None if settings.run.needs(Placeholder::Checkpoint) => {
                return Err("the command line has `{checkpoint}`, but the model has no \
                            `checkpoint`"
                    .into());
            }
            Some(checkpoint) if !Path::new(checkpoint).exists() => {
                return Err(format!("there is no checkpoint {checkpoint}"));
            }
            _ => {}
        }
        find(settings.run.program())
    }

    async fn generate(&self, job: &Job<'_>) -> Result<Made, Failure> {
        let settings = &self.settings;
        let Generate { output_dir, request, .. } = &job.generate;
        check(request).map_err(Failure::invalid)?;
        if let Some(task) = settings.wan {
            task.check(request).map_err(Failure::invalid)?;
        }
        let name = settings.output.clone();
        let name = name.unwrap_or_else(|| format!("output.{}", request.format.extension()));
        let output = Path::new(output_dir).join(&name);
        let started = Instant::now();
        // Gone again with this.
        let (_private, command) = self.command(&job.generate, &output)?;
        if job.is_stopped() {
            return Err(Failure::cancelled());
        }
        let mut program = Program::start(command).map_err(|error| {
            let program = settings.run.program();
            Failure::failed(format!("the program `{program}` could not be started: {error}"))
        })?;
        let mut watch = Watch::new(settings);
        let status = self.follow(job, &mut program, &mut watch).await?;
        let ran = started.elapsed();
        if !status.success() {
            let ending = format!("the program {}", ending(status));
            return Err(if watch.is_out_of_memory() {
                Failure::out_of_memory(format!("memory ran out: {ending}"))
            } else {
                Failure::failed(ending)
            });
        }
        let file = file::check(Path::new(output_dir), &name, request)
            .map_err(|what| Failure::failed(format!("the program ended well, but {what}")))?;
        let metrics = BTreeMap::from([("run_ms".to_owned(), ran.as_secs_f64() * 1000.0)]);
        Ok(Made { files: vec![file], metrics })
    }

    /// Hears the program out, until it ends, hangs or must stop. Nothing of it runs afterwards.
    async fn follow(
        &self,
        job: &Job<'_>,
        program: &mut Program,
        watch: &mut Watch<'_>,
    ) -> Result<ExitStatus, Failure> {
        let settings = &self.settings;
        let mut look = interval(LOOK.min(settings.silence / 4).max(Duration::from_millis(10)));
        let status = loop {
            tokio::select! {
                biased;
                () = job.stopped() => {
                    program.stop(settings.stop).await;
                    return Err(Failure::cancelled());
                }
                event = program.next() => match event {
                    Event::Line(line) => watch.hear(&line.text),
                    Event::Ended(status) => break status,
                    Event::Lost(error) => {
                        program.stop(settings.stop).await;
                        let why = format!("the program can't be waited for: {error}");
                        return Err(Failure::failed(why));
                    }
                },
                // Steps that came too soon after the last one.
                () = sleep(SOON), if watch.is_unsaid() => {}
                _ = look.tick() => {
                    watch.look(program.processor_time());
                    if watch.is_silent(settings.silence) {
                        program.stop(settings.stop).await;
                        let seconds = settings.silence.as_secs_f64();
                        return Err(Failure::failed(format!(
                            "the program hung: for {seconds} s it wrote nothing and hardly used \
                             the processor"
                        )));
                    }
                }
            }
            watch.report(job);
        };
        program.finish(|line| watch.hear(&line.text)).await;
        Ok(status)
    }

    /// The command line of a request, and the directory of its file, which goes when this is dropped.
    fn command(
        &self,
        generate: &Generate,
        output: &Path,
    ) -> Result<(TempDir, std::process::Command), Failure> {
        let Generate { output_dir, request, .. } = generate;
        let settings = &self.settings;
        let unwritten = |error: io::Error| {
            Failure::failed(format!("the request could not be written to a file: {error}"))
        };
        let loras = self.loras(request)?;
        let private = private(Path::new(output_dir)).map_err(unwritten)?;
        let request_file = private.path().join("request.json");
        self.write_request(generate, &loras, output, &request_file).map_err(unwritten)?;

        let value = |placeholder| match placeholder {
            Placeholder::Prompt => Some(request.prompt.clone()),
            Placeholder::NegativePrompt => {
                Some(request.negative_prompt.clone()).filter(|text| !text.is_empty())
            }
            Placeholder::Width => Some(request.width.to_string()),
            Placeholder::Height => Some(request.height.to_string()),
            Placeholder::Size => Some(format!("{}x{}", request.width, request.height)),
            Placeholder::Frames => Some(request.frames.to_string()),
            Placeholder::Fps => Some(request.fps.to_string()),
            Placeholder::Steps => Some(request.steps.to_string()),
            Placeholder::Seed => Some(request.seed.to_string()),
            Placeholder::Guidance => request.guidance.map(|guidance| guidance.to_string()),
            Placeholder::Guidance2 => request.guidance_2.map(|guidance| guidance.to_string()),
            Placeholder::Loras if loras.is_empty() => None,
            Placeholder::Loras => Some(json!(loras).to_string()),
            Placeholder::Image => request.image.clone(),
            Placeholder::LastImage => request.last_image.clone(),
            Placeholder::Format => Some(request.format.extension().to_owned()),
            Placeholder::Model => Some(self.model.clone()),
            Placeholder::Checkpoint => self.checkpoint.clone(),
            Placeholder::RequestFile => Some(request_file.display().to_string()),
            Placeholder::Output => Some(output.display().to_string()),
            Placeholder::OutputDir => Some(output_dir.clone()),
        };
        if let Some(untold) = settings.untold(&value) {
            return Err(Failure::invalid(untold));
        }
        let arguments = settings.run.fill(&value).map_err(|unfit| {
            Failure::invalid(match unfit {
                Unfit::Missing(what) => format!("this model needs `{}`", what.name()),
                Unfit::Option(what) => format!(
                    "`{}` begins with `-`, which this model's program would take for an option",
                    what.name()
                ),
            })
        })?;
        let mut command = std::process::Command::new(settings.run.program());
        command.args(arguments).envs(&settings.environment);
        for placeholder in Placeholder::ALL {
            if let Some((name, value)) = placeholder.variable().zip(value(*placeholder)) {
                command.env(name, value);
            }
        }
        command.current_dir(settings.directory.as_deref().unwrap_or(Path::new(output_dir)));
        Ok((private, command))
    }

    /// The LoRAs of a request, with their files.
    fn loras(&self, request: &EngineRequest) -> Result<Vec<Value>, Failure> {
        let one = |lora: &Lora| {
            let known = self.loras.iter().find(|(name, _)| name.as_str() == lora.name);
            let (name, files) = known.ok_or_else(|| {
                Failure::invalid(format!("this model has no LoRA `{}`", lora.name))
            })?;
            Ok(match files {
                LoraFiles::Whole { path } => {
                    json!({"name": name, "scale": lora.scale, "path": path})
                }
                LoraFiles::Experts { high, low } => {
                    json!({"name": name, "scale": lora.scale, "high": high, "low": low})
                }
            })
        };
        request.loras.iter().map(one).collect()
    }

    fn write_request(
        &self,
        generate: &Generate,
        loras: &[Value],
        output: &Path,
        file: &Path,
    ) -> io::Result<()> {
        let content = json!({
            "model": self.model,
            "checkpoint": self.checkpoint,
            "output": output,
            "output_dir": generate.output_dir,
            "loras": loras,
            "request": generate.request,
        });
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        file.write_all(content.to_string().as_bytes())
    }
}

/// A directory for this user alone, beside the one for the files: the worker removes what is there
/// even if this process is killed.
fn private(output_dir: &Path) -> io::Result<TempDir> {
    let beside = output_dir.parent().unwrap_or(output_dir);
    let mine = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix("request-").permissions(mine).tempdir_in(beside)
}

/// What no command line can carry.
fn check(request: &EngineRequest) -> Result<(), String> {
    let texts = [("prompt", &request.prompt), ("negative_prompt", &request.negative_prompt)];
    match texts.into_iter().find(|(_, text)| text.contains('\0')) {
        Some((name, _)) => Err(format!("`{name}` must not contain a NUL character")),
        None => Ok(()),
    }
}

/// Is there a program of this name?
fn find(program: &str) -> Result<(), String> {
    let runs = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return match Path::new(program) {
            path if runs(path) => Ok(()),
            path if path.exists() => Err(format!("{program} is no program that can be run")),
            _ => Err(format!("there is no program {program}")),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder: PathBuf| runs(&folder.join(program)));
    if found { Ok(()) } else { Err(format!("there is no program `{program}` in PATH")) }
}

/// How a program has ended, in words.
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(9)) => {
            "was killed by signal 9, as the kernel does when memory runs out".to_owned()
        }
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => format!("ended ({status})"),
    }
}
