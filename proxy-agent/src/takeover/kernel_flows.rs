//! The connections that the kernel's own connection tracking knows in this network namespace, by ctnetlink: those that
//! kube-proxy's rules translated live there.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};

/// One connection: the tuple of its first packet, and the tuple of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFlow {
    pub protocol: u8,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub answer_from: SocketAddr,
    pub answer_to: SocketAddr,
    /// Of enum tcp_conntrack; none for other protocols.
    pub tcp_state: Option<u8>,
}

impl KernelFlow {
    /// True if the kernel changes its packets.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.from != self.answer_to || self.to != self.answer_from
    }

    /// False for a TCP connection that both sides have closed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        const TIME_WAIT: u8 = 7;
        self.tcp_state.is_none_or(|state| state < TIME_WAIT)
    }
}

/// Connections of protocols with ports. An entry that is read while it changes may be missing.
pub fn kernel_flows() -> io::Result<Vec<KernelFlow>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&dump_request(), 0)?;
    let mut flows = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if take(&datagram, &mut flows)? {
            return Ok(flows);
        }
    }
}

const HEADER: usize = 16;
const NFGENMSG: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// Subsystem ctnetlink (1), IPCTNL_MSG_CT_GET (1).
const CT_GET: u16 = 0x0101;

/// struct nlmsghdr and struct nfgenmsg (AF_UNSPEC).
fn dump_request() -> Vec<u8> {
    let mut bytes = vec![0; HEADER + NFGENMSG];
    bytes[..4].copy_from_slice(&20_u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&CT_GET.to_ne_bytes());
    bytes[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes
}

/// The messages of one datagram. True at the end of the list.
fn take(mut rest: &[u8], flows: &mut Vec<KernelFlow>) -> io::Result<bool> {
    while let Some((header, _)) = rest.split_at_checked(HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(body) = rest.get(HEADER..length) else { return Err(io::ErrorKind::InvalidData.into()) };
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => flows.extend(body.get(NFGENMSG..).and_then(flow)),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;

fn flow(attributes: &[u8]) -> Option<KernelFlow> {
    let (protocol, from, to) = tuple(find(attributes, CTA_TUPLE_ORIG)?)?;
    let (_, answer_from, answer_to) = tuple(find(attributes, CTA_TUPLE_REPLY)?)?;
    // CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE.
    let tcp = find(attributes, 4).and_then(|info| find(info, 1));
    let tcp_state = tcp.and_then(|tcp| find(tcp, 1)).and_then(|state| state.first().copied());
    Some(KernelFlow { protocol, from, to, answer_from, answer_to, tcp_state })
}

/// Protocol, source and destination.
fn tuple(attributes: &[u8]) -> Option<(u8, SocketAddr, SocketAddr)> {
    const CTA_TUPLE_IP: u16 = 1;
    const CTA_TUPLE_PROTO: u16 = 2;
    let (ip, proto) = (find(attributes, CTA_TUPLE_IP)?, find(attributes, CTA_TUPLE_PROTO)?);
    // CTA_IP_V4_SRC, V4_DST, V6_SRC, V6_DST.
    let address = |v4: u16, v6: u16| match (find(ip, v4), find(ip, v6)) {
        (Some(octets), _) => Some(IpAddr::from(<[u8; 4]>::try_from(octets).map(Ipv4Addr::from).ok()?)),
        (None, octets) => Some(IpAddr::from(<[u8; 16]>::try_from(octets?).map(Ipv6Addr::from).ok()?)),
    };
    // CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT; ports in network order.
    let port = |kind: u16| find(proto, kind).and_then(|it| it.try_into().ok()).map(u16::from_be_bytes);
    let source = SocketAddr::new(address(1, 3)?, port(2)?);
    let destination = SocketAddr::new(address(2, 4)?, port(3)?);
    Some((*find(proto, 1)?.first()?, source, destination))
}

/// The value of the first attribute of a kind, without the flags in the kind's upper two bits.
fn find(mut rest: &[u8], kind: u16) -> Option<&[u8]> {
    while let Some((header, _)) = rest.split_at_checked(4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) & 0x3fff == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple_bytes(kind: u16, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        const NESTED: u16 = 0x8000;
        let ip = [attribute(1, &from.0), attribute(2, &to.0)].concat();
        let ports = [attribute(2, &from.1.to_be_bytes()), attribute(3, &to.1.to_be_bytes())].concat();
        let proto = [attribute(1, &[6]), ports].concat();
        attribute(NESTED | kind, &[attribute(NESTED | 1, &ip), attribute(NESTED | 2, &proto)].concat())
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((body.len() + HEADER) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_masqueraded_connection() {
        let (client, node, frontend, backend) =
            (([192, 0, 2, 1], 40000), ([172, 18, 0, 11], 62000), ([172, 18, 0, 11], 30080), ([10, 244, 2, 1], 8080));
        let state = attribute(0x8004, &attribute(0x8001, &attribute(1, &[3])));
        let (there, back) = (tuple_bytes(1, client, frontend), tuple_bytes(2, backend, node));
        let body = [vec![2, 0, 0, 0], there, attribute(3, &[0; 4]), back, state];
        let icmp = [vec![2, 0, 0, 0], attribute(1, &attribute(1, &[]))];
        let datagram = [message(0x100, &body.concat()), message(0x100, &icmp.concat()), message(NLMSG_DONE, &[0; 4])];
        let mut flows = Vec::new();
        assert!(take(&datagram.concat(), &mut flows).unwrap());
        assert_eq!(flows.len(), 1);
        assert_eq!(flows[0].to, "172.18.0.11:30080".parse().unwrap());
        assert_eq!(flows[0].answer_from, "10.244.2.1:8080".parse().unwrap());
        assert_eq!(flows[0].answer_to, "172.18.0.11:62000".parse().unwrap());
        assert!(flows[0].is_translated() && flows[0].is_open());
        assert_eq!(flows[0].tcp_state, Some(3));
    }

    #[test]
    fn errors_and_garbage() {
        let error = take(&message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes()), &mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        for length in 0..40_u8 {
            let mut bytes = vec![0xff; usize::from(length)];
            bytes.splice(0..bytes.len().min(4), u32::from(length).to_ne_bytes().into_iter().take(bytes.len().min(4)));
            let _ = take(&bytes, &mut Vec::new());
        }
    }

    #[test]
    fn the_kernel_lists_them() {
        if nix::unistd::geteuid().is_root() {
            kernel_flows().unwrap();
        }
    }
}
