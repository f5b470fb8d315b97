//! Finding the node of a cluster that has the store. All of its keys lie in one slot, so there is one
//! such node, and every script, every wait and every look at the server goes there.

use std::sync::Mutex;
use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, RedisError, Value};

/// The slot of one store.
pub(super) struct Slot {
    /// The addresses that were given: how to log in, and whom to ask first.
    seeds: Vec<ConnectionInfo>,
    /// Nodes that were told of since.
    told: Mutex<Vec<ConnectionAddr>>,
    /// A key that lies in the slot.
    key: String,
}

impl Slot {
    pub(super) fn new(seeds: Vec<ConnectionInfo>, key: String) -> Self {
        Self { seeds, told: Mutex::default(), key }
    }

    /// The node that owns the slot, as the first node says that answers.
    pub(super) async fn owner(&self, within: Duration) -> Result<Client, RedisError> {
        let Some(first) = self.seeds.first() else { return Err(broken("no node is named")) };
        let told = self.told.lock().expect("nothing panics while it holds this lock").clone();
        let told = told.into_iter().map(|addr| first.clone().set_addr(addr));
        let mut last = broken("no node has answered");
        for node in self.seeds.iter().cloned().chain(told) {
            match self.ask(&node, within).await {
                Ok(owner) => return Client::open(node.set_addr(owner)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask(
        &self,
        node: &ConnectionInfo,
        within: Duration,
    ) -> Result<ConnectionAddr, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(within))
            .set_response_timeout(Some(within));
        let client = Client::open(node.clone())?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let slot: i64 = redis::cmd("CLUSTER")
            .arg("KEYSLOT")
            .arg(&self.key)
            .query_async(&mut connection)
            .await?;
        let ranges: Vec<Value> =
            redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
        let (mut owner, mut told) = (None, Vec::new());
        for range in &ranges {
            let Some((from, to, nodes)) = parts(range) else { continue };
            let nodes: Vec<_> = nodes.iter().filter_map(|one| address(one, node.addr())).collect();
            if (from..=to).contains(&slot) {
                owner = nodes.first().cloned();
            }
            told.extend(nodes);
        }
        *self.told.lock().expect("nothing panics while it holds this lock") = told;
        owner.ok_or_else(|| broken("no node of the cluster owns the store's slot"))
    }
}

/// First slot, last slot, and the nodes that have them, the primary first.
fn parts(range: &Value) -> Option<(i64, i64, &[Value])> {
    let Value::Array(parts) = range else { return None };
    match parts.as_slice() {
        [Value::Int(from), Value::Int(to), nodes @ ..] => Some((*from, *to, nodes)),
        _ => None,
    }
}

/// Where a node is, by the answer of another: without a name it is where that one is.
fn address(node: &Value, asked: &ConnectionAddr) -> Option<ConnectionAddr> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let port = u16::try_from(*port).ok()?;
    let name = match host {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok()?,
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    };
    let known = !name.is_empty() && name != "?";
    let place = |own: &String| if known { name.clone() } else { own.clone() };
    match asked {
        ConnectionAddr::Tcp(own, _) => Some(ConnectionAddr::Tcp(place(own), port)),
        ConnectionAddr::TcpTls { host: own, insecure, tls_params, .. } => {
            Some(ConnectionAddr::TcpTls {
                host: place(own),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            })
        }
        _ => None,
    }
}

fn broken(why: &'static str) -> RedisError {
    RedisError::from((redis::ErrorKind::Client, why))
}
