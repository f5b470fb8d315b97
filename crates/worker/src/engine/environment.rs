//! What an engine sees of the worker's environment.
//!
//! Engines run third-party code, so they get a short list instead of everything: what a program
//! needs to find itself, its libraries, its accelerator and its model cache. Of `RAYREEL_*` only what
//! the operator has named for engines passes (`RAYREEL_ENGINE_*`), and the mark by which a server finds
//! what a dead worker has left; the worker token least of all. Each engine gets a mark of its own besides
//! ([`super::remains`]), and is told where it may write ([`crate::scratch::Room`]).

use std::ffi::{OsStr, OsString};

/// Variables that pass.
pub(crate) const NAMES: &[&str] = &[
    // Finding programs, libraries and directories.
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME",
    "VIRTUAL_ENV",
    // Language and time.
    "LANG",
    "LANGUAGE",
    "TZ",
    // Certificates, for engines that fetch checkpoints.
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    // Whose it is.
    "RAYREEL_LAUNCH",
    // Which accelerator.
    "GPU_DEVICE_ORDINAL",
];

/// Variables that pass by how they begin.
pub(crate) const PREFIXES: &[&str] = &[
    "LC_",
    // What the operator has meant for engines, such as the key of an engine server.
    "RAYREEL_ENGINE_",
    // Accelerators.
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "HIP_",
    "HSA_",
    "ROCM_",
    "ROCR_",
    // Libraries that engines are made of.
    "PYTHON",
    "CONDA_",
    "TORCH",
    "PYTORCH_",
    "TRITON_",
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "DIFFUSERS_",
    "OMP_",
    "MKL_",
];

/// The variables of this process that an engine gets.
pub(crate) fn kept() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| passes(name))
}

fn passes(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_what_is_unknown_stay_behind() {
        for name in ["RAYREEL_WORKER_TOKEN", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "HTTPS_PROXY"] {
            assert!(!passes(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "RAYREEL_ENGINE_KEY", "LC_ALL"] {
            assert!(passes(OsStr::new(name)), "{name}");
        }
    }
}
