//! What `models.*.settings` says to the engine `server`.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderName;
use serde_json::{Map, Value};

use super::adapter::{ADAPTERS, CANCELLING, INLINE};
use crate::VARIABLES;
use crate::settings::{NO_VARIABLE, Table, Wrong, is_variable, text};

/// The names of all settings.
const KEYS: &[&str] = &[
    "adapter",
    "run",
    "url",
    "environment",
    "directory",
    "ready_seconds",
    "hung_seconds",
    "wait_seconds",
    "health",
    "headers",
    "max_bytes",
    "cancel",
];

/// What may stand in braces in `run`, `environment` and `directory`.
const PLACEHOLDERS: &[&str] = &["host", "port", "checkpoint", "model", "scratch"];

const MAX_BYTES: f64 = (1u64 << 40) as f64;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    /// One of [`ADAPTERS`].
    pub(super) adapter: String,
    pub(super) at: At,
    /// Time for a server to become ready.
    pub(super) ready: Duration,
    /// A server that gives no answer for so long is taken for hung.
    pub(super) hung: Duration,
    /// How long a task waits for an earlier job inside the server.
    pub(super) wait: Duration,
    pub(super) health: Option<String>,
    /// Header, and the variable that has its value.
    pub(super) headers: Vec<(HeaderName, String)>,
    /// Largest result, in bytes.
    pub(super) max_bytes: u64,
    pub(super) cancel: Cancel,
}

/// Where the server is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum At {
    /// A child of this process.
    Child(Launch),
    /// Somebody else's.
    Url(Url),
}

/// How a server is started.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Launch {
    /// The program and its arguments; at least one.
    pub(super) run: Vec<Template>,
    pub(super) environment: Vec<(String, Template)>,
    pub(super) directory: Option<PathBuf>,
}

/// What is done about a job that nobody wants any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancel {
    /// The server is killed, and started again for the next task.
    Restart,
    /// The server is asked to stop it.
    Ask,
    /// It runs to its end, for which the next task waits.
    Wait,
}

impl Settings {
    pub(super) fn read(given: &Map<String, Value>) -> Result<Settings, Wrong> {
        let table = Table::new(given, KEYS)?;
        let adapter = table.text("adapter")?.ok_or_else(|| {
            Wrong::whole(format!("`adapter` is missing: one of {}", ADAPTERS.join(", ")))
        })?;
        if !ADAPTERS.contains(&adapter) {
            let message = format!("`{adapter}` is none; there is {}", ADAPTERS.join(", "));
            return Err(Wrong::value("adapter", message));
        }
        let headers = headers(&table)?;
        let at = match (launch(&table)?, url(&table)?) {
            (Some(launch), None) => At::Child(launch),
            (None, Some(url)) => At::Url(url),
            (Some(_), Some(_)) => {
                return Err(Wrong::whole(
                    "either `run` starts a server or `url` names one, not both",
                ));
            }
            (None, None) => {
                return Err(Wrong::whole(
                    "`run` is missing, the command line that starts the server; or `url`, the \
                     address of one that runs",
                ));
            }
        };
        let seconds = |key, default| -> Result<Duration, Wrong> {
            let given = table.number(key, 1.0..=86_400.0)?;
            Ok(Duration::from_secs_f64(given.unwrap_or(default)))
        };
        // What comes inside an answer lies in memory.
        let usual = if INLINE.contains(&adapter) { 512u64 << 20 } else { 2 << 30 };
        let max_bytes = table.number("max_bytes", 1.0..=MAX_BYTES)?.unwrap_or(usual as f64);
        Ok(Settings {
            adapter: adapter.to_owned(),
            ready: seconds("ready_seconds", 1800.0)?,
            hung: seconds("hung_seconds", 60.0)?,
            wait: seconds("wait_seconds", 1800.0)?,
            health: health(&table)?,
            headers,
            max_bytes: max_bytes as u64,
            cancel: cancel(&table, adapter, &at)?,
            at,
        })
    }
}

fn launch(table: &Table<'_>) -> Result<Option<Launch>, Wrong> {
    let environment = table
        .table("environment", |given| {
            given.iter().map(|(name, value)| variable(name, value)).collect::<Result<Vec<_>, _>>()
        })?
        .unwrap_or_default();
    let directory = table.text("directory")?.map(PathBuf::from);
    if directory.as_ref().is_some_and(|directory| !directory.is_absolute()) {
        return Err(Wrong::value("directory", "must be an absolute path"));
    }
    let Some(words) = table.list("run")? else {
        for key in ["environment", "directory"] {
            if table.value(key).is_some() {
                return Err(Wrong::value(key, "has a meaning only together with `run`"));
            }
        }
        return Ok(None);
    };
    let read = |word| text(word).and_then(Template::read).map_err(|why| Wrong::value("run", why));
    let run = words.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let program = words.first().and_then(Value::as_str).unwrap_or_default();
    if program.is_empty() {
        return Err(Wrong::value("run", "must name a program"));
    }
    if program.contains('/') && !program.starts_with('/') {
        let message = format!("`{program}`: write the program's name alone, or its absolute path");
        return Err(Wrong::value("run", message));
    }
    if !run.iter().any(|word| word.names("port"))
        && !environment.iter().any(|(_, v)| v.names("port"))
    {
        let message = "must hand the server its port: write {port} where it belongs";
        return Err(Wrong::value("run", message));
    }
    Ok(Some(Launch { run, environment, directory }))
}

fn variable(name: &str, value: &Value) -> Result<(String, Template), Wrong> {
    if !is_variable(name) {
        return Err(Wrong::value(name, NO_VARIABLE));
    }
    // An empty value is one.
    let value = match value.as_str() {
        Some("") => Ok(Template(Vec::new())),
        _ => text(value).and_then(Template::read),
    };
    Ok((name.to_owned(), value.map_err(|why| Wrong::value(name, why))?))
}

fn url(table: &Table<'_>) -> Result<Option<Url>, Wrong> {
    let Some(given) = table.text("url")? else {
        return Ok(None);
    };
    let wrong = |why: &str| Wrong::value("url", format!("`{given}` {why}"));
    let mut url: Url = given.parse().map_err(|error| wrong(&format!("is no address: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong("is none of http or https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("must not contain a password; see `headers`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("must be the server's address alone, such as http://127.0.0.1:30010"));
    }
    // The rest of the spelling, such as the case of the host and the scheme's own port, is one already.
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(Some(url))
}

fn health(table: &Table<'_>) -> Result<Option<String>, Wrong> {
    let Some(path) = table.text("health")? else {
        return Ok(None);
    };
    if !path.starts_with('/') || path.contains(char::is_whitespace) {
        return Err(Wrong::value("health", "must be a path that begins with `/`"));
    }
    Ok(Some(path.to_owned()))
}

fn headers(table: &Table<'_>) -> Result<Vec<(HeaderName, String)>, Wrong> {
    let read = |(name, variable): (&String, &Value)| {
        let header: HeaderName =
            name.parse().map_err(|_| Wrong::value(name, "is no name of a header"))?;
        let variable = text(variable).map_err(|why| Wrong::value(name, why))?;
        let rest = variable.strip_prefix(VARIABLES).unwrap_or_default();
        let plain = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        if rest.is_empty() || !rest.chars().all(plain) {
            let message = format!(
                "must be the name of an environment variable that begins with {VARIABLES} \
                 and holds the header's value; secrets do not belong into the configuration"
            );
            return Err(Wrong::value(name, message));
        }
        Ok((header, variable.to_owned()))
    };
    Ok(table.table("headers", |given| given.iter().map(read).collect())?.unwrap_or_default())
}

fn cancel(table: &Table<'_>, adapter: &str, at: &At) -> Result<Cancel, Wrong> {
    let asks = CANCELLING.contains(&adapter);
    let wrong = |why: String| Err(Wrong::value("cancel", why));
    match (table.text("cancel")?, at) {
        (Some("restart") | None, At::Child(_)) => Ok(Cancel::Restart),
        (Some("restart"), At::Url(_)) => {
            wrong("a server that rayreel has not started (`url`) can't be restarted".to_owned())
        }
        (Some("ask"), _) if asks => Ok(Cancel::Ask),
        (Some("ask"), _) => wrong(format!("{adapter} can't stop a job that runs")),
        (Some("wait") | None, _) => Ok(Cancel::Wait),
        (Some(other), _) => {
            wrong(format!("must be \"restart\", \"ask\" or \"wait\", not \"{other}\""))
        }
    }
}

/// A word with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Plain(String),
    Name(&'static str),
}

impl Template {
    /// Reads a word. Braces around anything but a name are just braces: servers like JSON in their
    /// arguments.
    fn read(word: &str) -> Result<Template, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = word;
        while let Some(start) = rest.find('{') {
            let (before, from) = rest.split_at(start);
            plain.push_str(before);
            let name = from.find('}').map(|end| &from[1..end]);
            let is_name = |name: &&str| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            };
            let Some(name) = name.filter(is_name) else {
                plain.push('{');
                rest = &from[1..];
                continue;
            };
            let Some(known) = PLACEHOLDERS.iter().find(|known| **known == name) else {
                let known: Vec<String> =
                    PLACEHOLDERS.iter().map(|name| format!("{{{name}}}")).collect();
                return Err(format!("there is no {{{name}}}; there is {}", known.join(", ")));
            };
            if !plain.is_empty() {
                pieces.push(Piece::Plain(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Name(known));
            rest = &from[name.len() + 2..];
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Plain(plain));
        }
        Ok(Template(pieces))
    }

    fn names(&self, name: &str) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Name(this) if *this == name))
    }

    /// The word with everything put in; an error names what has no value.
    pub(super) fn fill<'a>(
        &self,
        value: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<String, &'static str> {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Plain(text) => filled.push_str(text),
                Piece::Name(name) => filled.push_str(value(name).ok_or(*name)?),
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(given: Value) -> Result<Settings, String> {
        let given = given.as_object().expect("an object");
        Settings::read(given).map_err(|wrong| wrong.to_string())
    }

    fn wrong(given: Value) -> String {
        read(given).expect_err("wrong")
    }

    #[test]
    fn a_child_is_restarted_and_a_foreign_server_is_waited_for() {
        let child = json!({"adapter": "sglang", "run": ["serve", "--port={port}"]});
        assert_eq!(read(child).unwrap().cancel, Cancel::Restart);
        let foreign = |adapter| json!({"adapter": adapter, "url": "http://127.0.0.1:1"});
        assert_eq!(read(foreign("sglang")).unwrap().cancel, Cancel::Wait);
        // It says that a job has stopped, and can't be asked whether it has.
        assert_eq!(read(foreign("vllm-omni")).unwrap().cancel, Cancel::Wait);
    }

    #[test]
    fn one_address_has_one_spelling() {
        let url = |url| match read(json!({"adapter": "sglang", "url": url})).unwrap().at {
            At::Url(url) => url.to_string(),
            At::Child(launch) => panic!("{launch:?}"),
        };
        for same in ["http://gpu.example", "HTTP://GPU.example:80/", "http://gpu.example//"] {
            assert_eq!(url(same), "http://gpu.example/");
        }
        assert_eq!(url("http://127.0.0.1:81/a/"), url("http://127.0.0.1:81/a"));
        assert_ne!(url("http://127.0.0.1:81"), url("http://127.0.0.1:82"));
    }

    #[test]
    fn a_file_that_lies_in_memory_may_be_less_large() {
        let at = |adapter| read(json!({"adapter": adapter, "url": "http://127.0.0.1:1"})).unwrap();
        assert_eq!(at("sglang").max_bytes, 2 << 30);
        assert_eq!(at("sd-server").max_bytes, 512 << 20);
    }

    #[test]
    fn each_wrong_setting_is_named_with_what_is_right() {
        let run = || json!(["serve", "{port}"]);
        for (given, expected) in [
            (json!({}), "one of sglang, vllm-omni, lightx2v, sd-server"),
            (json!({"adapter": "sgland"}), "setting `adapter`: `sgland` is none"),
            (json!({"adapter": "sglang"}), "`run` is missing"),
            (json!({"adapter": "sglang", "runs": run()}), "there is no setting `runs`"),
            (json!({"adapter": "sglang", "run": run(), "url": "http://h"}), "not both"),
            (json!({"adapter": "sglang", "run": ["serve"]}), "write {port} where it belongs"),
            (json!({"adapter": "sglang", "run": ["{port}", "{prot}"]}), "there is no {prot}"),
            (json!({"adapter": "sglang", "run": []}), "must name a program"),
            (json!({"adapter": "sglang", "run": "serve"}), "must be a list"),
            (json!({"adapter": "sglang", "run": ["bin/serve", "{port}"]}), "its absolute path"),
            (json!({"adapter": "sglang", "url": "ftp://h"}), "none of http or https"),
            (json!({"adapter": "sglang", "url": "http://u:p@h"}), "must not contain a password"),
            (json!({"adapter": "sglang", "url": "http://h?a=b"}), "address alone"),
            (json!({"adapter": "sglang", "url": "http://h", "directory": "/x"}), "with `run`"),
            (json!({"adapter": "sglang", "url": "http://h", "health": "up"}), "begins with `/`"),
            (
                json!({"adapter": "sglang", "url": "http://h", "headers": {"authorization": "Bearer x"}}),
                "setting `headers.authorization`: must be the name of an environment variable",
            ),
            (
                json!({"adapter": "sglang", "url": "http://h", "cancel": "restart"}),
                "can't be restarted",
            ),
            (json!({"adapter": "sglang", "url": "http://h", "cancel": "ask"}), "can't stop a job"),
            (json!({"adapter": "sglang", "url": "http://h", "cancel": "never"}), "not \"never\""),
            (
                json!({"adapter": "sglang", "url": "http://h", "ready_seconds": 0}),
                "from 1 to 86400",
            ),
            (
                json!({"adapter": "sglang", "run": run(), "environment": {"A": 1}}),
                "setting `environment.A`: must be text",
            ),
        ] {
            let said = wrong(given.clone());
            assert!(said.contains(expected), "{given}: {said}");
        }
    }

    #[test]
    fn names_in_braces_are_filled_in_and_other_braces_stay() {
        let value = |name: &str| match name {
            "port" => Some("81"),
            "host" => Some("127.0.0.1"),
            _ => None,
        };
        for (word, expected) in [
            ("--listen={host}:{port}", Ok("--listen=127.0.0.1:81".to_owned())),
            (r#"{"a": {"b": 1}}"#, Ok(r#"{"a": {"b": 1}}"#.to_owned())),
            ("{port", Ok("{port".to_owned())),
            ("{}{port}", Ok("{}81".to_owned())),
            ("{checkpoint}/vae", Err("checkpoint")),
        ] {
            assert_eq!(Template::read(word).unwrap().fill(value), expected, "{word}");
        }
    }
}
