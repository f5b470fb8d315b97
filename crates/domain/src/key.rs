//! API keys: who may call, as which tenant, and what for.
//!
//! A key is `rr_`, an id of 12 characters and a secret of 40, in base 36, with `_` between them.
//! The id finds its record; of the whole only a SHA-256 hash is stored. A slow hash would protect
//! nothing: the secret has 200 random bits, which nobody guesses.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::id::{Malformed, PoolName, TenantName};
use crate::time::Timestamp;

const PREFIX: &str = "rr_";
const ID_CHARS: usize = 12;
const SECRET_CHARS: usize = 40;
/// Longest name of a key, in characters.
pub const MAX_KEY_NAME: usize = 100;

/// What a key is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Scope {
    /// Submitting, cancelling and deleting tasks, and uploading files.
    Submit,
    /// Reading tasks, their events and their content.
    Read,
    /// Keys, and everything else that concerns all tenants.
    Admin,
    /// Working: the worker API, for the tasks of every tenant.
    Worker,
}

impl Scope {
    pub const ALL: [Self; 4] = [Self::Submit, Self::Read, Self::Admin, Self::Worker];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Read => "read",
            Self::Admin => "admin",
            Self::Worker => "worker",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        found.ok_or_else(|| Malformed("a scope is submit, read, admin or worker".into()))
    }
}

/// Everything known of a key, which is not the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    pub id: String,
    /// What it is for, in its owner's words.
    pub name: String,
    pub tenant: TenantName,
    pub scopes: BTreeSet<Scope>,
    /// The only pool whose workers it is good for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Lower-case hexadecimal SHA-256 of the key.
    pub hash: String,
    pub created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// From then on it is refused; the record stays, so that it can be told from one never made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

impl KeyRecord {
    /// Is it in force?
    pub fn live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

/// A key in plain text. It is shown once, and never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    text: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({PREFIX}{}_…)", self.id())
    }
}

impl Key {
    /// A new key. Each of its characters takes one random byte below 252, and passes over those
    /// above, so that all are equally likely.
    pub fn new(mut random: impl FnMut() -> u8) -> Self {
        let mut character = || loop {
            let byte = random();
            if byte < 252 {
                break char::from_digit(u32::from(byte % 36), 36).expect("below the base");
            }
        };
        let id: String = (0..ID_CHARS).map(|_| character()).collect();
        let secret: String = (0..SECRET_CHARS).map(|_| character()).collect();
        Self { text: format!("{PREFIX}{id}_{secret}") }
    }

    pub fn id(&self) -> &str {
        &self.text[PREFIX.len()..PREFIX.len() + ID_CHARS]
    }

    /// The whole key.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Lower-case hexadecimal SHA-256.
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(self.text.as_bytes());
        let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
    }
}

impl FromStr for Key {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let base36 = |part: &str, length| {
            part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z'))
        };
        let parts = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_'));
        match parts {
            Some((id, secret)) if base36(id, ID_CHARS) && base36(secret, SECRET_CHARS) => {
                Ok(Self { text: text.into() })
            }
            _ => Err(Malformed("a key is `rr_`, 12 characters, `_` and 40 characters".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(first: u8) -> Key {
        let mut next = first;
        Key::new(|| {
            next = next.wrapping_add(7);
            next
        })
    }

    #[test]
    fn a_key_is_read_as_it_is_written() {
        let key = key(1);
        assert_eq!(key.text().len(), 3 + 12 + 1 + 40);
        assert_eq!(key.text().parse(), Ok(key.clone()));
        assert!(key.text().starts_with(&format!("rr_{}_", key.id())));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = key(1);
        let good = good.text();
        for bad in [
            "",
            "rr_",
            &good[1..],
            &good[..good.len() - 1],
            &format!("{good}0"),
            &good.to_uppercase(),
            &good.replace("rr_", "rr-"),
            &good.replacen('_', "é", 2),
        ] {
            assert!(bad.parse::<Key>().is_err(), "{bad}");
        }
    }

    #[test]
    fn neither_the_log_nor_the_store_sees_a_key() {
        let key = key(9);
        assert!(!format!("{key:?}").contains(&key.text()[16..]));
        assert_eq!(key.hash().len(), 64);
        assert_ne!(key.hash(), self::key(10).hash());
    }

    #[test]
    fn a_key_lives_until_it_is_revoked_or_expires() {
        let record = KeyRecord {
            id: "x".into(),
            name: String::new(),
            tenant: "anna".parse().expect("a name"),
            scopes: BTreeSet::new(),
            pool: None,
            hash: String::new(),
            created_at: Timestamp(1),
            expires_at: None,
            revoked_at: None,
        };
        assert!(record.live(Timestamp(u64::MAX)));
        assert!(!KeyRecord { revoked_at: Some(Timestamp(5)), ..record.clone() }.live(Timestamp(1)));
        let expiring = KeyRecord { expires_at: Some(Timestamp(5)), ..record };
        assert!(expiring.live(Timestamp(4)) && !expiring.live(Timestamp(5)));
    }
}
