//! A narrow place on the way, in either direction: whoever sends has to learn of it by an ICMP error about a packet that was
//! translated on its way there, and must find his own packet in the quote. TCP with DF set, datagrams with DF set and
//! datagrams in fragments.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::{cast, datagram};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
    world::{Host, Layout},
};

const MTU: usize = 1300;
/// Many packets of a connection.
const UPLOAD: usize = 40_000;
const DOWNLOAD: usize = 200_000;
/// Smaller than a link's MTU, and larger.
const DATAGRAMS: [usize; 2] = [1400, 2000];

/// Who calls, and where; web-1 on node-1 is the only endpoint. `web-2` is a pod of node-2, `packet` one of node-1.
const WAYS: [(&str, [&str; 2], u16); 5] = [
    ("packet", ["10.96.0.1", "fd00:10:96::1"], 80),
    ("web-2", ["10.96.0.1", "fd00:10:96::1"], 80),
    ("client", ["node-1", "node-1/6"], 30080),
    ("client", ["node-2", "node-2/6"], 30080),
    ("client", ["203.0.113.2", "2001:db8:6::2"], 80),
];

pub(super) async fn test(layout: Layout) -> Result<()> {
    let mut stage = cast::assemble(layout).await?;
    stage.cluster.remove_pod("web-2");
    stage.start_agents(cast::ARGS).await?;
    towards_the_backend(&stage).await.context("a narrow link towards the endpoint")?;
    towards_the_client(&stage).await.context("a narrow link towards the client")
}

async fn towards_the_backend(stage: &Stage) -> Result<()> {
    let backend = stage.peer("web-1")?.host.addresses();
    for node in stage.world.nodes() {
        backend.into_iter().try_for_each(|address| narrow(&node, address))?;
    }
    walk(stage, true).await?;
    for node in stage.world.nodes() {
        backend.into_iter().try_for_each(|address| widen(&node, address))?;
    }
    Ok(())
}

async fn towards_the_client(stage: &Stage) -> Result<()> {
    for node in stage.world.nodes() {
        for from in ["packet", "web-2", "client"] {
            let host = &stage.peer(from)?.host;
            // At the last node only: the first one need not know.
            if host.node_name().is_none_or(|name| name == node.name()) {
                host.addresses().into_iter().try_for_each(|address| narrow(&node, address))?;
            }
        }
    }
    walk(stage, false).await
}

/// Walks each way over TCP, then with datagrams of each size, every time as if nobody knew anything of the way yet. `up`: the
/// client has much to say, not the backend.
async fn walk(stage: &Stage, up: bool) -> Result<()> {
    for (from, to, port) in WAYS {
        for to in to {
            let ip = match to.parse() {
                Ok(ip) => ip,
                Err(_) => cast::address(stage, to)?,
            };
            let to = SocketAddr::new(ip, port);
            forget(stage, from)?;
            connection(stage, from, to, up).await.with_context(|| format!("{from} -> {to}"))?;
            for size in DATAGRAMS {
                forget(stage, from)?;
                datagram(stage, from, to, size).await?;
            }
        }
    }
    Ok(())
}

async fn connection(stage: &Stage, from: &str, to: SocketAddr, up: bool) -> Result<()> {
    let (upload, size) = if up { (UPLOAD, 0) } else { (0, DOWNLOAD) };
    let options = Options { upload, size, timeout_ms: 10_000, ..Options::default() };
    let result = stage.ask(from, Proto::Tcp, to, options).await?;
    let seen = result.answered()?.client.ip();
    if up { knows(&stage.peer(from)?.host, to.ip()) } else { knows(&stage.peer("web-1")?.host, seen) }
}

/// Makes the host's route to an address a narrow one.
fn narrow(host: &Host, address: IpAddr) -> Result<()> {
    route(host, address, &format!("mtu lock {MTU}"))
}

/// Takes it back.
fn widen(host: &Host, address: IpAddr) -> Result<()> {
    route(host, address, "")
}

/// Gives an address a route of its own, as it is but for its attributes.
fn route(host: &Host, address: IpAddr, attributes: &str) -> Result<()> {
    let found = route_to(host, address)?;
    let words: Vec<&str> = found.split_whitespace().collect();
    let value = |key: &str| words.iter().position(|word| *word == key).and_then(|at| words.get(at + 1));
    let dev = value("dev").with_context(|| format!("no device in {found}"))?;
    let via = value("via").map(|via| format!("via {via} onlink")).unwrap_or_default();
    host.ip(&[format!("route replace {} {via} dev {dev} {attributes}", prefix(address))])
}

fn prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// The host has learnt of the narrow place.
fn knows(host: &Host, to: IpAddr) -> Result<()> {
    let route = route_to(host, to)?;
    ensure!(route.contains(&format!("mtu {MTU}")), "{} has not learnt of the MTU: {route}", host.name());
    Ok(())
}

fn forget(stage: &Stage, from: &str) -> Result<()> {
    for name in [from, "web-1", "node-1", "node-2"] {
        for family in ["-4", "-6"] {
            ip(&stage.peer(name)?.host, &[family, "route", "flush", "cache"])?;
        }
    }
    Ok(())
}

fn route_to(host: &Host, address: IpAddr) -> Result<String> {
    ip(host, &["route", "get", &address.to_string()])
}

fn ip(host: &Host, args: &[&str]) -> Result<String> {
    let output = host.command("ip")?.args(args).output().context("running ip")?;
    ensure!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
