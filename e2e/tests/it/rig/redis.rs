//! A redis-server on a directory of its own, which can be killed and started again.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::wait::until;

/// Writes every command to the disk before it is answered.
const ALWAYS: &[&str] = &["--appendonly", "yes", "--appendfsync", "always", "--save", ""];

/// Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Redis {
    directory: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let directory = tempfile::tempdir().expect("a directory");
        let mut redis = Self { directory, port, child: None };
        redis.serve();
        redis
    }

    /// Starts it on what it has on its disk, and waits until it answers.
    pub(crate) fn serve(&mut self) {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--dir"])
            .arg(self.directory.path())
            .args(ALWAYS)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        self.child = Some(child);
        until("redis answers", || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it was started here");
            child.wait().expect("it was started here");
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
