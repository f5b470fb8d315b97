//! A task's way through a worker when nothing goes wrong, and what the engine gets to see.

use rayreel_domain::Code;
use rayreel_domain::request::Input;
use rayreel_domain::wire::engine::{Lora, LoraFiles};
use rayreel_domain::wire::worker::{Assignment, Claimed};
use rayreel_worker::{Error, Exit};
use serde_json::{Value, json};

use crate::peer::{Call, Fault};
use crate::rig::{GOOD, Rig, files_below, is_alive, request, wait_gone};

/// Writes what the engine was told, and what it sees, into its file.
const ECHO: &str = "
load = ready()
job = hear()
done(job, json.dumps({'load': load, 'generate': job, 'env': dict(os.environ),
                      'empty': os.listdir(job['output_dir']) == []}))
hear()
";

#[test]
fn a_task_goes_from_claim_to_commit() {
    let mut rig = Rig::new();
    let model = rig.model(
        "
load = ready()
job = hear()
step(job)
done(job, 'abc')
hear()
",
    );
    let fence = rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    let names: Vec<_> = rig.peer.see(|script| {
        let names = script.calls.iter().map(Call::name);
        names.filter(|name| !["beat", "control"].contains(name)).collect()
    });
    assert_eq!(names, ["register", "claim", "uploads", "put", "commit", "claim"]);
    rig.peer.see(|script| {
        let commit = script.commits()[0];
        assert_eq!((commit.fence, commit.incarnation), (fence, 7));
        assert!(commit.test_pattern);
        assert_eq!(commit.metrics["denoise_ms"], 1.5);
        let output = &commit.manifest[0];
        assert_eq!((output.index, output.bytes, output.width, output.fps), (0, 3, 64, 8));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(output.sha256, abc);
        let Some(Call::Uploads(uploads)) = script.named("uploads").next() else { panic!() };
        assert_eq!(uploads.manifest, commit.manifest);
        assert_eq!(script.files(), [b"abc"]);
        let Some(Call::Put { path, bearer, signed, .. }) = script.named("put").next() else {
            panic!()
        };
        assert_eq!(bearer.as_deref(), Some("Bearer the-worker-token"));
        assert_eq!(signed.as_deref(), Some("signature-0"));
        assert_eq!(*path, format!("{}/0", fence.folder()));
        let Some(Call::Beat(beat)) = script.named("beat").next() else { panic!("confirmed") };
        assert_eq!(beat.fence, fence);
        let claims = script.claims();
        assert_eq!((claims[0].seq, claims[0].loaded.as_ref()), (1, None));
        assert_eq!((claims[1].seq, claims[1].loaded.as_ref()), (2, Some(&model.name)));
        assert!(claims.iter().all(|claim| claim.holding.is_empty()));
    });
    rig.finish();
}

#[test]
fn an_engine_hears_of_loras_only_where_there_are_some() {
    let mut rig = Rig::new();
    let plain = rig.model(ECHO);
    let files = LoraFiles::Whole { path: "/l/a.safetensors".into() };
    let mut styled = plain.clone();
    styled.loras.insert("anime".parse().unwrap(), files);
    let mut task = rig.task(&styled);
    task.request.loras = vec![Lora { name: "anime".into(), scale: 0.5 }];
    task.request.guidance_2 = Some(3.0);
    rig.assign(&plain);
    rig.peer.assign(task);
    rig.peer.wait_for("commit", 2);
    rig.peer.see(|script| {
        let told = |n: usize| serde_json::from_slice::<Value>(script.files()[n]).unwrap();
        let (before, after) = (told(0), told(1));
        for field in ["loras", "guidance_2"] {
            assert!(before["load"].get(field).is_none());
            assert!(before["generate"]["request"].get(field).is_none());
        }
        // The same model with other LoRAs is loaded anew.
        assert_eq!(after["load"]["loras"], json!({"anime": {"path": "/l/a.safetensors"}}));
        let request = &after["generate"]["request"];
        assert_eq!(request["loras"], json!([{"name": "anime", "scale": 0.5}]));
        assert_eq!(request["guidance_2"], 3.0);
    });
    rig.finish();
}

#[test]
fn the_engine_is_told_everything_and_sees_little() {
    let mut rig = Rig::new();
    let mut model = rig.model(ECHO);
    model.checkpoint = Some("/models/some".into());
    model.settings.insert("step_ms".into(), 10.into());
    // Longer than a pipe holds.
    let prompt = "雪".repeat(10_000);
    let mut long = request(&prompt);
    long.negative_prompt = prompt.clone();
    let task = Assignment { request: long, ..rig.task(&model) };
    let fence = task.fence;
    rig.peer.assign(task);
    rig.peer.wait_for("commit", 1);
    let told: Value = rig.peer.see(|script| serde_json::from_slice(script.files()[0]).unwrap());
    assert_eq!(told["load"]["protocol"], 1);
    assert_eq!(told["load"]["model"], model.name.as_str());
    assert_eq!(told["load"]["checkpoint"], "/models/some");
    assert_eq!(told["load"]["settings"]["step_ms"], 10);
    let generate = &told["generate"];
    assert_eq!(generate["id"], format!("{}/1", fence.task));
    assert_eq!(generate["request"]["prompt"], prompt);
    assert_eq!(generate["request"]["negative_prompt"], prompt);
    assert_eq!(generate["request"]["seed"], 42);
    let scratch = rig.dir.path().canonicalize().unwrap().join("scratch/worker-1");
    let output_dir = generate["output_dir"].as_str().unwrap();
    assert!(output_dir.starts_with(scratch.to_str().unwrap()), "{output_dir}");
    assert!(told["empty"].as_bool().unwrap());

    let seen = told["env"].as_object().unwrap();
    assert!(seen.contains_key("PATH"));
    let withheld = std::env::vars().any(|(name, _)| !seen.contains_key(&name));
    assert!(withheld, "or this shows nothing");
    let strange: Vec<_> = seen
        .keys()
        .filter(|name| name.starts_with("CARGO") || name.starts_with("RAYREEL"))
        .collect();
    assert_eq!(
        strange,
        ["RAYREEL_ENGINE", "RAYREEL_KEEP", "RAYREEL_SCRATCH"],
        "its mark and its places"
    );
    assert!(!told["env"].to_string().contains("the-worker-token"));
    rig.finish();
}

#[test]
fn an_engine_stays_warm_while_the_model_stays_the_same() {
    let mut rig = Rig::new();
    let model = rig.model(GOOD);
    rig.assign(&model);
    rig.assign(&model);
    let mut patient = model.clone();
    patient.silence_ms += 1;
    rig.assign(&patient);
    rig.peer.wait_for("commit", 3);
    let pids = rig.peer.see(|script| script.files().concat());
    let pid = String::from_utf8(rig.peer.see(|s| s.files()[0].to_vec())).unwrap();
    assert_eq!(String::from_utf8(pids).unwrap(), pid.repeat(3));

    let mut other = model.clone();
    other.settings.insert("other".into(), true.into());
    rig.assign(&other);
    rig.peer.wait_for("commit", 4);
    let fresh = String::from_utf8(rig.peer.see(|s| s.files()[3].to_vec())).unwrap();
    assert_ne!(fresh, pid);
    wait_gone(&pid);
    rig.finish();
    wait_gone(&fresh);
}

#[test]
fn a_built_in_engine_is_the_workers_own_program() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("rayreel");
    let script = dir.path().join("engine.py");
    let mut rig = Rig::with(|options, _| options.engine_program.clone_from(&program));
    let _ = rig.model(&format!("assert sys.argv[1:] == ['engine', 'scripted'], sys.argv\n{GOOD}"));
    std::fs::copy(rig.dir.path().join("engine-1.py"), &script).unwrap();
    let shell = format!("#!/bin/sh\nexec python3 -I -S {} \"$@\"\n", script.display());
    std::fs::write(&program, shell).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut model = rig.model(GOOD);
    model.engine = rayreel_domain::wire::worker::EngineSetup::BuiltIn("scripted".into());
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    rig.finish();
}

#[test]
fn the_image_of_a_task_is_fetched_for_the_engine() {
    let mut rig = Rig::new();
    let model = rig.model(
        "
load = ready()
while True:
    job = hear()
    paths = [job['request'][name] for name in ('image', 'last_image') if name in job['request']]
    done(job, ','.join(path + ':' + open(path).read() for path in paths))
",
    );
    let mut task = rig.task(&model);
    task.request.image = Some(Input {
        place: None,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into(),
        media_type: "image/png".into(),
        bytes: 3,
    });
    let fence = task.fence;
    rig.peer.set(|script| _ = script.inputs.insert(fence, b"abc".to_vec()));
    rig.peer.fault("input", Fault::Refused(503, "store_unavailable"));
    rig.peer.assign(task.clone());
    rig.peer.wait_for("commit", 1);
    let made = String::from_utf8(rig.peer.see(|s| s.files()[0].to_vec())).unwrap();
    assert!(made.ends_with("/input.png:abc"), "{made}");
    assert!(!made.contains("/out/"), "it lies beside the engine's own files");

    // The last frame lies beside the first.
    let mut both = rig.task(&model);
    both.request.image = task.request.image.clone();
    both.request.last_image = task.request.image.clone().map(|input| Input {
        sha256: "cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34".into(),
        ..input
    });
    rig.peer.set(|script| {
        script.inputs.insert(both.fence, b"abc".to_vec());
        script.last_inputs.insert(both.fence, b"def".to_vec());
    });
    rig.peer.assign(both);
    rig.peer.wait_for("commit", 2);
    let made = String::from_utf8(rig.peer.see(|s| s.files()[1].to_vec())).unwrap();
    assert!(made.contains("/input.png:abc,") && made.ends_with("/last.png:def"), "{made}");

    // Damaged on its way, again and again.
    let mut damaged = rig.task(&model);
    damaged.request.image = task.request.image;
    rig.peer.set(|script| _ = script.inputs.insert(damaged.fence, b"abd".to_vec()));
    rig.peer.assign(damaged);
    rig.peer.wait_for("fail", 1);
    rig.peer.see(|script| {
        let failure = script.failures()[0];
        assert!(failure.message.contains("checksum is wrong"), "{failure:?}");
        assert!(failure.retryable);
    });
    rig.finish();
}

#[test]
fn scratch_holds_one_attempt_and_nothing_after_it() {
    let mut rig = Rig::new();
    let gate = rig.gate("gate");
    let model = rig.model(&format!(
        "
load = ready()
while True:
    job = hear()
    put(job, 'left over', 'stray.bin')
    step(job)
    gate({})
    done(job)
",
        gate.path()
    ));
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 1);
    let own = rig.dir.path().join("scratch/worker-1").canonicalize().unwrap();
    let attempts = || {
        let mut files = files_below(&own);
        files.retain(|path| *path != own.join("engine-1"));
        files
    };
    assert_eq!(attempts(), [own.join(format!("{}-1", fence.task))]);
    gate.open();
    rig.peer.wait_for("claim", 2);
    assert_eq!(attempts().len(), 0);
    rig.finish();
}

#[test]
fn an_engine_has_a_directory_that_goes_with_it_however_it_ends() {
    let mut rig = Rig::new();
    let told = rig.dir.path().join("told");
    let model = rig.model(&format!(
        "
own = os.environ['RAYREEL_SCRATCH']
os.mkdir(own + '/cache')
open(own + '/cache/file', 'w').write('left over')
with open({told:?}, 'a') as file:
    print(own, os.environ['RAYREEL_KEEP'], file=file)
load = ready()
job = hear()
# What it has started may still write there.
subprocess.Popen(['sh', '-c', 'while echo x > ' + own + '/late; do :; done'])
os.kill(os.getpid(), signal.SIGKILL)
"
    ));
    let scratch = rig.dir.path().canonicalize().unwrap().join("scratch");
    for count in 1..=2 {
        rig.assign(&model);
        rig.peer.wait_for("fail", count);
        let own = scratch.join(format!("worker-1/engine-{count}"));
        let expected = format!("{} {}", own.display(), scratch.join(".keep").display());
        let told = std::fs::read_to_string(&told).unwrap();
        assert_eq!(told.lines().nth(count - 1), Some(expected.as_str()));
        assert!(!own.exists());
    }
    rig.finish();
}

#[test]
fn a_worker_that_is_not_needed_leaves() {
    let mut rig = Rig::new();
    let model = rig.model(GOOD);
    rig.assign(&model);
    rig.peer.set(|script| script.next.push_back(Claimed::Drain));
    assert_eq!(rig.ended().unwrap(), Exit::Drained);
    let pid = String::from_utf8(rig.peer.see(|s| s.files()[0].to_vec())).unwrap();
    assert!(!is_alive(&pid));
    assert_eq!(rig.peer.see(|script| script.count("deregister")), 0, "the server has done that");
}

#[test]
fn a_wrong_token_is_a_clear_error() {
    let rig = Rig::with(|options, _| options.token = "wrong".into());
    let error = rig.ended().unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");
}

#[test]
fn an_address_that_is_none_is_a_clear_error() {
    for url in ["127.0.0.1:8088", "ftp://host", "http://", ""] {
        let rig = Rig::with(|options, _| options.server = url.into());
        let error = rig.ended().unwrap_err();
        assert!(matches!(error, Error::Address { .. }), "{url}: {error}");
    }
}

#[test]
fn a_worker_that_can_not_write_gives_its_task_back_and_ends_with_the_reason() {
    let mut rig = Rig::new();
    let model = rig.model(GOOD);
    rig.peer.wait_for("claim", 1);
    let scratch = rig.dir.path().join("scratch/worker-1");
    std::fs::remove_dir(&scratch).unwrap();
    let fence = rig.assign(&model);
    let error = rig.ended().unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert!(error.to_string().contains(scratch.to_str().unwrap()), "{error}");
    rig.peer.see(|script| {
        assert_eq!(script.count("fail"), 0, "no fault of the task");
        let released = script.named("release").map(|call| match call {
            Call::Release(release) => release.fence,
            _ => unreachable!("it is named so"),
        });
        assert_eq!(released.collect::<Vec<_>>(), [fence]);
        // A beat that was under way may arrive last.
        let mut calls = script.calls.iter().map(Call::name).filter(|name| *name != "beat");
        assert_eq!(calls.next_back(), Some("deregister"));
    });
}
