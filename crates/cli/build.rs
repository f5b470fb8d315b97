//! Collects the sources of the Python package, so that the program brings the engines that fit it.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Besides the sources: what an installation reads.
const FILES: &[&str] = &["README.md", "constraints.txt", "pyproject.toml"];

fn main() -> io::Result<()> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python").canonicalize()?;
    let mut found: Vec<PathBuf> = FILES.iter().map(|name| package.join(name)).collect();
    for path in &found {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    println!("cargo:rerun-if-changed={}", package.join("src").display());
    collect(&package.join("src"), &mut found)?;
    found.sort();
    let entries = found.iter().map(|path| {
        let name = path.strip_prefix(&package).map_err(io::Error::other)?;
        Ok(format!("({:?}, include_bytes!({path:?}).as_slice()),\n", name.display().to_string()))
    });
    let entries: String = entries.collect::<io::Result<_>>()?;
    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or(io::ErrorKind::NotFound)?;
    fs::write(out.join("package.rs"), format!("&[\n{entries}]\n"))
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "__pycache__" {
            collect(&path, found)?;
        } else if name.ends_with(".py") || name == "py.typed" {
            found.push(path);
        }
    }
    Ok(())
}
