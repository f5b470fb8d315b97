//! Ids and names: newtypes that exist only in their valid form.

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// A string that is not what it should name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            /// A new id from a time and 74 bits of randomness (the last six bits of `random` are
            /// unused).
            pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid())
            }

            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", Self::PREFIX, self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                text.strip_prefix(Self::PREFIX)
                    .filter(|hex| {
                        hex.len() == 32
                            && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                    })
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or_else(|| {
                        Malformed(
                            concat!($what, " id is `", $prefix, "` and 32 hexadecimal digits")
                                .to_owned(),
                        )
                    })
            }
        }
    };
}

id!(
    /// Id of a task: `task_` and a UUIDv7 (RFC 9562) in 32 hexadecimal digits.
    TaskId, "task_", "a task"
);
id!(
    /// Id of an uploaded file: `file_` and a UUIDv7.
    FileId, "file_", "a file"
);

/// Sixty-four random bits that make an attempt's fence unguessable and unique even if a store fell
/// back to an older state. Sixteen hexadecimal digits on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub u64);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Nonce {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() == 16
            && let Ok(bits) = u64::from_str_radix(text, 16)
        {
            return Ok(Self(bits));
        }
        Err(Malformed("a nonce is 16 hexadecimal digits".to_owned()))
    }
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <alloc::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

serde_as_text!(TaskId);
serde_as_text!(FileId);
serde_as_text!(Nonce);

/// Longest name of a tenant, pool, model, LoRA or worker, in bytes.
pub const MAX_NAME: usize = 64;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $marks:literal, $spelt:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                let word = |word: &str| {
                    word.bytes().all(|b| b.is_ascii_alphanumeric() || $marks.contains(&b))
                        && word.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
                };
                // Where a slash is no mark, only one word passes.
                if text.len() <= MAX_NAME && word(text) && text.split('/').all(word) {
                    return Ok(Self(text.to_string()));
                }
                Err(Malformed(alloc::format!(
                    "the name of a {} is 1 to {MAX_NAME} letters, digits, {}, \
                     a letter or digit first",
                    $what,
                    $spelt
                )))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <alloc::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// Who owns an API key; `default` while there are no keys.
    TenantName, "tenant", b"._-", "`.`, `_` and `-`"
);
name!(
    /// Workers that are alike, and the provider that starts them.
    PoolName, "pool", b"._-", "`.`, `_` and `-`"
);
name!(
    /// The public name of a model; with slashes, as model hubs write theirs.
    ModelName, "model", b"._-/", "`.`, `_`, `-` and `/`"
);
name!(
    /// A LoRA of a model; written as the names of models are.
    LoraName, "LoRA", b"._-/", "`.`, `_`, `-` and `/`"
);
name!(
    /// A worker process; whoever registers the name again ends the one before.
    WorkerName, "worker", b"._-", "`.`, `_` and `-`"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_id_is_read_back_from_its_text() {
        let id = TaskId::new(1_700_000_000_000, [7; 10]);
        let text = id.to_string();
        assert!(text.starts_with("task_018bcfe568007"), "{text} is a UUIDv7 of that time");
        assert_eq!(text.parse::<TaskId>(), Ok(id));
    }

    #[test]
    fn later_ids_sort_later() {
        assert!(TaskId::new(1, [255; 10]) < TaskId::new(2, [0; 10]));
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in [
            "",
            "task_",
            "018bcfe5",
            "task_018BCFE5680070707070707070707070",
            "task_018bcfe5-6800-7070-7070-707070707070",
            "job_018bcfe5680070707070707070707070",
        ] {
            assert!(text.parse::<TaskId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names_are_plain_words() {
        for good in ["a", "wan2.2-t2v-a14b", "A_1"] {
            assert!(good.parse::<PoolName>().is_ok(), "{good:?}");
        }
        for bad in ["", ".", "-x", "a b", "a/b", "é", &"x".repeat(65)] {
            assert!(bad.parse::<PoolName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_model_may_be_named_as_on_a_hub() {
        for good in ["a", "Wan-AI/Wan2.2-T2V-A14B", "a/b/c"] {
            assert!(good.parse::<ModelName>().is_ok(), "{good:?}");
        }
        for bad in ["/", "/a", "a/", "a//b", "a/../b", "a/.b", "a\\b"] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad:?}");
        }
    }
}
