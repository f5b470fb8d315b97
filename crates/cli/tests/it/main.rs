//! The real binary, each test with a data directory of its own.

mod away;
mod keys;
mod mistakes;
mod models;
mod unfinished;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

/// A place in which commands run, and that knows nothing of the machine's configuration.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rayreel"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RAYREEL_") {
                command.env_remove(name);
            }
        }
        command
            .args(words.split_whitespace())
            .current_dir(self.directory.path())
            .env("RAYREEL_DATA", self.path("data"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> Output {
        self.command(words).output().expect("it starts")
    }

    /// Runs a command that succeeds and prints one JSON document.
    fn json(&self, words: &str) -> Value {
        let output = self.run(&format!("{words} --json"));
        assert!(output.status.success(), "{words}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON document")
    }

    fn spawn(&self, words: &str) -> Started {
        Started::new(self.command(words))
    }

    /// A server that is ready.
    fn serve(&self, words: &str) -> Started {
        let mut server = self.spawn(&format!("serve {words}"));
        let mut line = String::new();
        let mut stdout = BufReader::new(server.child.stdout.take().expect("it is piped"));
        stdout.read_line(&mut line).expect("readable");
        assert!(line.starts_with("rayreel serves http://127.0.0.1:"), "{line}");
        server
    }

    fn announced(&self) -> Value {
        let text = fs::read(self.path("data/server.json")).expect("there");
        serde_json::from_slice(&text).expect("JSON")
    }
}

/// A command that runs.
struct Started {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Started {
    fn new(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let stderr = child.stderr.take().expect("it is piped");
        Self { child, stderr: BufReader::new(stderr), said: String::new() }
    }

    /// Waits until it has said so on standard error.
    fn wait_for(&mut self, words: &str) {
        while !self.said.contains(words) {
            let read = self.stderr.read_line(&mut self.said).expect("readable");
            assert!(read > 0, "it never said `{words}`, but {}", self.said);
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it is there");
    }

    /// Its exit status, standard output and standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        self.stderr.read_to_string(&mut self.said).expect("readable");
        let output = self.child.wait_with_output().expect("it ends");
        (output.status.code(), text(&output.stdout), self.said)
    }
}

/// Waits until it is so; a minute is more than anything here takes.
#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// The two ends of a terminal.
fn terminal() -> (File, File) {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&near).and_then(|()| unlockpt(&near)).expect("it is ours");
    let name = ptsname(&near, Vec::new()).expect("a name").into_string().expect("UTF-8");
    let far = OpenOptions::new().read(true).write(true).open(name).expect("it opens");
    (near.into(), far)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn is_mp4(path: &Path) -> bool {
    fs::read(path).expect("there").get(4..8) == Some(b"ftyp")
}

/// Small enough to take no time.
const TINY: &str = "--size 64x64 --frames 5 --steps 1";

#[test]
fn generate_makes_a_file_and_says_that_it_is_a_test_pattern() {
    let place = Place::new();
    let output = place.run(&format!("generate fox -o fox.mp4 {TINY}"));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let first = stderr.lines().next().expect("a line");
    assert_eq!(first, "no model configured: this is a test pattern");
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with("wrote fox.mp4 (64x64, 5 frames, 0.3 s, "), "{stdout}");
    assert!(stdout.ends_with(") – test pattern\n"), "{stdout}");
    assert!(is_mp4(&place.path("fox.mp4")));
    assert!(!place.path("data/server.json").exists(), "no server is left");
}

#[test]
fn with_json_there_is_one_document_and_nothing_else() {
    let place = Place::new();
    for (file, media_type, begin) in
        [("a.webp", "image/webp", &b"RIFF"[..]), ("a.jpg", "image/jpeg", b"\xff\xd8\xff")]
    {
        let still = place.json(&format!("generate fox -o {file} --size 64x64 --steps 1"));
        assert_eq!(still["result"]["media_type"], media_type);
        assert!(fs::read(place.path(file)).expect("there").starts_with(begin), "{file}");
    }
    let task = place.json(&format!("generate fox -o still.png {}", "--size 64x64 --steps 1"));
    assert_eq!(task["status"], "SUCCEEDED");
    assert_eq!(task["file"], "still.png");
    assert_eq!(task["result"]["media_type"], "image/png");
    assert_eq!(task["result"]["test_pattern"], true);
    assert!(fs::read(place.path("still.png")).expect("there").starts_with(b"\x89PNG"));

    let id = task["id"].as_str().expect("a text");
    assert_eq!(place.json(&format!("get {id}"))["id"], task["id"]);
    assert_eq!(place.json("list")["data"][0]["id"], task["id"]);
    assert_eq!(place.json(&format!("cancel {id}"))["cancelled"], false);
    let file = place.json(&format!("download {id}"))["file"].clone();
    assert_eq!(file, format!("{id}.png"));
    assert_eq!(place.json(&format!("delete {id}"))["deleted"], true);

    let gone = place.run(&format!("get {id} --json"));
    assert_eq!(gone.status.code(), Some(4));
    assert_eq!(text(&gone.stdout), "");
    let body: Value = serde_json::from_slice(&gone.stderr).expect("one JSON document");
    assert_eq!(body["error"]["code"], "task_not_found");
}

#[test]
fn two_at_once_both_succeed() {
    let place = Place::new();
    let both =
        ["one", "two"].map(|name| place.spawn(&format!("generate {name} -o {name}.mp4 {TINY}")));
    for (name, started) in ["one", "two"].iter().zip(both) {
        let (status, _, stderr) = started.end();
        assert_eq!(status, Some(0), "{stderr}");
        assert!(is_mp4(&place.path(&format!("{name}.mp4"))));
    }
}

#[test]
fn when_the_embedding_process_is_killed_another_takes_over() {
    let place = Place::new();
    let slow = "--size 64x64 --frames 5 --steps 100";
    let mut first = place.spawn(&format!("generate one -o one.mp4 {slow}"));
    first.wait_for("is running");
    let mut second = place.spawn(&format!("generate two -o two.mp4 {TINY}"));
    second.wait_for("submitted");
    first.signal(Signal::KILL);
    assert_eq!(first.end().0, None);
    let (status, _, stderr) = second.end();
    assert_eq!(status, Some(0), "{stderr}");
    assert!(is_mp4(&place.path("two.mp4")));
    // What the killed one had been promised was kept, too.
    let (_, stdout, _) = place.spawn("list --json").end();
    let list: Value = serde_json::from_str(&stdout).expect("JSON");
    let ids = list["data"].as_array().expect("a list").iter().map(|task| task["id"].clone());
    for id in ids {
        let id = id.as_str().expect("a text").to_owned();
        assert_eq!(place.run(&format!("watch {id}")).status.code(), Some(0), "{id}");
    }
}

#[test]
fn ctrl_c_cancels_the_task_and_says_so() {
    let place = Place::new();
    let mut started = place.spawn("generate fox -o fox.mp4 --size 64x64 --frames 5 --steps 100");
    started.wait_for("is running");
    started.signal(Signal::INT);
    let (status, stdout, stderr) = started.end();
    assert_eq!((status, stdout.as_str()), (Some(9), ""), "{stderr}");
    assert!(stderr.contains("error[cancelled]: task_"), "{stderr}");
    assert!(!place.path("fox.mp4").exists());
    assert_eq!(place.json("list")["data"][0]["status"], "CANCELLED");
}

#[test]
fn commands_use_the_server_that_runs() {
    let place = Place::new();
    let server = place.serve("--listen 127.0.0.1:0");

    let second = place.run("serve --listen 127.0.0.1:0");
    assert_eq!(second.status.code(), Some(6));
    let stderr = text(&second.stderr);
    let pid = server.child.id();
    assert!(stderr.contains("error[data_directory_in_use]"), "{stderr}");
    assert!(stderr.contains(&format!("process {pid},")), "{stderr}");

    let submitted = place.run(&format!("submit fox {TINY}"));
    let id = text(&submitted.stdout).trim().to_owned();
    let watched = place.run(&format!("watch {id} --json"));
    assert_eq!(watched.status.code(), Some(0), "{}", text(&watched.stderr));
    let watched = text(&watched.stdout);
    let events: Vec<Value> =
        watched.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(events.first().expect("an event")["status"], "QUEUED");
    assert_eq!(events.last().expect("an event")["status"], "SUCCEEDED");

    server.signal(Signal::TERM);
    assert_eq!(server.end().0, Some(0));
    assert!(!place.path("data/server.json").exists());
    assert_eq!(place.json(&format!("get {id}"))["status"], "SUCCEEDED");
}

#[test]
fn a_task_that_nobody_runs_waits_for_a_server() {
    let place = Place::new();
    let submitted = place.run(&format!("submit fox {TINY}"));
    assert!(text(&submitted.stderr).contains("no server is running"));
    let id = text(&submitted.stdout).trim().to_owned();
    assert_eq!(place.json(&format!("get {id}"))["status"], "QUEUED");
    assert_eq!(place.run(&format!("watch {id}")).status.code(), Some(0));
}

#[test]
fn what_is_wrong_ends_with_the_status_of_its_code() {
    let place = Place::new();
    fs::write(place.path("rayreel.toml"), "\nlease_secnds = 1\n").expect("written");
    let output = place.run("config check");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        text(&output.stderr).lines().next(),
        Some(
            "error[invalid_config]: rayreel.toml, line 2: there is no setting `lease_secnds`; \
             did you mean `lease_seconds`?"
        )
    );
    fs::write(place.path("rayreel.toml"), "lease_seconds = 5").expect("written");
    let checked = text(&place.run("config check").stdout);
    assert!(checked.contains("lease_seconds = 5  # file: rayreel.toml, line 1"), "{checked}");

    for (words, status, code) in [
        ("generate x --json --size big", 2, "invalid_value"),
        ("generate x --json --frames 6", 2, "invalid_value"),
        ("generate x --json --model wan", 2, "unknown_model"),
        ("generate x --json -o missing/x.mp4", 2, "invalid_value"),
        ("list --json --server http://127.0.0.1:9", 7, "server_unreachable"),
        ("serve --json --listen 0.0.0.0:0", 2, "invalid_config"),
        ("list --json --data rayreel.toml", 2, "invalid_config"),
        ("worker --json --server http://127.0.0.1:9", 5, "unauthorized"),
    ] {
        let output = place.run(words);
        assert_eq!(output.status.code(), Some(status), "{words}");
        assert_eq!(text(&output.stdout), "", "{words}");
        let body: Value = serde_json::from_slice(&output.stderr).expect(words);
        assert_eq!(body["error"]["code"], code, "{words}");
    }
}

#[test]
fn every_setting_is_shown_with_its_value_and_where_it_comes_from() {
    let place = Place::new();
    fs::write(place.path("rayreel.toml"), "lease_seconds = 5").expect("written");
    let show = |words: &str| {
        let output =
            place.command(words).env("RAYREEL_MAX_QUEUED", "7").output().expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let data = place.path("elsewhere");
    let shown = show(&format!("config show --data {}", data.display()));
    for line in [
        "max_streak = 8  # default".to_owned(),
        "default_model = \"testcard\"  # default: the only model there is".to_owned(),
        "lease_seconds = 5  # file: rayreel.toml, line 1".to_owned(),
        "max_queued = 7  # environment: RAYREEL_MAX_QUEUED".to_owned(),
        format!("data = \"{}\"  # flag: --data", data.display()),
    ] {
        assert!(shown.contains(&format!("{line}\n")), "{line}: {shown}");
    }
    let shown: Value = serde_json::from_str(&show("config show --json")).expect("JSON");
    let entries = shown["entries"].as_array().expect("a list");
    let entry = entries.iter().find(|entry| entry["key"] == "max_queued").expect("an entry");
    let expected = serde_json::json!({
        "key": "max_queued",
        "value": "7",
        "source": "environment",
        "at": "RAYREEL_MAX_QUEUED",
    });
    assert_eq!(*entry, expected);
}

#[test]
fn nobody_need_read_to_the_end() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = place.command("completions bash").stdout(writer).output().expect("it starts");
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), ""));
}
