//! Contents that tenants send, each once, and the files that they have uploaded.

use rayreel_domain::file::FileRecord;
use rayreel_domain::id::{FileId, TenantName};
use rayreel_domain::request::Input;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::rows::{corrupt, exact, parsed};
use super::scripts::Name;
use crate::store::{Error, FilePage, FileQuery};

/// How long a content stays that nothing names yet: whoever holds it stores it and submits.
const HOLD_MS: u64 = 3_600_000;
/// A file counts for so many bytes at least: small ones cost rows.
const LEAST_BYTES: u64 = 64 << 10;

#[derive(Default, Serialize)]
struct Call<'a> {
    tenant: &'a str,
    now: u64,
    /// SHA-256 of a content to hold, and for how long.
    hold: Option<&'a str>,
    until_ms: u64,
    release: Option<u64>,
    admits: bool,
    counted: u64,
    most: u64,
    put: Option<String>,
    input: Option<u64>,
    purpose: Option<&'a str>,
    body: Option<String>,
    expires_at: u64,
    get: Option<String>,
    delete: Option<String>,
    after: Option<String>,
    ascending: bool,
    limit: u32,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reply {
    number: Option<u64>,
    full: bool,
    retry_ms: Option<u64>,
    input_gone: bool,
    missing: bool,
    found: bool,
    bodies: Vec<String>,
}

impl RedisStore {
    async fn file_call(&self, call: Call<'_>) -> Result<Reply, Error> {
        let most = call.most;
        let call =
            Call { now: self.now().0, most: exact(most), counted: exact(call.counted), ..call };
        let reply: Reply = self.scripts.run(Name::file, &call).await?;
        match reply {
            Reply { full: true, retry_ms, .. } => Err(Error::FilesFull { allowed: most, retry_ms }),
            Reply { input_gone: true, .. } => Err(Error::InputGone),
            Reply { missing: true, .. } => Err(Error::NotFound),
            reply => Ok(reply),
        }
    }

    pub(super) async fn hold(&self, tenant: &TenantName, input: Input) -> Result<Input, Error> {
        let call = Call {
            tenant: tenant.as_str(),
            hold: Some(&input.sha256),
            until_ms: self.now().plus_ms(HOLD_MS).0,
            ..Call::default()
        };
        let number = self.file_call(call).await?.number;
        let number = number.ok_or_else(|| corrupt("a content without a number"))?;
        Ok(Input { place: Some(number), ..input })
    }

    pub(super) async fn let_go(&self, tenant: &TenantName, input: &Input) -> Result<(), Error> {
        let Some(place) = input.place else { return Ok(()) };
        let call = Call { tenant: tenant.as_str(), release: Some(place), ..Call::default() };
        self.file_call(call).await.map(drop)
    }

    pub(super) async fn room_for(
        &self,
        tenant: &TenantName,
        bytes: u64,
        most: u64,
    ) -> Result<(), Error> {
        let counted = bytes.max(LEAST_BYTES);
        let tenant = tenant.as_str();
        self.file_call(Call { tenant, admits: true, counted, most, ..Call::default() })
            .await
            .map(drop)
    }

    pub(super) async fn add_file(&self, file: &FileRecord, most: u64) -> Result<(), Error> {
        let call = Call {
            tenant: file.tenant.as_str(),
            put: Some(file.id.to_string()),
            input: file.input.place,
            purpose: Some(&file.purpose),
            body: Some(serde_json::to_string(file).expect("a file's record is plain data")),
            expires_at: file.expires_at.0,
            counted: file.input.bytes.max(LEAST_BYTES),
            most,
            ..Call::default()
        };
        self.file_call(call).await.map(drop)
    }

    pub(super) async fn one_file(
        &self,
        tenant: &TenantName,
        id: FileId,
    ) -> Result<Option<FileRecord>, Error> {
        let get = Some(id.to_string());
        let call = Call { tenant: tenant.as_str(), get, ..Call::default() };
        let found = self.file_call(call).await?.bodies;
        found.first().map(|text| parsed(text)).transpose()
    }

    pub(super) async fn remove_file(&self, tenant: &TenantName, id: FileId) -> Result<bool, Error> {
        let delete = Some(id.to_string());
        let call = Call { tenant: tenant.as_str(), delete, ..Call::default() };
        Ok(self.file_call(call).await?.found)
    }

    pub(super) async fn file_page(&self, query: &FileQuery) -> Result<FilePage, Error> {
        let call = Call {
            tenant: query.tenant.as_str(),
            after: query.after.map(|id| id.to_string()),
            purpose: query.purpose.as_deref(),
            ascending: query.ascending,
            limit: query.limit,
            ..Call::default()
        };
        let mut bodies = self.file_call(call).await?.bodies;
        let more = bodies.len() > query.limit as usize;
        bodies.truncate(query.limit as usize);
        let files = bodies.iter().map(|text| parsed(text)).collect::<Result<_, _>>()?;
        Ok(FilePage { files, more })
    }
}
