//! Floods of spoofed packets: what they must not do to others.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::PacketBuilder;
use futures::future::FutureExt;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket},
};
use serde_json::{Value, json};

use super::{
    flows::OwnTest,
    small::{self, NODE_1, NODE_2, NODE_PORT},
};
use crate::{
    call::{Options, Proto},
    demo::stage::Stage,
};

pub(super) const OWN_TESTS: &[OwnTest] = &[
    ("a_flood_of_syns_ends_no_connection", "14", || syn_flood().boxed()),
    ("full_tables_take_new_flows", "14, 17", || full_tables().boxed()),
];

/// More flows, clients, sockets and datagrams than the tables have room for.
const SMALL_TABLES: [&str; 14] = [
    "--conntrack-max",
    "2048",
    "--new-flows-max",
    "1024",
    "--snat-max",
    "1024",
    "--new-snat-max",
    "1024",
    "--frags-max",
    "1024",
    "--affinity-max",
    "1024",
    "--sockets-max",
    "1024",
];

/// Established before the flood, idle while it lasts.
const IDLE: usize = 1000;
const SYNS: u32 = 1_000_000;
/// Of IPv6; as many of IPv4 as are missing to all.
const SYNS_V6: u32 = 300_000;
const ANSWER: Duration = Duration::from_secs(5);

async fn syn_flood() -> Result<()> {
    let stage = small::start(&[]).await?;
    let client = &stage.peer("client")?.host;
    // The answers to the spoofed addresses go where the SYNs come from, as through a default route, and nobody hears them.
    for node in stage.world.nodes() {
        node.route(SPOOFED_V4, IpAddr::V4(client.ipv4()))?;
        node.route(SPOOFED_V6, IpAddr::V6(client.ipv6()))?;
    }
    let v6 = |node: &str| anyhow::Ok(SocketAddr::new(IpAddr::V6(stage.node(node)?.ipv6()), NODE_PORT));
    let targets = [NODE_1, NODE_2, v6("node-1")?, v6("node-2")?];
    let mut idle = client.in_netns(|| open(&targets, IDLE))??;
    let started = Instant::now();
    client.in_netns(|| {
        flood(NODE_1, SYNS - SYNS_V6)?;
        flood(targets[2], SYNS_V6)
    })??;
    let took = started.elapsed();
    // One side of a flow after the other: requests of the client, then answers of the backend.
    let lost = idle.iter_mut().filter_map(|stream| request(stream).err()).count();
    println!(
        "{SYNS} spoofed SYNs in {:.1} s ({:.0} a second): {lost} of {IDLE} idle connections lost",
        took.as_secs_f64(),
        f64::from(SYNS) / took.as_secs_f64()
    );
    ensure!(lost == 0, "{lost} of {IDLE} idle connections lost");
    let node = stage.node("node-1")?;
    let status = String::from_utf8(node.weir("status", &[])?.stdout)?;
    ensure!(status.contains("NEW_FLOWS_V4 is full"), "weir status does not say that the table is full:\n{status}");
    // The flood is over: everything works again by itself, remote backends included.
    tokio::time::sleep(RECOVERY).await;
    for target in targets {
        let fresh = client.in_netns(|| (0..20).try_for_each(|_| request(&mut connect(target)?)))?;
        fresh.with_context(|| format!("new connections to {target} after the flood"))?;
    }
    Ok(())
}

async fn full_tables() -> Result<()> {
    let mut stage = small::hosts().await?;
    stage.cluster.put_service(small::service(|_| {}))?;
    stage.start_agents(&SMALL_TABLES).await?;
    let client = stage.peer("client")?.host.clone();
    stage.node("node-1")?.route(SPOOFED_V4, IpAddr::V4(client.ipv4()))?;
    // CONNTRACK and SNAT: connections that stay open. Each one is served, whatever it takes the place of.
    let mut connections = client.in_netns(|| open(&[NODE_1], 2600))??;
    full(&stage, &["CONNTRACK_V4", "SNAT_V4"])?;
    // The youngest, of which there is room for some 700.
    let young = connections.len() - 200;
    for (number, stream) in connections.iter_mut().enumerate().skip(young) {
        request(stream).with_context(|| format!("connection {number}, one of the last"))?;
    }
    drop(connections);
    // NEW_FLOWS, and AFFINITY by as many clients.
    let sticky = |service: &mut Value| service["spec"]["sessionAffinity"] = json!("ClientIP");
    stage.cluster.put_service(small::service(sticky))?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.in_netns(|| flood(NODE_1, 20_000))??;
    full(&stage, &["NEW_FLOWS_V4", "AFFINITY"])?;
    // FRAGS: datagrams that never become whole.
    client.in_netns(|| first_fragments(NODE_1, 5_000))??;
    full(&stage, &["FRAGS_V4"])?;
    // SOCK_REVNAT: sockets of a pod.
    let near = stage.actor("near")?;
    let mut sessions = Vec::new();
    for _ in 0..1100 {
        sessions.push(near.open(Proto::Udp, small::CLUSTER_IP.ip(), small::CLUSTER_IP.port()).await?);
    }
    full(&stage, &["SOCK_REVNAT_V4"])?;
    // An old socket works on, though it may see its endpoint as the peer; a new one sees the Service.
    sessions[0].send().await?.answered().context("the first of many sockets")?;
    let fresh = stage.ask("near", Proto::Udp, small::CLUSTER_IP, Options::default()).await?;
    fresh.answered().context("a socket more")?;
    ensure!(fresh.peer == Some(small::CLUSTER_IP), "a new socket sees {:?}", fresh.peer);
    // All tables are full, and every way works, also in fragments.
    small::all_ways_work(&stage).await?;
    let large = Options { size: 4000, ..Options::default() };
    stage.ask("client", Proto::Udp, NODE_1, large).await?.answered().context("a datagram in fragments")?;
    Ok(())
}

/// Fails unless `weir status` on node-1 says it of each of the maps.
fn full(stage: &Stage, maps: &[&str]) -> Result<()> {
    let status = String::from_utf8(stage.node("node-1")?.weir("status", &[])?.stdout)?;
    for map in maps {
        ensure!(status.contains(&format!("{map} is full")), "weir status does not say that {map} is full:\n{status}");
    }
    Ok(())
}

/// Half-open flows hold their source ports for two seconds, if others want them.
const RECOVERY: Duration = Duration::from_secs(3);
/// RFC 2544's and RFC 5180's networks for benchmarks.
const SPOOFED_V4: &str = "198.18.0.0/15";
const SPOOFED_V6: &str = "2001:2::/48";

fn open(targets: &[SocketAddr], count: usize) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for target in targets.iter().cycle().take(count) {
        let mut stream = connect(*target)?;
        request(&mut stream).with_context(|| format!("before the flood, to {target}"))?;
        streams.push(stream);
    }
    Ok(streams)
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, ANSWER).with_context(|| target.to_string())?;
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(stream)
}

fn request(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let mut answer = [0; 2048];
    let length = stream.read(&mut answer)?;
    ensure!(answer[..length].starts_with(b"HTTP/1.1 200"), "answered {:?}", String::from_utf8_lossy(&answer[..length]));
    Ok(())
}

/// Sends SYNs, each from another address and port, through a raw socket of the client.
fn flood(target: SocketAddr, count: u32) -> Result<()> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).context("a raw socket")?;
    let to = SockaddrStorage::from(SocketAddr::new(target.ip(), 0));
    let mut packet = Vec::new();
    for number in 0..count {
        // An odd factor: each number gives another tuple.
        let mixed = number.wrapping_mul(0x9e37_79b1);
        let port = 1024 + (mixed >> 17) as u16;
        let [_, b, c, d] = (mixed & 0x1_ffff).to_be_bytes();
        packet.clear();
        let builder = match target.ip() {
            IpAddr::V4(to) => PacketBuilder::ipv4([198, 18 + b, c, d], to.octets(), 64),
            IpAddr::V6(to) => PacketBuilder::ipv6(from_v6([b, c, d]), to.octets(), 64),
        };
        builder.tcp(port, target.port(), mixed, 64240).syn().write(&mut packet, &[]).context("building a SYN")?;
        // A full queue loses packets, as a wire does.
        match sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(error) => return Err(error).context("sending a SYN"),
        }
    }
    Ok(())
}

/// First fragments of UDP datagrams without the rest.
fn first_fragments(target: SocketAddr, count: u32) -> Result<()> {
    let IpAddr::V4(to) = target.ip() else { bail!("only IPv4") };
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)?;
    let address = SockaddrStorage::from(SocketAddr::new(target.ip(), 0));
    for number in 0..count {
        let [_, _, high, low] = number.to_be_bytes();
        let mut packet = Vec::new();
        let mut header =
            etherparse::Ipv4Header::new(24, 64, etherparse::IpNumber::UDP, [198, 18, high, low], to.octets())
                .context("a header")?;
        header.identification = number as u16;
        header.more_fragments = true;
        PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
            .udp(40_000, target.port())
            .write(&mut packet, &[0; 16])
            .context("building a fragment")?;
        match sendto(socket.as_raw_fd(), &packet, &address, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS) => {}
            Err(error) => return Err(error).context("sending a fragment"),
        }
    }
    Ok(())
}

fn from_v6(last: [u8; 3]) -> [u8; 16] {
    let mut octets = [0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    octets[13..].copy_from_slice(&last);
    octets
}
