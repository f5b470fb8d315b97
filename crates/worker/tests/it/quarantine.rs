//! A worker in quarantine proves with a small generation of its own that its engine works.

use rayreel_domain::wire::worker::{Claimed, EngineSetup, ModelSetup, SelfTest};

use crate::peer::Script;
use crate::rig::{GOOD, Rig, request};

fn quarantine(model: &ModelSetup, message: String) -> Claimed {
    let test = Box::new(request("self-test").for_engine(None, None));
    Claimed::Quarantine { model: Box::new(model.clone()), test, message }
}

fn passed(model: &ModelSetup) -> SelfTest {
    SelfTest { model: model.name.clone(), failure: None }
}

#[test]
fn a_worker_comes_out_of_quarantine_with_a_fresh_engine_that_works() {
    let mut rig = Rig::new();
    let log = rig.path("log");
    let model = rig.model(&format!(
        "
load = ready()
while True:
    job = hear()
    open({log}, 'a').write(json.dumps([os.getpid(), job['request']]) + '\\n')
    done(job)
"
    ));
    rig.assign(&model);
    rig.peer.set(|script| {
        let message = "three tasks failed".into();
        script.next.push_back(quarantine(&model, message));
    });
    rig.peer.wait_for("claim", 3);
    rig.peer.see(|script| {
        assert_eq!(script.claims()[1].self_test, None);
        assert_eq!(script.claims()[2].self_test, Some(passed(&model)));
        assert_eq!(script.claims()[2].loaded.as_ref(), Some(&model.name));
        assert_eq!(script.count("uploads"), 1, "the self-test's file stays");
    });
    rig.assign(&model);
    rig.peer.wait_for("claim", 4);
    assert_eq!(rig.peer.see(|script| script.claims()[3].self_test.clone()), None, "said once");
    let log = std::fs::read_to_string(rig.dir.path().join("log")).unwrap();
    let runs: Vec<(u32, serde_json::Value)> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_ne!(runs[0].0, runs[1].0, "restarted");
    assert_eq!(runs[1].0, runs[2].0, "and kept");
    let asked = request("self-test").for_engine(None, None);
    assert_eq!(runs[1].1, serde_json::to_value(asked).unwrap(), "what the server has asked for");
    rig.finish();
}

#[test]
fn a_self_test_that_fails_is_told_and_repeated() {
    let mut rig = Rig::new();
    let marker = rig.path("marker");
    let model = rig.model(&format!(
        "if first({marker}):\n    ready(); job = hear(); log('no GPU'); done(job, '')\n{GOOD}"
    ));
    rig.peer.set(|script| {
        for _ in 0..2 {
            let message = "three tasks failed".into();
            script.next.push_back(quarantine(&model, message));
        }
    });
    rig.peer.wait_for("claim", 3);
    rig.peer.see(|script| {
        let claims = script.claims();
        let failure = claims[1].self_test.as_ref().and_then(|test| test.failure.as_ref());
        let message = failure.expect("it failed");
        assert!(message.contains("output_invalid"), "{message}");
        assert!(message.contains("no GPU"), "{message}");
        assert_eq!(claims[2].self_test, Some(passed(&model)));
    });
    rig.finish();
}

/// How the self-test of this engine ends.
fn tested(rig: &mut Rig, model: &ModelSetup) -> SelfTest {
    let before = rig.peer.see(|script| tests(script).count());
    rig.peer.set(|script| script.next.push_back(quarantine(model, "three tasks failed".into())));
    rig.peer.wait("the result", |script| tests(script).nth(before))
}

fn tests(script: &Script) -> impl Iterator<Item = SelfTest> {
    script.claims().into_iter().filter_map(|claim| claim.self_test.clone())
}

#[test]
fn an_engine_that_refuses_the_test_is_loaded_and_gets_tasks_again() {
    let mut rig = Rig::new();
    let model =
        rig.model("ready()\nwhile True: error(hear(), 'invalid_request', 'not of this size')");
    assert_eq!(tested(&mut rig, &model), passed(&model));
    rig.finish();
}

#[test]
fn an_engine_that_needs_an_image_is_tested_with_one() {
    let mut rig = Rig::new();
    let model = rig.model(
        "
load = ready()
while True:
    job = hear()
    image = job['request'].get('image')
    if image is None:
        error(job, 'invalid_request', 'an image is needed')
    elif open(image, 'rb').read(4) != b'\\x89PNG':
        error(job, 'failed', 'that is no image')
    else:
        error(job, 'failed', 'no GPU')
",
    );
    let failure = tested(&mut rig, &model).failure.unwrap();
    assert!(failure.contains("no GPU"), "{failure}");
    rig.finish();
}

/// Engines that stand before somebody else's program are ready whether or not that one works.
#[test]
fn a_program_that_was_never_tried_has_not_passed() {
    let mut script = String::new();
    let mut rig = Rig::with(|options, _| {
        let path = options.scratch.parent().unwrap().join("front");
        script = path.to_str().unwrap().to_owned();
        options.engine_program = path;
    });
    let refuses = rig.model("ready()\nwhile True: error(hear(), 'invalid_request', 'not this')");
    let EngineSetup::Command(words) = &refuses.engine else { unreachable!() };
    std::fs::write(&script, format!("#!/bin/sh\nexec {}\n", words.join(" "))).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for engine in ["command", "server"] {
        let model = ModelSetup { engine: EngineSetup::BuiltIn(engine.into()), ..refuses.clone() };
        let failure = tested(&mut rig, &model).failure.unwrap_or_default();
        assert!(failure.contains("engine_refused: not this"), "{engine}: {failure}");
    }
    rig.finish();
}

#[test]
fn a_drain_interrupts_a_self_test() {
    let mut rig = Rig::new();
    let pid = rig.path("pid");
    let gate = rig.gate("gate");
    let model = rig.model(&format!(
        "
ready(); hear()
open({pid}, 'w').write(str(os.getpid()))
gate({})
while True: time.sleep(1000)
",
        gate.path()
    ));
    rig.peer.set(|script| {
        let message = "three tasks failed".into();
        script.next.push_back(quarantine(&model, message));
    });
    gate.open();
    rig.signals.drain.cancel();
    assert_eq!(rig.ended().unwrap(), rayreel_worker::Exit::Drained);
    crate::rig::wait_gone(&std::fs::read_to_string(rig.dir.path().join("pid")).unwrap());
}
