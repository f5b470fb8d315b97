//! The admin API: keys, and what an operator sees and does of tenants, workers and pools.

pub(super) mod keys;
pub(super) mod pools;
pub(super) mod tenants;
pub(super) mod workers;
