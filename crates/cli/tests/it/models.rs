//! `rayreel models`: from a checkpoint to a configuration that a server starts with.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::{Place, Started, text, until};

/// A place with a checkpoint, and with programs that stand in for those of a machine.
struct Studio {
    place: Place,
}

const PYTHON: &str = r#"echo '{"python": "3.13.1", "rayreel": "VERSION", "torch": "2.15.0",
    "diffusers": "0.42.1", "cuda": "13.0", "devices": 1, "missing": {}}' | tr -d '\n'"#;

impl Studio {
    fn new() -> Self {
        let studio = Self { place: Place::new() };
        let weights = {
            let header = br#"{"a":{"dtype":"BF16","shape":[500],"data_offsets":[0,1000]}}"#;
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend(header);
            file.extend([0; 1000]);
            file
        };
        let part = |class: &str| json!(["library", class]);
        let index = json!({
            "_class_name": "WanPipeline",
            "expand_timesteps": true,
            "scheduler": part("UniPCMultistepScheduler"),
            "text_encoder": part("UMT5EncoderModel"),
            "tokenizer": part("T5TokenizerFast"),
            "transformer": part("WanTransformer3DModel"),
            "vae": part("AutoencoderKLWan"),
        });
        studio.write("5b/model_index.json", index.to_string().as_bytes());
        studio.write("5b/scheduler/scheduler_config.json", b"{}");
        studio.write("5b/tokenizer/tokenizer_config.json", b"{}");
        studio.write("5b/tokenizer/tokenizer.json", b"{}");
        for name in ["text_encoder/model", "transformer/diffusion_pytorch_model", "vae/model"] {
            studio.write(&format!("5b/{name}.safetensors"), &weights);
            let (folder, _) = name.split_once('/').expect("two parts");
            studio.write(&format!("5b/{folder}/config.json"), b"{}");
        }
        studio.program("python", PYTHON);
        studio.program("bin/nvidia-smi", "echo 'Some GPU, 24564'");
        studio
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.place.path(name);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
        fs::write(path, bytes).expect("written");
    }

    fn program(&self, name: &str, script: &str) {
        let script = script.replace("VERSION", env!("CARGO_PKG_VERSION"));
        self.write(name, format!("#!/bin/sh\n{script}\n").as_bytes());
        fs::set_permissions(self.place.path(name), Permissions::from_mode(0o755)).expect("ours");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.place.path(name)).expect("there")
    }

    fn run(&self, words: &str) -> Output {
        let path = format!("{}:/usr/bin:/bin", self.place.path("bin").display());
        self.place.command(words).env("PATH", path).output().expect("it starts")
    }

    /// Status, and what was said on standard error, with `~` for the place.
    fn refused(&self, words: &str) -> (Option<i32>, String) {
        let output = self.run(words);
        assert_eq!(text(&output.stdout), "", "{words}");
        (output.status.code(), self.seen(&output.stderr))
    }

    /// Standard output and standard error, with `~` for the place.
    fn done(&self, words: &str) -> (String, String) {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(0), "{words}: {}", text(&output.stderr));
        (self.seen(&output.stdout), self.seen(&output.stderr))
    }

    fn seen(&self, bytes: &[u8]) -> String {
        text(bytes).replace(&self.place.path("").display().to_string(), "~/")
    }
}

/// Modules in place of those that take seconds to import, for our own engines to be run by a Python
/// that has none of them.
const MODULES: &[(&str, &str)] = &[
    ("av/__init__.py", ""),
    ("av/video/__init__.py", ""),
    ("av/video/reformatter.py", ""),
    ("numpy/__init__.py", "uint8 = int\n"),
    ("numpy/typing.py", "NDArray = list\n"),
    ("PIL/__init__.py", ""),
    ("PIL/Image.py", ""),
    (
        "torch.py",
        "class version: cuda = None\nclass cuda: is_available = staticmethod(lambda: False)\n",
    ),
    ("transformers.py", ""),
    ("diffusers/__init__.py", ""),
    ("diffusers/pipelines/__init__.py", ""),
    (
        "diffusers/pipelines/auto_pipeline.py",
        "AUTO_TEXT2IMAGE_PIPELINES_MAPPING = {'FluxPipeline': int}\n\
         def _get_task_class(mapping, name, throw): return mapping.get(name)\n",
    ),
];

const ADD: &str = "models add mine --checkpoint 5b --python python";

#[test]
fn a_checkpoint_becomes_a_model_that_the_configuration_has() {
    let studio = Studio::new();
    let (stdout, stderr) = studio.done(ADD);
    assert_eq!(
        stdout,
        "rayreel.toml has the model `mine`; try it:\n\
         \x20 rayreel generate --model mine \"a red fox running through snow\" -o fox.mp4\n"
    );
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(
        lines,
        [
            "checkpoint  ~/5b: Wan2.2 ti2v-5B: text, or an image, to video; 3.2 kB of weights, whole",
            "GPU         Some GPU, 25.8 GB; the weights take 0.0 GB, and the video what it needs",
            &*format!(
                "Python      ~/python: Python 3.13.1, rayreel {}, diffusers 0.42.1, torch 2.15.0, \
                 which sees a GPU",
                env!("CARGO_PKG_VERSION")
            ),
        ]
    );
    assert_eq!(
        studio.read("rayreel.toml").replace(&studio.place.path("").display().to_string(), "~/"),
        "# Wan2.2 ti2v-5B: text, or an image, to video\n\
         [models.mine]\n\
         engine = \"wan\"\n\
         checkpoint = \"~/5b\"\n\
         python = \"~/python\"\n\
         aliases = [\"ti2v-5B\"]\n\
         images = \"first\"\n\
         # As Wan2.2 has it for this model. Guidance is 5.0.\n\
         limits = { multiple = 32, max_side = 1280, max_pixels = 901_120, max_frames = 121 }\n\
         defaults = { size = \"1280x704\", frames = 121, fps = 24, steps = 50 }\n"
    );
    studio.done("config check");
    let listed = studio.place.json("models");
    assert_eq!(
        listed["data"][0],
        json!({
            "name": "mine", "aliases": ["ti2v-5B"], "default": true, "engine": "wan",
            "pool": "local", "checkpoint": studio.place.path("5b"), "bytes": 3_204,
            "state": "ok", "faults": [],
        })
    );
    assert_eq!(listed["data"][1]["name"], "testcard");
    let (table, _) = studio.done("models");
    assert!(table.contains("mine                      ti2v-5B           wan "), "{table}");
    assert!(table.contains("3.2 kB  ok, default"), "{table}");
}

#[test]
fn what_is_said_of_the_model_is_written() {
    let studio = Studio::new();
    studio.write("rayreel.toml", b"# mine\n[pools.gpu]\nmax = 2 # two\n");
    studio.done(&format!("{ADD} --alias a --alias b --pool gpu --offload group --gpus 2"));
    let written = studio.read("rayreel.toml");
    assert!(written.starts_with("# mine\n[pools.gpu]\nmax = 2 # two\n\n# Wan2.2"), "{written}");
    for line in [
        "aliases = [\"a\", \"b\"]",
        "pool = \"gpu\"",
        "settings = { offload = \"group\", ulysses = 2 }",
    ] {
        assert!(written.lines().any(|written| written == line), "{written}");
    }
    // The model is there already, and its alias is taken.
    let (status, said) = studio.refused(ADD);
    assert_eq!(status, Some(2));
    assert_eq!(
        said,
        "error[invalid_value]: there is a model `mine` already\n  help: Choose another name, or \
         replace it with --force.\n"
    );
    let (status, said) = studio.refused(&format!("{} --alias a", ADD.replace("mine", "other")));
    assert_eq!(status, Some(2));
    assert!(said.contains("models.mine.aliases: `a` is an alias of `other`, too"), "{said}");
    assert_eq!(studio.read("rayreel.toml"), written);
    studio.done(&format!("{ADD} --force"));
    let replaced = studio.read("rayreel.toml");
    assert!(replaced.starts_with("# mine\n[pools.gpu]\nmax = 2 # two\n\n# Wan2.2"), "{replaced}");
    assert_eq!(replaced.matches("[models.mine]").count(), 1);
    assert!(!replaced.contains("ulysses"), "{replaced}");
    // A second one of its kind has no alias of its own.
    studio.done(&ADD.replace("mine", "other"));
    assert_eq!(studio.read("rayreel.toml").matches("ti2v-5B\"]").count(), 1);
}

#[test]
fn a_dry_run_writes_nothing() {
    let studio = Studio::new();
    let (stdout, stderr) = studio.done(&format!("{ADD} --dry-run"));
    assert!(stdout.starts_with("# Wan2.2 ti2v-5B"), "{stdout}");
    assert!(stderr.contains("rayreel.toml would get:"), "{stderr}");
    let dry = "models add mine --checkpoint 5b --create-env --dry-run";
    let (_, stderr) = studio.done(dry);
    assert!(stderr.contains("~/data/python/bin/python would be made"), "{stderr}");
    assert!(!studio.place.path("rayreel.toml").exists());
    assert!(!studio.place.path("data").exists());
    let body: Value = studio.place.json(&format!("{ADD} --dry-run"));
    assert_eq!((&body["written"], &body["task"]), (&json!(false), &json!("ti2v-5B")));
    assert_eq!(body["bytes"], 3_204);
}

#[test]
fn what_is_wrong_is_told_and_nothing_is_written() {
    let studio = Studio::new();
    studio.write("half/model_index.json", studio.read("5b/model_index.json").as_bytes());
    studio.program("old", "echo 'No module named rayreel' >&2; exit 1");
    let path = studio.place.path("5b/vae/model.safetensors");
    let whole = fs::read(&path).expect("there");
    for (words, says) in [
        ("models add a?b --checkpoint 5b", "the name of a model is"),
        (
            "models add testcard --checkpoint 5b --force",
            "`testcard` is the name of the model that needs no weights",
        ),
        ("models add x --checkpoint none", "~/none does not exist; put the checkpoint there"),
        ("models add x --checkpoint half", "~/half has 5 faults"),
        (
            "models add x --checkpoint 5b --engine stable-diffusion",
            "the engine `stable-diffusion` makes stills; for this one it is `wan`",
        ),
        (
            "models add x --checkpoint 5b --python none",
            "~/none can't run the engine `wan`: it does not",
        ),
        ("models add x --checkpoint 5b --python old", "it failed: No module named rayreel"),
        ("models add x --checkpoint 5b --pool gpu --python python", "there is no pool `gpu`"),
        ("models add x --checkpoint 5b", "help: `--create-env` makes it, with uv"),
        (
            "models add x --checkpoint 5b --create-env --python python",
            "'--create-env' cannot be used with '--python <PATH>'",
        ),
        ("models add x --checkpoint 5b --server http://127.0.0.1:9", "means nothing to"),
    ] {
        let output = studio.run(words);
        let said = studio.seen(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words}: {said}");
        assert!(said.contains(says), "{words}: {said}");
        assert!(!studio.place.path("rayreel.toml").exists(), "{words}");
    }
    let (_, said) = studio.refused("models add x --checkpoint 5b --python old");
    assert!(said.contains("help: `uv pip install --python ~/old '~/data/python-src/"), "{said}");
    fs::write(&path, &whole[..200]).expect("written");
    let (_, said) = studio.refused(ADD);
    assert!(
        said.contains("5b/vae/model.safetensors is cut off: it has 200 of 1068 bytes"),
        "{said}"
    );
}

#[test]
fn a_file_that_can_not_be_written_stays_as_it_is() {
    let studio = Studio::new();
    let (status, said) = studio.refused(&format!("--config none/rayreel.toml {ADD}"));
    assert_eq!(status, Some(2));
    assert!(said.contains("none/rayreel.toml can't be written: it does not exist"), "{said}");
    // A link stays one, and the file behind it keeps its mode.
    studio.write("real/rayreel.toml", b"# mine\n");
    let mode = Permissions::from_mode(0o640);
    fs::set_permissions(studio.place.path("real/rayreel.toml"), mode).expect("ours");
    symlink("real/rayreel.toml", studio.place.path("rayreel.toml")).expect("made");
    studio.done(ADD);
    assert!(studio.place.path("rayreel.toml").is_symlink());
    assert!(studio.read("real/rayreel.toml").starts_with("# mine\n\n# Wan2.2"));
    let metadata = fs::metadata(studio.place.path("real/rayreel.toml")).expect("there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(studio.place.path("real")).expect("there").count(), 1);
}

#[test]
fn the_engine_itself_reads_the_settings_and_knows_the_pipeline() {
    let studio = Studio::new();
    for (name, text) in MODULES {
        studio.write(&format!("modules/{name}"), text.as_bytes());
    }
    let modules = studio.place.path("modules").display().to_string();
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/../../python/src");
    studio.program("python", &format!("PYTHONPATH={modules}:{ours} exec python3 \"$@\""));
    let with_python3 = |words: &str| {
        let path = std::env::var("PATH").expect("there");
        studio.place.command(words).env("PATH", path).output().expect("it starts")
    };
    for (class, says) in [
        (
            "LTXPipeline",
            Some(
                "the engine `stable-diffusion` refuses this model: diffusers makes no stills of text \
                  with a LTXPipeline",
            ),
        ),
        ("FluxPipeline", None),
    ] {
        let index = json!({"_class_name": class, "vae": ["library", "AutoencoderKL"]});
        studio.write("still/model_index.json", index.to_string().as_bytes());
        for name in ["config.json", "model.safetensors"] {
            let bytes = fs::read(studio.place.path(&format!("5b/vae/{name}"))).expect("there");
            studio.write(&format!("still/vae/{name}"), &bytes);
        }
        let output = with_python3("models add still --checkpoint still --python python");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(if says.is_some() { 2 } else { 0 }), "{said}");
        assert!(said.contains(says.unwrap_or("")), "{said}");
        assert_eq!(studio.place.path("rayreel.toml").exists(), says.is_none());
    }
    let config = studio.read("rayreel.toml");
    let wrong = config.replace("[models.still]", "[models.still]\nsettings = { strength = 3 }");
    let other = config.replace("[models.still]", "[models.other]");
    studio.write("rayreel.toml", format!("{wrong}\n{other}").as_bytes());
    let output = with_python3("models check --json");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let body: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&body["data"][0]["name"], &body["data"][0]["state"]),
        (&json!("other"), &json!("ok"))
    );
    assert_eq!(
        body["data"][1]["faults"],
        json!([
            "models.still: the engine `stable-diffusion` refuses it: setting `strength` must be \
                above 0, and at most 1, not 3"
        ])
    );
}

#[test]
fn gpus_that_share_a_model_must_be_able_to_and_the_pool_must_hand_them_out() {
    let studio = Studio::new();
    studio.write("5b/transformer/config.json", b"{\"num_attention_heads\": 24}");
    let (status, said) = studio.refused(&format!("{ADD} --gpus 5"));
    assert_eq!(status, Some(2));
    assert!(
        said.contains("5 GPUs can't share the 24 attention heads of this model's transformer")
            && said.contains("help: These can: 2, 3, 4, 6, 8, 12, 24."),
        "{said}"
    );
    let (_, said) = studio.done(&format!("{ADD} --gpus 2"));
    for says in [
        "2 are to share the work, and nvidia-smi shows 1",
        "the engine takes 2 GPUs, and the pool `local` gives a worker whatever there is: in \
         [pools.local] set gpus = [\"0\", \"1\"] and gpus_per_worker = 2, for `max` of 1",
    ] {
        assert!(said.contains(says), "{said}");
    }
    studio.program("bin/nvidia-smi", "echo 'Some GPU, 24564'; echo 'Some GPU, 24564'");
    let config = studio.read("rayreel.toml");
    let pool = "[pools.local]\ngpus = [\"0\", \"1\"]\ngpus_per_worker = 2\n";
    studio.write("rayreel.toml", format!("{config}\n{pool}").as_bytes());
    let (_, said) = studio.done(&format!("{} --gpus 2", ADD.replace("mine", "other")));
    assert!(!said.contains("share the work") && !said.contains("set gpus"), "{said}");
    // One still is drawn by one.
    let index = json!({"_class_name": "FluxPipeline", "vae": ["library", "AutoencoderKL"]});
    studio.write("5b/model_index.json", index.to_string().as_bytes());
    let (_, said) = studio.refused(&format!("{} --gpus 2", ADD.replace("mine", "still")));
    assert!(said.contains("`stable-diffusion` draws each still on one GPU"), "{said}");
}

#[test]
fn a_model_of_another_machine_is_added_without_its_files() {
    let studio = Studio::new();
    studio.write("rayreel.toml", b"[pools.far]\nmax = 0\n");
    let far = "models add far --checkpoint /far/model --python /far/python --pool far";
    let (status, said) = studio.refused(far);
    assert_eq!(status, Some(2));
    assert!(said.contains("help: Name the engine with --engine."), "{said}");
    let (_, said) = studio.done(&format!("{far} --engine wan"));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "checkpoint  /far/model: not on this machine, and not checked",
            "GPU         not looked at: the workers of `far` run elsewhere",
            "Python      /far/python: not on this machine, and not tried",
        ]
    );
    assert!(
        studio.read("rayreel.toml").ends_with(
            "[models.far]\nengine = \"wan\"\ncheckpoint = \"/far/model\"\n\
             python = \"/far/python\"\npool = \"far\"\n\
             # Its files are elsewhere: add images, limits and defaults of the model.\n"
        ),
        "{}",
        studio.read("rayreel.toml")
    );
    studio.done("config check");
    // Files that happen to be here are checked all the same.
    let (_, said) = studio.done(&format!("{ADD} --pool far"));
    assert!(
        said.contains("3.2 kB of weights, whole") && said.contains("~/python: Python"),
        "{said}"
    );
    fs::remove_file(studio.place.path("5b/vae/model.safetensors")).expect("gone");
    studio.refused(&format!("{ADD} --pool far --force"));
}

#[test]
fn a_driver_that_fails_is_told_of() {
    let studio = Studio::new();
    studio.program("bin/nvidia-smi", "echo 'NVIDIA-SMI has failed: no driver'; exit 9");
    let (_, said) = studio.done(&format!("{ADD} --dry-run"));
    let says = "GPU         not known: nvidia-smi failed: NVIDIA-SMI has failed: no driver; in its \
                memory the weights take 0.0 GB";
    assert!(said.contains(says), "{said}");
}

#[test]
fn what_makes_the_environment_ends_with_the_command() {
    let studio = Studio::new();
    studio.program("bin/uv", "echo $$ >uv.pid; mv uv.pid uv.started; exec sleep 1000");
    let mut command = studio.place.command("models add mine --checkpoint 5b --create-env");
    command.env("PATH", format!("{}:/usr/bin:/bin", studio.place.path("bin").display()));
    let started = Started::new(command);
    until("uv runs", || studio.place.path("uv.started").exists());
    let pid = studio.read("uv.started");
    started.signal(rustix::process::Signal::TERM);
    until("uv is gone", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        !stat.is_ok_and(|stat| !stat.contains(") Z "))
    });
    started.end();
}

#[test]
fn what_a_replaced_model_had_besides_is_told() {
    let studio = Studio::new();
    studio.done(&format!("{ADD} --offload group"));
    let config = studio.read("rayreel.toml");
    let loras = "[models.mine.loras]\nanime = \"/anime.safetensors\"\n";
    studio.write("rayreel.toml", format!("{config}{loras}").as_bytes());
    let (_, said) = studio.done(&format!("{ADD} --force --dry-run"));
    assert!(said.contains("settings, loras of the old model would be gone"), "{said}");
    let (_, said) = studio.done(&format!("{ADD} --force"));
    assert!(said.contains("settings, loras of the old model are gone"), "{said}");
    assert!(!studio.read("rayreel.toml").contains("anime"));
}

#[test]
fn a_configuration_is_a_regular_file() {
    let studio = Studio::new();
    let pipe = studio.place.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("it starts").success());
    for (path, words) in
        [("pipe", ADD), ("pipe", "config check"), ("/dev/null", ADD), ("/dev/null", "models")]
    {
        let (status, said) = studio.refused(&format!("--config {path} {words}"));
        let says = format!("{path}: a configuration is a regular file, and this is none");
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(&says), "{said}");
    }
    // What leads to one is replaced no more than it is itself.
    symlink("/dev/null", studio.place.path("rayreel.toml")).expect("made");
    studio.refused(ADD);
    assert!(studio.place.path("rayreel.toml").is_symlink());
}

#[test]
fn two_that_are_added_at_once_are_both_there() {
    let studio = Studio::new();
    // Both have read the file by then, and neither has written it.
    let both = "touch here.$$\nuntil [ $(ls here.* | wc -l) = 2 ]; do sleep 0.01; done\n";
    studio.program("python", &format!("{both}{PYTHON}"));
    let path = format!("{}:/usr/bin:/bin", studio.place.path("bin").display());
    let started = ["one", "two"].map(|name| {
        let mut command = studio.place.command(&ADD.replace("mine", name));
        command.env("PATH", &path);
        Started::new(command)
    });
    for started in started {
        let (status, _, said) = started.end();
        assert_eq!(status, Some(0), "{said}");
    }
    let written = studio.read("rayreel.toml");
    for line in ["[models.one]", "[models.two]"] {
        assert!(written.lines().any(|written| written == line), "{written}");
    }
    assert_eq!(written.matches("aliases = [\"ti2v-5B\"]").count(), 1, "{written}");
    studio.done("config check");
}

#[test]
fn a_file_that_can_not_be_written_is_told_of_before_the_python_is_tried() {
    let studio = Studio::new();
    studio.program("python", &format!("touch tried\n{PYTHON}"));
    studio.refused(&format!("--config none/rayreel.toml {ADD}"));
    assert!(!studio.place.path("tried").exists());
}

#[test]
fn a_file_of_somebody_else_is_not_replaced() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may run a command as somebody else");
        return;
    }
    let studio = Studio::new();
    let program = studio.place.path("rayreel");
    // Copied by another process: one that another test starts meanwhile would inherit a file open
    // for writing, which cannot be executed.
    let copied = std::process::Command::new("cp")
        .args([Path::new(env!("CARGO_BIN_EXE_rayreel")), &program])
        .status();
    assert!(copied.expect("it starts").success());
    // Its directory is anybody's, so that a file in it could be replaced, but not written to.
    fs::set_permissions(studio.place.path("."), Permissions::from_mode(0o777)).expect("ours");
    studio.write("rayreel.toml", b"# mine\n");
    let mut other = std::process::Command::new(program);
    let output = other
        .args(ADD.split(' '))
        .env_clear()
        .env("HOME", studio.place.path("home"))
        .env("PATH", "/usr/bin:/bin")
        .current_dir(studio.place.path("."))
        .uid(65_534)
        .output()
        .expect("it starts");
    let said = studio.seen(&output.stderr);
    assert!(said.contains("rayreel.toml can't be written: this user may not do that"), "{said}");
    assert_eq!(studio.read("rayreel.toml"), "# mine\n");
}

#[test]
fn a_server_does_not_start_with_files_that_are_missing() {
    let studio = Studio::new();
    studio.done(ADD);
    fs::remove_file(studio.place.path("5b/vae/model.safetensors")).expect("gone");
    let says = "rayreel.toml, line 4: models.mine.checkpoint: ~/5b/vae has no weights: no \
                .safetensors file; download it again";
    for words in [
        "serve --listen 127.0.0.1:0",
        "config check",
        "generate fox -o fox.mp4",
        "generate fox -o fox.mp4 --model ti2v-5B",
    ] {
        let (status, said) = studio.refused(words);
        assert_eq!((status, said), (Some(2), format!("error[invalid_config]: {says}\n")));
    }
    assert!(!studio.place.path("data").exists(), "no server was started");
    // Whoever asks for another model needs none of it.
    studio.done("generate fox -o fox.png --model testcard --size 64x64 --steps 1");
    let (table, _) = studio.done("models");
    assert!(table.contains("faulty, default") && table.contains(says), "{table}");
    // All of them are told, and the Python is tried.
    studio.program("python", "echo broken >&2; exit 1");
    let output = studio.run("models check mine");
    assert_eq!(output.status.code(), Some(2));
    let said = studio.seen(&output.stdout);
    assert!(said.contains(says) && said.contains("~/python: it failed: broken"), "{said}");
    let (status, said) = studio.refused("models check none");
    assert_eq!(status, Some(2));
    assert!(said.contains("there is no model `none`; there are: mine, testcard"), "{said}");
    // Whoever runs the pool elsewhere has the files there.
    let config = studio.read("rayreel.toml");
    studio.write("rayreel.toml", format!("{config}\n[pools.local]\nmax = 0\n").as_bytes());
    studio.done("config check");
    assert!(studio.done("models").0.contains("runs elsewhere"));
}

#[test]
fn the_environment_is_made_once_and_again_for_another_build() {
    let studio = Studio::new();
    studio.write("fit", PYTHON.replace("VERSION", env!("CARGO_PKG_VERSION")).as_bytes());
    // It does what uv does, as far as can be seen from here.
    studio.program(
        "bin/uv",
        "echo \"$@\" >>uv.log\n\
         [ \"$1\" = pip ] && exit 0\n\
         for last; do :; done\n\
         mkdir -p \"$last/bin\"\n\
         { echo '#!/bin/sh'; cat fit; } >\"$last/bin/python\"\n\
         chmod +x \"$last/bin/python\"",
    );
    let add = "models add mine --checkpoint 5b --create-env";
    let (_, stderr) = studio.done(add);
    assert!(stderr.contains("making a Python environment with torch"), "{stderr}");
    let data = studio.place.path("data").display().to_string();
    let sources = format!("{data}/python-src/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        studio.read("uv.log"),
        format!(
            "venv --python >=3.11 --clear {data}/python\n\
             pip install --compile-bytecode --reinstall-package rayreel --refresh-package rayreel \
             {sources}[diffusers] --python {data}/python/bin/python --constraints {sources}/constraints.txt\n"
        )
    );
    // The model names no Python: it is that one.
    assert!(!studio.read("rayreel.toml").contains("python"));
    studio.done("config check");
    studio.done(&format!("{add} --force"));
    assert_eq!(studio.read("uv.log").lines().count(), 2, "it is current");
    studio.write("data/python/rayreel-package", b"0.0.1 00\n");
    let mut server = studio.place.serve("--listen 127.0.0.1:0");
    server.wait_for("`rayreel models check --create-env` brings it up to date");
    server.signal(rustix::process::Signal::TERM);
    server.end();
    studio.done("models check --create-env");
    assert_eq!(studio.read("uv.log").lines().count(), 3, "it is brought up to date");
    // One that is of this build, but does not run, is made anew.
    studio.program("data/python/bin/python", "echo broken >&2; exit 1");
    let (_, stderr) = studio.done("models check --create-env");
    assert!(stderr.contains("it failed: broken"), "{stderr}");
    assert!(studio.read("uv.log").lines().nth(3).expect("a line").starts_with("venv "));
    fs::remove_file(studio.place.path("bin/uv")).expect("gone");
    studio.write("data/python/rayreel-package", b"0.0.1 00\n");
    let (status, said) = studio.refused("models check --create-env");
    assert_eq!(status, Some(2));
    assert!(said.contains("there is no uv") && said.contains("pip install uv"), "{said}");
}

#[test]
fn a_server_is_asked_for_its_models() {
    let studio = Studio::new();
    let server = studio.place.serve("--listen 127.0.0.1:0");
    let url = studio.place.announced()["url"].as_str().expect("a text").to_owned();
    let (table, _) = studio.done(&format!("models --server {url}"));
    assert!(table.contains("testcard"), "{table}");
    assert!(table.contains("832x480, 49 frames at 16 fps, 20 steps, default, test pattern"));
    let body = studio.place.json(&format!("models --server {url}"));
    assert_eq!(body["data"][0]["id"], "testcard");
    let (_, stderr) = studio.done(ADD);
    assert!(stderr.contains(&format!("the server at {url} knows of it when it is started again")));
    server.signal(rustix::process::Signal::TERM);
    server.end();
}
