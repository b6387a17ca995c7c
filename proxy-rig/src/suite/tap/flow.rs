//! One flow over one way: packets of every shape in both directions, each compared with what was sent.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::leg::{Leg, Source, Way};
use crate::tap::{
    Tap,
    packet::{Checksum, Seen, Segment, TCP, Transport, UDP},
};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PUSH: u8 = 0x08;

/// As a packet is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Complete,
    Partial,
    /// UDP over IPv4 without a checksum.
    NoChecksum,
    /// The checksum is computed as zero before the translation, complete.
    ZeroBefore,
    /// The same after the translation.
    ZeroAfter,
    /// The same, and the device has to compute it.
    ZeroAfterPartial,
    /// As large as a frame can be that a device takes whole (64 KiB with its link header); the device cuts it.
    Large,
    /// As large as a TCP packet can be: the kernel cuts it in any case.
    Largest,
}

impl Shape {
    fn is_cut(self) -> bool {
        matches!(self, Self::Large | Self::Largest)
    }
}

/// Payload of a segment of a large packet.
const GSO_SIZE: u16 = 1400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Back,
}

/// An open flow.
pub(super) struct Flow<'a> {
    leg: &'a Leg,
    pub(super) way: &'a Way,
    offloads: bool,
    protocol: u8,
    pub(super) client: SocketAddr,
    /// The client as the backend sees it.
    pub(super) seen: SocketAddr,
    /// What each side sent so far.
    sent: [u32; 2],
}

impl<'a> Flow<'a> {
    /// The first packet of the client, and over TCP the handshake.
    pub(super) fn open(leg: &'a Leg, way: &'a Way, protocol: u8, offloads: bool) -> Result<Self> {
        let client = SocketAddr::new(way.client, leg.new_port());
        leg.tap(way.from).drain()?;
        leg.tap(way.to).drain()?;
        let mut flow = Self { leg, way, offloads, protocol, client, seen: client, sent: [1000, 2000] };
        let first = flow.segment(Direction::Forward, SYN, if protocol == UDP { b"first".to_vec() } else { Vec::new() });
        leg.tap(way.from).send(&first.frame(Checksum::Partial))?;
        let (arrived, _, _) = next_segment(leg.tap(way.to))?;
        ensure!(arrived.dst == way.backend, "{} went to {} instead of {}", client, arrived.dst, way.backend);
        let source = leg.source(way)?;
        ensure!(arrived.src.ip() == source, "the backend sees {} instead of {source}", arrived.src);
        ensure!(way.source != Source::Client || arrived.src == client, "the port {} changed", arrived.src);
        ensure!(arrived.payload == first.payload && arrived.transport == first.transport, "{arrived:?} from {first:?}");
        flow.seen = arrived.src;
        flow.sent[0] += 1;
        if protocol == TCP {
            let answer = flow.segment(Direction::Back, SYN | ACK, Vec::new());
            flow.pass(Direction::Back, &answer, Shape::Complete).context("SYN+ACK")?;
            flow.sent[1] += 1;
            let ack = flow.segment(Direction::Forward, ACK, Vec::new());
            flow.pass(Direction::Forward, &ack, Shape::Partial).context("ACK")?;
        }
        Ok(flow)
    }

    /// A packet of that shape, with payload.
    pub(super) fn send(&mut self, direction: Direction, shape: Shape) -> Result<()> {
        let headers = if self.client.is_ipv4() { 20 + 20 } else { 40 + 20 };
        let length = match shape {
            Shape::Large if self.protocol == UDP => 42 * usize::from(GSO_SIZE) + 77,
            Shape::Large => 65_535 - 14 - headers,
            // The length in an IPv6 header does not count that header.
            Shape::Largest => 65_535 - headers + if self.client.is_ipv4() { 0 } else { 40 },
            _ => 301,
        };
        let mut payload: Vec<u8> = (0..length).map(|at| (at * 7 + at / 256) as u8).collect();
        let zero_for = match shape {
            Shape::ZeroBefore => Some(self.ends(direction)),
            Shape::ZeroAfter | Shape::ZeroAfterPartial => Some(self.far_ends(direction)),
            _ => None,
        };
        if zero_for.is_some() {
            payload.push(0);
        }
        let mut segment = self.segment(direction, ACK | PUSH, payload);
        if let Some((src, dst)) = zero_for {
            segment.sum_to_zero(src, dst);
        }
        self.pass(direction, &segment, shape)?;
        self.sent[direction as usize] += u32::try_from(segment.payload.len())?;
        Ok(())
    }

    /// Sends one packet in by one side and compares what leaves by the other.
    fn pass(&self, direction: Direction, segment: &Segment, shape: Shape) -> Result<()> {
        let frame = match shape {
            Shape::Complete | Shape::ZeroBefore | Shape::ZeroAfter => segment.frame(Checksum::Complete),
            Shape::Partial | Shape::ZeroAfterPartial => segment.frame(Checksum::Partial),
            Shape::NoChecksum => segment.frame(Checksum::None),
            Shape::Large | Shape::Largest => segment.gso_frame(GSO_SIZE),
        };
        let (near, far) = match direction {
            Direction::Forward => (self.way.from, self.way.to),
            Direction::Back => (self.way.to, self.way.from),
        };
        self.leg.tap(near).send(&frame)?;
        let (src, dst) = self.far_ends(direction);
        let mut arrived = Vec::new();
        loop {
            let (part, checksum, gso_size) = next_segment(self.leg.tap(far))?;
            ensure!(
                (part.src, part.dst) == (src, dst),
                "{} > {} left as {} > {}",
                segment.src,
                segment.dst,
                part.src,
                part.dst
            );
            ensure!(
                part.transport == following(segment, arrived.len(), shape, gso_size.is_some()),
                "{:?}",
                part.transport
            );
            self.compare(shape, checksum, gso_size, part.payload.len())?;
            arrived.extend(part.payload);
            if arrived.len() >= segment.payload.len() {
                break;
            }
        }
        ensure!(arrived == segment.payload, "another payload arrived");
        Ok(())
    }

    /// Whether a packet that arrived has the checksum and the size that the shape and the offloads ask for.
    fn compare(&self, shape: Shape, checksum: Checksum, gso_size: Option<u16>, length: usize) -> Result<()> {
        let wanted = match shape {
            Shape::NoChecksum => Checksum::None,
            Shape::Partial | Shape::ZeroAfterPartial | Shape::Large | Shape::Largest if self.offloads => {
                Checksum::Partial
            }
            _ => Checksum::Complete,
        };
        ensure!(checksum == wanted, "a {checksum:?} checksum instead of a {wanted:?} one");
        let whole = shape == Shape::Large && self.offloads;
        ensure!(gso_size == whole.then_some(GSO_SIZE), "GSO size {gso_size:?}");
        ensure!(whole || length <= usize::from(GSO_SIZE), "{length} bytes in one packet");
        Ok(())
    }

    fn segment(&self, direction: Direction, flags: u8, payload: Vec<u8>) -> Segment {
        let (src, dst) = self.ends(direction);
        let transport = if self.protocol == TCP {
            let [mine, others] = match direction {
                Direction::Forward => self.sent,
                Direction::Back => [self.sent[1], self.sent[0]],
            };
            Transport::Tcp { flags, seq: mine, ack: if flags & ACK == 0 { 0 } else { others } }
        } else {
            Transport::Udp
        };
        Segment { src, dst, transport, payload }
    }

    /// Source and destination where the packet comes in.
    pub(super) fn ends(&self, direction: Direction) -> (SocketAddr, SocketAddr) {
        match direction {
            Direction::Forward => (self.client, self.way.frontend),
            Direction::Back => (self.way.backend, self.seen),
        }
    }

    /// Source and destination where it leaves.
    pub(super) fn far_ends(&self, direction: Direction) -> (SocketAddr, SocketAddr) {
        match direction {
            Direction::Forward => (self.seen, self.way.backend),
            Direction::Back => (self.way.frontend, self.client),
        }
    }
}

/// The transport header that a part of a packet has, `offset` bytes into it.
fn following(segment: &Segment, offset: usize, shape: Shape, whole: bool) -> Transport {
    match segment.transport {
        Transport::Tcp { flags, seq, ack } => {
            // Only the last part of a cut packet has the PSH flag.
            let last = !shape.is_cut() || whole || offset + usize::from(GSO_SIZE) >= segment.payload.len();
            let flags = if last { flags } else { flags & !PUSH };
            Transport::Tcp { flags, seq: seq.wrapping_add(offset as u32), ack }
        }
        Transport::Udp => Transport::Udp,
    }
}

pub(super) fn next_segment(tap: &Tap) -> Result<(Segment, Checksum, Option<u16>)> {
    tap.receive(|frame| match frame.examine() {
        Ok(Seen::Segment { segment, checksum, gso_size }) => Some(Ok((segment, checksum, gso_size))),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })?
}
