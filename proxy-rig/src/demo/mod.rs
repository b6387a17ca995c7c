//! `weir-rig demo`: real agents on real manifests, real requests over every kind of path, as a table.
//!
//! `cluster`, `slices` and `stage` are the end-to-end suite's and the bench's too.

mod cast;
pub mod cluster;
mod dump;
pub(crate) mod expect;
pub(crate) mod paths;
pub mod progress;
mod slices;
pub mod stage;
mod table;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::future::try_join_all;

use progress::Progress;
use stage::Stage;
use table::Tally;

use crate::call::Proto;

/// Of the addresses in the examples.
const SERVICE_RANGES: &str = "10.0.0.0/16,fd00:10::/112";
/// How long a change may take to reach every node.
const LIVE: Duration = Duration::from_secs(5);
/// Answers in a row without the endpoint that left, until it is believed to be gone.
const ROW: usize = 30;

#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Directory with the Services to show
    #[arg(long, default_value = "examples")]
    examples: PathBuf,
    /// Leave everything running at the end, to look around, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Exit code 1 when a path is not as expected.
pub async fn run(args: DemoArgs) -> Result<ExitCode> {
    let started = Instant::now();
    let progress = Progress::default();
    let mut tally = Tally::default();
    let mut stage = cast::assemble(&progress).await?;
    let files = stage.cluster.copy_from(&args.examples)?;
    progress.start(&format!("starting an agent on each node, with {} files of examples", files.len()), 1);
    stage.start_agents(&["--service-cluster-ip-range", SERVICE_RANGES]).await?;
    progress.end();

    println!("\n== Paths: from whom, to where, who answered, and as whom the caller was seen");
    table::show(&stage, &progress, &mut tally).await?;
    show_state(&stage, &mut tally)?;

    println!("\n== nginx-2 leaves, nginx-3 joins on node-3 (the manifests change, the agents watch them)");
    change(&mut stage).await?;
    table::show(&stage, &progress, &mut tally).await?;

    if args.keep {
        hold(&stage).await?;
    }
    stage.close()?;
    println!("done in {:.1} s, everything removed", started.elapsed().as_secs_f64());
    println!("paths: {} of {} as expected", tally.good, tally.all);
    Ok(if tally.good == tally.all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says how to enter, and waits. A signal removes the world and ends the process.
async fn hold(stage: &Stage) -> Result<()> {
    println!("\nenter a host, or end with Ctrl-C:");
    for name in ["node-1", "curl", "outside"] {
        let place = stage.peer(name)?.host.placement();
        println!("  weir-rig exec-in --netns {} --cgroup {} -- bash", place.netns, place.cgroup.display());
    }
    println!("on node-1: weir services --pin-root {}", stage.node("node-1")?.pin_dir().display());
    std::future::pending().await
}

/// `weir services`, with the two Services that must not be in it, and a map.
fn show_state(stage: &Stage, tally: &mut Tally) -> Result<()> {
    let node = stage.node("node-1")?;
    let services = dump::services(&node)?;
    println!("\n== weir services, on node-1\n{services}");
    for (kind, identity) in paths::NOT_PROGRAMMED {
        let absent = !services.contains(identity);
        tally.count(absent);
        let found = if absent { "ok: not programmed" } else { "FAIL: programmed" };
        println!("{identity} ({kind}) {found}");
    }
    println!("\n== A map, on node-1\n{}", dump::map(&node)?);
    Ok(())
}

async fn change(stage: &mut Stage) -> Result<()> {
    cast::change(stage).await?;
    let begun = Instant::now();
    let stage = &*stage;
    try_join_all(["node-1", "node-2", "node-3"].map(|node| until_changed(stage, node))).await?;
    println!("live on every node {} ms later", begun.elapsed().as_millis());
    Ok(())
}

/// Until the new endpoint answers and the old one has not for a while.
async fn until_changed(stage: &Stage, node: &str) -> Result<()> {
    let to = SocketAddr::from(([10, 0, 162, 149], 8080));
    stage
        .ask_until(node, Proto::Tcp, to, LIVE, |result| result.pod() == Some("nginx-3"))
        .await
        .context("waiting for nginx-3")?;
    let mut quiet = 0;
    let begun = Instant::now();
    while quiet < ROW {
        let result = stage.ask(node, Proto::Tcp, to, Default::default()).await?;
        quiet = if result.pod() == Some("nginx-2") { 0 } else { quiet + 1 };
        anyhow::ensure!(begun.elapsed() < LIVE, "{node}: nginx-2 still answers");
    }
    Ok(())
}
