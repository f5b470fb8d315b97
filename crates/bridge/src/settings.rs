//! Reading an engine's settings, one key at a time, so that each error names its key.

use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// Why settings can't be obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// There is no such setting in the table at `path`; `allowed` are.
    Unknown { path: Vec<String>, key: String, allowed: &'static [&'static str] },
    /// What the setting at `path` must be, and is not; an empty path means the settings themselves.
    Value { path: Vec<String>, message: String },
    /// What another key of the model, such as `checkpoint`, must be for these settings.
    Model { path: Vec<&'static str>, message: String },
}

impl Wrong {
    /// What is wrong with the settings as a whole.
    pub(crate) fn whole(message: impl Into<String>) -> Wrong {
        Wrong::Value { path: Vec::new(), message: message.into() }
    }

    /// What is wrong with one setting.
    pub(crate) fn value(key: &str, message: impl Into<String>) -> Wrong {
        Wrong::Value { path: vec![key.to_owned()], message: message.into() }
    }

    /// What is wrong with the model around the settings.
    pub(crate) fn model(path: &[&'static str], message: impl Into<String>) -> Wrong {
        Wrong::Model { path: path.to_vec(), message: message.into() }
    }

    /// Puts this below a table.
    fn below(mut self, table: &str) -> Wrong {
        match &mut self {
            Wrong::Unknown { path, .. } | Wrong::Value { path, .. } => {
                path.insert(0, table.to_owned());
            }
            Wrong::Model { .. } => {}
        }
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Unknown { path, key, allowed } => {
                let path: String = path.iter().map(|table| format!("{table}.")).collect();
                write!(f, "there is no setting `{path}{key}`; there is {}", allowed.join(", "))
            }
            Wrong::Value { path, message } if path.is_empty() => {
                write!(f, "the settings: {message}")
            }
            Wrong::Model { path, message } => {
                write!(f, "the model's `{}`: {message}", path.join("."))
            }
            Wrong::Value { path, message } => write!(f, "setting `{}`: {message}", path.join(".")),
        }
    }
}

/// A table of settings. Each method reads one key; an absent one is none.
pub(crate) struct Table<'a>(&'a Map<String, Value>);

impl<'a> Table<'a> {
    /// A table that has only these keys.
    pub(crate) fn new(
        map: &'a Map<String, Value>,
        allowed: &'static [&'static str],
    ) -> Result<Table<'a>, Wrong> {
        match map.keys().find(|key| !allowed.contains(&key.as_str())) {
            None => Ok(Table(map)),
            Some(key) => Err(Wrong::Unknown { path: Vec::new(), key: key.clone(), allowed }),
        }
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key)
    }

    /// Text that is not empty and has no NUL character, which no command line could carry.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Wrong> {
        self.value(key).map(|value| text(value).map_err(|why| Wrong::value(key, why))).transpose()
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Wrong> {
        let read = |value: &Value| {
            value.as_bool().ok_or_else(|| {
                Wrong::value(key, format!("must be true or false, not {}", shown(value)))
            })
        };
        self.value(key).map(read).transpose()
    }

    pub(crate) fn whole(
        &self,
        key: &str,
        allowed: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Wrong> {
        let read = |value: &Value| {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| allowed.contains(number)).ok_or_else(|| {
                let (least, most, value) = (allowed.start(), allowed.end(), shown(value));
                let message = format!("must be a whole number from {least} to {most}, not {value}");
                Wrong::value(key, message)
            })
        };
        self.value(key).map(read).transpose()
    }

    /// Seconds or another measure, decimals allowed.
    pub(crate) fn number(
        &self,
        key: &str,
        allowed: RangeInclusive<f64>,
    ) -> Result<Option<f64>, Wrong> {
        let read = |value: &Value| {
            value.as_f64().filter(|number| allowed.contains(number)).ok_or_else(|| {
                let (least, most, value) = (allowed.start(), allowed.end(), shown(value));
                let message = format!("must be a number from {least} to {most}, not {value}");
                Wrong::value(key, message)
            })
        };
        self.value(key).map(read).transpose()
    }

    pub(crate) fn list(&self, key: &str) -> Result<Option<&'a [Value]>, Wrong> {
        let read = |value: &'a Value| {
            value
                .as_array()
                .map(Vec::as_slice)
                .ok_or_else(|| Wrong::value(key, format!("must be a list, not {}", shown(value))))
        };
        self.value(key).map(read).transpose()
    }

    /// Reads the table at a key.
    pub(crate) fn table<T>(
        &self,
        key: &str,
        read: impl FnOnce(&'a Map<String, Value>) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Wrong> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let map = value
            .as_object()
            .ok_or_else(|| Wrong::value(key, format!("must be a table, not {}", shown(value))))?;
        read(map).map(Some).map_err(|wrong| wrong.below(key))
    }
}

/// Text that a command line can carry.
pub(crate) fn text(value: &Value) -> Result<&str, String> {
    match value.as_str() {
        None => Err(format!("must be text, not {}", shown(value))),
        Some("") => Err("must not be empty".to_owned()),
        Some(text) if text.contains('\0') => Err("must not contain a NUL character".to_owned()),
        Some(text) => Ok(text),
    }
}

/// What is wrong with a name that is none.
pub(crate) const NO_VARIABLE: &str =
    "is no name of a variable: write letters, digits and `_`, and no digit first";

/// Is this a name that every program can read from its environment?
pub(crate) fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(plain) && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// A value as it may stand in a message.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}
