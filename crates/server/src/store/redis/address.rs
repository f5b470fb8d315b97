//! Where the store is: `redis://host:6379/0`, `rediss://…`, `redis+cluster://a:6379,b:6379`,
//! `redis+sentinel://a:26379,b:26379/mymaster`; and after a question mark what is waited for.

use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo};

/// What stands before every key unless the address says otherwise (`?prefix=`).
const PREFIX: &str = "rayreel";

/// How long replicas have to confirm a change unless the address says otherwise (`?wait_ms=`).
const WAIT_MS: u64 = 1_000;
const LONGEST_WAIT_MS: u64 = 60_000;

/// A parsed address.
#[derive(Clone)]
pub struct Address {
    pub(super) kind: Box<Kind>,
    /// In braces before every key: one hash tag, so that a cluster keeps all of them in one slot.
    pub(super) prefix: String,
    pub(super) wait: Option<Wait>,
    /// As it was written.
    text: String,
}

#[derive(Clone)]
pub(super) enum Kind {
    Node(ConnectionInfo),
    Cluster(Vec<ConnectionInfo>),
    Sentinel { sentinels: Vec<ConnectionAddr>, master: String, node: ConnectionInfo },
}

/// Who else must have a change before it is told to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    /// So many replicas, in their memory.
    pub(super) replicas: u32,
    /// The primary itself (0 or 1) and so many replicas, on their disks.
    pub(super) disks: Option<(u32, u32)>,
    pub(super) within: Duration,
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
        let (rest, settings) = rest.split_once('?').unwrap_or((rest, ""));
        let (prefix, wait) = settings_of(settings)?;
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
        Ok(Self { kind: Box::new(kind), prefix, wait, text: text.to_owned() })
    }
}

/// Reads what stands behind the question mark.
fn settings_of(text: &str) -> Result<(String, Option<Wait>), String> {
    let mut prefix = PREFIX;
    let (mut replicas, mut disks, mut within) = (0, None, None);
    for setting in text.split('&').filter(|setting| !setting.is_empty()) {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        let number = |text: &str| {
            text.parse::<u32>().map_err(|_| format!("{name}: `{text}` is not a whole number"))
        };
        match name {
            "prefix" => prefix = value,
            "wait" => replicas = number(value)?,
            "waitaof" => {
                let (own, others) = value.split_once(',').ok_or_else(|| {
                    "waitaof: write `1,N`: the primary's own disk, and those of N replicas"
                        .to_owned()
                })?;
                let own = number(own)?;
                if own > 1 {
                    return Err(
                        "waitaof: the first number is 0 or 1: the primary has one disk".to_owned()
                    );
                }
                disks = Some((own, number(others)?)).filter(|disks| *disks != (0, 0));
            }
            "wait_ms" => {
                let ms = u64::from(number(value)?);
                if !(1..=LONGEST_WAIT_MS).contains(&ms) {
                    return Err(format!("wait_ms: between 1 and {LONGEST_WAIT_MS}"));
                }
                within = Some(ms);
            }
            _ => {
                return Err(format!(
                    "`{name}` is no setting of a Redis address; there are prefix, wait, waitaof and \
                     wait_ms"
                ));
            }
        }
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(allowed) {
        return Err("prefix: letters, digits and -_.: only, at most 64".to_owned());
    }
    let waits = replicas > 0 || disks.is_some();
    if within.is_some() && !waits {
        return Err("wait_ms: there is nothing to wait for without wait or waitaof".to_owned());
    }
    let within = Duration::from_millis(within.unwrap_or(WAIT_MS));
    Ok((prefix.to_owned(), waits.then_some(Wait { replicas, disks, within })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(settings: &str) -> Result<Option<Wait>, String> {
        format!("redis://localhost:6379/0{settings}").parse::<Address>().map(|read| read.wait)
    }

    #[test]
    fn an_address_says_what_is_waited_for() {
        assert_eq!(wait(""), Ok(None));
        assert_eq!(wait("?wait=0"), Ok(None));
        let within = Duration::from_secs(1);
        let one = Wait { replicas: 1, disks: None, within };
        assert_eq!(wait("?prefix=a&wait=1"), Ok(Some(one)));
        let disks = Wait { replicas: 0, disks: Some((1, 2)), within: Duration::from_millis(50) };
        assert_eq!(wait("?waitaof=1,2&wait_ms=50"), Ok(Some(disks)));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (settings, why) in [
            ("?wait=two", "`two` is not a whole number"),
            ("?waitaof=1", "write `1,N`"),
            ("?waitaof=2,1", "the first number is 0 or 1"),
            ("?wait=1&wait_ms=0", "between 1 and 60000"),
            ("?wait_ms=10", "nothing to wait for"),
            ("?waits=1", "`waits` is no setting"),
            ("?prefix={a}", "letters, digits"),
        ] {
            let error = wait(settings).expect_err(settings);
            assert!(error.contains(why), "{settings}: {error}");
        }
    }
}
