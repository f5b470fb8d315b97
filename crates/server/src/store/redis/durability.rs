//! What the Redis of a store promises, read when a server starts, and said in plain words.

use std::collections::BTreeMap;

use super::address::{Address, Wait};
use super::link::{self, Link};
use crate::store::Error;

/// Functions that scripts use came with it.
const OLDEST: (u32, u32) = (7, 0);
/// `WAITAOF` came with it.
const OLDEST_WAITAOF: (u32, u32) = (7, 2);

/// What could be read of it.
#[derive(Debug, Clone, Default)]
struct Settings {
    version: String,
    /// False: it may not be read, as on many hosted ones.
    config_read: bool,
    config: BTreeMap<String, String>,
    replicas: u32,
    role: String,
    /// `ok` or `fail`, in a cluster.
    cluster: Option<String>,
}

/// What a server says of it: one line, and what is dangerous.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings {
    line: String,
    warnings: Vec<String>,
}

/// Refuses a Redis that can't be used, and tells the log what may be lost under the one that is.
pub(super) async fn inspect(link: &Link, address: &Address) -> Result<(), Error> {
    let settings = read(link).await?;
    usable(&settings, address.wait).map_err(Error::Unavailable)?;
    let Findings { line, warnings } = judge(&settings, address.wait);
    tracing::info!("{line}");
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(())
}

async fn read(link: &Link) -> Result<Settings, Error> {
    let info: String = link.send(&redis::cmd("INFO")).await.map_err(link::failed_to_read)?;
    let info: BTreeMap<&str, &str> =
        info.lines().filter_map(|line| line.trim().split_once(':')).collect();
    let text = |name: &str| info.get(name).copied().unwrap_or_default();
    let mut settings = Settings {
        version: text("redis_version").to_owned(),
        replicas: text("connected_slaves").parse().unwrap_or(0),
        role: text("role").to_owned(),
        ..Settings::default()
    };
    // Some may not be asked of one command more than of another: whatever fails is not known.
    if text("cluster_enabled") == "1" {
        let told: Option<String> = link.send(redis::cmd("CLUSTER").arg("INFO")).await.ok();
        let state = told.as_deref().and_then(|told| {
            told.lines().find_map(|line| line.trim().strip_prefix("cluster_state:"))
        });
        settings.cluster = Some(state.unwrap_or("unknown").to_owned());
    }
    let names = [
        "appendonly",
        "appendfsync",
        "save",
        "maxmemory",
        "maxmemory-policy",
        "min-replicas-to-write",
    ];
    let read: Result<BTreeMap<String, String>, _> =
        link.send(redis::cmd("CONFIG").arg("GET").arg(&names)).await;
    if let Ok(config) = read {
        settings.config_read = !config.is_empty();
        settings.config = config;
    }
    Ok(settings)
}

/// Can a store be kept in it, and waited for as the address says?
fn usable(settings: &Settings, wait: Option<Wait>) -> Result<(), String> {
    let mut parts = settings.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let found = &settings.version;
    if version < OLDEST {
        return Err(format!("this Redis is version {found}; rayreel needs 7.0 or newer"));
    }
    let Some((own, _)) = wait.and_then(|wait| wait.disks) else { return Ok(()) };
    if version < OLDEST_WAITAOF {
        return Err(format!(
            "the address says waitaof, which Redis has since version 7.2, and this one is {found}: \
             use a newer one, or wait=N for replicas with appendfsync always"
        ));
    }
    if own > 0 && settings.config.get("appendonly").is_some_and(|on| on == "no") {
        return Err("the address says waitaof=1,…, and this Redis keeps no append-only file: set \
                    `appendonly yes`"
            .to_owned());
    }
    Ok(())
}

fn judge(settings: &Settings, wait: Option<Wait>) -> Findings {
    let Settings { version, replicas, .. } = settings;
    let value = |name: &str| settings.config.get(name).map(String::as_str).unwrap_or_default();
    let mut warnings = Vec::new();
    let crash = if !settings.config_read {
        "what a crash loses can't be told, because its settings may not be read (CONFIG GET)"
            .to_owned()
    } else if value("appendonly") != "yes" {
        warnings.push(
            "this Redis keeps no append-only file: when it ends, everything since its last snapshot is \
             lost, acknowledged tasks too, or all of it if it has none. Set `appendonly yes`"
                .to_owned(),
        );
        match value("save") {
            "" => "a crash loses everything".to_owned(),
            _ => "a crash loses everything since the last snapshot".to_owned(),
        }
    } else {
        match value("appendfsync") {
            "always" => "a crash loses nothing that was acknowledged".to_owned(),
            "no" => {
                warnings.push(
                    "appendfsync is `no`: a power failure loses what the system has not written yet, \
                     half a minute or more. Set `always`, or `everysec`"
                        .to_owned(),
                );
                "a crash of Redis loses nothing, one of the machine half a minute or more"
                    .to_owned()
            }
            _ => "a crash loses up to two seconds".to_owned(),
        }
    };
    let failover = match (wait, replicas) {
        (None, 0) => "there is no replica".to_owned(),
        (None, _) => {
            warnings.push(format!(
                "{replicas} replica(s) follow, and nobody waits for them: a failover loses what they do \
                 not have yet, acknowledged tasks too. Add `wait=1` to the address"
            ));
            "a failover loses what the new primary does not have yet".to_owned()
        }
        (Some(wait), _) => {
            let most = wait.replicas.max(wait.disks.map_or(0, |(_, others)| others));
            if most > *replicas {
                warnings.push(format!(
                    "the address waits for {most} replica(s), and there are {replicas}: until they \
                     come, every submit is answered `outcome_unknown`"
                ));
            }
            match most {
                0 => "replicas are not waited for".to_owned(),
                _ if most < *replicas => format!(
                    "a failover to a replica that is not the most advanced one may lose something: \
                     {most} of {replicas} are waited for"
                ),
                _ => "a failover loses nothing that was acknowledged".to_owned(),
            }
        }
    };
    if settings.config_read && value("maxmemory-policy") != "noeviction" {
        let limit = match value("maxmemory") {
            "0" | "" => " as soon as maxmemory is set",
            _ => " when its memory is full",
        };
        warnings.push(format!(
            "maxmemory-policy is `{}`: this Redis drops parts of the store{limit}. Set `noeviction`",
            value("maxmemory-policy")
        ));
    }
    if settings.role == "slave" {
        warnings.push("this Redis is a replica: nothing can be written to it".to_owned());
    }
    let cluster = match settings.cluster.as_deref() {
        None => "",
        Some("ok") => ", a node of a cluster",
        Some(_) => {
            warnings.push("the cluster says of itself that it is not well".to_owned());
            ", a node of a cluster"
        }
    };
    let line = format!("the store is in Redis {version}{cluster}: {crash}; {failover}");
    Findings { line, warnings }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(config: &[(&str, &str)]) -> Settings {
        let mut all = BTreeMap::from([
            ("appendonly".to_owned(), "yes".to_owned()),
            ("appendfsync".to_owned(), "always".to_owned()),
            ("maxmemory-policy".to_owned(), "noeviction".to_owned()),
            ("maxmemory".to_owned(), "0".to_owned()),
            ("save".to_owned(), String::new()),
        ]);
        all.extend(config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Settings {
            version: "7.0.15".into(),
            config_read: true,
            config: all,
            role: "master".into(),
            ..Settings::default()
        }
    }

    fn replicas(count: u32) -> Option<Wait> {
        Some(Wait { replicas: count, disks: None, within: Duration::from_secs(1) })
    }

    #[test]
    fn the_safest_settings_have_nothing_to_warn_of() {
        let safe = Settings { replicas: 1, ..settings(&[]) };
        let Findings { line, warnings } = judge(&safe, replicas(1));
        assert_eq!(
            line,
            "the store is in Redis 7.0.15: a crash loses nothing that was acknowledged; a failover \
             loses nothing that was acknowledged"
        );
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn what_is_dangerous_is_warned_of() {
        for (config, warning) in [
            ([("appendonly", "no")], "keeps no append-only file"),
            ([("appendfsync", "no")], "a power failure loses"),
            ([("maxmemory-policy", "allkeys-lru")], "drops parts of the store"),
        ] {
            let found = judge(&settings(&config), None).warnings;
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(warning), "{found:?}");
        }
        let found = judge(&Settings { replicas: 1, ..settings(&[]) }, None).warnings;
        assert!(found[0].contains("Add `wait=1`"), "{found:?}");
        let found = judge(&settings(&[]), replicas(2)).warnings;
        assert!(found[0].contains("waits for 2 replica(s), and there are 0"), "{found:?}");
    }

    #[test]
    fn what_may_not_be_read_is_not_guessed() {
        let hosted = Settings { version: "7.2.4".into(), ..Settings::default() };
        let Findings { line, warnings } = judge(&hosted, None);
        assert!(line.contains("can't be told, because its settings may not be read"), "{line}");
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn too_old_a_redis_is_refused() {
        let old = Settings { version: "6.2.14".into(), ..settings(&[]) };
        assert!(usable(&old, None).unwrap_err().contains("version 6.2.14; rayreel needs 7.0"));
        let disks = Wait { replicas: 0, disks: Some((1, 0)), within: Duration::from_secs(1) };
        assert!(usable(&settings(&[]), Some(disks)).unwrap_err().contains("since version 7.2"));
        let new = Settings { version: "7.4.1".into(), ..settings(&[("appendonly", "no")]) };
        assert!(usable(&new, Some(disks)).unwrap_err().contains("set `appendonly yes`"));
    }
}
