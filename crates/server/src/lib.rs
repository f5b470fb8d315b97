//! The rayreel server: API, store, artifacts, fleet and duties, behind one [`run`].

#[allow(dead_code)]
pub mod config;
pub mod home;
