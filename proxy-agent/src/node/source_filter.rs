//! Follows Linux' reverse path filter (net.ipv4.conf.*.rp_filter), which Weir reads and never sets, by rtnetlink's netconf messages.
//! Called by watch.rs. `netlink-packet-route` does not know these messages, so they are read here.

use std::io;

use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::sync::mpsc;

use super::net::NetChange;

/// include/uapi/linux/rtnetlink.h and netconf.h.
const RTM_NEWNETCONF: u16 = 80;
const RTM_GETNETCONF: u16 = 82;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_RP_FILTER: u16 = 3;
/// include/uapi/linux/netlink.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER_LEN: usize = 16;
/// The family and its padding.
const NETCONF_LEN: usize = 4;
const AF_INET: u8 = 2;

/// What a message calls the value for all interfaces, which counts where it is higher than an interface's own.
pub(super) const ALL_LINKS: i32 = -1;
/// rp_filter: the source must be reached by the link that the packet came in by.
pub(super) const STRICT: i32 = 1;

/// Sends the values of all interfaces, then every change, until the receiver is dropped.
pub(super) async fn follow(changes: &mpsc::Sender<NetChange>) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().add_membership(RTNLGRP_IPV4_NETCONF)?;
    ask_for_all(&socket).await?;
    loop {
        match socket.recv_from_full().await {
            Ok((datagram, _)) => {
                for (link, value) in messages(&datagram) {
                    if changes.send(NetChange::SourceFilter { link, value }).await.is_err() {
                        return Ok(());
                    }
                }
            }
            // Messages were lost.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => ask_for_all(&socket).await?,
            Err(error) => return Err(error),
        }
    }
}

async fn ask_for_all(socket: &TokioSocket) -> io::Result<()> {
    let length = (HEADER_LEN + NETCONF_LEN) as u32;
    let mut request = Vec::with_capacity(length as usize);
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&RTM_GETNETCONF.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence number and port, which nobody looks at.
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[AF_INET, 0, 0, 0]);
    socket.send_to(&request, &SocketAddr::new(0, 0)).await.map(drop)
}

/// Interface and rp_filter of each message of a datagram that tells both.
fn messages(mut rest: &[u8]) -> Vec<(i32, i32)> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (number::<4>(rest, 0), number::<2>(rest, 4)) {
        let length = u32::from_ne_bytes(length) as usize;
        if length < HEADER_LEN || length > rest.len() {
            break;
        }
        if u16::from_ne_bytes(kind) == RTM_NEWNETCONF
            && let Some(attributes) = rest.get(HEADER_LEN + NETCONF_LEN..length)
        {
            found.extend(link_and_value(attributes));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn link_and_value(mut rest: &[u8]) -> Option<(i32, i32)> {
    let (mut link, mut value) = (None, None);
    while let (Some(length), Some(kind)) = (number::<2>(rest, 0), number::<2>(rest, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        let content = number::<4>(rest, 4).filter(|_| length == 8).map(i32::from_ne_bytes);
        match u16::from_ne_bytes(kind) {
            NETCONFA_IFINDEX => link = content,
            NETCONFA_RP_FILTER => value = content,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    link.zip(value)
}

fn number<const LENGTH: usize>(bytes: &[u8], at: usize) -> Option<[u8; LENGTH]> {
    bytes.get(at..at + LENGTH)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, attributes: &[(u16, i32)]) -> Vec<u8> {
        let length = HEADER_LEN + NETCONF_LEN + 8 * attributes.len();
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(&[AF_INET, 0, 0, 0]);
        for (kind, value) in attributes {
            bytes.extend_from_slice(&8u16.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn messages_that_tell_the_filter_are_read() {
        let datagram = [
            message(RTM_NEWNETCONF, &[(NETCONFA_IFINDEX, 7), (2, 1), (NETCONFA_RP_FILTER, 1)]),
            message(RTM_NEWNETCONF, &[(NETCONFA_IFINDEX, 7), (2, 0)]),
            message(3, &[]),
            message(RTM_NEWNETCONF, &[(NETCONFA_IFINDEX, ALL_LINKS), (NETCONFA_RP_FILTER, 2)]),
        ]
        .concat();
        assert_eq!(messages(&datagram), [(7, 1), (ALL_LINKS, 2)]);
        // Cut anywhere, it says less, and nothing else.
        for end in 0..datagram.len() {
            let all = [(7, 1), (ALL_LINKS, 2)];
            assert!(all.starts_with(&messages(&datagram[..end])), "cut at {end}");
        }
        assert!(messages(&[0; 64]).is_empty());
    }
}
