//! Subcommands of `weir-rig`, one variant each; what they do lives in the library or in a file beside this one.

mod fuzz;
mod programs;
mod scenario;
mod world;

use std::{ffi::OsString, future::Future, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use proxy_rig::{
    bench::{self, Bench},
    call::process,
    demo::{self, DemoArgs},
    deploy::container::Container,
    echo::Identity,
    suite::{self, SuiteArgs},
    vmguest,
    world::{Placement, reap::reap_dead_runs},
};

#[derive(Debug, Parser)]
#[command(name = "weir-rig", about = "Simulated nodes, pods and clients for Weir", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show real requests reaching their backends over every kind of path
    Demo(DemoArgs),
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
    /// Run one of the test suites
    Suite(SuiteArgs),
    /// Which scenarios and tests show which rule
    Coverage(suite::CoverageArgs),
    /// Play scenario files and tell what happens to each packet, and why
    Scenario(scenario::ScenarioArgs),
    /// Random packets through the model and the loaded programs, until they differ (root)
    Fuzz(fuzz::FuzzArgs),
    /// Bring up a world, print it, keep it until Ctrl-C
    World(world::WorldArgs),
    /// Load the kernel programs and print what the verifier says of each (root)
    Programs,
    /// Be the init process of a virtual machine with another kernel
    #[command(hide = true)]
    VmGuest {
        /// Also tests with real agents and sockets
        #[arg(long)]
        sockets: bool,
        /// Only scenarios whose name contains this text
        scenarios: Option<String>,
    },
    /// Remove what runs left behind whose owner is dead
    Reap,
    /// Run a command in a namespace and cgroup of a world
    ExecIn(ExecIn),
    /// Become the program of a container, as its spec in a file says
    #[command(hide = true)]
    Container { spec: PathBuf },
    /// Serve and call others inside a namespace, told by standard input
    #[command(hide = true)]
    PodServer(PodServer),
}

#[derive(Debug, clap::Args)]
struct ExecIn {
    /// Name of the namespace, as `ip netns` shows it
    #[arg(long)]
    netns: String,
    /// Path of the cgroup
    #[arg(long)]
    cgroup: PathBuf,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct PodServer {
    #[arg(long)]
    name: String,
    #[arg(long, default_value = "")]
    node: String,
    #[arg(long)]
    tcp: Vec<u16>,
    #[arg(long)]
    udp: Vec<u16>,
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Demo(args) => block_on(demo::run(args)),
            Command::Bench(bench) => block_on(bench::run(bench)),
            Command::Suite(args) => suite::run(&args),
            Command::Coverage(args) => suite::coverage(&args),
            Command::Scenario(args) => scenario::run(&args),
            Command::Fuzz(args) => fuzz::run(&args),
            Command::World(args) => block_on(world::run(args)),
            Command::Programs => programs::run(),
            Command::VmGuest { sockets, scenarios } => match vmguest::run(sockets, scenarios.as_deref())? {},
            Command::Reap => reap(),
            Command::ExecIn(args) => exec_in(args),
            Command::Container { spec } => match Container::load(&spec)?.exec()? {},
            Command::PodServer(args) => block_on(serve(args)),
        }
    }
}

/// One thread: a pod's process takes one core at most, and a world holds many of them.
fn block_on(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?.block_on(work)
}

fn reap() -> Result<ExitCode> {
    let reaped = reap_dead_runs()?;
    println!("{} dead runs removed {}", reaped.len(), reaped.join(" "));
    Ok(ExitCode::SUCCESS)
}

fn exec_in(args: ExecIn) -> Result<ExitCode> {
    let placement = Placement { netns: args.netns, cgroup: args.cgroup };
    let (program, rest) = args.command.split_first().context("no command")?;
    match placement.exec(program, rest)? {}
}

async fn serve(args: PodServer) -> Result<ExitCode> {
    let identity = Identity { pod: args.name, node: args.node };
    process::run(identity, &args.tcp, &args.udp).await?;
    Ok(ExitCode::SUCCESS)
}
