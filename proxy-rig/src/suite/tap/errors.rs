//! ICMP errors: Weir's own refusals of packets of every shape, and errors of others about translated packets, whose quotes are
//! whole, so that the quoted checksums can be judged too.

use std::{net::SocketAddr, thread, time::Instant};

use anyhow::{Context, Result, ensure};

use super::{
    flow::{Direction, Flow},
    leg::{Leg, ROUTER, Side, Way, ip, socket},
};
use crate::tap::{
    Tap,
    packet::{Checksum, Frame, IcmpError, Seen, Segment, TCP, Transport, UDP},
};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Of the Service without endpoints.
const NODE_PORT: u16 = 30085;

/// Bytes of the quoted packet's network header and eight more: what RFC 792 asks for at least.
fn shortest(v6: bool) -> usize {
    if v6 { 40 + 8 } else { 20 + 8 }
}

pub(super) async fn refusals() -> Result<()> {
    let leg = Leg::start().await?;
    for offloads in [true, false] {
        leg.set_offloads(offloads)?;
        for v6 in [false, true] {
            let cluster_ip = socket(["10.96.0.", "fd00:10:96::"][usize::from(v6)], 5)?;
            let node_port = SocketAddr::new(leg.node(v6)?, NODE_PORT);
            for (side, frontend) in [(Side::Uplink, node_port), (Side::Pod, cluster_ip)] {
                let ways = if side == Side::Pod { leg.ways_from_pod()? } else { leg.ways_from_outside(false)? };
                let way = ways.iter().find(|way| way.client.is_ipv6() == v6).context("no such way")?;
                let client = SocketAddr::new(way.client, leg.new_port());
                refuse_all(leg.tap(side), client, frontend)
                    .with_context(|| format!("{client} -> {frontend}, offloads {offloads}"))?;
            }
        }
    }
    Ok(())
}

/// More packets than a node answers in the time that they take: at most 1,000 a second and CPU.
pub(super) async fn limit() -> Result<()> {
    const PACKETS: usize = 12_000;
    let leg = Leg::start().await?;
    let ways = leg.ways_from_outside(false)?;
    let way = ways.first().context("no way")?;
    let started = Instant::now();
    let mut answers = 0;
    for _ in 0..PACKETS {
        let src = SocketAddr::new(way.client, leg.new_port());
        let dst = SocketAddr::new(leg.node(false)?, NODE_PORT);
        let datagram = Segment { src, dst, transport: Transport::Udp, payload: Vec::new() };
        leg.uplink.send(&datagram.frame(Checksum::Complete))?;
        while let Some(frame) = leg.uplink.poll()? {
            answers += usize::from(matches!(frame.examine()?, Seen::Error(_)));
        }
    }
    let cpus = thread::available_parallelism()?.get();
    let seconds = usize::try_from(started.elapsed().as_secs())? + 2;
    ensure!(answers >= 1000, "{answers} answers to {PACKETS} packets");
    ensure!(answers <= 1000 * cpus * seconds && answers < PACKETS, "{answers} answers in {:?}", started.elapsed());
    let output = leg.stage.node("node-1")?.weir("status", &[])?;
    let status = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(status.contains("reply-limited"), "nothing of it in the status:\n{status}");
    Ok(())
}

fn refuse_all(tap: &Tap, client: SocketAddr, frontend: SocketAddr) -> Result<()> {
    let segment = |transport, length| Segment { src: client, dst: frontend, transport, payload: vec![0x5a; length] };
    let syn = segment(Transport::Tcp { flags: SYN, seq: 7, ack: 0 }, 0);
    let datagram = segment(Transport::Udp, 33);
    let large = segment(Transport::Udp, 30_000);
    let mut frames = vec![("a cut datagram", large.gso_frame(1400), &large)];
    for checksum in [Checksum::Complete, Checksum::Partial] {
        frames.push(("SYN", syn.frame(checksum), &syn));
        frames.push(("datagram", datagram.frame(checksum), &datagram));
    }
    for (what, frame, segment) in frames {
        let error = ask(tap, &frame, tap).with_context(|| format!("{what}, {:?}", frame.vnet))?;
        ensure!(error.kind == IcmpError::port_unreachable(client.is_ipv6()), "{what}: {error:?}");
        ensure!((error.src, error.dst) == (frontend.ip(), client.ip()), "{what}: {error:?}");
        ensure!(error.quoted_ends()? == (client, frontend), "{what}: {error:?}");
        if segment.protocol() == TCP {
            // Quoted whole.
            ensure!(error.quoted()? == *segment, "{what}: {error:?}");
        }
    }
    Ok(())
}

pub(super) async fn translated() -> Result<()> {
    let leg = Leg::start().await?;
    let mut ways = leg.ways_from_outside(false)?;
    ways.extend(leg.ways_from_outside(true)?);
    ways.extend(leg.ways_from_pod()?);
    for offloads in [true, false] {
        leg.set_offloads(offloads)?;
        for way in &ways {
            for protocol in [TCP, UDP] {
                about_flow(&leg, way, protocol, offloads).with_context(|| {
                    format!("{}, {} -> {}, protocol {protocol}", way.title, way.client, way.frontend)
                })?;
            }
        }
    }
    Ok(())
}

/// Errors about packets of one flow, sent by the packet's receiver and by a router before it.
fn about_flow(leg: &Leg, way: &Way, protocol: u8, offloads: bool) -> Result<()> {
    let flow = Flow::open(leg, way, protocol, offloads)?;
    let v6 = way.client.is_ipv6();
    for direction in [Direction::Forward, Direction::Back] {
        let (src, dst) = flow.ends(direction);
        let (seen_src, seen_dst) = flow.far_ends(direction);
        let (near, far) = match direction {
            Direction::Forward => (way.from, way.to),
            Direction::Back => (way.to, way.from),
        };
        let mut senders = vec![(seen_dst.ip(), dst.ip())];
        if far == Side::Uplink {
            senders.push((ip(ROUTER, v6)?, ip(ROUTER, v6)?));
        }
        for (sender, shown) in senders {
            for whole in [true, false] {
                let packet = about(protocol, seen_src, seen_dst).packet(Checksum::Complete);
                let quote = if whole { packet } else { packet[..shortest(v6)].to_vec() };
                let kind = IcmpError::too_big(v6);
                let sent = IcmpError { src: sender, dst: seen_src.ip(), kind, quote };
                let error = ask(leg.tap(far), &sent.frame(), leg.tap(near))
                    .with_context(|| format!("{direction:?}, from {sender}, quoted whole: {whole}"))?;
                ensure!(error.kind == kind, "{error:?}");
                ensure!(error.dst == src.ip(), "it went to {} instead of {}", error.dst, src.ip());
                ensure!(error.src == shown, "from {sender}, it seems to come from {} instead of {shown}", error.src);
                ensure!(error.quoted_ends()? == (src, dst), "it quotes {:?}", error.quoted_ends()?);
                if whole {
                    ensure!(error.quoted()? == about(protocol, src, dst), "{error:?}");
                }
            }
        }
    }
    Ok(())
}

/// The packet that errors are about.
fn about(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Segment {
    let transport = if protocol == TCP { Transport::Tcp { flags: ACK, seq: 9, ack: 9 } } else { Transport::Udp };
    Segment { src, dst, transport, payload: b"longer than it may be".to_vec() }
}

/// Sends a frame; the next ICMP error that leaves by `far`.
fn ask(near: &Tap, frame: &Frame, far: &Tap) -> Result<IcmpError> {
    far.drain()?;
    near.send(frame)?;
    far.receive(|frame| match frame.examine() {
        Ok(Seen::Error(error)) => Some(Ok(error)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })?
}
