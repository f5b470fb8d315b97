//! Settings for a command, and `rayreel config`.

use rayreel_server::config::{self, Entry, Loaded, Origin, Settings, Sources};
use serde_json::json;

use crate::args::{Config, Global};
use crate::failure::{Exit, Failure};
use crate::out::Out;

pub(crate) fn sources(global: &Global, listen: Option<String>) -> Sources {
    let mut sources = Sources::of_process();
    sources.file = global.config.clone();
    sources.flags.data = global.data.clone();
    sources.flags.listen = listen;
    sources
}

pub(crate) fn load(global: &Global) -> Result<Loaded, Failure> {
    Ok(config::load(&sources(global, None))?)
}

/// Settings for a server that is to stay: whose models are there.
pub(crate) fn load_for_serving(
    global: &Global,
    listen: Option<String>,
) -> Result<Settings, Failure> {
    let loaded = config::load(&sources(global, listen))?;
    loaded.check_files()?;
    Ok(loaded.settings)
}

/// `rayreel config …`.
pub(crate) fn run(global: &Global, command: &Config, out: Out) -> Result<(), Exit> {
    if matches!(command, Config::Default) {
        return out.raw(config::DEFAULT_FILE.as_bytes());
    }
    let loaded = config::load(&sources(global, None)).map_err(Failure::from)?;
    let only_changes = matches!(command, Config::Check);
    if only_changes {
        loaded.check_files().map_err(Failure::from)?;
    }
    if out.json {
        let entries: Vec<_> = entries(&loaded, only_changes)
            .map(|Entry { key, value, origin }| {
                let at = (!matches!(origin, Origin::Default { .. })).then(|| origin.to_string());
                json!({"key": key, "value": value, "source": origin.kind(), "at": at})
            })
            .collect();
        return out.json(&json!({
            "file": loaded.file,
            "settings": loaded.settings,
            "entries": entries,
        }));
    }
    if only_changes {
        match &loaded.file {
            Some(path) => out.line(&format!("# {} has no errors", path.display()))?,
            None => out.line("# no configuration file; no errors")?,
        }
    }
    for Entry { key, value, origin } in entries(&loaded, only_changes) {
        let source = match origin {
            Origin::Default { .. } => "default".to_owned(),
            other => format!("{}: {other}", other.kind()),
        };
        out.line(&format!("{key} = {value}  # {source}"))?;
    }
    Ok(())
}

/// Settings in force.
fn entries(loaded: &Loaded, only_changes: bool) -> impl Iterator<Item = Entry> {
    let entries = loaded.entries().into_iter();
    entries.filter(move |entry| !only_changes || entry.origin.kind() != "default")
}
