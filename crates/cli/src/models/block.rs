//! The model as it is written into a configuration file, in which every other byte stays as it is.

use std::fmt::Write as _;
use std::path::Path;

use rayreel_domain::{ModelName, PoolName};
use rayreel_server::checkpoint::{Checkpoint, Kind};
use toml_edit::{DocumentMut, Item, Key, Value};

/// What is to be written.
#[derive(Debug, Clone)]
pub(super) struct Block<'a> {
    pub name: &'a ModelName,
    pub engine: &'a str,
    /// None if it is not on this machine.
    pub checkpoint: Option<&'a Checkpoint>,
    /// Absolute.
    pub path: &'a str,
    pub python: Option<&'a str>,
    pub aliases: Vec<ModelName>,
    pub pool: Option<&'a PoolName>,
    pub offload: Option<&'a str>,
    pub gpus: Option<u8>,
}

/// What a kind of model takes and makes.
struct Figures {
    images: &'static str,
    why: &'static str,
    limits: String,
    defaults: String,
}

/// Wan2.2's own for its models.
fn figures(checkpoint: &Checkpoint) -> Figures {
    let wan = |size: &str, max_pixels: &str, multiple: u32, frames: u32, fps: u32, steps: u32| {
        (
            format!(
                "{{ multiple = {multiple}, max_side = 1280, max_pixels = {max_pixels}, \
                 max_frames = {frames} }}"
            ),
            format!("{{ size = \"{size}\", frames = {frames}, fps = {fps}, steps = {steps} }}"),
        )
    };
    let (images, why, (limits, defaults)) = match checkpoint.kind {
        Kind::T2vA14b => (
            "none",
            "As Wan2.2 has it for this model. Guidance is 4.0, and 3.0 for the second expert.",
            wan("1280x720", "921_600", 16, 81, 16, 40),
        ),
        Kind::I2vA14b => (
            "first-last",
            "As Wan2.2 has it for this model. Guidance is 3.5, for both experts.",
            wan("1280x720", "921_600", 16, 81, 16, 40),
        ),
        Kind::Ti2v5b => (
            "first",
            "As Wan2.2 has it for this model. Guidance is 5.0.",
            wan("1280x704", "901_120", 32, 121, 24, 50),
        ),
        Kind::WanT2v | Kind::WanI2v => (
            if checkpoint.kind == Kind::WanT2v { "none" } else { "first-last" },
            "Not one of Wan2.2's models: see what its authors recommend.",
            wan("832x480", "921_600", 16, 81, 16, 40),
        ),
        Kind::Still => {
            let side = checkpoint.side.filter(|side| (64..=2048).contains(side)).unwrap_or(1024);
            (
                "first",
                "The size that it was trained on; see what its authors recommend for the rest.",
                (
                    "{ multiple = 8, max_side = 2048, max_pixels = 4_194_304, max_frames = 1 }"
                        .to_owned(),
                    format!("{{ size = \"{side}x{side}\", frames = 1, steps = 30 }}"),
                ),
            )
        }
    };
    Figures { images, why, limits, defaults }
}

impl Block<'_> {
    pub(super) fn text(&self) -> String {
        let figures = self.checkpoint.map(figures);
        let mut text = match self.checkpoint {
            Some(checkpoint) => format!("# {}\n", checkpoint.kind),
            None => String::new(),
        };
        _ = writeln!(text, "[models.{}]", Key::new(self.name.as_str()));
        let quoted = |text: &str| Value::from(text).to_string();
        let mut line = |key: &str, value: String| _ = writeln!(text, "{key} = {value}");
        line("engine", quoted(self.engine));
        line("checkpoint", quoted(self.path));
        if let Some(python) = self.python {
            line("python", quoted(python));
        }
        if !self.aliases.is_empty() {
            let aliases: Vec<String> =
                self.aliases.iter().map(|name| quoted(name.as_str())).collect();
            line("aliases", format!("[{}]", aliases.join(", ")));
        }
        if let Some(pool) = self.pool {
            line("pool", quoted(pool.as_str()));
        }
        if let Some(figures) = &figures {
            line("images", quoted(figures.images));
        }
        let kind = self.checkpoint.map(|checkpoint| checkpoint.kind);
        // They make videos of images, and of nothing else.
        if matches!(kind, Some(Kind::I2vA14b | Kind::WanI2v)) {
            line("image_required", "true".to_owned());
        }
        let mut settings = Vec::new();
        settings.extend(self.offload.map(|mode| format!("offload = {}", quoted(mode))));
        let gpus = self.gpus.filter(|gpus| *gpus > 1);
        settings.extend(gpus.map(|gpus| format!("ulysses = {gpus}")));
        if !settings.is_empty() {
            line("settings", format!("{{ {} }}", settings.join(", ")));
        }
        _ = match figures {
            Some(Figures { why, limits, defaults, .. }) => {
                writeln!(text, "# {why}\nlimits = {limits}\ndefaults = {defaults}")
            }
            None => {
                writeln!(
                    text,
                    "# Its files are elsewhere: add images, limits and defaults of the model."
                )
            }
        };
        text
    }

    /// Keys of the model that stands in a file, which this one has not.
    pub(super) fn dropped_from(&self, before: &str) -> Vec<String> {
        let find = |text: &str| {
            let document: DocumentMut = text.parse().ok()?;
            document.get("models")?.get(self.name.as_str()).cloned()
        };
        let mut dropped = Vec::new();
        if let (Some(old), Some(new)) = (find(before), find(&self.text())) {
            compare(&old, &new, "", &mut dropped);
        }
        dropped
    }

    /// The file's text with the model in it: in the place of the old one, or at the end.
    pub(super) fn written_into(&self, before: &str) -> Result<String, toml_edit::TomlError> {
        let mut document: DocumentMut = before.parse()?;
        let models = document.get_mut("models").and_then(Item::as_table_like_mut);
        let old = models.and_then(|models| models.remove(self.name.as_str()));
        let kept = if old.is_some() { document.to_string() } else { before.to_owned() };
        // Where the old one stood in a table of its own, and nothing else has changed since.
        let at = (old.is_some()).then(|| common(before, &kept));
        let at = at.filter(|at| is_between_tables(&kept, *at)).unwrap_or(kept.len());
        let (above, below) = kept.split_at(at);
        let mut text = above.to_owned();
        if !text.is_empty() {
            while !text.ends_with("\n\n") {
                text.push('\n');
            }
        }
        text.push_str(&self.text());
        if !below.is_empty() {
            text.push('\n');
            text.push_str(below.trim_start_matches('\n'));
        }
        Ok(text)
    }
}

/// Collects the keys that only the old one has.
fn compare(old: &Item, new: &Item, path: &str, dropped: &mut Vec<String>) {
    for (key, old) in old.as_table_like().into_iter().flat_map(|table| table.iter()) {
        let path = format!("{path}{}", Key::new(key));
        match new.get(key) {
            Some(new) if new.is_table_like() => compare(old, new, &format!("{path}."), dropped),
            Some(_) => {}
            None => dropped.push(path),
        }
    }
}

/// How much of two texts is the same from the beginning, in whole lines.
fn common(one: &str, other: &str) -> usize {
    let lines = one.split_inclusive('\n').zip(other.split_inclusive('\n'));
    lines.take_while(|(one, other)| one == other).map(|(line, _)| line.len()).sum()
}

/// Does a table, or nothing, follow there, so that another table may stand before it?
fn is_between_tables(text: &str, at: usize) -> bool {
    let mut lines = text[at..].lines().map(str::trim);
    lines
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .is_none_or(|line| line.starts_with('['))
}

/// A path for a command line that is to be copied.
pub(super) fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(kind: Kind) -> Checkpoint {
        let pipeline = String::new();
        Checkpoint { kind, pipeline, heads: None, models: Vec::new(), side: Some(512) }
    }

    fn name(name: &str) -> ModelName {
        name.parse().expect("a name")
    }

    fn block<'a>(name: &'a ModelName, checkpoint: &'a Checkpoint) -> Block<'a> {
        Block {
            name,
            engine: checkpoint.kind.engine(),
            checkpoint: Some(checkpoint),
            path: "/models/Wan \"2\"",
            python: None,
            aliases: Vec::new(),
            pool: None,
            offload: None,
            gpus: None,
        }
    }

    #[test]
    fn a_model_is_written_with_the_figures_of_its_authors() {
        let (model, wan) = (name("wan2.2-t2v"), checkpoint(Kind::T2vA14b));
        let pool = "gpu".parse().expect("a name");
        let whole = Block {
            python: Some("/p/python"),
            aliases: vec![name("t2v-A14B"), name("sora-2")],
            pool: Some(&pool),
            offload: Some("group"),
            gpus: Some(4),
            ..block(&model, &wan)
        };
        assert_eq!(
            whole.text(),
            r#"# Wan2.2 t2v-A14B: text to video
[models."wan2.2-t2v"]
engine = "wan"
checkpoint = '/models/Wan "2"'
python = "/p/python"
aliases = ["t2v-A14B", "sora-2"]
pool = "gpu"
images = "none"
settings = { offload = "group", ulysses = 4 }
# As Wan2.2 has it for this model. Guidance is 4.0, and 3.0 for the second expert.
limits = { multiple = 16, max_side = 1280, max_pixels = 921_600, max_frames = 81 }
defaults = { size = "1280x720", frames = 81, fps = 16, steps = 40 }
"#
        );
        let (model, still) = (name("sd"), checkpoint(Kind::Still));
        assert_eq!(
            Block { gpus: Some(1), ..block(&model, &still) }.text(),
            r#"# stills: text, or an image, to an image
[models.sd]
engine = "stable-diffusion"
checkpoint = '/models/Wan "2"'
images = "first"
# The size that it was trained on; see what its authors recommend for the rest.
limits = { multiple = 8, max_side = 2048, max_pixels = 4_194_304, max_frames = 1 }
defaults = { size = "512x512", frames = 1, steps = 30 }
"#
        );
    }

    #[test]
    fn a_model_that_makes_videos_of_images_is_not_asked_without_one() {
        let (model, i2v) = (name("m"), checkpoint(Kind::I2vA14b));
        let text = block(&model, &i2v).text();
        assert!(text.contains("images = \"first-last\"\nimage_required = true\n"), "{text}");
        let (model, ti2v) = (name("m"), checkpoint(Kind::Ti2v5b));
        assert!(!block(&model, &ti2v).text().contains("image_required"));
    }

    #[test]
    fn what_stands_in_the_file_stays() {
        let (model, wan) = (name("m"), checkpoint(Kind::Ti2v5b));
        let block = block(&model, &wan);
        assert_eq!(block.written_into("").expect("right"), block.text());
        for before in
            ["# mine\nlisten  =  '127.0.0.1:1' # why", "[models.x]\ncommand = ['x']\n\n# end\n"]
        {
            let after = block.written_into(before).expect("right");
            assert!(after.starts_with(before), "{after}");
            assert!(after.ends_with(&format!("\n\n{}", block.text())), "{after}");
        }
        block.written_into("nonsense").expect_err("not TOML");
    }

    #[test]
    fn an_old_model_is_replaced_where_it_stood() {
        let (model, wan) = (name("m"), checkpoint(Kind::Ti2v5b));
        let block = block(&model, &wan);
        let before = "# top\nmax_queued = 7 # seven\n\n# old\n[models.m]\ncommand = ['m']\n\
                      [models.m.settings]\na = 1\n\n# next\n[models.n]\ncommand = ['n']\n";
        assert_eq!(
            block.written_into(before).expect("right"),
            format!(
                "# top\nmax_queued = 7 # seven\n\n{}\n# next\n[models.n]\ncommand = ['n']\n",
                block.text()
            )
        );
        let last = "a = 1\n\n[models.n]\ncommand = ['n']\n\n[models.m]\ncommand = ['m']\n";
        assert_eq!(
            block.written_into(last).expect("right"),
            format!("a = 1\n\n[models.n]\ncommand = ['n']\n\n{}", block.text())
        );
        // In a table with others there is no room for it.
        let inside = "[models]\nm = { command = ['m'] }\nn = { command = ['n'] }\n";
        assert_eq!(
            block.written_into(inside).expect("right"),
            format!("[models]\nn = {{ command = ['n'] }}\n\n{}", block.text())
        );
    }

    #[test]
    fn what_a_replaced_model_had_besides_is_known() {
        let (model, wan) = (name("m"), checkpoint(Kind::Ti2v5b));
        let block = Block { offload: Some("model"), ..block(&model, &wan) };
        let before = "[models.m]\nengine = 'wan'\nestimate_seconds = 9\ndefaults.guidance = 4\n\
                      settings = { offload = 'none', cache = { kind = 'first-block' } }\n\
                      [models.m.loras]\nanime = '/a'\n[models.n]\nsilence_seconds = 1\n";
        let mut dropped = block.dropped_from(before);
        dropped.sort();
        assert_eq!(dropped, ["defaults.guidance", "estimate_seconds", "loras", "settings.cache"]);
        assert_eq!(block.dropped_from("").len(), 0);
        assert_eq!(block.dropped_from(&block.text()).len(), 0);
    }

    #[test]
    fn a_path_can_be_copied_into_a_shell() {
        assert_eq!(shell(Path::new("/models/Wan-2.2")), "/models/Wan-2.2");
        assert_eq!(shell(Path::new("/it's here")), "'/it'\\''s here'");
    }
}
