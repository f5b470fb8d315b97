//! The lease is kept whatever else happens, and claims survive lost answers.

use std::time::Duration;

use rayreel_worker::{Options, Signals};

use crate::peer::{Call, Fault, Peer, TOKEN};
use crate::rig::{GOOD, Rig};

#[test]
fn a_claim_whose_answer_is_lost_is_repeated_under_its_number() {
    let mut rig = Rig::new();
    let model = rig.model(GOOD);
    rig.peer.wait_for("claim", 1);
    rig.peer.fault("claim", Fault::Lost);
    rig.peer.fault("claim", Fault::Refused(503, "store_unavailable"));
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    rig.peer.wait_for("claim", 4);
    let seqs = rig.peer.see(|script| script.claims().iter().map(|c| c.seq).collect::<Vec<_>>());
    assert_eq!(seqs, [1, 1, 1, 2]);
    rig.finish();
}

#[test]
fn progress_goes_with_the_beats() {
    let mut rig = Rig::new();
    let gate = rig.gate("gate");
    let model = rig.model(&format!(
        "
load = ready()
job = hear()
step(job, 3, 'denoise' + 'x' * 100)
gate({})
say(type='progress', id=job['id'], step=99, steps=10, stage='decode')
hear()
error(job, 'cancelled')
hear()
",
        gate.path()
    ));
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 3);
    gate.open();
    rig.wait_progress(fence, 10);
    rig.peer.see(|script| {
        for call in script.named("beat") {
            let Call::Beat(beat) = call else { unreachable!() };
            let stage = beat.progress.as_ref().map_or(0, |p| p.stage.chars().count());
            assert!(stage <= 64, "{beat:?}");
        }
    });
    rig.signals.abort.cancel();
    rig.ended().unwrap();
}

#[test]
fn a_worker_that_is_stuck_keeps_its_lease() {
    let peer = Peer::start();
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        server: peer.url(),
        token: TOKEN.into(),
        pool: "pool".parse().unwrap(),
        name: "worker-1".parse().unwrap(),
        launch: None,
        home: None,
        scratch: dir.path().into(),
        engine_program: "/nonexistent".into(),
        alone: false,
        outage_keep: Options::OUTAGE_KEEP,
        orphan_idle: Options::ORPHAN_IDLE,
        drain_grace: Options::DRAIN_GRACE,
    };
    // Only to write the script and the task.
    let mut maker = Rig::new();
    let gate = maker.gate("gate");
    let model = maker.model(&format!(
        "load = ready()\njob = hear()\nstep(job)\ngate({})\ndone(job)\nhear()",
        gate.path()
    ));
    peer.assign(maker.task(&model));
    let signals = Signals::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let worker = tokio::spawn(rayreel_worker::run(options, signals.clone()));
        until(|| peer.see(|script| script.count("beat") > 0)).await;
        // Nothing else runs on this runtime until this returns.
        let beats = peer.see(|script| script.count("beat"));
        peer.wait_for("beat", beats + 5);
        tokio::task::spawn_blocking(move || gate.open()).await.unwrap();
        until(|| peer.see(|script| script.count("commit") > 0)).await;
        signals.drain.cancel();
        worker.await.unwrap().unwrap();
    });
    maker.finish();
}

/// Lets the worker run until something is so.
async fn until(mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
}
