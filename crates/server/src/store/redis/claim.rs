//! The claim and the beat: decided by their scripts, in one round trip each.

use rayreel_domain::id::ModelName;
use rayreel_domain::lease::Fence;
use rayreel_domain::task::End;
use rayreel_domain::wire::worker::{Beaten, Progress};
use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::rows::{FenceText, Seen, exact, named};
use super::scripts::Name;
use super::tasks::{By, DAY_MS};
use crate::store::{Claim, Claimed, Error, Identity};

#[derive(Debug, Serialize)]
struct ClaimCall<'a> {
    by: By<'a>,
    seq: u64,
    holding: Vec<FenceText>,
    loaded: Option<&'a str>,
    test: Option<Test<'a>>,
    target: Option<u32>,
    now: u64,
    mono: u64,
    day: u64,
    nonce: String,
    max_streak: u32,
    max_lead_ms: u64,
    silence_ms: u64,
}

#[derive(Debug, Serialize)]
struct Test<'a> {
    model: &'a str,
    failed: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClaimReply {
    stale: bool,
    ready: bool,
    drain: bool,
    task: Option<Seen>,
    vanished: Option<FenceText>,
    test: Option<DueTest>,
}

#[derive(Debug, Deserialize)]
struct DueTest {
    model: String,
    message: String,
}

impl RedisStore {
    pub(super) async fn claim_task(&self, claim: &Claim) -> Result<Claimed, Error> {
        let call = ClaimCall {
            by: By::of(&claim.by),
            seq: exact(claim.seq),
            holding: claim.holding.iter().map(|fence| FenceText::from(*fence)).collect(),
            loaded: claim.loaded.as_ref().map(ModelName::as_str),
            test: claim
                .self_test
                .as_ref()
                .map(|test| Test { model: test.model.as_str(), failed: test.failure.is_some() }),
            target: claim.target,
            now: self.now().0,
            mono: self.mono(),
            day: self.now().0 / DAY_MS,
            nonce: self.options.random.nonce().to_string(),
            max_streak: self.options.locality.max_streak,
            max_lead_ms: exact(self.options.locality.max_lead_ms),
            silence_ms: self.options.worker_silence_ms,
        };
        loop {
            let gives = |reply: &ClaimReply| reply.task.is_some() || reply.drain;
            let reply = self.scripts.promise(Name::claim, &call, gives).await?;
            if let Some(lost) = &reply.vanished {
                self.give_up(lost.fence()?).await?;
                continue;
            }
            return Ok(match reply {
                ClaimReply { stale: true, .. } => return Err(Error::StaleWorker),
                ClaimReply { drain: true, .. } => Claimed::Drain,
                ClaimReply { task: Some(seen), .. } => Claimed::Task(Box::new(seen.task()?)),
                ClaimReply { test: Some(test), .. } => {
                    Claimed::Quarantine { model: named(&test.model)?, message: test.message }
                }
                ClaimReply { ready, .. } => Claimed::Nothing { ready },
            });
        }
    }

    /// Ends an attempt of which nobody knows any more, unless it has ended meanwhile.
    pub(super) async fn give_up(&self, fence: Fence) -> Result<(), Error> {
        match self.end_attempt(None, fence, End::Vanish, None).await {
            Ok(_) | Err(Error::StaleLease { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn renew(
        &self,
        by: &Identity,
        fence: Fence,
        progress: Option<&Progress>,
    ) -> Result<Option<Beaten>, Error> {
        #[derive(Serialize)]
        struct Beat<'a> {
            by: By<'a>,
            fence: FenceText,
            progress: Option<String>,
            mono: u64,
        }
        #[derive(Deserialize)]
        struct Reply {
            #[serde(default)]
            stale: bool,
            #[serde(default)]
            gone: bool,
        }
        let progress = progress
            .map(|progress| serde_json::to_string(progress).expect("a text and two numbers"));
        let call = Beat { by: By::of(by), fence: fence.into(), progress, mono: self.mono() };
        let reply: Reply = self.scripts.run(Name::beat, &call).await?;
        match reply {
            Reply { stale: true, .. } => Err(Error::StaleWorker),
            Reply { gone: true, .. } => Ok(None),
            Reply { .. } => Ok(Some(Beaten::Continue)),
        }
    }
}
