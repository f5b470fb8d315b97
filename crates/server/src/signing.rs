//! What the server signs: webhooks, as <https://www.standardwebhooks.com> says, and links to files
//! that need no key. The secrets are in the store, so that whoever has a copy of it can go on.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use rayreel_domain::id::{TaskId, TenantName};
use rayreel_domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::clock::Random;

/// How long a webhook secret that was replaced goes on signing.
pub const OVERLAP_MS: u64 = 24 * 3_600_000;
/// Most old secrets that sign beside the new one: whoever rotates more often cuts the oldest short.
const MAX_OLD: usize = 4;
/// Name of the secret of links.
pub const LINKS: &str = "links";
/// What a secret of Standard Webhooks begins with.
const PREFIX: &str = "whsec_";

/// Name of a tenant's webhook secret.
pub fn webhooks_of(tenant: &TenantName) -> String {
    format!("webhooks/{tenant}")
}

/// A secret, and those that it has replaced.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    key: Key,
    pub created_at: Timestamp,
    /// Newest first.
    #[serde(default)]
    old: Vec<Old>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Old {
    key: Key,
    until: Timestamp,
}

/// Random bytes; in base64 wherever they are written.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Key(Vec<u8>);

impl TryFrom<String> for Key {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        STANDARD.encode(key.0)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("created_at", &self.created_at).finish_non_exhaustive()
    }
}

impl Secret {
    pub fn new(random: &Random, now: Timestamp) -> Self {
        let bytes: Vec<u8> = (0..4).flat_map(|_| random.number().to_be_bytes()).collect();
        Self { key: Key(bytes), created_at: now, old: Vec::new() }
    }

    /// This one as the successor of another, which goes on for so long.
    pub(crate) fn after(self, other: Self, ms: u64) -> Self {
        let now = self.created_at;
        let last = Old { key: other.key, until: now.plus_ms(ms) };
        let old = std::iter::once(last).chain(other.old).filter(|old| old.until > now);
        Self { old: old.take(MAX_OLD).collect(), ..self }
    }

    /// As the libraries of Standard Webhooks take it.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.key.0))
    }

    /// Until when its predecessors go on.
    pub fn overlaps(&self, now: Timestamp) -> impl Iterator<Item = Timestamp> {
        self.old.iter().map(|old| old.until).filter(move |until| *until > now)
    }

    /// The header `webhook-signature`: one signature of each secret in force.
    pub fn sign_webhook(&self, id: &str, seconds: u64, body: &[u8], now: Timestamp) -> String {
        let old = self.old.iter().filter(|old| old.until > now).map(|old| &old.key);
        let signed = std::iter::once(&self.key).chain(old).map(|key| {
            let head = format!("{id}.{seconds}.");
            let code = mac(key, &[head.as_bytes(), body]).finalize().into_bytes();
            format!("v1,{}", STANDARD.encode(code))
        });
        signed.collect::<Vec<_>>().join(" ")
    }

    /// The signature of a link to a file of a task, good until the Unix second `expires`.
    pub fn sign_link(&self, task: TaskId, variant: &str, expires: u64) -> String {
        URL_SAFE_NO_PAD.encode(self.link(task, variant, expires).finalize().into_bytes())
    }

    /// Is that the signature? Compared in constant time.
    pub fn signed_link(&self, task: TaskId, variant: &str, expires: u64, signature: &str) -> bool {
        let given = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
        self.link(task, variant, expires).verify_slice(&given).is_ok()
    }

    fn link(&self, task: TaskId, variant: &str, expires: u64) -> Hmac<Sha256> {
        mac(&self.key, &[format!("rayreel link 1\n{task}\n{variant}\n{expires}").as_bytes()])
    }
}

fn mac(key: &Key, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("any length is taken");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn secret(seed: u64, now: Timestamp) -> Secret {
        Secret::new(&Random::from_seed(seed), now)
    }

    /// The vector that the libraries of Standard Webhooks test themselves with.
    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        let key = Key::try_from("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()).expect("base64");
        let secret = Secret { key, ..secret(1, NOW) };
        assert_eq!(secret.text(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = br#"{"test": 2432232314}"#;
        let signed = secret.sign_webhook("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body, NOW);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn for_a_while_the_old_secret_signs_too() {
        let (first, body) = (secret(1, NOW), b"{}");
        let later = NOW.plus_ms(1_000);
        let second = secret(2, later).after(first.clone(), OVERLAP_MS);
        assert_ne!(second.text(), first.text());
        let until = later.plus_ms(OVERLAP_MS);
        assert_eq!(second.overlaps(later).collect::<Vec<_>>(), [until]);
        let both = second.sign_webhook("id", 1, body, later);
        let (new, old) = both.split_once(' ').expect("two signatures");
        assert_eq!(old, first.sign_webhook("id", 1, body, later));
        assert_eq!(second.sign_webhook("id", 1, body, until), new);
        assert_eq!(second.overlaps(until).count(), 0);
    }

    #[test]
    fn whoever_rotates_often_has_few_old_secrets() {
        let mut newest = secret(0, NOW);
        for seed in 1..10 {
            newest = secret(seed, NOW).after(newest, OVERLAP_MS);
        }
        assert_eq!(newest.overlaps(NOW).count(), MAX_OLD);
        let later = NOW.plus_ms(OVERLAP_MS);
        assert_eq!(secret(11, later).after(newest, OVERLAP_MS).overlaps(later).count(), 1);
    }

    #[test]
    fn a_link_is_good_for_what_was_signed_and_nothing_else() {
        let secret = secret(1, NOW);
        let (task, other) = (TaskId::new(1, [1; 10]), TaskId::new(1, [2; 10]));
        let signature = secret.sign_link(task, "", 100);
        assert!(secret.signed_link(task, "", 100, &signature));
        assert!(!secret.signed_link(other, "", 100, &signature));
        assert!(!secret.signed_link(task, "thumbnail", 100, &signature));
        assert!(!secret.signed_link(task, "", 101, &signature));
        for wrong in
            ["", "=", "é", &signature[1..], &format!("{signature}A"), &signature.to_lowercase()]
        {
            assert!(!secret.signed_link(task, "", 100, wrong), "{wrong}");
        }
        assert!(!self::secret(2, NOW).signed_link(task, "", 100, &signature));
    }

    #[test]
    fn the_log_sees_no_secret() {
        let secret = secret(1, NOW);
        assert!(!format!("{secret:?}").contains(&STANDARD.encode(&secret.key.0)));
    }
}
