//! Keys, secrets, launches and garbage: records that stand for themselves.

use rayreel_domain::key::KeyRecord;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::rows::parsed;
use super::scripts::Name;
use crate::signing::Secret;
use crate::store::{Error, Garbage, Launch};

/// How often a secret is rotated anew because somebody else has rotated it meanwhile.
const TRIES: u32 = 16;

#[derive(Default, Serialize)]
struct Call<'a> {
    kind: &'static str,
    id: &'a str,
    body: Option<String>,
    /// The record that is replaced; none if there is none.
    expected: Option<&'a str>,
    /// Whatever it replaces.
    force: bool,
    remove: bool,
    all: bool,
    garbage: Option<u32>,
    collected: Option<&'a [i64]>,
    now: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reply {
    all: Vec<String>,
    garbage: Vec<GarbageRow>,
}

#[derive(Deserialize)]
struct GarbageRow {
    id: i64,
    folder: String,
}

impl RedisStore {
    async fn record(&self, call: Call<'_>) -> Result<Reply, Error> {
        self.scripts.run(Name::record, &call).await
    }

    pub(super) async fn write_key(&self, key: &KeyRecord) -> Result<(), Error> {
        let body = Some(serde_json::to_string(key).expect("a key is plain data"));
        let call = Call { kind: "api_key", id: &key.id, body, force: true, ..Call::default() };
        self.record(call).await.map(drop)
    }

    pub(super) async fn all_keys(&self) -> Result<Vec<KeyRecord>, Error> {
        let all = self.record(Call { kind: "api_key", all: true, ..Call::default() }).await?.all;
        // One that is left out might be the only one, and without keys the door is open.
        let mut keys =
            all.iter().map(|text| parsed::<KeyRecord>(text)).collect::<Result<Vec<_>, _>>()?;
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(keys)
    }

    pub(super) async fn write_launch(&self, launch: &Launch) -> Result<(), Error> {
        let body = Some(serde_json::to_string(launch).expect("a launch is plain data"));
        let call = Call { kind: "launch", id: &launch.id, body, force: true, ..Call::default() };
        self.record(call).await.map(drop)
    }

    pub(super) async fn delete_launch(&self, id: &str) -> Result<(), Error> {
        let call = Call { kind: "launch", id, remove: true, ..Call::default() };
        self.record(call).await.map(drop)
    }

    pub(super) async fn all_launches(&self) -> Result<Vec<Launch>, Error> {
        let all = self.record(Call { kind: "launch", all: true, ..Call::default() }).await?.all;
        let readable = |text: &String| {
            parsed::<Launch>(text)
                .inspect_err(|error| tracing::error!(%error, "a stored launch can't be read"))
                .ok()
        };
        let mut launches: Vec<Launch> = all.iter().filter_map(readable).collect();
        launches.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(launches)
    }

    pub(super) async fn first_secret(&self, name: &str, fresh: &Secret) -> Result<Secret, Error> {
        let body = Some(serde_json::to_string(fresh).expect("strings and numbers"));
        let call = Call { kind: "secret", id: name, body, ..Call::default() };
        let known = self.record(call).await?.all;
        parsed(known.first().map_or("", String::as_str))
    }

    pub(super) async fn next_secret(
        &self,
        name: &str,
        fresh: &Secret,
        ms: u64,
    ) -> Result<Secret, Error> {
        for _ in 0..TRIES {
            let known = self.record(Call { kind: "secret", id: name, ..Call::default() }).await?;
            let old = known.all.first();
            let next = match old {
                Some(text) => fresh.clone().after(parsed(text)?, ms),
                None => fresh.clone(),
            };
            let body = serde_json::to_string(&next).expect("strings and numbers");
            let expected = old.map(String::as_str);
            let call = Call {
                kind: "secret",
                id: name,
                body: Some(body.clone()),
                expected,
                ..Call::default()
            };
            if self.record(call).await?.all.first() == Some(&body) {
                return Ok(next);
            }
        }
        Err(Error::Unavailable("the secret is being rotated by others".to_owned()))
    }

    pub(super) async fn due_garbage(&self, limit: u32) -> Result<Vec<Garbage>, Error> {
        let now = self.now().0;
        let call = Call { garbage: Some(limit), now, ..Call::default() };
        let rows = self.record(call).await?.garbage.into_iter();
        Ok(rows.map(|row| Garbage { id: row.id, folder: row.folder }).collect())
    }

    pub(super) async fn forget_garbage(&self, ids: &[i64]) -> Result<(), Error> {
        self.record(Call { collected: Some(ids), ..Call::default() }).await.map(drop)
    }
}
