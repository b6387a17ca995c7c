//! Packets of the node's own sockets that no connect hook saw: the kernel leaves their checksums to the device, and sends TCP in
//! packets larger than the link.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    flow::next_segment,
    leg::{Leg, Side, socket},
};
use crate::tap::{
    Tap,
    packet::{Checksum, Segment, Transport},
};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PUSH: u8 = 0x08;
/// Several segments, and within the first congestion window.
const LENGTH: usize = 5000;
const LIMIT: Duration = Duration::from_secs(2);

/// Sockets of this process are in no cgroup of the node, as those that are older than the hooks.
pub(super) async fn packets() -> Result<()> {
    let leg = Leg::start().await?;
    for offloads in [true, false] {
        leg.set_offloads(offloads)?;
        for prefix in ["10.96.0.", "fd00:10:96::"] {
            for (service, side) in [(1, Side::Pod), (2, Side::Uplink)] {
                let to = socket(prefix, service)?;
                datagrams(&leg, to, side, offloads).with_context(|| format!("UDP to {to}, offloads {offloads}"))?;
                connection(&leg, to, side, offloads).with_context(|| format!("TCP to {to}, offloads {offloads}"))?;
            }
        }
    }
    Ok(())
}

fn datagrams(leg: &Leg, to: SocketAddr, side: Side, offloads: bool) -> Result<()> {
    let tap = leg.tap(side);
    tap.drain()?;
    let question = vec![0x33; 1001];
    let socket = leg.stage.node("node-1")?.in_netns(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind(any(to))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send(&question)?;
        Ok(socket)
    })??;
    let (arrived, checksum, _) = next_segment(tap)?;
    ensure!(arrived.payload == question, "another question arrived");
    ensure!(checksum == if offloads { Checksum::Partial } else { Checksum::Complete }, "{checksum:?}");
    let answer =
        Segment { src: arrived.dst, dst: arrived.src, transport: Transport::Udp, payload: b"an answer".to_vec() };
    for checksum in [Checksum::Complete, Checksum::Partial] {
        tap.send(&answer.frame(checksum))?;
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).with_context(|| format!("the answer with a {checksum:?} checksum"))?;
        ensure!(buffer[..length] == answer.payload, "another answer arrived");
    }
    Ok(())
}

fn connection(leg: &Leg, to: SocketAddr, side: Side, offloads: bool) -> Result<()> {
    let tap = leg.tap(side);
    tap.drain()?;
    let node = leg.stage.node("node-1")?;
    let client = move || -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, LIMIT).context("connecting")?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(&[0x44; LENGTH])?;
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).context("reading the answer")?;
        ensure!(answer == *b"an answer", "another answer arrived");
        Ok(())
    };
    thread::scope(|scope| {
        let client = scope.spawn(move || node.in_netns(client)?);
        let served = serve(tap, offloads);
        let called = client.join().map_err(|_| anyhow!("the client panicked"))?;
        served.and(called)
    })
}

/// The endpoint's part of a connection.
fn serve(tap: &Tap, offloads: bool) -> Result<()> {
    let (syn, _, _) = next_segment(tap).context("waiting for a SYN")?;
    let Transport::Tcp { flags: SYN, seq, .. } = syn.transport else { anyhow::bail!("instead of a SYN: {syn:?}") };
    let start = seq.wrapping_add(1);
    let answer = |flags, seq, ack, payload: &[u8]| Segment {
        src: syn.dst,
        dst: syn.src,
        transport: Transport::Tcp { flags, seq, ack },
        payload: payload.to_vec(),
    };
    tap.send(&answer(SYN | ACK, 100, start, &[]).frame(Checksum::Complete))?;
    let (mut received, mut cut_later) = (0, false);
    while received < LENGTH {
        let (segment, checksum, gso_size) = next_segment(tap).context("waiting for data")?;
        let Transport::Tcp { seq, .. } = segment.transport else { continue };
        ensure!((segment.src, segment.dst) == (syn.src, syn.dst), "{} > {}", segment.src, segment.dst);
        ensure!(checksum == if offloads { Checksum::Partial } else { Checksum::Complete }, "{checksum:?}");
        // What was sent once more does not count.
        if seq == start.wrapping_add(received as u32) {
            ensure!(segment.payload.iter().all(|byte| *byte == 0x44), "other data arrived");
            received += segment.payload.len();
        }
        cut_later |= gso_size.is_some();
    }
    ensure!(cut_later == offloads, "packets to be cut by the device: {cut_later}");
    let ack = start.wrapping_add(LENGTH as u32);
    tap.send(&answer(ACK | PUSH, 101, ack, b"an answer").frame(Checksum::Complete))
}

fn any(like: SocketAddr) -> &'static str {
    if like.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
}
