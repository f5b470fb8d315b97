//! The command `rayreel`.

fn main() {}
