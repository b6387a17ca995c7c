//! UDP sockets of one network namespace by netlink sock_diag: list the connected ones, end one. `ender` and `probe` call it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

#[derive(Debug, thiserror::Error)]
pub(super) enum DiagError {
    #[error("open a sock_diag socket: {0}")]
    Open(#[source] io::Error),
    #[error("talk to the kernel's sock_diag: {0}")]
    Talk(#[source] io::Error),
    #[error("the kernel refused a sock_diag request: {0}")]
    Refused(#[source] io::Error),
    #[error("a sock_diag message: {0}")]
    Malformed(#[from] DecodeError),
}

/// A UDP socket as the kernel names it: exact tuple, interface and cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UdpSocket {
    family: u8,
    id: SocketId,
}

/// The families in which the kernel lists sockets. IPv6 sockets may be connected to IPv4-mapped addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketFamily {
    V4,
    V6,
}

/// A netlink socket of the network namespace in which it was opened.
pub(super) struct Diag(Socket);

impl UdpSocket {
    /// A socket that is bound to a port, and nothing more.
    pub(super) fn bound(port: u16, cookie: u64) -> Self {
        let id = SocketId { source_port: port, cookie: cookie.to_ne_bytes(), ..SocketId::new_v4() };
        Self { family: AF_INET, id }
    }

    /// Where it sends to; IPv4-mapped addresses are IPv4.
    pub(super) fn peer(&self) -> SocketAddr {
        SocketAddr::new(canonical(self.id.destination_address), self.id.destination_port)
    }

    /// As bpf_get_socket_cookie() gives it, low half first.
    pub(super) fn cookie(&self) -> [u32; 2] {
        // Two 32-bit words in native order, the low half first (sock_diag_save_cookie).
        let [a, b, c, d, e, f, g, h] = self.id.cookie;
        [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
    }
}

impl Diag {
    /// In the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, DiagError> {
        Socket::new(NETLINK_SOCK_DIAG).map(Self).map_err(DiagError::Open)
    }

    /// The connected UDP sockets of the namespace.
    pub(super) fn connected(&mut self, family: SocketFamily) -> Result<Vec<UdpSocket>, DiagError> {
        self.send(NLM_F_DUMP, SockDiagMessage::InetRequest(list_request(family)))?;
        let mut found = Vec::new();
        loop {
            for message in self.receive()? {
                match message {
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(refused(error.to_io())),
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(it)) => {
                        found.push(UdpSocket { family: it.header.family, id: it.header.socket_id });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Ends exactly this socket: its owner sees ECONNABORTED, and it is connected no longer.
    pub(super) fn destroy(&mut self, socket: &UdpSocket) -> Result<(), DiagError> {
        self.send(NLM_F_ACK, SockDiagDestroy::new(SockDiagMessage::InetRequest(destroy_request(socket))))?;
        loop {
            for message in self.receive()? {
                if let NetlinkPayload::Error(error) = message {
                    return if error.code.is_some() { Err(refused(error.to_io())) } else { Ok(()) };
                }
            }
        }
    }

    fn send<M: NetlinkSerializable + Into<NetlinkPayload<M>>>(&self, flags: u16, message: M) -> Result<(), DiagError> {
        self.0.send(&bytes(flags, message), 0).map(drop).map_err(DiagError::Talk)
    }

    /// The messages of one datagram.
    fn receive(&self) -> Result<Vec<NetlinkPayload<SockDiagMessage>>, DiagError> {
        let (datagram, _) = self.0.recv_from_full().map_err(DiagError::Talk)?;
        let mut rest = datagram.as_slice();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)?;
            // Messages begin at multiples of four bytes; the last one may end before.
            let len = (message.header.length as usize).next_multiple_of(4).clamp(1, rest.len());
            rest = &rest[len..];
            messages.push(message.payload);
        }
        Ok(messages)
    }
}

fn list_request(family: SocketFamily) -> InetRequest {
    let (family, socket_id) = match family {
        SocketFamily::V4 => (AF_INET, SocketId::new_v4()),
        SocketFamily::V6 => (AF_INET6, SocketId::new_v6()),
    };
    // A connected UDP socket is "established".
    request(family, StateFlags::ESTABLISHED, socket_id)
}

fn destroy_request(socket: &UdpSocket) -> InetRequest {
    request(socket.family, StateFlags::empty(), socket.id.clone())
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> InetRequest {
    InetRequest { family, protocol: IPPROTO_UDP, extensions: ExtensionFlags::empty(), states, socket_id }
}

fn bytes<M: NetlinkSerializable + Into<NetlinkPayload<M>>>(flags: u16, message: M) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn refused(error: io::Error) -> DiagError {
    DiagError::Refused(error)
}

fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket as StdSocket;

    #[test]
    fn the_destroy_message_names_one_socket() {
        let id = SocketId {
            source_port: 0x1234,
            destination_port: 53,
            source_address: "10.244.1.5".parse().unwrap(),
            destination_address: "10.244.2.3".parse().unwrap(),
            interface_id: 7,
            cookie: [1, 2, 3, 4, 5, 6, 7, 8],
        };
        let socket = UdpSocket { family: AF_INET, id };
        let request = SockDiagMessage::InetRequest(destroy_request(&socket));
        let bytes = bytes(NLM_F_ACK, SockDiagDestroy::new(request));
        // struct nlmsghdr: length, SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, sequence number, port.
        assert_eq!(bytes[..4], 72_u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 21_u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 5_u16.to_ne_bytes());
        // struct inet_diag_req_v2: family, protocol, extensions, padding, states, ...
        assert_eq!(bytes[16..24], [2, 17, 0, 0, 0, 0, 0, 0]);
        // ... struct inet_diag_sockid.
        assert_eq!(bytes[24..28], [0x12, 0x34, 0, 53]);
        assert_eq!(bytes[28..32], [10, 244, 1, 5]);
        assert_eq!(bytes[44..48], [10, 244, 2, 3]);
        assert_eq!(bytes[60..64], 7_u32.to_ne_bytes());
        assert_eq!(bytes[64..72], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(socket.cookie(), [0x0403_0201, 0x0807_0605].map(u32::from_le));
    }

    #[test]
    fn connected_sockets_are_listed_and_others_are_not() {
        let Ok(server) = StdSocket::bind("127.0.0.1:0") else { return };
        let to = server.local_addr().unwrap();
        let plain = StdSocket::bind("127.0.0.1:0").unwrap();
        plain.connect(to).unwrap();
        let mapped = StdSocket::bind("[::]:0").unwrap();
        let through: IpAddr = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().into();
        mapped.connect(SocketAddr::new(through, to.port())).unwrap();
        let mut diag = Diag::open().unwrap();
        let ports = |sockets: Vec<UdpSocket>| -> Vec<u16> {
            sockets.iter().filter(|it| it.peer() == to).map(|it| it.id.source_port).collect()
        };
        assert_eq!(ports(diag.connected(SocketFamily::V4).unwrap()), [plain.local_addr().unwrap().port()]);
        assert_eq!(ports(diag.connected(SocketFamily::V6).unwrap()), [mapped.local_addr().unwrap().port()]);
    }
}
