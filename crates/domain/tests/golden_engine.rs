//! Each message of the engine protocol has a file that engines in every language test against.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayreel_domain::wire::engine::{
    Done, EngineError, EngineErrorCode, EngineRequest, Format, FromEngine, Generate, Load,
    LoraFiles, Role, ToEngine,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Says for each variant of an enum which files hold it: a function that gives a value's files,
/// which doesn't compile while a variant is missing, and the list of all files.
macro_rules! golden_files {
    ($all:ident, $of:ident($message:ty): $($variant:pat => [$($file:literal),+],)+) => {
        const $all: &[&str] = &[$($($file),+),+];

        fn $of(message: &$message) -> &'static [&'static str] {
            match message {
                $($variant => &[$($file),+],)+
            }
        }
    };
}

golden_files! { TO_ENGINE, files_to(ToEngine):
    ToEngine::Load(_) => ["load", "load-loras"],
    ToEngine::Generate(_) => ["generate", "generate_last_image", "generate-loras"],
    ToEngine::Cancel { .. } => ["cancel"],
    ToEngine::Exit => ["exit"],
}

golden_files! { FROM_ENGINE, files_from(FromEngine):
    FromEngine::Ready { .. } => ["ready"],
    FromEngine::Progress { .. } => ["progress"],
    FromEngine::Done(_) => ["done"],
    FromEngine::Error(_) => ["error", "error_load"],
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/engine")
}

fn read<T: DeserializeOwned>(file: &str) -> (T, Value) {
    let text = fs::read_to_string(directory().join(file).with_extension("json"))
        .unwrap_or_else(|error| panic!("{file}.json: {error}"));
    let message = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
    (message, serde_json::from_str(&text).expect("it was JSON just now"))
}

/// Every file is the variant that it is named for, and writing the message gives the file again.
fn check<T: DeserializeOwned + Serialize>(
    all: &[&str],
    files_of: fn(&T) -> &'static [&'static str],
) {
    for file in all {
        let (message, value) = read::<T>(file);
        assert!(files_of(&message).contains(file), "{file} holds another message");
        assert_eq!(serde_json::to_value(&message).expect("messages are JSON"), value, "{file}");
    }
}

#[test]
fn every_message_to_an_engine_is_as_in_its_file() {
    check::<ToEngine>(TO_ENGINE, files_to);
}

#[test]
fn every_message_from_an_engine_is_as_in_its_file() {
    check::<FromEngine>(FROM_ENGINE, files_from);
}

#[test]
fn no_file_is_left_over() {
    let found: BTreeSet<String> = fs::read_dir(directory())
        .expect("the golden files lie beside the sources")
        .map(|entry| entry.expect("the directory can be listed").file_name())
        .map(|name| name.into_string().expect("names are ASCII"))
        .collect();
    let named = TO_ENGINE.iter().chain(FROM_ENGINE).map(|file| format!("{file}.json")).collect();
    assert_eq!(found, named);
}

/// A file that left out an optional field would not show how it is written. The patterns name all
/// fields, so that a new one has to be thought of here.
#[test]
fn optional_fields_are_shown() {
    let (ToEngine::Load(load), _) = read("load") else { panic!("load") };
    let Load { protocol: _, model: _, checkpoint, settings, loras } = load;
    assert!(checkpoint.is_some() && !settings.is_empty());
    // Engines that were written before it have never seen it, here and below.
    assert!(loras.is_empty());
    let (ToEngine::Load(load), _) = read("load-loras") else { panic!("load-loras") };
    let files: Vec<&LoraFiles> = load.loras.values().collect();
    assert!(matches!(files[..], [LoraFiles::Experts { .. }, LoraFiles::Whole { .. }]));

    let (ToEngine::Generate(generate), _) = read("generate") else { panic!("generate") };
    let Generate { id: _, output_dir: _, request } = generate;
    #[rustfmt::skip]
    let EngineRequest {
        prompt: _, negative_prompt, width: _, height: _, frames: _, fps: _, steps: _, guidance,
        guidance_2, seed: _, format: _, image, last_image, loras,
    } = request;
    assert!(!negative_prompt.is_empty() && guidance.is_some() && image.is_some());
    assert!(last_image.is_none() && guidance_2.is_none() && loras.is_empty());
    let (ToEngine::Generate(generate), _) = read("generate_last_image") else { panic!("generate") };
    assert!(generate.request.image.is_some() && generate.request.last_image.is_some());
    let (ToEngine::Generate(generate), _) = read("generate-loras") else {
        panic!("generate-loras")
    };
    assert!(generate.request.guidance_2.is_some() && generate.request.loras.len() == 2);

    let (FromEngine::Done(done), _) = read("done") else { panic!("done") };
    let Done { id: _, files, metrics, test_pattern } = done;
    assert!(!files.is_empty() && !metrics.is_empty() && test_pattern);

    let (FromEngine::Error(error), _) = read("error") else { panic!("error") };
    let EngineError { id, code: _, message: _, retryable: _ } = error;
    assert!(id.is_some());
    let (FromEngine::Error(error), _) = read("error_load") else { panic!("error_load") };
    assert!(error.id.is_none());
}

/// The words that stand for a choice within a message; a variant without one doesn't compile.
#[test]
fn choices_have_their_names_on_the_wire() {
    macro_rules! assert_names {
        ($choice:ident { $($variant:ident: $name:literal),+ $(,)? }) => {
            for variant in [$($choice::$variant),+] {
                let name = match variant {
                    $($choice::$variant => $name),+
                };
                assert_eq!(json!(variant), json!(name));
            }
        };
    }
    assert_names!(Format { Mp4: "mp4", Png: "png", Jpeg: "jpeg", Webp: "webp" });
    assert_names!(Role { Video: "video", Image: "image", Thumbnail: "thumbnail" });
    assert_names!(EngineErrorCode {
        Cancelled: "cancelled",
        OutOfMemory: "out_of_memory",
        InvalidRequest: "invalid_request",
        LoadFailed: "load_failed",
        Failed: "failed",
    });
}

/// A message with a field that nobody knows is refused: both sides speak the same version.
#[test]
fn unknown_fields_are_refused() {
    for file in TO_ENGINE.iter().chain(FROM_ENGINE).filter(|file| **file != "exit") {
        let (_, mut value) = read::<Value>(file);
        value["surprise"] = json!(1);
        let to = serde_json::from_value::<ToEngine>(value.clone());
        let from = serde_json::from_value::<FromEngine>(value);
        assert!(to.is_err() && from.is_err(), "{file}");
    }
}
