//! The calls of an operator, which need a key with the scope `admin`: tenants, workers and pools.

use rayreel_domain::wire::admin::{
    POOLS_PATH, PoolBody, PoolList, TENANTS_PATH, TenantBody, TenantList, WORKERS_PATH, WorkerBody,
    WorkerList,
};
use reqwest::{Method, Url};

use crate::client::Client;
use crate::error::Error;

impl Client {
    /// All tenants, with their terms and what they use now.
    pub async fn tenants(&self) -> Result<TenantList, Error> {
        self.see(TENANTS_PATH).await
    }

    /// The tenant of this name.
    pub async fn tenant(&self, name: &str) -> Result<TenantBody, Error> {
        self.at(Method::GET, self.below(TENANTS_PATH, name)?).await
    }

    /// All workers, and what they are at.
    pub async fn workers(&self) -> Result<WorkerList, Error> {
        self.see(WORKERS_PATH).await
    }

    /// Lets the worker of this name go when it has finished its task.
    pub async fn drain_worker(&self, name: &str) -> Result<WorkerBody, Error> {
        self.at(Method::POST, self.deeper(WORKERS_PATH, name, "drain")?).await
    }

    /// All pools, with their workers and their work.
    pub async fn pools(&self) -> Result<PoolList, Error> {
        self.see(POOLS_PATH).await
    }

    /// Closes the pool of this name: nothing of it is claimed until it is resumed.
    pub async fn drain_pool(&self, name: &str) -> Result<PoolBody, Error> {
        self.at(Method::POST, self.deeper(POOLS_PATH, name, "drain")?).await
    }

    /// Opens the pool of this name again.
    pub async fn resume_pool(&self, name: &str) -> Result<PoolBody, Error> {
        self.at(Method::POST, self.deeper(POOLS_PATH, name, "resume")?).await
    }

    /// What is done to what has this name, whatever characters are in it.
    fn deeper(&self, path: &str, name: &str, what: &str) -> Result<Url, Error> {
        let mut url = self.below(path, name)?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(what);
        }
        Ok(url)
    }
}
