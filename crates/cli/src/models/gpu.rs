//! The GPUs of this machine, and whether a model's weights fit into one.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use rayreel_domain::PoolName;
use rayreel_server::config::{Pool, gpu_list};
use serde::Serialize;

use super::program::{self, Error};
use crate::failure::Failure;
use crate::text::one_line;

/// The driver answers within a second or two, unless it hangs.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Gpu {
    pub name: String,
    /// In bytes; None if the driver does not know it, as where the memory is the machine's.
    pub memory: Option<u64>,
}

/// Those that NVIDIA's driver names; none if it is not there. The error says why it is not known.
pub(super) fn find() -> Result<Vec<Gpu>, String> {
    let mut ask = Command::new("nvidia-smi");
    ask.args(["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]);
    match program::ask(&mut ask, LIMIT) {
        Ok(said) if said.success => Ok(read(&said.stdout)),
        Ok(said) => {
            let mut lines = said.stdout.lines().chain(said.stderr.lines()).map(str::trim);
            let why = lines.find(|line| !line.is_empty()).unwrap_or("it says nothing");
            Err(format!("nvidia-smi failed: {}", one_line(why, 200)))
        }
        Err(Error::NotStarted(error)) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("nvidia-smi: {error}")),
    }
}

/// Lines such as `NVIDIA H200, 143771`, in MiB, or with `[N/A]` for the number.
fn read(text: &str) -> Vec<Gpu> {
    let line = |line: &str| {
        let (name, memory) = line.rsplit_once(',')?;
        let memory = match memory.trim() {
            unknown if unknown.starts_with('[') => None,
            mebibytes => Some(mebibytes.parse::<u64>().ok()?.saturating_mul(1 << 20)),
        };
        Some(Gpu { name: name.trim().to_owned(), memory })
    };
    text.lines().filter_map(line).collect()
}

/// What the GPUs are, and what the weights need: all of them at once, and the largest model alone.
pub(super) fn verdict(
    gpus: Result<&[Gpu], &str>,
    (all, largest): (u64, u64),
    offload: Option<&str>,
) -> String {
    let gpus = match gpus {
        Ok(gpus) => gpus,
        Err(why) => {
            return format!("not known: {why}; in its memory the weights take {}", gigabytes(all));
        }
    };
    if let Some(gpu) = gpus.iter().find(|gpu| gpu.memory.is_none()) {
        return format!(
            "{}, and nvidia-smi does not say how much memory it has; the weights take {}",
            gpu.name,
            gigabytes(all)
        );
    }
    // Which of them a worker gets is not decided here.
    let Some(least) = gpus.iter().min_by_key(|gpu| gpu.memory) else {
        return format!(
            "none found: it will run on the CPU, slowly; in a GPU's memory the weights take {}",
            gigabytes(all)
        );
    };
    let mut text = String::new();
    if gpus.len() > 1 {
        _ = write!(text, "{} of them, the smallest ", gpus.len());
    }
    let memory = least.memory.unwrap_or_default();
    _ = write!(text, "{}, {}; the weights take {}", least.name, gigabytes(memory), gigabytes(all));
    let advice = match offload {
        _ if all < memory => "and the video what it needs",
        Some("group" | "sequential") => "of which few wait there at a time",
        Some(_) if largest < memory => "of which one model waits there at a time",
        None if largest < memory => {
            "too much: --offload model keeps one model there at a time, and quantised weights are \
             smaller"
        }
        _ => {
            "too much, and so is the largest model alone: --offload group keeps a few layers there \
             at a time, and quantised weights are smaller"
        }
    };
    _ = write!(text, ", {advice}");
    if largest < all && (all >= memory) {
        _ = write!(text, " (the largest model: {})", gigabytes(largest));
    }
    text
}

/// Can so many GPUs share the work of a model?
pub(super) fn check_shared(gpus: u8, engine: &str, heads: Option<u64>) -> Result<(), Failure> {
    let wrong = |message: String| Err(Failure::value("gpus", message));
    let heads = match heads {
        _ if gpus == 1 => return Ok(()),
        _ if engine != "wan" => {
            let message = format!("the engine `{engine}` draws each still on one GPU");
            return wrong(message).map_err(|failure| failure.helped("Leave out --gpus."));
        }
        None => return Ok(()),
        Some(heads) => heads,
    };
    if heads.is_multiple_of(gpus.into()) {
        return Ok(());
    }
    let fit = (2..=heads.min(64)).filter(|count| heads.is_multiple_of(*count));
    let fit: Vec<String> = fit.map(|count| count.to_string()).collect();
    let message =
        format!("{gpus} GPUs can't share the {heads} attention heads of this model's transformer");
    wrong(message).map_err(|failure| failure.helped(format!("These can: {}.", fit.join(", "))))
}

/// What a pool must have for its workers to see so many GPUs each; None if it has it.
pub(super) fn pool_needs(gpus: u8, name: &PoolName, pool: &Pool) -> Option<String> {
    let per_worker = u32::from(gpus);
    if pool.gpus_per_worker >= per_worker {
        return None;
    }
    let list = gpu_list(u64::from(pool.max.max(1)) * u64::from(per_worker));
    Some(format!(
        "the engine takes {gpus} GPUs, and the pool `{name}` gives a worker {}: in [pools.{name}] set \
         gpus = {list} and gpus_per_worker = {gpus}, for `max` of {}",
        if pool.gpus.is_empty() {
            "whatever there is".to_owned()
        } else {
            pool.gpus_per_worker.to_string()
        },
        pool.max.max(1),
    ))
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_says_is_read() {
        let text = "NVIDIA H200, 143771\nNVIDIA RTX A6000, Ada, 49140\nNo devices were found\n";
        let gpus = read(text);
        assert_eq!(gpus.len(), 2);
        assert_eq!(gpus[0], Gpu { name: "NVIDIA H200".into(), memory: Some(143_771 << 20) });
        assert_eq!(gpus[1].name, "NVIDIA RTX A6000, Ada");
        let gpus = read("NVIDIA GB10, [N/A]\n");
        assert_eq!(
            verdict(Ok(&gpus), (69_000_000_000, 1), None),
            "NVIDIA GB10, and nvidia-smi does not say how much memory it has; the weights take 69.0 GB"
        );
    }

    #[test]
    fn weights_that_do_not_fit_are_told_with_what_helps() {
        let gpu = |memory: u64| vec![Gpu { name: "G".to_owned(), memory: Some(memory) }];
        // Two experts of 28.6 GB, a text encoder of 11.4 GB.
        let weights = (69_000_000_000, 28_600_000_000);
        for (memory, offload, says) in [
            (
                80_000_000_000,
                None,
                "G, 80.0 GB; the weights take 69.0 GB, and the video what it needs",
            ),
            (
                48_000_000_000,
                None,
                "G, 48.0 GB; the weights take 69.0 GB, too much: --offload model keeps one model \
                 there at a time, and quantised weights are smaller (the largest model: 28.6 GB)",
            ),
            (
                48_000_000_000,
                Some("model"),
                "G, 48.0 GB; the weights take 69.0 GB, of which one model waits there at a time \
                 (the largest model: 28.6 GB)",
            ),
            (
                24_000_000_000,
                Some("model"),
                "G, 24.0 GB; the weights take 69.0 GB, too much, and so is the largest model alone: \
                 --offload group keeps a few layers there at a time, and quantised weights are \
                 smaller (the largest model: 28.6 GB)",
            ),
        ] {
            assert_eq!(verdict(Ok(&gpu(memory)), weights, offload), says);
        }
        let two = [gpu(80_000_000_000), gpu(24_000_000_000)].concat();
        assert!(verdict(Ok(&two), (1, 1), None).starts_with("2 of them, the smallest G, 24.0 GB"));
        assert_eq!(
            verdict(Ok(&[]), weights, None),
            "none found: it will run on the CPU, slowly; in a GPU's memory the weights take 69.0 GB"
        );
    }
}
