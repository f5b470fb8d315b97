//! The submit: decided by its script, in one round trip.

use rayreel_domain::id::TenantName;
use rayreel_domain::task::{Idempotency, Task};
use rayreel_domain::tenant::{Exceeded, Limit};
use rayreel_domain::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::rows::{Rival, Standing, corrupt, exact, named};
use super::scripts::Name;
use super::tasks::{body, inputs};
use crate::store::{Demand, Error, Submitted, View};

/// A new task, with what indexes need.
#[derive(Debug, Serialize)]
struct New<'a> {
    id: String,
    pool: &'a str,
    model: &'a str,
    rank: u8,
    estimate_ms: u64,
    format: &'static str,
    created: u64,
    deadline: Option<u64>,
    inputs: Vec<u64>,
    body: String,
}

impl<'a> New<'a> {
    fn of(task: &'a Task) -> Self {
        Self {
            id: task.id.to_string(),
            pool: task.pool.as_str(),
            model: task.model.as_str(),
            rank: 5 - task.priority.get(),
            estimate_ms: task.estimate_ms.min(MOST_MS),
            format: task.request.format.extension(),
            created: task.created_at.0,
            deadline: task.deadline.map(|at| at.0),
            inputs: inputs(task),
            body: body(task),
        }
    }
}

/// Longest estimate that is counted: the sum of many is still exact in Lua's numbers.
pub(super) const MOST_MS: u64 = 1 << 40;

#[derive(Debug, Serialize)]
struct Limits {
    queued: Option<u64>,
    day_ms: Option<u64>,
    per_minute: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Submit<'a> {
    now: u64,
    mono: u64,
    dry: bool,
    tenant: &'a str,
    key: Option<&'a str>,
    request: Option<&'a str>,
    count: u64,
    work_ms: u64,
    max_queued: u64,
    limits: Limits,
    tasks: Vec<New<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SubmitReply {
    known: Option<Known>,
    late: bool,
    full: Option<u64>,
    exceeded: Option<ExceededReply>,
    input_gone: bool,
    standings: Vec<Standing>,
    rivals: Vec<Rival>,
}

/// What was submitted under a key.
#[derive(Debug, Deserialize)]
pub(super) struct Known {
    pub(super) ids: Vec<String>,
    pub(super) request: String,
    pub(super) until_ms: u64,
}

#[derive(Debug, Deserialize)]
struct ExceededReply {
    limit: Limit,
    allowed: u64,
    retry_ms: Option<u64>,
}

impl RedisStore {
    pub(super) async fn submit_tasks(&self, tasks: &[Task]) -> Result<Vec<Submitted>, Error> {
        let Some(first) = tasks.first() else { return Ok(Vec::new()) };
        let call = self.submit_call(&first.tenant, first.idempotency.as_ref(), tasks);
        let accepted = |reply: &SubmitReply| reply.known.is_some() || !reply.standings.is_empty();
        let reply = self.scripts.promise(Name::submit, &call, accepted).await?;
        if let Some(known) = &reply.known {
            let views = self.known(known, first.idempotency.as_ref()).await?;
            return Ok(views.into_iter().map(found).collect());
        }
        refused(&reply, first.created_at)?;
        let tenancy = &self.options.tenancy;
        let position = |own: &Standing| own.position(&first.tenant, &reply.rivals, tenancy);
        let positions = reply.standings.iter().map(position);
        let added = |(task, position): (&Task, u64)| Submitted {
            task: task.clone(),
            existed: false,
            position: Some(position),
        };
        Ok(tasks.iter().zip(positions).map(added).collect())
    }

    fn submit_call<'a>(
        &self,
        tenant: &'a TenantName,
        asked: Option<&'a Idempotency>,
        tasks: &'a [Task],
    ) -> Submit<'a> {
        let terms = self.options.tenancy.of(tenant);
        Submit {
            now: tasks.first().map_or_else(|| self.now(), |task| task.created_at).0,
            mono: self.mono(),
            dry: false,
            tenant: tenant.as_str(),
            key: asked.map(|asked| asked.key.as_str()),
            request: asked.map(|asked| asked.request.as_str()),
            count: tasks.len() as u64,
            work_ms: tasks.iter().map(|task| task.estimate_ms).sum(),
            max_queued: exact(self.options.max_queued),
            limits: Limits {
                queued: terms.queued.map(exact),
                day_ms: terms.day_ms.map(exact),
                per_minute: terms.per_minute,
            },
            tasks: tasks.iter().map(New::of).collect(),
        }
    }

    pub(super) async fn would_admit(&self, demand: &Demand) -> Result<(), Error> {
        let Demand { tenant, idempotency, tasks, work_ms } = demand;
        let call = Submit {
            dry: true,
            count: *tasks,
            work_ms: *work_ms,
            ..self.submit_call(tenant, idempotency.as_ref(), &[])
        };
        let reply: SubmitReply = self.scripts.run(Name::submit, &call).await?;
        match (&reply.known, idempotency) {
            (Some(known), Some(asked)) if known.request != asked.request => {
                Err(Error::IdempotencyMismatch)
            }
            (Some(_), _) => Ok(()),
            (None, _) => refused(&reply, self.now()),
        }
    }

    pub(super) async fn submitted_before(
        &self,
        tenant: &TenantName,
        asked: &Idempotency,
    ) -> Result<Option<Vec<View>>, Error> {
        #[derive(Serialize)]
        struct Key<'a> {
            key: String,
            ids: [&'a str; 0],
        }
        #[derive(Deserialize)]
        struct Reply {
            known: Option<Known>,
        }
        let key = Key { key: format!("{tenant}|{}", asked.key), ids: [] };
        let reply: Reply = self.scripts.run(Name::look, &key).await?;
        match reply.known.filter(|known| known.until_ms > self.now().0) {
            Some(known) => self.known(&known, Some(asked)).await.map(Some),
            None => Ok(None),
        }
    }

    /// Those that are left of what was submitted under a key.
    pub(super) async fn known(
        &self,
        known: &Known,
        asked: Option<&Idempotency>,
    ) -> Result<Vec<View>, Error> {
        if asked.is_none_or(|asked| asked.request != known.request) {
            return Err(Error::IdempotencyMismatch);
        }
        let views = self.views(known.ids.clone()).await?;
        if views.is_empty() {
            let first = known.ids.first().ok_or_else(|| corrupt("a key without tasks"))?;
            return Err(Error::Deleted { task: named(first)? });
        }
        Ok(views)
    }
}

fn refused(reply: &SubmitReply, now: Timestamp) -> Result<(), Error> {
    match reply {
        SubmitReply { late: true, .. } => Err(Error::DeadlinePassed { now }),
        SubmitReply { full: Some(queued), .. } => Err(Error::QueueFull { queued: *queued }),
        SubmitReply { exceeded: Some(limit), .. } => Err(Error::Limit(Exceeded {
            limit: limit.limit,
            allowed: limit.allowed,
            retry_ms: limit.retry_ms,
        })),
        SubmitReply { input_gone: true, .. } => Err(Error::InputGone),
        _ => Ok(()),
    }
}

fn found(view: View) -> Submitted {
    let task = std::sync::Arc::unwrap_or_clone(view.task);
    Submitted { task, existed: true, position: view.position }
}
