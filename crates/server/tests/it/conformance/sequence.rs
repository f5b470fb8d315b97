//! Plays a sequence on a store and on the model, side by side.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use rayreel_domain::code::Code;
use rayreel_domain::id::{Nonce, TenantName, WorkerName};
use rayreel_domain::lease::Fence;
use rayreel_domain::task::{self, Failure, Idempotency, Priority, State, Task};
use rayreel_domain::tenant::Tenancy;
use rayreel_domain::time::Timestamp;
use rayreel_domain::wire::engine::Format;
use rayreel_domain::wire::worker::{Progress, SelfTest};
use rayreel_server::clock::{Clock, Random};
use rayreel_server::store::{
    After, Claim, Claimed, Error, Identity, Launch, ListQuery, Order, Page, Registration, Store,
    View,
};

use super::model::{Model, Told};
use super::op::{self, Attempt, Beats, By, End, Holding, Limits, Op, Reclaim, Seq};
use super::{Setup, Stores};

/// All that can be seen is compared after so many operations, and at the end.
const LOOK_EVERY: usize = 6;

type Played = Result<(), TestCaseError>;

/// Plays it; an error says where the two differ.
pub(super) async fn play<S: Stores>(stores: &S, limits: Limits, ops: Vec<Op>) -> Played {
    let own = (0..op::TENANTS.len()).map(|index| (tenant(index), limits.terms[index]));
    let setup = Setup {
        locality: limits.locality,
        max_queued: limits.max_queued,
        tenancy: Arc::new(Tenancy { own: own.collect(), ..Tenancy::default() }),
        random: Arc::new(Random::from_seed(limits.seed)),
        ..Setup::new()
    };
    let home = stores.home();
    let mut run = Run {
        store: Some(stores.open(&home, &setup).await),
        model: Model::new(setup.clone()),
        setup,
        attempts: Vec::new(),
        known: Vec::new(),
        seqs: HashMap::new(),
        old: HashMap::new(),
    };
    let epoch = run.store().epoch();
    for (number, op) in ops.into_iter().enumerate() {
        let restart = matches!(op, Op::Restart);
        if restart {
            run.store = None;
            run.store = Some(stores.open(&home, &run.setup).await);
            if stores.forgets() {
                run.model.restart();
            }
            prop_assert_eq!(run.store().epoch(), epoch, "it is the store's, not the process's");
        } else {
            run.step(op).await?;
        }
        run.glance().await?;
        if restart || (number + 1).is_multiple_of(LOOK_EVERY) {
            run.look().await?;
        }
    }
    run.look().await
}

struct Run {
    /// Gone only while it starts anew.
    store: Option<Arc<dyn Store>>,
    model: Model,
    setup: Setup,
    /// Every attempt there ever was, oldest first.
    attempts: Vec<Fence>,
    /// Every task that was ever accepted, deleted ones too.
    known: Vec<(TenantName, rayreel_domain::TaskId)>,
    /// The number of each worker's newest claim, as the worker knows it.
    seqs: HashMap<WorkerName, u64>,
    /// Each worker's registration before the newest.
    old: HashMap<WorkerName, u64>,
}

fn tenant(index: usize) -> TenantName {
    super::tenant(op::TENANTS[index])
}

fn worker(index: usize) -> WorkerName {
    super::worker(op::WORKERS[index])
}

impl Run {
    fn store(&self) -> &dyn Store {
        self.store.as_deref().expect("it runs")
    }

    async fn step(&mut self, op: Op) -> Played {
        match op {
            Op::Submit(submit) => self.submit(&submit).await?,
            Op::Register { worker: index, pool, launch } => {
                let registration = Registration {
                    worker: worker(index),
                    pool: super::pool(op::POOLS[pool]),
                    launch: launch.then(|| "launch".to_owned()),
                    version: "1.2.3".to_owned(),
                };
                let incarnation = self.store().register(registration.clone()).await;
                let incarnation = incarnation.map_err(failed)?;
                if let Some(old) = self.model.workers.get(&registration.worker) {
                    prop_assert_ne!(old.incarnation, incarnation);
                    self.old.insert(registration.worker.clone(), old.incarnation);
                }
                self.seqs.remove(&registration.worker);
                self.model.register(&registration, incarnation);
            }
            Op::Deregister { by } => {
                let by = self.identity(by);
                self.store().deregister(&by).await.map_err(failed)?;
                self.model.deregister(&by);
            }
            Op::DrainWorker { worker: index } => {
                let told = self.store().drain_worker(&worker(index)).await;
                prop_assert_eq!(told, Ok(self.model.drain_worker(&worker(index))));
            }
            Op::DrainPool { pool, drained } => {
                let pool = super::pool(op::POOLS[pool]);
                self.store().drain_pool(&pool, drained).await.map_err(failed)?;
                self.model.drain_pool(&pool, drained);
            }
            Op::Claim(claim) => {
                self.claim(claim).await?;
            }
            Op::Work { claim, ms, beat, end } => {
                let by = claim.by;
                let Some(fence) = self.claim(claim).await? else { return Ok(()) };
                self.setup.clock.advance(Duration::from_millis(ms));
                if beat {
                    self.beat(by, fence, None).await?;
                }
                if let Some(end) = end {
                    self.end(by, fence, end).await?;
                }
            }
            Op::Beat { by, attempt, step } => {
                let Some(fence) = self.fence(attempt) else { return Ok(()) };
                self.beat(by, fence, step).await?;
            }
            Op::End { by, attempt, end } => {
                let Some(fence) = self.fence(attempt) else { return Ok(()) };
                self.end(by, fence, end).await?;
            }
            Op::Reclaim { attempt, beats, end } => {
                let Some(fence) = self.fence(attempt) else { return Ok(()) };
                let seen = self.model.leases.get(&fence.task).map_or(0, |held| held.beats);
                let beats = match beats {
                    Beats::Seen => seen,
                    Beats::Outdated => seen.saturating_sub(1),
                    Beats::Whatever => u64::MAX,
                };
                let end = match end {
                    Reclaim::Lose => task::End::Lose,
                    Reclaim::Vanish => task::End::Vanish,
                    Reclaim::Stop => {
                        task::End::Fail(Failure::new(Code::MaxRunExceeded, "it ran too long"))
                    }
                };
                let told = self.store().reclaim(fence, beats, end.clone()).await;
                prop_assert_eq!(told, Ok(self.model.reclaim(fence, beats, end)));
            }
            Op::Cancel { task, foreign } => self.cancel(task, foreign, false).await?,
            Op::Delete { task, foreign } => self.cancel(task, foreign, true).await?,
            Op::Advance => self.advance().await?,
            Op::Wait { ms } => {
                self.setup.clock.advance(Duration::from_millis(ms));
                self.advance().await?;
            }
            Op::Elapse { ms } => self.setup.clock.advance(Duration::from_millis(ms)),
            Op::Jump { ms } => {
                let wall = self.setup.clock.wall().0.saturating_add_signed(ms);
                self.setup.clock.jump(Timestamp(wall));
            }
            Op::Restart => {}
            Op::Launch { id, claimed } => {
                let launch = Launch {
                    id: format!("launch-{id}"),
                    pool: super::pool(op::POOLS[0]),
                    created_at: self.setup.clock.wall(),
                    pid: claimed.then_some(7),
                    pid_started: None,
                    place: String::new(),
                    claimed,
                    gpus: Vec::new(),
                };
                self.store().put_launch(launch.clone()).await.map_err(failed)?;
                self.model.launches.insert(launch.id.clone(), launch);
            }
            Op::RemoveLaunch { id } => {
                let id = format!("launch-{id}");
                self.store().remove_launch(&id).await.map_err(failed)?;
                self.model.launches.remove(&id);
            }
            Op::Collect { limit } => {
                let garbage = self.store().garbage(limit).await.map_err(failed)?;
                let due = self.model.due_garbage();
                prop_assert_eq!(garbage.len(), due.len().min(limit as usize));
                for one in &garbage {
                    self.model.collected(&one.folder);
                }
                let ids: Vec<_> = garbage.iter().map(|one| one.id).collect();
                self.store().collected(&ids).await.map_err(failed)?;
            }
            Op::List { tenant: index, state, model, still, oldest_first, hours, limit } => {
                let from = hours.map(|hours| {
                    Timestamp(self.setup.clock.wall().0.saturating_add_signed(hours * 3_600_000))
                });
                // One bound at a time: both together would mostly select nothing.
                let before = from.filter(|_| limit.is_multiple_of(2));
                self.walk(ListQuery {
                    tenant: tenant(index),
                    state: state.map(|state| State::ALL[state]),
                    model: model.map(|model| super::model(op::MODELS[model])),
                    format: still.map(format),
                    order: if oldest_first { Order::OldestFirst } else { Order::NewestFirst },
                    after: None,
                    created_from: from.filter(|_| before.is_none()),
                    created_before: before,
                    limit,
                })
                .await?;
            }
        }
        Ok(())
    }

    fn identity(&self, by: By) -> Identity {
        let worker = worker(by.worker);
        let newest = self.model.workers.get(&worker).map_or(1, |worker| worker.incarnation);
        let incarnation = match by.stale {
            true => self.old.get(&worker).copied().unwrap_or(newest ^ 1),
            false => newest,
        };
        Identity { worker, incarnation }
    }

    /// Mostly the worker that has the attempt.
    fn holder(&self, by: By, fence: Fence) -> Identity {
        let held = self.model.leases.get(&fence.task).map(|held| held.worker.clone());
        let index = held.and_then(|name| op::WORKERS.iter().position(|w| *w == name.as_str()));
        self.identity(By { worker: index.unwrap_or(by.worker), ..by })
    }

    fn fence(&self, attempt: Attempt) -> Option<Fence> {
        let live = |index: usize| {
            let fences: Vec<_> = self.model.leases.values().map(|held| held.fence).collect();
            (!fences.is_empty()).then(|| fences[index % fences.len()])
        };
        match attempt {
            Attempt::Live(index) => live(index),
            Attempt::Any(index) => {
                self.attempts.iter().rev().nth(index % self.attempts.len().max(1)).copied()
            }
            Attempt::Forged(index, nonce) => live(index).map(|fence| match nonce {
                true => Fence { nonce: Nonce(fence.nonce.0 ^ 1), ..fence },
                false => Fence { attempt: fence.attempt + 1, ..fence },
            }),
        }
    }

    async fn submit(&mut self, submit: &op::Submit) -> Played {
        let now = self.setup.clock.wall();
        let task = |first: bool, siblings: Vec<rayreel_domain::TaskId>| {
            super::task(&self.setup, |record| {
                record.tenant = tenant(submit.tenant);
                record.pool = super::pool(op::POOLS[submit.pool]);
                record.model = super::model(op::MODELS[submit.model]);
                record.request.format = format(submit.still);
                record.priority = Priority::new(submit.priority).expect("1 to 5");
                record.estimate_ms = submit.estimate_ms;
                record.deadline = submit.deadline_ms.map(|ms| now.plus_ms(ms));
                record.siblings = siblings;
                record.idempotency = submit.key.filter(|_| first).map(|(key, request)| {
                    // How many is a part of what is asked.
                    let request = format!("request-{request}-{}-{}", submit.count, submit.still);
                    Idempotency { key: format!("key-{key}"), request }
                });
            })
        };
        let others: Vec<Task> = (1..submit.count).map(|_| task(false, Vec::new())).collect();
        let first = task(true, others.iter().map(|task| task.id).collect());
        let tasks: Vec<Task> = [first].into_iter().chain(others).collect();
        let asked = tasks[0].idempotency.clone();
        let before = match &asked {
            Some(asked) => self.store().repeated(&tasks[0].tenant, asked).await,
            None => Ok(None),
        };
        let told = match &tasks[..] {
            [task] => self.store().submit(task.clone()).await.map(|told| vec![told]),
            _ => self.store().submit_all(tasks.clone()).await,
        };
        let told: Result<Vec<_>, _> = told.map(|told| {
            told.into_iter().map(|told| (told.task, told.existed, told.position)).collect()
        });
        // A submit that was made before is known before it is made again.
        let found = before.map(|views| {
            let views = views.into_iter().flatten();
            views.map(|view| ((*view.task).clone(), true, view.position)).collect::<Vec<_>>()
        });
        match &told {
            Ok(told) if told[0].1 => prop_assert_eq!(&found, &Ok(told.clone())),
            Err(error @ (Error::IdempotencyMismatch | Error::Deleted { .. })) => {
                prop_assert_eq!(found, Err(error.clone()));
            }
            _ => prop_assert_eq!(found, Ok(Vec::new())),
        }
        if told.as_ref().is_ok_and(|told| !told[0].1) {
            self.known.extend(tasks.iter().map(|task| (task.tenant.clone(), task.id)));
        }
        prop_assert_eq!(told, self.model.submit(&tasks));
        Ok(())
    }

    async fn advance(&mut self) -> Played {
        prop_assert_eq!(self.store().advance().await, Ok(self.model.advance()));
        Ok(())
    }

    async fn beat(&mut self, by: By, fence: Fence, step: Option<u32>) -> Played {
        let by = self.identity(by);
        let progress = step.map(|step| Progress { stage: "denoise".into(), step, steps: 20 });
        let told = self.store().beat(&by, fence, progress.clone()).await;
        prop_assert_eq!(told, self.model.beat(&by, fence, progress));
        Ok(())
    }

    async fn end(&mut self, by: By, fence: Fence, end: End) -> Played {
        let (by, end) = (self.holder(by, fence), ended(end));
        let told = self.store().end(&by, fence, end.clone()).await;
        let not_before = told.as_ref().ok().map(|task| task.not_before);
        prop_assert_eq!(told, self.model.end(&by, fence, end, not_before));
        Ok(())
    }

    /// The attempt, if there is one.
    async fn claim(&mut self, claim: op::Claim) -> Result<Option<Fence>, TestCaseError> {
        let by = self.identity(claim.by);
        let newest = self.seqs.entry(by.worker.clone()).or_default();
        let seq = match claim.seq {
            Seq::Next => {
                *newest += 1;
                *newest
            }
            Seq::Repeated => *newest,
            Seq::Older => newest.saturating_sub(1),
        };
        let held = self.model.lease_of(&by.worker).map(|held| held.fence);
        let barred = self.model.workers.get(&by.worker).and_then(|w| w.quarantine.first());
        let asked = barred.map_or_else(|| super::model(op::MODELS[0]), |b| b.model.clone());
        let claim = Claim {
            by,
            seq,
            holding: match claim.holding {
                Holding::Held => held.into_iter().collect(),
                Holding::Nothing => Vec::new(),
                Holding::Attempt(attempt) => self.fence(attempt).into_iter().collect(),
            },
            loaded: claim.loaded.map(|model| super::model(op::MODELS[model])),
            self_test: claim.self_test.map(|test| SelfTest {
                model: test.model.map_or(asked, |model| super::model(op::MODELS[model])),
                failure: (!test.passed).then(|| "no".into()),
            }),
            target: claim.target,
        };
        let told = self.store().claim(claim.clone()).await;
        let fence = match &told {
            Ok(Claimed::Task(task)) => task.fence(),
            _ => None,
        };
        if let Some(fence) = fence.filter(|fence| !self.attempts.contains(fence)) {
            self.attempts.push(fence);
        }
        let expected = self.model.claim(&claim, fence.map(|fence| fence.nonce));
        prop_assert_eq!(told.map(Told::from), expected);
        Ok(fence)
    }

    async fn cancel(&mut self, index: usize, foreign: bool, delete: bool) -> Played {
        let Some(n) = self.known.len().checked_sub(1) else { return Ok(()) };
        let (mut owner, id) = self.known[n - index % self.known.len()].clone();
        if foreign {
            let own = owner.clone();
            owner = (0..).map(tenant).find(|other| *other != own).expect("there are several");
        }
        let told = match delete {
            true => self.store().delete(&owner, id).await,
            false => self.store().cancel(&owner, id).await,
        };
        let told = told.map(|told| (told.task, told.cancelled, told.deleted));
        prop_assert_eq!(told, self.model.cancel(&owner, id, delete));
        Ok(())
    }

    /// What is cheap to see.
    async fn glance(&self) -> Played {
        let mut leases = self.store().leases().await.map_err(failed)?;
        leases.sort_by_key(|lease| lease.fence.task);
        prop_assert_eq!(leases, self.model.lease_views());
        let mut workers = self.store().workers().await.map_err(failed)?;
        workers.sort_by(|a, b| a.by.worker.cmp(&b.by.worker));
        prop_assert_eq!(workers, self.model.worker_views());
        let mut backlog = self.store().backlog().await.map_err(failed)?;
        backlog.retain(|b| b.queued + b.running > 0);
        backlog.sort_by(|a, b| a.pool.cmp(&b.pool));
        prop_assert_eq!(backlog, self.model.backlog());
        prop_assert_eq!(self.store().drained_pools().await, Ok(self.model.drained.clone()));
        let uses = self.store().usage().await.map_err(failed)?;
        prop_assert_eq!(uses, self.model.tenant_uses());
        Ok(())
    }

    /// All that can be seen.
    async fn look(&self) -> Played {
        prop_assert_eq!(self.store().check().await, Ok(vec![]));
        for (owner, id) in &self.known {
            let seen = self.store().get(owner, *id).await.map_err(failed)?.map(plain);
            let entry = self.model.tasks.iter().find(|entry| entry.task.id == *id);
            let expected = entry.map(|entry| {
                (entry.task.clone(), self.model.progress(*id), self.model.position(entry))
            });
            prop_assert_eq!(seen, expected);
            let stranger = super::tenant("stranger");
            prop_assert!(self.store().get(&stranger, *id).await.map_err(failed)?.is_none());
        }
        for fence in &self.attempts {
            prop_assert_eq!(self.store().held(*fence).await, Ok(self.model.held(*fence)));
            prop_assert_eq!(self.store().leased(*fence).await, self.model.leased(*fence));
        }
        for index in 0..op::TENANTS.len() {
            self.walk(ListQuery::of(tenant(index), 4)).await?;
        }
        let launches: Vec<_> = self.model.launches.values().cloned().collect();
        prop_assert_eq!(self.store().launches().await, Ok(launches));
        let garbage = self.store().garbage(1_000).await.map_err(failed)?;
        let mut folders: Vec<_> = garbage.into_iter().map(|one| one.folder).collect();
        folders.sort();
        prop_assert_eq!(folders, self.model.due_garbage());
        Ok(())
    }

    /// Goes through a list page by page, by positions and by tasks.
    async fn walk(&self, mut query: ListQuery) -> Played {
        let expected = self.model.list(&query);
        let mut pages = expected.chunks(query.limit as usize).peekable();
        loop {
            let page = self.store().list(&query).await.map_err(failed)?;
            let expected = pages.next().unwrap_or_default().iter().map(|entry| {
                let id = entry.task.id;
                (entry.task.clone(), self.model.progress(id), self.model.position(entry))
            });
            let last = page.tasks.last().map(|view| view.task.id);
            let seen: Vec<_> = page.tasks.into_iter().map(plain).collect();
            prop_assert_eq!(seen, expected.collect::<Vec<_>>());
            prop_assert_eq!(page.next.is_some(), pages.peek().is_some(), "is there more?");
            let Some(next) = page.next else { return Ok(()) };
            if let Some(last) = last {
                let after = Some(After::Task(last));
                let same = ListQuery { after, ..query.clone() };
                let same = self.store().list(&same).await.map_err(failed)?;
                query.after = Some(After::Position(next));
                let other = self.store().list(&query).await.map_err(failed)?;
                let ids = |page: &Page| page.tasks.iter().map(|v| v.task.id).collect::<Vec<_>>();
                prop_assert_eq!(ids(&same), ids(&other));
                let foreign =
                    ListQuery { tenant: super::tenant("stranger"), after, ..query.clone() };
                prop_assert_eq!(self.store().list(&foreign).await.err(), Some(Error::NotFound));
            }
        }
    }
}

fn format(still: bool) -> Format {
    if still { Format::Png } else { Format::Mp4 }
}

fn plain(view: View) -> (Task, Option<Progress>, Option<u64>) {
    // Deliveries are played by themselves; these tasks have no webhook.
    let View { task, progress, position, delivery: None } = view else { panic!("{view:?}") };
    (std::sync::Arc::unwrap_or_clone(task), progress, position)
}

fn failed(error: Error) -> TestCaseError {
    TestCaseError::fail(format!("the store failed: {error}"))
}

fn ended(end: End) -> task::End {
    match end {
        End::Commit(kind) => task::End::Commit(super::commit(kind)),
        End::Fail { blames_engine, retryable } => {
            let code = if blames_engine { Code::EngineCrashed } else { Code::UploadFailed };
            task::End::Fail(Failure { retryable, ..Failure::new(code, "it broke") })
        }
        End::Release => task::End::Release,
    }
}
