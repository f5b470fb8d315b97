//! How many workers there are, with a provider that only keeps count.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rayreel_domain::id::ModelName;
use rayreel_domain::task::State;
use rayreel_server::clock::Clock;
use rayreel_server::duties::Lead;
use rayreel_server::fleet::{Death, Fleet, Provider};
use rayreel_server::store::{Claim, Claimed, Identity, Launch, Registration, Store};

use crate::world::World;

/// Processes that exist only here.
#[derive(Default)]
struct Fake {
    alive: Mutex<HashMap<String, Result<(), Death>>>,
    launched: Mutex<Vec<String>>,
    dies_at_once: Mutex<bool>,
}

impl Fake {
    fn launched(&self) -> Vec<String> {
        self.launched.lock().unwrap().clone()
    }

    fn kill(&self, id: &str, clean: bool) {
        let death = Death { reason: "signal: 9".to_owned(), clean };
        self.alive.lock().unwrap().insert(id.to_owned(), Err(death));
    }
}

#[async_trait]
impl Provider for Fake {
    async fn launch(&self, launch: Launch, _server: &str) -> Result<Launch, String> {
        self.launched.lock().unwrap().push(launch.id.clone());
        let state = match *self.dies_at_once.lock().unwrap() {
            true => Err(Death { reason: "exit status: 1: no GPU".to_owned(), clean: false }),
            false => Ok(()),
        };
        self.alive.lock().unwrap().insert(launch.id.clone(), state);
        Ok(Launch { pid: Some(1), ..launch })
    }

    async fn probe(&self, launch: &Launch) -> Result<(), Death> {
        let unknown = Err(Death { reason: "unknown".to_owned(), clean: false });
        self.alive.lock().unwrap().get(&launch.id).cloned().unwrap_or(unknown)
    }

    async fn stop(&self, launch: &Launch, _at_once: bool) {
        self.kill(&launch.id, true);
    }

    async fn forget(&self, launch: &Launch) {
        self.alive.lock().unwrap().remove(&launch.id);
    }
}

fn testcard() -> ModelName {
    "testcard".parse().expect("a name")
}

struct Pool {
    world: World,
    provider: Arc<Fake>,
    fleet: Fleet,
}

impl Pool {
    fn new(settings: &[(&str, &str)]) -> Self {
        let provider = Arc::new(Fake::default());
        let world = World::with_provider(settings, Arc::clone(&provider) as Arc<dyn Provider>);
        let fleet = Fleet::new(Arc::clone(&world.app), "http://127.0.0.1:1".to_owned());
        Self { world, provider, fleet }
    }

    async fn look(&mut self) {
        self.fleet.look().await.unwrap();
    }

    fn store(&self) -> &dyn Store {
        &*self.world.app.components.store
    }

    async fn register(&self, id: &str) -> Identity {
        let worker: rayreel_domain::WorkerName = id.parse().unwrap();
        let registration = Registration {
            worker: worker.clone(),
            pool: "local".parse().unwrap(),
            launch: Some(id.to_owned()),
            version: "1".to_owned(),
        };
        let incarnation = self.store().register(registration).await.unwrap();
        Identity { worker, incarnation }
    }

    async fn claim(&self, by: &Identity, seq: u64) -> Claimed {
        let target = self.world.app.targets.of(&"local".parse().unwrap());
        let claim =
            Claim { by: by.clone(), seq, holding: vec![], loaded: None, self_test: None, target };
        self.store().claim(claim).await.unwrap()
    }
}

#[tokio::test]
async fn no_worker_exists_until_the_first_task() {
    let mut pool = Pool::new(&[]);
    pool.look().await;
    assert!(pool.provider.launched().is_empty());
    pool.world.submit("first").await;
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 1);
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 1, "a worker that is starting counts");
}

#[tokio::test]
async fn an_idle_worker_is_told_to_go_after_its_timeout_and_not_before() {
    let mut pool = Pool::new(&[("RAYREEL_POOLS__LOCAL__IDLE_TIMEOUT_SECONDS", "10")]);
    let task = pool.world.submit("first").await;
    pool.look().await;
    let by = pool.register(&pool.provider.launched()[0]).await;
    let Claimed::Task(claimed) = pool.claim(&by, 1).await else { panic!("a task") };
    assert_eq!(claimed.id, task);
    pool.store().cancel(&"default".parse().unwrap(), task).await.unwrap();
    assert!(matches!(pool.claim(&by, 2).await, Claimed::Nothing { .. }));
    pool.world.clock.advance(Duration::from_secs(9));
    pool.look().await;
    assert!(matches!(pool.claim(&by, 3).await, Claimed::Nothing { .. }));
    pool.world.clock.advance(Duration::from_secs(1));
    pool.look().await;
    assert!(matches!(pool.claim(&by, 4).await, Claimed::Drain));
    assert!(pool.store().workers().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_minimum_is_started_without_a_task_and_stays() {
    let mut pool = Pool::new(&[
        ("RAYREEL_POOLS__LOCAL__MIN", "1"),
        ("RAYREEL_POOLS__LOCAL__IDLE_TIMEOUT_SECONDS", "10"),
    ]);
    pool.look().await;
    let by = pool.register(&pool.provider.launched()[0]).await;
    assert!(matches!(pool.claim(&by, 1).await, Claimed::Nothing { .. }));
    pool.world.clock.advance(Duration::from_secs(60));
    pool.look().await;
    assert!(matches!(pool.claim(&by, 2).await, Claimed::Nothing { .. }));
    assert_eq!(pool.provider.launched().len(), 1);
}

#[tokio::test]
async fn where_the_fleet_starts_none_the_workers_that_others_start_stay() {
    let mut pool = Pool::new(&[
        ("RAYREEL_POOLS__LOCAL__MAX", "0"),
        ("RAYREEL_POOLS__LOCAL__IDLE_TIMEOUT_SECONDS", "10"),
    ]);
    let by = pool.register("mine").await;
    pool.look().await;
    assert!(matches!(pool.claim(&by, 1).await, Claimed::Nothing { .. }));
    pool.world.clock.advance(Duration::from_secs(60));
    pool.look().await;
    assert!(matches!(pool.claim(&by, 2).await, Claimed::Nothing { .. }));
}

#[tokio::test]
async fn never_more_than_the_maximum() {
    let mut pool = Pool::new(&[
        ("RAYREEL_POOLS__LOCAL__MAX", "3"),
        ("RAYREEL_POOLS__LOCAL__TARGET_WAIT_SECONDS", "0.1"),
    ]);
    for number in 0..20 {
        pool.world.submit(&format!("task {number}")).await;
    }
    pool.look().await;
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 3);
}

#[tokio::test]
async fn a_dead_worker_gives_its_task_back_at_once_and_uncharged_and_is_replaced() {
    let mut pool = Pool::new(&[]);
    let task = pool.world.submit("first").await;
    pool.look().await;
    let first = pool.provider.launched()[0].clone();
    let by = pool.register(&first).await;
    let Claimed::Task(claimed) = pool.claim(&by, 1).await else { panic!("a task") };
    pool.store().beat(&by, claimed.fence().unwrap(), None).await.unwrap();
    pool.look().await;
    pool.provider.kill(&first, false);
    pool.look().await;
    let view = pool.world.get(task).await;
    assert_eq!(view.task.state, State::Queued);
    assert_eq!((view.task.failures, view.task.losses, view.task.releases), (0, 0, 1));
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 2, "the next one is started");
}

#[tokio::test]
async fn a_worker_that_hangs_is_not_counted_on_once_its_lease_is_over() {
    let mut pool = Pool::new(&[("RAYREEL_LEASE_SECONDS", "30")]);
    pool.world.submit("first").await;
    pool.look().await;
    let by = pool.register(&pool.provider.launched()[0]).await;
    let Claimed::Task(claimed) = pool.claim(&by, 1).await else { panic!("a task") };
    pool.store().beat(&by, claimed.fence().unwrap(), None).await.unwrap();
    pool.world.submit("second").await;
    pool.world.clock.advance(Duration::from_secs(29));
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 1, "the maximum is one");
    pool.world.clock.advance(Duration::from_secs(1));
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 2);
}

#[tokio::test]
async fn a_crash_loop_backs_off_and_says_why() {
    let mut pool = Pool::new(&[]);
    *pool.provider.dies_at_once.lock().unwrap() = true;
    pool.world.submit("first").await;
    let local = "local".parse().unwrap();
    let mut waits = Vec::new();
    for tries in 1..=4 {
        pool.look().await;
        assert_eq!(pool.provider.launched().len(), tries);
        // The look after the death counts it.
        let mut waited = Duration::ZERO;
        loop {
            pool.look().await;
            if pool.provider.launched().len() > tries {
                break;
            }
            let reason = pool.world.app.targets.blocked(&local, &testcard()).expect("says why");
            assert!(reason.contains("no GPU"), "{reason}");
            pool.world.clock.advance(Duration::from_millis(500));
            waited += Duration::from_millis(500);
        }
        waits.push(waited.as_secs());
        if tries == 3 {
            break;
        }
        // That look has launched the next one already.
        pool.provider.launched.lock().unwrap().truncate(tries + 1);
    }
    assert_eq!(waits, [1, 2, 60]);
}

#[tokio::test]
async fn a_worker_that_never_asks_for_work_is_ended() {
    let mut pool = Pool::new(&[("RAYREEL_POOLS__LOCAL__START_TIMEOUT_SECONDS", "5")]);
    pool.world.submit("first").await;
    pool.look().await;
    pool.world.clock.advance(Duration::from_secs(5));
    pool.look().await;
    let reason =
        pool.world.app.targets.blocked(&"local".parse().unwrap(), &testcard()).expect("says why");
    assert!(reason.contains("within 5 s"), "{reason}");
}

#[tokio::test]
async fn launches_survive_a_restart_of_the_server() {
    let mut pool = Pool::new(&[]);
    pool.world.submit("first").await;
    pool.look().await;
    // Another fleet over the same rows, as after a restart.
    let mut again = Fleet::new(Arc::clone(&pool.world.app), "http://127.0.0.1:2".to_owned());
    again.look().await.unwrap();
    assert_eq!(pool.provider.launched().len(), 1, "found again, not started again");
}

#[tokio::test]
async fn a_drained_worker_is_replaced_when_it_has_gone_and_not_before() {
    let mut pool = Pool::new(&[]);
    pool.world.submit("first").await;
    pool.look().await;
    let first = pool.provider.launched()[0].clone();
    let by = pool.register(&first).await;
    let Claimed::Task(claimed) = pool.claim(&by, 1).await else { panic!("a task") };
    pool.world.submit("second").await;
    assert!(pool.store().drain_worker(&by.worker).await.unwrap());
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 1, "it has the only place");
    pool.store().cancel(&"default".parse().unwrap(), claimed.id).await.unwrap();
    assert!(matches!(pool.claim(&by, 2).await, Claimed::Drain));
    pool.provider.kill(&first, true);
    pool.look().await;
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 2, "there is work");
}

#[tokio::test]
async fn a_drained_pool_starts_nobody_and_its_tasks_say_why_over_a_restart() {
    let mut pool = Pool::new(&[("RAYREEL_POOLS__LOCAL__MIN", "1")]);
    let local: rayreel_domain::PoolName = "local".parse().unwrap();
    pool.store().drain_pool(&local, true).await.unwrap();
    pool.world.submit("first").await;
    pool.look().await;
    assert!(pool.provider.launched().is_empty());
    let mut again = Fleet::new(Arc::clone(&pool.world.app), "http://127.0.0.1:2".to_owned());
    again.look().await.unwrap();
    let reason = pool.world.app.targets.blocked(&local, &testcard()).expect("says why");
    assert!(reason.contains("pool `local` is drained"), "{reason}");
    pool.store().drain_pool(&local, false).await.unwrap();
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 1);
    assert_eq!(pool.world.app.targets.blocked(&local, &testcard()), None);
}

#[tokio::test]
async fn no_two_workers_of_a_pool_share_a_gpu() {
    let mut pool = Pool::new(&[
        ("RAYREEL_POOLS__LOCAL__GPUS", "[\"0\", \"1\", \"2\", \"3\"]"),
        ("RAYREEL_POOLS__LOCAL__GPUS_PER_WORKER", "2"),
        ("RAYREEL_POOLS__LOCAL__MIN", "2"),
        ("RAYREEL_POOLS__LOCAL__MAX", "2"),
    ]);
    pool.look().await;
    let gpus = async |pool: &Pool| {
        let launches = pool.store().launches().await.unwrap();
        let mut gpus: Vec<_> = launches.into_iter().map(|launch| launch.gpus).collect();
        gpus.sort();
        gpus
    };
    assert_eq!(gpus(&pool).await, [["0", "1"], ["2", "3"]]);

    // What a dead worker had is the next one's.
    let launches = pool.store().launches().await.unwrap();
    let dead = launches.iter().find(|launch| launch.gpus == ["0", "1"]).expect("it has them");
    pool.provider.kill(&dead.id, true);
    pool.look().await;
    assert_eq!(gpus(&pool).await, [["0", "1"], ["2", "3"]]);
    assert_eq!(pool.provider.launched().len(), 3);
}

#[tokio::test]
async fn what_another_machine_has_started_is_not_judged_here() {
    let mut pool = Pool::new(&[("RAYREEL_POOLS__LOCAL__START_TIMEOUT_SECONDS", "60")]);
    pool.world.submit("first").await;
    let launch = Launch {
        id: "elsewhere".into(),
        pool: "local".parse().unwrap(),
        created_at: pool.world.clock.wall(),
        pid: Some(1),
        pid_started: None,
        place: "another data directory".into(),
        claimed: false,
        gpus: Vec::new(),
    };
    // Its process is unknown here: of one's own this would mean that it is dead.
    pool.store().put_launch(launch.clone()).await.unwrap();
    pool.look().await;
    assert_eq!(pool.store().launches().await.unwrap(), std::slice::from_ref(&launch));
    assert!(pool.provider.launched().is_empty(), "a worker is on its way");
    pool.world.clock.advance(Duration::from_secs(60));
    pool.look().await;
    assert_eq!(pool.provider.launched().len(), 1, "nobody knows what has become of it");
    assert!(pool.store().launches().await.unwrap().contains(&launch));
    pool.world.clock.advance(Duration::from_secs(86_400));
    pool.look().await;
    assert!(!pool.store().launches().await.unwrap().contains(&launch), "its server is gone");
}

#[tokio::test]
async fn a_server_without_the_duty_starts_nobody_and_knows_the_target() {
    let Pool { world, provider, fleet } = Pool::new(&[]);
    let (tell, told) = tokio::sync::watch::channel(false);
    let mut fleet = fleet.led_by(Lead::new(told));
    world.submit("first").await;
    fleet.look().await.unwrap();
    assert!(provider.launched().is_empty());
    assert_eq!(world.app.targets.of(&"local".parse().unwrap()), Some(1), "its claims need it");
    tell.send(true).unwrap();
    fleet.look().await.unwrap();
    assert_eq!(provider.launched().len(), 1);
}
