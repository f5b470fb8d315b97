//! The local provider: workers are processes of this machine.
//!
//! A worker is started in a process group of its own, so that neither a Ctrl-C in the server's
//! terminal nor the server's death takes it along: it keeps its task and reconnects.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use async_trait::async_trait;
use rustix::process::Signal;

use super::process;
use super::{Death, Provider};
use crate::store::Launch;

/// Logs of dead workers that are kept.
const KEPT_LOGS: usize = 20;

/// Variables that open doors, and are none of a worker's business.
const SECRETS: [&str; 5] = [
    "RAYREEL_ADMIN_KEY",
    "RAYREEL_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];
/// The variable by which everything that a worker has started is known. A worker that is killed can
/// end only its engine; what the engine had started would stay, and keep the GPU's memory.
const MARK: &str = "RAYREEL_LAUNCH";

/// Which GPUs a process sees; AMD's runtime reads it, too.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Starts `rayreel worker` processes.
#[derive(Debug)]
pub struct Local {
    /// The program and its first arguments: usually the running binary.
    command: Vec<String>,
    /// Data directory: workers read the server's address there after a restart.
    home: PathBuf,
    /// Whose the directory is: of two machines only one can look after its workers.
    place: String,
    worker_token: String,
    children: Mutex<HashMap<String, Child>>,
}

impl Local {
    pub fn new(command: Vec<String>, home: PathBuf, place: String, worker_token: String) -> Self {
        Self { command, home, place, worker_token, children: Mutex::new(HashMap::new()) }
    }

    fn log(&self, id: &str) -> PathBuf {
        self.home.join("logs").join(format!("{id}.log"))
    }

    fn children(&self) -> std::sync::MutexGuard<'_, HashMap<String, Child>> {
        self.children.lock().expect("nothing panics while it holds this lock")
    }

    /// What starts a worker. Of the secrets of this process it gets its own token only.
    fn command(&self, launch: &Launch, server: &str) -> Option<Command> {
        let (program, first) = self.command.split_first()?;
        let mut command = Command::new(program);
        command
            .args(first)
            .args(["worker", "--server", server, "--pool", launch.pool.as_str()])
            .args(["--name", &launch.id, "--launch", &launch.id])
            .arg("--home")
            .arg(&self.home)
            .env("RAYREEL_WORKER_TOKEN", &self.worker_token)
            .env(MARK, &launch.id)
            .stdin(Stdio::null())
            .process_group(0);
        for secret in SECRETS {
            command.env_remove(secret);
        }
        if !launch.gpus.is_empty() {
            command.env(VISIBLE, launch.gpus.join(","));
        }
        Some(command)
    }

    fn start(&self, launch: &Launch, server: &str) -> std::io::Result<Child> {
        let log = self.log(&launch.id);
        if let Some(logs) = log.parent() {
            std::fs::create_dir_all(logs)?;
            prune(logs);
        }
        let out = File::create(&log)?;
        let mut command = self.command(launch, server).ok_or(std::io::ErrorKind::NotFound)?;
        command.stdout(out.try_clone()?).stderr(out).spawn()
    }

    /// Is the worker there?
    fn look(&self, launch: &Launch) -> Result<(), Death> {
        if let Some(child) = self.children().get_mut(&launch.id) {
            return match child.try_wait() {
                Ok(None) => Ok(()),
                Ok(Some(status)) => Err(Death {
                    reason: with_tail(&status.to_string(), &self.log(&launch.id)),
                    clean: status.success(),
                }),
                Err(error) => Err(Death { reason: error.to_string(), clean: false }),
            };
        }
        // Started by a server before this one.
        let alive = match launch.pid {
            Some(pid) => process::alive(pid, launch.pid_started),
            None => process::with_argument(&launch.id).is_some(),
        };
        if alive {
            return Ok(());
        }
        let reason = with_tail("it ended while no server watched", &self.log(&launch.id));
        Err(Death { reason, clean: launch.claimed })
    }
}

#[async_trait]
impl Provider for Local {
    async fn launch(&self, mut launch: Launch, server: &str) -> Result<Launch, String> {
        let child = self
            .start(&launch, server)
            .map_err(|error| format!("{} could not be started: {error}", self.command.join(" ")))?;
        launch.pid = Some(child.id());
        launch.pid_started = process::start_time(child.id());
        self.children().insert(launch.id.clone(), child);
        Ok(launch)
    }

    async fn probe(&self, launch: &Launch) -> Result<(), Death> {
        let found = self.look(launch);
        if found.is_err() {
            // Before its task is given to another.
            sweep(&launch.id).await;
        }
        found
    }

    async fn stop(&self, launch: &Launch, at_once: bool) {
        let pid = launch.pid.or_else(|| process::with_argument(&launch.id));
        if let Some(pid) = pid {
            let signal = if at_once { Signal::KILL } else { Signal::TERM };
            process::signal(pid, launch.pid_started, signal);
        }
        if at_once {
            sweep(&launch.id).await;
        }
    }

    fn place(&self) -> &str {
        &self.place
    }

    async fn forget(&self, launch: &Launch) {
        if let Some(mut child) = self.children().remove(&launch.id) {
            // It has ended: this takes its status and never waits long.
            let _ = child.try_wait();
        }
        // A worker that was killed could not tidy up, and nobody else knows its files.
        let scratch = self.home.join("scratch").join(&launch.id);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(scratch)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(worker = launch.id, %error, "scratch files of a dead worker are left");
        }
    }
}

/// Ends whatever a worker that is dead, or must be, has left.
async fn sweep(launch: &str) {
    let entry = format!("{MARK}={launch}");
    // Only a panic in it could be told here.
    let _ = tokio::task::spawn_blocking(move || process::kill_with_variable(&entry)).await;
}

/// A reason with the last lines of a log.
fn with_tail(reason: &str, log: &Path) -> String {
    const TAIL: u64 = 2_000;
    let tail = File::open(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    });
    match tail {
        Ok(tail) if !tail.is_empty() => format!("{reason}: {tail}"),
        _ => reason.to_owned(),
    }
}

/// Removes the oldest logs.
fn prune(logs: &Path) {
    let Ok(entries) = std::fs::read_dir(logs) else { return };
    let mut files: Vec<_> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    for (_, path) in files.iter().rev().skip(KEPT_LOGS) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(gpus: &[&str]) -> Launch {
        Launch {
            id: "w".into(),
            pool: "local".parse().expect("a name"),
            created_at: Default::default(),
            pid: None,
            pid_started: None,
            place: String::new(),
            claimed: false,
            gpus: gpus.iter().map(|gpu| (*gpu).to_owned()).collect(),
        }
    }

    #[test]
    fn a_worker_sees_the_gpus_that_are_its_own() {
        let local =
            Local::new(vec!["rayreel".into()], "/data".into(), "here".into(), "token".into());
        let visible = |gpus: &[&str]| {
            let command = local.command(&launch(gpus), "http://127.0.0.1:1").expect("a program");
            let mut set = command.get_envs().filter(|(name, _)| *name == VISIBLE);
            set.next().and_then(|(_, value)| value.map(|v| v.to_string_lossy().into_owned()))
        };
        assert_eq!(visible(&["2", "3"]).as_deref(), Some("2,3"));
        assert_eq!(visible(&[]), None, "what the server sees");
    }

    #[test]
    fn a_worker_gets_its_own_token_and_no_other_secret() {
        let local =
            Local::new(vec!["rayreel".into()], "/data".into(), "here".into(), "token".into());
        let launch = launch(&[]);
        let command = local.command(&launch, "http://127.0.0.1:1").expect("a program");
        let value = |name: &str| command.get_envs().find(|(found, _)| *found == name);
        for secret in ["RAYREEL_ADMIN_KEY", "RAYREEL_TOKEN"] {
            assert_eq!(value(secret), Some((secret.as_ref(), None)), "taken away");
        }
        let token = "RAYREEL_WORKER_TOKEN";
        assert_eq!(value(token), Some((token.as_ref(), Some("token".as_ref()))));
        assert!(command.get_args().all(|word| word != "token"), "others see a command line");
    }
}
