use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::super::{Sources, load, load_text};
use super::*;

/// A machine with a directory for models, and a configuration that names them.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { directory: tempfile::tempdir().expect("a directory") };
        machine.write("checkpoint/model_index.json", "{\"_class_name\": \"LTXPipeline\"}");
        machine.write("python", "#!/bin/sh");
        fs::set_permissions(machine.path("python"), Permissions::from_mode(0o755)).expect("ours");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// With `~` for the directory.
    fn load(&self, text: &str) -> Result<Loaded, Error> {
        let text = text.replace('~', &self.directory.path().display().to_string());
        let sources = Sources { data: Some(self.path("data")), ..Sources::default() };
        load_text(&sources, &self.path("rayreel.toml"), &text)
    }

    fn fault(&self, text: &str) -> String {
        let loaded = self.load(text);
        let error = loaded.and_then(|loaded| loaded.check_files()).expect_err("wrong");
        error.to_string().replace(&format!("{}/", self.directory.path().display()), "~/")
    }
}

fn setup(loaded: &Loaded, name: &str) -> EngineSetup {
    let name = name.parse().expect("a name");
    loaded.settings.model_setup(&name).expect("a model").engine
}

#[test]
fn an_engine_in_python_is_run_by_the_models_python_or_that_of_all_or_the_programs_own() {
    let machine = Machine::new();
    let own = "[models.a]\nengine = \"wan\"\ncheckpoint = \"/c\"\npython = \"/own/python\"\n\
               [models.b]\nengine = \"stable-diffusion\"\ncheckpoint = \"/c\"\n";
    let words = |text: &str, name: &str| match setup(&machine.load(text).expect("right"), name) {
        EngineSetup::Command(words) => words.join(" "),
        other => panic!("{other:?}"),
    };
    assert_eq!(words(own, "a"), "/own/python -m rayreel wan");
    let made = format!("{}/data/python/bin/python", machine.directory.path().display());
    assert_eq!(words(own, "b"), format!("{made} -m rayreel stable-diffusion"));
    let all = format!("python = \"/all/python\"\n{own}");
    assert_eq!(words(&all, "a"), "/own/python -m rayreel wan");
    assert_eq!(words(&all, "b"), "/all/python -m rayreel stable-diffusion");
}

#[test]
fn what_an_engine_in_python_needs_must_be_said_and_nothing_else() {
    let machine = Machine::new();
    for (text, says) in [
        (
            "[models.x]\nengine = \"wam\"",
            "~/rayreel.toml, line 2: models.x.engine: there is no engine `wam`; did you mean `wan`?",
        ),
        (
            "[models.x]\nengine = \"wan\"",
            "~/rayreel.toml, line 1: models.x: `checkpoint` is missing: the engine `wan` needs a \
             directory in diffusers' format",
        ),
        (
            "[models.x]\nengine = \"wan\"\ncheckpoint = \"/c\"\npython = \"python3\"",
            "~/rayreel.toml, line 4: models.x.python: must be an absolute path",
        ),
        ("python = \"python3\"", "~/rayreel.toml, line 1: python: must be an absolute path"),
        (
            "[models.x]\ncommand = [\"x\"]\npython = \"/p\"",
            "~/rayreel.toml, line 3: models.x.python: means nothing here: it is of the engines \
             stable-diffusion and wan; with `command` it is the first word",
        ),
    ] {
        assert_eq!(machine.fault(text), says);
    }
}

#[test]
fn files_that_are_missing_are_told_where_they_are_configured() {
    let machine = Machine::new();
    for (text, says) in [
        (
            "python = \"~/python\"\n[models.x]\nengine = \"wan\"\ncheckpoint = \"~/gone\"",
            "~/rayreel.toml, line 4: models.x.checkpoint: ~/gone does not exist; put the checkpoint \
             there, or correct the path",
        ),
        (
            "python = \"~/python\"\n[models.x]\nengine = \"wan\"\ncheckpoint = \"~/checkpoint\"",
            "~/rayreel.toml, line 4: models.x.checkpoint: ~/checkpoint/model_index.json is of a \
             LTXPipeline; the engine `wan` runs WanPipeline and WanImageToVideoPipeline",
        ),
        (
            "[models.x]\ncommand = [\"x\"]\ncheckpoint = \"~/python\"",
            "~/rayreel.toml, line 3: models.x.checkpoint: ~/python is no directory; name the \
             directory of the checkpoint",
        ),
    ] {
        assert_eq!(machine.fault(text), says);
    }
}

#[test]
fn a_python_that_is_missing_is_told_with_what_makes_it() {
    let machine = Machine::new();
    machine.write(
        "checkpoint/model_index.json",
        "{\"_class_name\": \"X\", \"s\": [\"d\", \"XScheduler\"]}",
    );
    machine.write("checkpoint/s/scheduler_config.json", "{}");
    let model = "[models.x]\nengine = \"stable-diffusion\"\ncheckpoint = \"~/checkpoint\"\n";
    assert_eq!(
        machine.fault(model),
        "~/rayreel.toml, line 2: models.x.engine: there is no Python for it yet: \
         ~/data/python/bin/python does not exist; `rayreel models check --create-env` makes it, or \
         name one of your own with `python`"
    );
    assert_eq!(
        machine.fault(&format!("{model}python = \"~/checkpoint\"")),
        "~/rayreel.toml, line 4: models.x.python: ~/checkpoint is no program"
    );
    machine.write("plain", "");
    assert_eq!(
        machine.fault(&format!("python = \"~/plain\"\n{model}")),
        "~/rayreel.toml, line 1: python: ~/plain can't be executed by this user"
    );
    let right = format!("python = \"~/python\"\n{model}");
    machine.load(&right).and_then(|loaded| loaded.check_files()).expect("nothing is missing");
}

#[test]
fn the_files_of_loras_are_looked_at_with_the_models_own() {
    let machine = Machine::new();
    machine.write(
        "checkpoint/model_index.json",
        "{\"_class_name\": \"X\", \"s\": [\"d\", \"XScheduler\"]}",
    );
    machine.write("checkpoint/s/scheduler_config.json", "{}");
    let header = "{\"a\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}";
    let length: String = (header.len() as u64).to_le_bytes().map(char::from).iter().collect();
    machine.write("whole.safetensors", &format!("{length}{header}ab"));
    machine.write("cut.safetensors", &format!("{length}{header}"));
    machine.write("pickle.pt", "x");
    let python = "python = \"~/python\"\n[models.x]\nengine = \"stable-diffusion\"\n\
                  checkpoint = \"~/checkpoint\"\n[models.x.loras]\n";
    let command = "[models.x]\nengine = \"command\"\nsettings = { run = [\"p\", \"{request_file}\"] }\n\
                   [models.x.loras]\n";
    for (model, lora, says) in [
        (
            python,
            "\"~/no.safetensors\"",
            "line 6: models.x.loras.l: ~/no.safetensors does not exist; \
          put the LoRA there, or correct the path",
        ),
        (
            python,
            "\"~/checkpoint\"",
            "line 6: models.x.loras.l: ~/checkpoint is no file; name the \
          file of the LoRA",
        ),
        (
            python,
            "\"~/pickle.pt\"",
            "line 6: models.x.loras.l: ~/pickle.pt is no .safetensors file; \
          other formats are not loaded: get the LoRA in that one",
        ),
        (
            python,
            "{ high = \"~/whole.safetensors\", low = \"~/cut.safetensors\" }",
            "line 6: models.x.loras.l.low: ~/cut.safetensors is cut off: it has 63 of 65 bytes; \
             download it again",
        ),
        (
            command,
            "\"~/no.pt\"",
            "line 5: models.x.loras.l: ~/no.pt does not exist; put the LoRA \
          there, or correct the path",
        ),
    ] {
        let said = machine.fault(&format!("{model}l = {lora}\n"));
        assert_eq!(said, format!("~/rayreel.toml, {says}"));
    }
    // A program may take other formats than our engines.
    for (model, lora) in [(python, "whole.safetensors"), (command, "pickle.pt")] {
        let right = machine.load(&format!("{model}l = \"~/{lora}\"\n"));
        right.and_then(|loaded| loaded.check_files()).expect("nothing is missing");
    }
    let far = machine.load(&format!("{python}l = \"/no\"\n[pools.local]\nmax = 0"));
    far.and_then(|loaded| loaded.check_files()).expect("not of this machine");
}

#[test]
fn models_whose_workers_run_elsewhere_are_not_looked_at() {
    let machine = Machine::new();
    let model = "[models.x]\nengine = \"wan\"\ncheckpoint = \"/elsewhere\"\npool = \"far\"\n";
    let far = format!("{model}[pools.far]\nmax = 0");
    machine.load(&far).and_then(|loaded| loaded.check_files()).expect("not of this machine");
    // But when they are asked for by name.
    let examined = machine.load(&far).expect("right").examine(&"x".parse().expect("a name"));
    assert_eq!(examined.faults.len(), 2);
    machine.fault(&format!("{model}[pools.far]\nmax = 1"));
}

#[test]
fn a_text_is_read_as_the_file_that_it_would_be() {
    let machine = Machine::new();
    machine.write("rayreel.toml", "max_queued = 0");
    let sources = Sources {
        file: Some(machine.path("rayreel.toml")),
        data: Some(machine.path("data")),
        ..Sources::default()
    };
    load(&sources).expect_err("the file is wrong");
    load_text(&sources, &machine.path("rayreel.toml"), "max_queued = 1")
        .expect("the text is right");
}

#[test]
fn a_program_that_pip_has_installed_is_run_beside_its_python() {
    let machine = Machine::new();
    let program = machine.path("venv/bin/rayreel");
    machine.write("venv/bin/rayreel", "");
    assert_eq!(beside(&program), None, "a folder of programs");
    machine.write("venv/bin/python", "");
    assert_eq!(beside(&program), None, "such as /usr/bin, whose Python is nobody's own");
    machine.write("venv/pyvenv.cfg", "");
    assert_eq!(beside(&program), Some(machine.path("venv/bin/python")));
}

#[test]
fn a_variable_that_holds_a_header_is_no_setting_and_must_be_there() {
    let file = |pool: &str| {
        format!(
            "[pools.far]\nmax = 0\n[models.x]\nengine = \"server\"\npool = \"{pool}\"\n\
             settings = {{ adapter = \"sglang\", url = \"http://127.0.0.1:30010\", \
             headers = {{ authorization = \"RAYREEL_ENGINE_KEY\" }} }}"
        )
    };
    let check = |pool: &str, value: &str| {
        let variables = vec![("RAYREEL_ENGINE_KEY".into(), value.into())];
        let sources = Sources { data: Some("/data".into()), variables, ..Sources::default() };
        let loaded = load_text(&sources, Path::new("/rayreel.toml"), &file(pool));
        loaded.and_then(|loaded| loaded.check_files()).map_err(|error| error.to_string())
    };
    assert_eq!(check("local", "Bearer secret"), Ok(()));
    let said = check("local", "").expect_err("as good as none");
    assert!(
        said.contains("models.x.settings.headers.authorization: the environment has no variable"),
        "{said}"
    );
    assert!(said.contains("RAYREEL_ENGINE_KEY"), "{said}");
    assert_eq!(check("far", ""), Ok(()), "the variable is that of another machine");
}
