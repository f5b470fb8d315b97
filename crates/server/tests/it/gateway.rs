//! A real S3 server in a folder of its own. `scripts/s3-server` builds it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const BUCKET: &str = "videos";
pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret";

pub struct Gateway {
    folder: tempfile::TempDir,
    address: SocketAddr,
    server: Option<Child>,
}

impl Gateway {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        // Who takes the port in between makes the start fail, and the next one is tried.
        for _ in 0..10 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            if let Some(server) = serve(folder.path(), address) {
                return Self { folder, address, server: Some(server) };
            }
        }
        panic!("the S3 server does not start");
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends the server at once; its files stay.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Starts it again at its address.
    pub fn restart(&mut self) {
        self.kill();
        self.server = Some(serve(self.folder.path(), self.address).expect("it starts again"));
    }

    /// Every file that it keeps, also of uploads that are not complete, by its path.
    pub fn files(&self) -> Vec<PathBuf> {
        let root = self.folder.path().join(BUCKET);
        let mut folders = vec![root.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            // The server may delete it meanwhile.
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(&root).unwrap().to_owned());
                }
            }
        }
        files.sort();
        files
    }

    /// What lies under a key.
    pub fn read(&self, key: impl AsRef<Path>) -> Vec<u8> {
        std::fs::read(self.folder.path().join(BUCKET).join(key)).unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = root.into_iter().find(|at| at.join("scripts/s3-server").exists()).unwrap();
    let built = Command::new(root.join("scripts/s3-server")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    String::from_utf8(built.stdout).unwrap().trim().into()
}

#[allow(clippy::disallowed_methods, reason = "it is a process: it starts by the world's clock")]
fn serve(folder: &Path, address: SocketAddr) -> Option<Child> {
    let mut server = Command::new(program())
        .args(["--port", &address.to_string(), "--health", "/health", "--quiet", "posix"])
        .arg(folder)
        .env("ROOT_ACCESS_KEY", KEY)
        .env("ROOT_SECRET_KEY", SECRET)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(20) {
        if is_healthy(address) {
            return Some(server);
        }
        if server.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::yield_now();
    }
    server.kill().unwrap();
    server.wait().unwrap();
    None
}

fn is_healthy(address: SocketAddr) -> bool {
    let Ok(mut socket) = TcpStream::connect(address) else { return false };
    let mut answer = String::new();
    let asked = socket.write_all(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n");
    asked.is_ok() && socket.read_to_string(&mut answer).is_ok() && answer.contains(" 200 ")
}
