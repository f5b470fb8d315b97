//! Where the store is: `redis://host:6379/0`, `rediss://…`, `redis+cluster://a:6379,b:6379`,
//! `redis+sentinel://a:26379,b:26379/mymaster`.

use redis::{ConnectionAddr, ConnectionInfo};

/// What stands before every key unless the address says otherwise (`?prefix=`).
const PREFIX: &str = "rayreel";

/// A parsed address.
#[derive(Clone)]
pub struct Address {
    pub(super) kind: Kind,
    /// In braces before every key: one hash tag, so that a cluster keeps all of them in one slot.
    pub(super) prefix: String,
    /// As it was written.
    text: String,
}

#[derive(Clone)]
pub(super) enum Kind {
    Node(ConnectionInfo),
    Cluster(Vec<ConnectionInfo>),
    Sentinel { sentinels: Vec<ConnectionAddr>, master: String, node: ConnectionInfo },
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Address {}

impl std::fmt::Display for Address {
    /// Without the user and the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, rest) = self.text.split_once("://").unwrap_or_default();
        match rest.rsplit_once('@') {
            Some((_, rest)) => write!(f, "{scheme}://***@{rest}"),
            None => f.write_str(&self.text),
        }
    }
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| {
            "write redis://host:6379, rediss:// (TLS), redis+cluster://a:6379,b:6379 or \
             redis+sentinel://a:26379,b:26379/NAME"
                .to_owned()
        })?;
        let (rest, prefix) = match rest.split_once("?prefix=") {
            Some((rest, prefix)) => (rest, prefix),
            None => (rest, PREFIX),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(allowed) {
            return Err("prefix: letters, digits and -_.: only, at most 64".to_owned());
        }
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (format!("{credentials}@"), rest),
            None => (String::new(), rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let info = |scheme: &str, host: &str, path: &str| {
            Self::info(&format!("{scheme}://{credentials}{host}/{path}"))
        };
        let kind = match scheme {
            "redis" | "rediss" => Kind::Node(info(scheme, hosts, path)?),
            "redis+cluster" | "rediss+cluster" => {
                let scheme = &scheme[..scheme.len() - "+cluster".len()];
                let nodes = hosts.split(',').map(|host| info(scheme, host, ""));
                Kind::Cluster(nodes.collect::<Result<_, _>>()?)
            }
            "redis+sentinel" => {
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err("name the set that the sentinels watch: redis+sentinel://a:26379,\
                                b:26379/NAME"
                        .to_owned());
                }
                let mut sentinels = Vec::new();
                for host in hosts.split(',') {
                    sentinels.push(Self::info(&format!("redis://{host}/"))?.addr().clone());
                }
                let node = info("redis", "localhost", db)?;
                Kind::Sentinel { sentinels, master: master.to_owned(), node }
            }
            _ => return Err(format!("`{scheme}` is no kind of Redis address")),
        };
        Ok(Self { kind, prefix: prefix.to_owned(), text: text.to_owned() })
    }
}
