//! Who may call: API keys, and the tokens by which this machine's own processes are known.
//!
//! As long as no key has ever been made, whoever reaches the server is its owner: it listens on the
//! loopback interface only. From the first key on everybody needs one; to revoke the last does not
//! open the door again. The keys of the store are held in memory, so that a request costs one hash
//! and no query.
//!
//! A key that is revoked or expires ends what is open with it, and the first key ends what came in
//! through the open door: whoever lets a [`Caller`] in goes on only until [`Caller::ended`].

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use rayreel_domain::Timestamp;
use rayreel_domain::id::{PoolName, TenantName};
use rayreel_domain::key::{Key, KeyRecord, Scope};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::Components;
use crate::store;

/// The tenant of everybody who has no key that names another.
pub const DEFAULT_TENANT: &str = "default";

/// Who asks.
#[derive(Debug)]
pub struct Caller {
    pub tenant: TenantName,
    pub scopes: BTreeSet<Scope>,
    /// Id of the key; none for the owner of an open server, and for this machine's processes.
    pub key: Option<String>,
    /// The only pool that it may work for.
    pub pool: Option<PoolName>,
    /// Cancelled when it may not call any more; none if that never comes.
    end: Option<CancellationToken>,
}

impl Caller {
    fn local(scopes: impl IntoIterator<Item = Scope>, end: Option<CancellationToken>) -> Arc<Self> {
        let tenant = DEFAULT_TENANT.parse().expect("it is a name");
        Arc::new(Self { tenant, scopes: scopes.into_iter().collect(), key: None, pool: None, end })
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Ends what it has open.
    fn dismiss(&self) {
        if let Some(end) = &self.end {
            end.cancel();
        }
    }

    /// May it not call any more?
    pub fn is_over(&self) -> bool {
        self.end.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// Waits until it may not call any more; none if that never comes.
    pub fn ended(&self) -> Option<WaitForCancellationFutureOwned> {
        self.end.clone().map(CancellationToken::cancelled_owned)
    }
}

/// What a key is to be.
#[derive(Debug)]
pub struct NewKey {
    pub name: String,
    pub tenant: TenantName,
    pub scopes: BTreeSet<Scope>,
    pub pool: Option<PoolName>,
    pub expires_at: Option<Timestamp>,
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

/// Id under which the store remembers that there was an operator's key. No key has one like it.
const NOTE: &str = "admin-key";

/// A record that opens nothing, by which it is known that the door has been closed.
fn note(now: Timestamp) -> KeyRecord {
    KeyRecord {
        id: NOTE.to_owned(),
        name: "RAYREEL_ADMIN_KEY".to_owned(),
        tenant: DEFAULT_TENANT.parse().expect("it is a name"),
        scopes: BTreeSet::new(),
        pool: None,
        hash: String::new(),
        created_at: now,
        expires_at: None,
        revoked_at: Some(now),
    }
}

/// The keys in the store.
pub async fn stored(store: &dyn store::Store) -> Result<Vec<KeyRecord>, store::Error> {
    let mut records = store.keys().await?;
    records.retain(|record| record.id != NOTE);
    Ok(records)
}

/// All that opens the door.
#[derive(Debug)]
pub struct Keyring {
    known: RwLock<HashMap<String, Known>>,
    /// Is a key needed?
    locked: AtomicBool,
    credentials: Credentials,
    /// Everybody, as long as the door is open.
    guest: Arc<Caller>,
    owner: Arc<Caller>,
    worker: Arc<Caller>,
    /// Woken when a key has been made that expires.
    pub expiring: Notify,
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
            locked: AtomicBool::new(credentials.admin_key.is_some()),
            credentials,
            guest: Caller::local(Scope::ALL, Some(CancellationToken::new())),
            owner: Caller::local(Scope::ALL, None),
            worker: Caller::local([Scope::Worker], None),
            expiring: Notify::new(),
        }
    }

    /// Takes the keys as they are in the store, and notes there that the operator has one: a server
    /// that is started without it another time is to stay closed.
    pub async fn load(&self, components: &Components) -> Result<(), store::Error> {
        let store = &*components.store;
        if self.credentials.admin_key.is_some() && store.keys().await?.is_empty() {
            store.put_key(note(components.clock.wall())).await?;
        }
        if !store.keys().await?.is_empty() {
            self.lock();
        }
        let records = stored(store).await?;
        let known = records.into_iter().map(|record| (record.id.clone(), Known::new(record)));
        *self.write() = known.collect();
        Ok(())
    }

    /// Takes what another server has changed: new keys, and those that have ended.
    pub async fn follow(&self, components: &Components) -> Result<(), store::Error> {
        let all = components.store.keys().await?;
        if !all.is_empty() {
            self.lock();
        }
        for record in stored(&*components.store).await? {
            let known = self.read().get(&record.id).map(|known| known.record.clone());
            if known.as_ref() == Some(&record) {
                continue;
            }
            let before = self.write().insert(record.id.clone(), Known::new(record));
            if let Some(known) = before {
                known.caller.dismiss();
            }
            self.expiring.notify_one();
        }
        Ok(())
    }

    /// Closes the door, and ends what came in through it.
    fn lock(&self) {
        self.locked.store(true, Ordering::SeqCst);
        self.guest.dismiss();
    }

    /// Makes a key. To be run to its end, so that the store and this know the same. Its text is returned here and nowhere else.
    pub async fn create(
        &self,
        components: &Components,
        wanted: NewKey,
    ) -> Result<(Key, KeyRecord), store::Error> {
        let NewKey { name, tenant, scopes, pool, expires_at } = wanted;
        let key = Key::new(|| components.random.number() as u8);
        let record = KeyRecord {
            id: key.id().to_owned(),
            name,
            tenant,
            scopes,
            pool,
            hash: key.hash(),
            created_at: components.clock.wall(),
            expires_at,
            revoked_at: None,
        };
        components.store.put_key(record.clone()).await?;
        self.write().insert(record.id.clone(), Known::new(record.clone()));
        self.lock();
        if expires_at.is_some() {
            self.expiring.notify_one();
        }
        Ok((key, record))
    }

    /// Ends a key for good, and all that is open with it; the record, if there is such a key. To be
    /// run to its end, too.
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
        let before = self.write().insert(record.id.clone(), Known::new(record.clone()));
        if let Some(known) = before {
            known.caller.dismiss();
        }
        Ok(Some(record))
    }

    /// Ends what is open with keys whose time is over. Answers in how many milliseconds the next one
    /// expires; the wall clock may jump, so those that have expired are looked at again, too.
    pub fn expire(&self, now: Timestamp) -> Option<u64> {
        let mut next = None;
        let mut over = Vec::new();
        for known in self.write().values_mut() {
            let Some(at) = known.record.expires_at else { continue };
            if known.record.revoked_at.is_some() {
                continue;
            }
            let left = if now < at { at.ms_since(now) } else { u64::MAX };
            next = Some(next.map_or(left, |next: u64| next.min(left)));
            if at <= now {
                // Another caller for when the clock is set back.
                let another = Known::new(known.record.clone());
                over.push(std::mem::replace(known, another).caller);
            }
        }
        over.iter().for_each(|caller| caller.dismiss());
        next
    }

    /// Every key, oldest first.
    pub fn list(&self) -> Vec<KeyRecord> {
        let mut records: Vec<_> = self.read().values().map(|known| known.record.clone()).collect();
        records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        records
    }

    /// Has there ever been a key, of the operator or of anybody?
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::SeqCst)
    }

    /// Everybody, as long as there are no keys.
    pub fn guest(&self) -> Arc<Caller> {
        Arc::clone(&self.guest)
    }

    /// Whom the server belongs to.
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
            pool: record.pool.clone(),
            end: Some(CancellationToken::new()),
        };
        Self { record, caller: Arc::new(caller) }
    }
}
