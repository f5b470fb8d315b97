//! Disks that are full or read-only, data directories that are somebody else's, damaged or newer:
//! a clear error with a code from the table, and nothing lost.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use rayreel_domain::Code;
use rayreel_domain::task::{Outcome, State};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use serde_json::json;
use tempfile::TempDir;

use crate::rig::{Faults, RawWorker, Server, only, until};

const NO_FLEET: &str = "[pools.local]\nmax = 0\n";

fn fox() -> serde_json::Value {
    json!({"prompt": "a fox", "size": "64x64", "frames": 1, "steps": 1})
}

/// A small file system of the test's own, for as long as this lives.
struct Disk {
    directory: Option<TempDir>,
}

impl Disk {
    /// None, with a word why, where this user may not mount.
    fn mount(megabytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        fs::create_dir(&path).expect("created");
        let size = std::ffi::CString::new(format!("size={megabytes}m")).expect("no NUL in it");
        match mount("tmpfs", &path, "tmpfs", MountFlags::empty(), &*size) {
            Ok(()) => Some(Self { directory: Some(directory) }),
            Err(error) => {
                eprintln!("SKIPPED: this test mounts a file system, which needs root: {error}");
                None
            }
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.as_ref().expect("there until the end").path().join("disk")
    }

    fn read_only(&self, yes: bool) {
        let flags = if yes { MountFlags::RDONLY } else { MountFlags::empty() };
        mount_remount(self.path(), flags, c"").expect("remounted");
    }

    /// Writes until nothing fits any more.
    fn fill(&self) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path().join("ballast"))
            .expect("opened");
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path().join("ballast")).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still be there.
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// A server whose data directory is on the disk.
fn server_on(disk: &Disk, config: &str) -> Server {
    let directory = tempfile::tempdir().expect("a directory");
    Server::at(directory, disk.path().join("data"), config)
}

#[test]
fn a_full_disk_refuses_what_it_can_not_keep_and_loses_nothing_that_it_has() {
    let Some(disk) = Disk::mount(8) else { return };
    let mut server = server_on(&disk, NO_FLEET);
    server.serve();
    let api = server.api();
    let mut ids = vec![api.submit(&fox()).id];
    let mut worker = RawWorker::register(&server, "w");
    let task = worker.claim(0).expect("the task");
    worker.beat(task.fence).expect("it is the holder");
    let video = vec![7; 2_000_000];
    let manifest = worker.manifest(&task, &video);
    let place = worker.announce(task.fence, &manifest).expect("it is the holder");

    assert!(api.is_ready());
    disk.fill();
    until("it is not ready", || (!api.is_ready()).then_some(()));
    // Refused in the middle, and heard all the same.
    let refusal = worker.put(&place, &video).expect_err("there is no room");
    assert_eq!((refusal.status, refusal.code.as_str()), (Some(507), "storage_full"));
    // The log may have some room left, for a while.
    let refusal = (0..10_000).find_map(|n| {
        let body = json!({"prompt": format!("{n} {}", "fox ".repeat(500))});
        match api.try_submit(&body, None) {
            Ok(task) => {
                ids.push(task.id);
                None
            }
            Err(refusal) => Some(refusal),
        }
    });
    let refusal = refusal.expect("the disk is full");
    assert_eq!(refusal.status, Some(503), "{refusal:?}");
    assert!(["store_unavailable", "outcome_unknown"].contains(&refusal.code.as_str()));
    assert!(!refusal.message.is_empty());
    for id in &ids {
        assert!(!api.task(id).status.is_terminal(), "what was acknowledged can be read");
    }

    // It goes on by itself.
    disk.free();
    assert!(api.is_ready());
    let id = until("a submit is taken again", || api.try_submit(&fox(), None).ok()).id;
    worker.put(&place, &video).expect("there is room");
    worker.commit(task.fence, &manifest).expect("it is the holder");
    assert_eq!(api.content(&ids[0]), video);
    ids.push(id);
    server.kill();
    server.serve();
    let mut stored: Vec<_> = server.api().every_task().into_iter().map(|task| task.id).collect();
    stored.reverse();
    assert_eq!(stored, ids, "each once, in its order, and none besides");
    assert_eq!(server.api().content(&ids[0]), video);
}

#[test]
fn a_full_scratch_disk_costs_no_task_a_try_and_is_told() {
    let Some(disk) = Disk::mount(80) else { return };
    let faults = Faults::new();
    let one_try = "[retry]\nmax_failures = 1\n";
    let server = Server::start(&format!("{one_try}{}", faults.model("fault", "")));
    let scratch = server.home().join("scratch");
    fs::remove_dir(&scratch).expect("empty");
    symlink(disk.path(), &scratch).expect("linked");
    let api = server.api();
    let id = api.submit(&json!({"model": "fault", "prompt": "hold"})).id;
    until("its engine works", || faults.noted("step").pop());

    disk.fill();
    faults.open_gate();
    let task = api.wait_for(&id, "blocked", |task| task.waiting_reason.is_some());
    assert_eq!(task.status, State::Queued);
    assert_eq!(only(task.attempts).outcome, Some(Outcome::Released), "uncharged");
    let reason = task.waiting_reason.unwrap_or_default();
    assert!(reason.contains("only 0 MiB are free"), "{reason}");
    assert!(reason.contains(disk.path().to_str().expect("plain")), "{reason}");

    disk.free();
    api.wait_for_success(&id);
}

/// Writes as much as fits, if the prompt says so.
const GREEDY: &str = r#"
import os, sys
with open(os.environ["RAYREEL_OUTPUT"], "wb", 0) as output:
    output.write(b"\0\0\0\x18ftypisom")
    while sys.argv[1] == "greed":
        output.write(bytes(1 << 16))
"#;

#[test]
fn a_task_that_fills_the_scratch_disk_itself_fails_and_the_worker_goes_on() {
    let Some(disk) = Disk::mount(80) else { return };
    let programs = tempfile::tempdir().expect("a directory");
    let program = programs.path().join("greedy.py");
    fs::write(&program, GREEDY).expect("written");
    let server = Server::start(&format!(
        "[retry]\nmax_failures = 2\nbackoff_seconds = 0.05\n[models.greedy]\nengine = \"command\"\n\
         [models.greedy.settings]\nrun = [\"python3\", {program:?}, \"{{prompt}}\"]\n",
    ));
    let scratch = server.home().join("scratch");
    fs::remove_dir(&scratch).expect("empty");
    symlink(disk.path(), &scratch).expect("linked");
    let api = server.api();
    let ask = |prompt| api.submit(&json!({"model": "greedy", "prompt": prompt})).id;
    let task = api.wait_for_end(&ask("greed"));
    let error = task.error.expect("it failed");
    assert_eq!(error.code, Code::StorageFull, "{error:?}");
    assert!(error.message.contains("no space was left on the worker"), "{error:?}");
    let detail = error.detail.unwrap_or_default();
    assert!(detail.contains("No space left on device"), "the program's last lines: {detail}");
    let outcomes: Vec<_> = task.attempts.iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes, [Some(Outcome::Failed); 2], "charged");

    let worker = only(server.workers());
    assert_eq!(api.wait_for_success(&ask("thrift")).attempts.len(), 1);
    assert_eq!(only(server.workers()), worker, "it has not been started anew");
}

#[test]
fn a_read_only_data_directory_is_refused_with_its_name() {
    let Some(disk) = Disk::mount(8) else { return };
    let mut server = server_on(&disk, NO_FLEET);
    server.serve();
    let id = server.api().submit(&fox()).id;
    server.terminate();

    disk.read_only(true);
    let done = server.serve_in_vain().expect_code(7);
    let path = server.home().to_str().expect("a plain name");
    assert!(done.stderr.contains("store_unavailable"), "{done:#?}");
    assert!(done.stderr.contains(path) && done.stderr.contains("read-only"), "{done:#?}");

    disk.read_only(false);
    server.serve();
    assert_eq!(server.api().task(&id).status, State::Queued);
}

#[test]
fn a_file_in_place_of_the_data_directory_is_refused() {
    let server = Server::prepare("");
    fs::write(server.home(), "a file").expect("written");
    let done = server.serve_in_vain().expect_code(2);
    assert!(done.stderr.contains("can't be the data directory"), "{done:#?}");
    assert_eq!(fs::read(server.home()).expect("there"), b"a file");
}

#[test]
fn a_second_server_on_the_same_data_directory_is_refused_and_told_who_has_it() {
    let server = Server::start(NO_FLEET);
    let id = server.api().submit(&fox()).id;
    let done = server.serve_in_vain().expect_code(6);
    assert!(done.stderr.contains("data_directory_in_use"), "{done:#?}");
    let holder = format!("process {}", server.process().pid);
    assert!(done.stderr.contains(&holder), "{done:#?}");
    assert_eq!(server.announced().pid, server.process().pid, "the first one is still announced");
    assert_eq!(server.api().task(&id).status, State::Queued);
}

/// A server with a task of its own, stopped; and the bytes of its database.
fn stopped_with_a_task() -> (Server, String, Vec<u8>) {
    let mut server = Server::start(NO_FLEET);
    // More than one page of them.
    let ids: Vec<_> = (0..50).map(|_| server.api().submit(&fox()).id).collect();
    server.terminate();
    let bytes = fs::read(database(&server)).expect("there");
    assert!(bytes.len() > 16 * 1024, "what was stored is in the file itself: {}", bytes.len());
    (server, ids[0].clone(), bytes)
}

fn database(server: &Server) -> std::path::PathBuf {
    server.home().join("tasks.db")
}

/// The server refuses this file with this code, leaves it as it is, and works with the good one.
#[track_caller]
fn refused_until_restored(damaged: &[u8], exit: i32, code: &str, words: &str) {
    let (mut server, id, good) = stopped_with_a_task();
    let path = database(&server);
    fs::write(&path, damaged).expect("written");
    refused(&server, &path, damaged, exit, code, words);
    fs::write(&path, &good).expect("written");
    server.serve();
    assert_eq!(server.api().task(&id).status, State::Queued);
    assert_eq!(server.api().every_task().len(), 50);
}

#[track_caller]
fn refused(server: &Server, path: &Path, bytes: &[u8], exit: i32, code: &str, words: &str) {
    let done = server.serve_in_vain().expect_code(exit);
    assert!(done.stderr.contains(code) && done.stderr.contains(words), "{done:#?}");
    assert!(done.stderr.contains("tasks.db"), "it names the file: {done:#?}");
    assert!(fs::read(path).expect("there") == bytes, "the file is left as it is");
    assert!(!server.home().join("server.json").exists());
}

#[test]
fn a_database_that_is_none_is_refused_and_left_alone() {
    refused_until_restored(&b"not a database ".repeat(1000), 8, "store_corrupt", "damaged");
}

#[test]
fn a_database_that_is_cut_short_is_refused_and_left_alone() {
    let (_, _, good) = stopped_with_a_task();
    refused_until_restored(&good[..good.len() / 2], 8, "store_corrupt", "damaged");
}

#[test]
fn a_database_with_a_damaged_page_is_refused_and_left_alone() {
    let (_, _, mut damaged) = stopped_with_a_task();
    // Every page but the first, which has the tables' definitions.
    let page = usize::from(u16::from_be_bytes([damaged[16], damaged[17]]));
    for page in damaged.chunks_mut(page).skip(1) {
        page[..100].fill(0xff);
    }
    refused_until_restored(&damaged, 8, "store_corrupt", "damaged");
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let (server, _, mut newer) = stopped_with_a_task();
    // The schema's version is `user_version`, at this place of the file's header.
    let version = u32::from_be_bytes(newer[60..64].try_into().expect("four bytes"));
    assert!(version >= 1);
    newer[60..64].copy_from_slice(&(version + 1).to_be_bytes());
    let path = database(&server);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| file.write_all_at(&newer, 0))
        .expect("written");
    refused(&server, &path, &newer, 8, "store_too_new", "newer version");
}

#[test]
fn a_damaged_announcement_harms_nobody() {
    let mut server = Server::start(NO_FLEET);
    let id = server.api().submit(&fox()).id;
    server.kill();
    fs::write(server.home().join("server.json"), "{\"url\": ").expect("written");
    // A client does not believe it, and serves itself.
    let task = server.run(&["--json", "get", &id]).ok().json();
    assert_eq!(task["status"], "QUEUED");
    server.serve();
    assert_eq!(server.api().task(&id).status, State::Queued);
}
