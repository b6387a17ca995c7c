//! `weir-rig world`: a world to play with, with echo servers in its pods.

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::Table;
use proxy_rig::world::{Host, PodPath, Serve, World};

const HTTP: u16 = 80;
const DNS: u16 = 53;

#[derive(Debug, clap::Args)]
pub(super) struct WorldArgs {
    /// Number of nodes
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Number of pods on each node; every second one is on the packet path
    #[arg(long, default_value_t = 2)]
    pods: u8,
}

pub(super) async fn run(args: WorldArgs) -> Result<ExitCode> {
    let world = World::new("world")?;
    let mut table = Table::new();
    table.set_header(["host", "kind", "IPv4", "IPv6", "namespace", "cgroup"]);
    let mut actors = Vec::new();
    for number in 1..=args.nodes {
        let node = world.add_node(&format!("node-{number}"))?;
        add_row(&mut table, &node, "node");
        for pod in 1..=args.pods {
            let (path, kind) = if pod % 2 == 1 {
                (PodPath::Connect, "pod, connect path")
            } else {
                (PodPath::Packet, "pod, packet path")
            };
            let pod = node.add_pod(&format!("pod-{number}-{pod}"), path)?;
            let serve = Serve { tcp: vec![HTTP], udp: vec![DNS] };
            actors.push(pod.start_actor(serve).await?);
            add_row(&mut table, &pod, kind);
        }
    }
    add_row(&mut table, &world.add_client("client")?, "client");
    println!("{table}");
    println!("run {}: pods answer HTTP on {HTTP} and UDP on {DNS}. Ctrl-C removes everything.", world.run_id());
    println!("Enter one: weir-rig exec-in --netns <namespace> --cgroup <cgroup> -- bash");
    // The world's own signal handling ends the process.
    std::future::pending::<()>().await;
    Ok(ExitCode::SUCCESS)
}

fn add_row(table: &mut Table, host: &Host, kind: &str) {
    table.add_row([
        host.name().to_owned(),
        kind.to_owned(),
        host.ipv4().to_string(),
        host.ipv6().to_string(),
        host.netns().to_owned(),
        host.placement().cgroup.display().to_string(),
    ]);
}
