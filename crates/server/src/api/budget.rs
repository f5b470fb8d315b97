//! Memory for bodies: how much all that are being read may take together, and each tenant.
//!
//! A tenant may hold as much as it leaves free for others. One alone gets half of all; however many
//! take what they can get, something is left for the next. Small bodies are not counted: they are
//! bounded by the number of connections, and cost no lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use prometheus_client::metrics::gauge::Gauge;
use rayreel_domain::Code;
use rayreel_domain::id::TenantName;

use super::error::Error;
use crate::keyring::Caller;

/// Longest body that is not counted.
pub(super) const SMALL: u64 = 64 * 1024;

/// What bodies may take.
#[derive(Debug)]
pub(super) struct Budget {
    most: u64,
    taken: Mutex<Taken>,
    /// Bytes that are taken, for whoever watches.
    shown: Gauge,
}

#[derive(Debug, Default)]
struct Taken {
    all: u64,
    tenants: HashMap<TenantName, u64>,
}

impl Budget {
    pub(super) fn new(most: u64, shown: Gauge) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default(), shown })
    }

    /// The share of one body, which holds nothing yet.
    pub(super) fn share(self: &Arc<Self>, caller: Arc<Caller>) -> Share {
        Share { budget: Arc::clone(self), caller, bytes: 0 }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("nothing panics while it holds this lock")
    }
}

/// What one body has taken; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    caller: Arc<Caller>,
    bytes: u64,
}

impl Share {
    /// How long the body may become without asking for more.
    pub(super) fn room(&self) -> u64 {
        self.bytes.max(SMALL)
    }

    /// Takes what is missing to a body of so many bytes.
    pub(super) fn grow(&mut self, length: u64) -> Result<(), Error> {
        if length <= self.room() {
            return Ok(());
        }
        let more = length - self.bytes;
        let mut taken = self.budget.taken();
        let own = taken.tenants.get(&self.caller.tenant).copied().unwrap_or(0);
        let left = self.budget.most.saturating_sub(taken.all).checked_sub(more);
        if left.is_none_or(|left| own + more > left) {
            let message = "other bodies that are being read take the memory that there is for \
                           them; send it again in a moment";
            return Err(Error::new(Code::ServerBusy, message));
        }
        taken.all += more;
        taken.tenants.insert(self.caller.tenant.clone(), own + more);
        self.budget.shown.set(taken.all.cast_signed());
        self.bytes = length;
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut taken = self.budget.taken();
        taken.all -= self.bytes;
        if let Some(own) = taken.tenants.get_mut(&self.caller.tenant) {
            *own -= self.bytes;
            if *own == 0 {
                taken.tenants.remove(&self.caller.tenant);
            }
        }
        self.budget.shown.set(taken.all.cast_signed());
    }
}
