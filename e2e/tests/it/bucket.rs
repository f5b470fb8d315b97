//! Files in a bucket: by the real binary, on a real S3 server that can be cut off.

use rayreel_domain::task::Outcome;
use serde_json::json;

use crate::gateway::{self, Gateway};
use crate::rig::{Command, Faults, Proxy, Server, only, sha256, until};

/// A server whose files are in a bucket that it reaches through a link.
struct Far {
    server: Server,
    link: Proxy,
    gateway: Gateway,
}

fn far(config: &str) -> Far {
    far_with(config, "")
}

fn far_with(config: &str, settings: &str) -> Far {
    let gateway = Gateway::start();
    let link = Proxy::start(gateway.endpoint().trim_start_matches("http://"));
    let bucket = gateway::BUCKET;
    let mut server = Server::prepare(&format!(
        "{config}\n[artifacts]\nurl = \"s3://{bucket}/a\"\nendpoint = \"{}\"\n\
         allow_http = true\nsigned_seconds = 1\n{settings}\n",
        link.url
    ));
    server.variables = vec![
        ("AWS_ACCESS_KEY_ID", gateway::KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", gateway::SECRET.to_owned()),
    ];
    server.serve();
    Far { server, link, gateway }
}

#[test]
#[ignore = "needs an S3 server: scripts/test s3"]
fn a_video_lies_in_the_bucket_and_is_downloaded_from_there() {
    let Far { server, gateway, .. } = far("");
    let words = ["generate", "a fox", "--size", "64x64", "--frames", "5", "--steps", "2"];
    let done = server.run(&[&words[..], &["-o", "fox.mp4"]].concat()).ok();
    let video = std::fs::read(server.directory().join("fox.mp4")).expect("downloaded");
    assert_eq!(&video[4..8], b"ftyp", "{done:?}");
    let files = gateway.files();
    assert_eq!(files.len(), 2, "a video and its still: {files:?}");
    assert!(files.iter().any(|path| gateway.read(path) == video));
    assert!(server.artifacts().is_empty(), "and nothing in the data directory");
    let task = server.api().every_task().remove(0);
    let answer = server.api().moved(&task.urls.content);
    assert!(answer.contains("X-Amz-Signature="), "{answer}");
    // By a client that follows, with the key left behind.
    assert_eq!(server.api().content(&task.id), video);
    assert_eq!(task.result.expect("it has succeeded").sha256, sha256(&video));
}

#[test]
#[ignore = "needs an S3 server: scripts/test s3"]
fn a_server_whose_bucket_does_not_exist_does_not_start() {
    let Far { mut server, link, gateway: _there } = far("");
    server.terminate();
    server.configure(&format!(
        "[artifacts]\nurl = \"s3://another\"\nendpoint = \"{}\"\nallow_http = true\n",
        link.url
    ));
    let refused = server.serve_in_vain();
    assert_ne!(refused.code, Some(0));
    let told = format!("error[invalid_config]: there is no bucket s3://another at {}", link.url);
    assert!(refused.stderr.contains(&told), "{refused:?}");
    assert!(!refused.stderr.contains(gateway::SECRET));
    // One that is only away is waited for.
    server.configure("[artifacts]\nurl = \"s3://another\"\nendpoint = \"https://127.0.0.1:1\"\n");
    let child = server.command(&["serve", "--listen", "127.0.0.1:0"]);
    until("it serves", || server.find_announced());
    child.process.signal(rustix::process::Signal::TERM);
    assert!(child.finish().stderr.contains("the artifact store does not answer"));
}

#[test]
#[ignore = "needs an S3 server: scripts/test s3"]
fn a_bucket_that_is_away_when_files_are_delivered_costs_no_work() {
    let faults = Faults::new();
    let Far { server, link, gateway } = far(&faults.model("fault", ""));
    let id = server.api().submit(&json!({"model": "fault", "prompt": "hold"})).id;
    server.api().wait_until_running(&id);
    until("its engine works", || faults.noted("step").first().cloned());
    link.cut();
    faults.open_gate();
    until("the engine is done", || faults.noted("done").first().cloned());
    // For longer than the addresses are good: the worker must ask for others.
    until("puts have failed", || (link.refused() >= 6).then_some(()));
    link.mend();
    let task = server.api().wait_for_success(&id);
    assert_eq!(only(task.attempts).outcome, Some(Outcome::Succeeded));
    assert_eq!(faults.noted("generate").len(), 1, "the work was done once");
    assert_eq!(gateway.files().len(), 1);
}

#[test]
#[ignore = "needs an S3 server: scripts/test s3"]
fn a_worker_that_reaches_only_the_bucket_delivers_when_it_is_back() {
    let faults = Faults::new();
    let config = format!("[pools.local]\nmax = 0\n{}", faults.model("fault", ""));
    let Far { server, gateway, .. } = far(&config);
    let api = Proxy::start(&server.address());
    let token = server.announced().worker_token;
    let words = ["worker", "--server", &api.url, "--name", "far"];
    let _worker = Command::start_with(&server, &words, ("RAYREEL_WORKER_TOKEN", &token));
    let id = server.api().submit(&json!({"model": "fault", "prompt": "hold"})).id;
    server.api().wait_for(&id, "at work", |task| task.progress > 0);
    api.cut();
    faults.open_gate();
    until("the engine is done", || faults.noted("done").first().cloned());
    until("calls have failed", || (api.refused() >= 5).then_some(()));
    api.mend();
    let task = server.api().wait_for_success(&id);
    assert_eq!(only(task.attempts).outcome, Some(Outcome::Succeeded));
    assert_eq!(gateway.files().len(), 1, "nothing twice");
}

#[test]
#[ignore = "needs an S3 server: scripts/test s3"]
fn a_long_file_goes_on_at_the_part_at_which_the_bucket_went_away() {
    let faults = Faults::new();
    let model = faults.model_with("fault", "", "bytes = 40_000_000");
    let Far { server, link, gateway } = far_with(&model, "part_bytes = 5_242_880");
    let id = server.api().submit(&json!({"model": "fault", "prompt": "p"})).id;
    until("a part is there", || (!gateway.files().is_empty()).then_some(()));
    link.cut();
    until("puts have failed", || (link.refused() >= 6).then_some(()));
    link.mend();
    let task = server.api().wait_for_success(&id);
    assert_eq!(only(task.attempts).outcome, Some(Outcome::Succeeded));
    let [file] = &gateway.files()[..] else { panic!("{:?}", gateway.files()) };
    let video = server.api().content(&id);
    assert!(video.len() > 39_000_000 && video == gateway.read(file));
    assert_eq!(task.result.expect("it has succeeded").sha256, sha256(&video));
    assert_eq!(faults.noted("generate").len(), 1, "the work was done once");
}
