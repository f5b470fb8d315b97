//! A worker that is told to go finishes or gives back, and leaves nothing running.

use std::time::Duration;

use rayreel_worker::Exit;

use crate::peer::Call;
use crate::rig::{Gate, Rig, wait_gone};

/// Works until the gate opens.
fn gated(rig: &mut Rig) -> (Gate, rayreel_domain::wire::worker::ModelSetup) {
    let gate = rig.gate("gate");
    let script = format!(
        "
load = ready()
while True:
    job = hear()
    child = subprocess.Popen(['sleep', '1000'])
    open({}, 'w').write(f'{{os.getpid()}} {{child.pid}}')
    step(job)
    gate({})
    done(job)
",
        rig.path("pids"),
        gate.path()
    );
    let model = rig.model(&script);
    (gate, model)
}

fn all_gone(rig: &Rig) {
    let pids = std::fs::read_to_string(rig.dir.path().join("pids")).unwrap();
    for pid in pids.split_whitespace() {
        wait_gone(pid);
    }
}

fn names_after(rig: &Rig, first: &str) -> Vec<&'static str> {
    rig.peer.see(|script| {
        let names =
            script.calls.iter().map(Call::name).filter(|n| !["beat", "control"].contains(n));
        names.skip_while(|name| *name != first).collect()
    })
}

#[test]
fn an_idle_worker_leaves_at_once() {
    let rig = Rig::new();
    rig.peer.wait_for("claim", 1);
    rig.signals.drain.cancel();
    assert_eq!(rig.ended().unwrap(), Exit::Drained);
    assert_eq!(names_after(&rig, "claim"), ["claim", "deregister"]);
    rig.peer.see(|script| {
        let Some(Call::Deregister(farewell)) = script.named("deregister").next() else { panic!() };
        assert_eq!((farewell.worker.as_str(), farewell.incarnation), ("worker-1", 7));
    });
}

#[test]
fn the_running_task_is_finished_first() {
    let mut rig = Rig::new();
    let (gate, model) = gated(&mut rig);
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 1);
    rig.signals.drain.cancel();
    gate.open();
    assert_eq!(rig.ended().unwrap(), Exit::Drained);
    assert_eq!(names_after(&rig, "uploads"), ["uploads", "put", "commit", "deregister"]);
    all_gone(&rig);
}

#[test]
fn a_task_that_takes_longer_than_the_grace_is_given_back() {
    let mut rig = Rig::with(|options, _| options.drain_grace = Duration::from_millis(50));
    let (_gate, model) = gated(&mut rig);
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 1);
    rig.signals.drain.cancel();
    assert_eq!(rig.ended().unwrap(), Exit::Drained);
    assert_eq!(names_after(&rig, "release"), ["release", "deregister"]);
    rig.peer.see(|script| {
        let Some(Call::Release(release)) = script.named("release").next() else { panic!() };
        assert_eq!((release.fence, release.incarnation), (fence, 7));
        assert_eq!(script.count("fail"), 0, "it costs the task nothing");
    });
    all_gone(&rig);
}

#[test]
fn a_second_signal_ends_the_worker_at_once() {
    let mut rig = Rig::new();
    let (_gate, model) = gated(&mut rig);
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 1);
    rig.signals.drain.cancel();
    rig.signals.abort.cancel();
    assert_eq!(rig.ended().unwrap(), Exit::Aborted);
    assert_eq!(names_after(&rig, "release"), ["release"]);
    all_gone(&rig);
}

#[test]
fn a_second_signal_ends_the_worker_even_without_a_server() {
    let mut rig = Rig::new();
    let (_gate, model) = gated(&mut rig);
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 1);
    rig.peer.stop();
    rig.signals.drain.cancel();
    rig.signals.abort.cancel();
    assert_eq!(rig.ended().unwrap(), Exit::Aborted);
    all_gone(&rig);
}

#[test]
fn the_server_can_send_a_worker_away_after_its_task() {
    let mut rig = Rig::with(|options, _| options.drain_grace = Duration::ZERO);
    let (gate, model) = gated(&mut rig);
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 1);
    rig.peer.set(|script| script.controlled.drain = true);
    rig.peer.wait_for("control", 2);
    gate.open();
    assert_eq!(rig.ended().unwrap(), Exit::Drained);
    assert_eq!(names_after(&rig, "uploads"), ["uploads", "put", "commit", "deregister"]);
}
