//! A server that is away costs no work, wherever it comes back.

use std::time::Duration;

use rayreel_worker::Exit;

use crate::peer::{Call, Fault};
use crate::rig::{GOOD, Rig, wait_gone, write};

#[test]
fn a_server_that_is_away_in_mid_task_costs_nothing() {
    let mut rig = Rig::new();
    let gate = rig.gate("gate");
    let made = rig.gate("made");
    let model = rig.model(&format!(
        "
load = ready()
job = hear()
step(job)
gate({})
done(job, 'finished without a server')
gate({})
hear()
",
        gate.path(),
        made.path()
    ));
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 1);
    rig.peer.stop();
    gate.open();
    // The engine is through while nobody answers.
    made.open();
    rig.peer.restart();
    rig.peer.wait_for("claim", 2);
    rig.peer.see(|script| {
        assert_eq!(script.commits()[0].fence, fence);
        assert_eq!(script.files(), [b"finished without a server"]);
        assert_eq!(script.count("register"), 1);
        assert_eq!(script.count("commit"), 1);
        let seqs: Vec<_> = script.claims().iter().map(|claim| claim.seq).collect();
        assert_eq!(seqs, [1, 2], "one attempt");
    });
    rig.finish();
}

#[test]
fn an_idle_worker_is_back_when_its_server_is() {
    let mut rig = Rig::new();
    rig.peer.wait_for("claim", 1);
    rig.peer.stop();
    rig.peer.restart();
    let model = rig.model(GOOD);
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    let seqs = rig.peer.see(|script| script.claims().iter().map(|c| c.seq).collect::<Vec<_>>());
    assert_eq!(&seqs[..2], [1, 1], "the same claim");
    rig.finish();
}

#[test]
fn a_worker_waits_for_a_server_that_is_not_there_yet() {
    let mut rig = Rig::with(|_, peer| peer.stop());
    rig.peer.restart();
    rig.peer.wait_for("register", 1);
    let model = rig.model(GOOD);
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    rig.finish();
}

#[test]
fn a_server_that_comes_back_elsewhere_is_found() {
    let home = tempfile::tempdir().unwrap();
    let mut rig = Rig::with(|options, _| options.home = Some(home.path().to_owned()));
    let model = rig.model(GOOD);
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    rig.peer.wait_for("claim", 2);

    let other = crate::peer::Peer::start();
    other.set(|script| script.token = "another-token".into());
    let announcement = home.path().join("server.json");
    let url = other.url();
    let text = format!(r#"{{"url":"{url}","token":"t","worker_token":"another-token","pid":1}}"#);
    write(&announcement, &text);
    let held = std::fs::File::open(&announcement).unwrap();
    held.lock().unwrap();
    rig.peer.stop();
    other.wait_for("claim", 1);
    other.see(|script| {
        let Call::Claim(claim) = &script.calls[0] else { panic!("{:?}", script.calls) };
        assert_eq!((claim.seq, claim.incarnation), (2, 7), "the same worker, the same claim");
    });
    other.assign(rig.task(&model));
    other.wait_for("commit", 1);
    assert!(other.see(|script| script.count("beat")) > 0, "the lease moves too");
    rig.signals.drain.cancel();
    assert_eq!(rig.ended().unwrap(), Exit::Drained);
    other.wait_for("deregister", 1);
}

#[test]
fn an_attempt_is_given_up_when_no_server_comes_back() {
    let mut rig = Rig::with(|options, _| options.outage_keep = Duration::from_millis(200));
    let pid = rig.path("pid");
    let mut model = rig.model(&format!(
        "
load = ready()
job = hear()
open({pid}, 'w').write(str(os.getpid()))
step(job)
while True: time.sleep(1000)
"
    ));
    model.grace_ms = 50;
    let fence = rig.assign(&model);
    rig.wait_progress(fence, 1);
    rig.peer.stop();
    wait_gone(&std::fs::read_to_string(rig.dir.path().join("pid")).unwrap());
    rig.peer.restart();
    rig.peer.wait_for("claim", 2);
    rig.peer.see(|script| {
        assert!(script.claims()[1].holding.is_empty(), "the server may give it to another");
        assert_eq!(script.count("fail"), 0);
    });
    rig.finish();
}

#[test]
fn an_idle_worker_of_a_fleet_that_is_gone_leaves() {
    let mut rig = Rig::with(|options, _| {
        options.launch = Some("launch-1".into());
        options.orphan_idle = Duration::from_millis(100);
    });
    let model = rig.model(GOOD);
    rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    let pid = String::from_utf8(rig.peer.see(|s| s.files()[0].to_vec())).unwrap();
    rig.peer.stop();
    assert_eq!(rig.ended().unwrap(), Exit::Orphaned);
    wait_gone(&pid);
    rig.peer.see(|script| {
        let Call::Register(register) = &script.calls[0] else { panic!() };
        assert_eq!(register.launch.as_deref(), Some("launch-1"));
    });
}

#[test]
fn a_worker_of_a_fleet_that_missed_its_dismissal_leaves_in_peace() {
    let rig = Rig::with(|options, _| options.launch = Some("launch-1".into()));
    rig.peer.wait_for("claim", 1);
    rig.peer.fault("claim", Fault::Lost);
    rig.peer.fault("claim", Fault::Refused(409, "stale_worker"));
    rig.peer.set(|script| script.next.push_back(rayreel_domain::wire::worker::Claimed::Drain));
    assert_eq!(rig.ended().unwrap(), Exit::Drained);
}
