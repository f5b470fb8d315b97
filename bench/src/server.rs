//! The processes that are measured: the real binary, as server and as worker.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::http::{Connection, Request};
use crate::machine::{cpu_time, kilobytes};

/// How long a process may take to come up or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of settings and data, which outlives the processes that work on it.
#[derive(Debug)]
pub(crate) struct Site {
    directory: tempfile::TempDir,
    binary: PathBuf,
    address: SocketAddr,
}

/// What the server announces; there is more in it.
#[derive(Deserialize)]
struct Announcement {
    token: String,
    worker_token: String,
    pid: u32,
}

/// A process that dies with its owner.
#[derive(Debug)]
struct Process {
    child: Child,
    log: PathBuf,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) worker_token: String,
    /// What clients of this user send.
    token: String,
}

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker(Process);

/// Memory of a process, in megabytes (10^6 bytes).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// All that is in memory.
    pub(crate) resident: f64,
    /// Without the pages of files, which the kernel can drop.
    pub(crate) anonymous: f64,
    /// The most that has ever been resident.
    pub(crate) peak: f64,
}

impl Site {
    /// Tasks are kept in the Redis at `store`, under a prefix of the site's own, or in a file.
    pub(crate) fn new(binary: &Path, parent: &Path, store: Option<&str>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("rayreel-bench-").tempdir_in(parent)?;
        let bench = std::env::current_exe()?;
        let witness = directory.path().join("witness");
        let setting = |path: &Path| toml_string(&path.to_string_lossy());
        let engine = format!("[{}, \"engine\", {}]", setting(&bench), setting(&witness));
        let prefix = directory.path().file_name().unwrap_or_default().to_string_lossy();
        let store = store.map_or_else(
            || "sqlite".to_owned(),
            |address| format!("{}?prefix={prefix}", address.trim_end_matches('/')),
        );
        let settings = format!(
            "store = {store:?}\n[pools.local]\nmax = 0\n[log]\nlevel = \"warn\"\n\
             [tenants.limited]\ntasks_per_minute = 4_000_000_000\nmax_queued = 1_000_000_000\n\
             max_running = 1_000_000\ngpu_seconds_per_day = 1_000_000_000_000\n\
             [models.instant]\ncommand = {engine}\n\
             [models.instant.settings]\nstep_ms = 0\nbytes = 1024\n\
             [models.video]\ncommand = {engine}\n\
             [models.video.settings]\nstep_ms = 100\nbytes = 2000000\n"
        );
        fs::write(directory.path().join("rayreel.toml"), settings)?;
        // Free now; nobody else is expected to take it in the meantime.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Ok(Self { directory, binary: binary.to_owned(), address })
    }

    /// Where the engine tells when it starts.
    pub(crate) fn witness(&self) -> PathBuf {
        self.directory.path().join("witness")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Size of the task database with its log.
    pub(crate) fn store_bytes(&self) -> u64 {
        ["tasks.db", "tasks.db-wal"]
            .iter()
            .filter_map(|name| fs::metadata(self.data().join(name)).ok())
            .map(|meta| meta.len())
            .sum()
    }

    fn command(&self, name: &str) -> anyhow::Result<(Command, PathBuf)> {
        let log = self.directory.path().join(format!("{name}.log"));
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("RAYREEL_") {
                command.env_remove(name);
            }
        }
        command
            .arg(name)
            .env("RAYREEL_CONFIG", self.directory.path().join("rayreel.toml"))
            .env("RAYREEL_DATA", self.data())
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log)?);
        Ok((command, log))
    }

    /// Starts the process and nothing more.
    fn spawn_server(&self) -> anyhow::Result<Process> {
        let (mut command, log) = self.command("serve")?;
        command.arg("--listen").arg(self.address.to_string());
        Process::spawn(command, log)
    }

    /// Starts a server and waits until it is ready.
    pub(crate) async fn serve(&self) -> anyhow::Result<Server> {
        let mut process = self.spawn_server()?;
        let ready = Request::get("/readyz");
        let start = Instant::now();
        loop {
            let answered = match Connection::open(self.address).await {
                Ok(mut connection) => {
                    connection.call(&ready).await.is_ok_and(|answer| answer.status == 200)
                }
                Err(_) => false,
            };
            if answered {
                break;
            }
            process.check(start)?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let text = fs::read_to_string(self.data().join("server.json"))
            .context("the server has not announced itself")?;
        let told: Announcement = serde_json::from_str(&text)?;
        ensure!(told.pid == process.child.id(), "another server has announced itself");
        let Announcement { token, worker_token, .. } = told;
        Ok(Server { process, address: self.address, worker_token, token })
    }

    /// Starts a server again, whose token is known, and calls it as soon as it listens.
    pub(crate) async fn serve_again(
        &self,
        worker_token: &str,
    ) -> anyhow::Result<(Server, Connection)> {
        let mut process = self.spawn_server()?;
        let start = Instant::now();
        let connection = loop {
            match Connection::open(self.address).await {
                Ok(connection) => break connection,
                Err(_) => process.check(start)?,
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        };
        let worker_token = worker_token.to_owned();
        let server = Server { process, address: self.address, worker_token, token: String::new() };
        Ok((server, connection))
    }

    /// Starts a worker of the built-in pool.
    pub(crate) fn work(&self, server: &Server) -> anyhow::Result<Worker> {
        let (mut command, log) = self.command("worker")?;
        command.env("RAYREEL_WORKER_TOKEN", &server.worker_token);
        command.arg("--server").arg(format!("http://{}", server.address));
        command.arg("--pool").arg("local");
        Process::spawn(command, log).map(Worker)
    }

    /// Makes the kernel forget what it has cached of the data, as after a boot.
    pub(crate) fn forget_cache(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.data())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let file = File::open(entry.path())?;
                file.sync_all()?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            }
        }
        Ok(())
    }
}

fn toml_string(text: &str) -> String {
    // A JSON string without control characters is a TOML string as well.
    serde_json::Value::from(text).to_string()
}

impl Server {
    /// Makes an API key of a tenant.
    pub(crate) async fn create_key(&self, tenant: &str) -> anyhow::Result<String> {
        #[derive(Deserialize)]
        struct Made {
            key: String,
        }
        let body = serde_json::json!({"tenant": tenant}).to_string();
        let path = rayreel_domain::wire::admin::KEYS_PATH;
        let request = Request::post(path, Some(&self.token), body.as_bytes());
        let mut connection = Connection::open(self.address).await?;
        let answer = connection.call(&request).await?;
        let made: Made = serde_json::from_slice(answer.expect(201)?)?;
        Ok(made.key)
    }

    fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_time(self.pid())
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        let pid = self.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let megabytes = |text: &str, name: &str| kilobytes(text, name) as f64 * 1024.0 / 1e6;
        Ok(Memory {
            resident: megabytes(&rollup, "Rss"),
            anonymous: megabytes(&rollup, "Anonymous"),
            peak: megabytes(&status, "VmHWM"),
        })
    }

    /// Bytes that the process has caused to be written to the disk.
    pub(crate) fn written(&self) -> u64 {
        fs::read_to_string(format!("/proc/{}/io", self.pid()))
            .map_or(0, |text| kilobytes(&text, "write_bytes"))
    }

    /// As `kill -9`.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.process.child.kill()?;
        self.process.child.wait().map(|_| ())
    }

    /// Asks it to stop, and waits for that.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.process.stop().await
    }
}

impl Worker {
    /// Fails if the worker has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.0.check(Instant::now())
    }

    /// Asks it to stop, and waits for that.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.0.stop().await
    }
}

impl Process {
    fn spawn(mut command: Command, log: PathBuf) -> anyhow::Result<Self> {
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { child, log })
    }

    /// Fails if the process has ended, or has kept us waiting for too long.
    fn check(&mut self, since: Instant) -> anyhow::Result<()> {
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        if let Some(status) = self.child.try_wait()? {
            bail!("the process has ended: {status}\n{}", log());
        }
        ensure!(since.elapsed() < PATIENCE, "the process does not come up or end\n{}", log());
        Ok(())
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "the process does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
