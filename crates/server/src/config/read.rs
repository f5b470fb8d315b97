//! Reads a [`Node`] as any type that serde can, so that an error names where the value stands and
//! what is right.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::tree::{Node, Origin, Value, as_variable, parse_value};
use super::{Error, OTHER_VARIABLES};

/// Reads the whole tree.
pub(super) fn read<T: de::DeserializeOwned>(root: &Node, defaults: &Node) -> Result<T, Error> {
    T::deserialize(At { node: root }).map_err(|fault| fault.explain(defaults))
}

/// What serde says is wrong, and where, as far as it is known yet.
#[derive(Debug)]
pub(super) struct Fault {
    path: Vec<String>,
    origin: Option<Origin>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Message(String),
    /// The last key of the path does not exist; these do.
    Unknown(&'static [&'static str]),
    Missing(&'static str),
}

impl Fault {
    fn new(kind: Kind) -> Self {
        Self { path: Vec::new(), origin: None, kind }
    }

    /// Adds the key above to the path. The innermost origin is the one that counts.
    fn under(mut self, key: &str, node: &Node) -> Self {
        self.path.insert(0, key.to_owned());
        self.at(node)
    }

    fn at(mut self, node: &Node) -> Self {
        self.origin.get_or_insert_with(|| node.origin.clone());
        self
    }

    fn explain(self, defaults: &Node) -> Error {
        let message = match self.kind {
            Kind::Message(message) => message,
            Kind::Missing(key) => format!("`{key}` is missing"),
            Kind::Unknown(allowed) => {
                return unknown(&self.path, self.origin, allowed, Some(defaults));
            }
        };
        Error::new(self.origin, &self.path.join("."), message)
    }
}

/// Names the nearest key that exists: a sibling that is spelt alike, or the same key elsewhere.
pub(super) fn unknown(
    path: &[String],
    origin: Option<Origin>,
    allowed: &[&str],
    defaults: Option<&Node>,
) -> Error {
    let (last, above) =
        path.split_last().map_or(("", path), |(last, above)| (last.as_str(), above));
    let others: &[&str] = match origin {
        Some(Origin::Variable(_)) if above.is_empty() => OTHER_VARIABLES,
        _ => &[],
    };
    let sibling = nearest(last, allowed.iter().chain(others).copied());
    let meant = match sibling {
        Some(key) => Some([above, &[key.to_owned()]].concat()),
        None => defaults.and_then(|defaults| elsewhere(last, defaults)),
    };
    let spell = |path: &[String]| match &origin {
        Some(Origin::Variable(_)) => format!(
            "RAYREEL_{}",
            path.iter().map(|key| as_variable(key)).collect::<Vec<_>>().join("__")
        ),
        _ => path.join("."),
    };
    let hint = match meant {
        Some(path) => format!("did you mean `{}`?", spell(&path)),
        None if above.is_empty() => "`rayreel config default` shows all settings".to_owned(),
        None => format!("`{}` has {}", above.join("."), allowed.join(", ")),
    };
    let message = match &origin {
        Some(Origin::Variable(_)) => format!("there is no such setting; {hint}"),
        _ => format!("there is no setting `{}`; {hint}", path.join(".")),
    };
    Error::new(origin, "", message)
}

/// The word that is spelt most alike, if it is alike at all.
pub(super) fn nearest<'a>(word: &str, among: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    among
        .map(|known| (strsim::damerau_levenshtein(word, known), known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min()
        .map(|(_, known)| known)
}

/// The same key, or one that is spelt alike, in another table.
fn elsewhere(key: &str, node: &Node) -> Option<Vec<String>> {
    let entries = node.entries()?;
    if let Some(known) = nearest(key, entries.keys().map(String::as_str)) {
        return Some(vec![known.to_owned()]);
    }
    entries.iter().find_map(|(name, node)| {
        let mut path = elsewhere(key, node)?;
        path.insert(0, name.clone());
        Some(path)
    })
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Message(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = match expected.to_string().as_str() {
            "u8" | "u16" | "u32" | "u64" => "a whole number, not negative".to_owned(),
            "f64" => "a number".to_owned(),
            "struct" => "a table".to_owned(),
            other if other.starts_with("struct ") || other == "a map" => "a table".to_owned(),
            "a sequence" => "a list of texts".to_owned(),
            "a string" => "a text in quotes".to_owned(),
            other => other.to_owned(),
        };
        let found = match found {
            Unexpected::Str(text) => format!("the text `{text}`"),
            Unexpected::Signed(number) => format!("`{number}`"),
            Unexpected::Float(number) => format!("`{number}`"),
            Unexpected::Bool(value) => format!("`{value}`"),
            Unexpected::Map => "a table".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            other => other.to_string(),
        };
        Self::custom(format_args!("must be {expected}, not {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(_: &str, allowed: &'static [&'static str]) -> Self {
        Self::new(Kind::Unknown(allowed))
    }

    fn unknown_variant(variant: &str, allowed: &'static [&'static str]) -> Self {
        Self::custom(format_args!("must be one of {}, not `{variant}`", allowed.join(", ")))
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Kind::Missing(key))
    }
}

/// A place in the tree, as a deserializer.
#[derive(Clone, Copy)]
struct At<'a> {
    node: &'a Node,
}

impl<'a> At<'a> {
    /// Visits a value whose type TOML gives.
    fn typed<'de, V: Visitor<'de>>(
        value: &Value,
        node: &'a Node,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match value {
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) | Value::Text(text) => visitor.visit_str(text),
            Value::Array(nodes) => visitor.visit_seq(Elements { nodes: nodes.iter() }),
            Value::Table(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), value: None })
            }
        }
        .map_err(|fault: Fault| fault.at(node))
    }

    /// The text of a variable or flag, where a number or the like is wanted.
    fn scalar<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Text(text) => match parse_value(text.trim(), &self.node.origin) {
                // In quotes, it is still not a number.
                Some(value) => Self::typed(&value, self.node, visitor),
                None => Self::typed(&self.node.value, self.node, visitor),
            },
            value => Self::typed(value, self.node, visitor),
        }
    }
}

macro_rules! scalars {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.scalar(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for At<'_> {
    type Error = Fault;

    scalars! {
        deserialize_any deserialize_bool deserialize_u8 deserialize_u16 deserialize_u32
        deserialize_u64 deserialize_i64 deserialize_f64 deserialize_seq deserialize_map
    }

    /// A text is taken as it is, even one that looks like a number.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        Self::typed(&self.node.value, self.node, visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::String(text) | Value::Text(text) => visitor.visit_enum(Variant(text)),
            _ => Err(Fault::new(Kind::Message("must be a text in quotes".to_owned()))),
        }
        .map_err(|fault| fault.at(self.node))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

struct Elements<'a> {
    nodes: std::slice::Iter<'a, Node>,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        self.nodes.next().map(|node| seed.deserialize(At { node })).transpose()
    }
}

struct Entries<'a> {
    entries: std::collections::btree_map::Iter<'a, String, Node>,
    value: Option<(&'a str, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some((key, node)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some((key, node));
        let name: StrDeserializer<'_, Fault> = key.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|fault| fault.under(key, node))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = self.value.take().expect("serde asks for the key first");
        seed.deserialize(At { node }).map_err(|fault| fault.under(key, node))
    }
}

/// A variant without content.
struct Variant<'a>(&'a str);

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Fault;
    type Variant = Unit;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Unit), Fault> {
        let name: StrDeserializer<'_, Fault> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, Unit))
    }
}

struct Unit;

impl<'de> VariantAccess<'de> for Unit {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Fault> {
        Err(not_unit())
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(not_unit())
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fault> {
        Err(not_unit())
    }
}

fn not_unit() -> Fault {
    Fault::new(Kind::Message("must be a single word".to_owned()))
}
