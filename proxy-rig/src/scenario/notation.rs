//! The one-line notation of packets in scenario files: `tcp 203.0.113.9:40000 > [fd00::1]:80 syn ttl=64`.
//!
//! [`PacketSpec`] is what `send:` says and what frame.rs builds; [`TuplePattern`] is what `expect:` says.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use proxy_common::net::{ETH_P_8021AD, ETH_P_8021Q, ICMP, ICMPV6, SCTP, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP};

const TCP_PSH: u8 = 0x08;

/// A packet in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PacketSpec {
    pub(crate) protocol: u8,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) tcp_flags: u8,
    pub(crate) extras: Extras,
}

/// What makes a packet unusual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extras {
    pub(crate) payload_len: usize,
    pub(crate) ttl: u8,
    /// UDP over IPv4 without a checksum.
    pub(crate) no_checksum: bool,
    /// Bytes of IPv4 options (a multiple of 4).
    pub(crate) ip_options: usize,
    /// The IPv4 header length field, in words, if it is to be wrong.
    pub(crate) ihl: Option<u8>,
    /// The length field of the network header, if it is to be wrong.
    pub(crate) stated_len: Option<u16>,
    /// IPv6 extension headers in order (protocol numbers).
    pub(crate) extension_headers: Vec<u8>,
    pub(crate) fragment: FragmentSpec,
    /// Of a fragment. IPv4 has the low 16 bits.
    pub(crate) datagram_id: u32,
    /// Type of the chunk of an SCTP packet.
    pub(crate) sctp_chunk: u8,
    /// Type and code of an ICMP message; none: an echo request.
    pub(crate) icmp: Option<[u8; 2]>,
    /// Instead of `payload_len` letters.
    pub(crate) payload: Option<Vec<u8>>,
    /// VLAN tags in front of the network header, the outer first: EtherType and number.
    pub(crate) vlans: Vec<(u16, u16)>,
    /// The frame ends after this many bytes.
    pub(crate) cut: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FragmentSpec {
    Whole,
    First,
    Later,
}

impl Default for Extras {
    fn default() -> Self {
        Self {
            payload_len: 0,
            ttl: 64,
            no_checksum: false,
            ip_options: 0,
            ihl: None,
            stated_len: None,
            extension_headers: Vec::new(),
            fragment: FragmentSpec::Whole,
            datagram_id: 0x1234,
            sctp_chunk: 0,
            icmp: None,
            payload: None,
            vlans: Vec::new(),
            cut: None,
        }
    }
}

impl FromStr for PacketSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_packet_spec(text).with_context(|| format!("packet {text:?}"))
    }
}

fn parse_packet_spec(text: &str) -> Result<PacketSpec> {
    let mut words = text.split_whitespace();
    let protocol = protocol(words.next().context("expected a protocol")?)?;
    let src = socket_address(words.next().context("expected a source")?)?;
    if words.next() != Some(">") {
        bail!("expected `>` after the source");
    }
    let dst = socket_address(words.next().context("expected a destination")?)?;
    if src.is_ipv4() != dst.is_ipv4() {
        bail!("source and destination are of different families");
    }
    let mut packet = PacketSpec { protocol, src, dst, tcp_flags: 0, extras: Extras::default() };
    for word in words {
        packet.add(word)?;
    }
    if packet.protocol == TCP && packet.tcp_flags == 0 {
        packet.tcp_flags = TCP_ACK;
    }
    Ok(packet)
}

impl PacketSpec {
    /// Takes over a word of `send:` after the addresses.
    pub(super) fn add(&mut self, word: &str) -> Result<()> {
        if self.protocol == SCTP
            && let Some(chunk) = sctp_chunk(word)
        {
            self.extras.sctp_chunk = chunk;
            return Ok(());
        }
        if let Some(flags) = tcp_flags(word) {
            if self.protocol != TCP {
                bail!("{word} on a packet that is not TCP");
            }
            self.tcp_flags = flags;
            if word == "data" && self.extras.payload_len == 0 {
                self.extras.payload_len = 8;
            }
            return Ok(());
        }
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let extras = &mut self.extras;
        match name {
            "len" => extras.payload_len = value.parse()?,
            "ttl" => extras.ttl = value.parse()?,
            "no-checksum" => extras.no_checksum = true,
            "ip-options" => extras.ip_options = value.parse()?,
            "stated-len" => extras.stated_len = Some(value.parse()?),
            "ihl" => extras.ihl = Some(value.parse()?),
            "first-fragment" => extras.fragment = FragmentSpec::First,
            "later-fragment" => extras.fragment = FragmentSpec::Later,
            "id" => extras.datagram_id = value.parse()?,
            "vlan" => extras.vlans.push((ETH_P_8021Q, value.parse()?)),
            "provider-vlan" => extras.vlans.push((ETH_P_8021AD, value.parse()?)),
            "cut" => extras.cut = Some(value.parse()?),
            other => {
                let header = extension_header(other).with_context(|| format!("unknown word {word:?}"))?;
                let times = if value.is_empty() { 1 } else { value.parse()? };
                extras.extension_headers.extend(std::iter::repeat_n(header, times));
            }
        }
        Ok(())
    }
}

/// Type and code of the ICMP errors by name: RFC 792, RFC 4443.
pub(super) fn icmp_error(word: &str, v4: bool) -> Result<[u8; 2]> {
    Ok(match (word, v4) {
        ("unreachable", true) => [3, 3],
        ("unreachable", false) => [1, 4],
        ("too-big", true) => [3, 4],
        ("too-big", false) => [2, 0],
        ("time-exceeded", true) => [11, 0],
        ("time-exceeded", false) => [3, 0],
        ("parameter-problem", true) => [12, 0],
        ("parameter-problem", false) => [4, 0],
        ("redirect", true) => [5, 0],
        _ => bail!("unknown ICMP error {word:?}"),
    })
}

fn extension_header(word: &str) -> Option<u8> {
    // RFC 8200 section 4.1, RFC 4302.
    Some(match word {
        "hop-by-hop" => 0,
        "routing" => 43,
        "ah" => 51,
        "destination-options" => 60,
        _ => return None,
    })
}

/// RFC 9260 section 3.2.
const SCTP_CHUNKS: [(&str, u8); 13] = [
    ("data", 0),
    ("init", 1),
    ("init-ack", 2),
    ("sack", 3),
    ("heartbeat", 4),
    ("heartbeat-ack", 5),
    ("abort", 6),
    ("shutdown", 7),
    ("shutdown-ack", 8),
    ("error", 9),
    ("cookie-echo", 10),
    ("cookie-ack", 11),
    ("shutdown-complete", 14),
];

fn sctp_chunk(word: &str) -> Option<u8> {
    SCTP_CHUNKS.iter().find(|(name, _)| *name == word).map(|(_, number)| *number)
}

pub(super) fn sctp_chunk_word(number: u8) -> &'static str {
    SCTP_CHUNKS.iter().find(|(_, it)| *it == number).map_or("chunk", |(name, _)| name)
}

pub(super) fn tcp_flags(word: &str) -> Option<u8> {
    Some(match word {
        "syn" => TCP_SYN,
        "synack" => TCP_SYN | TCP_ACK,
        "ack" => TCP_ACK,
        "data" => TCP_PSH | TCP_ACK,
        "fin" => TCP_FIN | TCP_ACK,
        "rst" => TCP_RST,
        _ => return None,
    })
}

/// The inverse of [`tcp_flags`].
pub(super) fn tcp_flags_word(flags: u8) -> &'static str {
    match flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST | TCP_PSH) {
        f if f & TCP_RST != 0 => "rst",
        f if f & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK => "synack",
        f if f & TCP_SYN != 0 => "syn",
        f if f & TCP_FIN != 0 => "fin",
        f if f & TCP_PSH != 0 => "data",
        _ => "ack",
    }
}

pub(super) fn protocol(word: &str) -> Result<u8> {
    Ok(match word {
        "tcp" => TCP,
        "udp" => UDP,
        "sctp" => SCTP,
        "icmp" => ICMP,
        "icmpv6" => ICMPV6,
        other => match other.strip_prefix("proto=") {
            Some(number) => number.parse()?,
            None => bail!("unknown protocol {other:?}"),
        },
    })
}

pub(super) fn protocol_word(number: u8) -> String {
    match number {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        SCTP => "sctp".to_owned(),
        ICMP => "icmp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        other => format!("proto={other}"),
    }
}

/// `a.b.c.d:port`, `[v6]:port`, or an address alone (port 0).
pub(super) fn socket_address(text: &str) -> Result<SocketAddr> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address: IpAddr = bare.parse().with_context(|| format!("expected an address, got {text:?}"))?;
    Ok(SocketAddr::new(address, 0))
}

/// Protocol, source and destination of an expected packet; `*` stands for any port, or any address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TuplePattern {
    protocol: u8,
    src: EndPattern,
    dst: EndPattern,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct EndPattern {
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl TuplePattern {
    /// From `tcp SRC > DST`.
    pub(super) fn parse(words: &[&str]) -> Result<Self> {
        let [proto, src, ">", dst] = words else { bail!("expected `PROTOCOL SRC > DST`, got {words:?}") };
        Ok(Self { protocol: protocol(proto)?, src: EndPattern::parse(src)?, dst: EndPattern::parse(dst)? })
    }

    pub(super) fn new(protocol: u8, src: &str, dst: &str) -> Result<Self> {
        Ok(Self { protocol, src: EndPattern::parse(src)?, dst: EndPattern::parse(dst)? })
    }

    pub(super) fn matches(&self, protocol: u8, src: SocketAddr, dst: SocketAddr) -> bool {
        self.protocol == protocol && self.src.matches(src) && self.dst.matches(dst)
    }
}

impl EndPattern {
    fn parse(text: &str) -> Result<Self> {
        if text == "*" {
            return Ok(Self { address: None, port: None });
        }
        match text.strip_suffix(":*") {
            Some(address) => Ok(Self { address: Some(socket_address(address)?.ip()), port: None }),
            None => {
                let address = socket_address(text)?;
                Ok(Self { address: Some(address.ip()), port: Some(address.port()) })
            }
        }
    }

    fn matches(&self, address: SocketAddr) -> bool {
        self.address.is_none_or(|wanted| wanted == address.ip()) && self.port.is_none_or(|port| port == address.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_in_words() {
        let packet: PacketSpec = "tcp 203.0.113.9:40000 > 192.0.2.127:8765 syn ttl=3 len=5".parse().unwrap();
        assert_eq!((packet.protocol, packet.tcp_flags), (TCP, TCP_SYN));
        assert_eq!((packet.extras.ttl, packet.extras.payload_len), (3, 5));
        let packet: PacketSpec = "udp [fd00::9]:5 > [fd00::1]:53 hop-by-hop destination-options=2".parse().unwrap();
        assert_eq!(packet.extras.extension_headers, [0, 60, 60]);
        for wrong in ["tcp 1.2.3.4:5 > [::1]:6", "udp 1.2.3.4:5 > 1.2.3.4:6 syn", "tcp 1.2.3.4:5 1.2.3.4:6", "tcp"] {
            assert!(wrong.parse::<PacketSpec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn patterns() {
        let pattern = TuplePattern::parse(&["tcp", "192.168.1.10:*", ">", "*"]).unwrap();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(pattern.matches(TCP, at("192.168.1.10:61000"), at("10.0.0.1:80")));
        assert!(!pattern.matches(TCP, at("192.168.1.11:61000"), at("10.0.0.1:80")));
        assert!(!pattern.matches(UDP, at("192.168.1.10:61000"), at("10.0.0.1:80")));
    }
}
