//! What is said, in which order, and how the engine ends.

use std::io::ErrorKind;

use rayreel_domain::wire::engine::{
    EngineErrorCode, EngineRequest, Format, FromEngine, MAX_LINE, OutputFile, PROTOCOL, Role,
    ToEngine,
};
use serde_json::json;

use crate::{Engine, error, files_in, load, still, video};

#[test]
fn a_worker_loads_generates_and_says_goodbye() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::start();
    engine.load(&json!({}));
    let FromEngine::Ready { protocol, engine: name, version } = engine.hear() else {
        panic!("not ready")
    };
    assert_eq!((protocol, name.as_str()), (PROTOCOL, "testcard"));
    assert_eq!(version, env!("CARGO_PKG_VERSION"));

    let request = EngineRequest { frames: 49, ..video() };
    engine.generate("task/1", directory.path(), request.clone());
    let (done, reports) = engine.hear_end();
    let denoising = (0..=3).map(|step| ("denoise".to_owned(), step, 3));
    let encoding = [5, 10, 15, 20, 25, 30, 35, 40, 45, 49].map(|step| ("encode".into(), step, 49));
    assert_eq!(reports, denoising.chain(encoding).collect::<Vec<_>>());

    let done = done.unwrap();
    assert_eq!(done.id, "task/1");
    assert!(done.test_pattern);
    assert_eq!(done.metrics.keys().collect::<Vec<_>>(), ["denoise_ms", "encode_ms"]);
    let video = OutputFile {
        path: "video.mp4".into(),
        role: Role::Video,
        media_type: "video/mp4".into(),
        width: 320,
        height: 192,
        frames: 49,
        fps: 16,
    };
    let thumbnail = OutputFile {
        path: "thumbnail.png".into(),
        role: Role::Thumbnail,
        media_type: "image/png".into(),
        frames: 1,
        fps: 0,
        ..video.clone()
    };
    assert_eq!(done.files, [video, thumbnail]);
    assert_eq!(files_in(directory.path()), ["thumbnail.png", "video.mp4"]);

    let other = tempfile::tempdir().unwrap();
    engine.generate("task/2", other.path(), still());
    let (done, reports) = engine.hear_end();
    assert_eq!(reports.last(), Some(&("encode".to_owned(), 1, 1)));
    let files = done.unwrap().files;
    assert_eq!(files.len(), 1);
    assert_eq!((files[0].path.as_str(), files[0].role), ("image.png", Role::Image));
    assert_eq!((files[0].frames, files[0].media_type.as_str()), (1, "image/png"));

    engine.say(&ToEngine::Exit);
    engine.end().unwrap();
}

#[test]
fn steps_take_the_time_that_is_set() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::loaded(5);
    engine.generate("one", directory.path(), EngineRequest { steps: 4, ..still() });
    let done = engine.hear_end().0.unwrap();
    assert!(done.metrics["denoise_ms"] >= 20.0, "{:?}", done.metrics);
}

#[test]
fn a_cancel_is_heard_within_a_step() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::loaded(600_000);
    engine.generate("one", directory.path(), video());
    assert!(matches!(engine.hear(), FromEngine::Progress { step: 0, steps: 3, .. }));
    engine.cancel("another");
    engine.cancel("one");
    let cancelled = error(Some("one"), EngineErrorCode::Cancelled, "cancelled");
    assert_eq!(engine.hear_error(), cancelled);
    assert_eq!(files_in(directory.path()), [""; 0]);

    // The engine lives on, and a cancel that comes too late means nothing.
    engine.cancel("one");
    engine.generate("one", directory.path(), video());
    assert!(matches!(engine.hear(), FromEngine::Progress { step: 0, steps: 3, .. }));
    engine.say(&ToEngine::Exit);
    engine.end().unwrap();
}

#[test]
fn a_cancel_is_heard_while_encoding_and_leaves_no_files() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::loaded(0);
    let request = EngineRequest { frames: 321, width: 64, height: 64, ..video() };
    engine.generate("one", directory.path(), request);
    loop {
        match engine.hear() {
            FromEngine::Progress { stage, .. } if stage == "encode" => break,
            FromEngine::Progress { .. } => {}
            other => panic!("no report but {other:?}"),
        }
    }
    assert_eq!(files_in(directory.path()), ["video.mp4"]);
    // The engine can't get to the end meanwhile: it would have to report before.
    engine.cancel("one");
    let (end, reports) = engine.hear_end();
    assert_eq!(end.unwrap_err().code, EngineErrorCode::Cancelled);
    assert!(reports.len() <= 1, "went on after the cancel: {reports:?}");
    assert_eq!(files_in(directory.path()), [""; 0]);
}

#[test]
fn an_orphaned_engine_ends_and_leaves_no_files() {
    let directory = tempfile::tempdir().unwrap();
    let mut engine = Engine::loaded(600_000);
    engine.generate("one", directory.path(), video());
    engine.hear();
    engine.hang_up();
    engine.end().unwrap();
    assert_eq!(files_in(directory.path()), [""; 0]);

    let mut engine = Engine::loaded(0);
    let request = EngineRequest { frames: 321, width: 64, height: 64, ..video() };
    engine.generate("one", directory.path(), request);
    while !matches!(engine.hear(), FromEngine::Progress { stage, .. } if stage == "encode") {}
    engine.hang_up();
    // It may have been on its way to the next report.
    while engine.messages.recv().is_ok() {}
    engine.end().unwrap();
    assert_eq!(files_in(directory.path()), [""; 0]);

    let mut engine = Engine::start();
    engine.hang_up();
    engine.end().unwrap();
}

#[test]
fn a_line_that_is_no_message_ends_the_engine_with_an_error() {
    let long = "x".repeat(MAX_LINE);
    for line in ["", "hello", "{\"type\":\"dance\"}", "{\"type\":\"cancel\"}", long.as_str()] {
        let engine = Engine::start();
        engine.say_line(line);
        assert_eq!(engine.end().unwrap_err().kind(), ErrorKind::InvalidData, "{line:.40}");
    }

    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::loaded(600_000);
    engine.generate("one", directory.path(), video());
    engine.hear();
    engine.say_line("hello");
    let message = engine.end().unwrap_err().to_string();
    assert!(message.contains("expected value"), "{message}");
    assert_eq!(files_in(directory.path()), [""; 0]);
}

#[test]
fn a_load_that_can_not_be_followed_says_why() {
    let engine = Engine::start();
    engine.say(&ToEngine::Load(load(PROTOCOL + 1, serde_json::Map::new())));
    let refused = |message: &str| error(None, EngineErrorCode::LoadFailed, message);
    assert_eq!(
        engine.hear_error(),
        refused("the worker speaks version 2 of the engine protocol, testcard speaks version 1")
    );
    engine.load(&json!({ "step_ms": 10, "stepms": 10 }));
    assert_eq!(engine.hear_error(), refused("there is no setting `stepms`; there is step_ms"));
    for value in [json!(-1), json!(600_001), json!(1.5), json!("10"), json!(null)] {
        engine.load(&json!({ "step_ms": value }));
        assert_eq!(
            engine.hear_error(),
            refused(&format!(
                "setting `step_ms` must be a whole number from 0 to 600000, not `{value}`"
            ))
        );
    }
    engine.load(&json!({ "step_ms": 600_000 }));
    assert!(matches!(engine.hear(), FromEngine::Ready { .. }));
    engine.load(&json!({}));
    assert_eq!(engine.hear_error(), refused("a model is loaded already"));
}

#[test]
fn nothing_is_generated_before_a_load() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::start();
    engine.generate("one", directory.path(), video());
    let refused = error(Some("one"), EngineErrorCode::Failed, "no model is loaded");
    assert_eq!(engine.hear_error(), refused);
}

#[test]
fn one_generation_runs_at_a_time() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let engine = Engine::loaded(600_000);
    engine.generate("one", first.path(), video());
    engine.hear();
    engine.generate("two", second.path(), video());
    let refused = engine.hear_error();
    assert_eq!((refused.id.as_deref(), refused.code), (Some("two"), EngineErrorCode::Failed));
    engine.load(&json!({}));
    assert_eq!(engine.hear_error().code, EngineErrorCode::LoadFailed);
    engine.cancel("one");
    assert_eq!(engine.hear_error().code, EngineErrorCode::Cancelled);
}

#[test]
fn a_request_beyond_the_limits_is_invalid() {
    let engine = Engine::loaded(0);
    let directory = tempfile::tempdir().unwrap();
    let refused = |request: EngineRequest| {
        engine.generate("one", directory.path(), request);
        let refused = engine.hear_error();
        assert_eq!(refused.id.as_deref(), Some("one"));
        assert_eq!(refused.code, EngineErrorCode::InvalidRequest);
        assert!(!refused.retryable);
        assert_eq!(files_in(directory.path()), [""; 0]);
        refused.message
    };
    for width in [0, 62, 1922, u32::MAX] {
        let message = refused(EngineRequest { width, ..video() });
        assert_eq!(message, format!("width is 64 to 1920, not {width}"));
        let message = refused(EngineRequest { height: width, ..video() });
        assert_eq!(message, format!("height is 64 to 1920, not {width}"));
    }
    assert_eq!(
        refused(EngineRequest { width: 65, height: 66, ..video() }),
        "width and height are even, not 65 and 66"
    );
    assert_eq!(
        refused(EngineRequest { width: 1920, height: 1090, ..video() }),
        "1920 by 1090 is more than 2088960 pixels"
    );
    for frames in [0, 322, 325] {
        let message = refused(EngineRequest { frames, ..video() });
        assert_eq!(message, format!("frames is 1 to 321, not {frames}"));
    }
    for frames in [2, 4, 48, 320] {
        let message = refused(EngineRequest { frames, ..video() });
        assert_eq!(message, format!("frames is 4n+1, not {frames}"));
    }
    for fps in [0, 61] {
        let message = refused(EngineRequest { fps, ..video() });
        assert_eq!(message, format!("fps is 1 to 60, not {fps}"));
    }
    for steps in [0, 101] {
        let message = refused(EngineRequest { steps, ..video() });
        assert_eq!(message, format!("steps is 1 to 100, not {steps}"));
    }
    assert_eq!(
        refused(EngineRequest { format: Format::Png, ..video() }),
        "frames of a still is 1, not 5"
    );
}

#[test]
fn a_directory_that_can_not_be_used_fails_the_generation_alone() {
    let engine = Engine::loaded(0);
    let directory = tempfile::tempdir().unwrap();
    let failed = |path: &std::path::Path| {
        engine.generate("one", path, still());
        let failed = engine.hear_error();
        assert_eq!((failed.code, failed.retryable), (EngineErrorCode::Failed, true));
        failed.message
    };
    let missing = directory.path().join("missing");
    let message = format!("output_dir is no absolute path of a directory: {}", missing.display());
    assert_eq!(failed(&missing), message);
    assert!(failed(std::path::Path::new("src")).contains("no absolute path"));

    std::fs::write(directory.path().join("image.png"), "another's").unwrap();
    assert_eq!(failed(directory.path()), "output_dir is not empty");
    assert_eq!(files_in(directory.path()), ["image.png"]);

    std::fs::remove_file(directory.path().join("image.png")).unwrap();
    engine.generate("one", directory.path(), still());
    assert!(engine.hear_end().0.is_ok());
}
