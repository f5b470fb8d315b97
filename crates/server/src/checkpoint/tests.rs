use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

/// A tiny checkpoint of Wan2.2's t2v-A14B: real in every way but its size.
struct Model {
    directory: tempfile::TempDir,
}

/// A safetensors file of two tensors.
fn safetensors() -> Vec<u8> {
    with_header(
        &json!({
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        })
        .to_string(),
        32,
    )
}

fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(vec![0; data]);
    file
}

impl Model {
    fn new() -> Self {
        let model = Self { directory: tempfile::tempdir().expect("a directory") };
        model.json("model_index.json", &index("WanPipeline"));
        model.json("scheduler/scheduler_config.json", &json!({}));
        model.json("tokenizer/tokenizer_config.json", &json!({}));
        model.json("tokenizer/tokenizer.json", &json!({}));
        for name in ["transformer", "transformer_2", "vae"] {
            model.json(&format!("{name}/config.json"), &json!({}));
            model.write(&format!("{name}/diffusion_pytorch_model.safetensors"), &safetensors());
        }
        model.json("text_encoder/config.json", &json!({}));
        model.json(
            "text_encoder/model.safetensors.index.json",
            &json!({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}),
        );
        model.write("text_encoder/model-1-of-2.safetensors", &safetensors());
        model.write("text_encoder/model-2-of-2.safetensors", &safetensors());
        model
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("in a directory")).expect("made");
        fs::write(path, bytes).expect("written");
    }

    fn json(&self, name: &str, value: &Value) {
        self.write(name, value.to_string().as_bytes());
    }

    fn remove(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("gone");
    }

    fn link(&self, name: &str, to: impl AsRef<Path>) {
        if self.path(name).exists() {
            self.remove(name);
        }
        symlink(to, self.path(name)).expect("made");
    }

    fn inspect(&self) -> Result<Checkpoint, Vec<Fault>> {
        inspect(self.directory.path(), Some("wan"))
    }

    /// Its only fault, with paths seen from it.
    fn fault(&self) -> String {
        let faults = self.inspect().expect_err("a fault");
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].to_string().replace(&format!("{}/", self.directory.path().display()), "")
    }
}

fn index(class: &str) -> Value {
    json!({
        "_class_name": class,
        "_diffusers_version": "0.42.1",
        "boundary_ratio": 0.875,
        "expand_timesteps": false,
        "image_encoder": [null, null],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    })
}

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

#[test]
fn a_checkpoint_that_is_whole_is_weighed() {
    let checkpoint = Model::new().inspect().expect("no fault");
    assert_eq!(checkpoint.kind, Kind::T2vA14b);
    let file = safetensors().len() as u64;
    // Five files; each has ten numbers.
    assert_eq!(checkpoint.bytes(), 5 * file);
    let names: Vec<&str> = checkpoint.models.iter().map(|model| &*model.name).collect();
    assert_eq!(names, ["text_encoder", "transformer", "transformer_2", "vae"]);
    // Twenty numbers of the text encoder, ten of each transformer, ten wide ones of the VAE.
    assert_eq!(checkpoint.on_gpu(), (40 + 20 + 20 + 40, 40));
}

#[test]
fn what_a_checkpoint_is_follows_from_its_index() {
    let model = Model::new();
    let kind = |changes: &[(&str, Value)], class: &str| {
        let mut index = index(class);
        for (key, value) in changes {
            index[*key] = value.clone();
        }
        model.json("model_index.json", &index);
        inspect(model.directory.path(), None).expect("no fault").kind
    };
    let none = || json!([null, null]);
    assert_eq!(kind(&[], "WanPipeline"), Kind::T2vA14b);
    assert_eq!(kind(&[], "WanImageToVideoPipeline"), Kind::I2vA14b);
    let single = [("transformer_2", none()), ("boundary_ratio", Value::Null)];
    assert_eq!(kind(&single, "WanPipeline"), Kind::WanT2v);
    assert_eq!(kind(&single, "WanImageToVideoPipeline"), Kind::WanI2v);
    let expanding = [("transformer_2", none()), ("expand_timesteps", json!(true))];
    assert_eq!(kind(&expanding, "WanPipeline"), Kind::Ti2v5b);
    assert_eq!(kind(&[], "StableDiffusionXLPipeline"), Kind::Still);
    assert_eq!(Kind::Still.engine(), "stable-diffusion");
    assert_eq!(Kind::Ti2v5b.task(), Some("ti2v-5B"));
}

#[test]
fn stills_are_as_large_as_those_of_the_training() {
    let model = Model::new();
    assert_eq!(model.inspect().expect("no fault").side, None);
    model.json("transformer/config.json", &json!({"sample_size": 64}));
    assert_eq!(model.inspect().expect("no fault").side, Some(512));
}

#[test]
fn a_directory_that_is_no_checkpoint_is_told_as_such() {
    let model = Model::new();
    model.remove("model_index.json");
    let text = model.inspect().expect_err("a fault")[0].to_string();
    assert!(text.contains("has no model_index.json; a checkpoint is a directory in diffusers'"));

    let missing = model.path("missing");
    let text = inspect(&missing, None).expect_err("a fault")[0].to_string();
    assert!(text.ends_with("does not exist; put the checkpoint there, or correct the path"));
    let file = model.path(TRANSFORMER);
    let text = inspect(&file, None).expect_err("a fault")[0].to_string();
    assert!(text.ends_with("is no directory; name the directory of the checkpoint"), "{text}");
}

#[test]
fn a_pipeline_that_the_engine_does_not_run_is_refused() {
    let model = Model::new();
    model.json("model_index.json", &index("WanVACEPipeline"));
    assert_eq!(
        model.fault(),
        "model_index.json is of a WanVACEPipeline; the engine `wan` runs WanPipeline and \
         WanImageToVideoPipeline"
    );
    let detected = inspect(model.directory.path(), None).expect_err("a fault");
    assert_eq!(detected.len(), 1);
    model.json("model_index.json", &index("WanPipeline"));
    let still = inspect(model.directory.path(), Some("stable-diffusion")).expect_err("a fault");
    assert!(still[0].to_string().ends_with("for this one it is `wan`"), "{}", still[0]);
}

#[test]
fn an_index_that_says_too_little_is_refused() {
    for (key, value, says) in [
        ("_class_name", Value::Null, "names no pipeline: it has no `_class_name`"),
        ("boundary_ratio", Value::Null, "no `boundary_ratio` to say where the second begins"),
        ("vae", json!([null, null]), "names no `vae`"),
        ("../vae", json!(["diffusers", "X"]), "names `../vae`, which is no directory of it"),
    ] {
        let model = Model::new();
        let mut index = index("WanPipeline");
        index[key] = value;
        model.json("model_index.json", &index);
        let fault = model.fault();
        assert!(fault.contains(says), "{fault}");
    }
    let model = Model::new();
    model.write("model_index.json", b"{\"_class_name\": ");
    assert!(model.fault().starts_with("model_index.json is not JSON: EOF"), "{}", model.fault());
    model.write("model_index.json", b"[]");
    assert_eq!(model.fault(), "model_index.json is no JSON object; download it again");
}

#[test]
fn half_a_download_is_found() {
    let model = Model::new();
    let whole = safetensors();
    for bytes in [0, 5, 8, 30, whole.len() - 1] {
        model.write(TRANSFORMER, &whole[..bytes]);
        let says = match bytes {
            0 => "is empty".to_owned(),
            5 => "is too short to be weights".to_owned(),
            8 | 30 => format!("is cut off: it has {bytes} of {} bytes", whole.len() - 32),
            _ => format!("is cut off: it has {bytes} of {} bytes", whole.len()),
        };
        assert_eq!(model.fault(), format!("{TRANSFORMER} {says}; download it again"));
    }
    model.write(TRANSFORMER, &[whole.as_slice(), b"??"].concat());
    assert_eq!(model.fault(), format!("{TRANSFORMER} has 2 bytes too many; download it again"));
}

#[test]
fn every_file_that_is_missing_is_named() {
    for (gone, says) in [
        ("vae", "vae is missing; download it again"),
        ("vae/config.json", "vae has no config.json; download it again"),
        (
            "scheduler/scheduler_config.json",
            "scheduler has no scheduler_config.json; download it again",
        ),
        (
            "tokenizer/tokenizer.json",
            "tokenizer has no vocabulary, such as a tokenizer.json; download it again",
        ),
        (TRANSFORMER, "transformer has no weights: no .safetensors file; download it again"),
        (
            "text_encoder/model-2-of-2.safetensors",
            "text_encoder/model-2-of-2.safetensors is missing; download it again",
        ),
        (
            "text_encoder/model.safetensors.index.json",
            "text_encoder has no model.safetensors.index.json, which lists its shards; download it again",
        ),
    ] {
        let model = Model::new();
        model.remove(gone);
        assert_eq!(model.fault(), says);
    }
    let model = Model::new();
    model.remove("vae/config.json");
    model.remove("text_encoder/model-1-of-2.safetensors");
    assert_eq!(model.inspect().expect_err("faults").len(), 2);
}

#[test]
fn an_index_of_shards_must_fit_them() {
    let file = "text_encoder/model.safetensors.index.json";
    for (index, says) in [
        (json!({}), "has no `weight_map`"),
        (json!({"weight_map": {}}), "names no shards"),
        (json!({"weight_map": {"a": "../x"}}), "names a shard that is no file beside it"),
        (json!({"weight_map": {"a": 1}}), "names a shard that is no file beside it"),
        (
            json!({"weight_map": {"a": "model-1-of-2.safetensors", "c": "model-1-of-2.safetensors"}}),
            "lacks c, which the index has in it",
        ),
    ] {
        let model = Model::new();
        model.json(file, &index);
        let fault = model.fault();
        assert!(fault.contains(says), "{fault}");
    }
}

#[test]
fn weights_that_would_not_be_loaded_are_told_apart() {
    for (name, says) in [
        ("diffusion_pytorch_model.fp16.safetensors", "but no diffusion_pytorch_model.safetensors"),
        ("diffusion_pytorch_model.bin", "but nothing in safetensors; other formats are not loaded"),
    ] {
        let model = Model::new();
        model.remove("vae/diffusion_pytorch_model.safetensors");
        model.write(&format!("vae/{name}"), &safetensors());
        let fault = model.fault();
        assert!(fault.contains(says), "{fault}");
    }
    // Beside those that are, they do not count.
    let model = Model::new();
    model.write("vae/diffusion_pytorch_model.fp16.safetensors", b"half");
    model.inspect().expect("no fault");
}

#[test]
fn a_pointer_in_place_of_a_file_is_recognised() {
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345678\n";
    let at = |name: &str| {
        let model = Model::new();
        model.write(name, lfs);
        model.fault()
    };
    for name in [TRANSFORMER, "vae/config.json", "tokenizer/tokenizer.json", "model_index.json"] {
        assert_eq!(
            at(name),
            format!(
                "{name} is a pointer of Git LFS, not the file itself; run `git lfs pull` in the \
                 checkpoint's directory"
            )
        );
    }
    let annex = format!(
        "{TRANSFORMER} is a pointer of git-annex, not the file itself; run `git annex get .` in \
         the checkpoint's directory"
    );
    let model = Model::new();
    model.write(TRANSFORMER, b"/annex/objects/SHA256E-s12--00.safetensors\n");
    assert_eq!(model.fault(), annex);
    model.link(TRANSFORMER, "../../.git/annex/objects/00/SHA256E-s12--00");
    assert_eq!(model.fault(), annex);
}

#[test]
fn links_are_followed_to_files_alone() {
    let model = Model::new();
    model.write("blobs/1", &safetensors());
    model.link(TRANSFORMER, "../blobs/1");
    model.inspect().expect("a cache of downloads links its files");
    model.link(TRANSFORMER, "diffusion_pytorch_model.safetensors");
    assert_eq!(
        model.fault(),
        format!("{TRANSFORMER} is a link that leads in a circle; download it again")
    );
    fs::remove_file(model.path(TRANSFORMER)).expect("gone");
    symlink("../blobs/2", model.path(TRANSFORMER)).expect("made");
    assert_eq!(
        model.fault(),
        format!("{TRANSFORMER} is a link to ../blobs/2, which does not exist; download it again")
    );
    fs::remove_file(model.path(TRANSFORMER)).expect("gone");
    fs::create_dir(model.path(TRANSFORMER)).expect("made");
    assert_eq!(model.fault(), format!("{TRANSFORMER} is no file; download it again"));
    // What would wait for a writer for ever.
    fs::remove_dir(model.path(TRANSFORMER)).expect("gone");
    let mode = rustix::fs::Mode::from_bits_truncate(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, model.path(TRANSFORMER), mode).expect("made");
    assert_eq!(model.fault(), format!("{TRANSFORMER} is no file; download it again"));
    // A directory that holds itself is not walked.
    let model = Model::new();
    model.link("vae/again", "../vae");
    model.inspect().expect("no fault");
}

#[test]
fn a_header_costs_no_more_than_the_limit() {
    let model = Model::new();
    let mut bomb = u64::MAX.to_le_bytes().to_vec();
    bomb.extend([b' '; 64]);
    model.write(TRANSFORMER, &bomb);
    assert!(model.fault().contains("its header would have 18446744073709551615 bytes"));
    bomb[..8].copy_from_slice(&(MAX_HEADER + 1).to_le_bytes());
    model.write(TRANSFORMER, &bomb);
    assert!(model.fault().contains("its header would have 100000001 bytes"));
    bomb[..8].copy_from_slice(&MAX_HEADER.to_le_bytes());
    model.write(TRANSFORMER, &bomb);
    assert!(model.fault().contains("is cut off: it has 72 of 100000008 bytes"));
    for header in ["nonsense", "[]", "{\"a\": 1}", &"[".repeat(100_000)] {
        model.write(TRANSFORMER, &with_header(header, 0));
        assert!(model.fault().contains("its header can't be read"), "{}", model.fault());
    }
    for (tensor, says) in [
        (json!({"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}), "a ends before it begins"),
        (json!({"dtype": "F32", "shape": [u64::MAX, 2], "data_offsets": [0, 4]}), "a is too large"),
        (json!({"dtype": "F32", "shape": [1], "data_offsets": [0, u64::MAX]}), "is cut off"),
    ] {
        model.write(TRANSFORMER, &with_header(&json!({"a": tensor}).to_string(), 4));
        let fault = model.fault();
        assert!(fault.contains(says), "{fault}");
    }
    // An index that is longer than any.
    let file = fs::File::create(model.path("model_index.json")).expect("made");
    file.set_len(1 << 40).expect("sparse");
    assert!(model.fault().contains("more than any such file"), "{}", model.fault());
}
