//! API keys are kept like tasks.

use rayreel_domain::key::{Key, KeyRecord, Scope};
use rayreel_domain::time::Timestamp;

use super::{Setup, Stores};

/// Plays what is promised of keys.
pub async fn keeps_keys(stores: &impl Stores) {
    let (home, setup) = (stores.home(), Setup::new());
    let store = stores.open(&home, &setup).await;
    assert_eq!(store.keys().await, Ok(Vec::new()));
    let records = ["a", "b"].map(|name| {
        let key = Key::new(|| setup.random.number() as u8);
        KeyRecord {
            id: key.id().to_owned(),
            name: name.to_owned(),
            tenant: super::tenant("anna"),
            scopes: [Scope::Submit, Scope::Worker].into(),
            pool: Some(super::pool("local")),
            hash: key.hash(),
            created_at: Timestamp(1),
            expires_at: Some(Timestamp(2)),
            revoked_at: None,
        }
    });
    for record in &records {
        store.put_key(record.clone()).await.expect("stored");
    }
    let revoked = KeyRecord { revoked_at: Some(Timestamp(3)), ..records[0].clone() };
    store.put_key(revoked.clone()).await.expect("stored");
    drop(store);
    let store = stores.open(&home, &setup).await;
    let mut kept = store.keys().await.expect("answered");
    kept.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(kept, [revoked, records[1].clone()]);
}
