//! The kernel's cookies of sockets and of network namespaces, by which the socket hooks know them.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
};

/// include/uapi/asm-generic/socket.h, kernel 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Of the agent's own network namespace, which is the node's.
pub fn netns_cookie() -> io::Result<u64> {
    // Any socket knows it; the address does not matter as long as it can be bound without an interface.
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    cookie(&socket, SO_NETNS_COOKIE)
}

/// Of a socket itself.
pub(crate) fn socket_cookie(socket: &impl AsFd) -> io::Result<u64> {
    cookie(socket, libc::SO_COOKIE)
}

fn cookie(socket: &impl AsFd, option: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` live longer than the call, and `len` is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
