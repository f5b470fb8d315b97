//! The configuration file that is to have a model, and how it gets it: whole, or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rayreel_domain::Code;
use rayreel_server::config::{self, FILE_NAME, Loaded, Sources};
use rayreel_server::home;
use rustix::fs::FlockOperation;

use crate::args::Global;
use crate::failure::Failure;
use crate::settings;

/// A configuration file, as it was when it was read.
pub(super) struct Target {
    sources: Sources,
    pub path: PathBuf,
    /// None if it does not exist yet.
    before: Option<String>,
    pub loaded: Loaded,
}

impl Target {
    pub(super) fn find(global: &Global) -> Result<Self, Failure> {
        let sources = settings::sources(global, None);
        let path = sources.chosen().unwrap_or_else(|| PathBuf::from(FILE_NAME));
        Self::read(sources, path)
    }

    fn read(sources: Sources, path: PathBuf) -> Result<Self, Failure> {
        let is_there = path.symlink_metadata().is_ok();
        let before = if is_there { Some(config::read_file(&path)?) } else { None };
        let loaded = config::load_text(&sources, &path, before.as_deref().unwrap_or_default())?;
        Ok(Self { sources, path, before, loaded })
    }

    /// What stands in it.
    pub(super) fn text(&self) -> &str {
        self.before.as_deref().unwrap_or_default()
    }

    /// The settings, if this stood in it.
    pub(super) fn with(&self, text: &str) -> Result<Loaded, Failure> {
        Ok(config::load_text(&self.sources, &self.path, text)?)
    }

    /// Could it be written just now? Asked before anything takes its time.
    pub(super) fn check_writable(&self) -> Result<(), Failure> {
        let draft = self.real().and_then(|path| self.draft(&path));
        draft.map(drop).map_err(|error| self.not_written(&error))
    }

    /// Puts in its place what follows from the text that it has by now. Nobody else who adds a model
    /// reads or writes it meanwhile.
    pub(super) fn write(
        &self,
        text: impl FnOnce(&Self) -> Result<String, Failure>,
    ) -> Result<(), Failure> {
        let path = self.real().map_err(|error| self.not_written(&error))?;
        // The folder, since the file is replaced. It is let go where this ends.
        let folder = File::open(folder(&path)).map_err(|error| self.not_written(&error))?;
        // Where a file system knows no locks, the comparison has to do.
        _ = rustix::io::retry_on_intr(|| rustix::fs::flock(&folder, FlockOperation::LockExclusive));
        let now = Self::read(self.sources.clone(), self.path.clone())?;
        let text = text(&now)?;
        now.replace(&text).map_err(|error| self.not_written(&error))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let path = self.real()?;
        let mut draft = self.draft(&path)?;
        draft.write_all(text.as_bytes())?;
        draft.as_file().sync_all()?;
        match &self.before {
            // Editors take no lock.
            Some(before) if fs::read_to_string(&path)? != *before => {
                return Err(io::Error::other("somebody else has written to it meanwhile"));
            }
            Some(_) => draft.persist(&path)?,
            None => draft.persist_noclobber(&path)?,
        };
        Ok(())
    }

    /// Behind all links, which stay.
    fn real(&self) -> io::Result<PathBuf> {
        if self.before.is_some() { self.path.canonicalize() } else { Ok(self.path.clone()) }
    }

    /// An empty file beside it, with its owner and mode.
    fn draft(&self, path: &Path) -> io::Result<tempfile::NamedTempFile> {
        let draft = tempfile::Builder::new()
            .prefix(".rayreel.")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder(path))?;
        if self.before.is_some() {
            // Who may not write to it may not replace it either.
            let old = OpenOptions::new().append(true).open(path)?.metadata()?;
            draft.as_file().set_permissions(old.permissions())?;
            // Only root may give it away, and only root needs to.
            _ = chown(draft.path(), Some(old.uid()), Some(old.gid()));
        }
        Ok(draft)
    }

    fn not_written(&self, error: &io::Error) -> Failure {
        let message = format!("{} can't be written: {}", self.path.display(), home::reason(error));
        Failure::new(Code::InvalidConfig, message)
            .helped("See whose it is, or name another file with --config.")
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
