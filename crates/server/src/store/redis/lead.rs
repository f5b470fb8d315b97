//! Duties that one server has at a time.

use serde::{Deserialize, Serialize};

use super::RedisStore;
use super::scripts::Name;
use crate::duties::{LEASE, RESCUE};
use crate::store::Error;

#[derive(Serialize)]
struct Call<'a> {
    duty: &'a str,
    server: &'a str,
    ms: u64,
    longest: u64,
    mono: u64,
    /// Whoever takes it counts a grace on all leases of workers.
    graces: bool,
}

#[derive(Deserialize)]
struct Reply {
    leads: bool,
}

impl RedisStore {
    pub(super) async fn take_duty(&self, duty: &str, server: &str, ms: u64) -> Result<bool, Error> {
        let longest = ms.max(u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX));
        let graces = duty == RESCUE;
        let call = Call { duty, server, ms, longest, mono: self.mono(), graces };
        let reply: Reply = self.scripts.run(Name::lead, &call).await?;
        Ok(reply.leads)
    }
}
