//! How many files, and with them connections, this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Programs that close whatever they might have inherited go through all of these, and workers hand
/// the limit on to engines: where there is no limit, this is one.
const MOST: u64 = 1 << 20;

/// Raises the limit of this process as far as it may itself, and tells how far that is. What a
/// process is given at first is meant for programs that know only the first 1,024.
pub fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let (current, wanted) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX).min(MOST));
    if current >= wanted {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, current, "the limit of open files could not be raised");
            current
        }
    }
}
