//! Each message of the worker API has a file that says how it looks on the wire.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayreel_domain::wire::worker::{
    Beat, BeatAnswer, Claim, Claimed, Commit, Control, Controlled, Deregister, Done, Fail,
    PartTargets, Parts, Register, Registered, Release, UploadTargets, Uploads,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/worker")
}

fn text(file: &str) -> String {
    fs::read_to_string(directory().join(file).with_extension("json"))
        .unwrap_or_else(|error| panic!("{file}.json: {error}"))
}

/// Reads the file as this message and writes it again: the same.
fn check<T: DeserializeOwned + Serialize>(file: &str) -> T {
    let text = text(file);
    let message: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
    let value: Value = serde_json::from_str(&text).expect("it was JSON just now");
    assert_eq!(serde_json::to_value(&message).expect("messages are JSON"), value, "{file}");
    message
}

/// The files of each answer to a claim; does not compile while a variant is missing.
fn claimed_file(answer: &Claimed) -> &'static str {
    match answer {
        Claimed::Task(_) => "claimed_task",
        Claimed::Nothing => "claimed_nothing",
        Claimed::Drain => "claimed_drain",
        Claimed::Quarantine { .. } => "claimed_quarantine",
    }
}

#[test]
fn every_message_is_as_in_its_file() {
    check::<Register>("register");
    check::<Registered>("registered");
    check::<Deregister>("deregister");
    check::<Claim>("claim");
    check::<Claim>("claim_self_test_passed");
    check::<Control>("control");
    check::<Controlled>("controlled");
    check::<Beat>("beat");
    check::<BeatAnswer>("beat_answer");
    check::<Uploads>("uploads");
    check::<UploadTargets>("upload_targets");
    check::<UploadTargets>("upload_targets_in_parts");
    check::<Parts>("parts");
    check::<PartTargets>("part_targets");
    check::<Commit>("commit");
    check::<Fail>("fail");
    check::<Release>("release");
    check::<Done>("done");
    for file in ["claimed_task", "claimed_nothing", "claimed_drain", "claimed_quarantine"] {
        assert_eq!(claimed_file(&check::<Claimed>(file)), file, "holds another answer");
    }
}

#[test]
fn no_file_is_left_over() {
    let known: BTreeSet<&str> = [
        "register",
        "registered",
        "deregister",
        "claim",
        "claim_self_test_passed",
        "control",
        "controlled",
        "beat",
        "beat_answer",
        "uploads",
        "upload_targets",
        "upload_targets_in_parts",
        "parts",
        "part_targets",
        "commit",
        "fail",
        "release",
        "done",
        "claimed_task",
        "claimed_nothing",
        "claimed_drain",
        "claimed_quarantine",
    ]
    .into();
    for entry in fs::read_dir(directory()).expect("the golden files lie beside the sources") {
        let path = entry.expect("the directory can be listed").path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a plain name");
        assert!(known.contains(name), "{name}.json is not tested");
    }
}

#[test]
fn what_a_worker_sends_has_no_unknown_field() {
    for file in ["register", "claim", "control", "beat", "commit", "fail", "release"] {
        let mut value: Value = serde_json::from_str(&text(file)).expect("JSON");
        value["surprise"] = Value::from(1);
        let refused = match file {
            "register" => serde_json::from_value::<Register>(value).is_err(),
            "claim" => serde_json::from_value::<Claim>(value).is_err(),
            "control" => serde_json::from_value::<Control>(value).is_err(),
            "beat" => serde_json::from_value::<Beat>(value).is_err(),
            "commit" => serde_json::from_value::<Commit>(value).is_err(),
            "fail" => serde_json::from_value::<Fail>(value).is_err(),
            _ => serde_json::from_value::<Release>(value).is_err(),
        };
        assert!(refused, "{file}");
    }
}
