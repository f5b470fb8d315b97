//! Models whose engine is `fault-engine`, and what its journal says.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Deserialize;
use tempfile::TempDir;

/// A directory for the files through which a test and its engines speak.
#[derive(Debug)]
pub(crate) struct Faults {
    directory: TempDir,
}

/// A line of the journal.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Note {
    /// `load`, `generate`, `step`, `cancel`, `done`.
    pub(crate) event: String,
    #[serde(default)]
    pub(crate) prompt: String,
    #[serde(default)]
    pub(crate) step: u32,
    /// Of the engine.
    pub(crate) pid: u32,
    /// Process id of its worker.
    pub(crate) worker: u32,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    /// Configuration of a model with this engine; `more` is added to it.
    pub(crate) fn model(&self, name: &str, more: &str) -> String {
        self.model_with(name, more, "")
    }

    /// As [`Faults::model`], with more settings of the engine.
    pub(crate) fn model_with(&self, name: &str, more: &str, settings: &str) -> String {
        let engine = env!("CARGO_BIN_EXE_fault-engine");
        let mut text = format!("[models.{name}]\ncommand = [{engine:?}]\n{more}\n");
        let (journal, gate) = (self.path("journal"), self.path("gate"));
        writeln!(
            text,
            "[models.{name}.settings]\njournal = {journal:?}\ngate = {gate:?}\n{settings}"
        )
        .expect("a string takes everything");
        // Small enough that nobody waits for them.
        writeln!(text, "[models.{name}.defaults]\nsize = \"64x64\"\nframes = 1\nsteps = 2")
            .expect("a string takes everything");
        text
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Lets every engine that holds its task finish it.
    pub(crate) fn open_gate(&self) {
        std::fs::write(self.path("gate"), "").expect("written");
    }

    /// What engines have noted so far.
    pub(crate) fn journal(&self) -> Vec<Note> {
        let text = std::fs::read_to_string(self.path("journal")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).expect("a note")).collect()
    }

    /// The notes of one kind.
    pub(crate) fn noted(&self, event: &str) -> Vec<Note> {
        self.journal().into_iter().filter(|note| note.event == event).collect()
    }
}
