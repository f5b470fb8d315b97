//! The preset `wan2.2`, with stand-ins for the repository's script and for torch's launcher: they take
//! what the real ones take, refuse what those refuse, and do no more than write down what they got.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::rig::{Rig, runs};

/// Takes the options of Wan2.2's script, keeps its rules, draws its bars, and writes them down
/// where a video would be.
const GENERATE: &str = r#"
import argparse, json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
rank, world = int(os.getenv("RANK", 0)), int(os.getenv("WORLD_SIZE", 1))
sizes = dict.fromkeys(["t2v-A14B", "i2v-A14B"], ["1280*720", "720*1280", "832*480", "480*832"])
sizes["ti2v-5B"] = ["1280*704", "704*1280"]
flag = lambda text: text.lower() in ("true", "yes", "1")
parser = argparse.ArgumentParser()
parser.add_argument("--task", default="t2v-A14B", choices=sizes)
parser.add_argument("--size", default="1280*720", choices=sum(sizes.values(), []))
parser.add_argument("--frame_num", type=int)
parser.add_argument("--ckpt_dir")
parser.add_argument("--offload_model", type=flag)
parser.add_argument("--ulysses_size", type=int, default=1)
parser.add_argument("--t5_fsdp", action="store_true")
parser.add_argument("--t5_cpu", action="store_true")
parser.add_argument("--dit_fsdp", action="store_true")
parser.add_argument("--save_file")
parser.add_argument("--prompt")
parser.add_argument("--base_seed", type=int, default=-1)
parser.add_argument("--image")
parser.add_argument("--sample_solver", default="unipc", choices=["unipc", "dpm++"])
parser.add_argument("--sample_steps", type=int)
parser.add_argument("--sample_shift", type=float)
parser.add_argument("--sample_guide_scale", type=float)
parser.add_argument("--convert_model_dtype", action="store_true")
args = parser.parse_args()
assert args.size in sizes[args.task] and pathlib.Path(args.ckpt_dir).is_dir()
assert args.ulysses_size == world
assert world > 1 or not (args.t5_fsdp or args.dit_fsdp)
sys.stderr.write("\rLoading checkpoint shards:  50%|##5  | 3/6 [00:00<00:00]")
(here / f"rank-{rank}-").write_text(str(os.getpid()))
(here / f"rank-{rank}-").rename(here / f"rank-{rank}")
for step in range(args.sample_steps + 1):
    sys.stderr.write(f"\r {100 * step // args.sample_steps}%|##5  | {step}/{args.sample_steps} [00:01<?, 1.0s/it]")
    sys.stderr.flush()
while args.prompt == "hold":
    time.sleep(0.01)
assert args.prompt != "break" or rank != world - 1
if rank == 0 and args.prompt != "lose":
    told = vars(args) | {"world": world, "cwd": os.getcwd()}
    pathlib.Path(args.save_file).write_bytes(b"\0\0\0\x20ftyp" + json.dumps(told).encode())
"#;

/// Starts as many ranks as asked, each in a session of its own, as torch's launcher does.
const LAUNCHER: &str = r#"
import argparse, os, signal, subprocess, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--standalone", action="store_true", required=True)
parser.add_argument("--nproc_per_node", type=int)
parser.add_argument("script")
parser.add_argument("rest", nargs=argparse.REMAINDER)
args = parser.parse_args()
ranks = []
for rank in range(args.nproc_per_node):
    env = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(args.nproc_per_node)}
    command = [sys.executable, "-u", args.script, *args.rest]
    ranks.append(subprocess.Popen(command, env=env, start_new_session=True))
while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
    time.sleep(0.01)
sys.exit(any(rank.poll() for rank in ranks))
"#;

/// An engine with the preset, loaded; what comes of the load if it fails.
fn wan(settings: Value) -> Result<Rig, Value> {
    let mut rig = Rig::new("command");
    let repository = rig.path("Wan2.2");
    let torch = rig.path("site/torch/distributed");
    fs::create_dir_all(&repository).unwrap();
    fs::create_dir_all(&torch).unwrap();
    fs::write(repository.join("generate.py"), GENERATE).unwrap();
    fs::write(torch.join("run.py"), LAUNCHER).unwrap();
    let mut all = json!({
        "preset": "wan2.2", "repository": repository, "task": "t2v-A14B",
        "environment": {"PYTHONPATH": rig.path("site")},
    });
    all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let answer = rig.load(&all);
    if answer["type"] == "ready" { Ok(rig) } else { Err(answer) }
}

/// A request that `t2v-A14B` takes, but for `more`.
fn request(more: &Value) -> Value {
    let mut request = json!({
        "prompt": "a cat", "format": "mp4", "width": 832, "height": 480, "frames": 81, "fps": 16,
        "steps": 4,
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

/// What the script was told.
fn told(rig: &mut Rig, more: &Value) -> Value {
    let out: PathBuf = rig.ask(&request(more));
    let answer = rig.answer();
    assert_eq!(answer["type"], "done", "{answer}");
    assert_eq!(answer["files"][0]["media_type"], "video/mp4");
    let video = fs::read(out.join("output.mp4")).unwrap();
    serde_json::from_slice(&video[8..]).unwrap()
}

#[test]
fn on_one_gpu_the_script_runs_alone() {
    let mut rig =
        wan(json!({"offload_model": true, "convert_model_dtype": true, "t5_cpu": true})).unwrap();
    let repository = rig.path("Wan2.2");
    let checkpoint = rig.dir.path().to_owned();
    let prompt = "--help\n\"a\" 'b'";
    let told = told(&mut rig, &json!({"prompt": prompt, "guidance": 3.5, "seed": u64::MAX}));
    for (name, value) in [
        ("world", json!(1)),
        ("cwd", json!(repository)),
        ("task", json!("t2v-A14B")),
        ("size", json!("832*480")),
        ("frame_num", json!(81)),
        ("ckpt_dir", json!(checkpoint)),
        ("offload_model", json!(true)),
        ("convert_model_dtype", json!(true)),
        ("t5_cpu", json!(true)),
        ("t5_fsdp", json!(false)),
        ("dit_fsdp", json!(false)),
        ("base_seed", json!(u64::MAX)),
        ("sample_steps", json!(4)),
        ("sample_guide_scale", json!(3.5)),
        ("sample_solver", json!("unipc")),
        ("sample_shift", Value::Null),
        ("image", Value::Null),
        ("prompt", json!(prompt)),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
}

#[test]
fn on_several_gpus_the_launcher_starts_a_rank_for_each() {
    let settings = json!({
        "task": "ti2v-5B", "gpus": 2, "sample_solver": "dpm++", "sample_shift": 5,
    });
    let mut rig = wan(settings).unwrap();
    let image = rig.path("first.png");
    let more = json!({"width": 1280, "height": 704, "fps": 24, "frames": 121, "image": image});
    let told = told(&mut rig, &more);
    for (name, value) in [
        ("world", json!(2)),
        ("ulysses_size", json!(2)),
        ("t5_fsdp", json!(true)),
        ("dit_fsdp", json!(true)),
        ("sample_solver", json!("dpm++")),
        ("sample_shift", json!(5.0)),
        ("image", json!(image)),
        ("sample_guide_scale", Value::Null),
        ("offload_model", Value::Null),
        ("prompt", json!("a cat")),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
}

#[test]
fn the_denoising_steps_are_told_and_a_cancel_ends_every_rank() {
    let mut rig = wan(json!({"gpus": 2, "stop_seconds": 0.5})).unwrap();
    rig.ask(&request(&json!({"prompt": "hold"})));
    loop {
        let said = rig.hear();
        assert_eq!(said["type"], "progress", "{said}");
        // Loading has its own bars, which are not the task's.
        assert_ne!(said["steps"], 6, "{said}");
        if (&said["stage"], &said["step"], &said["steps"])
            == (&json!("denoise"), &json!(4), &json!(4))
        {
            break;
        }
    }
    let ranks = [rig.noted("Wan2.2/rank-0"), rig.noted("Wan2.2/rank-1")];
    rig.cancel();
    assert_eq!(rig.answer()["code"], "cancelled");
    assert!(!ranks.iter().any(|pid| runs(pid)));
}

#[test]
fn a_rank_that_breaks_fails_the_task_and_no_other_is_left() {
    let mut rig = wan(json!({"gpus": 2})).unwrap();
    let answer = rig.generate(&request(&json!({"prompt": "break"})));
    assert_eq!(answer["message"], "the program exited with status 1");
    let ranks = [rig.noted("Wan2.2/rank-0"), rig.noted("Wan2.2/rank-1")];
    assert!(!ranks.iter().any(|pid| runs(pid)));
    // The script says in its log only that it could not save.
    let answer = rig.generate(&request(&json!({"prompt": "lose"})));
    assert_eq!(answer["message"], "the program ended well, but wrote no file");
}

#[test]
fn what_the_script_would_not_do_is_refused() {
    let mut engines = ["t2v-A14B", "i2v-A14B"].map(|task| wan(json!({"task": task})).unwrap());
    let (t2v, i2v) = (0, 1);
    for (engine, more, message) in [
        (t2v, json!({"image": "/i.png"}), "t2v-A14B takes no image"),
        (t2v, json!({"fps": 24}), "t2v-A14B makes 16 frames a second, not 24"),
        (t2v, json!({"format": "png", "frames": 1}), "t2v-A14B makes MP4 videos only"),
        (t2v, json!({"negative_prompt": "rain"}), "has no option for `negative_prompt`"),
        (
            t2v,
            json!({"width": 640, "height": 480}),
            "makes the sizes 1280x720, 720x1280, 832x480, 480x832, not 640x480",
        ),
        (i2v, json!({}), "i2v-A14B needs an image"),
        (i2v, json!({"image": "/i.png", "last_image": "/j.png"}), "has no option for `last_image`"),
    ] {
        let answer = engines[engine].generate(&request(&more));
        assert_eq!(answer["code"], "invalid_request", "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(message), "{answer}");
    }
}

#[test]
fn a_preset_that_can_not_work_is_not_loaded() {
    let nothing = "/dev/null/Wan2.2";
    let elsewhere = tempfile::tempdir().unwrap();
    for (settings, message) in [
        (json!({"task": "t2v"}), "`task`: there is no task `t2v`; there is t2v-A14B, i2v-A14B"),
        (json!({"task": "ti2v-5B", "gpus": 5}), "`gpus`: 5 does not divide the 24 attention heads"),
        (json!({"gpus": 0}), "`gpus`: must be a whole number from 1 to 64, not `0`"),
        (json!({"t5_fsdp": true}), "`t5_fsdp`: needs more than one of `gpus`"),
        (json!({"sample_solver": "euler"}), "`sample_solver`: must be unipc or dpm++, not `euler`"),
        (json!({"python": "bin/python"}), "`python`: must be an absolute path"),
        (json!({"python": "/dev/null/python"}), "there is no program /dev/null/python"),
        (json!({"repository": "Wan2.2"}), "`repository`: must be an absolute path"),
        (json!({"repository": nothing}), "there is no directory /dev/null/Wan2.2"),
        (json!({"repository": elsewhere.path()}), "is no repository of Wan2.2"),
        (json!({"run": ["p"]}), "there is no setting `run`; there is preset, repository"),
    ] {
        let answer = wan(settings).err().unwrap();
        assert_eq!(answer["code"], "load_failed", "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(message), "{answer}");
    }
}
