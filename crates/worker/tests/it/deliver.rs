//! Files are delivered whole, once, and in spite of a server that is not well.

use rayreel_domain::Code;
use rayreel_domain::wire::worker::Beaten;

use crate::peer::{Call, Fault};
use crate::rig::{GOOD, Rig};

/// Makes two files, one of several chunks.
const TWO: &str = "
load = ready()
while True:
    job = hear()
    put(job, ''.join(map(str, range(200_000))))
    put(job, 't', 'thumb.png')
    done(job, files=[announce(), announce('thumb.png', 'thumbnail', 'image/png')])
";

#[test]
fn several_files_arrive_whole_and_in_order() {
    let mut rig = Rig::new();
    let model = rig.model(TWO);
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    rig.peer.see(|script| {
        let files = script.files();
        let expected: String = (0..200_000).map(|n| n.to_string()).collect();
        assert!(files[0] == expected.as_bytes(), "{} bytes", files[0].len());
        assert_eq!(files[1], b"t");
        let manifest = &script.commits()[0].manifest;
        assert_eq!([manifest[0].index, manifest[1].index], [0, 1]);
        assert_eq!(manifest[1].media_type, "image/png");
    });
    rig.finish();
}

#[test]
fn an_address_outside_the_server_does_not_get_the_token() {
    let mut rig = Rig::with(|_, peer| peer.set(|script| script.signed_targets = true));
    let model = rig.model(GOOD);
    rig.assign(&model);
    rig.peer.wait_for("commit", 1);
    rig.peer.see(|script| {
        let Some(Call::Put { bearer, signed, .. }) = script.named("put").next() else { panic!() };
        assert_eq!((bearer.as_deref(), signed.as_deref()), (None, Some("signature-0")));
    });
    rig.finish();
}

#[test]
fn what_may_pass_is_tried_again() {
    let mut rig = Rig::new();
    let model = rig.model(GOOD);
    rig.peer.fault("uploads", Fault::Refused(503, "store_unavailable"));
    rig.peer.fault("put", Fault::Refused(507, "storage_full"));
    rig.peer.fault("put", Fault::Refused(500, "internal"));
    rig.peer.fault("put", Fault::Lost);
    rig.peer.fault("commit", Fault::Refused(503, "outcome_unknown"));
    rig.peer.fault("commit", Fault::Lost);
    rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    rig.peer.see(|script| {
        assert_eq!((script.count("uploads"), script.count("commit")), (2, 3));
        let files = script.files();
        assert!(files.len() >= 3 && files.iter().all(|file| *file == files[0]), "{files:?}");
        assert_eq!(script.count("fail"), 0);
    });
    rig.finish();
}

#[test]
fn damaged_files_are_sent_again() {
    let mut rig = Rig::new();
    let model = rig.model(GOOD);
    rig.peer.fault("put", Fault::Refused(422, "upload_mismatch"));
    rig.peer.fault("commit", Fault::Refused(422, "upload_mismatch"));
    rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    rig.peer.see(|script| {
        let counts = ["uploads", "put", "commit", "fail"].map(|name| script.count(name));
        assert_eq!(counts, [3, 3, 2, 0]);
    });
    rig.finish();
}

#[test]
fn an_announcement_that_the_server_does_not_accept_is_the_engines_fault() {
    let mut rig = Rig::new();
    let model = rig.model(GOOD);
    rig.peer.fault("uploads", Fault::Refused(400, "invalid_value"));
    rig.assign(&model);
    rig.peer.wait_for("fail", 1);
    rig.peer.see(|script| {
        assert_eq!(script.failures()[0].code, Code::OutputInvalid);
        assert_eq!(script.count("uploads"), 1);
    });
    rig.finish();
}

#[test]
fn a_refusal_that_stays_fails_the_task() {
    for call in ["uploads", "put", "commit"] {
        let mut rig = Rig::new();
        let model = rig.model(GOOD);
        for _ in 0..10 {
            rig.peer.fault(call, Fault::Refused(403, "forbidden"));
        }
        rig.assign(&model);
        rig.peer.wait_for("fail", 1);
        rig.peer.see(|script| {
            let failure = script.failures()[0];
            assert_eq!((failure.code, failure.retryable), (Code::UploadFailed, true), "{call}");
            assert!(failure.message.contains("403"), "{failure:?}");
            assert!(script.count(call) <= 3, "{call} is not tried for ever");
        });
        rig.finish();
    }
}

/// A beat that crosses the commit finds the lease gone, because the commit has ended it.
#[test]
fn a_commit_under_way_is_not_stopped_by_a_lease_that_has_ended() {
    for last in [None, Some(Fault::Refused(422, "upload_mismatch"))] {
        let mut rig = Rig::new();
        let model = rig.model(GOOD);
        for _ in 0..3 {
            rig.peer.fault("commit", Fault::Refused(503, "outcome_unknown"));
        }
        if let Some(last) = last.clone() {
            rig.peer.fault("commit", last);
        }
        rig.assign(&model);
        rig.peer.wait_for("commit", 1);
        rig.peer.set(|script| script.beaten = Beaten::Lost);
        rig.peer.wait_for("claim", 2);
        rig.peer.see(|script| {
            let counts = ["uploads", "commit", "fail"].map(|name| script.count(name));
            assert_eq!(counts, [1, 4, 0], "{last:?}");
        });
        rig.finish();
    }
}

#[test]
fn the_report_of_a_failure_is_repeated_until_it_is_heard() {
    let mut rig = Rig::new();
    let model = rig.model("ready(); hear(); os._exit(1)");
    rig.peer.fault("fail", Fault::Lost);
    rig.peer.fault("fail", Fault::Refused(503, "store_unavailable"));
    rig.assign(&model);
    rig.peer.wait_for("claim", 2);
    assert_eq!(rig.peer.see(|script| script.count("fail")), 3);
    rig.finish();
}
