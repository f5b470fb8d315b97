//! A thousand tasks while everything is killed, over and over, at random moments.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayreel_domain::task::{Outcome, State};
use rayreel_domain::wire::api::TaskBody;
use rustix::process::Signal;
use serde_json::json;

use crate::rig::{Api, LONG, Process, Server, found_within, sha256, until, within};

const TASKS: usize = 1_000;
const LEAST_KILLS: usize = 50;
/// Tasks that wait at any time: enough for every worker, few enough that submits go on to the end.
const AHEAD: usize = 60;
/// However fast the machine is, no more tasks than this are submitted from one kill to the next.
const PER_KILL: usize = 15;

/// A stopped worker goes on after this: longer than its lease.
const ZOMBIE: Duration = Duration::from_millis(2_500);

/// Four workers from the start; limits that nothing here reaches, so that every task must succeed.
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
min = 4
max = 4
[models.testcard.settings]
step_ms = 2
";

/// What the threads of the test know together.
#[derive(Default)]
struct Books {
    /// Ids in the order in which they were acknowledged, by the number of the task.
    acknowledged: Mutex<Vec<(usize, String)>>,
    /// Each task as it was when it was first seen to have ended.
    ended: Mutex<HashMap<String, TaskBody>>,
    ended_count: AtomicUsize,
    kills: AtomicUsize,
    /// Submits that had to be repeated.
    repeated: AtomicUsize,
    over: AtomicBool,
}

impl Books {
    fn ended(&self) -> usize {
        self.ended_count.load(Ordering::SeqCst)
    }

    /// How many tasks may be submitted by now.
    fn released(&self) -> usize {
        (AHEAD + (1 + self.kills.load(Ordering::SeqCst)) * PER_KILL).min(TASKS)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

#[derive(Debug, Default)]
struct Kills {
    server: usize,
    worker: usize,
    engine: usize,
    all: usize,
    /// Not killed, but stopped for longer than a lease lasts.
    stopped: usize,
}

impl Kills {
    fn count(&self) -> usize {
        self.server + self.worker + self.engine + self.all
    }
}

#[test]
fn a_thousand_tasks_end_exactly_once_while_server_workers_and_engines_are_killed() {
    let seed = std::env::var("CHAOS_SEED")
        .map_or_else(|_| fastrand::u64(..), |text| text.parse().expect("a number"));
    eprintln!("chaos: CHAOS_SEED={seed}");
    let random = fastrand::Rng::with_seed(seed);
    let start = Instant::now();
    let mut server = Server::start(CONFIG);
    let api = server.api();
    let books = Books::default();
    let kills = std::thread::scope(|scope| {
        scope.spawn(|| submit_all(&api, &books, fastrand::Rng::with_seed(seed ^ 1)));
        scope.spawn(|| collect_all(&api, &books));
        let _over = Over(&books.over);
        kill_all(&mut server, &books, random)
    });
    let took = start.elapsed();
    let attempts = check_tasks(&server, &books);
    check_artifacts(&mut server, &books);
    server.terminate();
    until("no process is left", || server.processes().is_empty().then_some(()));
    let left: Vec<_> = std::fs::read_dir(server.home().join("scratch")).expect("there").collect();
    assert!(left.is_empty(), "unfinished files are gone: {left:?}");
    eprintln!(
        "chaos: seed {seed}: {TASKS} tasks in {:.1} s, {attempts} attempts, {} kills {kills:?}, \
         {} submits repeated; {:.1} s with the checks",
        took.as_secs_f64(),
        kills.count(),
        books.repeated.load(Ordering::SeqCst),
        start.elapsed().as_secs_f64()
    );
}

/// Ends the other threads, when a panic ends this one too.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Submits, each until it is acknowledged, always under the same key.
fn submit_all(api: &Api, books: &Books, mut random: fastrand::Rng) {
    for number in 0..TASKS {
        let frames = if random.bool() { 1 } else { 5 };
        let body = json!({
            "prompt": format!("fox {number} 狐狸"),
            "size": "64x64",
            "frames": frames,
            "steps": random.u32(1..=3),
            "seed": number,
            "metadata": {"number": number.to_string()},
        });
        let key = format!("chaos-{number}");
        let task = within(LONG, "a submit is acknowledged", || {
            if books.is_over() {
                panic!("the test is over before everything is submitted");
            }
            match api.try_submit(&body, Some(&key)) {
                Ok(task) => Some(task),
                Err(refusal) => {
                    assert!(matches!(refusal.status, None | Some(503)), "{refusal:?}");
                    books.repeated.fetch_add(1, Ordering::SeqCst);
                    None
                }
            }
        });
        books.acknowledged.lock().expect("no panic holds it").push((number, task.id));
        until("some tasks have ended", || {
            let allowed = books.released().min(books.ended() + AHEAD);
            (books.is_over() || number + 1 < allowed || number + 1 == TASKS).then_some(())
        });
    }
}

/// Follows the tasks until all have ended, about in the order of their submits.
fn collect_all(api: &Api, books: &Books) {
    const WINDOW: usize = 16;
    let mut open = VecDeque::new();
    let mut taken = 0;
    while books.ended() < TASKS && !books.is_over() {
        {
            let acknowledged = books.acknowledged.lock().expect("no panic holds it");
            open.extend(acknowledged[taken..].iter().map(|(_, id)| id.clone()));
            taken = acknowledged.len();
        }
        for _ in 0..open.len().min(WINDOW) {
            let id: String = open.pop_front().expect("counted");
            match api.try_task(&id) {
                Ok(task) if task.status.is_terminal() => {
                    books.ended.lock().expect("no panic holds it").insert(id, task);
                    books.ended_count.fetch_add(1, Ordering::SeqCst);
                }
                Ok(_) => open.push_back(id),
                Err(refusal) => {
                    assert!(matches!(refusal.status, None | Some(503)), "{id}: {refusal:?}");
                    open.push_front(id);
                    break;
                }
            }
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Kills until all tasks have ended, each time after some more of them have.
fn kill_all(server: &mut Server, books: &Books, mut random: fastrand::Rng) -> Kills {
    let mut kills = Kills::default();
    let mut zombies: VecDeque<(Process, Instant)> = VecDeque::new();
    loop {
        books.kills.store(kills.count(), Ordering::SeqCst);
        let enough = (books.ended() + random.usize(4..=18)).min(books.released());
        until("some more tasks end", || (books.ended() >= enough).then_some(()));
        while let Some((zombie, since)) = zombies.front()
            && (books.ended() == TASKS || since.elapsed() > ZOMBIE)
        {
            zombie.go_on();
            zombies.pop_front();
        }
        if books.ended() == TASKS {
            assert!(kills.count() >= LEAST_KILLS, "only {kills:?}");
            return kills;
        }
        // At a random moment of what is going on.
        std::thread::park_timeout(Duration::from_micros(random.u64(..60_000)));
        match random.u8(..100) {
            0..30 => {
                server.kill();
                server.serve();
                kills.server += 1;
            }
            30..60 => {
                if let Some(worker) = one_of(server.workers(), &mut random) {
                    worker.kill();
                    kills.worker += 1;
                }
            }
            60..80 => {
                if let Some(engine) = one_of(server.engines(), &mut random) {
                    engine.kill();
                    kills.engine += 1;
                }
            }
            // At most half of them, so that the others go on.
            80..86 if zombies.len() < 2 => {
                if let Some(worker) = one_of(server.workers(), &mut random) {
                    worker.signal(Signal::STOP);
                    zombies.push_back((worker, Instant::now()));
                    kills.stopped += 1;
                }
            }
            _ => {
                // Together, not one after the other.
                for process in server.processes() {
                    process.signal(Signal::KILL);
                }
                server.kill();
                server.serve();
                kills.all += 1;
            }
        }
    }
}

fn one_of(mut processes: Vec<Process>, random: &mut fastrand::Rng) -> Option<Process> {
    let chosen = (!processes.is_empty()).then(|| random.usize(..processes.len()))?;
    Some(processes.swap_remove(chosen))
}

/// Every acknowledged task is there, once, as it was when it was first seen to have ended, and its
/// content is what its record says. Gives the number of attempts.
fn check_tasks(server: &Server, books: &Books) -> usize {
    let api = server.api();
    let mut acknowledged: Vec<_> = books.acknowledged.lock().expect("no panic holds it").clone();
    acknowledged.sort_by(|a, b| a.1.cmp(&b.1));
    let ended = books.ended.lock().expect("no panic holds it");
    let mut stored = api.every_task();
    stored.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(acknowledged.len(), TASKS);
    assert_eq!(stored.len(), TASKS, "none is lost, and none is there twice");
    let mut attempts = 0;
    for ((number, id), task) in acknowledged.iter().zip(&stored) {
        assert_eq!(task.id, *id);
        assert_eq!(task.request.metadata["number"], number.to_string());
        assert_eq!(task.status, State::Succeeded, "{task:#?}");
        assert_eq!(ended.get(id), Some(task), "what has ended does not change");
        let (last, before) = task.attempts.split_last().expect("one succeeded");
        assert_eq!(last.outcome, Some(Outcome::Succeeded));
        for attempt in before {
            let outcome = attempt.outcome;
            assert!(outcome.is_some() && outcome != Some(Outcome::Succeeded), "{task:#?}");
        }
        attempts += task.attempts.len();
        let result = task.result.as_ref().expect("it succeeded");
        let bytes = api.content(id);
        assert_eq!((bytes.len() as u64, sha256(&bytes)), (result.bytes, result.sha256.clone()));
    }
    attempts
}

/// Each task has the folder of one attempt, with the announced files and no others.
fn check_artifacts(server: &mut Server, books: &Books) {
    let api = server.api();
    let ended = books.ended.lock().expect("no panic holds it");
    let mut expected: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (id, task) in ended.iter() {
        let main = &task.result.as_ref().expect("it succeeded").sha256;
        let thumbnail = sha256(&api.thumbnail(id));
        expected.insert(id, vec![format!("0-{main}"), format!("1-{thumbnail}")]);
    }
    let differing = |server: &Server| {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in server.artifacts() {
            let (task, inner) = path.split_once('/').unwrap_or((&path, ""));
            let files = found.entry(task.to_owned()).or_default();
            match inner.split_once('/') {
                Some((_, file)) => files.push(file.to_owned()),
                // An attempt's folder: exactly one must be there.
                None if !inner.is_empty() => files.push("folder".to_owned()),
                None => {}
            }
        }
        for (task, files) in &expected {
            let mut all = vec!["folder".to_owned()];
            all.extend(files.clone());
            match found.get_mut(*task) {
                Some(found_files) => {
                    found_files.sort();
                    all.sort();
                    if *found_files == all {
                        found.remove(*task);
                    }
                }
                None => {
                    found.insert((*task).to_owned(), Vec::new());
                }
            }
        }
        found
    };
    // The duty looks at once after a start, and else when something new was thrown away.
    for _ in 0..10 {
        let clean =
            found_within(Duration::from_secs(2), || differing(server).is_empty().then_some(()));
        if clean.is_some() {
            return;
        }
        server.terminate();
        server.serve();
    }
    panic!("one artifact a task, and nothing else: {:#?}", differing(server));
}
