//! redis-servers of the tests' own, on free ports of the loopback.

#![expect(clippy::disallowed_methods, reason = "other processes live by the world's clock")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

/// A server with a folder of its own. Dropped, it is killed.
pub(crate) struct Server {
    child: Child,
    port: u16,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
}

impl Server {
    /// One for all tests that only need some Redis; it ends with the process.
    pub(crate) fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| for_ever(|| Server::start(&["--save", ""])))
    }

    /// One that writes every change to its disk before it answers.
    pub(crate) fn durable(arguments: &[&str]) -> Server {
        let durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
        Self::start(&[&durable, arguments].concat())
    }

    pub(crate) fn start(arguments: &[&str]) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        let child = Self::spawn(port, &folder, &arguments);
        let server = Server { child, port, arguments, folder };
        server.wait();
        server
    }

    /// A follower of this one, which has all that it has.
    pub(crate) fn replica(&self, arguments: &[&str]) -> Server {
        let port = self.port.to_string();
        let follow = ["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"];
        let replica = Server::durable(&[&follow, arguments].concat());
        until("the replica follows", || replica.says("replication", "master_link_status:up"));
        replica
    }

    /// Watches a primary under the name `main`, and two of three such agree that it is gone.
    pub(crate) fn sentinel(primary: &Server) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let settings = format!(
            "sentinel monitor main 127.0.0.1 {} 2\nsentinel down-after-milliseconds main 1000\n\
             sentinel failover-timeout main 6000\n",
            primary.port
        );
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, settings).expect("written");
        let arguments = vec!["--sentinel".to_owned()];
        let child = Self::spawn(port, &folder, &arguments);
        let server = Server { child, port, arguments, folder };
        server.wait();
        server
    }

    fn spawn(port: u16, folder: &tempfile::TempDir, arguments: &Vec<String>) -> Child {
        let mut command = Command::new("redis-server");
        let file = folder.path().join("sentinel.conf");
        if file.exists() {
            command.arg(file);
        }
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]);
        command.arg(folder.path()).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        rayreel_process::die_with_parent(&mut command);
        command.spawn().expect("redis-server is installed: apt install redis-server")
    }

    fn wait(&self) {
        until("redis-server answers", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
                && self.try_ask::<redis::Value>(&["PING"]).is_ok()
        });
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    pub(crate) fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        self.try_ask(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Is this in what it says of itself? Not while it answers nobody.
    pub(crate) fn says(&self, section: &str, text: &str) -> bool {
        self.try_ask::<String>(&["INFO", section]).is_ok_and(|told| told.contains(text))
    }

    pub(crate) fn try_ask<T: redis::FromRedisValue>(
        &self,
        command: &[&str],
    ) -> redis::RedisResult<T> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(5))?;
        connection.set_read_timeout(Some(Duration::from_secs(30)))?;
        let (verb, rest) = command.split_first().expect("a command");
        redis::cmd(verb).arg(rest).query(&mut connection)
    }

    /// Stops it without its noticing: it answers nobody, and keeps its connections.
    pub(crate) fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// As a crash does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it has ended");
    }

    /// Starts it again on what it has written.
    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(self.port, &self.folder, &self.arguments);
        self.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nodes of a cluster, each of which has a third of the slots.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    pub(crate) fn shared() -> &'static Cluster {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| for_ever(Cluster::start))
    }

    pub(crate) fn start() -> Cluster {
        let settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--save", ""];
        let nodes: Vec<Server> = (0..3).map(|_| Server::start(&settings)).collect();
        for (node, (from, to)) in nodes.iter().zip([(0, 5460), (5461, 10922), (10923, 16383)]) {
            let (from, to) = (from.to_string(), to.to_string());
            node.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", &from, &to]);
            node.ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port.to_string()]);
        }
        let cluster = Cluster { nodes };
        until("the cluster is well", || {
            cluster.nodes.iter().all(|node| {
                let info: String = node.ask(&["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
        });
        cluster
    }

    pub(crate) fn url(&self) -> String {
        let hosts = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        format!("redis+cluster://{}/", hosts.collect::<Vec<_>>().join(","))
    }

    /// The place among the nodes of the one that has a key.
    pub(crate) fn owner(&self, key: &str) -> usize {
        let has = |node: &Server| node.try_ask::<redis::Value>(&["EXISTS", key]).is_ok();
        self.nodes.iter().position(has).expect("somebody has it")
    }

    /// Moves the slot of this key as an operator does, while others use it.
    pub(crate) fn move_slot(&self, key: &str, to: usize) {
        let from = &self.nodes[self.owner(key)];
        let to = &self.nodes[to];
        let slot: u16 = from.ask(&["CLUSTER", "KEYSLOT", key]);
        let slot = slot.to_string();
        let id = |node: &Server| node.ask::<String>(&["CLUSTER", "MYID"]);
        to.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]);
        from.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]);
        loop {
            let keys: Vec<String> = from.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "5"]);
            if keys.is_empty() {
                break;
            }
            let port = to.port.to_string();
            let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "10000", "KEYS"];
            migrate.extend(keys.iter().map(String::as_str));
            from.ask::<()>(&migrate);
        }
        // The new owner first: so nobody else takes the slot for his.
        let target = id(to);
        to.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        for node in self.nodes.iter().filter(|node| node.port != to.port) {
            node.ask::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
        }
    }
}

/// Makes what dies with the thread that has started it on one that lives as long as the process.
fn for_ever<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        assert!(tell.send(make()).is_ok(), "awaited");
        loop {
            std::thread::park();
        }
    });
    told.recv().expect("started")
}

fn free_port() -> u16 {
    // A cluster's nodes also listen 10,000 above.
    loop {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = free.local_addr().expect("bound").port();
        if port < 55_000 {
            return port;
        }
    }
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
