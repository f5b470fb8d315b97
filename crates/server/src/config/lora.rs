//! The LoRAs of a model: `name = "/path"`, or, for models with two experts, `name = { high = "/path",
//! low = "/path" }`.

use std::fmt;

use rayreel_domain::wire::engine::LoraFiles;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where the weights of a LoRA lie; once checked, absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lora(LoraFiles);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Experts {
    high: String,
    low: String,
}

impl Lora {
    pub fn files(&self) -> &LoraFiles {
        &self.0
    }

    /// Each path, and its key below that of the LoRA, if it has one.
    pub(super) fn paths(&self) -> Vec<(Option<&'static str>, &str)> {
        match &self.0 {
            LoraFiles::Whole { path } => vec![(None, path)],
            LoraFiles::Experts { high, low } => vec![(Some("high"), high), (Some("low"), low)],
        }
    }
}

impl Serialize for Lora {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.clone() {
            LoraFiles::Whole { path } => serializer.serialize_str(&path),
            LoraFiles::Experts { high, low } => Experts { high, low }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Lora {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Files;

        impl<'de> Visitor<'de> for Files {
            type Value = LoraFiles;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the path of a file, or a table of two: { high = …, low = … }")
            }

            fn visit_str<E>(self, path: &str) -> Result<LoraFiles, E> {
                Ok(LoraFiles::Whole { path: path.to_owned() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<LoraFiles, A::Error> {
                let Experts { high, low } = Experts::deserialize(MapAccessDeserializer::new(map))?;
                Ok(LoraFiles::Experts { high, low })
            }
        }

        deserializer.deserialize_any(Files).map(Self)
    }
}
