//! Whether sockets can be ended here: tried at the start of the agent on a socket of its own.

use std::net::{Ipv4Addr, UdpSocket as StdSocket};

use proxy_common::abi::SocketEnding;

use super::{
    diag::{Diag, DiagError, UdpSocket},
    namespaces::Namespaces,
};
use crate::node::socket_cookie;

/// What is possible, and why no more.
pub(super) struct Ability {
    pub(super) ending: SocketEnding,
    pub(super) why: Option<String>,
}

impl Ability {
    pub(super) fn own_namespace_only(why: impl ToString) -> Self {
        Self::of(SocketEnding::OwnNamespaceOnly, why)
    }

    fn of(ending: SocketEnding, why: impl ToString) -> Self {
        Self { ending, why: Some(why.to_string()) }
    }
}

pub(super) fn probe(namespaces: &Namespaces) -> Ability {
    match end_own() {
        Ok(true) => {}
        Ok(false) => return Ability::of(SocketEnding::NotSupported, "the kernel ended no socket"),
        Err(error) => return Ability::of(cause(&error), error),
    }
    if let Err(error) = namespaces.own().enter() {
        return Ability::own_namespace_only(error);
    }
    seen(namespaces.others().found.len())
}

/// What it means that so many other namespaces were found.
pub(super) fn seen(others: usize) -> Ability {
    if others == 0 {
        return Ability::own_namespace_only("no network namespace of a pod is to be seen");
    }
    Ability { ending: SocketEnding::On, why: None }
}

fn end_own() -> Result<bool, DiagError> {
    let socket = StdSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(DiagError::Open)?;
    let port = socket.local_addr().map_err(DiagError::Open)?.port();
    let cookie = socket_cookie(&socket).map_err(DiagError::Open)?;
    Diag::open()?.destroy(&UdpSocket::bound(port, cookie))?;
    let ended = socket.take_error().map_err(DiagError::Open)?;
    Ok(ended.is_some_and(|error| error.raw_os_error() == Some(libc::ECONNABORTED)))
}

fn cause(error: &DiagError) -> SocketEnding {
    match error {
        DiagError::Refused(error) | DiagError::Open(error) | DiagError::Talk(error)
            if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) =>
        {
            SocketEnding::NotPermitted
        }
        // EOPNOTSUPP: without CONFIG_INET_DIAG_DESTROY. ENOENT: without CONFIG_INET_UDP_DIAG.
        _ => SocketEnding::NotSupported,
    }
}
