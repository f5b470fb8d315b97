//! Who may call: API keys, and the tokens by which this machine's own processes are known.
//!
//! As long as no key has ever been made, whoever reaches the server is its owner: it listens on the
//! loopback interface only. From the first key on everybody needs one; to revoke the last does not
//! open the door again. The keys of the store are held in memory, so that a request costs one hash
//! and no query.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, RwLock};

use rayreel_domain::Timestamp;
use rayreel_domain::id::TenantName;
use rayreel_domain::key::{Key, KeyRecord, Scope};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::Components;
use crate::store;

/// The tenant of everybody who has no key that names another.
pub const DEFAULT_TENANT: &str = "default";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub tenant: TenantName,
    pub scopes: BTreeSet<Scope>,
    /// Id of the key; none for the owner of an open server, and for this machine's processes.
    pub key: Option<String>,
}

impl Caller {
    fn local(scopes: impl IntoIterator<Item = Scope>) -> Arc<Self> {
        let tenant = DEFAULT_TENANT.parse().expect("it is a name");
        Arc::new(Self { tenant, scopes: scopes.into_iter().collect(), key: None })
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// Secrets that are not in the store.
#[derive(Clone, Default)]
pub struct Credentials {
    /// What workers send as bearer token.
    pub worker_token: String,
    /// What clients send that can read the data directory.
    pub client_token: String,
    /// The operator's own key, from RAYREEL_ADMIN_KEY.
    pub admin_key: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// All that opens the door.
#[derive(Debug)]
pub struct Keyring {
    known: RwLock<HashMap<String, Known>>,
    credentials: Credentials,
    owner: Arc<Caller>,
    worker: Arc<Caller>,
}

#[derive(Debug)]
struct Known {
    record: KeyRecord,
    caller: Arc<Caller>,
}

impl Keyring {
    /// One without keys; [`Keyring::load`] brings them.
    pub fn new(credentials: Credentials) -> Self {
        Self {
            known: RwLock::default(),
            credentials,
            owner: Caller::local(Scope::ALL),
            worker: Caller::local([Scope::Worker]),
        }
    }

    /// Takes the keys as they are in the store.
    pub async fn load(&self, store: &dyn store::Store) -> Result<(), store::Error> {
        let records = store.keys().await?;
        let known = records.into_iter().map(|record| (record.id.clone(), Known::new(record)));
        *self.write() = known.collect();
        Ok(())
    }

    /// Makes a key. Its text is returned here and nowhere else.
    pub async fn create(
        &self,
        components: &Components,
        name: String,
        tenant: TenantName,
        scopes: BTreeSet<Scope>,
        expires_at: Option<Timestamp>,
    ) -> Result<(Key, KeyRecord), store::Error> {
        let key = Key::new(|| components.random.number() as u8);
        let record = KeyRecord {
            id: key.id().to_owned(),
            name,
            tenant,
            scopes,
            hash: key.hash(),
            created_at: components.clock.wall(),
            expires_at,
            revoked_at: None,
        };
        components.store.put_key(record.clone()).await?;
        self.write().insert(record.id.clone(), Known::new(record.clone()));
        Ok((key, record))
    }

    /// Ends a key for good; the record, if there is such a key.
    pub async fn revoke(
        &self,
        components: &Components,
        id: &str,
    ) -> Result<Option<KeyRecord>, store::Error> {
        let Some(mut record) = self.read().get(id).map(|known| known.record.clone()) else {
            return Ok(None);
        };
        record.revoked_at.get_or_insert(components.clock.wall());
        components.store.put_key(record.clone()).await?;
        self.write().insert(record.id.clone(), Known::new(record.clone()));
        Ok(Some(record))
    }

    /// Every key, oldest first.
    pub fn list(&self) -> Vec<KeyRecord> {
        let mut records: Vec<_> = self.read().values().map(|known| known.record.clone()).collect();
        records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        records
    }

    /// Has there ever been a key?
    pub fn is_locked(&self) -> bool {
        self.credentials.admin_key.is_some() || !self.read().is_empty()
    }

    /// Everybody, as long as there are no keys.
    pub fn owner(&self) -> Arc<Caller> {
        Arc::clone(&self.owner)
    }

    /// Whom this bearer token belongs to.
    pub fn authenticate(&self, token: &[u8], now: Timestamp) -> Option<Arc<Caller>> {
        let text = std::str::from_utf8(token).ok()?;
        if let Ok(key) = text.parse::<Key>()
            && let Some(known) = self.read().get(key.id())
        {
            let right = bool::from(key.hash().as_bytes().ct_eq(known.record.hash.as_bytes()));
            return (right && known.record.live(now)).then(|| Arc::clone(&known.caller));
        }
        let credentials = &self.credentials;
        let admin = credentials.admin_key.as_deref().unwrap_or_default();
        for (secret, caller) in [
            (&*credentials.client_token, &self.owner),
            (admin, &self.owner),
            (&*credentials.worker_token, &self.worker),
        ] {
            // As hashes, so that not even the length can be felt for.
            let same = Sha256::digest(secret.as_bytes()).ct_eq(&Sha256::digest(token));
            if !secret.is_empty() && bool::from(same) {
                return Some(Arc::clone(caller));
            }
        }
        None
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Known>> {
        self.known.read().expect("nothing panics while it holds this lock")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Known>> {
        self.known.write().expect("nothing panics while it holds this lock")
    }
}

impl Known {
    fn new(record: KeyRecord) -> Self {
        let caller = Caller {
            tenant: record.tenant.clone(),
            scopes: record.scopes.clone(),
            key: Some(record.id.clone()),
        };
        Self { record, caller: Arc::new(caller) }
    }
}
