//! The engines of this crate alone, for its tests: `rayreel engine NAME` without the rest.

use std::io::{self, BufReader};
use std::process::ExitCode;

use rayreel_bridge::Kind;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some(kind) = Kind::named(&name) else {
        eprintln!("there is no engine `{name}`");
        return ExitCode::from(2);
    };
    match rayreel_bridge::run(kind, BufReader::new(io::stdin()), io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
