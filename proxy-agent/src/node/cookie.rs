//! The cookie of the agent's own network namespace, by which the connect hooks know the node's own sockets.

use std::{io, net::UdpSocket, os::fd::AsRawFd};

/// include/uapi/asm-generic/socket.h, kernel 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

pub fn netns_cookie() -> io::Result<u64> {
    // Any socket knows it; the address does not matter as long as it can be bound without an interface.
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` live longer than the call, and `len` is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}
