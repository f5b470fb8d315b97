//! Many servers over one Redis, while one of them, a worker or Redis itself is killed, over and over.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayreel_domain::task::{Outcome, State};
use rayreel_domain::wire::api::{TASKS_PATH, TaskBody};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::{Api, Command, LONG, Redis, Server, sha256, until, within};

const SERVERS: usize = 3;
const WORKERS: usize = 8;
/// Event streams that are followed from start to end, over whatever servers there are.
const FOLLOWED: usize = 24;
/// Tasks that wait at any time.
const AHEAD: usize = 60;

const CONFIG: &str = "
lease_seconds = 2
garbage_after_seconds = 1
[retry]
max_failures = 1000
max_losses = 1000
max_releases = 1000
backoff_seconds = 0.05
max_backoff_seconds = 0.05
[pools.local]
max = 0
[models.testcard.settings]
step_ms = 2
";

/// Servers that share a Redis and the directory of files, and workers, each of which calls one of them.
struct Fleet {
    redis: Redis,
    servers: Vec<Server>,
    workers: Vec<Option<Command>>,
    /// Workers that were ever started: each has a name of its own.
    started: usize,
    _files: TempDir,
}

impl Fleet {
    fn start() -> Self {
        let redis = Redis::start();
        let files = tempfile::tempdir().expect("a directory");
        let servers = (0..SERVERS).map(|_| {
            let config = format!("store = \"{}\"\n{CONFIG}", redis.url());
            let mut server = Server::prepare(&config);
            std::fs::create_dir_all(server.home()).expect("made");
            symlink(files.path(), server.home().join("artifacts")).expect("linked");
            server.serve();
            server
        });
        let servers = servers.collect();
        let workers = (0..WORKERS).map(|_| None).collect();
        let mut fleet = Self { redis, servers, workers, started: 0, _files: files };
        (0..WORKERS).for_each(|number| fleet.hire(number));
        fleet
    }

    /// Starts a worker in the place of the one that was there.
    fn hire(&mut self, number: usize) {
        let server = &self.servers[number % SERVERS];
        let announced = server.announced();
        let name = format!("worker-{}", self.started);
        self.started += 1;
        let words = ["worker", "--server", &announced.url, "--name", &name];
        let token = ("RAYREEL_WORKER_TOKEN", announced.worker_token.as_str());
        self.workers[number] = Some(Command::start_with(server, &words, token));
    }

    fn apis(&self) -> Vec<Api> {
        self.servers.iter().map(Server::api).collect()
    }
}

#[derive(Default)]
struct Books {
    tasks: usize,
    acknowledged: Mutex<Vec<(usize, String)>>,
    ended: Mutex<HashMap<String, TaskBody>>,
    ended_count: AtomicUsize,
    followed: AtomicUsize,
    over: AtomicBool,
}

impl Books {
    fn ended(&self) -> usize {
        self.ended_count.load(Ordering::SeqCst)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Default)]
struct Kills {
    server: usize,
    worker: usize,
    redis: usize,
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number")),
        Err(_) => default,
    }
}

#[test]
fn every_task_ends_exactly_once_while_servers_workers_and_redis_are_killed() {
    let seed = setting("CHAOS_SEED", fastrand::u64(..));
    let tasks = setting("CHAOS_TASKS", 400);
    eprintln!("many servers: CHAOS_SEED={seed} CHAOS_TASKS={tasks}");
    let start = Instant::now();
    let mut fleet = Fleet::start();
    let apis = fleet.apis();
    let books = Books { tasks, ..Books::default() };
    let kills = std::thread::scope(|scope| {
        scope.spawn(|| submit_all(&apis, &books, fastrand::Rng::with_seed(seed ^ 1)));
        scope.spawn(|| collect_all(&apis, &books, fastrand::Rng::with_seed(seed ^ 2)));
        for number in 0..FOLLOWED {
            let random = fastrand::Rng::with_seed(seed ^ 3 ^ number as u64);
            let (apis, books) = (&apis, &books);
            scope.spawn(move || follow(apis, books, number, random));
        }
        let _over = Over(&books.over);
        let kills = kill_all(&mut fleet, &books, fastrand::Rng::with_seed(seed));
        until("every stream has come to its end", || {
            (books.followed.load(Ordering::SeqCst) == FOLLOWED).then_some(())
        });
        kills
    });
    let took = start.elapsed();
    let attempts = check_tasks(&apis, &books);
    let check = fleet.servers[0].run(&["doctor"]).ok();
    eprintln!(
        "many servers: seed {seed}: {tasks} tasks in {:.1} s, {attempts} attempts, {kills:?}, {} \
         streams followed; {}",
        took.as_secs_f64(),
        FOLLOWED,
        check.text().trim(),
    );
}

/// Ends the other threads, when a panic ends this one too.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Submits at any server, each until it is acknowledged, always under the same key.
fn submit_all(apis: &[Api], books: &Books, mut random: fastrand::Rng) {
    for number in 0..books.tasks {
        let body = json!({
            "prompt": format!("fox {number} 狐狸"),
            "size": "64x64",
            "frames": if random.bool() { 1 } else { 5 },
            "steps": random.u32(1..=3),
            "seed": number,
            "metadata": {"number": number.to_string()},
        });
        let key = format!("chaos-{number}");
        let task = within(LONG, "a submit is acknowledged", || {
            assert!(!books.is_over(), "the test is over before everything is submitted");
            match apis[random.usize(..SERVERS)].try_submit(&body, Some(&key)) {
                Ok(task) => Some(task),
                Err(refusal) => {
                    assert!(matches!(refusal.status, None | Some(503)), "{refusal:?}");
                    None
                }
            }
        });
        books.acknowledged.lock().expect("no panic holds it").push((number, task.id));
        until("some tasks have ended", || {
            (books.is_over() || number < books.ended() + AHEAD).then_some(())
        });
    }
}

/// Asks any server after the tasks until all have ended.
fn collect_all(apis: &[Api], books: &Books, mut random: fastrand::Rng) {
    while books.ended() < books.tasks && !books.is_over() {
        let open: Vec<String> = {
            let acknowledged = books.acknowledged.lock().expect("no panic holds it");
            let ended = books.ended.lock().expect("no panic holds it");
            let open = acknowledged.iter().filter(|(_, id)| !ended.contains_key(id));
            open.take(16).map(|(_, id)| id.clone()).collect()
        };
        for id in open {
            match apis[random.usize(..SERVERS)].try_task(&id) {
                Ok(task) if task.status.is_terminal() => {
                    books.ended.lock().expect("no panic holds it").insert(id, task);
                    books.ended_count.fetch_add(1, Ordering::SeqCst);
                }
                Ok(_) => {}
                Err(refusal) => {
                    assert!(matches!(refusal.status, None | Some(503)), "{id}: {refusal:?}");
                }
            }
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Follows one task's events to the end, at another server after each interruption: no change of its
/// state is missed, and none comes twice.
fn follow(apis: &[Api], books: &Books, number: usize, mut random: fastrand::Rng) {
    // Spread over the run.
    let wanted = number * books.tasks / FOLLOWED;
    // A long run submits the last of them after minutes.
    let id = within(LONG * 60, "the task is submitted", || {
        assert!(!books.is_over(), "the test is over");
        let acknowledged = books.acknowledged.lock().expect("no panic holds it");
        acknowledged.get(wanted).map(|(_, id)| id.clone())
    });
    let mut told = Told::default();
    while told.states.last().is_none_or(|change| change.state != "SUCCEEDED") {
        assert!(!books.is_over() || books.ended() == books.tasks, "the test is over");
        let address = apis[random.usize(..SERVERS)].base.trim_start_matches("http://").to_owned();
        // A server that was killed is back soon.
        let _ = listen(&address, &id, &mut told);
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let mut before = 0;
    for change in &told.states {
        // Redis was started anew: a snapshot tells where the task is now.
        let goes_on = match change.snapshot {
            true => change.number >= before,
            false => change.number == before + 1,
        };
        assert!(goes_on, "{id}: every change, once, in order: {:?}", told.states);
        before = change.number;
    }
    books.followed.fetch_add(1, Ordering::SeqCst);
}

/// What one who follows a task has been told.
#[derive(Default)]
struct Told {
    /// Position of the newest change.
    last: Option<String>,
    states: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    number: u64,
    state: String,
    snapshot: bool,
}

/// Reads one event stream until it breaks off.
fn listen(address: &str, id: &str, told: &mut Told) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(LONG))?;
    let resume =
        told.last.as_ref().map_or_else(String::new, |id| format!("last-event-id: {id}\r\n"));
    write!(
        socket,
        "GET {TASKS_PATH}/{id}/events HTTP/1.1\r\nhost: {address}\r\naccept: \
         text/event-stream\r\n{resume}connection: close\r\n\r\n"
    )?;
    let (mut position, mut event) = (None, String::new());
    for line in BufReader::new(socket).lines() {
        let line = line?;
        if let Some(id) = line.strip_prefix("id: ") {
            position = Some(id.to_owned());
        } else if let Some(name) = line.strip_prefix("event: ") {
            name.clone_into(&mut event);
        } else if let Some(data) = line.strip_prefix("data: ")
            && matches!(&*event, "state" | "snapshot")
        {
            let Ok(data) = serde_json::from_str::<Value>(data) else { return Ok(()) };
            let Some(at) = position.take() else { continue };
            let number = at.rsplit('-').next().and_then(|text| text.parse().ok());
            told.states.push(Change {
                number: number.expect("a position ends with a number"),
                state: data["status"].as_str().expect("a state").to_owned(),
                snapshot: event == "snapshot",
            });
            told.last = Some(at);
        }
    }
    Ok(())
}

/// Kills until all tasks have ended, each time after some more of them have.
fn kill_all(fleet: &mut Fleet, books: &Books, mut random: fastrand::Rng) -> Kills {
    let mut kills = Kills::default();
    loop {
        let enough = (books.ended() + random.usize(4..=18)).min(books.tasks);
        within(LONG * 2, "some more tasks end", || (books.ended() >= enough).then_some(()));
        if books.ended() == books.tasks {
            assert!(kills.server > 0 && kills.worker > 0 && kills.redis > 0, "{kills:?}");
            return kills;
        }
        // At a random moment of what is going on.
        std::thread::park_timeout(Duration::from_micros(random.u64(..60_000)));
        match random.u8(..100) {
            0..40 => {
                let server = &mut fleet.servers[random.usize(..SERVERS)];
                server.kill();
                server.serve();
                kills.server += 1;
            }
            40..80 => {
                let number = random.usize(..WORKERS);
                fleet.workers[number] = None;
                fleet.hire(number);
                kills.worker += 1;
            }
            _ => {
                fleet.redis.kill();
                std::thread::park_timeout(Duration::from_micros(random.u64(..500_000)));
                fleet.redis.serve();
                kills.redis += 1;
            }
        }
    }
}

/// Every acknowledged task is there, once, as it was when it was first seen to have ended; every
/// server says the same, and any of them has the file. Gives the number of attempts.
fn check_tasks(apis: &[Api], books: &Books) -> usize {
    let mut acknowledged: Vec<_> = books.acknowledged.lock().expect("no panic holds it").clone();
    acknowledged.sort_by(|a, b| a.1.cmp(&b.1));
    let ended = books.ended.lock().expect("no panic holds it");
    let mut stored = apis[0].every_task();
    // URLs begin with the address of the server that was asked.
    let facts = |tasks: &[TaskBody]| -> Vec<_> {
        let fact = |task: &TaskBody| (task.id.clone(), task.status, task.attempts.clone());
        tasks.iter().map(fact).collect()
    };
    for api in &apis[1..] {
        assert_eq!(facts(&api.every_task()), facts(&stored), "all servers see the same");
    }
    stored.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(acknowledged.len(), books.tasks);
    assert_eq!(stored.len(), books.tasks, "none is lost, and none is there twice");
    let mut attempts = 0;
    for ((number, id), task) in acknowledged.iter().zip(&stored) {
        assert_eq!(task.id, *id);
        assert_eq!(task.request.metadata["number"], number.to_string());
        assert_eq!(task.status, State::Succeeded, "{task:#?}");
        let seen = ended.get(id).expect("collected");
        assert_eq!((seen.status, &seen.attempts), (task.status, &task.attempts));
        let (last, before) = task.attempts.split_last().expect("one succeeded");
        assert_eq!(last.outcome, Some(Outcome::Succeeded));
        assert!(before.iter().all(|attempt| attempt.outcome != Some(Outcome::Succeeded)));
        attempts += task.attempts.len();
        let result = task.result.as_ref().expect("it succeeded");
        let bytes = apis[number % SERVERS].content(id);
        assert_eq!((bytes.len() as u64, sha256(&bytes)), (result.bytes, result.sha256.clone()));
    }
    attempts
}
