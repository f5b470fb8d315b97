//! A task that is cancelled or lost stops at once, and nothing of it is delivered.

use rayreel_domain::wire::worker::{Beaten, Controlled};

use crate::peer::{Call, Fault};
use crate::rig::{Rig, wait_gone};

/// Obeys when it is asked to stop.
const OBEDIENT: &str = "
load = ready()
while True:
    job = hear()
    if job['request']['prompt'] == 'long':
        step(job)
        asked = hear()
        assert asked == {'type': 'cancel', 'id': job['id']}, asked
        error(job, 'cancelled')
    else:
        done(job)
";

/// Never stops, and has a child that doesn't either.
fn stubborn(rig: &Rig) -> String {
    format!(
        "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
load = ready()
while True:
    job = hear()
    if job['request']['prompt'] == 'long':
        child = subprocess.Popen(['sleep', '1000'])
        open({}, 'w').write(f'{{os.getpid()}} {{child.pid}}')
        step(job)
        while True: time.sleep(1000)
    done(job)
",
        rig.path("pids")
    )
}

fn nothing_was_said(rig: &Rig) {
    rig.peer.see(|script| {
        for name in ["fail", "release"] {
            assert_eq!(script.count(name), 0, "{name}");
        }
    });
}

#[test]
fn a_cancel_reaches_the_engine_without_waiting_for_a_beat() {
    let mut rig = Rig::with(|_, peer| peer.set(|script| script.beat_ms = 3_600_000));
    let at = rig.gate("at");
    let model =
        rig.model(&OBEDIENT.replace("step(job)", &format!("step(job); gate({})", at.path())));
    rig.ask(&model, "short");
    let fence = rig.ask(&model, "long");
    // The engine is at work on it.
    at.open();
    rig.peer.set(|script| {
        script.controlled = Controlled { cancelled: vec![fence], ..Controlled::default() };
    });
    rig.peer.wait_for("claim", 3);
    rig.ask(&model, "short");
    rig.peer.wait_for("commit", 2);
    rig.peer.see(|script| {
        let told = script
            .named("control")
            .any(|call| matches!(call, Call::Control(control) if control.holding == [fence]));
        assert!(told);
        assert_eq!(script.claims()[2].loaded.as_ref(), Some(&model.name), "it stays warm");
        assert_eq!(script.files()[0], script.files()[1]);
    });
    nothing_was_said(&rig);
    rig.finish();
}

#[test]
fn an_engine_that_does_not_stop_is_killed_with_its_children() {
    let mut rig = Rig::new();
    let script = stubborn(&rig);
    let mut model = rig.model(&script);
    model.grace_ms = 100;
    rig.ask(&model, "short");
    let fence = rig.ask(&model, "long");
    rig.wait_progress(fence, 1);
    rig.peer.set(|script| {
        script.controlled = Controlled { cancelled: vec![fence], ..Controlled::default() };
    });
    rig.peer.wait_for("claim", 3);
    let pids = std::fs::read_to_string(rig.dir.path().join("pids")).unwrap();
    for pid in pids.split_whitespace() {
        wait_gone(pid);
    }
    assert_eq!(rig.peer.see(|script| script.claims()[2].loaded.clone()), None);
    rig.ask(&model, "short");
    rig.peer.wait_for("commit", 2);
    rig.peer.see(|script| assert_ne!(script.files()[0], script.files()[1], "a fresh engine"));
    nothing_was_said(&rig);
    rig.finish();
}

#[test]
fn a_lost_lease_ends_the_work() {
    let mut rig = Rig::new();
    let model = rig.model(OBEDIENT);
    let fence = rig.ask(&model, "long");
    rig.wait_progress(fence, 1);
    rig.peer.set(|script| script.beaten = Beaten::Lost);
    rig.peer.wait_for("claim", 2);
    rig.peer.see(|script| assert_eq!(script.count("commit") + script.count("uploads"), 0));
    nothing_was_said(&rig);
    rig.finish();
}

#[test]
fn a_cancel_is_also_heard_in_the_answer_to_a_beat() {
    let mut rig = Rig::new();
    let model = rig.model(OBEDIENT);
    let fence = rig.ask(&model, "long");
    rig.wait_progress(fence, 1);
    rig.peer.set(|script| script.beaten = Beaten::Cancelled);
    rig.peer.wait_for("claim", 2);
    nothing_was_said(&rig);
    rig.finish();
}

#[test]
fn an_engine_goes_on_loading_when_its_task_is_cancelled() {
    let mut rig = Rig::new();
    let gate = rig.gate("gate");
    let starts = rig.path("starts");
    let model = rig.model(&format!(
        "open({starts}, 'a').write('x')\ngate({})\n{}",
        gate.path(),
        crate::rig::GOOD
    ));
    let fence = rig.assign(&model);
    rig.peer.wait("the load", |script| {
        let mut beats = script.named("beat");
        beats
            .any(|call| {
                matches!(call, Call::Beat(beat)
            if beat.progress.as_ref().is_some_and(|p| p.stage == "load"))
            })
            .then_some(())
    });
    rig.peer.set(|script| {
        script.controlled = Controlled { cancelled: vec![fence], ..Controlled::default() };
    });
    rig.peer.wait_for("claim", 2);
    rig.assign(&model);
    gate.open();
    rig.peer.wait_for("commit", 1);
    let starts = std::fs::read_to_string(rig.dir.path().join("starts")).unwrap();
    assert_eq!(starts, "x", "one engine");
    nothing_was_said(&rig);
    rig.finish();
}

#[test]
fn a_stale_lease_at_any_call_drops_the_attempt() {
    for call in ["beat", "control", "uploads", "put", "commit"] {
        let mut rig = Rig::new();
        rig.peer.fault(call, Fault::Refused(409, "stale_lease"));
        if matches!(call, "beat" | "control") {
            // Only this ends it.
            let model = rig.model(OBEDIENT);
            let task = rig.ask(&model, "long");
            // Nothing but a change of `lost` has the server answer; the fault replaces the answer.
            rig.peer
                .set(|script| script.controlled.lost.extend((call == "control").then_some(task)));
        } else {
            let model = rig.model(crate::rig::GOOD);
            rig.assign(&model);
        }
        rig.peer.wait_for("claim", 2);
        nothing_was_said(&rig);
        let delivered = rig.peer.see(|script| script.count("commit"));
        assert_eq!(delivered, usize::from(call == "commit"), "{call}");
        rig.finish();
    }
}

#[test]
fn a_worker_that_was_replaced_leaves() {
    for call in ["claim", "beat", "uploads", "commit"] {
        let mut rig = Rig::new();
        let model = rig.model(crate::rig::GOOD);
        rig.peer.wait_for("claim", 1);
        rig.peer.fault(call, Fault::Refused(409, "stale_worker"));
        if call == "beat" {
            let model = rig.model(OBEDIENT);
            rig.ask(&model, "long");
        } else {
            rig.assign(&model);
        }
        let error = rig.ended().unwrap_err();
        assert!(matches!(error, rayreel_worker::Error::Replaced { .. }), "{call}: {error}");
        assert!(error.to_string().contains("worker-1"), "{error}");
    }
}
