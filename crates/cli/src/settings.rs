//! Settings for a command, and `rayreel config`.

use rayreel_server::config::{self, Loaded, Origin, Settings, Sources};
use serde_json::json;

use crate::args::{Config, Global};
use crate::failure::{Exit, Failure};
use crate::out::Out;

fn sources(global: &Global, listen: Option<String>) -> Sources {
    let mut sources = Sources::of_process();
    sources.file = global.config.clone();
    sources.flags.data = global.data.clone();
    sources.flags.listen = listen;
    sources
}

pub(crate) fn load(global: &Global, listen: Option<String>) -> Result<Settings, Failure> {
    Ok(Settings::load(&sources(global, listen))?)
}

/// `rayreel config …`.
pub(crate) fn run(global: &Global, command: &Config, out: Out) -> Result<(), Exit> {
    if matches!(command, Config::Default) {
        return out.raw(config::DEFAULT_FILE.as_bytes());
    }
    let loaded = config::load(&sources(global, None)).map_err(Failure::from)?;
    let only_changes = matches!(command, Config::Check);
    if out.json {
        let entries: Vec<_> = entries(&loaded, only_changes)
            .map(|(key, value, origin)| json!({"key": key, "value": value, "origin": origin}))
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
    for (key, value, origin) in entries(&loaded, only_changes) {
        out.line(&format!("{key} = {value}  # {origin}"))?;
    }
    Ok(())
}

/// Settings in force, as TOML: path, value, origin.
fn entries(loaded: &Loaded, only_changes: bool) -> impl Iterator<Item = (String, String, String)> {
    loaded.entries().into_iter().filter_map(move |entry| {
        let changed = !matches!(entry.origin, Origin::Default { .. } | Origin::Derived);
        let origin = match entry.origin {
            Origin::Default { .. } => "default".to_owned(),
            other => other.to_string(),
        };
        (changed || !only_changes).then_some((entry.key, entry.value, origin))
    })
}
