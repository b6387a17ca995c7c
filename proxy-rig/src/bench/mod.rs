//! `weir-rig bench`: measurements on a world of the rig. `connect` is the only one so far.

mod connect;
mod report;
mod stats;
mod wrk;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

pub use connect::ConnectArgs;

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Requests per second through a Service, as a ratio to the same requests sent straight to the pod
    Connect(ConnectArgs),
}

pub async fn run(bench: Bench) -> Result<ExitCode> {
    match bench {
        Bench::Connect(args) => connect::run(args).await,
    }
}
