//! Files: new, old, foreign, damaged, full, locked.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rayreel_domain::code::Code;
use rayreel_domain::task::{End, Failure, State};
use rayreel_domain::time::Timestamp;
use rayreel_domain::wire::engine::Format;
use rayreel_server::clock::Clock;
use rayreel_server::store::{After, Error, ListQuery, Store};
use rusqlite::Connection;

use super::{claim, database, done, folder, has, open, register, submit, try_open};
use crate::conformance::{self, Setup, runtime};

/// The database and its log, byte by byte.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        // The index of the log is no data.
        .filter(|path| !path.to_string_lossy().ends_with("-shm"))
        .map(|path| (path.to_string_lossy().into_owned(), fs::read(&path).expect("readable")))
        .collect();
    files.sort();
    files
}

/// What a sudden death at this moment leaves.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = folder();
    for (path, bytes) in contents(from) {
        let name = Path::new(&path).file_name().expect("a file").to_owned();
        fs::write(to.path().join(name), bytes).expect("written");
    }
    to
}

/// A closed database with `count` tasks, of which one runs, one has succeeded and one has failed.
fn filled(folder: &Path, setup: &Setup, count: usize) {
    runtime().block_on(async {
        let store = open(folder, setup);
        submit(&store, setup, count).await;
        let by = register(&store, "w1").await;
        let (_, fence) = claim(&store, &by, 1).await.expect("a task");
        store.end(&by, fence, done()).await.expect("committed");
        let (_, fence) = claim(&store, &by, 2).await.expect("a task");
        let end = End::Fail(Failure::new(Code::EngineCrashed, "it broke"));
        store.end(&by, fence, end).await.expect("failed");
        claim(&store, &by, 3).await.expect("a task");
    });
}

#[test]
fn what_is_acknowledged_is_on_the_disk() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        let ids = submit(&store, &setup, 64).await;
        let by = register(&store, "w1").await;
        let (_, fence) = claim(&store, &by, 1).await.expect("a task");
        let (done_task, done_fence) = {
            store.end(&by, fence, done()).await.expect("committed");
            claim(&store, &by, 2).await.expect("a task")
        };
        let copied = copy(home.path());
        let again = open(copied.path(), &setup);
        for id in ids {
            assert!(has(&again, id).await, "{id} is gone");
        }
        assert_eq!(again.check().await, Ok(vec![]));
        assert_eq!(again.leased(done_fence).await.map(|task| task.id), Ok(done_task.id));
        assert_eq!(again.leased(fence).await, Err(Error::StaleLease { cancelled: false }));
    });
}

#[test]
fn an_empty_file_becomes_a_database() {
    let (home, setup) = (folder(), Setup::new());
    fs::write(database(home.path()), b"").expect("written");
    filled(home.path(), &setup, 3);
    let db = Connection::open(database(home.path())).expect("it opens");
    let version: u32 =
        db.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a version");
    assert_eq!(version, 8);
}

#[test]
fn a_database_of_an_older_version_is_brought_up_to_date() {
    let (home, setup) = (folder(), Setup::new());
    filled(home.path(), &setup, 5);
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        let still = conformance::task(&setup, |record| record.request.format = Format::Png);
        store.submit(still).await.expect("accepted");
    });
    // What versions 2 to 8 have added, taken away again.
    let older = Connection::open(database(home.path())).expect("it opens");
    older
        .execute_batch(
            "DROP TABLE drained_pools; ALTER TABLE workers DROP COLUMN version;
             ALTER TABLE workers DROP COLUMN draining;
             DROP TABLE places; DROP INDEX tasks_last_input; ALTER TABLE tasks DROP COLUMN last_input;
             DROP TABLE deliveries; DROP TABLE secrets;
             DROP TABLE files; DROP TABLE inputs; DROP INDEX tasks_input;
             ALTER TABLE tasks DROP COLUMN input;
             DROP INDEX tasks_state; ALTER TABLE tasks DROP COLUMN format;
             CREATE INDEX tasks_state ON tasks (tenant, state, seq, model, created_at);
             ALTER TABLE accounts DROP COLUMN day; ALTER TABLE accounts DROP COLUMN day_ms;
             DROP INDEX tasks_delete; ALTER TABLE tasks DROP COLUMN delete_at;
             DROP TABLE keys; PRAGMA user_version = 1;",
        )
        .expect("written");
    drop(older);
    let store = open(home.path(), &setup);
    runtime().block_on(async {
        assert_eq!(store.check().await, Ok(vec![]));
        let query = ListQuery::of(conformance::tenant("anna"), 100);
        let stills = ListQuery { format: Some(Format::Png), ..query };
        assert_eq!(store.list(&stills).await.expect("listed").tasks.len(), 1);
        let by = register(&store, "w2").await;
        for seq in 1..=2 {
            let (_, fence) = claim(&store, &by, seq).await.expect("it waits");
            store.end(&by, fence, done()).await.expect("committed");
        }
        assert_eq!(store.check().await, Ok(vec![]));
    });
}

#[test]
fn a_clean_stop_leaves_one_file() {
    let (home, setup) = (folder(), Setup::new());
    filled(home.path(), &setup, 300);
    let files: Vec<_> = contents(home.path()).into_iter().map(|(path, _)| path).collect();
    assert_eq!(files, [database(home.path()).to_string_lossy()]);
}

#[test]
fn a_database_of_a_newer_version_is_left_alone() {
    let (home, setup) = (folder(), Setup::new());
    filled(home.path(), &setup, 3);
    // It was written by a process that died: the new version stands in the log.
    let newer = Connection::open(database(home.path())).expect("it opens");
    newer.pragma_update(None, "user_version", 99).expect("written");
    let left = copy(home.path());
    let before = contents(left.path());
    assert_eq!(before.len(), 2, "a database and its log");
    let refused = try_open(left.path(), &setup).map(|_| ());
    assert_eq!(refused, Err(Error::TooNew { found: 99, known: 8 }));
    assert_eq!(contents(left.path()), before);
}

#[test]
fn the_database_of_another_program_is_left_alone() {
    let (home, setup) = (folder(), Setup::new());
    let db = Connection::open(database(home.path())).expect("it opens");
    db.execute_batch("CREATE TABLE songs (name); PRAGMA user_version = 1;").expect("written");
    drop(db);
    let before = contents(home.path());
    let refused = try_open(home.path(), &setup).map(|_| ());
    assert!(matches!(refused, Err(Error::Corrupt(_))), "{refused:?}");
    assert_eq!(contents(home.path()), before);
}

#[test]
fn what_is_no_database_is_left_alone() {
    let (home, setup) = (folder(), Setup::new());
    filled(home.path(), &setup, 300);
    let whole = fs::read(database(home.path())).expect("readable");
    let cut = [&whole[..whole.len() / 2], &whole[..4096], &whole[..100]];
    let garbage = [b"not a database, but long enough for a header".repeat(30), vec![0; 8192]];
    for bytes in cut.into_iter().chain(garbage.iter().map(Vec::as_slice)) {
        let home = folder();
        fs::write(database(home.path()), bytes).expect("written");
        let refused = try_open(home.path(), &setup).map(|_| ());
        assert!(matches!(refused, Err(Error::Corrupt(_))), "{} bytes: {refused:?}", bytes.len());
        assert_eq!(fs::read(database(home.path())).expect("readable"), bytes);
    }
}

#[test]
fn a_path_that_leads_nowhere_is_an_error() {
    let (home, setup) = (folder(), Setup::new());
    let refused = try_open(&home.path().join("missing"), &setup).map(|_| ());
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    fs::create_dir(database(home.path())).expect("a folder in the file's place");
    let refused = try_open(home.path(), &setup).map(|_| ());
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
}

/// Wherever the damage is, whoever meets it gets an error, and nobody panics.
#[test]
fn damage_is_told_and_panics_nobody() {
    let (home, setup) = (folder(), Setup::new());
    filled(home.path(), &setup, 300);
    let whole = fs::read(database(home.path())).expect("readable");
    let pages = whole.len() / 4096;
    let (mut refused, mut met) = (0, 0);
    for round in 0..60 {
        let random = || setup.random.number() as usize;
        let mut bytes = whole.clone();
        let at = (random() % pages) * 4096 + random() % 3000;
        let length = [8, 100, 1000][round % 3];
        bytes[at..at + length].iter_mut().for_each(|byte| *byte = random() as u8);
        let home = folder();
        fs::write(database(home.path()), &bytes).expect("written");
        let store = match try_open(home.path(), &setup) {
            Ok(store) => store,
            Err(error) => {
                assert!(matches!(error, Error::Corrupt(_)), "{error:?}");
                refused += 1;
                continue;
            }
        };
        let faults = runtime().block_on(use_it(&store, &setup));
        met += usize::from(faults > 0);
    }
    assert!(refused > 0, "no damage was met at the start");
    assert!(met > 10, "hardly any damage was met in use: {met}");
}

/// Calls what may meet damaged pages; gives back how many calls failed.
async fn use_it(store: &dyn Store, setup: &Setup) -> usize {
    let mut failed = 0;
    let mut behind = u64::MAX;
    let mut query = ListQuery::of(conformance::tenant("anna"), 100);
    loop {
        match store.list(&query).await {
            // A damaged list may lead back.
            Ok(page) => match page.next.filter(|next| *next < behind) {
                Some(next) => {
                    behind = next;
                    query.after = Some(After::Position(next));
                }
                None => break,
            },
            Err(_) => {
                failed += 1;
                break;
            }
        }
    }
    failed += usize::from(store.submit(conformance::task(setup, |_| {})).await.is_err());
    let by = rayreel_server::store::Registration {
        worker: conformance::worker("w2"),
        pool: conformance::pool("local"),
        launch: None,
        version: String::new(),
    };
    match store.register(by).await {
        Ok(incarnation) => {
            let by =
                rayreel_server::store::Identity { worker: conformance::worker("w2"), incarnation };
            failed += usize::from(store.claim(super::asks(&by, 1)).await.is_err());
        }
        Err(_) => failed += 1,
    }
    failed += usize::from(store.advance().await.is_err());
    failed += usize::from(store.garbage(10).await.is_err());
    failed + usize::from(store.check().await != Ok(vec![]))
}

#[test]
fn the_log_stays_short_while_others_read() {
    const BYTES: usize = 36_000;
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        let wal = format!("{}-wal", database(home.path()).display());
        let (mut written, mut longest) = (0, 0);
        while written < 110 << 20 {
            let submits = (0..100).map(|_| {
                let task = conformance::task(&setup, |record| {
                    record.request.prompt = "w".repeat(BYTES);
                });
                store.submit(task)
            });
            for submitted in futures_util::future::join_all(submits).await {
                let id = submitted.expect("accepted").task.id;
                written += BYTES;
                assert!(has(&store, id).await);
            }
            longest = longest.max(fs::metadata(&wal).expect("a log").len());
        }
        assert!(longest <= 64 << 20, "the log has grown to {} MB", longest >> 20);
        assert!(fs::metadata(database(home.path())).expect("a file").len() > 80 << 20);
    });
}

/// A long reader, a backup for instance, holds the log; the store goes on.
#[test]
fn a_reader_that_stays_stops_nobody() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        submit(&store, &setup, 10).await;
        let db = Connection::open(database(home.path())).expect("it opens");
        db.execute_batch("BEGIN").expect("begun");
        let count = |db: &Connection| -> i64 {
            db.query_row("SELECT count(*) FROM tasks", [], |row| row.get(0)).expect("counted")
        };
        assert_eq!(count(&db), 10);
        submit(&store, &setup, 200).await;
        assert_eq!(count(&db), 10, "it sees one moment");
        db.execute_batch("COMMIT").expect("ended");
        assert_eq!(count(&db), 210);
        assert_eq!(store.check().await, Ok(vec![]));
    });
}

#[test]
fn a_clock_that_is_set_back_prolongs_no_backoff() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        submit(&store, &setup, 1).await;
        let by = register(&store, "w1").await;
        let (task, fence) = claim(&store, &by, 1).await.expect("a task");
        let failure = Failure::new(Code::EngineCrashed, "it broke");
        let end = End::Fail(Failure { retryable: true, ..failure });
        let ended = store.end(&by, fence, end).await.expect("failed");
        assert_eq!(ended.state, State::Queued);
        assert!(claim(&store, &by, 2).await.is_none(), "it waits");
        setup.clock.jump(Timestamp(setup.clock.wall().0 - 3_600_000));
        setup.clock.advance(Duration::from_millis(setup.rules.max_backoff_ms));
        store.advance().await.expect("advanced");
        assert_eq!(claim(&store, &by, 3).await.map(|(task, _)| task.id), Some(task.id));
    });
}

#[test]
fn a_crowd_of_late_tasks_is_ended_in_steps() {
    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        let deadline = setup.clock.wall().plus_ms(1_000);
        let submits = (0..600).map(|_| {
            store.submit(conformance::task(&setup, |record| record.deadline = Some(deadline)))
        });
        futures_util::future::join_all(submits).await;
        assert_eq!(store.advance().await, Ok(Some(deadline)));
        setup.clock.advance(Duration::from_millis(1_000));
        let mut steps = 1;
        while let Some(next) = store.advance().await.expect("advanced") {
            assert!(next <= setup.clock.wall(), "the next step is due at once");
            steps += 1;
        }
        assert!((2..=4).contains(&steps), "{steps} steps");
        assert_eq!(store.check().await, Ok(vec![]));
        let backlog = store.backlog().await.expect("answered");
        assert!(backlog.iter().all(|b| b.ready.is_empty() && b.delayed == 0));
    });
}

/// A database with its log, as a process leaves it that is killed.
fn killed(setup: &Setup, submits: usize) -> tempfile::TempDir {
    let home = folder();
    runtime().block_on(async {
        let store = open(home.path(), setup);
        for _ in 0..submits {
            submit(&store, setup, 1).await;
        }
        copy(home.path())
    })
}

#[test]
fn a_log_that_is_damaged_in_its_middle_is_told() {
    let setup = Setup::new();
    let left = killed(&setup, 30);
    let log = left.path().join("tasks.db-wal");
    let whole = fs::read(&log).expect("a log");
    let refused = |bytes: &[u8]| {
        fs::write(&log, bytes).expect("written");
        let before = contents(left.path());
        let refused = try_open(left.path(), &setup).map(|_| ()).expect_err("damaged");
        assert!(matches!(refused, Error::Corrupt(_)), "{refused}");
        assert_eq!(contents(left.path()), before, "and left as it is");
    };
    // In the header, in the first frame, in one behind it.
    for at in [9, 100, whole.len() / 2] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        refused(&damaged);
    }
    // A power cut takes what was written last, and that was not acknowledged.
    for torn in [whole.len() - 1, whole.len() - 3_000] {
        let copy = copy(left.path());
        fs::write(copy.path().join("tasks.db-wal"), &whole[..torn]).expect("written");
        let store = open(copy.path(), &setup);
        assert_eq!(runtime().block_on(store.check()), Ok(vec![]));
    }
    fs::write(&log, &whole).expect("written");
    let store = open(left.path(), &setup);
    runtime().block_on(async {
        let backlog = store.backlog().await.expect("answered");
        let ready = backlog[0].ready.values().map(|ready| ready.tasks).sum::<u64>();
        assert_eq!(ready, 30, "whole, it has them all");
    });
}
