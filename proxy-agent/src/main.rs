//! The binary `weir`. Only this file decides exit codes.

use std::process::ExitCode;

use clap::Parser as _;
use proxy_agent::cli::{Cli, exit_code, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir: {error:#}");
            exit_code(&error)
        }
    }
}
