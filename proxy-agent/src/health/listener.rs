//! Listening sockets that two agents of a node may share, so that one answers while the other starts or ends.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::net::{TcpListener, TcpSocket};

const BACKLOG: u32 = 1024;

/// An unspecified address listens for both families, as kube-proxy does.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen_on(address);
    }
    let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
    match listen_on(both) {
        // A kernel without IPv6, or with ipv6.disable=1.
        Err(error) if address.is_ipv4() && no_ipv6(&error) => listen_on(address),
        result => result,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() && address.ip().is_unspecified() {
        setsockopt(&socket, Ipv6V6Only, &false)?;
    }
    socket.set_reuseaddr(true)?;
    // With another user's socket, or one that does not say so itself, the port stays a conflict.
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_of_us_share_a_port_and_a_stranger_does_not() {
        let first = listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = first.local_addr().unwrap();
        assert!(listen(address).is_ok());
        let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = listen(stranger.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
