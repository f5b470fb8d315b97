//! Whose history the store's is: which process of Redis answers, and the epoch that goes with it.
//! Another process than the last one may have lost what that one had acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::link::{self, Link};
use super::rows;
use super::scripts::{Name, Scripts};
use crate::clock::Random;
use crate::store::Error;

/// The version of the layout that this build writes.
const VERSION: u32 = 1;

/// The history that this server believes to be in.
pub(super) struct History {
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    random: Arc<Random>,
    epoch: AtomicU64,
}

/// A tenant's share, as scripts need it.
#[derive(Serialize)]
pub(super) struct TermsOf<'a> {
    pub(super) tenant: &'a str,
    pub(super) weight: u32,
    pub(super) running: Option<u64>,
}

impl History {
    pub(super) fn new(link: Arc<Link>, scripts: Arc<Scripts>, random: Arc<Random>) -> Self {
        Self { link, scripts, random, epoch: AtomicU64::new(0) }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Learns the epoch, which is a new one if another process answers; with `terms`, says on which
    /// tenants are.
    pub(super) async fn learn(&self, terms: Option<Vec<TermsOf<'_>>>) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Start<'a> {
            version: u32,
            epoch: String,
            server: String,
            terms: Option<Vec<TermsOf<'a>>>,
        }
        #[derive(Deserialize)]
        struct Reply {
            newer: Option<u32>,
            epoch: String,
        }
        let start = Start {
            version: VERSION,
            epoch: (self.random.number() >> 12).to_string(),
            server: self.process().await?,
            terms,
        };
        let reply: Reply = self.scripts.run(Name::start, &start).await?;
        if let Some(found) = reply.newer {
            return Err(Error::TooNew { found, known: VERSION });
        }
        let epoch = rows::number(&reply.epoch)?;
        let before = self.epoch.swap(epoch, Ordering::Relaxed);
        if before != epoch && before != 0 {
            tracing::warn!(
                "another Redis process answers than before: what the last one had not passed on is \
                 lost; those who follow a task are told its state anew"
            );
        }
        Ok(())
    }

    /// Which process of Redis answers.
    async fn process(&self) -> Result<String, Error> {
        let info: String =
            self.link.send(redis::cmd("INFO").arg("server")).await.map_err(link::failed_to_read)?;
        let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(id.unwrap_or_default().trim().to_owned())
    }
}
