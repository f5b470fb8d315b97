//! A worker in quarantine proves with a small generation of its own that its engine works.

use rayreel_domain::wire::worker::{Claimed, ModelSetup, SelfTest};

use crate::rig::{GOOD, Rig};

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
        script.next.push_back(Claimed::Quarantine { model: Box::new(model.clone()), message });
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
    let test = &runs[1].1;
    assert_eq!((test["width"].as_u64(), test["height"].as_u64()), (Some(64), Some(64)));
    assert!(test["frames"].as_u64() <= Some(5) && test["steps"].as_u64() <= Some(2));
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
            script.next.push_back(Claimed::Quarantine { model: Box::new(model.clone()), message });
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

#[test]
fn an_engine_that_refuses_the_small_request_works() {
    let mut rig = Rig::new();
    let model =
        rig.model("ready(); error(hear(), 'invalid_request', 'an image is needed'); hear()");
    rig.peer.set(|script| {
        let message = "three tasks failed".into();
        script.next.push_back(Claimed::Quarantine { model: Box::new(model.clone()), message });
    });
    rig.peer.wait_for("claim", 2);
    let result = rig.peer.see(|script| script.claims()[1].self_test.clone());
    assert_eq!(result, Some(passed(&model)));
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
        script.next.push_back(Claimed::Quarantine { model: Box::new(model), message });
    });
    gate.open();
    rig.signals.drain.cancel();
    assert_eq!(rig.ended().unwrap(), rayreel_worker::Exit::Drained);
    crate::rig::wait_gone(&std::fs::read_to_string(rig.dir.path().join("pid")).unwrap());
}
