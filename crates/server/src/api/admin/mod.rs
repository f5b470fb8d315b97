//! The admin API: keys, and what an operator sees and does of tenants, workers and pools.

pub(super) mod keys;
pub(super) mod tenants;
