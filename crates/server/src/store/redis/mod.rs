//! The store of many servers: Redis 7 or newer, alone, under Sentinel, or as a cluster.
//!
//! ```text
//!  Store ─▶ tasks, views, …: what is asked, and what is decided by rayreel_domain
//!              └─▶ scripts: Lua, the only ones that change anything
//!                     └─▶ link: one connection, the primary found again after a failover
//!  Redis' stream of events ─▶ tail ─▶ this server's feed
//! ```
//! A hash of tasks is the truth; sorted sets are its indexes. All keys share one hash tag and are the
//! same few for every script. See `docs/design/redis.md` for the layout and for what each durability
//! setting of Redis keeps.

mod address;
mod check;
mod claim;
mod clock;
mod cluster;
mod delivery;
mod durability;
mod history;
mod inputs;
mod judge;
mod lead;
mod link;
mod records;
mod rows;
mod scripts;
mod submit;
mod tail;
mod tasks;
mod views;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use rayreel_domain::file::FileRecord;
use rayreel_domain::id::{FileId, PoolName, TaskId, TenantName, WorkerName};
use rayreel_domain::key::KeyRecord;
use rayreel_domain::lease::Fence;
use rayreel_domain::request::Input;
use rayreel_domain::task::{End, Idempotency, Refusal, Task};
use rayreel_domain::time::Timestamp;
use rayreel_domain::webhook::{Delivery, Report};
use rayreel_domain::wire::worker::{Beaten, Progress};
use serde::{Deserialize, Serialize};

use super::{
    Backlog, Cancelled, Claim, Claimed, Demand, Error, FilePage, FileQuery, Garbage, Identity,
    Launch, LeaseView, ListQuery, Options, Page, Registration, Room, Store, Submitted, Taken,
    TenantUse, View, WorkerView,
};
use crate::signing::Secret;
use history::{History, TermsOf};
use link::Link;
use rows::FenceText;
use scripts::{Name, Scripts};
use tail::Tail;

pub use address::Address;
pub use clock::SharedClock;

/// One server's view of a store in Redis.
pub struct RedisStore {
    options: Options,
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    history: Arc<History>,
    _tail: Tail,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

#[derive(Serialize, Default)]
struct WorkerCall<'a> {
    name: &'a str,
    mono: u64,
    register: bool,
    incarnation: String,
    pool: &'a str,
    launch: Option<&'a str>,
    version: &'a str,
    /// Of the incarnation that leaves.
    leave: Option<String>,
    drain: bool,
    close_pool: bool,
    open_pool: bool,
}

#[derive(Deserialize)]
struct WorkerReply {
    #[serde(default)]
    found: bool,
    held: Option<FenceText>,
}

impl RedisStore {
    /// Opens the store at this address, creating it if there is none.
    pub async fn open(address: &Address, options: Options) -> Result<Self, Error> {
        let link = Arc::new(Link::new(address)?);
        durability::inspect(&link, address).await?;
        let scripts = Arc::new(Scripts::new(Arc::clone(&link), &address.prefix));
        let random = Arc::clone(&options.random);
        let history = Arc::new(History::new(Arc::clone(&link), Arc::clone(&scripts), random));
        let of = |tenant, terms: &rayreel_domain::tenant::Terms| TermsOf {
            tenant,
            weight: terms.weight,
            running: terms.running.map(rows::exact),
        };
        let tenancy = Arc::clone(&options.tenancy);
        let own = tenancy.own.iter().map(|(tenant, terms)| of(tenant.as_str(), terms));
        history.learn(Some(own.chain([of("*", &tenancy.common)]).collect())).await?;
        let events = scripts.key("events").to_owned();
        let feed = Arc::clone(&options.feed);
        let tail = Tail::start(Arc::clone(&link), Arc::clone(&history), events, feed);
        Ok(Self { options, link, scripts, history, _tail: tail })
    }

    fn now(&self) -> Timestamp {
        self.options.clock.wall()
    }

    /// The steady clock that all servers share, in milliseconds.
    fn mono(&self) -> u64 {
        u64::try_from(self.options.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// Why a fence is not live: cancelled, or lost.
    async fn gone(&self, fence: Fence) -> Result<Beaten, Error> {
        let views = self.views(vec![fence.task.to_string()]).await?;
        Ok(match views.first().map(|view| view.task.check(fence)) {
            Some(Ok(())) => Beaten::Continue,
            Some(Err(Refusal::Stale { cancelled: true })) => Beaten::Cancelled,
            _ => Beaten::Lost,
        })
    }

    async fn worker(&self, call: WorkerCall<'_>) -> Result<WorkerReply, Error> {
        let call = WorkerCall { mono: self.mono(), ..call };
        self.scripts.run(Name::worker, &call).await
    }
}

#[async_trait]
impl Store for RedisStore {
    fn epoch(&self) -> u64 {
        self.history.epoch()
    }

    async fn submit(&self, task: Task) -> Result<Submitted, Error> {
        let mut all = self.submit_tasks(std::slice::from_ref(&task)).await?;
        all.pop().ok_or_else(|| rows::corrupt("a submit without an answer"))
    }

    async fn submit_all(&self, tasks: Vec<Task>) -> Result<Vec<Submitted>, Error> {
        self.submit_tasks(&tasks).await
    }

    async fn admits(&self, demand: Demand) -> Result<(), Error> {
        self.would_admit(&demand).await
    }

    async fn repeated(
        &self,
        tenant: &TenantName,
        asked: &Idempotency,
    ) -> Result<Option<Vec<View>>, Error> {
        self.submitted_before(tenant, asked).await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, Error> {
        self.claim_task(&claim).await
    }

    async fn beat(
        &self,
        by: &Identity,
        fence: Fence,
        progress: Option<Progress>,
    ) -> Result<Beaten, Error> {
        match self.renew(by, fence, progress.as_ref()).await? {
            Some(beaten) => Ok(beaten),
            None => self.gone(fence).await,
        }
    }

    async fn held(&self, fence: Fence) -> Result<Beaten, Error> {
        self.gone(fence).await
    }

    async fn end(&self, by: &Identity, fence: Fence, end: End) -> Result<Task, Error> {
        self.end_attempt(Some(by), fence, end, None).await
    }

    async fn reclaim(&self, fence: Fence, beats: u64, end: End) -> Result<bool, Error> {
        match self.end_attempt(None, fence, end, Some(beats)).await {
            Ok(_) => Ok(true),
            Err(Error::StaleLease { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn cancel(&self, tenant: &TenantName, id: TaskId) -> Result<Cancelled, Error> {
        self.cancel_task(tenant, id, false).await
    }

    async fn withdraw(&self, tenant: &TenantName, ids: Vec<TaskId>) -> Result<(), Error> {
        self.withdraw_tasks(tenant, &ids).await
    }

    async fn delete(&self, tenant: &TenantName, id: TaskId) -> Result<Cancelled, Error> {
        self.cancel_task(tenant, id, true).await
    }

    async fn get(&self, tenant: &TenantName, id: TaskId) -> Result<Option<View>, Error> {
        let view = self.views(vec![id.to_string()]).await?.pop();
        Ok(view.filter(|view| view.task.tenant == *tenant))
    }

    async fn leased(&self, fence: Fence) -> Result<Task, Error> {
        let view = self.views(vec![fence.task.to_string()]).await?.pop();
        let task = view.ok_or(Error::StaleLease { cancelled: false })?.task;
        match task.check(fence) {
            Ok(()) => Ok(Arc::unwrap_or_clone(task)),
            Err(Refusal::Stale { cancelled }) => Err(Error::StaleLease { cancelled }),
            Err(_) => Err(Error::StaleLease { cancelled: false }),
        }
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, Error> {
        self.page(query).await
    }

    async fn register(&self, worker: Registration) -> Result<u64, Error> {
        let incarnation = self.options.random.number() >> 12;
        self.worker(WorkerCall {
            name: worker.worker.as_str(),
            register: true,
            incarnation: incarnation.to_string(),
            pool: worker.pool.as_str(),
            launch: worker.launch.as_deref(),
            version: &worker.version,
            ..WorkerCall::default()
        })
        .await?;
        Ok(incarnation)
    }

    async fn deregister(&self, by: &Identity) -> Result<(), Error> {
        loop {
            let leave = Some(by.incarnation.to_string());
            let name = by.worker.as_str();
            let told = self.worker(WorkerCall { name, leave, ..WorkerCall::default() }).await?;
            match told.held {
                Some(held) => self.give_up(held.fence()?).await?,
                None => return Ok(()),
            }
        }
    }

    async fn workers(&self) -> Result<Vec<WorkerView>, Error> {
        self.worker_views().await
    }

    async fn drain_worker(&self, worker: &WorkerName) -> Result<bool, Error> {
        let name = worker.as_str();
        Ok(self.worker(WorkerCall { name, drain: true, ..WorkerCall::default() }).await?.found)
    }

    async fn drain_pool(&self, pool: &PoolName, drained: bool) -> Result<(), Error> {
        self.worker(WorkerCall {
            pool: pool.as_str(),
            close_pool: drained,
            open_pool: !drained,
            ..WorkerCall::default()
        })
        .await
        .map(drop)
    }

    async fn drained_pools(&self) -> Result<BTreeSet<PoolName>, Error> {
        self.closed_pools().await
    }

    async fn leases(&self) -> Result<Vec<LeaseView>, Error> {
        self.lease_views().await
    }

    async fn advance(&self) -> Result<Option<Timestamp>, Error> {
        self.advance_tasks().await
    }

    async fn backlog(&self) -> Result<Vec<Backlog>, Error> {
        self.work().await
    }

    async fn usage(&self) -> Result<Vec<TenantUse>, Error> {
        self.uses().await
    }

    async fn put_key(&self, key: KeyRecord) -> Result<(), Error> {
        self.write_key(&key).await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, Error> {
        self.all_keys().await
    }

    async fn hold_input(&self, tenant: &TenantName, input: Input) -> Result<Input, Error> {
        self.hold(tenant, input).await
    }

    async fn release_input(&self, tenant: &TenantName, input: Input) -> Result<(), Error> {
        self.let_go(tenant, &input).await
    }

    async fn admits_file(&self, tenant: &TenantName, bytes: u64, most: u64) -> Result<(), Error> {
        self.room_for(tenant, bytes, most).await
    }

    async fn put_file(&self, file: FileRecord, most: u64) -> Result<(), Error> {
        self.add_file(&file, most).await
    }

    async fn file(&self, tenant: &TenantName, id: FileId) -> Result<Option<FileRecord>, Error> {
        self.one_file(tenant, id).await
    }

    async fn files(&self, query: &FileQuery) -> Result<FilePage, Error> {
        self.file_page(query).await
    }

    async fn delete_file(&self, tenant: &TenantName, id: FileId) -> Result<bool, Error> {
        self.remove_file(tenant, id).await
    }

    async fn take_deliveries(&self, room: &Room) -> Result<Taken, Error> {
        self.take_due(room).await
    }

    async fn report_delivery(&self, id: TaskId, number: u32, report: Report) -> Result<(), Error> {
        self.note_report(id, number, report).await
    }

    async fn redeliver(&self, tenant: &TenantName, id: TaskId) -> Result<Delivery, Error> {
        self.deliver_again(tenant, id).await
    }

    async fn owner(&self, id: TaskId) -> Result<Option<TenantName>, Error> {
        let view = self.views(vec![id.to_string()]).await?.pop();
        Ok(view.map(|view| view.task.tenant.clone()))
    }

    async fn secret(&self, name: &str, fresh: Secret) -> Result<Secret, Error> {
        self.first_secret(name, &fresh).await
    }

    async fn rotate_secret(&self, name: &str, fresh: Secret, ms: u64) -> Result<Secret, Error> {
        self.next_secret(name, &fresh, ms).await
    }

    async fn put_launch(&self, launch: Launch) -> Result<(), Error> {
        self.write_launch(&launch).await
    }

    async fn remove_launch(&self, id: &str) -> Result<(), Error> {
        self.delete_launch(id).await
    }

    async fn launches(&self) -> Result<Vec<Launch>, Error> {
        self.all_launches().await
    }

    async fn garbage(&self, limit: u32) -> Result<Vec<Garbage>, Error> {
        self.due_garbage(limit).await
    }

    async fn collected(&self, ids: &[i64]) -> Result<(), Error> {
        self.forget_garbage(ids).await
    }

    async fn lead(&self, duty: &str, server: &str, ms: u64) -> Result<bool, Error> {
        self.take_duty(duty, server, ms).await
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn check(&self) -> Result<Vec<String>, Error> {
        self.faults().await
    }
}
