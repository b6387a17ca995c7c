//! `weir-rig bench connect`: requests per second through a Service against the same requests sent
//! straight to the pod, in pairs of short runs.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    report::{self, Figure, Pair},
    wrk::{self, Load, Mode},
};
use crate::{
    demo::{cluster::PodSpec, progress::Progress, stage::Stage},
    world::{Host, PodPath, Serve},
};

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const CLUSTER_IP: [u8; 4] = [10, 0, 0, 80];

#[derive(Debug, clap::Args)]
pub struct ConnectArgs {
    /// Pairs of runs for each figure
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(3..))]
    pairs: u32,
    /// Length of one run in seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Connections that wrk holds at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Write the figures and all pairs to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Who calls which frontend.
struct Route {
    name: &'static str,
    from: Host,
    to: SocketAddr,
    /// Ratio to straight for new connections and for kept ones.
    goals: [Option<f64>; 2],
}

/// Exit code 1 when a goal is missed.
pub(super) async fn run(args: ConnectArgs) -> Result<ExitCode> {
    let progress = Progress::default();
    let (stage, routes) = assemble().await?;
    let pod = SocketAddr::new(stage.peer("web")?.host.ipv4().into(), PORT);
    let load = Load { connections: args.connections, seconds: args.seconds };

    let mut work = Vec::new();
    for (mode, goal) in [(Mode::NewConnections, 0), (Mode::KeepAlive, 1)] {
        for route in &routes {
            work.push((route, Figure { name: route.name, mode, goal: route.goals[goal], pairs: Vec::new() }));
        }
    }
    for (route, figure) in &work {
        // Neighbours, routes and caches; and an early word if the path does not work at all.
        wrk::run(&route.from, route.to, figure.mode, load).await?;
    }
    progress.start("measuring", work.len() * args.pairs as usize);
    for round in 0..args.pairs {
        for (route, figure) in &mut work {
            figure.pairs.push(pair(route, pod, figure.mode, load, round % 2 == 0).await?);
            progress.step();
        }
    }
    progress.end();
    let figures: Vec<Figure> = work.into_iter().map(|(_, figure)| figure).collect();
    let met = report::show(&figures, args.json.as_deref())?;
    stage.close()?;
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn pair(route: &Route, pod: SocketAddr, mode: Mode, load: Load, straight_first: bool) -> Result<Pair> {
    let straight = || wrk::run(&route.from, pod, mode, load);
    let service = || wrk::run(&route.from, route.to, mode, load);
    if straight_first {
        let straight = straight().await?;
        Ok(Pair { straight, service: service().await? })
    } else {
        let service = service().await?;
        Ok(Pair { straight: straight().await?, service })
    }
}

/// One backend on node-1. Clients: two of its neighbours, and two outside, of which one goes
/// through node-1 and the other through node-2, straight requests included.
async fn assemble() -> Result<(Stage, Vec<Route>)> {
    let mut stage = Stage::new("bench")?;
    let near = stage.add_node("node-1", Serve::nothing()).await?;
    let far = stage.add_node("node-2", Serve::nothing()).await?;
    for node in [&near, &far] {
        // The way through node-2 is the longer one on purpose.
        node.sysctl("net/ipv4/conf/all/send_redirects", "0")?;
        node.sysctl("net/ipv4/conf/eth0/send_redirects", "0")?;
    }
    let web = PodSpec { labels: &[("app", "web")], ..PodSpec::default() };
    stage.add_pod(&near, "web", PodPath::Connect, &web, Serve::ports(&[PORT])).await?;
    let client = PodSpec::default();
    stage.add_pod(&near, "connect", PodPath::Connect, &client, Serve::nothing()).await?;
    stage.add_pod(&near, "packet", PodPath::Packet, &client, Serve::nothing()).await?;
    stage.add_client("client-1", Serve::nothing()).await?;
    let client = stage.add_client("client-2", Serve::nothing()).await?;
    client.route_via("10.244.1.0/24", &far)?;
    stage.cluster.put_service(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {
            "type": "NodePort", "clusterIP": "10.0.0.80", "selector": {"app": "web"},
            "ports": [{"port": PORT, "nodePort": NODE_PORT}],
        },
    }))?;
    stage.start_agents(&[]).await?;

    let cluster_ip = SocketAddr::from((CLUSTER_IP, PORT));
    let host = |name: &str| -> Result<Host> {
        let host = stage.peer(name)?.host.clone();
        // Thousands of connections a second to one address need all ports, on both sides of a pair.
        host.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        host.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        // Both sides of a pair have the same tuples at the backend, where those of the side before are in TIME_WAIT. It takes
        // a new SYN whose timestamp has grown; by default Linux starts the clock elsewhere for each destination.
        host.sysctl("net/ipv4/tcp_timestamps", "2")?;
        Ok(host)
    };
    let route = |name, from: &str, to, goals| -> Result<Route> { Ok(Route { name, from: host(from)?, to, goals }) };
    let routes = vec![
        route("pod -> ClusterIP, connect time", "connect", cluster_ip, [Some(0.95), Some(0.97)])?,
        route("pod -> ClusterIP, packet path", "packet", cluster_ip, [None, Some(0.97)])?,
        route("outside -> NodePort, local", "client-1", (near.ipv4(), NODE_PORT).into(), [Some(0.90), Some(0.97)])?,
        route("outside -> NodePort, remote", "client-2", (far.ipv4(), NODE_PORT).into(), [Some(0.70), None])?,
    ];
    for route in &routes {
        let reply = stage.actor(route.from.name())?.http(route.to.ip(), route.to.port()).await?;
        ensure!(reply.pod() == Some("web"), "{}: {:?}", route.name, reply.outcome);
    }
    Ok((stage, routes))
}
