//! What goes right: each kind of server is asked in its own words, and its file arrives.

use super::*;

#[test]
fn each_video_server_is_asked_in_its_words_and_its_file_arrives() {
    let openai = json!({
        "prompt": request().prompt, "negative_prompt": "blurry", "size": "64x64", "num_frames": "5",
        "fps": "8", "num_inference_steps": "4", "seed": "7", "guidance_scale": "3.5",
    });
    let lightx2v = json!({
        "prompt": request().prompt, "negative_prompt": "blurry", "target_shape": [64, 64],
        "target_video_length": 5, "infer_steps": 4, "seed": 7,
    });
    for (adapter, guidance, expected) in [
        ("sglang", Some(3.5), &openai),
        ("vllm-omni", Some(3.5), &openai),
        ("lightx2v", None, &lightx2v),
    ] {
        let mut engine = Engine::loaded(adapter, Act::default(), json!({}));
        engine.generate("a", EngineRequest { guidance, ..request() });
        let (steps, end) = engine.hear_out("a");
        let FromEngine::Done(done) = end else { panic!("{adapter}: {end:?}\n{}", engine.log()) };
        let file = &done.files[0];
        assert_eq!((file.path.as_str(), file.media_type.as_str()), ("video.mp4", "video/mp4"));
        assert_eq!((file.width, file.height, file.frames, file.fps), (64, 64, 5, 8));
        assert!(!done.test_pattern);
        assert_eq!(fs::read(engine.file("a", "video.mp4")).unwrap(), video(), "{adapter}");

        let submits = engine.submits();
        assert_eq!(submits.len(), 1);
        let mut submit = submits[0].clone();
        submit.remove("task_id");
        assert_eq!(&Value::Object(submit), expected, "{adapter}");

        let generating: Vec<u32> = steps
            .iter()
            .filter(|(stage, ..)| stage == "denoise")
            .map(|&(_, step, _)| step)
            .collect();
        assert!(generating.is_sorted() && !generating.is_empty(), "{adapter}: {generating:?}");
        if adapter == "sglang" {
            assert!(generating.iter().any(|step| (1..=99).contains(step)), "{generating:?}");
        }
        // The record is removed where the server can.
        assert_eq!(engine.deleted(), usize::from(adapter != "lightx2v"), "{adapter}");
        engine.leave();
    }
}

#[test]
fn an_avi_of_sd_server_becomes_mp4() {
    let act = Act { result: Some(avi()), ..Act::default() };
    let mut engine = Engine::loaded("sd-server", act, json!({}));
    engine.generate("a", EngineRequest { guidance: Some(5.0), ..request() });
    let done = engine.done("a");
    let file = &done.files[0];
    let (width, height) = (file.width, file.height);
    assert!(width > 0 && height > 0);
    assert_eq!((file.frames, file.fps, file.media_type.as_str()), (3, 8, "video/mp4"));

    let submit = Value::Object(engine.submits()[0].clone());
    assert_eq!(submit["kind"], "vid_gen");
    assert_eq!(submit["output_format"], "avi");
    assert_eq!(submit["video_frames"], 5);
    assert_eq!(submit["sample_params"], json!({"sample_steps": 4, "guidance": {"txt_cfg": 5.0}}));
    assert_eq!(submit["high_noise_sample_params"], json!({"guidance": {"txt_cfg": 5.0}}));
    engine.leave();
}

#[test]
fn a_still_of_sd_server_arrives_as_it_is() {
    let act = Act { result: Some(png()), ..Act::default() };
    let mut engine = Engine::loaded("sd-server", act, json!({}));
    engine.generate("a", EngineRequest { format: Format::Png, frames: 1, ..request() });
    let done = engine.done("a");
    let file = &done.files[0];
    assert_eq!((file.path.as_str(), file.width, file.height, file.frames), ("image.png", 2, 3, 1));
    assert_eq!(fs::read(engine.file("a", "image.png")).unwrap(), png());
    let submit = Value::Object(engine.submits()[0].clone());
    assert_eq!(
        (&submit["kind"], &submit["embed_image_metadata"]),
        (&json!("img_gen"), &json!(false))
    );
    engine.leave();
}

#[test]
fn a_picture_goes_along_in_the_form_that_each_server_takes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("first.png");
    fs::write(&path, png()).unwrap();
    let image = Some(path.to_str().unwrap().to_owned());
    for (adapter, key, expected) in [
        ("sglang", "input_reference", json!(["image.png", "image/png", png().len()])),
        ("vllm-omni", "input_reference", json!(["image.png", "image/png", png().len()])),
        ("lightx2v", "image_path", json!(format!("data:image/png;base64,{PNG_BASE64}"))),
        ("sd-server", "init_image", json!(PNG_BASE64)),
    ] {
        let result = (adapter == "sd-server").then(avi);
        let mut engine = Engine::loaded(adapter, Act { result, ..Act::default() }, json!({}));
        engine.generate("a", EngineRequest { image: image.clone(), ..request() });
        engine.done("a");
        assert_eq!(engine.submits()[0][key], expected, "{adapter}");
        engine.leave();
    }
}

#[test]
fn what_a_server_cannot_do_is_refused_before_it_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("last.png");
    fs::write(&path, png()).unwrap();
    let image = path.to_str().unwrap();
    let with_last =
        EngineRequest { image: Some(image.into()), last_image: Some(image.into()), ..request() };
    let still = EngineRequest { format: Format::Png, frames: 1, ..request() };
    let guided = EngineRequest { guidance: Some(5.0), ..request() };
    let text = EngineRequest { image: Some("/dev/null".into()), ..request() };
    for (adapter, request, expected) in [
        ("sglang", with_last.clone(), "SGLang takes no last image"),
        ("vllm-omni", with_last.clone(), "vLLM-Omni takes no last image"),
        ("lightx2v", with_last, "LightX2V takes no last image"),
        ("sglang", still.clone(), "SGLang makes videos"),
        ("lightx2v", still, "LightX2V makes videos"),
        ("lightx2v", guided, "LightX2V takes no scale of guidance"),
        ("sglang", text, "`image` is neither PNG nor JPEG"),
    ] {
        let mut engine = Engine::loaded(adapter, Act::default(), json!({}));
        engine.generate("a", request);
        let error = engine.error("a");
        assert_eq!((error.code, error.retryable), (EngineErrorCode::InvalidRequest, false));
        assert!(error.message.contains(expected), "{error:?}");
        assert!(engine.submits().is_empty());
    }
}

#[test]
fn tasks_follow_each_other_at_one_server_whose_files_do_not_pile_up() {
    let mut engine = Engine::loaded("sglang", Act::default(), json!({}));
    for id in ["a", "b", "c"] {
        engine.generate(id, request());
        engine.done(id);
    }
    assert_eq!((engine.submits().len(), engine.pids().len(), engine.overlaps()), (3, 2, 0));
    // The stand-in writes a copy of each into its working directory, as SGLang does.
    let cwd = fs::read_link(format!("/proc/{}/cwd", engine.pids()[0])).unwrap();
    // The worker removes this, should the engine be killed.
    assert!(cwd.starts_with(engine.state.path().canonicalize().unwrap().join("scratch")));
    assert_eq!(fs::read_dir(cwd.join("outputs")).unwrap().count(), 0);
    engine.leave();
    assert!(!cwd.exists(), "the scratch directory goes with the engine");
}

#[test]
fn a_header_comes_from_the_environment() {
    let headers = json!({"headers": {"authorization": "RAYREEL_ENGINE_KEY"}});
    let mut engine = Engine::loaded("sglang", Act::faults("key"), headers);
    engine.generate("a", request());
    engine.done("a");
    engine.leave();

    let mut engine = Engine::loaded("sglang", Act::faults("key"), json!({}));
    engine.generate("a", request());
    let error = engine.error("a");
    assert!(error.message.contains("401") && error.message.contains("headers"), "{error:?}");
    assert!(!error.retryable);

    let mut engine = Engine::start("sglang");
    let headers = json!({"headers": {"authorization": "RAYREEL_ENGINE_NONE"}});
    engine.load(&engine.settings(Act::default(), headers));
    let FromEngine::Error(error) = engine.hear() else { panic!() };
    assert!(error.message.contains("has no RAYREEL_ENGINE_NONE"), "{error:?}");
}

#[test]
fn a_server_that_somebody_else_runs_is_used_and_left_alone() {
    let (mut engine, mut standin) = Engine::at_url("vllm-omni", Act::default(), json!({}));
    engine.generate("a", request());
    engine.done("a");
    engine.say(&ToEngine::Exit);
    until(|| engine.process.try_wait().unwrap().is_some());
    assert!(standin.process.try_wait().unwrap().is_none(), "it still runs");
}

const PNG_BASE64: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAADCAIAAAA2iEnWAAAAC0lEQVR4nGNgwAIAABUAAapll8QAAAAASUVORK5CYII=";

/// A PNG of 2 by 3 black pixels.
fn png() -> &'static [u8] {
    use base64::Engine as _;
    static PNG: OnceLock<Vec<u8>> = OnceLock::new();
    PNG.get_or_init(|| base64::prelude::BASE64_STANDARD.decode(PNG_BASE64).unwrap())
}

/// An AVI of three JPEG frames, put together as sd-server does.
fn avi() -> &'static [u8] {
    static AVI: OnceLock<Vec<u8>> = OnceLock::new();
    AVI.get_or_init(|| {
        let chunk = |name: &[u8], data: &[u8]| {
            let mut chunk = [name, &(data.len() as u32).to_le_bytes(), data].concat();
            chunk.resize(chunk.len().next_multiple_of(2), 0);
            chunk
        };
        let frame = chunk(b"00dc", include_bytes!("../../../../testcard/tests/it/blue.jpg"));
        let movi = chunk(b"LIST", &[b"movi".to_vec(), frame.repeat(3)].concat());
        let header = chunk(b"LIST", &[b"hdrl".to_vec(), chunk(b"avih", &[0; 56])].concat());
        let index = chunk(b"idx1", &[0; 48]);
        chunk(b"RIFF", &[b"AVI ".to_vec(), header, movi, index].concat())
    })
}

#[test]
fn a_picture_that_is_cut_off_or_far_too_large_is_none() {
    let mut huge = png().to_vec();
    huge[16..24].copy_from_slice(b"\0\0\xea\x60\0\0\xea\x60");
    let cut = png()[..png().len() - 20].to_vec();
    for (result, expected) in [
        (huge, "made a picture of 60000x60000 pixels, where 64x64 was asked for"),
        (cut, "wrote a picture that is cut off"),
    ] {
        let act = Act { result: Some(result.leak()), ..Act::default() };
        let mut engine = Engine::loaded("sd-server", act, json!({}));
        engine.generate("a", EngineRequest { format: Format::Png, frames: 1, ..request() });
        let error = engine.error("a");
        assert!(error.message.contains(expected), "{error:?}");
        engine.leave();
    }
}
