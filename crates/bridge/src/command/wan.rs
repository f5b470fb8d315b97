//! The preset `wan2.2`: the `generate.py` of Wan2.2's own repository, alone on one GPU or under
//! `torchrun` on several.
//!
//! What the script does not take is refused, because it would not be told: it has no flag for a
//! negative prompt, writes with its model's own frame rate, takes a few sizes only, and without an
//! image falls back to an example of its own. Its options, sizes and defaults: `generate.py` and
//! `wan/configs/` of <https://github.com/Wan-Video/Wan2.2>.

use std::time::Duration;

use rayreel_domain::request::{Defaults, Images};
use rayreel_domain::wire::engine::EngineRequest;
use serde_json::{Map, Value, json};

use super::settings::{Settings, directory, pattern};
use super::template::Template;
use crate::Model;
use crate::settings::{Table, Wrong};

const KEYS: &[&str] = &[
    "preset",
    "repository",
    "python",
    "task",
    "gpus",
    "offload_model",
    "convert_model_dtype",
    "t5_cpu",
    "t5_fsdp",
    "dit_fsdp",
    "sample_solver",
    "sample_shift",
    "environment",
    "out_of_memory",
    "stop_seconds",
    "silence_seconds",
];

/// A bar of tqdm without a description: that of the denoising steps. Those of loading have one.
const PROGRESS: &str = r"^\s*\d+%\|[^|]*\|\s*(?P<step>\d+)/(?P<steps>\d+) \[";

/// The ranks end at once, and have nothing to tidy up; the launcher takes its time.
const STOP: Duration = Duration::from_secs(1);

/// Fields of a request that the script is told, or that say nothing here.
const TOLD: &[&str] =
    &["prompt", "width", "height", "frames", "fps", "steps", "guidance", "seed", "format", "image"];

/// What `generate.py --task` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    T2v,
    I2v,
    Ti2v,
}

impl Task {
    const ALL: [Task; 3] = [Task::T2v, Task::I2v, Task::Ti2v];

    fn name(self) -> &'static str {
        match self {
            Task::T2v => "t2v-A14B",
            Task::I2v => "i2v-A14B",
            Task::Ti2v => "ti2v-5B",
        }
    }

    fn sizes(self) -> &'static [(u32, u32)] {
        match self {
            Task::T2v | Task::I2v => &[(1280, 720), (720, 1280), (832, 480), (480, 832)],
            Task::Ti2v => &[(1280, 704), (704, 1280)],
        }
    }

    fn fps(self) -> u32 {
        match self {
            Task::T2v | Task::I2v => 16,
            Task::Ti2v => 24,
        }
    }

    /// Attention heads, which Ulysses divides among the GPUs.
    fn heads(self) -> u32 {
        match self {
            Task::T2v | Task::I2v => 40,
            Task::Ti2v => 24,
        }
    }

    /// Says why the script can't do a request, if it can't.
    pub(super) fn check(self, request: &EngineRequest) -> Result<(), String> {
        let name = self.name();
        // Also what later versions may ask for.
        let asked = serde_json::to_value(request).unwrap_or_default();
        let asked = asked.as_object().into_iter().flat_map(Map::keys);
        if let Some(other) = asked.into_iter().find(|key| !TOLD.contains(&key.as_str())) {
            return Err(format!("Wan2.2's own script has no option for `{other}`"));
        }
        if request.format.media_type() != "video/mp4" {
            return Err(format!("{name} makes MP4 videos only"));
        }
        match (self, &request.image) {
            (Task::T2v, Some(_)) => return Err(format!("{name} takes no image")),
            (Task::I2v, None) => return Err(format!("{name} needs an image")),
            _ => {}
        }
        self.check_size(request.width, request.height)?;
        self.check_fps(request.fps)
    }

    fn check_size(self, width: u32, height: u32) -> Result<(), String> {
        if self.sizes().contains(&(width, height)) {
            return Ok(());
        }
        let sizes: Vec<_> = self.sizes().iter().map(|(w, h)| format!("{w}x{h}")).collect();
        let (name, sizes) = (self.name(), sizes.join(", "));
        Err(format!("{name} makes the sizes {sizes}, not {width}x{height}"))
    }

    fn check_fps(self, fps: u32) -> Result<(), String> {
        let (name, own) = (self.name(), self.fps());
        if fps == own {
            return Ok(());
        }
        Err(format!("{name} makes {own} frames a second, not {fps}"))
    }

    /// Says what a model must not offer, or ask for by default, because the script would refuse it.
    pub(super) fn check_model(self, model: &Model<'_>) -> Result<(), Wrong> {
        let name = self.name();
        let Defaults { size, fps, .. } = model.defaults;
        self.check_size(size.width, size.height)
            .map_err(|why| Wrong::model(&["defaults", "size"], why))?;
        self.check_fps(*fps).map_err(|why| Wrong::model(&["defaults", "fps"], why))?;
        match (self, model.images) {
            (Task::T2v, Images::None) => {}
            (Task::T2v, _) => {
                let why = format!("{name} takes no image; write `images = \"none\"`");
                return Err(Wrong::model(&["images"], why));
            }
            (_, Images::FirstLast) | (Task::I2v, Images::None) => {
                let why = format!("{name} takes a first frame alone; write `images = \"first\"`");
                return Err(Wrong::model(&["images"], why));
            }
            _ => {}
        }
        if model.has_loras {
            let why = "Wan2.2's own script takes no LoRA; the engine `wan` does";
            return Err(Wrong::model(&["loras"], why));
        }
        if model.defaults.guidance_2.is_some() {
            let why = "Wan2.2's own script takes one scale of guidance, `guidance`";
            return Err(Wrong::model(&["defaults", "guidance_2"], why));
        }
        Ok(())
    }
}

/// Reads the preset's settings into a command line.
pub(super) fn settings(given: &Map<String, Value>) -> Result<Settings, Wrong> {
    let table = Table::new(given, KEYS)?;
    let missing = |key: &str, what: &str| Wrong::whole(format!("`{key}`, {what}, is missing"));
    let directory = directory(&table, "repository")?
        .ok_or_else(|| missing("repository", "the directory that has `generate.py`"))?;
    let task = task(&table)?;
    let gpus = table.whole("gpus", 1..=64)?.unwrap_or(1);
    if task.heads() % gpus != 0 {
        let (name, heads) = (task.name(), task.heads());
        let message = format!("{gpus} does not divide the {heads} attention heads of {name}");
        return Err(Wrong::value("gpus", message));
    }
    let python = table.text("python")?.unwrap_or("python3");
    if python.contains('/') && !python.starts_with('/') {
        let message = format!("must be an absolute path, or a name in PATH, not `{python}`");
        return Err(Wrong::value("python", message));
    }

    let mut run = vec![json!(python.replace('{', "{{").replace('}', "}}"))];
    let mut say = |word: &str| run.push(json!(word));
    if gpus > 1 {
        // With a port of its own for each run.
        ["-m", "torch.distributed.run", "--standalone"].into_iter().for_each(&mut say);
        say(&format!("--nproc_per_node={gpus}"));
    }
    say("generate.py");
    say(&format!("--task={}", task.name()));
    for word in [
        "--ckpt_dir={checkpoint}",
        "--size={width}*{height}",
        "--frame_num={frames}",
        "--base_seed={seed}",
        "--sample_steps={steps}",
        "--save_file={output}",
        // In one word, so that no prompt is an option.
        "--prompt={prompt}",
    ] {
        say(word);
    }
    if gpus > 1 {
        say(&format!("--ulysses_size={gpus}"));
    }
    if let Some(offload) = table.flag("offload_model")? {
        say(if offload { "--offload_model=True" } else { "--offload_model=False" });
    }
    let t5_cpu = table.flag("t5_cpu")?.unwrap_or(false);
    let convert = table.flag("convert_model_dtype")?.unwrap_or(false);
    for (flag, on) in [("--t5_cpu", t5_cpu), ("--convert_model_dtype", convert)] {
        if on {
            say(flag);
        }
    }
    for (key, flag, default) in
        [("t5_fsdp", "--t5_fsdp", gpus > 1 && !t5_cpu), ("dit_fsdp", "--dit_fsdp", gpus > 1)]
    {
        let on = table.flag(key)?.unwrap_or(default);
        if on && gpus == 1 {
            return Err(Wrong::value(key, "needs more than one of `gpus`"));
        }
        if on {
            say(flag);
        }
    }
    match table.text("sample_solver")? {
        None => {}
        Some(solver @ ("unipc" | "dpm++")) => say(&format!("--sample_solver={solver}")),
        Some(other) => {
            let message = format!("must be unipc or dpm++, not `{other}`");
            return Err(Wrong::value("sample_solver", message));
        }
    }
    if let Some(shift) = table.number("sample_shift", 0.0..=100.0)? {
        say(&format!("--sample_shift={shift}"));
    }
    run.push(json!(["--sample_guide_scale={guidance}"]));
    run.push(json!(["--image={image}"]));

    let mut settings = Settings::with(Template::read(&run)?, &table)?;
    // Otherwise its log comes when it ends.
    settings.environment.entry("PYTHONUNBUFFERED".into()).or_insert_with(|| "1".into());
    if table.value("stop_seconds").is_none() {
        settings.stop = STOP;
    }
    Ok(Settings {
        directory: Some(directory),
        progress: Some(pattern("progress", PROGRESS)?),
        wan: Some(task),
        ..settings
    })
}

fn task(table: &Table<'_>) -> Result<Task, Wrong> {
    let tasks = Task::ALL.map(Task::name).join(", ");
    let Some(name) = table.text("task")? else {
        return Err(Wrong::whole(format!("`task` is missing: one of {tasks}")));
    };
    Task::ALL
        .into_iter()
        .find(|task| task.name() == name)
        .ok_or_else(|| Wrong::value("task", format!("there is no task `{name}`; there is {tasks}")))
}
