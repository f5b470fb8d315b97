//! The database file: its tables, its versions, and how a connection is set up.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::memory::{signed, unsigned};
use super::{Error, log};

/// One step for each version; a file at version n has had the first n applied.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- Names of tenants, pools and models, so that rows and index entries stay small.
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
-- Fair-share accounts. `floor_ms` is the pool's floor when the row was written.
CREATE TABLE accounts (
    pool INTEGER NOT NULL, tenant INTEGER NOT NULL,
    virtual_ms INTEGER NOT NULL, floor_ms INTEGER NOT NULL,
    PRIMARY KEY (pool, tenant)
) WITHOUT ROWID;
-- One row a task. `body` is the whole task as JSON; the columns are what indexes need.
CREATE TABLE tasks (
    seq INTEGER PRIMARY KEY,          -- order of submission
    id BLOB NOT NULL,
    tenant INTEGER NOT NULL, pool INTEGER NOT NULL, model INTEGER NOT NULL,
    state INTEGER NOT NULL,           -- place in State::ALL
    slot INTEGER NOT NULL,            -- 0 not queued, 1 ready, 2 in backoff
    rank INTEGER NOT NULL,            -- 5 - priority: smaller is sooner
    estimate_ms INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    deadline INTEGER,
    key TEXT,                         -- idempotency key
    avoid TEXT,                       -- worker that failed it last
    graces INTEGER NOT NULL DEFAULT 0,-- starts of the server since the lease's last beat
    created_at INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX tasks_id ON tasks (id);
-- What lists select by; a filter is decided without the row.
CREATE INDEX tasks_state ON tasks (tenant, state, seq, model, created_at);
CREATE INDEX tasks_ready ON tasks (pool, tenant, model, rank, seq, estimate_ms) WHERE slot = 1;
CREATE INDEX tasks_avoid ON tasks (avoid, pool, tenant) WHERE slot = 1 AND avoid IS NOT NULL;
CREATE INDEX tasks_backoff ON tasks (not_before, pool, tenant, model) WHERE slot = 2;
CREATE INDEX tasks_deadline ON tasks (deadline) WHERE state = 0 AND deadline IS NOT NULL;
CREATE INDEX tasks_running ON tasks (id) WHERE state = 1;
CREATE UNIQUE INDEX tasks_key ON tasks (tenant, key) WHERE key IS NOT NULL;
-- Deleted tasks whose idempotency key still counts.
CREATE TABLE tombstones (
    tenant INTEGER NOT NULL, key TEXT NOT NULL, until INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX tombstones_until ON tombstones (until);
-- Folders of the artifact store to delete.
CREATE TABLE garbage (
    id INTEGER PRIMARY KEY, folder TEXT NOT NULL, not_before INTEGER NOT NULL
);
CREATE INDEX garbage_due ON garbage (not_before);
CREATE TABLE workers (
    name TEXT PRIMARY KEY, incarnation INTEGER NOT NULL, pool TEXT NOT NULL, launch TEXT,
    quarantine TEXT                   -- JSON: why, and the model to test with
) WITHOUT ROWID;
CREATE TABLE launches (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
",
    "
-- GPU-milliseconds charged on the day (UTC, counted from the epoch) of the newest charge.
ALTER TABLE accounts ADD COLUMN day INTEGER NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN day_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN delete_at INTEGER;
CREATE INDEX tasks_delete ON tasks (delete_at) WHERE delete_at IS NOT NULL;
-- API keys; only a hash of each.
CREATE TABLE keys (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
",
    "
-- What tenants send, each content once. An id is never given again: a file named by it is either
-- kept or garbage, never both.
CREATE TABLE inputs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant INTEGER NOT NULL, sha256 TEXT NOT NULL,
    look_at INTEGER                   -- when to find out whether something still names it
);
CREATE UNIQUE INDEX inputs_sha256 ON inputs (tenant, sha256);
CREATE INDEX inputs_look ON inputs (look_at) WHERE look_at IS NOT NULL;
ALTER TABLE tasks ADD COLUMN input INTEGER;
CREATE INDEX tasks_input ON tasks (input) WHERE input IS NOT NULL;
CREATE TABLE files (
    seq INTEGER PRIMARY KEY,          -- order of uploads
    id BLOB NOT NULL,
    tenant INTEGER NOT NULL,
    input INTEGER,
    counted INTEGER NOT NULL,         -- bytes, as the tenant's limit counts them
    expires_at INTEGER NOT NULL,
    purpose TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX files_id ON files (id);
CREATE INDEX files_tenant ON files (tenant, seq, expires_at, purpose, counted);
CREATE INDEX files_expire ON files (expires_at);
CREATE INDEX files_input ON files (input);
",
    "
-- The outbox of webhooks: a row for each task with one that has ended. `due` is NULL once it is over.
CREATE TABLE deliveries (
    task BLOB PRIMARY KEY, tenant INTEGER NOT NULL, due INTEGER, body TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (tenant, due) WHERE due IS NOT NULL;
-- What the server signs with.
CREATE TABLE secrets (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
",
    "
ALTER TABLE tasks ADD COLUMN format INTEGER NOT NULL DEFAULT 0; -- 0 MP4, 1 PNG, 2 JPEG, 3 WebP
UPDATE tasks SET format = 1 WHERE json_extract(CAST(body AS TEXT), '$.request.format') = 'png';
DROP INDEX tasks_state;
CREATE INDEX tasks_state ON tasks (tenant, state, seq, model, created_at, format);
",
    "
-- The last frame of a task; `input` is its first.
ALTER TABLE tasks ADD COLUMN last_input INTEGER;
CREATE INDEX tasks_last_input ON tasks (last_input) WHERE last_input IS NOT NULL;
",
    "
-- Where tasks stood that were deleted lately: a list goes on behind one, and no other takes its place.
CREATE TABLE places (
    seq INTEGER PRIMARY KEY, id BLOB NOT NULL, tenant INTEGER NOT NULL, until INTEGER NOT NULL
);
CREATE UNIQUE INDEX places_id ON places (id);
CREATE INDEX places_until ON places (until);
",
    "
ALTER TABLE workers ADD COLUMN version TEXT NOT NULL DEFAULT '';
ALTER TABLE workers ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
-- Pools that are closed to claims.
CREATE TABLE drained_pools (name TEXT PRIMARY KEY) WITHOUT ROWID;
",
];

/// The version this build writes.
pub(super) const VERSION: u32 = MIGRATIONS.len() as u32;

/// Marks the file as ours, in its header: "rayr".
const APPLICATION_ID: u32 = 0x7261_7972;

/// Opens the connection that writes, migrating the file as needed, and creating it if `create`.
pub(super) fn open_writer(path: &Path, create: bool) -> Result<Connection, Error> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    if create {
        // Prompts are private; SQLite gives its log the mode of the file. If this fails, so does
        // the opening, which says why.
        let _ = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    }
    match log::damage(path) {
        Ok(None) => {}
        Ok(Some(damage)) => return Err(Error::Corrupt(damage)),
        Err(error) => return Err(Error::Unavailable(format!("its log can't be read: {error}"))),
    }
    let mut db = Connection::open_with_flags(path, flags).map_err(failed)?;
    configure(&db).map_err(failed)?;
    // Before anything is written: is this ours, and do we know it? A file that is refused stays
    // as it is, and a log beside it too.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    let found = recognise(&db)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(failed)?;
    // FULL: a commit is on the disk when it returns. Checkpoints are another thread's work.
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;
         PRAGMA cache_size = -16384;",
    )
    .map_err(failed)?;
    for (index, step) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let tx = db.transaction().map_err(failed)?;
        tx.execute_batch(step).map_err(failed)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        tx.pragma_update(None, "user_version", index as u32 + 1).map_err(failed)?;
        tx.commit().map_err(failed)?;
    }
    if found < VERSION {
        // The file itself says now what it is, whatever becomes of the log.
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(failed)?;
    }
    db.set_prepared_statement_cache_capacity(64);
    Ok(db)
}

/// The version of the file; 0 if it is empty.
fn recognise(db: &Connection) -> Result<u32, Error> {
    let number = |sql| db.query_row(sql, [], |row| row.get::<_, u32>(0)).map_err(failed);
    let found = number("PRAGMA user_version")?;
    let application = number("PRAGMA application_id")?;
    let objects = number("SELECT count(*) FROM sqlite_schema")?;
    if (found, application, objects) == (0, 0, 0) {
        return Ok(0);
    }
    if application != APPLICATION_ID {
        return Err(Error::Corrupt("it is a database of another program".to_owned()));
    }
    if found > VERSION {
        return Err(Error::TooNew { found, known: VERSION });
    }
    Ok(found)
}

/// Gives the file's history a random number, unless it has one.
pub(super) fn begin_epoch(db: &Connection, new: u64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO meta (key, value) VALUES ('epoch', ?1) ON CONFLICT DO NOTHING";
    db.execute(sql, [signed(new)]).map(|_| ())
}

/// The random number of the file's history.
pub(super) fn epoch(db: &Connection) -> rusqlite::Result<u64> {
    db.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0).map(unsigned))
}

/// Opens a connection that reads or checkpoints.
pub(super) fn open_other(path: &Path, write: bool) -> Result<Connection, Error> {
    let mode =
        if write { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
    let db = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(failed)?;
    configure(&db).map_err(failed)?;
    db.execute_batch("PRAGMA cache_size = -4096; PRAGMA synchronous = FULL;").map_err(failed)?;
    db.set_prepared_statement_cache_capacity(32);
    Ok(db)
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(Duration::from_secs(5))?;
    // Plans do not depend on values: otherwise statements are prepared anew for each value.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.execute_batch("PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = OFF;")
}

/// What a failure of SQLite means to whoever calls the store.
pub(super) fn failed(error: rusqlite::Error) -> Error {
    use rusqlite::Error as Sql;
    match &error {
        // A row or a body that we would never have written.
        Sql::FromSqlConversionFailure(..)
        | Sql::IntegralValueOutOfRange(..)
        | Sql::InvalidColumnType(..) => Error::Corrupt(error.to_string()),
        _ => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Error::Corrupt(error.to_string())
            }
            _ => Error::Unavailable(error.to_string()),
        },
    }
}

/// Could something not be written? A failed fsync is another matter.
pub(super) fn is_write_failure(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
        || error.sqlite_error().is_some_and(|e| e.extended_code == ffi::SQLITE_IOERR_WRITE)
}

/// Must the connection be given up, because the disk or the file is at fault?
pub(super) fn is_fatal(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::OutOfMemory
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
        )
    )
}
