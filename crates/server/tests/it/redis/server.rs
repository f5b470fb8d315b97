//! A redis-server of the tests' own, on a free port of the loopback.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

/// A server with a folder of its own. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    /// One for all tests that only need some Redis; it ends with the process.
    pub(crate) fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| {
            // It dies with the thread that has started it, which therefore lives as long as the
            // process.
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || {
                tell.send(Server::start(&["--save", ""])).expect("awaited");
                loop {
                    std::thread::park();
                }
            });
            told.recv().expect("started")
        })
    }

    pub(crate) fn start(arguments: &[&str]) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]);
        command.arg(folder.path()).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        rayreel_process::die_with_parent(&mut command);
        let child = command.spawn().expect("redis-server is installed: apt install redis-server");
        let server = Server { child, port, _folder: folder };
        server.wait();
        server
    }

    fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(Instant::now() < until, "redis-server does not answer");
            std::thread::yield_now();
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
