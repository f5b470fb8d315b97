//! A process that dies, and one whose disk is full. This test binary runs itself as that process.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rayreel_domain::TaskId;
use rayreel_domain::wire::worker::Beaten;
use rayreel_server::store::{Error, Store};

use super::{claim, database, done, folder, has, open, register, submit};
use crate::conformance::{self, Setup, runtime};

const FOLDER: &str = "RAYREEL_TEST_STORE_FOLDER";

/// Runs one of the tests below as a process of its own, on a store in `folder`.
fn child(test: &str, folder: &Path, limit: Option<u64>) -> Child {
    let this = std::env::current_exe().expect("a path");
    let arguments = ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"];
    let mut command = match limit {
        None => Command::new(&this),
        // No file may grow beyond the limit: to the store, a disk that is full.
        Some(bytes) => {
            let mut shell = Command::new("sh");
            shell
                .arg("-c")
                .arg(format!("trap '' XFSZ; exec prlimit --fsize={bytes}:unlimited \"$0\" \"$@\""));
            shell.arg(&this);
            shell
        }
    };
    command
        .args(arguments)
        .env(FOLDER, folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts")
}

/// What the child tells, word by word.
fn told(child: &mut Child) -> impl Iterator<Item = (String, String)> + use<> {
    let out: ChildStdout = child.stdout.take().expect("piped");
    BufReader::new(out).lines().map_while(Result::ok).filter_map(|line| {
        let (word, rest) = line.strip_prefix("> ")?.split_once(' ')?;
        Some((word.to_owned(), rest.to_owned()))
    })
}

fn tell(word: &str, rest: &str) {
    println!("> {word} {rest}");
}

/// In a child: where its store is.
fn given_folder() -> Option<PathBuf> {
    // Ends the line that the test harness has begun.
    println!();
    std::env::var_os(FOLDER).map(PathBuf::from)
}

#[test]
fn a_process_that_is_killed_loses_nothing_that_it_acknowledged() {
    let (home, setup) = (folder(), Setup::new());
    let mut accepted: Vec<TaskId> = Vec::new();
    for _ in 0..3 {
        let mut child = child("store::process::submits_for_ever", home.path(), None);
        let mut told = told(&mut child);
        for _ in 0..200 {
            let (word, id) = told.next().expect("it goes on");
            assert_eq!(word, "accepted");
            accepted.push(id.parse().expect("an id"));
        }
        child.kill().expect("killed");
        accepted.extend(told.map(|(_, id)| id.parse::<TaskId>().expect("an id")));
        child.wait().expect("dead");
    }
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        assert_eq!(store.check().await, Ok(vec![]));
        for id in accepted {
            assert!(has(&store, id).await, "{id} is gone");
        }
    });
}

/// The process that is killed.
#[test]
#[ignore = "is run by the test above"]
fn submits_for_ever() {
    let Some(folder) = given_folder() else { return };
    let setup = Setup {
        random: std::sync::Arc::new(rayreel_server::clock::Random::from_system()),
        ..Setup::new()
    };
    runtime().block_on(async {
        let store = open(&folder, &setup);
        let by = register(&store, "w1").await;
        for seq in 1.. {
            for id in submit(&store, &setup, 16).await {
                tell("accepted", &id.to_string());
            }
            let (_, fence) = claim(&store, &by, seq).await.expect("a task");
            if seq % 2 == 0 {
                store.end(&by, fence, done()).await.expect("committed");
            }
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_nothing_and_is_not_the_end() {
    let (home, setup) = (folder(), Setup::new());
    let mut child = child("store::process::fills_the_disk", home.path(), Some(600_000));
    let mut accepted: Vec<TaskId> = Vec::new();
    let mut refusals = 0;
    for (word, rest) in told(&mut child) {
        match word.as_str() {
            "accepted" => accepted.push(rest.parse().expect("an id")),
            "refused" => {
                refusals += 1;
                // Somebody makes room.
                let freed = Command::new("prlimit")
                    .arg(format!("--pid={}", child.id()))
                    .arg("--fsize=unlimited")
                    .status();
                assert!(freed.expect("prlimit is there").success());
                let stdin = child.stdin.as_mut().expect("piped");
                stdin.write_all(b"go on\n").expect("it listens");
            }
            other => panic!("{other} {rest}"),
        }
    }
    assert!(child.wait().expect("it ends").success(), "the child says what was wrong");
    assert_eq!(refusals, 1);
    runtime().block_on(async {
        let store = open(home.path(), &setup);
        assert_eq!(store.check().await, Ok(vec![]));
        for id in &accepted {
            assert!(has(&store, *id).await, "{id} is gone");
        }
        let backlog = store.backlog().await.expect("answered");
        let [pool] = backlog.as_slice() else { panic!("one pool: {backlog:?}") };
        let ready: u64 = pool.ready.values().map(|ready| ready.tasks).sum();
        assert_eq!(ready, accepted.len() as u64 - 1, "and nothing was added");
    });
}

/// The process whose disk is full.
#[test]
#[ignore = "is run by the test above"]
fn fills_the_disk() {
    let Some(folder) = given_folder() else { return };
    let setup = Setup::new();
    runtime().block_on(async {
        let store = open(&folder, &setup);
        let by = register(&store, "w1").await;
        let first = submit(&store, &setup, 1).await[0];
        tell("accepted", &first.to_string());
        let (_, fence) = claim(&store, &by, 1).await.expect("a task");
        assert_eq!(store.beat(&by, fence, None).await, Ok(Beaten::Continue));
        let refused = loop {
            let submits = (0..16).map(|_| store.submit(conformance::task(&setup, |_| {})));
            let answers = futures_util::future::join_all(submits).await;
            for answer in answers.iter().flatten() {
                tell("accepted", &answer.task.id.to_string());
            }
            if let Some(error) = answers.into_iter().find_map(Result::err) {
                break error;
            }
        };
        assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
        // Reading goes on, and whoever has a lease keeps it.
        assert!(has(&store, first).await);
        assert_eq!(store.beat(&by, fence, None).await, Ok(Beaten::Continue));

        // It gets worse: now the file can't even be found. An empty one is not put in its place.
        let away = folder.join("away");
        std::fs::create_dir(&away).expect("a folder");
        let files = ["tasks.db", "tasks.db-wal", "tasks.db-shm"];
        for file in files {
            std::fs::rename(folder.join(file), away.join(file)).expect("moved");
        }
        for _ in 0..2 {
            let large = conformance::task(&setup, |record| {
                record.request.prompt = "w".repeat(600_000);
            });
            let refused = store.submit(large).await.map(|_| ());
            assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        }
        assert!(!database(&folder).exists());
        assert_eq!(store.beat(&by, fence, None).await, Ok(Beaten::Continue));
        assert_eq!(store.leases().await.map(|leases| leases.len()), Ok(1));
        for file in files {
            std::fs::rename(away.join(file), folder.join(file)).expect("moved back");
        }
        tell("refused", "for lack of room");
        std::io::stdin().read_line(&mut String::new()).expect("told to go on");
        for id in submit(&store, &setup, 16).await {
            tell("accepted", &id.to_string());
        }
        store.end(&by, fence, done()).await.expect("committed");
        assert_eq!(store.check().await, Ok(vec![]));
    });
}

/// What another user's files look like to the store.
#[cfg(unix)]
#[test]
fn files_that_may_not_be_written_are_an_error() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;

    let (home, setup) = (folder(), Setup::new());
    runtime().block_on(async { submit(&open(home.path(), &setup), &setup, 3).await });
    let before = std::fs::read(database(home.path())).expect("readable");
    let allow = |path: &Path, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions).expect("set");
    };
    allow(&database(home.path()), 0o444);
    allow(home.path(), 0o555);
    let this = std::env::current_exe().expect("a path");
    let mut command = Command::new(&this);
    // Root may write everything: it becomes somebody else.
    let root = std::fs::write(home.path().join("probe"), b"").is_ok();
    let copied = folder();
    if root {
        let _ = std::fs::remove_file(home.path().join("probe"));
        let program = copied.path().join("test");
        // By another process: one that another test starts meanwhile would inherit a file open for
        // writing, which cannot be executed.
        let done = Command::new("cp").args([&this, &program]).status().expect("it starts");
        assert!(done.success());
        allow(copied.path(), 0o755);
        command = Command::new(program);
        command.uid(65_534);
    }
    let status = command
        .args(["--exact", "store::process::opens_what_may_not_be_written"])
        .args(["--ignored", "--nocapture"])
        .env(FOLDER, home.path())
        .current_dir("/")
        .status()
        .expect("it runs");
    allow(home.path(), 0o755);
    assert!(status.success(), "the child says what was wrong");
    assert_eq!(std::fs::read(database(home.path())).expect("readable"), before);
}

#[test]
#[ignore = "is run by the test above"]
fn opens_what_may_not_be_written() {
    let Some(folder) = given_folder() else { return };
    let refused = super::try_open(&folder, &Setup::new()).map(|_| ());
    let Err(Error::Unavailable(message)) = refused else { panic!("{refused:?}") };
    assert!(message.contains("readonly") || message.contains("unable to open"), "{message}");
}
