//! How the store goes to its tables: what no caller can see, and every caller pays for.

use std::collections::BTreeMap;

use rayreel_domain::code::Code;
use rayreel_domain::request::{Request, Size};
use rayreel_domain::schedule::Locality;
use rayreel_domain::task::{Commit, Failure, Idempotency, Output, Record, Rules};
use rayreel_domain::wire::engine::{Format, Role};
use rusqlite::StatementStatus;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use super::*;
use crate::clock::{Clock, ManualClock, Random};
use crate::feed::Feed;
use crate::store::{After, Order};

/// A store that tells which statements it runs, and how many steps each takes.
struct Watched {
    store: SqliteStore,
    clock: Arc<ManualClock>,
    random: Arc<Random>,
    statements: Statements,
    folder: tempfile::TempDir,
}

/// By statement, the steps that it has taken since it was prepared.
type Statements = Arc<Mutex<BTreeMap<String, i64>>>;

fn watch(db: &mut Connection, statements: &Statements) {
    let statements = Arc::clone(statements);
    let note = move |event: TraceEvent<'_>| {
        if let TraceEvent::Profile(statement, _) = event {
            let steps = i64::from(statement.get_status(StatementStatus::VmStep));
            statements.lock().expect("not poisoned").insert(statement.sql().into_owned(), steps);
        }
    };
    db.trace_v2(TraceEventCodes::SQLITE_TRACE_PROFILE, Some(note)).expect("traced");
}

impl Watched {
    fn open() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tasks.db");
        let clock = Arc::new(ManualClock::at(Timestamp(1_800_000_000_000)));
        let random = Arc::new(Random::from_seed(1));
        let options = Options {
            clock: clock.clone(),
            random: random.clone(),
            feed: Arc::new(Feed::default()),
            rules: Rules::default(),
            locality: Locality::default(),
            max_queued: 1_000_000,
            tenancy: Arc::default(),
            garbage_after_ms: 1_000,
            worker_silence_ms: 60_000,
        };
        let statements = Statements::default();
        let mut db = schema::open_writer(&path, true).expect("it opens");
        watch(&mut db, &statements);
        let mut reader = schema::open_other(&path, false).expect("it opens");
        watch(&mut reader, &statements);
        let store = SqliteStore::start(db, path, options).expect("it starts");
        store.readers.keep(reader);
        Self { store, clock, random, statements, folder }
    }

    fn task(&self, change: impl FnOnce(&mut Record)) -> Task {
        let now = self.clock.wall();
        let request = Request {
            prompt: "p".into(),
            negative_prompt: String::new(),
            size: Size { width: 64, height: 64 },
            frames: 1,
            fps: 16,
            steps: 1,
            guidance: None,
            guidance_2: None,
            loras: Vec::new(),
            seed: 1,
            format: Format::Mp4,
            image: None,
            last_image: None,
            metadata: BTreeMap::new(),
        };
        let (tenant, pool) = ("anna".parse().expect("a name"), "local".parse().expect("a name"));
        let model = "testcard".parse().expect("a name");
        let id = self.random.task_id(now);
        let mut record = Record::new(id, tenant, pool, model, request, now);
        record.estimate_ms = 500;
        change(&mut record);
        Task::new(record)
    }

    async fn submit(&self, change: impl FnOnce(&mut Record)) -> Task {
        self.store.submit(self.task(change)).await.expect("accepted").task
    }

    async fn register(&self, name: &str) -> Identity {
        let worker: rayreel_domain::WorkerName = name.parse().expect("a name");
        let pool = "local".parse().expect("a name");
        let registration =
            Registration { worker: worker.clone(), pool, launch: None, version: String::new() };
        let incarnation = self.store.register(registration).await.expect("registered");
        Identity { worker, incarnation }
    }

    async fn claim(&self, by: &Identity, seq: u64) -> Claimed {
        let claim = Claim {
            by: by.clone(),
            seq,
            holding: Vec::new(),
            loaded: Some("testcard".parse().expect("a name")),
            self_test: Some(rayreel_domain::wire::worker::SelfTest {
                model: "testcard".parse().expect("a name"),
                failure: None,
            }),
            target: Some(0),
        };
        self.store.claim(claim).await.expect("answered")
    }

    async fn claim_task(&self, by: &Identity, seq: u64) -> (Task, Fence) {
        let Claimed::Task(task) = self.claim(by, seq).await else { panic!("there is a task") };
        let fence = task.fence().expect("running");
        (*task, fence)
    }

    /// Steps of all statements so far, but for the look at the log, which the writer takes after it
    /// has answered: sooner or later than the caller looks here.
    fn steps(&self) -> i64 {
        let statements = self.statements.lock().expect("not poisoned");
        statements
            .iter()
            .filter(|(sql, _)| !sql.starts_with("PRAGMA"))
            .map(|(_, steps)| steps)
            .sum()
    }
}

fn query(tenant: &str) -> ListQuery {
    ListQuery::of(tenant.parse().expect("a name"), 10)
}

fn done() -> End {
    let output = Output {
        index: 0,
        role: Role::Video,
        media_type: "video/mp4".into(),
        bytes: 1,
        sha256: "0".repeat(64),
        width: 64,
        height: 64,
        frames: 1,
        fps: 16,
    };
    End::Commit(Commit { outputs: vec![output], metrics: BTreeMap::new(), test_pattern: true })
}

fn broken() -> End {
    let failure = Failure::new(Code::EngineCrashed, "it broke");
    End::Fail(Failure { retryable: true, ..failure })
}

/// Calls every method of the store, so that every statement is run at least once.
async fn use_everything(watched: &Watched) {
    let store = &watched.store;
    let keyed = |record: &mut Record| {
        record.idempotency = Some(Idempotency { key: "k".into(), request: "r".into() });
    };
    let anna: TenantName = "anna".parse().expect("a name");
    let first = watched.submit(keyed).await;
    watched.submit(keyed).await;
    for _ in 0..8 {
        watched.submit(|record| record.deadline = Some(Timestamp(1_800_000_090_000))).await;
    }
    let by = watched.register("w1").await;
    let other = watched.register("w2").await;
    let (_, fence) = watched.claim_task(&by, 1).await;
    store.beat(&by, fence, None).await.expect("beaten");
    store.held(fence).await.expect("answered");
    store.leased(fence).await.expect("held");
    store.end(&by, fence, done()).await.expect("committed");
    for seq in 2..5 {
        let (_, fence) = watched.claim_task(&by, seq).await;
        store.end(&by, fence, broken()).await.expect("failed");
    }
    // Quarantined now; it passes its test, and the tasks that it failed are not for it.
    watched.clock.advance(std::time::Duration::from_secs(2));
    store.advance().await.expect("advanced");
    let (_, fence) = watched.claim_task(&by, 5).await;
    store.end(&by, fence, broken()).await.expect("failed");
    watched.clock.advance(std::time::Duration::from_secs(2));
    store.advance().await.expect("advanced");
    let (task, fence) = watched.claim_task(&by, 6).await;
    store.reclaim(fence, 0, End::Lose).await.expect("reclaimed");
    store.get(&anna, task.id).await.expect("answered");
    store.cancel(&anna, task.id).await.expect("cancelled");
    store.delete(&anna, task.id).await.expect("deleted");
    store.delete(&anna, first.id).await.expect("deleted");
    let gone = store.submit(watched.task(keyed)).await;
    assert_eq!(gone.map(|_| ()), Err(Error::Deleted { task: first.id }));
    watched.clock.advance(std::time::Duration::from_secs(100_000));
    watched.submit(keyed).await;
    store.advance().await.expect("advanced");
    let late = watched.submit(|_| {}).await.id;
    store.deregister(&by).await.expect("gone");
    watched.claim(&other, 1).await;
    watched.claim(&other, 2).await;
    let from = Some(Timestamp(1));
    store.list(&query("anna")).await.expect("listed");
    let model = Some("testcard".parse().expect("a name"));
    let narrow =
        ListQuery { model, after: Some(After::Position(5)), created_from: from, ..query("anna") };
    store.list(&ListQuery { created_before: from, ..narrow.clone() }).await.expect("listed");
    let (format, order) = (Some(Format::Png), Order::OldestFirst);
    store.list(&ListQuery { format, order, ..narrow.clone() }).await.expect("listed");
    let after = Some(After::Task(late));
    store.list(&ListQuery { after, ..query("anna") }).await.expect("listed");
    let garbage = store.garbage(10).await.expect("listed");
    let ids: Vec<_> = garbage.iter().map(|one| one.id).collect();
    assert!(!ids.is_empty());
    store.collected(&ids).await.expect("collected");
    use_inputs(watched).await;
    let launch = Launch {
        id: "l".into(),
        pool: "local".parse().expect("a name"),
        created_at: Timestamp(1),
        pid: None,
        pid_started: None,
        place: String::new(),
        gpus: Vec::new(),
        claimed: false,
    };
    store.put_launch(launch).await.expect("put");
    store.launches().await.expect("listed");
    store.remove_launch("l").await.expect("removed");
    assert_eq!(store.check().await, Ok(vec![]));
}

async fn use_inputs(watched: &Watched) {
    let (store, now) = (&watched.store, watched.clock.wall());
    let anna: TenantName = "anna".parse().expect("a name");
    let sha256 = "a".repeat(64);
    let input = Input { place: None, sha256, media_type: "image/png".into(), bytes: 1 };
    store.hold_input(&anna, input.clone()).await.expect("held");
    let input = store.hold_input(&anna, input).await.expect("held");
    let file = FileRecord {
        id: FileId::from_bytes(*watched.random.task_id(now).as_bytes()),
        tenant: anna.clone(),
        filename: "a".into(),
        purpose: "vision".into(),
        input: input.clone(),
        created_at: now,
        expires_at: now.plus_ms(1_000),
    };
    store.put_file(file.clone(), 1 << 20).await.expect("put");
    store.put_file(file.clone(), 1).await.expect_err("too much");
    store.file(&anna, file.id).await.expect("answered").expect("there");
    for (ascending, after) in [(false, None), (true, Some(file.id)), (false, Some(file.id))] {
        let purpose = after.map(|_| "vision".into());
        let query = FileQuery { tenant: anna.clone(), purpose, after, ascending, limit: 1 };
        store.files(&query).await.expect("listed");
    }
    let asked = Idempotency { key: "image".into(), request: "r".into() };
    assert!(store.repeated(&anna, &asked).await.expect("answered").is_none());
    let key = Some(asked.clone());
    let task = watched.submit(|record| {
        record.request.image = Some(input);
        record.idempotency = key;
    });
    let task = task.await;
    assert!(store.repeated(&anna, &asked).await.expect("answered").is_some());
    store.cancel(&anna, task.id).await.expect("cancelled");
    store.delete(&anna, task.id).await.expect("deleted");
    let gone = store.repeated(&anna, &asked).await;
    assert_eq!(gone.map(|_| ()), Err(Error::Deleted { task: task.id }));
    assert!(store.delete_file(&anna, file.id).await.expect("deleted"));
    store.put_file(file.clone(), 1 << 20).await.expect("put");
    for _ in 0..2 {
        watched.clock.advance(std::time::Duration::from_secs(3_600));
        store.advance().await.expect("advanced");
    }
}

/// Plans that read more than they need, whatever the statement is for.
fn faults(db: &Connection, sql: &str) -> Vec<String> {
    /// A handful of rows, or one for each that runs.
    const SMALL: [&str; 9] = [
        "names",
        "accounts",
        "workers",
        "launches",
        "drained_pools",
        "meta",
        "sqlite_schema",
        "CONSTANT",
        "(subquery",
    ];
    let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("explained");
    let values = vec![rusqlite::types::Null; plan.parameter_count()];
    let lines = plan
        .query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3))
        .expect("explained")
        .collect::<Result<Vec<_>, _>>()
        .expect("explained");
    lines
        .into_iter()
        .filter(|line| {
            let scanned = line.strip_prefix("SCAN ");
            let large = scanned.is_some_and(|what| {
                !SMALL.iter().any(|small| what.starts_with(small))
                    && !what.ends_with("INDEX tasks_running")
            });
            large || line.contains("TEMP B-TREE") || line.contains("AUTOMATIC")
        })
        .map(|line| format!("{line}: {sql}"))
        .collect()
}

#[tokio::test]
async fn no_statement_reads_the_queue() {
    let watched = Watched::open();
    use_everything(&watched).await;
    let statements = watched.statements.lock().expect("not poisoned");
    assert!(statements.len() > 40, "only {} statements were seen", statements.len());
    let db = Connection::open(watched.folder.path().join("tasks.db")).expect("it opens");
    let verbs = ["SELECT", "INSERT", "UPDATE", "DELETE"];
    let found: Vec<_> = statements
        .keys()
        .filter(|sql| verbs.iter().any(|verb| sql.starts_with(verb)))
        .flat_map(|sql| faults(&db, sql))
        .collect();
    // Once, at the start, the queue is counted: from indexes alone.
    let (counts, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|fault| fault.contains("count(*)"));
    assert_eq!(others, Vec::<String>::new());
    assert!(
        counts.iter().all(|fault| {
            fault.starts_with("SCAN tasks USING COVERING INDEX tasks_ready:")
                || fault.contains("INDEXED BY tasks_backoff")
        }),
        "{counts:?}"
    );
}

#[tokio::test]
async fn a_long_queue_costs_a_claim_nothing() {
    async fn costs(queued: usize) -> [i64; 4] {
        let watched = Watched::open();
        let tenants = ["anna", "bert", "cleo"];
        let mut last = None;
        let submits = (0..queued).map(|n| {
            watched.task(|record| record.tenant = tenants[n % 3].parse().expect("a name"))
        });
        let tasks: Vec<_> = submits.collect();
        for some in tasks.chunks(500) {
            let submits = some.iter().map(|task| watched.store.submit(task.clone()));
            for submitted in futures_util::future::join_all(submits).await {
                last = Some(submitted.expect("accepted").task);
            }
        }
        let by = watched.register("w1").await;
        watched.claim_task(&by, 1).await;
        let mut before = watched.steps();
        let mut cost = || {
            let steps = watched.steps();
            steps - std::mem::replace(&mut before, steps)
        };
        let (_, fence) = watched.claim_task(&by, 2).await;
        let claim = cost();
        watched.store.end(&by, fence, broken()).await.expect("failed");
        let end = cost();
        let last = last.expect("there are some");
        watched.store.get(&last.tenant, last.id).await.expect("answered").expect("there");
        let get = cost();
        watched.store.advance().await.expect("advanced");
        [claim, end, get, cost()]
    }
    let (short, long) = (costs(1_000).await, costs(6_000).await);
    for (short, long) in short.into_iter().zip(long) {
        assert!(long <= short + short / 10, "{short} steps have become {long}");
    }
}
