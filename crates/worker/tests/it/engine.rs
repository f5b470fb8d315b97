//! Every way in which an engine can go wrong is a typed failure that tells its last lines.

use rayreel_domain::Code;
use rayreel_domain::task::Failure;
use rayreel_domain::wire::engine::Lora;
use rayreel_domain::wire::worker::{Assignment, Claimed, EngineSetup, ModelSetup};

use crate::rig::{GOOD, Rig, wait_gone, write};

/// Gives the worker a task, and waits for its failure.
fn failure(rig: &mut Rig, model: &ModelSetup) -> Failure {
    let before = rig.peer.see(|script| script.count("fail"));
    rig.assign(model);
    rig.peer.wait_for("fail", before + 1);
    let failure = rig.peer.see(|script| script.failures()[before].clone());
    assert_eq!(rig.peer.see(|script| script.count("put")), 0, "nothing is uploaded");
    failure
}

/// One row: what the engine does with its first task, and what must come of it.
fn check(rig: &mut Rig, script: &str, code: Code, retryable: bool, message: &str) {
    let script = format!("load = ready()\njob = hear()\nlog('last words')\n{script}\nhear()");
    let model = rig.model(&script);
    let failure = failure(rig, &model);
    assert_eq!((failure.code, failure.retryable), (code, retryable), "{script}: {failure:?}");
    assert!(failure.message.contains(message), "{script}: {failure:?}");
    let detail = failure.detail.unwrap_or_default();
    assert!(detail.contains("last words"), "{script}: {detail:?}");
}

#[test]
fn an_engine_that_ends_in_mid_task_has_crashed() {
    let mut rig = Rig::new();
    let rows = [
        ("os._exit(3)", "exited with status 3"),
        ("sys.exit(0)", "exited with status 0"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "as the kernel does when memory runs out"),
        ("sys.stdout.write('{\"type\":'); sys.stdout.flush(); os._exit(1)", "status 1"),
        // A child that keeps the pipe open hides nothing.
        ("subprocess.Popen(['sleep', '1000']); os._exit(4)", "status 4"),
    ];
    for (script, message) in rows {
        check(&mut rig, script, Code::EngineCrashed, true, message);
    }
    rig.finish();
}

#[test]
fn what_is_no_message_breaks_the_protocol() {
    let mut rig = Rig::new();
    let rows = [
        ("print('Downloading: 10%', flush=True)", "Downloading: 10%"),
        ("print('', flush=True)", "no message"),
        ("say(type='hello')", "hello"),
        ("say(type='progress', id=job['id'], step=1, steps=2, stage='s', extra=1)", "extra"),
        ("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()", "no message"),
        ("sys.stdout.write('x' * (1 << 20)); sys.stdout.flush()", "more than 1048576 bytes"),
        ("say(type='done', id='other', files=[])", "`done` of \"other\""),
        ("step(dict(id='other'))", "`progress` of \"other\""),
        ("say(type='ready', protocol=1, engine='e', version='1')", "`ready`"),
        ("say(type='error', code='failed', message='m', retryable=True)", "without an id"),
        ("error(job, 'cancelled')", "nobody had asked"),
        ("os.close(1)", "closed its standard output"),
    ];
    for (script, message) in rows {
        check(&mut rig, script, Code::EngineProtocol, true, message);
    }
    rig.finish();
}

/// As an engine of an older version does with a field that it does not know, if it reads strictly: it
/// has not even the id.
#[test]
fn an_engine_that_can_not_read_a_task_is_quoted_and_started_anew() {
    let mut rig = Rig::new();
    let model = rig.model(
        "
load = ready()
while True:
    job = hear()
    if 'loras' in job['request']:
        say(type='error', code='invalid_request', message='unknown field loras', retryable=False)
    else:
        done(job)
",
    );
    rig.ask(&model, "fine");
    let mut task = rig.task(&model);
    task.request.loras = vec![Lora { name: "anime".into(), scale: 1.0 }];
    rig.peer.assign(task);
    rig.ask(&model, "fine");
    rig.peer.wait_for("commit", 2);
    rig.peer.see(|script| {
        let [failure] = &script.failures()[..] else { panic!("{:?}", script.failures()) };
        assert_eq!((failure.code, failure.retryable), (Code::EngineProtocol, true));
        let said = "the engine said `error` without an id (\"unknown field loras\") in the middle of \
                    the task";
        assert_eq!(failure.message, said);
        let pids = script.files();
        assert_ne!(pids[0], pids[1], "what it answers next might be about anything");
    });
    rig.finish();
}

#[test]
fn what_an_engine_says_itself_keeps_its_kind() {
    let mut rig = Rig::new();
    let rows = [
        ("out_of_memory", true, Code::OutOfMemory, true),
        ("out_of_memory", false, Code::OutOfMemory, false),
        ("invalid_request", true, Code::EngineRefused, false),
        ("failed", true, Code::EngineFailed, true),
        ("failed", false, Code::EngineFailed, false),
        ("load_failed", true, Code::EngineLoadFailed, true),
    ];
    for (code, says, expected, retryable) in rows {
        let says = if says { "True" } else { "False" };
        let script = format!("error(job, '{code}', 'because of {code}', {says})");
        check(&mut rig, &script, expected, retryable, &format!("because of {code}"));
    }
    rig.finish();
}

#[test]
fn what_an_engine_says_is_cut_to_what_a_report_holds() {
    let mut rig = Rig::new();
    let model = rig.model("load = ready()\nerror(hear(), 'failed', 'x' * 1_000_000)\nhear()");
    let failure = failure(&mut rig, &model);
    assert_eq!(failure.message, "x".repeat(2_000));
    rig.finish();
}

#[test]
fn an_engine_lives_on_after_an_error_of_its_own_and_not_after_a_breach() {
    let mut rig = Rig::new();
    let model = rig.model(
        "
load = ready()
while True:
    job = hear()
    what = job['request']['prompt']
    if what == 'garbage':
        print('garbage', flush=True)
    elif what == 'memory':
        error(job, 'out_of_memory')
    else:
        done(job)
",
    );
    for prompt in ["fine", "memory", "fine", "garbage", "fine"] {
        rig.ask(&model, prompt);
    }
    rig.peer.wait_for("commit", 3);
    rig.peer.see(|script| {
        let pids = script.files();
        assert_eq!(pids[0], pids[1]);
        assert_ne!(pids[1], pids[2]);
    });
    rig.finish();
}

#[test]
fn lines_of_an_earlier_task_are_nobody_elses() {
    let mut rig = Rig::new();
    let model = rig.model(
        "
load = ready()
while True:
    job = hear()
    log(job['request']['prompt'])
    error(job, 'failed')
",
    );
    rig.ask(&model, "a secret of one tenant");
    rig.ask(&model, "words of another");
    rig.peer.wait_for("fail", 2);
    rig.peer.see(|script| {
        let detail = |n: usize| script.failures()[n].detail.clone();
        assert_eq!(detail(0).as_deref(), Some("a secret of one tenant"));
        assert_eq!(detail(1).as_deref(), Some("words of another"));
    });
    rig.finish();
}

#[test]
fn a_model_that_does_not_load_is_told_with_the_engines_reason() {
    let mut rig = Rig::new();
    let rows = [
        (
            "hear(); log('no such file'); say(type='error', code='load_failed', message='no model', retryable=False)",
            Code::EngineLoadFailed,
            false,
            "no model",
        ),
        (
            "hear(); log('no such file'); say(type='error', code='out_of_memory', message='31 GiB', retryable=True)",
            Code::OutOfMemory,
            true,
            "31 GiB",
        ),
        (
            "hear(); log('no such file'); say(type='ready', protocol=2, engine='e', version='1')",
            Code::EngineLoadFailed,
            true,
            "protocol 2",
        ),
        (
            "hear(); log('no such file'); os._exit(7)",
            Code::EngineLoadFailed,
            true,
            "status 7 while it loaded",
        ),
        (
            "log('no such file'); os.kill(os.getpid(), signal.SIGKILL)",
            Code::EngineLoadFailed,
            true,
            "as the kernel does when memory runs out, while it loaded",
        ),
        (
            "hear(); log('no such file'); os.close(1)",
            Code::EngineProtocol,
            true,
            "closed its standard output while it loaded",
        ),
        (
            "hear(); log('no such file'); print('Loading shards: 10%', flush=True)",
            Code::EngineProtocol,
            true,
            "Loading shards: 10%",
        ),
        (
            "hear(); log('no such file'); step(dict(id='x'))",
            Code::EngineProtocol,
            true,
            "while the model was being loaded",
        ),
    ];
    for (script, code, retryable, message) in rows {
        let model = rig.model(&format!("{script}\nhear()"));
        let failure = failure(&mut rig, &model);
        assert_eq!((failure.code, failure.retryable), (code, retryable), "{failure:?}");
        assert!(failure.message.contains(message), "{failure:?}");
        assert_eq!(failure.detail.as_deref(), Some("no such file"));
    }
    rig.peer.wait_for("claim", rows.len() + 1);
    let claims = rig.peer.see(|script| script.claims().last().map(|c| c.loaded.clone()));
    assert_eq!(claims, Some(None), "nothing is loaded");
    rig.finish();
}

#[test]
fn what_is_meant_for_a_terminal_reaches_nobody_else() {
    let mut rig = Rig::new();
    let model = rig.model(
        "load = ready()
job = hear()
log('\\x1b[1;31mno memory\\x1b[0m\\a')
sys.stderr.write('\\x1b[2Kand no end')
sys.stderr.flush()
error(job, 'failed', '\\x1b[33mno luck\\x1b[0m')
hear()",
    );
    let failure = failure(&mut rig, &model);
    assert_eq!(failure.message, "no luck");
    assert_eq!(failure.detail.as_deref(), Some("no memory\nand no end"));
    rig.finish();
}

#[test]
fn a_program_that_can_not_be_started_is_told() {
    let mut rig = Rig::new();
    let mut model = rig.model(GOOD);
    for words in [vec![], vec!["/nonexistent/engine".to_owned()]] {
        model.engine = EngineSetup::Command(words);
        let failure = failure(&mut rig, &model);
        assert_eq!((failure.code, failure.retryable), (Code::EngineLoadFailed, true));
        assert!(failure.message.contains("could not be started"), "{failure:?}");
    }
    rig.finish();
}

/// A model whose engine is a shell script, which starts faster than any silence in these tests.
fn shell(rig: &mut Rig, script: &str) -> ModelSetup {
    let mut model = rig.model(GOOD);
    model.engine = EngineSetup::Command(["/bin/sh", "-c", script].map(str::to_owned).into());
    model
}

#[test]
fn an_engine_that_falls_silent_in_mid_task_is_killed() {
    let mut rig = Rig::new();
    let script = "
load = ready()
done(hear())
job = hear()
log('last words')
step(job)
while True: time.sleep(1000)
";
    let mut model = rig.model(script);
    rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    let pid = String::from_utf8(rig.peer.see(|s| s.files()[0].to_vec())).unwrap();
    model.silence_ms = 500;
    rig.assign(&model);
    rig.peer.wait_for("fail", 1);
    let failure = rig.peer.see(|script| script.failures()[0].clone());
    assert_eq!((failure.code, failure.retryable), (Code::EngineSilent, true), "{failure:?}");
    assert!(failure.message.contains("0.5 s in the middle"), "{failure:?}");
    assert_eq!(failure.detail.as_deref(), Some("last words"));
    wait_gone(&pid);
    rig.finish();
}

#[test]
fn an_engine_that_falls_silent_while_it_loads_is_killed() {
    let mut rig = Rig::new();
    let pid = rig.path("pid");
    let mut model =
        shell(&mut rig, &format!("echo last words >&2; echo $$ > {pid}; exec sleep 1000"));
    model.silence_ms = 500;
    let failure = failure(&mut rig, &model);
    assert_eq!((failure.code, failure.retryable), (Code::EngineSilent, true), "{failure:?}");
    let said = "the engine said nothing for 0.5 s while it loaded the model; if it may take so long, \
                raise the model's `silence_seconds`";
    assert_eq!(failure.message, said);
    assert_eq!(failure.detail.as_deref(), Some("last words"));
    wait_gone(&std::fs::read_to_string(rig.dir.path().join("pid")).unwrap());
    rig.finish();
}

#[test]
fn an_engine_that_logs_while_it_loads_is_not_silent() {
    let mut rig = Rig::new();
    // In all longer than the silence that is allowed, in steps far shorter than it.
    let mut model = shell(
        &mut rig,
        r#"
        for shard in 1 2 3 4 5 6 7 8 9 10 11 12; do echo shard $shard >&2; sleep 0.1; done
        echo '{"type":"ready","protocol":1,"engine":"e","version":"1"}'
        read load; read job; exit 3
        "#,
    );
    model.silence_ms = 800;
    let failure = failure(&mut rig, &model);
    assert!(failure.message.contains("status 3 in the middle of the task"), "{failure:?}");
    rig.finish();
}

#[test]
fn after_a_crash_the_next_task_gets_a_fresh_engine() {
    let mut rig = Rig::new();
    let marker = rig.path("marker");
    let model =
        rig.model(&format!("if first({marker}):\n    ready(); hear(); os._exit(1)\n{GOOD}"));
    rig.assign(&model);
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    assert_eq!(rig.peer.see(|script| script.count("fail")), 1);
    rig.finish();
}

/// As `torchrun` does with its ranks, which hold the GPU's memory.
#[test]
fn what_a_killed_engine_has_started_in_sessions_of_its_own_is_gone_before_the_next_engine_starts() {
    let mut rig = Rig::new();
    let (marker, far, seen) = (rig.path("marker"), rig.path("far"), rig.path("seen"));
    let model = rig.model(&format!(
        "
if first({marker}):
    ready(); hear()
    far = subprocess.Popen(['sleep', '1000'], start_new_session=True)
    open({far}, 'w').write(str(far.pid))
    os.kill(os.getpid(), signal.SIGKILL)
try:
    state = open('/proc/' + open({far}).read() + '/stat').read().rpartition(') ')[2][0]
except FileNotFoundError:
    state = 'gone'
open({seen}, 'w').write(state)
{GOOD}"
    ));
    rig.assign(&model);
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    rig.peer.see(|script| assert_eq!(script.failures()[0].code, Code::EngineCrashed));
    let read = |name: &str| std::fs::read_to_string(rig.dir.path().join(name)).unwrap();
    // A zombie is whoever's who has adopted it.
    assert!(
        ["gone", "Z", "X"].contains(&&*read("seen")),
        "{} lives: {}",
        read("far"),
        read("seen")
    );
    rig.finish();
}

#[test]
fn what_an_engine_leaves_behind_that_goes_when_told_goes_too() {
    let mut rig = Rig::new();
    let model = rig.model(
        "
load = ready()
far = subprocess.Popen(['sleep', '1000'], start_new_session=True)
done(hear(), str(far.pid))
hear()
",
    );
    rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    let far = String::from_utf8(rig.peer.see(|script| script.files()[0].to_vec())).unwrap();
    assert!(crate::rig::is_alive(&far));
    rig.finish();
    assert!(!crate::rig::is_alive(&far));
}

#[test]
fn an_engine_that_dies_between_two_tasks_costs_neither() {
    let mut rig = Rig::new();
    let model = rig.model(GOOD);
    rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    let pid = String::from_utf8(rig.peer.see(|s| s.files()[0].to_vec())).unwrap();
    let raw = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    wait_gone(&pid);
    // The worker sees it a moment later.
    let mut claims = 2;
    while rig.peer.see(|script| script.claims()[claims - 1].loaded.is_some()) {
        rig.peer.set(|script| script.next.push_back(Claimed::Nothing));
        claims += 1;
        rig.peer.wait_for("claim", claims);
    }
    rig.assign(&model);
    rig.peer.wait_for("commit", 2);
    assert_eq!(rig.peer.see(|script| script.count("fail")), 0);
    rig.finish();
}

/// Does three tasks with an engine that is told by the prompt of the second what to do there; says
/// which processes made the files.
fn three_tasks(rig: &mut Rig, second: &str) -> Vec<Vec<u8>> {
    let model = rig.model(&format!(
        "
load = ready()
last = None
while True:
    job = hear()
    what = job['request']['prompt']
    {second}
    done(job)
    last = job
"
    ));
    let before = rig.peer.see(|script| script.count("commit"));
    for (n, prompt) in ["first", "second", "third"].into_iter().enumerate() {
        rig.ask(&model, prompt);
        rig.peer.wait_for("commit", before + n + 1);
    }
    rig.peer.see(|script| {
        assert_eq!(script.count("fail"), 0, "{second}: {:?}", script.failures());
        script.files()[before..].iter().map(|file| file.to_vec()).collect()
    })
}

#[test]
fn what_an_idle_engine_says_is_not_the_next_tasks_failure() {
    let mut rig = Rig::new();
    // In one write with the answer: it is there when the next task comes.
    let twice = |more: &str| {
        format!(
            "if what == 'second': put(job, str(os.getpid())); \
             text = json.dumps(dict(type='done', id=job['id'], files=[announce()])) + '\\n'; \
             sys.stdout.write(text + {more}); sys.stdout.flush(); continue"
        )
    };
    for more in ["text", "'Saved video.mp4\\n'", "'half a line'", "json.dumps(load) + '\\n'"] {
        let files = three_tasks(&mut rig, &twice(more));
        assert_eq!(files[0], files[1], "{more}: the same engine until then");
        assert_ne!(files[1], files[2], "{more}: it can't be trusted any more");
    }
    rig.finish();
}

#[test]
fn what_an_engine_says_too_late_of_an_ended_task_is_not_the_running_ones_failure() {
    let mut rig = Rig::new();
    for late in ["done(last, files=[announce()])", "step(last)", "error(last, 'failed')"] {
        let files = three_tasks(&mut rig, &format!("if what == 'second': {late}"));
        assert_eq!(files[0], files[1], "{late}: the task it was heard in goes on");
        assert_ne!(files[1], files[2], "{late}: the next one gets a fresh engine");
    }
    rig.finish();
}

#[test]
fn an_idle_engine_that_closes_its_output_is_replaced_without_harm() {
    let mut rig = Rig::new();
    let marker = rig.path("marker");
    let model = rig.model(&format!(
        "
load = ready()
while True:
    job = hear()
    done(job)
    if not os.path.exists({marker}): os.close(1); first({marker})
"
    ));
    rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    let closed = rig.dir.path().join("marker");
    while !closed.exists() {
        std::thread::yield_now();
    }
    rig.assign(&model);
    rig.peer.wait_for("commit", 2);
    assert_eq!(rig.peer.see(|script| script.count("fail")), 0);
    rig.finish();
}

#[test]
fn a_task_that_takes_too_long_is_stopped_and_its_engine_stays() {
    let mut rig = Rig::new();
    let model = rig.model(
        "
load = ready()
while True:
    job = hear()
    if job['request']['prompt'] == 'long':
        step(job)
        hear()
        error(job, 'cancelled')
    else:
        done(job)
",
    );
    rig.ask(&model, "warm up");
    let long =
        Assignment { max_run_ms: 100, request: crate::rig::request("long"), ..rig.task(&model) };
    rig.peer.assign(long);
    rig.ask(&model, "again");
    rig.peer.wait_for("commit", 2);
    rig.peer.see(|script| {
        let failure = script.failures()[0];
        assert_eq!((failure.code, failure.retryable), (Code::MaxRunExceeded, false));
        assert_eq!(script.files()[0], script.files()[1], "the engine obeyed");
    });
    rig.finish();
}

#[test]
fn a_load_that_takes_longer_than_a_task_may_is_ended() {
    let mut rig = Rig::new();
    let pid = rig.path("pid");
    let model =
        shell(&mut rig, &format!("echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 1000"));
    let task = Assignment { max_run_ms: 500, ..rig.task(&model) };
    rig.peer.assign(task);
    rig.peer.wait_for("fail", 1);
    rig.peer.see(|script| assert_eq!(script.failures()[0].code, Code::MaxRunExceeded));
    wait_gone(&std::fs::read_to_string(rig.dir.path().join("pid")).unwrap());
    rig.finish();
}

#[test]
fn files_that_are_not_what_they_should_be_are_refused() {
    let mut rig = Rig::new();
    let secret = rig.dir.path().join("secret");
    write(&secret, "secret");
    let model = rig.model(&format!("
secret = {:?}
load = ready()
while True:
    job = hear()
    out = job['output_dir']
    what = job['request']['prompt']
    path = os.path.join(out, 'video.mp4')
    files = [announce()]
    if what == 'link': os.symlink(secret, path)
    if what == 'folder': os.symlink(os.path.dirname(secret), os.path.join(out, 'sub')); files = [announce('sub/secret')]
    if what == 'moved': os.rename(out, out + '.old'); os.symlink(os.path.dirname(secret), out); files = [announce('secret')]
    if what == 'above': files = [announce(os.path.relpath(secret, out))]
    if what == 'absolute': files = [announce(secret)]
    if what == 'pipe': os.mkfifo(path)
    if what == 'empty': put(job, '')
    if what == 'none': files = []
    if what == 'many': put(job, 'x'); files = files * 17
    if what == 'fine': files = None
    done(job, 'fine', files)
", secret));
    let rows = [
        ("link", "is a link"),
        ("folder", "below a link"),
        ("moved", "does not exist"),
        ("above", "outside"),
        ("absolute", "outside"),
        ("pipe", "not a regular file"),
        ("empty", "is empty"),
        ("missing", "does not exist"),
        ("none", "no file"),
        ("many", "17 files"),
    ];
    for (n, (what, message)) in rows.iter().enumerate() {
        rig.ask(&model, what);
        rig.peer.wait_for("fail", n + 1);
        rig.peer.see(|script| {
            let failure = script.failures()[n];
            assert_eq!(failure.code, Code::OutputInvalid, "{what}: {failure:?}");
            assert!(failure.message.contains(message), "{what}: {failure:?}");
        });
    }
    rig.ask(&model, "fine");
    rig.peer.wait_for("commit", 1);
    rig.peer.see(|script| assert_eq!(script.files(), [b"fine"]));
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret");
    rig.finish();
}
