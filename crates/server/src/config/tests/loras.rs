//! The LoRAs of a model.

use rayreel_domain::wire::engine::LoraFiles;

use super::*;

const LORAS: &str = "[models.testcard.loras]\n";

fn setup(settings: &Settings) -> Vec<(String, LoraFiles)> {
    let setup = settings.model_setup(&model("testcard")).expect("a model");
    setup.loras.into_iter().map(|(name, files)| (name.to_string(), files)).collect()
}

fn whole(path: &str) -> LoraFiles {
    LoraFiles::Whole { path: path.to_owned() }
}

#[test]
fn a_lora_is_a_file_or_one_for_each_expert() {
    let text =
        "anime = \"/l/a.safetensors\"\n\"studio/film\" = { high = \"/l/h\", low = \"/l/l\" }";
    let settings = load_file(&format!("{LORAS}{text}"));
    let experts = LoraFiles::Experts { high: "/l/h".to_owned(), low: "/l/l".to_owned() };
    let both = [("anime", whole("/l/a.safetensors")), ("studio/film", experts)];
    assert_eq!(setup(&settings), both.map(|(name, files)| (name.to_owned(), files)));
    let spec = settings.model_spec(&model("testcard")).expect("a model");
    assert_eq!(
        spec.loras.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["anime", "studio/film"]
    );

    let variable = with_variables(&[("RAYREEL_MODELS__TESTCARD__LORAS__ANIME", "/l/a")]);
    let settings = Settings::load(&variable).expect("right");
    assert_eq!(setup(&settings), [("anime".to_owned(), whole("/l/a"))]);
    assert_eq!(setup(&load_file("")), [], "and no model has any by itself");
}

#[test]
fn what_is_wrong_with_a_lora_is_told_with_its_place() {
    for (text, told) in [
        ("a = \"a.safetensors\"", "models.testcard.loras.a: must be the absolute path of a file"),
        ("a = \"\"", "models.testcard.loras.a: must be the absolute path of a file"),
        (
            "a = { high = \"/h\", low = \"l\" }",
            "models.testcard.loras.a.low: must be the absolute path of a file",
        ),
        ("a = { high = \"/h\" }", "models.testcard.loras.a: `low` is missing"),
        (
            "a = { high = \"/h\", lo = \"/l\" }",
            "there is no setting `models.testcard.loras.a.lo`; did you mean `models.testcard.loras.a.low`?",
        ),
        ("a = 1", "models.testcard.loras.a: must be the path of a file, or a table of two"),
        (
            "a = { high = 1, low = \"/l\" }",
            "models.testcard.loras.a.high: must be a text in quotes",
        ),
        ("\"a b\" = \"/a\"", "the name of a LoRA is 1 to 64 letters, digits"),
    ] {
        let error = file_error(&format!("{LORAS}{text}"));
        assert!(error.starts_with("rayreel.toml, line 2: ") && error.contains(told), "{error}");
    }
    let many = |n| (0..n).map(|n| format!("l{n} = \"/l\"\n")).collect::<String>();
    assert_eq!(setup(&load_file(&format!("{LORAS}{}", many(64)))).len(), 64);
    let error = file_error(&format!("{LORAS}{}", many(65)));
    assert!(error.contains("models.testcard.loras: 65 LoRAs are too many"), "{error}");
}

#[test]
fn a_default_for_the_second_expert_has_the_bounds_of_a_request() {
    let with = |scale: &str| format!("[models.testcard.defaults]\nguidance_2 = {scale}");
    let settings = load_file(&with("3.5"));
    assert_eq!(settings.models[&model("testcard")].defaults.guidance_2, Some(3.5));
    let error = file_error(&with("101"));
    let told = "rayreel.toml, line 2: models.testcard.defaults.guidance_2: `guidance_2` must be a \
                number from 0 to 100, not 101";
    assert_eq!(error, told);
}
