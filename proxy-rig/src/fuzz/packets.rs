//! Random packets: clients to frontends, what left a hook on to the next one, answers to it, ICMP errors about it, packets
//! to ports of SNAT, of the node's own, and garbage; some made unusual, some broken.

use std::net::{IpAddr, SocketAddr};

use proxy_common::net::{
    ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, ICMP, ICMPV6, SCTP, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, UDP,
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::objects::{
    BACKENDS_V4, BACKENDS_V6, EXTERNAL_V4, EXTERNAL_V6, LB_V4, LB_V6, NODE_PORTS, PORTS, SERVICES, cluster_v4,
    cluster_v6,
};
use crate::scenario::{Extras, FragmentSpec, Hook, PacketSpec, Place, build, ether_type, tuple_of};

const INTERFACES: [&str; 5] = ["uplink", "uplink2", "overlay", "pod", "pod2"];
const CLIENTS_V4: [&str; 6] =
    ["203.0.113.1", "203.0.113.2", "192.168.1.77", "10.244.1.10", "10.244.2.20", "10.244.1.11"];
const CLIENTS_V6: [&str; 5] = ["2001:db8::1", "2001:db8::2", "fd00:1::77", "fd00:244:1::10", "fd00:244:2::20"];
const NODE_V4: [&str; 4] = ["192.168.1.10", "192.168.2.10", "10.244.1.1", "127.0.0.1"];
const NODE_V6: [&str; 4] = ["fd00:1::10", "fd00:2::10", "fd00:244:1::1", "::1"];
const CLIENT_PORTS: u16 = 24;
/// Frames that left a hook and may be taken up again.
const REMEMBERED: usize = 48;

pub(super) struct Packets {
    recent: Vec<Vec<u8>>,
    /// Only packets of this hook.
    hook: Option<Hook>,
}

impl Packets {
    pub(super) fn new(hook: Option<Hook>) -> Self {
        Self { recent: Vec::new(), hook }
    }

    /// A frame that left a hook.
    pub(super) fn left(&mut self, random: &mut StdRng, frame: Vec<u8>) {
        if self.recent.len() < REMEMBERED {
            self.recent.push(frame);
        } else {
            self.recent[random.random_range(0..REMEMBERED)] = frame;
        }
    }

    pub(super) fn next(&self, random: &mut StdRng) -> (Place, Vec<u8>) {
        let place = self.place(random);
        let recent = self.recent.choose(random);
        let mut frame = match (random.random_range(0..100), recent) {
            (0..20, Some(frame)) => frame.clone(),
            (20..45, Some(frame)) => continued(random, frame),
            (45..50, Some(frame)) => icmp_error(random, frame),
            (50..55, _) => build(&to_snat_port(random)),
            (55..58, _) => return (place, garbage(random)),
            _ => build(&to_frontend(random)),
        };
        if random.random_bool(0.06) {
            damage(random, &mut frame);
        }
        (place, frame)
    }

    fn place(&self, random: &mut StdRng) -> Place {
        let hook = self.hook.unwrap_or(if random.random_bool(0.5) { Hook::Ingress } else { Hook::Egress });
        let own = hook == Hook::Egress && random.random_bool(0.4);
        Place { interface: one(random, &INTERFACES).to_owned(), hook, own }
    }
}

fn one<T: Copy>(random: &mut StdRng, of: &[T]) -> T {
    *of.choose(random).expect("invariant: the pools are not empty")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("invariant: the pools hold addresses")
}

fn client(random: &mut StdRng, v6: bool) -> IpAddr {
    match random.random_range(0..20) {
        0 if v6 => IpAddr::from(random.random::<[u8; 16]>()),
        0 => IpAddr::from(random.random::<[u8; 4]>()),
        1 | 2 => address(if v6 { one(random, &NODE_V6) } else { one(random, &NODE_V4) }),
        _ => address(if v6 { one(random, &CLIENTS_V6) } else { one(random, &CLIENTS_V4) }),
    }
}

fn frontend(random: &mut StdRng, v6: bool) -> IpAddr {
    // One number more than there are Services: an address that is not in use.
    let number = random.random_range(0..=SERVICES);
    match (random.random_range(0..12), v6) {
        (0..5, false) => address(&cluster_v4(number)),
        (0..5, true) => address(&cluster_v6(number)),
        (5..8, false) => address(one(random, &NODE_V4)),
        (5..8, true) => address(one(random, &NODE_V6)),
        (8, false) => address(one(random, &EXTERNAL_V4)),
        (8, true) => address(one(random, &EXTERNAL_V6)),
        (9, false) => address(one(random, &LB_V4)),
        (9, true) => address(one(random, &LB_V6)),
        (10, false) => address(one(random, &BACKENDS_V4)),
        (10, true) => address(one(random, &BACKENDS_V6)),
        (_, false) => IpAddr::from(random.random::<[u8; 4]>()),
        (_, true) => IpAddr::from(random.random::<[u8; 16]>()),
    }
}

fn to_frontend(random: &mut StdRng) -> PacketSpec {
    let v6 = random.random_bool(0.4);
    let port = match random.random_range(0..11) {
        0..6 => one(random, &PORTS),
        6..9 => one(random, &NODE_PORTS),
        _ => random.random(),
    };
    let protocol = match random.random_range(0..20) {
        0..7 => TCP,
        7..12 => UDP,
        12..17 => SCTP,
        17 if v6 => ICMPV6,
        17 => ICMP,
        18 => one(random, &[ICMP, ICMPV6, 47, 4, 41, 0, 43, 44, 50, 51, 59, 60, 136]),
        _ => random.random(),
    };
    let src_port =
        if random.random_bool(0.05) { random.random() } else { 40000 + random.random_range(0..CLIENT_PORTS) };
    let src = SocketAddr::new(client(random, v6), src_port);
    let dst = SocketAddr::new(frontend(random, v6), port);
    spec(random, protocol, src, dst)
}

fn to_snat_port(random: &mut StdRng) -> PacketSpec {
    let v6 = random.random_bool(0.4);
    let dst = address(if v6 { one(random, &NODE_V6) } else { one(random, &NODE_V4) });
    let src = address(if v6 { one(random, &BACKENDS_V6) } else { one(random, &BACKENDS_V4) });
    let (src_port, dst_port) = (one(random, &PORTS), 61000 + random.random_range(0..64));
    let protocol = one(random, &[TCP, UDP, SCTP]);
    spec(random, protocol, SocketAddr::new(src, src_port), SocketAddr::new(dst, dst_port))
}

/// The same tuple once more, or the answer to it.
fn continued(random: &mut StdRng, frame: &[u8]) -> Vec<u8> {
    let Some((protocol, src, dst)) = tuple_of(frame) else { return frame.to_vec() };
    let (src, dst) = if random.random_bool(0.7) { (dst, src) } else { (src, dst) };
    build(&spec(random, protocol, src, dst))
}

fn spec(random: &mut StdRng, protocol: u8, src: SocketAddr, dst: SocketAddr) -> PacketSpec {
    let tcp_flags = match random.random_range(0..20) {
        0..7 => TCP_SYN,
        7..12 => TCP_ACK,
        12..14 => TCP_SYN | TCP_ACK,
        14..16 => TCP_FIN | TCP_ACK,
        16..18 => TCP_RST,
        _ => random.random(),
    };
    let mut extras = Extras { payload_len: one(random, &[0, 0, 1, 8, 33]), ..Extras::default() };
    if protocol == SCTP {
        extras.sctp_chunk = one(random, &[0, 1, 1, 1, 1, 2, 3, 5, 6, 8, 10, 14]);
    }
    if random.random_bool(0.25) {
        unusual(random, &mut extras);
    }
    PacketSpec { protocol, src, dst, tcp_flags, extras }
}

fn unusual(random: &mut StdRng, extras: &mut Extras) {
    for _ in 0..random.random_range(1..=2) {
        match random.random_range(0..10) {
            0 => extras.payload_len = random.random_range(0..1400),
            1 => extras.ttl = one(random, &[0, 1, 2, 255]),
            2 => extras.no_checksum = true,
            3 => extras.ip_options = 4 * random.random_range(1..=10),
            4 => extras.ihl = Some(random.random_range(0..16)),
            5 => {
                let times = random.random_range(1..=9);
                extras.extension_headers = (0..times).map(|_| one(random, &[0, 43, 51, 60])).collect();
            }
            6 | 7 => {
                extras.fragment = one(random, &[FragmentSpec::First, FragmentSpec::First, FragmentSpec::Later]);
                extras.datagram_id = random.random_range(1..6);
            }
            8 => {
                extras.stated_len =
                    Some(if random.random_bool(0.8) { random.random_range(0..100) } else { random.random() })
            }
            9 => {
                let tags = [(ETH_P_8021Q, 5), (ETH_P_8021Q, 0), (ETH_P_8021AD, 100)];
                extras.vlans = (0..random.random_range(1..3)).map(|_| one(random, &tags)).collect();
            }
            _ => extras.cut = Some(random.random_range(ETH_LEN..100)),
        }
    }
}

/// An error about a packet, sent by some router or host on its way to that packet's source.
fn icmp_error(random: &mut StdRng, frame: &[u8]) -> Vec<u8> {
    let Some((_, src, _)) = tuple_of(frame) else { return frame.to_vec() };
    let v6 = src.is_ipv6();
    let router = SocketAddr::new(client(random, v6), 0);
    let quoted = &frame[ETH_LEN..];
    let least = if v6 { 48 } else { 28 };
    let len = one(random, &[least, least + 12, quoted.len(), random.clone().random_range(0..=quoted.len())]);
    let quoted = &quoted[..len.min(quoted.len())];
    let protocol = if v6 { ICMPV6 } else { ICMP };
    let extras = Extras { payload_len: quoted.len(), ..Extras::default() };
    let mut error = build(&PacketSpec { protocol, src: router, dst: src, tcp_flags: 0, extras });
    let icmp = error.len() - quoted.len() - 8;
    let (kind, code) = if v6 {
        one(random, &[(1, 4), (1, 3), (2, 0), (3, 0), (4, 1), (128, 0), (129, 0)])
    } else {
        one(random, &[(3, 3), (3, 4), (3, 1), (11, 0), (12, 0), (5, 1), (8, 0), (0, 0)])
    };
    error[icmp] = kind;
    error[icmp + 1] = code;
    error[icmp + 4..icmp + 8].copy_from_slice(&[0, 0, 5, 0]);
    error[icmp + 8..].copy_from_slice(quoted);
    seal(&mut error, icmp, v6);
    error
}

/// The checksum of an ICMP message, computed anew.
fn seal(frame: &mut [u8], icmp: usize, v6: bool) {
    frame[icmp + 2..icmp + 4].copy_from_slice(&[0, 0]);
    let mut sum = 0;
    if v6 {
        sum = proxy_common::net::sum_words(0, &frame[ETH_LEN + 8..ETH_LEN + 40]);
        sum += u32::from(ICMPV6) + (frame.len() - icmp) as u32;
    }
    let check = proxy_common::net::checksum(sum, &frame[icmp..]);
    frame[icmp + 2..icmp + 4].copy_from_slice(&check.to_be_bytes());
}

fn garbage(random: &mut StdRng) -> Vec<u8> {
    let len = random.random_range(ETH_LEN..160);
    let mut frame: Vec<u8> = (0..len).map(|_| random.random()).collect();
    let ether_type: u16 = one(random, &[0x0800, 0x0800, 0x86dd, 0x86dd, 0x0806, 0x8864, 0x8100, 0x88a8]);
    frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    if random.random_bool(0.7) && len > ETH_LEN {
        frame[ETH_LEN] = if ether_type == 0x0800 { 0x45 } else { 0x60 };
    }
    frame
}

/// Bytes overwritten behind the link header, or the end cut off.
fn damage(random: &mut StdRng, frame: &mut Vec<u8>) {
    if random.random_bool(0.3) {
        let len = random.random_range(ETH_LEN..=frame.len());
        frame.truncate(len);
        return;
    }
    // A second VLAN tag or another family in the frame would only be "not IP".
    if ether_type(frame).is_none() || frame.len() <= ETH_LEN {
        return;
    }
    for _ in 0..random.random_range(1..=3) {
        let at = random.random_range(ETH_LEN..frame.len().min(ETH_LEN + 64));
        frame[at] =
            if random.random_bool(0.5) { random.random() } else { frame[at] ^ (1 << random.random_range(0..8)) };
    }
}
