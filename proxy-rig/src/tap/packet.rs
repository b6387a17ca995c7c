//! Packets for a TAP device: built with complete, partial or no checksums, and examined. Owes nothing to the code under test:
//! every sum is taken over all bytes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result, bail, ensure};

use super::{FAR_MAC, NEAR_MAC};

const ETH: usize = 14;
const V4: usize = 20;
const V6: usize = 40;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// linux/virtio_net.h
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// struct virtio_net_hdr
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VnetHeader {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    pub(crate) gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

/// What a TAP device carries at once.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) vnet: VnetHeader,
    pub(crate) bytes: Vec<u8>,
}

/// What a packet says of its transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Complete,
    /// The sum of the pseudo-header: the device completes it.
    Partial,
    /// UDP over IPv4 without one.
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp { flags: u8, seq: u32, ack: u32 },
    Udp,
}

/// One TCP segment or datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
}

/// An ICMP or ICMPv6 error.
#[derive(Clone, Debug)]
pub(crate) struct IcmpError {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) kind: [u8; 2],
    /// From the network header on.
    pub(crate) quote: Vec<u8>,
}

/// What was read, with all checksums found right.
pub(crate) enum Seen {
    Segment {
        segment: Segment,
        checksum: Checksum,
        gso_size: Option<u16>,
    },
    Error(IcmpError),
    /// ARP, neighbour discovery and the like.
    Other,
}

/// A network header as it was read.
struct Network {
    protocol: u8,
    src: IpAddr,
    dst: IpAddr,
    /// Of the transport header.
    at: usize,
    /// Of the packet.
    end: usize,
}

impl VnetHeader {
    pub(crate) const LEN: usize = 10;

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, value) in [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].into_iter().enumerate() {
            bytes[2 + at * 2..4 + at * 2].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }
}

impl Segment {
    pub(crate) fn protocol(&self) -> u8 {
        if self.transport == Transport::Udp { UDP } else { TCP }
    }

    /// From the network header on, with this checksum.
    pub(crate) fn packet(&self, checksum: Checksum) -> Vec<u8> {
        let mut l4 = self.transport_bytes();
        let pseudo = pseudo_sum(self.src.ip(), self.dst.ip(), self.protocol(), l4.len());
        let value = match checksum {
            Checksum::None => 0,
            Checksum::Partial => pseudo,
            Checksum::Complete => match !sum(pseudo, &l4) {
                // RFC 768
                0 if self.protocol() == UDP => 0xffff,
                value => value,
            },
        };
        let at = self.checksum_offset();
        l4[at..at + 2].copy_from_slice(&value.to_be_bytes());
        let mut packet = network_header(self.src.ip(), self.dst.ip(), self.protocol(), l4.len());
        packet.extend(l4);
        packet
    }

    pub(crate) fn frame(&self, checksum: Checksum) -> Frame {
        let packet = self.packet(checksum);
        let csum_start = u16::try_from(ETH + self.network_len()).expect("invariant: headers are short");
        let vnet = match checksum {
            Checksum::Partial => VnetHeader {
                flags: NEEDS_CSUM,
                csum_start,
                csum_offset: u16::try_from(self.checksum_offset()).expect("invariant: it is 6 or 16"),
                ..VnetHeader::default()
            },
            _ => VnetHeader::default(),
        };
        Frame { vnet, bytes: link(&packet) }
    }

    /// One frame for the device to cut.
    pub(crate) fn gso_frame(&self, gso_size: u16) -> Frame {
        let mut frame = self.frame(Checksum::Partial);
        frame.vnet.gso_type = self.gso_type();
        frame.vnet.gso_size = gso_size;
        frame.vnet.hdr_len = frame.vnet.csum_start + if self.protocol() == TCP { 20 } else { 8 };
        frame
    }

    fn gso_type(&self) -> u8 {
        match (self.protocol(), self.src) {
            (TCP, SocketAddr::V4(_)) => GSO_TCPV4,
            (TCP, SocketAddr::V6(_)) => GSO_TCPV6,
            _ => GSO_UDP_L4,
        }
    }

    /// Makes the last two bytes of the payload (whose length is even) such that a packet with these ends has a checksum that
    /// is computed as zero.
    pub(crate) fn sum_to_zero(&mut self, src: SocketAddr, dst: SocketAddr) {
        let at = self.payload.len() - 2;
        self.payload[at..].fill(0);
        let as_if = Self { src, dst, ..self.clone() };
        let l4 = as_if.transport_bytes();
        let missing = !sum(pseudo_sum(src.ip(), dst.ip(), self.protocol(), l4.len()), &l4);
        self.payload[at..].copy_from_slice(&missing.to_be_bytes());
    }

    fn network_len(&self) -> usize {
        if self.src.is_ipv4() { V4 } else { V6 }
    }

    fn checksum_offset(&self) -> usize {
        if self.protocol() == TCP { 16 } else { 6 }
    }

    /// Header and payload, the checksum being zero.
    fn transport_bytes(&self) -> Vec<u8> {
        let mut bytes = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
        match self.transport {
            Transport::Tcp { flags, seq, ack } => {
                bytes.extend(seq.to_be_bytes());
                bytes.extend(ack.to_be_bytes());
                // Data offset 5, window 65,535, no checksum yet, no urgent data.
                bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            Transport::Udp => {
                let length = u16::try_from(8 + self.payload.len()).expect("invariant: it fits in a packet");
                bytes.extend(length.to_be_bytes());
                bytes.extend([0, 0]);
            }
        }
        bytes.extend(&self.payload);
        bytes
    }
}

impl IcmpError {
    pub(crate) fn frame(&self) -> Frame {
        let (protocol, pseudo) = match self.src {
            IpAddr::V4(_) => (ICMP, 0),
            IpAddr::V6(_) => (ICMPV6, pseudo_sum(self.src, self.dst, ICMPV6, 8 + self.quote.len())),
        };
        let mut message = vec![self.kind[0], self.kind[1], 0, 0, 0, 0, 0, 0];
        message.extend(&self.quote);
        let value = !sum(pseudo, &message);
        message[2..4].copy_from_slice(&value.to_be_bytes());
        let mut packet = network_header(self.src, self.dst, protocol, message.len());
        packet.extend(message);
        Frame { vnet: VnetHeader::default(), bytes: link(&packet) }
    }
}

impl Frame {
    /// Reads the frame; an error names what is wrong with it.
    pub(crate) fn examine(&self) -> Result<Seen> {
        let Some(network) = self.network() else { return Ok(Seen::Other) };
        let Network { protocol, src, dst, at, end } = network?;
        let l4 = self.bytes.get(at..end).context("the packet is longer than the frame")?;
        match protocol {
            TCP | UDP => self.transport(protocol, src, dst, at, l4),
            ICMP | ICMPV6 => {
                let pseudo = if protocol == ICMPV6 { pseudo_sum(src, dst, protocol, l4.len()) } else { 0 };
                let completed = self.completed(end);
                let l4 = &completed[at..end];
                ensure!(l4.len() >= 8 && sum(pseudo, l4) == 0xffff, "the ICMP checksum is wrong: {}", hex(l4));
                let error = if protocol == ICMP { matches!(l4[0], 3 | 11) } else { l4[0] < 128 };
                if !error {
                    return Ok(Seen::Other);
                }
                Ok(Seen::Error(IcmpError { src, dst, kind: [l4[0], l4[1]], quote: l4[8..].to_vec() }))
            }
            _ => Ok(Seen::Other),
        }
    }

    /// The frame after a device did what the header asks for. An ICMP error may quote a packet whose checksum was partial.
    fn completed(&self, end: usize) -> Vec<u8> {
        let mut bytes = self.bytes[..end].to_vec();
        let (start, at) =
            (usize::from(self.vnet.csum_start), usize::from(self.vnet.csum_start + self.vnet.csum_offset));
        if self.vnet.flags & NEEDS_CSUM != 0 && at + 2 <= end {
            let value = match !sum(0, &bytes[start..]) {
                0 => 0xffff,
                value => value,
            };
            bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    fn transport(&self, protocol: u8, src: IpAddr, dst: IpAddr, at: usize, l4: &[u8]) -> Result<Seen> {
        let check_at = if protocol == TCP { 16 } else { 6 };
        let field = word(l4, check_at).context("a cut transport header")?;
        let pseudo = pseudo_sum(src, dst, protocol, l4.len());
        let checksum = if self.vnet.flags & NEEDS_CSUM != 0 {
            let (start, offset) = (usize::from(self.vnet.csum_start), usize::from(self.vnet.csum_offset));
            ensure!((start, offset) == (at, check_at), "the device is to complete a checksum at {start} + {offset}");
            // Zero and 0xffff are one number in this arithmetic.
            ensure!(
                field == pseudo || field == !pseudo && pseudo == 0,
                "partial {field:#06x} instead of {pseudo:#06x}"
            );
            Checksum::Partial
        } else if protocol == UDP && field == 0 {
            ensure!(src.is_ipv4(), "UDP over IPv6 without a checksum");
            Checksum::None
        } else {
            let off = sum(pseudo, l4);
            ensure!(off == 0xffff, "the checksum {field:#06x} is wrong by {:#06x}: {self}", !off);
            Checksum::Complete
        };
        let ports = [word(l4, 0), word(l4, 2)].map(|port| port.expect("invariant: the checksum stands behind them"));
        let (transport, header) = if protocol == TCP {
            let number = |at: usize| u32::from_be_bytes([l4[at], l4[at + 1], l4[at + 2], l4[at + 3]]);
            (Transport::Tcp { flags: l4[13], seq: number(4), ack: number(8) }, usize::from(l4[12] >> 4) * 4)
        } else {
            let length = usize::from(word(l4, 4).expect("invariant: the checksum stands behind it"));
            ensure!(length == l4.len(), "a datagram of {length} bytes in {}", l4.len());
            (Transport::Udp, 8)
        };
        let segment = Segment {
            src: SocketAddr::new(src, ports[0]),
            dst: SocketAddr::new(dst, ports[1]),
            transport,
            payload: l4[header..].to_vec(),
        };
        let gso_size = match self.vnet.gso_type {
            0 => None,
            kind => {
                ensure!(kind == segment.gso_type(), "GSO type {kind} instead of {}", segment.gso_type());
                ensure!(checksum == Checksum::Partial, "a packet to be cut has a {checksum:?} checksum");
                Some(self.vnet.gso_size)
            }
        };
        Ok(Seen::Segment { segment, checksum, gso_size })
    }

    /// None if it is no IP packet.
    fn network(&self) -> Option<Result<Network>> {
        match word(&self.bytes, 12)? {
            0x0800 => Some(self.network_v4()),
            0x86dd => Some(self.network_v6()),
            _ => None,
        }
    }

    fn network_v4(&self) -> Result<Network> {
        let ip = self.bytes.get(ETH..ETH + V4).context("a cut IPv4 header")?;
        ensure!(ip[0] == 0x45, "an IPv4 header with options");
        ensure!(sum(0, ip) == 0xffff, "the IPv4 header checksum is wrong: {}", hex(ip));
        ensure!(word(ip, 6).is_some_and(|fragment| fragment & 0x3fff == 0), "a fragment");
        let address = |at: usize| IpAddr::from(Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]));
        let length = usize::from(word(ip, 2).context("length")?);
        Ok(Network { protocol: ip[9], src: address(12), dst: address(16), at: ETH + V4, end: ETH + length })
    }

    fn network_v6(&self) -> Result<Network> {
        let ip = self.bytes.get(ETH..ETH + V6).context("a cut IPv6 header")?;
        let address =
            |at: usize| -> Result<IpAddr> { Ok(Ipv6Addr::from(<[u8; 16]>::try_from(&ip[at..at + 16])?).into()) };
        let length = usize::from(word(ip, 4).context("length")?);
        Ok(Network { protocol: ip[6], src: address(8)?, dst: address(24)?, at: ETH + V6, end: ETH + V6 + length })
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}, {} bytes: {}", self.vnet, self.bytes.len(), hex(&self.bytes))
    }
}

impl IcmpError {
    /// The packet that is quoted whole.
    pub(crate) fn quoted(&self) -> Result<Segment> {
        match (Frame { vnet: VnetHeader::default(), bytes: link(&self.quote) }).examine()? {
            Seen::Segment { segment, .. } => Ok(segment),
            _ => bail!("an error that quotes neither TCP nor UDP"),
        }
    }

    /// Source and destination of a quote, of which eight bytes behind the network header are enough.
    pub(crate) fn quoted_ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        let frame = Frame { vnet: VnetHeader::default(), bytes: link(&self.quote) };
        let Network { src, dst, at, .. } = frame.network().context("a quote that is no IP packet")??;
        let port = |at: usize| word(&frame.bytes, at).context("a quote without ports");
        Ok((SocketAddr::new(src, port(at)?), SocketAddr::new(dst, port(at + 2)?)))
    }

    /// What such an error says: "packet too big".
    pub(crate) fn too_big(v6: bool) -> [u8; 2] {
        if v6 { [2, 0] } else { [3, 4] }
    }

    pub(crate) fn port_unreachable(v6: bool) -> [u8; 2] {
        if v6 { [1, 4] } else { [3, 3] }
    }
}

fn link(packet: &[u8]) -> Vec<u8> {
    let ether_type: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&NEAR_MAC[..], &FAR_MAC, &ether_type, packet].concat()
}

fn network_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let length = u16::try_from(length).expect("invariant: it fits in a packet");
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = (length + 20).to_be_bytes();
            // Don't fragment; TTL 64.
            let mut header = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
            header.extend(src.octets());
            header.extend(dst.octets());
            let check = !sum(0, &header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let length = length.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        _ => unreachable!("both ends are of one family"),
    }
}

/// One's complement sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo_sum(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let length = u32::try_from(length).expect("invariant: it fits in a packet").to_be_bytes();
    sum(u16::from(protocol), &[octets(src), octets(dst), length.to_vec()].concat())
}

/// One's complement sum of 16-bit words, an odd byte padded with zero.
fn sum(start: u16, bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(start, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// The start of some bytes.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(80).map(|byte| format!("{byte:02x}")).collect()
}
