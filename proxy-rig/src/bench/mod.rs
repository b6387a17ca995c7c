//! `weir-rig bench`: measurements: `connect` on a world of the rig, `packet` on the loaded programs alone.

mod connect;
mod packet;
mod report;
mod stats;
mod wrk;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

pub use connect::ConnectArgs;
pub use packet::PacketArgs;

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Requests per second through a Service, as a ratio to the same requests sent straight to the pod
    Connect(ConnectArgs),
    /// Nanoseconds that the tc programs take for a packet, by BPF_PROG_TEST_RUN
    Packet(PacketArgs),
}

pub async fn run(bench: Bench) -> Result<ExitCode> {
    match bench {
        Bench::Connect(args) => connect::run(args).await,
        Bench::Packet(args) => packet::run(&args),
    }
}
