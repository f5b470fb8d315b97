//! The machine: what it is, how fast its disk is, and who else uses it meanwhile.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::load::Times;

/// Nanoseconds of a clock that all processes of the machine share.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Where and when figures were measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) revision: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_gb: f64,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
    /// Appending 4 KiB and waiting for the disk, in milliseconds.
    pub(crate) sync_p50_ms: f64,
    pub(crate) sync_p99_ms: f64,
}

impl Machine {
    /// Looks, and measures the disk on which `directory` lies.
    pub(crate) fn look(directory: &Path) -> anyhow::Result<Self> {
        let syncs = sync_times(directory, 500).context("cannot measure the disk")?;
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = rustix::system::uname();
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Ok(Self {
            date: date.chars().take("2000-01-01".len()).collect(),
            revision: revision(),
            cpu: field(&cpus, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            memory_gb: kilobytes(&memory, "MemTotal") as f64 / 1e6,
            kernel: format!("Linux {}", kernel.release().to_string_lossy()),
            file_system: file_system(directory).unwrap_or_else(|| "unknown".to_owned()),
            sync_p50_ms: syncs.p50(),
            sync_p99_ms: syncs.p99(),
        })
    }
}

/// The value of `name: value` in a file of such lines.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The value of `name: 123 kB`.
pub(crate) fn kilobytes(text: &str, name: &str) -> u64 {
    field(text, name).and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(revision) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--", "*.rs", "*.toml", "Cargo.lock"]) {
        Some(changes) if changes.is_empty() => revision,
        _ => format!("{revision} and changes"),
    }
}

/// Type of the file system, from the mount table.
fn file_system(directory: &Path) -> Option<String> {
    let device = fs::metadata(directory).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let id = mount.split(' ').nth(2)?;
        (id == format!("{major}:{minor}")).then(|| source.split(' ').next().map(str::to_owned))?
    })
}

/// How long the disk takes to keep 4 KiB more.
fn sync_times(directory: &Path, times: usize) -> std::io::Result<Times> {
    let path = directory.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        took.push(start.elapsed().as_nanos() as u64);
    }
    fs::remove_file(&path)?;
    Ok(Times::new(took))
}

/// Time on all processors, in ticks: of everybody, and of this process and all below it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    at: Instant,
    everybody: u64,
    own: u64,
}

impl Usage {
    pub(crate) fn now() -> Self {
        Self { at: Instant::now(), everybody: everybody().unwrap_or(0), own: family() }
    }

    /// The part of the machine that others have used since `self`, 0 to 1.
    pub(crate) fn others_since(self) -> f64 {
        let now = Self::now();
        let others = (now.everybody - self.everybody).saturating_sub(now.own - self.own);
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get()) as f64;
        ticks(others).as_secs_f64() / cores / (now.at - self.at).as_secs_f64()
    }
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Time in processes, user and system; and what a host took away.
fn everybody() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).map_while(|f| f.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    Some([0, 1, 2, 7].iter().filter_map(|at| fields.get(*at)).sum())
}

/// A line of `/proc/PID/stat`: parent, and ticks used by the process and by the children that it
/// has waited for.
fn process(pid: &str) -> Option<(u32, u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |from: usize| -> Option<u64> {
        Some(fields.get(from)?.parse::<u64>().ok()? + fields.get(from + 1)?.parse::<u64>().ok()?)
    };
    Some((fields.get(1)?.parse().ok()?, ticks(11)?, ticks(13)?))
}

/// Processor time of one process so far.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    process(&pid.to_string()).map_or(Duration::ZERO, |(_, own, _)| ticks(own))
}

/// Processor time of this process so far.
pub(crate) fn own_cpu_time() -> Duration {
    cpu_time(std::process::id())
}

/// Ticks of this process and everything below it, the dead included.
fn family() -> u64 {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    let processes: HashMap<u32, (u32, u64)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let pid = name.to_str()?.parse().ok()?;
            let (parent, own, children) = process(name.to_str()?)?;
            Some((pid, (parent, own + children)))
        })
        .collect();
    let root = std::process::id();
    let below = |mut pid: u32| {
        while let Some((parent, _)) = processes.get(&pid) {
            if pid == root {
                return true;
            }
            pid = *parent;
        }
        false
    };
    processes.iter().filter(|(pid, _)| below(**pid)).map(|(_, (_, ticks))| ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "MemTotal:       24602720 kB\nMemFree:  1 kB\n";
        assert_eq!(kilobytes(text, "MemTotal"), 24_602_720);
        assert_eq!(kilobytes(text, "Mem"), 0);
    }

    #[test]
    fn the_disk_is_measured_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(sync_times(directory.path(), 3).unwrap().len(), 3);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(file_system(directory.path()).is_some());
    }

    #[test]
    fn own_work_is_not_taken_for_that_of_others() {
        let before = Usage::now();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            std::hint::black_box(fs::metadata("/proc").is_ok());
        }
        assert!(family() - before.own >= 2, "the own work is counted");
        assert!(before.others_since() <= 1.0);
    }
}
