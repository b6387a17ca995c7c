//! The frames of the agent's own questions to the kernel programs: first packets of a flow, from an address that nobody has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::net::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, TCP, TCP_SYN, checksum, fold, sum_words};

/// RFC 7600: no interface ever has it.
const CLIENT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8));
/// RFC 6666: discarded everywhere.
const CLIENT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));
/// RFC 863: discard.
const CLIENT_PORT: u16 = 9;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;

/// A SYN or an empty datagram.
pub(super) fn first_packet(to: SocketAddr, protocol: u8) -> Vec<u8> {
    let client = if to.is_ipv4() { CLIENT_V4 } else { CLIENT_V6 };
    let mut l4 = Vec::with_capacity(TCP_LEN);
    l4.extend(CLIENT_PORT.to_be_bytes());
    l4.extend(to.port().to_be_bytes());
    if protocol == TCP {
        l4.extend([0; 8]);
        l4.extend([(TCP_LEN as u8 / 4) << 4, TCP_SYN, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        l4.extend((UDP_LEN as u16).to_be_bytes());
        l4.extend([0, 0]);
    }
    let sum = checksum(pseudo_header(client, to.ip(), protocol, l4.len()), &l4);
    let at = checksum_offset(protocol);
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());

    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (client, to.ip()) {
        (IpAddr::V4(client), IpAddr::V4(to)) => {
            frame.extend(ETH_P_IP.to_be_bytes());
            let len = (IPV4_LEN + l4.len()) as u16;
            let mut header = vec![0x45, 0];
            header.extend(len.to_be_bytes());
            header.extend([0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            header.extend(client.octets());
            header.extend(to.octets());
            let sum = checksum(0, &header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (client, to) => {
            frame.extend(ETH_P_IPV6.to_be_bytes());
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((l4.len() as u16).to_be_bytes());
            frame.extend([protocol, HOP_LIMIT]);
            frame.extend(octets(client));
            frame.extend(octets(to));
        }
    }
    frame.extend(l4);
    frame
}

/// Where a packet goes that began as [`first_packet`]. Whatever else has changed in it is an error, in words.
pub(super) fn destination(frame: &[u8], protocol: u8) -> Result<SocketAddr, &'static str> {
    let short = "the packet was cut";
    let version = frame.get(ETH_LEN).ok_or(short)? >> 4;
    let (ip, l4) = frame[ETH_LEN..].split_at_checked(if version == 4 { IPV4_LEN } else { IPV6_LEN }).ok_or(short)?;
    let (source, to) = if version == 4 {
        let address = |at: usize| -> Option<IpAddr> { Some(<[u8; 4]>::try_from(&ip[at..at + 4]).ok()?.into()) };
        (address(12), address(16))
    } else {
        let address = |at: usize| -> Option<IpAddr> { Some(<[u8; 16]>::try_from(&ip[at..at + 16]).ok()?.into()) };
        (address(8), address(24))
    };
    let (source, to) = source.zip(to).ok_or(short)?;
    let port = u16::from_be_bytes([*l4.get(2).ok_or(short)?, l4[3]]);
    if source != (if version == 4 { CLIENT_V4 } else { CLIENT_V6 }) {
        return Err("the source was changed");
    }
    if version == 4 && fold(sum_words(0, ip)) != u16::MAX {
        return Err("the checksum of the IPv4 header is wrong");
    }
    if fold(sum_words(pseudo_header(source, to, protocol, l4.len()), l4)) != u16::MAX {
        return Err("the checksum of the TCP or UDP header is wrong");
    }
    Ok(SocketAddr::new(to, port))
}

fn checksum_offset(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

fn pseudo_header(source: IpAddr, to: IpAddr, protocol: u8, len: usize) -> u32 {
    let sum = sum_words(sum_words(0, &octets(source)), &octets(to));
    sum_words(sum, &[0, protocol, (len >> 8) as u8, len as u8])
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::net::{Packet, UDP, V4, V6, parse_packet};

    use super::*;

    #[test]
    fn frames_are_what_the_programs_read() {
        for (to, protocol) in
            [("10.96.0.1:80", TCP), ("10.96.0.10:53", UDP), ("[fd00::1]:80", TCP), ("[fd00::a]:53", UDP)]
        {
            let to: SocketAddr = to.parse().unwrap();
            let frame = first_packet(to, protocol);
            assert_eq!(destination(&frame, protocol), Ok(to));
            let mut broken = frame.clone();
            *broken.last_mut().unwrap() ^= 1;
            assert!(destination(&broken, protocol).is_err());
            assert!(destination(&frame[..30], protocol).is_err());
            let (port, syn) = if to.is_ipv4() {
                let mut packet = Packet::<V4>::EMPTY;
                parse_packet(frame.as_slice(), ETH_LEN, &mut packet).unwrap();
                (packet.tuple.dst_port, packet.is_syn())
            } else {
                let mut packet = Packet::<V6>::EMPTY;
                parse_packet(frame.as_slice(), ETH_LEN, &mut packet).unwrap();
                (packet.tuple.dst_port, packet.is_syn())
            };
            assert_eq!((port, syn), (to.port(), protocol == TCP));
        }
    }
}
