//! A server of the real binary on a data directory of its own.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::Signal;
use serde::Deserialize;
use tempfile::TempDir;

use super::wait::{LONG, found_within, until};
use super::{Api, Command, Finished, Process, command};

/// A data directory with its configuration, and the server on it while there is one. Whatever runs
/// on the directory at the end of the test is ended, workers that killed servers have left too.
#[derive(Debug)]
pub(crate) struct Server {
    directory: TempDir,
    home: PathBuf,
    listen: String,
    /// Its soft limit of open files at its start, if not this process's.
    pub(crate) files: Option<u32>,
    /// More variables of its environment.
    pub(crate) variables: Vec<(&'static str, String)>,
    process: Option<(Child, Process)>,
}

/// What the server tells in `server.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Announced {
    pub(crate) url: String,
    pub(crate) worker_token: String,
    pub(crate) pid: u32,
}

impl Server {
    /// Starts a server with this configuration; it keeps its address when it is started again.
    pub(crate) fn start(config: &str) -> Self {
        let mut server = Self::prepare(config);
        server.serve();
        server
    }

    /// Everything but the start.
    pub(crate) fn prepare(config: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let home = directory.path().join("data");
        Self::at(directory, home, config)
    }

    /// On a data directory somewhere within the test's own.
    pub(crate) fn at(directory: TempDir, home: PathBuf, config: &str) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        let (files, variables) = (None, Vec::new());
        let server = Self { directory, home, listen, files, variables, process: None };
        server.configure(config);
        server
    }

    /// Takes any free port at each start.
    pub(crate) fn floating(config: &str) -> Self {
        let mut server = Self::prepare(config);
        server.listen = "127.0.0.1:0".to_owned();
        server.serve();
        server
    }

    /// Another configuration for the next start.
    pub(crate) fn configure(&self, config: &str) {
        fs::write(self.config(), config).expect("written");
    }

    /// Starts the server and waits until it is ready.
    #[track_caller]
    pub(crate) fn serve(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let child = until("the server has its address", || self.try_serve());
        let process = Process::find(child.id()).expect("it runs");
        self.process = Some((child, process));
    }

    /// None if its address is taken: whatever was being started when its last owner died has that
    /// owner's sockets for a moment longer.
    fn try_serve(&self) -> Option<Child> {
        let mut log =
            OpenOptions::new().create(true).append(true).open(self.log()).expect("opened");
        let before = log.seek(SeekFrom::End(0)).expect("a file") as usize;
        let mut command = command::plain(self, &["serve", "--listen", &self.listen]);
        if let Some(files) = self.files {
            command = command::with_files(&command, files);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("started");
        let pid = child.id();
        let started = found_within(LONG, || {
            if let Some(status) = child.try_wait().expect("it was started here") {
                return Some(Err(status));
            }
            let announced = self.find_announced()?;
            (announced.pid == pid && Api::new(&announced.url).is_ready()).then_some(Ok(()))
        });
        match started {
            Some(Ok(())) => Some(child),
            Some(Err(_)) if self.logged()[before..].contains("error[address_in_use]") => None,
            ended => panic!("the server is not ready: {ended:?}\n{}", self.tail()),
        }
    }

    /// Starts a server that must refuse to serve, and says how it ended.
    pub(crate) fn serve_in_vain(&self) -> Finished {
        self.run(&["serve", "--listen", "127.0.0.1:0"])
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let (mut child, process) = self.process.take().expect("it runs");
        process.signal(Signal::KILL);
        child.wait().expect("it was started here");
    }

    /// SIGTERM; waits for the end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let (mut child, process) = self.process.take().expect("it runs");
        process.signal(Signal::TERM);
        assert!(process.wait(LONG), "the server does not stop\n{}", self.tail());
        child.wait().expect("it was started here")
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process.as_ref().expect("it runs").1
    }

    pub(crate) fn api(&self) -> Api {
        Api::new(&self.announced().url)
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        self.announced().url.trim_start_matches("http://").to_owned()
    }

    pub(crate) fn announced(&self) -> Announced {
        self.find_announced().expect("a server has announced itself")
    }

    pub(crate) fn find_announced(&self) -> Option<Announced> {
        serde_json::from_slice(&fs::read(self.home.join("server.json")).ok()?).ok()
    }

    /// A directory of the test's own, beside the data directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The data directory.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("rayreel.toml")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// What servers on this directory have logged.
    fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// What a worker has logged.
    pub(crate) fn logged_by(&self, worker: &str) -> String {
        fs::read_to_string(self.home.join("logs").join(format!("{worker}.log"))).unwrap_or_default()
    }

    /// Every process of this test that runs.
    pub(crate) fn processes(&self) -> Vec<Process> {
        Process::at_home(self.directory.path())
    }

    /// Worker processes. A child that a worker has forked, and that is not its engine yet, looks
    /// like the worker itself; it is none.
    pub(crate) fn workers(&self) -> Vec<Process> {
        let workers: Vec<_> = self.processes().into_iter().filter(Process::is_worker).collect();
        let ids: Vec<_> = workers.iter().map(|worker| worker.pid).collect();
        workers
            .into_iter()
            .filter(|worker| worker.parent().is_none_or(|parent| !ids.contains(&parent)))
            .collect()
    }

    pub(crate) fn engines(&self) -> Vec<Process> {
        self.processes().into_iter().filter(Process::is_engine).collect()
    }

    /// The worker process of this name.
    #[track_caller]
    pub(crate) fn worker(&self, name: &str) -> Process {
        until(&format!("a process of worker {name}"), || {
            self.workers().into_iter().find(|worker| worker.value_of("--name") == Some(name))
        })
    }

    /// Paths of all artifacts, relative to their directory, sorted.
    pub(crate) fn artifacts(&self) -> Vec<String> {
        fn walk(path: &Path, root: &Path, found: &mut Vec<String>) {
            // What is deleted while it is looked at is not there.
            for entry in fs::read_dir(path).into_iter().flatten().filter_map(Result::ok) {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, root, found);
                }
                let relative = path.strip_prefix(root).expect("it is below the root");
                found.push(relative.to_str().expect("plain names").to_owned());
            }
        }
        let root = self.home.join("artifacts");
        let mut found = Vec::new();
        walk(&root, &root, &mut found);
        found.sort();
        found
    }

    /// Starts a command on this data directory.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        Command::start(self, words)
    }

    /// Runs a command on this data directory to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Finished {
        self.command(words).finish()
    }

    fn tail(&self) -> String {
        let mut text = String::new();
        let mut logs = vec![self.log(), self.home.join("embedded.log")];
        logs.extend(
            fs::read_dir(self.home.join("logs"))
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .map(|entry| entry.path()),
        );
        for path in logs {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("--- {}\n", path.display()));
            for line in &lines[lines.len().saturating_sub(30)..] {
                text.push_str(&format!("{line}\n"));
            }
        }
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
        if let Some((mut child, process)) = self.process.take() {
            process.signal(Signal::KILL);
            let _ = child.wait();
        }
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for process in left {
                process.signal(Signal::KILL);
                process.wait(LONG);
            }
        }
    }
}

/// A port below those that the system gives to outgoing connections, so that none of these takes
/// it while the server is away.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 200) as u16 * 100;
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
