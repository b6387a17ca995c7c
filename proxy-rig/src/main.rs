//! `weir-rig`: the rig's command line. Parses arguments and hands over to the library.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir-rig: {error:#}");
            ExitCode::FAILURE
        }
    }
}
