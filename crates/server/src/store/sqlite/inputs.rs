//! Contents that tenants send, each once, and the files that they have uploaded.
//!
//! A content is needed while a task or a file names it, or while somebody holds it who is about to.
//! Nothing counts: what names it is looked up in indexes when something has stopped naming it. See
//! `docs/design/inputs.md`.

use rayreel_domain::file::FileRecord;
use rayreel_domain::id::{FileId, TenantName};
use rayreel_domain::request::Input;
use rayreel_domain::task::Task;
use rayreel_domain::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};
use serde::de::DeserializeOwned;

use super::memory::{NameId, signed, unsigned};
use super::ops::Done;
use super::read::Readers;
use super::writer::{Failure, Tx};
use super::{Error, FilePage, FileQuery};

/// How long a content stays that nothing names yet: whoever holds it stores it and submits.
const HOLD_MS: u64 = 3_600_000;
/// A file counts for so many bytes at least: small ones cost rows.
const LEAST_BYTES: u64 = 64 << 10;

impl Tx<'_> {
    /// Gives a content its place, the same for the same bytes, and keeps it for a while.
    pub(super) fn hold_input(&mut self, tenant: &TenantName, mut input: Input) -> Done<Input> {
        let tenant = self.name(tenant.as_str())?;
        let until = signed(self.now().plus_ms(HOLD_MS).0);
        let known: Option<i64> = self
            .db
            .prepare_cached("SELECT id FROM inputs WHERE tenant = ?1 AND sha256 = ?2")?
            .query_row(params![tenant, input.sha256], |row| row.get(0))
            .optional()?;
        let id = match known {
            Some(id) => {
                self.look_at_input(id, until)?;
                id
            }
            None => {
                self.db
                    .prepare_cached(
                        "INSERT INTO inputs (tenant, sha256, look_at) VALUES (?1, ?2, ?3)",
                    )?
                    .execute(params![tenant, input.sha256, until])?;
                self.db.last_insert_rowid()
            }
        };
        *self.memory().holds.entry(id).or_default() += 1;
        self.wakes.timers = true;
        input.place = Some(unsigned(id));
        Ok(input)
    }

    /// Ends a hold. Of one that is unknown, for it was before a restart, its hour is the end.
    pub(super) fn release_input(&mut self, tenant: &TenantName, input: &Input) -> Done<()> {
        let Some(tenant) = self.memory().tenant_id(tenant) else { return Ok(()) };
        let id = match self.input_of(tenant, Some(input)) {
            Ok(Some(id)) => id,
            Ok(None) | Err(Failure::Refused(_)) => return Ok(()),
            Err(failed) => return Err(failed),
        };
        let others = {
            let mut memory = self.memory();
            let Some(holds) = memory.holds.get_mut(&id) else { return Ok(()) };
            *holds -= 1;
            let others = *holds > 0;
            if !others {
                memory.holds.remove(&id);
            }
            others
        };
        if !others && !self.is_named(id)? {
            let now = signed(self.now().0);
            self.db
                .prepare_cached("UPDATE inputs SET look_at = ?2 WHERE id = ?1")?
                .execute([id, now])?;
            self.wakes.timers = true;
        }
        Ok(())
    }

    /// Does a task or a file name this content?
    fn is_named(&self, id: i64) -> rusqlite::Result<bool> {
        self.db
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM tasks INDEXED BY tasks_input WHERE input = ?1)
                 OR EXISTS (SELECT 1 FROM tasks INDEXED BY tasks_last_input WHERE last_input = ?1)
                 OR EXISTS (SELECT 1 FROM files WHERE input = ?1)",
            )?
            .query_row([id], |row| row.get(0))
    }

    /// Finds out at this time whether a content is still needed, or later if that is asked already.
    fn look_at_input(&mut self, id: i64, at: i64) -> Done<()> {
        self.db
            .prepare_cached(
                "UPDATE inputs SET look_at = max(ifnull(look_at, ?2), ?2) WHERE id = ?1",
            )?
            .execute([id, at])?;
        Ok(())
    }

    /// Is the content still there that this names? None need be.
    pub(super) fn input_of(&self, tenant: NameId, input: Option<&Input>) -> Done<Option<i64>> {
        let Some(place) = input.and_then(|input| input.place) else { return Ok(None) };
        let found = self
            .db
            .prepare_cached("SELECT id FROM inputs WHERE id = ?1 AND tenant = ?2")?
            .query_row(params![signed(place), tenant], |row| row.get(0))
            .optional()?;
        found.map(Some).ok_or_else(|| Error::InputGone.into())
    }

    /// A task that may name contents is about to go.
    pub(super) fn release_inputs(&mut self, task: &Task) -> Done<()> {
        let inputs = task.request.image.iter().chain(&task.request.last_image);
        let mut places = inputs.filter_map(|input| input.place);
        places.try_for_each(|place| self.release(signed(place)))
    }

    fn release(&mut self, id: i64) -> Done<()> {
        let now = signed(self.now().0);
        self.wakes.timers = true;
        self.look_at_input(id, now)
    }

    pub(super) fn put_file(&mut self, file: &FileRecord, most: u64) -> Done<()> {
        let tenant = self.name(file.tenant.as_str())?;
        let input = self.input_of(tenant, Some(&file.input))?;
        let counted = counted(file.input.bytes);
        room(self.db, Some(tenant), counted, most, self.now())??;
        let body = serde_json::to_string(file).unwrap_or_default();
        self.db
            .prepare_cached(
                "INSERT INTO files (id, tenant, input, counted, expires_at, purpose, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                file.id.as_bytes(),
                tenant,
                input,
                signed(counted),
                signed(file.expires_at.0),
                file.purpose,
                body,
            ])?;
        self.wakes.timers = true;
        Ok(())
    }

    pub(super) fn delete_file(&mut self, tenant: &TenantName, id: FileId) -> Done<bool> {
        let Some(tenant) = self.memory().tenant_id(tenant) else { return Ok(false) };
        let now = signed(self.now().0);
        let gone: Option<Option<i64>> = self
            .db
            .prepare_cached(
                "DELETE FROM files WHERE id = ?1 AND tenant = ?2 AND expires_at > ?3
                 RETURNING input",
            )?
            .query_row(params![id.as_bytes(), tenant, now], |row| row.get(0))
            .optional()?;
        if let Some(Some(input)) = gone {
            self.release(input)?;
        }
        Ok(gone.is_some())
    }

    /// Deletes files that have expired and contents that nothing names any more; answers whether
    /// there may be more of them.
    pub(super) fn advance_inputs(&mut self, now: Timestamp, step: i64) -> Done<bool> {
        let expired: Vec<(i64, Option<i64>)> = self
            .db
            .prepare_cached("SELECT seq, input FROM files WHERE expires_at <= ?1 LIMIT ?2")?
            .query_map(params![signed(now.0), step], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        for (seq, input) in &expired {
            self.db.prepare_cached("DELETE FROM files WHERE seq = ?1")?.execute([seq])?;
            input.map_or(Ok(()), |input| self.release(input))?;
        }
        let due: Vec<(i64, NameId, String)> = self
            .db
            .prepare_cached(
                "SELECT id, tenant, sha256 FROM inputs INDEXED BY inputs_look
                 WHERE look_at IS NOT NULL AND look_at <= ?1 LIMIT ?2",
            )?
            .query_map(params![signed(now.0), step], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?
            .collect::<Result<_, _>>()?;
        let more = expired.len() as i64 == step || due.len() as i64 == step;
        for (id, tenant, sha256) in due {
            if self.is_named(id)? {
                self.db
                    .prepare_cached("UPDATE inputs SET look_at = NULL WHERE id = ?1")?
                    .execute([id])?;
                continue;
            }
            self.db.prepare_cached("DELETE FROM inputs WHERE id = ?1")?.execute([id])?;
            self.memory().holds.remove(&id);
            let tenant = self.memory().names.get(&tenant).and_then(|name| name.parse().ok());
            let place = Some(unsigned(id));
            let gone = Input { place, sha256, media_type: String::new(), bytes: 0 };
            if let Some(folder) = tenant.and_then(|tenant| gone.folder(&tenant)) {
                self.discard(&folder, now)?;
            }
        }
        Ok(more)
    }
}

/// What a file counts.
fn counted(bytes: u64) -> u64 {
    bytes.max(LEAST_BYTES)
}

/// Is there room for so much more among the tenant's files?
fn room(
    db: &Connection,
    tenant: Option<NameId>,
    counted: u64,
    most: u64,
    now: Timestamp,
) -> rusqlite::Result<Result<(), Error>> {
    if counted > most {
        return Ok(Err(Error::FilesFull { allowed: most, retry_ms: None }));
    }
    let (used, first): (i64, Option<i64>) = db
        .prepare_cached(
            "SELECT ifnull(sum(counted), 0),
                    (SELECT expires_at FROM files WHERE tenant = ?1 ORDER BY seq LIMIT 1)
             FROM files WHERE tenant = ?1",
        )?
        .query_row([tenant], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if unsigned(used) + counted <= most {
        return Ok(Ok(()));
    }
    let first = first.map_or(0, unsigned);
    let retry_ms = Some(first.saturating_sub(now.0));
    Ok(Err(Error::FilesFull { allowed: most, retry_ms }))
}

impl Readers {
    pub(super) fn admits_file(
        &self,
        tenant: &TenantName,
        bytes: u64,
        most: u64,
        now: Timestamp,
    ) -> Result<(), Error> {
        let tenant = self.memory().tenant_id(tenant);
        self.with(|db| room(db, tenant, counted(bytes), most, now))?
    }

    pub(super) fn file(
        &self,
        tenant: &TenantName,
        id: FileId,
        now: Timestamp,
    ) -> Result<Option<FileRecord>, Error> {
        let Some(tenant) = self.memory().tenant_id(tenant) else { return Ok(None) };
        self.with(|db| {
            db.prepare_cached(
                "SELECT body FROM files WHERE id = ?1 AND tenant = ?2 AND expires_at > ?3",
            )?
            .query_row(params![id.as_bytes(), tenant, signed(now.0)], body)
            .optional()
        })
    }

    pub(super) fn files(&self, query: &FileQuery, now: Timestamp) -> Result<FilePage, Error> {
        let tenant = self.memory().tenant_id(&query.tenant);
        let found = self.with(|db| {
            let db = &*db.unchecked_transaction()?;
            let after = match query.after {
                None => None,
                Some(id) => {
                    let place: Option<i64> = db
                        .prepare_cached("SELECT seq FROM files WHERE id = ?1 AND tenant = ?2")?
                        .query_row(params![id.as_bytes(), tenant], |row| row.get(0))
                        .optional()?;
                    if place.is_none() {
                        return Ok(None);
                    }
                    place
                }
            };
            let (order, further) = if query.ascending { ("ASC", ">") } else { ("DESC", "<") };
            let mut sql = "SELECT body FROM files WHERE tenant = ? AND expires_at > ?".to_owned();
            let mut values: Vec<rusqlite::types::Value> = vec![tenant.into(), signed(now.0).into()];
            if let Some(after) = after {
                sql.push_str(&format!(" AND seq {further} ?"));
                values.push(after.into());
            }
            if let Some(purpose) = &query.purpose {
                sql.push_str(" AND purpose = ?");
                values.push(purpose.clone().into());
            }
            sql.push_str(&format!(" ORDER BY seq {order} LIMIT ?"));
            values.push((i64::from(query.limit) + 1).into());
            let mut statement = db.prepare_cached(&sql)?;
            let rows = statement.query_map(params_from_iter(values), body::<FileRecord>)?;
            rows.collect::<Result<Vec<_>, _>>().map(Some)
        })?;
        let mut files = found.ok_or(Error::NotFound)?;
        let more = files.len() > query.limit as usize;
        files.truncate(query.limit as usize);
        Ok(FilePage { files, more })
    }
}

fn body<T: DeserializeOwned>(row: &rusqlite::Row<'_>) -> rusqlite::Result<T> {
    serde_json::from_str(row.get_ref(0)?.as_str()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}
