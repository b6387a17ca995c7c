//! VLANs on a node's uplink: tagged frames pass its hooks untouched, and Services work on a VLAN device.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::FutureExt;
use nix::net::if_::if_nametoindex;
use serde_json::Value;

use super::{flows::OwnTest, small};
use crate::{
    call::{Options, Proto},
    scenario::build,
    world::{Host, Node},
};

pub(super) const TESTS: &[OwnTest] =
    &[("trunk_tagged_frames_pass_untouched", "parsing, paths", || tagged_frames().boxed())];
pub(super) const VLAN_TESTS: &[OwnTest] = &[("trunk_vlan_device_serves", "parsing, paths", || vlan_device().boxed())];

const SECOND: Duration = Duration::from_secs(1);
/// How long a counter may take: the kernels of other machines are emulated.
const LIMIT: Duration = Duration::from_secs(10);
const VLAN: u16 = 5;
const VLAN_NODE: &str = "172.30.5.11";
const VLAN_CLIENT: &str = "172.30.5.99";

/// True if this kernel has VLAN devices.
pub(in crate::suite) fn has_vlan_devices() -> bool {
    Path::new("/proc/net/vlan").is_dir()
}

/// A frame that comes in has its tag beside it, whatever the kernel makes of VLANs; one that a packet socket sends has it inside.
async fn tagged_frames() -> Result<()> {
    let (stage, agents) = small::one_agent(small::service(|_| {}), &[]).await?;
    let (client, node) = (stage.peer("client")?.host.clone(), stage.node("node-1")?);
    for (family, address) in node.addresses().into_iter().enumerate() {
        let to = SocketAddr::new(address, small::NODE_PORT);
        let from = SocketAddr::new(client.addresses()[family], 40_000);
        // The neighbours know each other afterwards.
        stage.ask("client", Proto::Udp, to, Options::default()).await?.answered()?;
        let socket = client.in_netns(|| UdpSocket::bind(from))??;
        socket.set_read_timeout(Some(SECOND))?;
        let call = format!("udp {from} > {to} len=4");
        let before = counts(&node)?;
        send_raw(&client, &node, &format!("{call} vlan={VLAN}"))?;
        seen(&node, &before, 1).context("at ingress")?;
        send_raw(&node, &client, &format!("udp {to} > {from} len=4 vlan={VLAN}"))?;
        send_raw(&node, &client, &format!("udp {to} > {from} len=4 provider-vlan=7 vlan={VLAN}"))?;
        seen(&node, &before, 3).context("at egress")?;
        ensure!(counts(&node)?.of("new-flow") == before.of("new-flow"), "a tagged frame was taken for a call");
        ensure!(socket.recv(&mut [0; 100]).is_err(), "a tagged frame was answered");
        // A priority without a VLAN.
        send_raw(&client, &node, &format!("{call} vlan=0"))?;
        let len = socket.recv(&mut [0; 2000]).context("the answer to a frame with a priority tag")?;
        ensure!(len > 4, "{len} bytes");
    }
    drop(agents);
    Ok(())
}

async fn vlan_device() -> Result<()> {
    let (stage, agents) = small::one_agent(small::service(|_| {}), &["--nodeport-addresses", "172.30.5.0/24"]).await?;
    let (client, node) = (stage.peer("client")?.host.clone(), stage.node("node-1")?);
    for (host, address) in [(&client, VLAN_CLIENT), (&*node, VLAN_NODE)] {
        host.ip(&[
            format!("link add link eth0 name eth0.{VLAN} type vlan id {VLAN}"),
            format!("addr add {address}/24 dev eth0.{VLAN}"),
            format!("link set eth0.{VLAN} up"),
        ])?;
    }
    let to = super::sockets::socket(VLAN_NODE, small::NODE_PORT)?;
    stage.ask_until("client", Proto::Tcp, to, LIMIT, |result| result.answered().is_ok()).await?;
    let before = counts(&node)?;
    let mut pods = Vec::new();
    for call in 0..16 {
        let proto = if call % 2 == 0 { Proto::Tcp } else { Proto::Udp };
        let result = stage.ask("client", proto, to, Options { size: 3000, ..Options::default() }).await?;
        let reply = result.answered().with_context(|| format!("{proto:?} to {to}"))?;
        if reply.pod == "web-1" {
            ensure!(reply.client.ip().to_string() == VLAN_CLIENT, "{reply:?}");
        }
        pods.push(reply.pod.clone());
    }
    pods.sort_unstable();
    pods.dedup();
    ensure!(pods.len() == 2, "all calls by {pods:?}");
    seen(&node, &before, 32).context("each call by the trunk both ways")?;
    drop(agents);
    Ok(())
}

/// What `weir status` counts.
struct Counts(Value);

impl Counts {
    fn of(&self, reason: &str) -> u64 {
        let rows = self.0["counters"].as_array().map(Vec::as_slice).unwrap_or_default();
        rows.iter().find(|row| row["reason"] == reason).and_then(|row| row["count"].as_u64()).unwrap_or(0)
    }
}

fn counts(node: &Node) -> Result<Counts> {
    let output = node.weir("status", &["-o", "json"])?;
    ensure!(output.status.success(), "weir status: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Counts(serde_json::from_slice(&output.stdout)?))
}

/// Waits until so many tagged frames more than `before` were counted.
fn seen(node: &Node, before: &Counts, frames: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let count = counts(node)?.of("vlan-tag") - before.of("vlan-tag");
        if count >= frames {
            return Ok(());
        }
        if started.elapsed() > LIMIT {
            bail!("{count} tagged frames were counted, {frames} expected");
        }
    }
}

/// Sends a frame in words out of the host's `eth0` to the other host's.
fn send_raw(from: &Host, to: &Host, words: &str) -> Result<()> {
    let mut frame = build(&words.parse()?);
    frame[..6].copy_from_slice(&link_address(to)?);
    frame[6..12].copy_from_slice(&link_address(from)?);
    from.in_netns(|| -> Result<()> {
        let socket = packet_socket()?;
        let ether_type = u16::from_ne_bytes([frame[12], frame[13]]);
        // SAFETY: all zero is a value of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ether_type;
        address.sll_ifindex = if_nametoindex("eth0")? as i32;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: frame and address are readable for the lengths given.
        let sent = unsafe {
            let address = (&raw const address).cast();
            libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, address, len)
        };
        ensure!(sent == frame.len() as isize, "sendto: {}", io::Error::last_os_error());
        Ok(())
    })?
}

fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers. Protocol 0: it receives nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The link address of the host's `eth0`.
fn link_address(host: &Host) -> Result<[u8; 6]> {
    let output = host.command("ip")?.args(["-o", "link", "show", "eth0"]).output().context("running ip")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let address = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no link address")?;
    let octets: Result<Vec<u8>, _> = address.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect();
    octets?.try_into().ok().with_context(|| format!("link address {address}"))
}
