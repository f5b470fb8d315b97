//! The engine `command`: any program, one run a task.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::rig::{PNG, Rig, program, runs, until};

/// Writes what was asked for.
const GOOD: &str = "output.write_bytes(PNG)";

fn failed(answer: &Value) -> (&str, &str, bool) {
    assert_eq!(answer["type"], "error", "{answer}");
    let text = |key: &str| answer[key].as_str().unwrap();
    (text("code"), text("message"), answer["retryable"].as_bool().unwrap())
}

#[test]
fn a_program_is_told_of_the_request_in_three_ways_and_its_file_is_delivered() {
    let mut rig = Rig::new("command");
    let script = rig.script(
        "
request_file = pathlib.Path(os.environ['RAYREEL_REQUEST'])
told = dict(
    arguments=sys.argv[1:],
    variables={k: v for k, v in os.environ.items() if k.startswith('RAYREEL_') or k == 'OWN'},
    request=json.loads(request_file.read_text()),
    mode=oct(request_file.stat().st_mode & 0o777),
    folder=oct(request_file.parent.stat().st_mode & 0o777),
    cwd=os.getcwd(),
    stdin=sys.stdin.read(),
)
header = b'\\0\\0\\0\\x0dIHDR' + (640).to_bytes(4, 'big') + (480).to_bytes(4, 'big')
output.write_bytes(PNG + header + json.dumps(told).encode())
",
    );
    let settings = json!({
        "run": [
            "python3", script, "--prompt={prompt}", "{size}", "{steps}", ["--image={image}"],
            ["--guidance", "{guidance}"], "{output}", "{checkpoint}",
        ],
        "reads_request": true,
        "environment": {"OWN": "yes"},
        "output": "cat.png",
    });
    assert_eq!(rig.load(&settings)["engine"], "command");
    let out = rig.ask(&json!({"guidance": 3.5, "negative_prompt": "rain"}));
    let answer = rig.answer();
    assert_eq!(answer["type"], "done", "{answer}");
    let file = json!([{
        "path": "cat.png", "role": "image", "media_type": "image/png", "width": 640, "height": 480,
        "frames": 1, "fps": 0,
    }]);
    assert_eq!((&answer["files"], &answer["test_pattern"]), (&file, &json!(false)));
    assert!(answer["metrics"]["run_ms"].as_f64().unwrap() > 0.0);

    let written = fs::read(out.join("cat.png")).unwrap();
    let told: Value = serde_json::from_slice(&written[24..]).unwrap();
    let output = out.join("cat.png");
    let checkpoint = rig.dir.path();
    let arguments =
        json!(["--prompt=a cat", "64x48", "20", "--guidance", "3.5", output, checkpoint]);
    assert_eq!(told["arguments"], arguments);
    let variables = &told["variables"];
    for (name, value) in [
        ("RAYREEL_SEED", "7"),
        ("RAYREEL_WIDTH", "64"),
        ("RAYREEL_FRAMES", "1"),
        ("RAYREEL_GUIDANCE", "3.5"),
        ("RAYREEL_FORMAT", "png"),
        ("RAYREEL_MODEL", "m"),
        ("RAYREEL_OUTPUT_DIR", out.to_str().unwrap()),
        ("OWN", "yes"),
    ] {
        assert_eq!(variables[name], value, "{name}");
    }
    for absent in ["RAYREEL_PROMPT", "RAYREEL_IMAGE"] {
        assert_eq!(variables[absent], Value::Null, "{absent}");
    }
    let request = &told["request"]["request"];
    assert_eq!(
        (&request["prompt"], &request["negative_prompt"]),
        (&json!("a cat"), &json!("rain"))
    );
    assert_eq!((&told["mode"], &told["folder"]), (&json!("0o600"), &json!("0o700")));
    assert_eq!((&told["cwd"], &told["stdin"]), (&json!(out), &json!("")));
    let left: Vec<_> = fs::read_dir(out.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "the request's file is gone: {left:?}");
    assert_eq!(rig.finish().0, Some(0));
}

#[test]
fn a_prompt_arrives_byte_for_byte_whatever_is_in_it() {
    let mut rig = Rig::scripted("output.write_bytes(PNG + os.fsencode(sys.argv[1]))", json!({}));
    for prompt in
        ["--help", "a\nb\r\n\t\"c\" 'd' `e` $(f) $HOME ; rm -rf {seed} %s \\", "", "猫 🐈"]
    {
        let out = rig.ask(&json!({"prompt": prompt}));
        assert_eq!(rig.answer()["type"], "done");
        let written = fs::read(out.join("output.png")).unwrap();
        let argument = std::str::from_utf8(&written[PNG.len()..]).unwrap();
        assert_eq!(argument, format!("--prompt={prompt}"));
    }
}

#[test]
fn a_shell_takes_the_prompt_as_an_argument() {
    let mut rig = Rig::new("command");
    let code = "printf '\\211PNG\\r\\n\\032\\n%s' \"$1\" > \"$RAYREEL_OUTPUT\"";
    let answer = rig.load(&json!({"run": ["sh", "-c", code, "--", "{prompt}"]}));
    assert_eq!(answer["type"], "ready", "{answer}");
    for prompt in ["-c", "'; touch /dev/null; $(f) `e` \"$0\""] {
        let out = rig.ask(&json!({"prompt": prompt}));
        assert_eq!(rig.answer()["type"], "done");
        let written = fs::read(out.join("output.png")).unwrap();
        assert_eq!(String::from_utf8_lossy(&written[PNG.len()..]), prompt);
    }
}

#[test]
fn what_a_command_line_can_not_carry_is_refused() {
    let mut rig = Rig::new("command");
    let script = rig.script(GOOD);
    rig.load(&json!({"run": ["python3", script, "{prompt}", ["{last_image}"], "{image}"]}));
    let image = json!({"image": "/i.png"});
    let with = |prompt: &str| json!({"prompt": prompt, "image": "/i.png"});
    assert_eq!(rig.generate(&image)["type"], "done");
    for (request, message) in [
        (json!({}), "this model needs `image`"),
        (with("a\0b"), "`prompt` must not contain a NUL character"),
        (with("--save=/x"), "`prompt` begins with `-`, which this model's program would take"),
    ] {
        let answer = rig.generate(&request);
        let (code, said, retryable) = failed(&answer);
        assert_eq!((code, retryable), ("invalid_request", false), "{answer}");
        assert!(said.contains(message), "{answer}");
    }
}

#[test]
fn nothing_that_is_asked_for_is_dropped_in_silence() {
    let wishes = [
        ("negative_prompt", json!("rain")),
        ("guidance", json!(4.5)),
        ("guidance_2", json!(3.5)),
        ("loras", json!([{"name": "anime", "scale": 0.8}])),
        ("image", json!("/i.png")),
        ("last_image", json!("/j.png")),
    ];
    let loras = json!({"anime": {"path": "/loras/anime.safetensors"}});
    let engine = |more: Value| {
        let mut rig = Rig::new("command");
        let script = rig.script(GOOD);
        let mut run = json!(["python3", "-S", script, "--prompt={prompt}"]);
        run.as_array_mut().unwrap().extend(more["run"].as_array().into_iter().flatten().cloned());
        let settings = json!({"run": run, "reads_request": more["reads_request"] == true});
        let answer = rig.load_with(&settings, &json!({"loras": loras}));
        assert_eq!(answer["type"], "ready", "{answer}");
        rig
    };
    let mut deaf = engine(json!({}));
    for (name, value) in &wishes {
        let answer = deaf.generate(&json!({*name: value}));
        let (code, said, retryable) = failed(&answer);
        assert_eq!((code, retryable), ("invalid_request", false), "{answer}");
        for part in
            [format!("would not be told `{name}`"), format!("needs {{{name}}} or {{request_file}}")]
        {
            assert!(said.contains(&part), "{answer}");
        }
        assert!(said.contains("`reads_request = true`"), "{answer}");

        let mut told = engine(json!({"run": [format!("--that={{{name}}}")]}));
        assert_eq!(told.generate(&json!({*name: value}))["type"], "done", "{name}");
    }
    // An empty one asks for nothing.
    assert_eq!(deaf.generate(&json!({"negative_prompt": ""}))["type"], "done");

    let all: serde_json::Map<_, _> =
        wishes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    for more in [json!({"run": ["{request_file}"]}), json!({"reads_request": true})] {
        assert_eq!(engine(more).generate(&json!(all))["type"], "done");
    }

    // A group that is left out tells nothing.
    let mut both = engine(json!({"run": [["--ends={image},{last_image}"]]}));
    let answer = both.generate(&json!({"image": "/i.png"}));
    assert!(failed(&answer).1.contains("would not be told `image`"), "{answer}");
    let ends = json!({"image": "/i.png", "last_image": "/j.png"});
    assert_eq!(both.generate(&ends)["type"], "done");
}

#[test]
fn a_program_is_told_the_files_of_the_loras() {
    let mut rig = Rig::new("command");
    let script = rig.script(
        "
request = json.loads(pathlib.Path(os.environ['RAYREEL_REQUEST']).read_text())
told = [json.loads(sys.argv[1]), json.loads(os.environ['RAYREEL_LORAS']), request['loras']]
output.write_bytes(PNG + json.dumps([told, os.environ['RAYREEL_GUIDANCE_2']]).encode())
",
    );
    let loras = json!({
        "anime": {"path": "/loras/anime.safetensors"},
        "film": {"high": "/loras/high.safetensors", "low": "/loras/low.safetensors"},
    });
    let settings = json!({"run": ["python3", "-S", script, "{loras}", ["{guidance_2}"]]});
    let answer = rig.load_with(&settings, &json!({"loras": loras}));
    assert_eq!(answer["type"], "ready", "{answer}");
    let asked = json!([{"name": "film", "scale": 0.8}, {"name": "anime", "scale": -1.0}]);
    let out = rig.ask(&json!({"loras": asked, "guidance_2": 3.5}));
    assert_eq!(rig.answer()["type"], "done");
    let written = fs::read(out.join("output.png")).unwrap();
    let told: Value = serde_json::from_slice(&written[PNG.len()..]).unwrap();
    let files = json!([
        {"name": "film", "scale": 0.8, "high": "/loras/high.safetensors",
         "low": "/loras/low.safetensors"},
        {"name": "anime", "scale": -1.0, "path": "/loras/anime.safetensors"},
    ]);
    assert_eq!(told, json!([[files, files, files], "3.5"]));

    let answer = rig.generate(&json!({"loras": [{"name": "manga"}]}));
    let (code, said, _) = failed(&answer);
    assert_eq!((code, said), ("invalid_request", "this model has no LoRA `manga`"));
}

#[test]
fn progress_is_told_while_a_bar_is_drawn() {
    let mut rig = Rig::scripted(
        "
for step in range(4):
    sys.stderr.write(f'\\r {step*33}%|##  | {step}/3 [00:0{step}<?]')
    sys.stderr.flush()
    wait(f'go{step}')
print('stage decode: 1 of 2', flush=True)
wait('go4')
output.write_bytes(PNG)
",
        json!({"progress": r"(stage (?P<stage>\w+): )?(?P<step>\d+)(/| of )(?P<steps>\d+)"}),
    );
    rig.ask(&json!({}));
    let mut expect = |stage: &str, step: u32, steps: u32, go: &str| {
        loop {
            let said = rig.hear();
            assert_eq!(said["type"], "progress", "{said}");
            if (&said["stage"], &said["step"]) == (&json!(stage), &json!(step)) {
                assert_eq!(said["steps"], steps);
                break;
            }
        }
        rig.put(go);
    };
    for step in 0..4 {
        expect("denoise", step, 3, &format!("go{step}"));
    }
    expect("decode", 1, 2, "go4");
    assert_eq!(rig.answer()["type"], "done");
    let (status, log) = rig.finish();
    assert_eq!(status, Some(0));
    // The bar stands in the log once, as on a terminal.
    assert_eq!(log.matches("##").count(), 1, "{log}");
    assert!(log.contains("stage decode: 1 of 2\n"), "{log}");
}

#[test]
fn a_program_that_tells_no_progress_is_seen_to_live() {
    let mut rig = Rig::scripted("wait('go')\noutput.write_bytes(PNG)", json!({}));
    rig.ask(&json!({}));
    for _ in 0..2 {
        let said = rig.hear();
        let progress = (&said["stage"], &said["step"], &said["steps"]);
        assert_eq!(progress, (&json!("run"), &json!(0), &json!(1)), "{said}");
    }
    rig.put("go");
    assert_eq!(rig.answer()["type"], "done");
}

/// A family: one that obeys, one that does not, and one with a session of its own whose parent is
/// dead.
const FAMILY: &str = "
note('obeys', sleeper())
ignores = subprocess.Popen(['sh', '-c', 'trap \"\" TERM; while :; do sleep 1; done'])
note('ignores', ignores.pid)
far = '''import os, subprocess
print(subprocess.Popen([\"sleep\", \"1000\"], start_new_session=True, stdout=2).pid)'''
note('far', subprocess.run([sys.executable, '-c', far], stdout=subprocess.PIPE, text=True).stdout)
note('own', os.getpid())
";

fn family(rig: &Rig) -> Vec<String> {
    ["obeys", "ignores", "far", "own"].map(|name| rig.noted(name)).into()
}

#[test]
fn a_cancel_ends_the_program_and_all_that_it_has_started() {
    let mut rig = Rig::scripted(&format!("{FAMILY}\nwait('never')"), json!({"stop_seconds": 0.3}));
    rig.ask(&json!({}));
    let family = family(&rig);
    assert!(family.iter().all(|pid| runs(pid)));
    rig.cancel();
    assert_eq!(failed(&rig.answer()), ("cancelled", "cancelled", false));
    for pid in family {
        assert!(!runs(&pid), "{pid} still runs");
    }
    assert_eq!(rig.finish().0, Some(0));
}

#[test]
fn a_program_that_obeys_may_tidy_up_and_one_that_does_not_is_killed() {
    let obeys = "
def tidy(*_):
    note('tidied', '')
    sys.exit(0)
signal.signal(signal.SIGTERM, tidy)
note('started', os.getpid())
wait('never')
";
    // It has an hour, and needs none of it.
    let mut rig = Rig::scripted(obeys, json!({"stop_seconds": 3600}));
    rig.ask(&json!({}));
    rig.noted("started");
    rig.cancel();
    assert_eq!(failed(&rig.answer()).0, "cancelled");
    assert!(rig.path("tidied").exists());

    let deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('started', os.getpid())\nwait('never')";
    let mut rig = Rig::scripted(deaf, json!({"stop_seconds": 0.2}));
    rig.ask(&json!({}));
    let pid = rig.noted("started");
    rig.cancel();
    assert_eq!(failed(&rig.answer()).0, "cancelled");
    assert!(!runs(&pid));
}

#[test]
fn nothing_that_a_program_has_started_outlives_its_task() {
    let mut rig = Rig::scripted(&format!("{FAMILY}\n{GOOD}"), json!({}));
    assert_eq!(rig.generate(&json!({}))["type"], "done");
    for pid in family(&rig) {
        assert!(!runs(&pid), "{pid} still runs");
    }
}

#[test]
fn a_worker_that_is_gone_takes_the_program_with_it() {
    let mut rig = Rig::scripted(&format!("{FAMILY}\nwait('never')"), json!({"stop_seconds": 0.1}));
    rig.ask(&json!({}));
    let pids = family(&rig);
    rig.hang_up();
    until(|| !pids.iter().any(|pid| runs(pid)));
    assert_eq!(rig.finish().0, Some(0));
}

#[test]
fn an_engine_that_is_killed_takes_its_program_with_it() {
    let mut rig = Rig::scripted("note('own', os.getpid())\nwait('never')", json!({}));
    rig.ask(&json!({}));
    let pid = rig.noted("own");
    rig.kill();
    until(|| !runs(&pid));
}

#[test]
fn what_goes_wrong_is_said_and_the_engine_lives_on() {
    let mut rig = Rig::scripted("exec((here / 'task').read_text())", json!({}));
    for (script, code, message) in [
        ("sys.exit(3)", "failed", "the program exited with status 3"),
        ("os.kill(os.getpid(), 15)", "failed", "the program was killed by signal 15"),
        ("os.kill(os.getpid(), 9)", "failed", "signal 9, as the kernel does when memory runs out"),
        ("raise MemoryError", "failed", "the program exited with status 1"),
        (
            "sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried to')",
            "out_of_memory",
            "memory ran out: the program exited with status 1",
        ),
        (
            "print('CUDA out of memory')\nfor n in range(99): print(n)\nsys.exit(1)",
            "out_of_memory",
            "memory ran out: the program exited with status 1",
        ),
        // It has gone on after that, or has not failed itself.
        (
            "print('CUDA out of memory')\nfor n in range(100): print(n)\nsys.exit(1)",
            "failed",
            "the program exited with status 1",
        ),
        ("print('CUDA out of memory')", "failed", "the program ended well, but wrote no file"),
        ("pass", "failed", "the program ended well, but wrote no file"),
        ("output.write_bytes(b'')", "failed", "wrote an empty file"),
        ("output.write_bytes(b'hello')", "failed", "wrote a file that is not image/png"),
        (
            "output.write_bytes(b'\\0\\0\\0\\x20ftypisom')",
            "failed",
            "wrote video/mp4, where image/png was asked for",
        ),
        ("output.symlink_to(__file__)", "failed", "made a link instead of a file"),
        ("output.mkdir()", "failed", "made something that is no regular file"),
        ("os.mkfifo(output)", "failed", "made something that is no regular file"),
    ] {
        fs::write(rig.path("task"), script).unwrap();
        let answer = rig.generate(&json!({}));
        let (said_code, said, retryable) = failed(&answer);
        assert_eq!((said_code, retryable), (code, true), "{script}: {answer}");
        assert!(said.contains(message), "{script}: {answer}");
    }
    fs::write(rig.path("task"), GOOD).unwrap();
    assert_eq!(rig.generate(&json!({}))["type"], "done");
    let (_, log) = rig.finish();
    assert!(log.contains("MemoryError\n"), "the log has what the programs said: {log}");
}

#[test]
fn what_the_machine_lacks_fails_the_load() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = dir.path().join("nothing");
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    let there_is_no = |what: &str| format!("there is no {what} {}", nothing.display());
    for (settings, message) in [
        (json!({"run": [nothing]}), there_is_no("program")),
        (json!({"run": ["rayreel-no-such"]}), "no program `rayreel-no-such` in PATH".into()),
        (json!({"run": [plain]}), format!("{} is no program that can be run", plain.display())),
        (json!({"run": ["true"], "directory": nothing}), there_is_no("directory")),
        (json!({"run": ["true"], "output": "a/b"}), "`output`: must be the name".into()),
    ] {
        let answer = Rig::new("command").load(&settings);
        let (code, said, retryable) = failed(&answer);
        assert_eq!((code, retryable), ("load_failed", false), "{answer}");
        assert!(said.contains(&message), "{answer}");
    }

    let mut rig = Rig::new("command");
    let load = json!({
        "type": "load", "protocol": 1, "model": "m", "settings": {"run": ["true", "{checkpoint}"]},
    });
    rig.say(&load);
    assert!(failed(&rig.hear()).1.contains("the model has no `checkpoint`"));
}

#[test]
fn a_program_that_can_not_be_started_fails_its_task() {
    let mut rig = Rig::new("command");
    let path = rig.path("gone");
    program(&path, "#!/bin/sh\n");
    assert_eq!(rig.load(&json!({"run": [path]}))["type"], "ready");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let answer = rig.generate(&json!({}));
    let (code, said, retryable) = failed(&answer);
    assert_eq!((code, retryable), ("failed", true));
    assert!(said.contains("could not be started"), "{said}");
}

#[test]
fn a_program_that_hangs_is_told_from_one_that_works() {
    let idle = "
note('own', os.getpid())
note('far', sleeper(start_new_session=True))
time.sleep(1000)
";
    // Enough for a machine that has other things to do: who gets no processor looks idle.
    let mut rig = Rig::scripted(idle, json!({"silence_seconds": 3, "stop_seconds": 0.1}));
    let answer = rig.generate(&json!({}));
    let (code, said, retryable) = failed(&answer);
    assert_eq!((code, retryable), ("failed", true));
    assert!(said.contains("the program hung: for 3 s it wrote nothing"), "{said}");
    for name in ["own", "far"] {
        assert!(!runs(&rig.noted(name)), "{name}");
    }

    // What writes is told in the same way; its times are in the tests of the watch.
    let computes = "end = time.monotonic() + 4\nwhile time.monotonic() < end: pass\n";
    let mut rig = Rig::scripted(&format!("{computes}{GOOD}"), json!({"silence_seconds": 3}));
    assert_eq!(rig.generate(&json!({}))["type"], "done");
}

#[test]
fn a_flood_of_output_stalls_nobody() {
    let flood = "
for _ in range(32):
    sys.stdout.write('x' * (1 << 20))
for n in range(20_000):
    sys.stderr.write(f'line {n}\\n')
";
    let mut rig = Rig::scripted(&format!("{flood}{GOOD}"), json!({}));
    assert_eq!(rig.generate(&json!({}))["type"], "done");
    let (_, log) = rig.finish();
    assert!(log.len() < 1 << 20, "lines are cut");
    assert!(log.contains("line 19999\n"), "no line is lost");
}
