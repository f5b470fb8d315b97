//! Who listens on a port: the server that this process has started, or somebody else?
//!
//! A server binds its port after its imports and its weights, and until then anybody may.

/// Does a process listen on the port that does not descend from this one? Unknown, and so no, where
/// `/proc` does not tell.
#[cfg(target_os = "linux")]
pub(super) fn is_foreign(port: u16) -> bool {
    linux::is_foreign(port).unwrap_or(false)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_foreign(_: u16) -> bool {
    false
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io::{self, ErrorKind};

    use rayreel_process::Process;

    /// A socket that listens, in the fourth column of the tables (proc(5)).
    const LISTENS: &str = "0A";

    pub(super) fn is_foreign(port: u16) -> io::Result<bool> {
        let mut sockets = listening(&fs::read_to_string("/proc/net/tcp")?, port);
        // There is none without IPv6.
        let sixth = fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
        sockets.extend(listening(&sixth, port));
        if sockets.is_empty() {
            // In another network, such as that of a container.
            return Ok(false);
        }
        for process in rayreel_process::descendants(&rayreel_process::all()) {
            if holds(&process, &sockets)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The links to the sockets that listen on a port, as the descriptors of a process have them.
    pub(super) fn listening(table: &str, port: u16) -> Vec<String> {
        let lines = table.lines().skip(1);
        let sockets = lines.filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, at) = fields.get(1)?.rsplit_once(':')?;
            let ours = u16::from_str_radix(at, 16) == Ok(port) && *fields.get(3)? == LISTENS;
            ours.then(|| format!("socket:[{}]", fields.get(9).unwrap_or(&"")))
        });
        sockets.collect()
    }

    fn holds(process: &Process, sockets: &[String]) -> io::Result<bool> {
        let descriptors = match fs::read_dir(format!("/proc/{}/fd", process.pid.as_raw_nonzero())) {
            // It has ended meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            descriptors => descriptors?,
        };
        let mut links = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        Ok(links.any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str())))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid \
                     timeout inode\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 \
                     0 4711 1 0000000000000000 100 0 0 10 0\n   \
                     1: 0100007F:1F90 0100007F:C001 01 00000000:00000000 00:00000000 00000000  1000 \
                     0 4712 1 0000000000000000 20 4 30 10 -1\n";
        assert_eq!(linux::listening(table, 8080), ["socket:[4711]"]);
        assert!(linux::listening(table, 8081).is_empty());
    }

    #[test]
    fn what_this_process_itself_listens_on_is_not_its_servers() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_foreign(port));
        drop(listener);
        assert!(!is_foreign(port), "nobody does");
    }
}
