//! Settings as they stand in the layers: a tree in which every value knows where it comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::Error;

/// Where a value comes from. Later kinds are stronger.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The embedded default file.
    Default { line: usize },
    /// Worked out where nothing is said, and from what.
    Derived(&'static str),
    /// A configuration file.
    File { path: PathBuf, line: usize },
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl Origin {
    /// Which layer it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default { .. } | Self::Derived(_) => "default",
            Self::File { .. } => "file",
            Self::Variable(_) => "environment",
            Self::Flag(_) => "flag",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default { line } => write!(f, "the default settings, line {line}"),
            Self::Derived(from) => f.write_str(from),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and its origin; a table's own origin is its first mention.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Boolean(bool),
    Integer(i64),
    Float(f64),
    String(String),
    /// From a variable or a flag: its type is that of the setting it is read as.
    Text(String),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    pub(super) fn table(origin: Origin) -> Self {
        Self { value: Value::Table(BTreeMap::new()), origin }
    }

    pub(super) fn text(text: impl Into<String>, origin: Origin) -> Self {
        Self { value: Value::Text(text.into()), origin }
    }

    pub(super) fn entries(&self) -> Option<&BTreeMap<String, Node>> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    pub(super) fn entries_mut(&mut self) -> Option<&mut BTreeMap<String, Node>> {
        match &mut self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// The node at the end of a path.
    pub(super) fn get(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| node.entries()?.get(*key))
    }

    /// Lays a stronger layer over this one.
    pub(super) fn overlay(&mut self, stronger: Self) {
        match (&mut self.value, stronger.value) {
            (Value::Table(mine), Value::Table(theirs)) => {
                for (key, node) in theirs {
                    match mine.get_mut(&key) {
                        Some(existing) => existing.overlay(node),
                        None => _ = mine.insert(key, node),
                    }
                }
            }
            (mine, theirs) => {
                *mine = theirs;
                self.origin = stronger.origin;
            }
        }
    }

    /// Fills in from a weaker node what is absent here.
    pub(super) fn underlay(&mut self, weaker: &Self) {
        if let (Value::Table(mine), Value::Table(theirs)) = (&mut self.value, &weaker.value) {
            for (key, node) in theirs {
                match mine.get_mut(key) {
                    Some(existing) => existing.underlay(node),
                    None => _ = mine.insert(key.clone(), node.clone()),
                }
            }
        }
    }

    /// Sets the value that a variable names by `segments`, in upper case, and finds the keys that
    /// are meant: those that exist, whatever their case and punctuation, or new ones in lower case.
    pub(super) fn set_variable(
        &mut self,
        segments: &[&str],
        variable: &str,
        text: &str,
    ) -> Result<(), Error> {
        let origin = Origin::Variable(variable.to_owned());
        let Some((segment, rest)) = segments.split_first() else {
            *self = Self::text(text, origin);
            return Ok(());
        };
        if self.entries().is_none() {
            *self = Self::table(origin.clone());
        }
        let Some(entries) = self.entries_mut() else {
            return Ok(());
        };
        let meant: Vec<String> =
            entries.keys().filter(|key| as_variable(key) == *segment).cloned().collect();
        let key = match meant.as_slice() {
            [] => segment.to_ascii_lowercase(),
            [key] => key.clone(),
            [one, other, ..] => {
                let message = format!("may mean `{one}` or `{other}`; set it in a file instead");
                return Err(Error::new(Some(origin), "", message));
            }
        };
        entries.entry(key).or_insert_with(|| Self::table(origin)).set_variable(rest, variable, text)
    }
}

/// A key as it is written in the name of a variable.
pub(super) fn as_variable(key: &str) -> String {
    key.chars().map(|c| if matches!(c, '.' | '-') { '_' } else { c.to_ascii_uppercase() }).collect()
}

/// Reads a TOML document; `origin` says where a line of it stands.
pub(super) fn parse(text: &str, origin: &dyn Fn(usize) -> Origin) -> Result<Node, Error> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Error::new(Some(origin(line(text, at))), "", error.message())
    })?;
    let reader = Reader { text, origin };
    Ok(Node { value: reader.table(table.get_ref())?, origin: origin(1) })
}

/// Reads what a variable or flag says as a TOML value, if it is one.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Option<Value> {
    let value = DeValue::parse(text).ok()?;
    Reader { text, origin: &|_| origin.clone() }.value(value.get_ref(), 0).ok()
}

fn line(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count()
}

struct Reader<'a> {
    text: &'a str,
    origin: &'a dyn Fn(usize) -> Origin,
}

impl Reader<'_> {
    fn table(&self, table: &DeTable<'_>) -> Result<Value, Error> {
        let entries = table.iter().map(|(key, value)| {
            let at = key.span().start;
            let node = Node {
                value: self.value(value.get_ref(), at)?,
                origin: (self.origin)(line(self.text, at)),
            };
            Ok((key.get_ref().clone().into_owned(), node))
        });
        Ok(Value::Table(entries.collect::<Result<_, Error>>()?))
    }

    fn value(&self, value: &DeValue<'_>, at: usize) -> Result<Value, Error> {
        let wrong = |message: &str| {
            Error::new(Some((self.origin)(line(self.text, at))), "", message.to_owned())
        };
        Ok(match value {
            DeValue::Boolean(value) => Value::Boolean(*value),
            DeValue::Integer(value) => Value::Integer(
                i64::from_str_radix(value.as_str(), value.radix())
                    .map_err(|_| wrong("the number is too large"))?,
            ),
            DeValue::Float(value) => match value.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Value::Float(number),
                _ => return Err(wrong("`inf` and `nan` are not allowed")),
            },
            DeValue::String(value) => Value::String(value.clone().into_owned()),
            DeValue::Datetime(value) => Value::String(value.to_string()),
            DeValue::Array(values) => {
                let nodes = values.iter().map(|value| {
                    let at = value.span().start;
                    let origin = (self.origin)(line(self.text, at));
                    Ok(Node { value: self.value(value.get_ref(), at)?, origin })
                });
                Value::Array(nodes.collect::<Result<_, Error>>()?)
            }
            DeValue::Table(table) => self.table(table)?,
        })
    }
}

/// As it would be written in TOML.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::String(text) => quoted(f, text),
            Self::Text(text) => match parse_value(text, &Origin::Derived("")) {
                Some(value) => write!(f, "{value}"),
                None => quoted(f, text),
            },
            Self::Array(nodes) => {
                f.write_str("[")?;
                for (at, node) in nodes.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{}", node.value)?;
                }
                f.write_str("]")
            }
            Self::Table(entries) => {
                f.write_str("{")?;
                for (at, (key, node)) in entries.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    write!(f, "{comma} {} = {}", Key(key), node.value)?;
                }
                f.write_str(" }")
            }
        }
    }
}

/// A key as it would be written in TOML.
pub(super) struct Key<'a>(pub(super) &'a str);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = !self.0.is_empty()
            && self.0.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if bare { f.write_str(self.0) } else { quoted(f, self.0) }
    }
}

/// TOML's basic strings are JSON's, but for the control character DEL.
fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let json = serde_json::Value::from(text).to_string();
    f.write_str(&json.replace('\u{7f}', "\\u007F"))
}
