mod artifacts;
mod loras;

use std::fs;
use std::path::{Path, PathBuf};

use rayreel_domain::lease::Terms;
use rayreel_domain::request::{Defaults, Images, Limits};
use rayreel_domain::schedule::Locality;
use rayreel_domain::task::Rules;
use rayreel_domain::wire::worker::EngineSetup;
use serde_json::json;

use super::*;

/// No file, no variable, no flag.
fn nothing() -> Sources {
    Sources {
        directory: PathBuf::from("/srv"),
        data: Some(PathBuf::from("/home/me/.local/share/rayreel")),
        ..Sources::default()
    }
}

fn with_variables(variables: &[(&str, &str)]) -> Sources {
    let variables =
        variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Sources { variables: variables.collect(), ..nothing() }
}

/// A configuration file of its own for each test.
struct File {
    directory: tempfile::TempDir,
}

impl File {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join(FILE_NAME), text).expect("a file");
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(FILE_NAME)
    }

    fn sources(&self) -> Sources {
        Sources { file: Some(self.path()), ..nothing() }
    }
}

fn load_file(text: &str) -> Settings {
    Settings::load(&File::new(text).sources()).expect("right")
}

/// The error of a file, without its folder.
fn file_error(text: &str) -> String {
    let file = File::new(text);
    let error = Settings::load(&file.sources()).expect_err("wrong");
    assert_eq!(error.code(), Code::InvalidConfig);
    error.to_string().replace(&format!("{}/", file.directory.path().display()), "")
}

fn variable_error(name: &str, value: &str) -> String {
    Settings::load(&with_variables(&[(name, value)])).expect_err("wrong").to_string()
}

fn model(name: &str) -> ModelName {
    name.parse().expect("a name")
}

fn pool(name: &str) -> PoolName {
    name.parse().expect("a name")
}

#[test]
fn the_default_file_is_a_whole_and_right_configuration() {
    let settings = Settings::load(&nothing()).expect("right");
    assert_eq!(settings.listen.to_string(), "127.0.0.1:8088");
    assert_eq!(settings.data, Path::new("/home/me/.local/share/rayreel"));
    assert_eq!(settings.default_model, model("testcard"));
    assert_eq!(settings.max_body_bytes, 16 << 20);
    assert_eq!(settings.max_bodies_bytes, 256 << 20);
    assert_eq!(settings.max_run_seconds.duration(), Duration::from_secs(3600));
    assert_eq!(settings.log, Log { level: LogLevel::Info, format: LogFormat::Text, access: false });
    assert_eq!(settings.max_wait_seconds.duration(), Duration::from_secs(300));
    assert_eq!(settings.models[&model("testcard")].settings["step_ms"], json!(10));
}

#[test]
fn the_default_file_says_what_the_domain_takes_by_default() {
    let settings = Settings::load(&nothing()).expect("right");
    assert_eq!(settings.rules(), Rules::default());
    assert_eq!(settings.terms(), Terms::default());
    assert_eq!(settings.locality(), Locality::default());
    let spec = settings.model_spec(&model("testcard")).expect("a model");
    assert_eq!(spec.limits, Limits::default());
    assert_eq!(spec.defaults, Defaults::default());
}

#[test]
fn the_default_file_documents_every_key() {
    let settings = Settings::load(&with_variables(&[
        ("RAYREEL_PUBLIC_URL", "https://video.example.com"),
        ("RAYREEL_PYTHON", "/opt/python"),
        ("RAYREEL_MODELS__TESTCARD__CHECKPOINT", "/models/x"),
        ("RAYREEL_MODELS__TESTCARD__ESTIMATE_SECONDS", "1"),
        ("RAYREEL_MODELS__TESTCARD__DEFAULTS__GUIDANCE", "5.0"),
    ]));
    let settings = serde_json::to_value(settings.expect("right")).expect("plain data");
    fn keys(value: &Value, found: &mut Vec<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            found.push(key.clone());
            keys(value, found);
        }
    }
    let mut found = Vec::new();
    keys(&settings, &mut found);
    assert!(found.len() > 40, "{found:?}");
    for key in found {
        let says = |line: &str| {
            let line = line.trim_start_matches(['#', ' ']);
            line.starts_with(&format!("{key} =")) || line.starts_with('[') && line.contains(&key)
        };
        assert!(DEFAULT_FILE.lines().any(says), "`{key}` is not in the default file");
    }
}

#[test]
fn each_layer_is_stronger_than_the_one_before() {
    let file = File::new("listen = \"127.0.0.1:1111\"\nlease_seconds = 10\nmax_queued = 7");
    let mut sources = Sources {
        variables: with_variables(&[
            ("RAYREEL_LISTEN", "127.0.0.1:2222"),
            ("RAYREEL_LEASE_SECONDS", "0.5"),
            ("PATH", "/bin"),
        ])
        .variables,
        ..file.sources()
    };
    sources.flags.listen = Some("[::1]:3333".to_owned());
    let loaded = load(&sources).expect("right");
    assert_eq!(loaded.settings.listen.to_string(), "[::1]:3333");
    assert_eq!(loaded.settings.lease_seconds.ms(), 500);
    assert_eq!(loaded.settings.max_queued, 7);

    let origin = |key: &str| {
        let entries = loaded.entries();
        let entry = entries.iter().find(|entry| entry.key == key);
        entry.map(|entry| (entry.value.clone(), entry.origin.clone())).expect("an entry")
    };
    assert_eq!(origin("listen"), ("\"[::1]:3333\"".to_owned(), Origin::Flag("--listen")));
    let variable = Origin::Variable("RAYREEL_LEASE_SECONDS".to_owned());
    assert_eq!(origin("lease_seconds"), ("0.5".to_owned(), variable));
    let file = Origin::File { path: file.path(), line: 3 };
    assert_eq!(origin("max_queued"), ("7".to_owned(), file));
    assert!(matches!(origin("retry.max_losses"), (value, Origin::Default { .. }) if value == "5"));
    let (value, derived) = origin("default_model");
    assert_eq!((value.as_str(), derived.kind()), ("\"testcard\"", "default"));
    assert_eq!(derived.to_string(), "the only model there is");
}

#[test]
fn the_entries_are_a_configuration_file_that_says_the_same() {
    let file = File::new(
        "[models.\"wan2.2\"]\ncommand = [\"py\", \"a \\\"b\\\"\"]\n\
         settings = { list = [1, { x = 0.5 }], when = 2026-01-01, \"odd key\" = true }",
    );
    let first = load(&file.sources()).expect("right");
    let lines: Vec<String> =
        first.entries().iter().map(|entry| format!("{} = {}", entry.key, entry.value)).collect();
    assert_eq!(load_file(&lines.join("\n")), first.settings);
}

#[test]
fn a_file_is_found_where_it_is_named_then_in_the_places_to_search() {
    let (asked, named, searched) =
        (File::new("max_queued = 1"), File::new("max_queued = 2"), File::new("max_queued = 3"));
    let mut sources = Sources {
        file: Some(asked.path()),
        search: vec![PathBuf::from("/nowhere/rayreel.toml"), searched.path()],
        variables: vec![("RAYREEL_CONFIG".into(), named.path().into_os_string())],
        ..nothing()
    };
    assert_eq!(Settings::load(&sources).expect("right").max_queued, 1);
    sources.file = None;
    assert_eq!(Settings::load(&sources).expect("right").max_queued, 2);
    sources.variables.clear();
    let loaded = load(&sources).expect("right");
    assert_eq!(loaded.settings.max_queued, 3);
    assert_eq!(loaded.file, Some(searched.path()));
    sources.file = Some(PathBuf::from("/nowhere/rayreel.toml"));
    assert_eq!(
        Settings::load(&sources).expect_err("wrong").to_string(),
        "/nowhere/rayreel.toml: there is no such configuration file"
    );
}

#[test]
fn a_file_that_is_not_toml_is_refused_by_line() {
    assert!(file_error("listen = \"a\"\nlisten = \"b\"").starts_with("rayreel.toml, line 2: "));
    assert!(file_error("[log]\nlevel = ").starts_with("rayreel.toml, line 2: "));
    assert_eq!(
        file_error("max_queued = 99999999999999999999"),
        "rayreel.toml, line 1: the number is too large"
    );
    let file = File::new("");
    fs::write(file.path(), b"# fine\n# \xff").expect("written");
    let error = Settings::load(&file.sources()).expect_err("wrong").to_string();
    assert!(error.ends_with("line 2 is not UTF-8"), "{error}");
}

#[test]
fn an_unknown_key_in_a_file_is_refused_and_the_nearest_named() {
    for (text, message) in [
        (
            "\nlease_secnds = 3",
            "rayreel.toml, line 2: there is no setting `lease_secnds`; \
             did you mean `lease_seconds`?",
        ),
        (
            "[pools.local]\nmaximum = 3",
            "rayreel.toml, line 2: there is no setting `pools.local.maximum`; `pools.local` has \
             provider, min, max, target_wait_seconds, idle_timeout_seconds, \
             start_timeout_seconds, gpus, gpus_per_worker",
        ),
        (
            "[pools.local]\nidle_timeout_second = 3",
            "rayreel.toml, line 2: there is no setting `pools.local.idle_timeout_second`; \
             did you mean `pools.local.idle_timeout_seconds`?",
        ),
        (
            "max_losses = 3",
            "rayreel.toml, line 1: there is no setting `max_losses`; \
             did you mean `retry.max_losses`?",
        ),
        (
            "[models.testcard.limits]\nmax_frame = 5",
            "rayreel.toml, line 2: there is no setting `models.testcard.limits.max_frame`; \
             did you mean `models.testcard.limits.max_frames`?",
        ),
        (
            "[modles.x]\nengine = \"testcard\"",
            "rayreel.toml, line 1: there is no setting `modles`; did you mean `models`?",
        ),
        (
            "colour = 1",
            "rayreel.toml, line 1: there is no setting `colour`; \
             `rayreel config default` shows all settings",
        ),
    ] {
        assert_eq!(file_error(text), message);
    }
}

#[test]
fn an_unknown_variable_is_refused_and_the_nearest_named() {
    for (name, message) in [
        (
            "RAYREEL_LEASE_SECNDS",
            "RAYREEL_LEASE_SECNDS: there is no such setting; did you mean `RAYREEL_LEASE_SECONDS`?",
        ),
        (
            "RAYREEL_POOLS__LOCAL__MAXX",
            "RAYREEL_POOLS__LOCAL__MAXX: there is no such setting; \
             did you mean `RAYREEL_POOLS__LOCAL__MAX`?",
        ),
        (
            "RAYREEL_SERVR",
            "RAYREEL_SERVR: there is no such setting; did you mean `RAYREEL_SERVER`?",
        ),
        (
            "RAYREEL_MAX_FAILURES",
            "RAYREEL_MAX_FAILURES: there is no such setting; \
             did you mean `RAYREEL_RETRY__MAX_FAILURES`?",
        ),
    ] {
        assert_eq!(variable_error(name, "1"), message);
    }
}

#[test]
fn the_settings_of_a_built_in_engine_are_checked_like_any_other() {
    for (text, message) in [
        (
            "[models.testcard.settings]\nstep_mss = 5",
            "rayreel.toml, line 2: there is no setting `models.testcard.settings.step_mss`; \
             did you mean `models.testcard.settings.step_ms`?",
        ),
        (
            "[models.slow]\nengine = \"testcard\"\nsettings = { offload = true }",
            "rayreel.toml, line 3: there is no setting `models.slow.settings.offload`; \
             `models.slow.settings` has step_ms",
        ),
        (
            "[models.testcard.settings]\nstep_ms = \"10\"",
            "rayreel.toml, line 2: models.testcard.settings.step_ms: \
             must be a whole number from 0 to 600000, not `\"10\"`",
        ),
        (
            "[models.testcard.settings]\nstep_ms = 600_001",
            "rayreel.toml, line 2: models.testcard.settings.step_ms: \
             must be a whole number from 0 to 600000, not `600001`",
        ),
        (
            "[models.x]\nengine = \"command\"\nsettings = { rum = [\"p\"] }",
            "rayreel.toml, line 3: there is no setting `models.x.settings.rum`; \
             did you mean `models.x.settings.run`?",
        ),
        (
            "[models.x]\nengine = \"command\"\nsettings = { run = [\"p\", \"{promt}\"] }",
            "rayreel.toml, line 3: models.x.settings.run: there is no placeholder `{promt}`; \
             did you mean `{prompt}`?",
        ),
        (
            "[models.x]\nengine = \"command\"\n\
             [models.x.settings]\nrun = [\"p\"]\nenvironment.A = 1",
            "rayreel.toml, line 5: models.x.settings.environment.A: must be text, not `1`",
        ),
        (
            "[models.x]\nengine = \"command\"",
            "rayreel.toml, line 1: models.x.settings: `run`, the program and its arguments, \
             is missing; or name a `preset`",
        ),
        (
            "[models.x]\nengine = \"server\"\n\
             settings = { adapter = \"sgland\", url = \"http://127.0.0.1:30010\" }",
            "rayreel.toml, line 3: models.x.settings.adapter: `sgland` is none; \
             there is sglang, vllm-omni, lightx2v, sd-server",
        ),
        (
            "[models.x]\nengine = \"server\"\n\
             settings = { adapter = \"sglang\", headers = { authorization = \"Bearer abc\" } }",
            "rayreel.toml, line 3: models.x.settings.headers.authorization: \
             must be the name of an environment variable that begins with RAYREEL_ENGINE_ \
             and holds the header's value; secrets do not belong into the configuration",
        ),
    ] {
        assert_eq!(file_error(text), message);
    }
    assert_eq!(
        variable_error("RAYREEL_MODELS__TESTCARD__SETTINGS__STEP_MSS", "5"),
        "RAYREEL_MODELS__TESTCARD__SETTINGS__STEP_MSS: there is no such setting; \
         did you mean `RAYREEL_MODELS__TESTCARD__SETTINGS__STEP_MS`?"
    );
    // What another program is told is its own affair.
    load_file("[models.x]\ncommand = [\"x\"]\nsettings = { step_mss = \"5\" }");
}

#[test]
fn a_command_line_goes_with_its_model() {
    let preset = |task: &str, more: &str| {
        format!(
            "[models.x]\nengine = \"command\"\n{more}\n[models.x.settings]\n\
             preset = \"wan2.2\"\nrepository = \"/w\"\ntask = \"{task}\"\n"
        )
    };
    let whole = |task: &str, more: &str| preset(task, &format!("checkpoint = \"/c\"\n{more}"));
    let run = |run: &str, more: &str| {
        format!("[models.x]\nengine = \"command\"\nsettings.run = [\"p\", {run}]\n{more}")
    };
    let size = "defaults.size = \"1280x704\"\ndefaults.fps = 24";
    for (text, message) in [
        (
            preset("t2v-A14B", "images = \"none\""),
            "line 1: models.x.checkpoint: is missing: the command line has `{checkpoint}`",
        ),
        (
            whole("t2v-A14B", ""),
            "models.x.images: t2v-A14B takes no image; write `images = \"none\"`",
        ),
        (
            whole("t2v-A14B", "images = \"first-last\""),
            "line 4: models.x.images: t2v-A14B takes no image; write `images = \"none\"`",
        ),
        (
            whole("i2v-A14B", "images = \"first-last\""),
            "models.x.images: i2v-A14B takes a first frame alone; write `images = \"first\"`",
        ),
        (
            whole("i2v-A14B", "images = \"none\""),
            "models.x.images: i2v-A14B takes a first frame alone; write `images = \"first\"`",
        ),
        (
            whole("ti2v-5B", ""),
            "models.x.defaults.size: ti2v-5B makes the sizes 1280x704, 704x1280, not 832x480",
        ),
        (
            whole("ti2v-5B", "defaults.size = \"1280x704\""),
            "models.x.defaults.fps: ti2v-5B makes 24 frames a second, not 16",
        ),
        (
            whole("ti2v-5B", &format!("{size}\nloras.anime = \"/l\"")),
            "models.x.loras: Wan2.2's own script takes no LoRA; the engine `wan` does",
        ),
        (
            whole("ti2v-5B", &format!("{size}\ndefaults.guidance_2 = 3")),
            "models.x.defaults.guidance_2: Wan2.2's own script takes one scale of guidance",
        ),
        (
            run("\"{prompt}\"", "loras.anime = \"/l\""),
            "models.x.loras: the program would not be told of it: add the placeholder to \
             `settings.run`, such as the group [\"--loras={loras}\"], or `{request_file}`; or write \
             `reads_request = true`",
        ),
        (
            run("\"{prompt}\"", "images = \"first-last\""),
            "models.x.images: the program would not be told of it: add the placeholder to \
             `settings.run`, such as the group [\"--last-image={last_image}\"]",
        ),
        (run("\"{prompt}\"", "defaults.guidance = 3"), "such as the group [\"--guidance="),
        (run("\"{prompt}\"", "defaults.guidance_2 = 3"), "the group [\"--guidance-2={guidance_2}"),
        (
            run("\"{image}\"", "images = \"none\""),
            "models.x.images: must be \"first\" or \"first-last\": the command line always has",
        ),
        (
            run("\"{prompt}\"", "grace_seconds = 2"),
            "models.x.settings.stop_seconds: 5 must be less than the model's `grace_seconds`, 2: \
             after that the engine is killed, before it could end all that the program has started",
        ),
        (
            run("\"{prompt}\"", "settings.stop_seconds = 10"),
            "line 4: models.x.settings.stop_seconds: 10 must be less than",
        ),
        (run("\"{prompt}\"", "settings.silence_seconds = 0"), "must be a number from 0.1 to"),
        (run("\"{prompt}\"", "settings.environment.1A = \"\""), "is no name of a variable"),
    ] {
        let error = file_error(&text);
        assert!(error.contains(message), "{text}\n{error}");
    }
    for text in [
        whole("t2v-A14B", "images = \"none\""),
        whole("i2v-A14B", ""),
        whole("ti2v-5B", size),
        run("[\"--l={loras}\"]", "loras.anime = \"/l\""),
        run("[\"{image}\", \"{last_image}\"]", "images = \"first-last\""),
        run("\"{request_file}\"", "loras.anime = \"/l\"\nimages = \"first-last\""),
        run("\"{prompt}\"", "settings.reads_request = true\nloras.anime = \"/l\""),
    ] {
        load_file(&text);
    }
}

#[test]
fn the_examples_of_the_page_on_engines_are_right() {
    let page = include_str!("../../../../docs/operate/engines.md");
    let examples: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```").map(|(example, _)| example))
        .collect();
    assert!(examples.len() >= 2);
    for example in examples {
        load_file(example);
    }
}

#[test]
fn what_is_wrong_in_a_layer_stays_wrong_under_a_stronger_one() {
    for (text, name, value, message) in [
        (
            "lease_seconds = \"long\"",
            "RAYREEL_LEASE_SECONDS",
            "5",
            "line 1: lease_seconds: must be a number, not the text `long`",
        ),
        ("log = 3", "RAYREEL_LOG__LEVEL", "info", "line 1: log: must be a table, not `3`"),
        (
            "[log]\nlevel = \"loud\"",
            "RAYREEL_LOG__LEVEL",
            "info",
            "line 2: log.level: must be one of error, warn, info, debug, trace, not `loud`",
        ),
        (
            "[models.testcard.settings]\nstep_ms = true",
            "RAYREEL_MODELS__TESTCARD__SETTINGS__STEP_MS",
            "5",
            "line 2: models.testcard.settings.step_ms: \
             must be a whole number from 0 to 600000, not `true`",
        ),
    ] {
        let file = File::new(text);
        let mut sources = file.sources();
        sources.variables = with_variables(&[(name, value)]).variables;
        let error = Settings::load(&sources).expect_err("wrong").to_string();
        assert!(error.ends_with(message), "{error}");
    }
    let mut sources = with_variables(&[("RAYREEL_LISTEN", "nowhere")]);
    sources.flags.listen = Some("127.0.0.1:0".to_owned());
    let error = Settings::load(&sources).expect_err("wrong").to_string();
    assert!(error.starts_with("RAYREEL_LISTEN: `nowhere` is not an address"), "{error}");
}

#[test]
fn a_layer_may_leave_to_a_stronger_one_what_it_lacks() {
    let file =
        File::new("default_model = \"x\"\n[pools.local]\nmin = 2\n[models.x]\npool = \"gpu\"");
    let sources = Sources {
        data: None,
        variables: with_variables(&[
            ("RAYREEL_MODELS__X__COMMAND", "[\"x\"]"),
            ("RAYREEL_POOLS__GPU__MAX", "2"),
            ("RAYREEL_POOLS__LOCAL__MAX", "2"),
            ("RAYREEL_DATA", "/d"),
        ])
        .variables,
        ..file.sources()
    };
    assert_eq!(Settings::load(&sources).expect("right").default_model, model("x"));
}

#[test]
fn variables_that_are_not_settings_are_left_alone() {
    let sources = with_variables(&[
        ("RAYREEL_SERVER", "http://127.0.0.1:1"),
        ("RAYREEL_TOKEN", "t"),
        ("RAYREEL_WORKER_TOKEN", "t"),
        ("RAYREEL_LOG", "debug"),
        ("RAYREEL_LISTEN", ""),
        ("RAYREEL_CONFIG", ""),
    ]);
    assert_eq!(Settings::load(&sources), Settings::load(&nothing()));
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_what_is_allowed() {
    for (text, message) in [
        (
            "lease_seconds = \"long\"",
            "rayreel.toml, line 1: lease_seconds: must be a number, not the text `long`",
        ),
        (
            "max_queued = -1",
            "rayreel.toml, line 1: max_queued: must be a whole number, not negative, not `-1`",
        ),
        (
            "max_queued = 1.5",
            "rayreel.toml, line 1: max_queued: must be a whole number, not negative, not `1.5`",
        ),
        ("listen = 8088", "rayreel.toml, line 1: listen: must be a text in quotes, not `8088`"),
        (
            "listen = \"localhost:8088\"",
            "rayreel.toml, line 1: listen: `localhost:8088` is not an address; \
             write it as 127.0.0.1:8088 or [::1]:8088",
        ),
        (
            "[log]\nformat = \"xml\"",
            "rayreel.toml, line 2: log.format: must be one of text, json, not `xml`",
        ),
        ("log = 3", "rayreel.toml, line 1: log: must be a table, not `3`"),
        (
            "[models.x]\ncommand = \"python3\"",
            "rayreel.toml, line 2: models.x.command: must be a list of texts, not the text `python3`",
        ),
        (
            "[models.x]\ncommand = [\"python3\",\n3]",
            "rayreel.toml, line 3: models.x.command: must be a text in quotes, not `3`",
        ),
        (
            "[models.testcard.defaults]\nsize = \"big\"",
            "rayreel.toml, line 2: models.testcard.defaults.size: \
             `big` is not a size; write it as 832x480 or 832*480",
        ),
        (
            "[pools.\"a b\"]",
            "rayreel.toml, line 1: pools.a b: the name of a pool is 1 to 64 letters, digits, `.`, \
             `_` and `-`, a letter or digit first",
        ),
        ("lease_seconds = nan", "rayreel.toml, line 1: `inf` and `nan` are not allowed"),
    ] {
        assert_eq!(file_error(text), message);
    }
    assert_eq!(
        variable_error("RAYREEL_LEASE_SECONDS", "long"),
        "RAYREEL_LEASE_SECONDS: must be a number, not the text `long`"
    );
    assert_eq!(variable_error("RAYREEL_POOLS", "3"), "RAYREEL_POOLS: must be a table, not `3`");
}

#[test]
fn a_value_out_of_bounds_is_refused_with_the_bounds() {
    for (text, message) in [
        (
            "lease_seconds = 0",
            "rayreel.toml, line 1: lease_seconds: 0 is not allowed; it must be from 0.1 to 3600",
        ),
        (
            "max_body_bytes = 10",
            "rayreel.toml, line 1: max_body_bytes: 10 is not allowed; \
             it must be from 65536 to 1073741824",
        ),
        (
            "[retry]\nmax_failures = 0",
            "rayreel.toml, line 2: retry.max_failures: 0 is not allowed; it must be from 1 to 1000",
        ),
        (
            "[models.testcard.limits]\nmax_fps = 0",
            "rayreel.toml, line 2: models.testcard.limits.max_fps: 0 is not allowed; \
             it must be from 1 to 240",
        ),
    ] {
        assert_eq!(file_error(text), message);
    }
}

#[test]
fn servers_that_are_killed_or_elsewhere_are_nobodys_concern() {
    load_file(
        "max_run_seconds = 600\n[models.x]\nengine = \"server\"\n\
         settings = { adapter = \"sglang\", run = [\"serve\", \"{port}\"] }",
    );
    // Each machine has one at this address.
    load_file(
        "[pools.b]\nmax = 0\n[models.x]\nengine = \"server\"\n\
         settings = { adapter = \"sglang\", url = \"http://127.0.0.1:30010/\" }\n\
         [models.y]\nengine = \"server\"\npool = \"b\"\n\
         settings = { adapter = \"sglang\", url = \"http://127.0.0.1:30010\" }",
    );
}

#[test]
fn settings_must_fit_one_another() {
    for (text, message) in [
        (
            "max_body_bytes = 200_000_000\nmax_bodies_bytes = 268_435_456",
            "rayreel.toml, line 2: max_bodies_bytes: 268435456 is less than twice \
             `max_body_bytes`, 200000000",
        ),
        (
            "[pools.local]\nmin = 2",
            "rayreel.toml, line 2: pools.local.min: 2 is above `pools.local.max`, 1",
        ),
        (
            "[pools.local]\nmax = 2\ngpus_per_worker = 2\ngpus = [\"0\", \"1\", \"2\"]",
            "rayreel.toml, line 4: pools.local.gpus: lists 3, but 2 workers (`max`) of 2 \
             (`gpus_per_worker`) need 4",
        ),
        (
            "[models.x]\ncommand = [\"x\"]\nimages = \"none\"\nimage_required = true",
            "rayreel.toml, line 4: models.x.image_required: can't be, as `images` is \"none\"",
        ),
        (
            "[pools.local]\nmax = 2\ngpus_per_worker = 2",
            "rayreel.toml, line 3: pools.local.gpus_per_worker: hands out what `gpus` lists, and that \
             is nothing: list 4, such as gpus = [\"0\", \"1\", \"2\", \"3\"]",
        ),
        (
            "[pools.local]\ngpus = [\"-1\"]",
            "rayreel.toml, line 2: pools.local.gpus: `-1` names no GPU; write its number, such as \
             \"0\", or its UUID",
        ),
        (
            "[pools.local]\ngpus = [\"0\", \"0\"]",
            "rayreel.toml, line 2: pools.local.gpus: `0` stands twice",
        ),
        (
            "[pools.local]\ngpus = [\"0,1\"]",
            "rayreel.toml, line 2: pools.local.gpus: `0,1` names no GPU; write its number, such \
             as \"0\", or its UUID",
        ),
        (
            "[retry]\nbackoff_seconds = 61",
            "rayreel.toml, line 2: retry.backoff_seconds: \
             61 is above `retry.max_backoff_seconds`, 60",
        ),
        (
            "default_model = \"testcart\"",
            "rayreel.toml, line 1: default_model: there is no model `testcart`; \
             did you mean `testcard`?",
        ),
        (
            "[models.x]\nengine = \"testcard\"\npool = \"gpu\"",
            "rayreel.toml, line 3: models.x.pool: there is no pool `gpu`; there is local",
        ),
        (
            "[models.x]\nengine = \"comfy\"",
            "rayreel.toml, line 2: models.x.engine: there is no engine `comfy`; \
             there is testcard, command, server, stable-diffusion, wan",
        ),
        (
            "[models.x]\npool = \"local\"",
            "rayreel.toml, line 1: models.x: `command`, the program that runs this model, \
             is missing",
        ),
        (
            "[models.testcard]\ncommand = [\"x\"]",
            "rayreel.toml, line 2: models.testcard.command: give `engine` or `command`, not both",
        ),
        (
            "[models.x]\ncommand = []",
            "rayreel.toml, line 2: models.x.command: must be a program and its arguments",
        ),
        (
            "[models.x]\ncommand = [\"x\"]\ncheckpoint = \"wan\"",
            "rayreel.toml, line 3: models.x.checkpoint: must be an absolute path",
        ),
        (
            "[models.testcard.defaults]\nframes = 50",
            "rayreel.toml, line 2: models.testcard.defaults.frames: \
             `frames` must be a whole number from 1 to 321 of the form 4n+1 (1, 5, 9 …), not 50",
        ),
        (
            "[models.testcard.limits]\nmax_frames = 100",
            "rayreel.toml, line 2: models.testcard.limits.max_frames: \
             must be 4n+1, as frames are: 97 or 101",
        ),
        (
            "[pools.b]\n[models.x]\nengine = \"server\"\n\
             settings = { adapter = \"sglang\", url = \"http://127.0.0.1:30010/\" }\n\
             [models.y]\nengine = \"server\"\npool = \"b\"\n\
             settings = { adapter = \"sglang\", url = \"http://127.0.0.1:30010\" }",
            "rayreel.toml, line 8: models.y.settings.url: `http://127.0.0.1:30010/` is the server \
             of `x`, too, whose pool is another: two workers would hand it jobs at once; give both \
             models one pool",
        ),
        (
            "[pools.b]\nmax = 2\n[models.y]\nengine = \"server\"\npool = \"b\"\n\
             settings = { adapter = \"sglang\", url = \"http://127.0.0.1:30010\" }",
            "rayreel.toml, line 6: models.y.settings.url: `http://127.0.0.1:30010/` does one job at a \
             time, and pool `b` may have 2 workers: give the model a pool with `max = 1`",
        ),
        (
            "max_run_seconds = 600\n[models.x]\nengine = \"server\"\n\
             settings = { adapter = \"sglang\", url = \"http://127.0.0.1:30010/\" }",
            "rayreel.toml, line 4: models.x.settings.wait_seconds: 1800 is more than half of \
             `max_run_seconds`, 600: a task runs while it waits for an earlier job, and the rest \
             must do for its own; set one of them",
        ),
        (
            "data = \"~/videos\"",
            "rayreel.toml, line 1: data: `~` stands for nothing here; write the path out",
        ),
    ] {
        assert_eq!(file_error(text), message);
    }
}

#[test]
fn a_model_is_called_by_its_aliases_too() {
    let settings = load_file(
        "default_model = \"sora-2\"\n[models.wan]\ncommand = [\"w\"]\naliases = [\"sora-2\", \"t2v-A14B\"]\n\
         [models.testcard]\naliases = [\"test\"]",
    );
    for (called, name) in [
        ("wan", Some("wan")),
        ("sora-2", Some("wan")),
        ("t2v-A14B", Some("wan")),
        ("test", Some("testcard")),
        ("sora", None),
    ] {
        let found = settings.canonical(&model(called)).map(ModelName::as_str);
        assert_eq!(found, name, "{called}");
    }
    assert_eq!(settings.default_model, model("wan"), "an alias means its model here as well");
}

#[test]
fn a_name_means_one_model() {
    let with = |aliases: &str, others: &str| {
        file_error(&format!(
            "[models.a]\ncommand = [\"x\"]\naliases = {aliases}\n\
             [models.b]\ncommand = [\"x\"]\naliases = {others}"
        ))
    };
    for (error, told) in [
        (with("[\"b\"]", "[]"), "line 3: models.a.aliases: `b` is the name of a model"),
        (with("[\"a\"]", "[]"), "line 3: models.a.aliases: `a` is the name of a model"),
        (with("[\"x\"]", "[\"x\"]"), "line 3: models.a.aliases: `x` is an alias of `b`, too"),
        (with("[]", "[\"y\", \"x\", \"y\"]"), "line 6: models.b.aliases: `y` stands twice"),
        (with("[\"no name\"]", "[]"), "line 3: models.a.aliases: the name of a model is 1 to 64"),
    ] {
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn a_folder_of_pictures_may_be_known_by_another_path() {
    let settings = load_file("input_roots = [\"/srv/in\", \"/path/in/pod/=/srv/./pictures\"]");
    let root = |named: &str, directory: &str| InputRoot {
        named: PathBuf::from(named),
        directory: PathBuf::from(directory),
    };
    let roots = [root("/srv/in", "/srv/in"), root("/path/in/pod", "/srv/pictures")];
    assert_eq!(settings.input_roots, roots);
    for wrong in ["in", "", "/", "~/in", "/srv/../etc", "/=/srv", "/srv=/", "pod=/srv"] {
        let error = file_error(&format!("\ninput_roots = [{wrong:?}]"));
        let told = format!("rayreel.toml, line 2: input_roots: `{wrong}` is not a folder");
        assert!(error.starts_with(&told), "{error}");
    }
}

#[test]
fn the_public_url_is_an_address_without_a_query() {
    for (text, kept) in [
        ("https://video.example.com", "https://video.example.com"),
        ("https://video.example.com/", "https://video.example.com"),
        ("http://[::1]:8088/below/a/path/", "http://[::1]:8088/below/a/path"),
    ] {
        let settings = Settings::load(&with_variables(&[("RAYREEL_PUBLIC_URL", text)]));
        assert_eq!(settings.expect("right").public_url.as_deref(), Some(kept));
    }
    for text in [
        "video.example.com",
        "/path",
        "ftp://video.example.com",
        "https://",
        "https://me@video.example.com",
        "https://video.example.com/?a=b",
        "https://video.example.com/#a",
        "https://video example.com",
    ] {
        let error = variable_error("RAYREEL_PUBLIC_URL", text);
        assert!(error.contains("write it as https://video.example.com"), "{error}");
    }
}

#[test]
fn a_relative_data_directory_is_beside_the_file_or_in_the_working_directory() {
    let file = File::new("data = \"videos\"");
    let mut sources = file.sources();
    let data = |sources: &Sources| Settings::load(sources).expect("right").data;
    assert_eq!(data(&sources), file.directory.path().join("videos"));
    sources.variables = with_variables(&[("RAYREEL_DATA", "here")]).variables;
    assert_eq!(data(&sources), Path::new("/srv/here"));
    sources.flags.data = Some(PathBuf::from("/there"));
    assert_eq!(data(&sources), Path::new("/there"));
}

#[test]
fn without_a_home_directory_the_data_directory_must_be_set() {
    let error = Settings::load(&Sources { data: None, ..nothing() }).expect_err("wrong");
    assert_eq!(
        error.to_string(),
        "data: is not set, and there is no home directory to put it in; \
         set `data`, RAYREEL_DATA or --data"
    );
    let sources = Sources { data: None, ..with_variables(&[("RAYREEL_DATA", "/d")]) };
    assert_eq!(Settings::load(&sources).expect("right").data, Path::new("/d"));
}

#[test]
fn the_default_model_is_the_first_configured_besides_the_test_card() {
    let two = "[models.zebra]\ncommand = [\"z\"]\n[models.ape]\ncommand = [\"a\"]\n";
    assert_eq!(load_file(two).default_model, model("zebra"));
    let set = format!("default_model = \"ape\"\n{two}");
    assert_eq!(load_file(&set).default_model, model("ape"));
    let slower = "[models.testcard.settings]\nstep_ms = 500";
    assert_eq!(load_file(slower).default_model, model("testcard"));
}

#[test]
fn a_model_takes_over_what_it_does_not_say_but_not_the_settings_of_the_engine() {
    let settings = load_file(
        "[models.\"wan2.2-ti2v-5b\"]\ncommand = [\"python3\", \"-m\", \"wan\"]\n\
         checkpoint = \"/models/wan\"\nsilence_seconds = 60\n\
         settings = { offload = true, nested = { any_key = [1, 2.5] } }\n\
         limits = { multiple = 32 }\ndefaults = { size = \"1280x704\", steps = 50 }\n\
         [pools.gpu]\nmax = 4",
    );
    let name = model("wan2.2-ti2v-5b");
    let setup = settings.model_setup(&name).expect("a model");
    let command = ["python3", "-m", "wan"].map(str::to_owned).to_vec();
    assert_eq!(setup.engine, EngineSetup::Command(command));
    assert_eq!(setup.checkpoint.as_deref(), Some("/models/wan"));
    assert_eq!((setup.silence_ms, setup.grace_ms), (60_000, 10_000));
    assert_eq!(
        Value::Object(setup.settings),
        json!({"offload": true, "nested": {"any_key": [1, 2.5]}})
    );
    let spec = settings.model_spec(&name).expect("a model");
    assert_eq!(spec.pool, pool("local"));
    assert_eq!((spec.limits.multiple, spec.limits.max_frames), (32, 321));
    assert_eq!((spec.defaults.steps, spec.defaults.frames), (50, 49));
    // What the test card takes says nothing of other engines.
    assert_eq!(spec.images, Images::First);
    assert_eq!(settings.models[&model("testcard")].images, Images::FirstLast);
    assert!(!settings.models[&name].is_test_pattern());
    assert!(settings.models[&model("testcard")].is_test_pattern());

    let policy = settings.pools[&pool("gpu")].policy();
    assert_eq!((policy.min, policy.max, policy.idle_timeout_ms), (0, 4, 600_000));
    assert_eq!(settings.pools[&pool("local")].policy().max, 1);
}

#[test]
fn a_variable_reaches_into_tables_and_takes_its_type_from_the_setting() {
    let file = File::new("[models.\"wan2.2-a\"]\ncommand = [\"x\"]");
    let mut sources = file.sources();
    sources.variables = with_variables(&[
        ("RAYREEL_POOLS__LOCAL__MAX", "3"),
        ("RAYREEL_LOG__FORMAT", "json"),
        ("RAYREEL_MODELS__TESTCARD__SETTINGS__STEP_MS", "250"),
        ("RAYREEL_MODELS__WAN2_2_A__SETTINGS__NAME", "plain"),
        ("RAYREEL_MODELS__WAN2_2_A__COMMAND", "[\"python3\", \"engine.py\"]"),
        ("RAYREEL_MODELS__WAN2_2_A__CHECKPOINT", "/0123"),
        ("RAYREEL_DEFAULT_MODEL", "wan2.2-a"),
    ])
    .variables;
    let settings = Settings::load(&sources).expect("right");
    assert_eq!(settings.pools[&pool("local")].max, 3);
    assert_eq!(settings.log.format, LogFormat::Json);
    let testcard = &settings.models[&model("testcard")];
    assert_eq!(testcard.settings["step_ms"], json!(250));
    let wan = &settings.models[&model("wan2.2-a")];
    assert_eq!(wan.settings["name"], json!("plain"));
    assert_eq!(wan.command.as_deref(), Some(&["python3".to_owned(), "engine.py".to_owned()][..]));
    assert_eq!(wan.checkpoint.as_deref(), Some("/0123"));
}

#[test]
fn a_variable_that_may_mean_two_models_is_refused() {
    let file = File::new("[models.\"a.b\"]\ncommand = [\"x\"]\n[models.a-b]\ncommand = [\"x\"]");
    let mut sources = file.sources();
    sources.variables = with_variables(&[("RAYREEL_MODELS__A_B__POOL", "local")]).variables;
    assert_eq!(
        Settings::load(&sources).expect_err("wrong").to_string(),
        "RAYREEL_MODELS__A_B__POOL: may mean `a-b` or `a.b`; set it in a file instead"
    );
}

#[test]
fn a_tenant_has_what_the_default_one_has_unless_it_says_otherwise() {
    let file = File::new(
        "[tenants.default]\nmax_queued = 7\nkeep_days = 0.5\n[tenants.acme]\nweight = 2.5",
    );
    let tenancy = Settings::load(&file.sources()).expect("right").tenancy();
    let acme = tenancy.of(&"acme".parse().expect("a name"));
    assert_eq!((acme.weight, acme.queued, acme.keep_ms), (2500, Some(7), Some(43_200_000)));
    let nobody = tenancy.of(&"nobody".parse().expect("a name"));
    assert_eq!((nobody.weight, nobody.queued), (1000, Some(7)));
}

#[test]
fn what_can_not_be_a_tenant_or_an_origin_is_an_error() {
    for (text, says) in [
        ("[tenants.acme]\nweight = 0", "weight"),
        ("[tenants.acme]\nmax_queue = 5", "max_queued"),
        ("[tenants.\"a b\"]\nweight = 1", "a b"),
        ("[tenants.acme]\nkeep_days = -1", "keep_days"),
        ("cors_origins = [\"app.example\"]", "https://app.example"),
        ("cors_origins = [\"https://app.example/path\"]", "no origin"),
        ("cors_origins = [\"https://u@app.example\"]", "no origin"),
    ] {
        let error = file_error(text);
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn what_tenants_may_call_is_read_from_text() {
    let outbound = load_file("[outbound]\nallow = [\"10.1.2.3/16\", \"Hooks.Internal\"]").outbound;
    let allowed: Vec<String> = outbound.allow.iter().map(ToString::to_string).collect();
    assert_eq!(allowed, ["10.1.0.0/16", "hooks.internal"]);
    for (text, message) in [
        (
            "allow = [\"10.1\"]",
            "rayreel.toml, line 2: outbound.allow: `10.1` is neither a host name, an address nor a \
             network such as 10.1.0.0/16",
        ),
        (
            "ports = []",
            "rayreel.toml, line 2: outbound.ports: must be a list of ports, such as [443]",
        ),
        (
            "certificates = \"ca.pem\"",
            "rayreel.toml, line 2: outbound.certificates: must be an absolute path",
        ),
        (
            "certificates = \"/dev/null\"",
            "rayreel.toml, line 2: outbound.certificates: /dev/null has no certificate in PEM",
        ),
    ] {
        assert_eq!(file_error(&format!("[outbound]\n{text}")), message);
    }
}
