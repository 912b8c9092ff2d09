//! The `turnpike` command: arguments in, exit status out.

use std::process::ExitCode;

fn main() -> ExitCode {
    turnpike::cli::run(std::env::args_os())
}
