use super::*;
use proptest::prelude::*;

fn model() -> ModelSpec {
    ModelSpec {
        name: "testcard".parse().expect("a name"),
        pool: "local".parse().expect("a name"),
        images: Images::First,
        image_required: false,
        loras: ["anime", "film-grain"].map(|name| name.parse().expect("a name")).to_vec(),
        limits: Limits::default(),
        defaults: Defaults::default(),
    }
}

fn resolve(json: serde_json::Value) -> Result<Request, Invalid> {
    let body: SubmitBody = serde_json::from_value(json).expect("a well-formed body");
    Request::resolve(&body, &model(), 7)
}

fn refused(json: serde_json::Value) -> (Cow<'static, str>, String) {
    let error = resolve(json).expect_err("refused");
    (error.param, error.message)
}

#[test]
fn a_prompt_alone_gets_the_models_defaults() {
    let request = resolve(serde_json::json!({"prompt": "a red fox"})).expect("valid");
    assert_eq!(request.size.to_string(), "832x480");
    assert_eq!((request.frames, request.fps, request.steps, request.seed), (49, 16, 20, 7));
}

#[test]
fn sizes_are_written_with_x_or_star() {
    for text in ["640x360", "640*360"] {
        let request = resolve(serde_json::json!({"prompt": "p", "size": text})).expect("valid");
        assert_eq!(request.size, Size { width: 640, height: 360 });
    }
    for text in [
        "640",
        "640X360",
        "+640x360",
        "640x-360",
        "x",
        "62x64",
        "65x64",
        "1922x64",
        "1920x1090",
        "99999999999x64",
        "64x64x64",
        " 64x64",
    ] {
        assert_eq!(refused(serde_json::json!({"prompt": "p", "size": text})).0, "size", "{text}");
    }
    assert!(resolve(serde_json::json!({"prompt": "p", "size": "1920x1088"})).is_ok());
    assert!(resolve(serde_json::json!({"prompt": "p", "size": "64x64"})).is_ok());
}

#[test]
fn frames_are_4n_plus_1() {
    for frames in [1, 5, 81, 321] {
        let json = serde_json::json!({"prompt": "p", "frames": frames});
        assert_eq!(resolve(json).expect("valid").frames, frames);
    }
    for frames in [0, 2, 4, 80, 325] {
        assert_eq!(refused(serde_json::json!({"prompt": "p", "frames": frames})).0, "frames");
    }
}

#[test]
fn seconds_become_the_nearest_4n_plus_1_frames() {
    for (seconds, frames) in
        [(5.0, 81), (3.0, 49), (0.01, 1), (0.2, 5), (20.0, 321), (20.0625, 321)]
    {
        let json = serde_json::json!({"prompt": "p", "seconds": seconds});
        assert_eq!(resolve(json).expect("valid").frames, frames, "{seconds} s");
    }
    let (param, message) = refused(serde_json::json!({"prompt": "p", "seconds": 30}));
    assert_eq!(param, "seconds");
    assert!(message.contains("at most 20.07 at 16"), "names the maximum: {message}");
    assert_eq!(refused(serde_json::json!({"prompt": "p", "seconds": 0})).0, "seconds");
    assert_eq!(refused(serde_json::json!({"prompt": "p", "seconds": 1, "frames": 5})).0, "seconds");
}

#[test]
fn the_longest_seconds_are_those_that_the_message_names() {
    for fps in 1..=60 {
        let with = |seconds: f64| {
            resolve(serde_json::json!({"prompt": "p", "fps": fps, "seconds": seconds}))
        };
        let message = with(1e6).expect_err("too long").message;
        let most: f64 = message
            .split_once("at most ")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
            .expect("a number");
        assert_eq!(with(most).expect("what is named is allowed").frames, 321, "{most}");
        assert_eq!(with(321.0 / f64::from(fps)).expect("so is the exact length").frames, 321);
        with(most.next_up()).expect_err("nothing above it");
    }
    for never in [0.0, -1.0, -f64::MIN_POSITIVE] {
        let refused = resolve(serde_json::json!({"prompt": "p", "seconds": never}));
        assert_eq!(refused.expect_err("refused").param, "seconds");
    }
}

#[test]
fn a_size_may_be_given_by_its_sides() {
    let request = resolve(serde_json::json!({"prompt": "p", "width": 640, "height": 360}));
    assert_eq!(request.expect("valid").size, Size { width: 640, height: 360 });
    for (json, param, told) in [
        (
            serde_json::json!({"width": 641, "height": 360}),
            "width",
            "multiple of 2 from 64 to 1920",
        ),
        (serde_json::json!({"width": 640, "height": 1922}), "height", "from 64 to 1920, not 1922"),
        (serde_json::json!({"width": 0, "height": 360}), "width", "not 0"),
        (serde_json::json!({"width": 1920, "height": 1090}), "width", "2092800 pixels"),
        (serde_json::json!({"width": 640}), "height", "`width` and `height` belong together"),
        (serde_json::json!({"height": 360}), "width", "`width` and `height` belong together"),
        (
            serde_json::json!({"size": "640x360", "width": 640, "height": 360}),
            "width",
            "give `size`, or `width` and `height`",
        ),
        (serde_json::json!({"size": "640x360", "height": 360}), "height", "`size`"),
    ] {
        let mut body = json.clone();
        body["prompt"] = "p".into();
        let (found, message) = refused(body);
        assert!(found == param && message.contains(told), "{json}: {found}: {message}");
    }
}

#[test]
fn a_duration_is_the_same_as_seconds() {
    let request = resolve(serde_json::json!({"prompt": "p", "duration": 3}));
    assert_eq!(request.expect("valid").frames, 49);
    for (json, told) in [
        (serde_json::json!({"duration": 3, "seconds": 3}), "`duration` is the same as `seconds`"),
        (serde_json::json!({"duration": 3, "frames": 49}), "`frames` or `duration`"),
        (serde_json::json!({"duration": 3, "format": "png"}), "no `duration`"),
        (serde_json::json!({"duration": 30}), "`duration` must be a number above 0 and at most"),
    ] {
        let mut body = json.clone();
        body["prompt"] = "p".into();
        let (found, message) = refused(body);
        assert!(found == "duration" && message.contains(told), "{json}: {found}: {message}");
    }
}

#[test]
fn several_requests_differ_by_their_seeds_only() {
    let seeds = |json: serde_json::Value, drawn| {
        let body: SubmitBody = serde_json::from_value(json).expect("well-formed");
        let all = Request::resolve_all(&body, &model(), drawn)?;
        for request in &all {
            assert_eq!(
                Request { seed: 0, ..request.clone() },
                Request { seed: 0, ..all[0].clone() }
            );
        }
        Ok::<_, Invalid>(all.iter().map(|request| request.seed).collect::<Vec<_>>())
    };
    assert_eq!(seeds(serde_json::json!({"prompt": "p"}), 7), Ok(vec![7]));
    assert_eq!(seeds(serde_json::json!({"prompt": "p", "n": 3, "seed": 5}), 7), Ok(vec![5, 6, 7]));
    let last = seeds(serde_json::json!({"prompt": "p", "n": 8}), u64::MAX).expect("valid");
    assert_eq!(last.last(), Some(&MAX_SEED), "drawn so that all of them fit");
    for n in [0, 9] {
        let refused = seeds(serde_json::json!({"prompt": "p", "n": n}), 7).expect_err("refused");
        assert_eq!(refused.param, "n");
        assert!(refused.message.contains("from 1 to 8"), "{}", refused.message);
    }
    let json = serde_json::json!({"prompt": "p", "n": 2, "seed": MAX_SEED});
    let refused = seeds(json, 7).expect_err("refused");
    assert_eq!(refused.param, "seed");
    assert!(refused.message.contains(&(MAX_SEED - 1).to_string()), "{}", refused.message);
}

#[test]
fn a_still_has_one_frame() {
    for format in Format::ALL.into_iter().filter(|format| format.is_still()) {
        let name = format.name();
        let request = resolve(serde_json::json!({"prompt": "p", "format": name})).expect("valid");
        assert_eq!((request.frames, request.format), (1, format));
        let asked = serde_json::json!({"prompt": "p", "format": name, "frames": 5});
        let (param, message) = refused(asked);
        let told = format!("a still (`format` {name}) has exactly 1 frame");
        assert_eq!((&*param, message), ("frames", told));
    }
    assert!(!Format::Mp4.is_still());
}

#[test]
fn both_guidance_scales_are_bounded_and_have_defaults() {
    let asked = serde_json::json!({"prompt": "p", "guidance": 4, "guidance_2": 3});
    let request = resolve(asked).expect("valid");
    assert_eq!((request.guidance, request.guidance_2), (Some(4.0), Some(3.0)));
    let told = request.for_engine(None, None);
    assert_eq!((told.guidance, told.guidance_2), (Some(4.0), Some(3.0)));
    assert_eq!(resolve(serde_json::json!({"prompt": "p"})).expect("valid").guidance_2, None);

    let mut model = model();
    model.defaults.guidance_2 = Some(3.5);
    let body = |json| serde_json::from_value::<SubmitBody>(json).expect("well-formed");
    let resolve = |json| Request::resolve(&body(json), &model, 7).map(|request| request.guidance_2);
    assert_eq!(resolve(serde_json::json!({"prompt": "p"})), Ok(Some(3.5)));
    assert_eq!(resolve(serde_json::json!({"prompt": "p", "guidance_2": 0})), Ok(Some(0.0)));
    let refused = resolve(serde_json::json!({"prompt": "p", "guidance_2": 101}));
    let refused = refused.expect_err("refused");
    assert_eq!(refused.message, "`guidance_2` must be a number from 0 to 100, not 101");
}

#[test]
fn loras_are_those_of_the_model_each_once_and_within_bounds() {
    let with = |loras| serde_json::json!({"prompt": "p", "loras": loras});
    let asked = serde_json::json!([{"name": "film-grain", "scale": -1.5}, {"name": "anime"}]);
    let request = resolve(with(asked)).expect("valid");
    let meant = [("film-grain", -1.5), ("anime", 1.0)];
    let meant = meant.map(|(name, scale)| Lora { name: name.into(), scale });
    assert_eq!(request.loras, meant, "in the order of the request, 1 where no scale is given");
    assert_eq!(request.for_engine(None, None).loras, meant);

    let anime = serde_json::json!({"name": "anime"});
    for (loras, param, told) in [
        (
            serde_json::json!([anime, {"name": "Anime"}]),
            "loras[1].name",
            "the model `testcard` has no LoRA `Anime`; there are: anime, film-grain",
        ),
        (serde_json::json!([{"name": "../x"}]), "loras[0].name", "has no LoRA `../x`"),
        (serde_json::json!([anime, anime]), "loras[1].name", "`anime` stands twice"),
        (
            serde_json::json!([{"name": "anime", "scale": 4.5}]),
            "loras[0].scale",
            "`loras[0].scale` must be a number from -4 to 4, not 4.5",
        ),
        (serde_json::json!([{"name": "anime", "scale": -5}]), "loras[0].scale", "not -5"),
        (serde_json::json!([anime, anime, anime, anime, anime]), "loras", "at most 4"),
    ] {
        let (found, message) = refused(with(loras.clone()));
        assert!(found == param && message.contains(told), "{loras}: {found}: {message}");
    }
    let model = ModelSpec { loras: Vec::new(), ..model() };
    let body: SubmitBody = serde_json::from_value(with(serde_json::json!([anime]))).expect("body");
    let refused = Request::resolve(&body, &model, 7).expect_err("refused");
    assert!(refused.message.ends_with("has no LoRA `anime`; it has none"), "{}", refused.message);
}

/// Tasks outlive the version that stored them.
#[test]
fn a_request_that_an_older_version_stored_is_read() {
    let stored = serde_json::json!({
        "prompt": "p", "size": "64x64", "frames": 1, "fps": 16, "steps": 1, "seed": 1,
        "format": "png",
    });
    let request: Request = serde_json::from_value(stored.clone()).expect("a request");
    assert_eq!((request.guidance_2, request.loras.as_slice()), (None, &[][..]));
    // And an older version reads what does not use what it does not know.
    assert_eq!(serde_json::to_value(&request).expect("JSON"), stored);
}

#[test]
fn every_bound_is_named() {
    for (field, value) in [
        ("steps", serde_json::json!(0)),
        ("steps", serde_json::json!(101)),
        ("fps", serde_json::json!(0)),
        ("fps", serde_json::json!(61)),
        ("guidance", serde_json::json!(-1)),
        ("seed", serde_json::json!(MAX_SEED + 1)),
        ("negative_prompt", serde_json::json!("x".repeat(MAX_PROMPT + 1))),
        ("metadata", serde_json::json!({"": "x"})),
    ] {
        let mut body = serde_json::json!({"prompt": "p"});
        body[field] = value.clone();
        assert_eq!(refused(body).0, field, "{value}");
    }
    assert_eq!(refused(serde_json::json!({})).0, "prompt");
    assert_eq!(refused(serde_json::json!({"prompt": " \n"})).0, "prompt");
    assert_eq!(refused(serde_json::json!({"prompt": "a\u{0}b"})).0, "prompt");
    assert_eq!(refused(serde_json::json!({"prompt": "字".repeat(MAX_PROMPT + 1)})).0, "prompt");
}

proptest! {
    #[test]
    fn any_allowed_seconds_give_allowed_frames(seconds in 0.001f64..20.0, fps in 1u32..=60) {
        let json = serde_json::json!({"prompt": "p", "seconds": seconds, "fps": fps});
        match resolve(json) {
            Ok(request) => {
                prop_assert_eq!(request.frames % 4, 1);
                prop_assert!(request.frames <= 321);
                let off = f64::from(request.frames) - seconds * f64::from(fps);
                prop_assert!(off.abs() <= 2.0 + 1e-9 || request.frames == 1);
            }
            Err(error) => prop_assert_eq!(error.param, "seconds"),
        }
    }
}

#[test]
fn a_model_says_which_images_it_takes() {
    let check = |images, frames: u32, image, last_image| {
        let request = resolve(serde_json::json!({"prompt": "p", "frames": frames})).expect("valid");
        let model = ModelSpec { images, ..model() };
        let checked = model.check_images(&request, image, last_image);
        checked.map_err(|invalid| (invalid.code, invalid.param.into_owned()))
    };
    let (all, wrong) = ([Images::None, Images::First, Images::FirstLast], Code::InvalidValue);
    for images in all {
        assert_eq!(check(images, 5, false, false), Ok(()));
        let takes = images != Images::None;
        assert_eq!(
            check(images, 5, true, false),
            if takes { Ok(()) } else { Err((wrong, "image".into())) }
        );
    }
    assert_eq!(check(Images::FirstLast, 5, true, true), Ok(()));
    assert_eq!(check(Images::FirstLast, 1, true, true), Err((wrong, "last_image".into())));
    let alone = check(Images::FirstLast, 5, false, true);
    assert_eq!(alone, Err((Code::MissingField, "image".into())));
    assert_eq!(check(Images::First, 5, true, true), Err((wrong, "last_image".into())));
    assert_eq!(check(Images::None, 5, false, true), Err((wrong, "last_image".into())));
}

#[test]
fn a_model_that_makes_videos_of_images_is_not_asked_without_one() {
    let request = resolve(serde_json::json!({"prompt": "p"})).expect("valid");
    let model = ModelSpec { image_required: true, ..model() };
    assert!(model.check_images(&request, true, false).is_ok());
    let refused = model.check_images(&request, false, false).expect_err("refused");
    assert_eq!((refused.code, &*refused.param), (Code::MissingField, "image"));
    assert!(refused.message.contains("makes videos of images"), "{}", refused.message);
}

#[test]
fn a_model_of_one_frame_makes_stills_unasked() {
    let mut model = model();
    model.limits.max_frames = 1;
    model.defaults.frames = 1;
    let asked = |json| {
        let body: SubmitBody = serde_json::from_value(json).expect("a well-formed body");
        Request::resolve(&body, &model, 7).expect("valid")
    };
    let still = asked(serde_json::json!({"prompt": "p"}));
    assert_eq!((still.format, still.frames), (Format::Png, 1));
    let jpeg = asked(serde_json::json!({"prompt": "p", "format": "jpeg"}));
    assert_eq!(jpeg.format, Format::Jpeg);
}

#[test]
fn an_engine_is_tested_with_what_the_model_makes_by_default_but_less_of_it() {
    let test = model().self_test();
    assert_eq!((test.width, test.height, test.fps), (832, 480, 16));
    assert_eq!((test.frames, test.steps, test.format), (5, 2, Format::Mp4));
    let mut stills = model();
    stills.limits.max_frames = 1;
    stills.defaults = Defaults { frames: 1, steps: 1, guidance: Some(3.5), ..stills.defaults };
    let test = stills.self_test();
    assert_eq!((test.frames, test.steps, test.format), (1, 1, Format::Png));
    assert_eq!(test.guidance, Some(3.5));
}
