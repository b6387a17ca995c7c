//! Servers that tell who was called and by whom: HTTP/1.1 over TCP, one JSON datagram over UDP.
//!
//! Run by `weir-rig pod-server` inside pods, nodes and clients. The benchmarks measure through the
//! TCP server, so it keeps a connection's answer ready and sends it in one write.

use std::{
    convert::Infallible,
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
    sync::Arc,
};

use anyhow::{Context, Result};
use axum::body::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt,
    sockopt::Ipv6RecvPacketInfo,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::Interest,
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
};

const BACKLOG: u32 = 4096;
const MAX_DATAGRAM: usize = 65_536;
/// Query parameter that asks for a body of at least this many bytes: `GET /?size=100000`.
const SIZE_PARAMETER: &str = "size=";
const MAX_BODY: usize = 64 << 20;

/// The answer of every echo server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub pod: String,
    /// Empty for clients outside.
    pub node: String,
    /// The caller as the server sees it.
    pub client: SocketAddr,
    /// The server's own address of this flow.
    pub server: SocketAddr,
    pub port: u16,
}

/// Who answers.
#[derive(Debug, Clone)]
pub struct Identity {
    pub pod: String,
    pub node: String,
}

impl Identity {
    fn reply(&self, client: SocketAddr, server: SocketAddr) -> Reply {
        Reply {
            pod: self.pod.clone(),
            node: self.node.clone(),
            client: canonical(client),
            server: canonical(server),
            port: server.port(),
        }
    }
}

/// Listens on one port for both families and serves until the process ends.
pub fn start_tcp(port: u16, identity: &Arc<Identity>) -> Result<()> {
    let listener = listen_tcp(port).with_context(|| format!("listening on TCP port {port}"))?;
    tokio::spawn(accept(listener, Arc::clone(identity)));
    Ok(())
}

/// The same for UDP. An answer leaves from the address that was asked, also on hosts with several.
pub fn start_udp(port: u16, identity: &Arc<Identity>) -> Result<()> {
    let socket = bind_udp(port).with_context(|| format!("binding UDP port {port}"))?;
    tokio::spawn(answer_datagrams(socket, Arc::clone(identity)));
    Ok(())
}

fn listen_tcp(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, identity: Arc<Identity>) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                tokio::spawn(serve_connection(stream, client, Arc::clone(&identity)));
            }
            // Such as a connection reset before it was accepted, or no descriptors left.
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Errors of a connection concern its client only.
async fn serve_connection(stream: TcpStream, client: SocketAddr, identity: Arc<Identity>) {
    let Ok(server) = stream.local_addr() else {
        return;
    };
    let Ok(body) = serde_json::to_vec(&identity.reply(client, server)).map(Bytes::from) else {
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let body = padded(&body, wanted_size(request.uri().query()));
        async move { Ok::<_, Infallible>(respond(body)) }
    });
    let _ = http1::Builder::new().header_read_timeout(None).serve_connection(TokioIo::new(stream), service).await;
}

fn respond(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn wanted_size(query: Option<&str>) -> usize {
    let number = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix(SIZE_PARAMETER)));
    number.and_then(|number| number.parse().ok()).unwrap_or(0).min(MAX_BODY)
}

/// White space after a JSON value is part of no value.
fn padded(body: &Bytes, size: usize) -> Bytes {
    if size <= body.len() {
        return body.clone();
    }
    let mut longer = body.to_vec();
    longer.resize(size, b' ');
    longer.into()
}

fn bind_udp(port: u16) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    UdpSocket::from_std(socket)
}

async fn answer_datagrams(socket: UdpSocket, identity: Arc<Identity>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = socket.async_io(Interest::READABLE, || receive(&socket, &mut buffer)).await;
        match received {
            Ok(datagram) => {
                // A lost answer is what UDP promises; the caller's time limit shows it.
                if let Err(error) = answer(&socket, &datagram, &identity) {
                    eprintln!("answering {}: {error}", datagram.client);
                }
            }
            Err(error) => eprintln!("recvmsg: {error}"),
        }
    }
}

struct Datagram {
    client: SocketAddrV6,
    /// The address that was asked, mapped if it is IPv4.
    server: Ipv6Addr,
    length: usize,
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let server = message.cmsgs()?.find_map(|entry| match entry {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let (Some(client), Some(server)) = (message.address, server) else {
        return Err(io::Error::other("a datagram without addresses"));
    };
    Ok(Datagram { client: client.into(), server, length: message.bytes })
}

/// As long as the question, so that large datagrams are tried in both directions.
fn answer(socket: &UdpSocket, datagram: &Datagram, identity: &Identity) -> Result<()> {
    let port = socket.local_addr()?.port();
    let server = SocketAddr::from((datagram.server, port));
    let reply = serde_json::to_vec(&identity.reply(datagram.client.into(), server))?;
    let reply = padded(&reply.into(), datagram.length);
    // Interface 0: the route decides the way, only the source address is ours to name.
    let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: datagram.server.octets() }, ipi6_ifindex: 0 };
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(&reply)],
        &[ControlMessage::Ipv6PacketInfo(&info)],
        MsgFlags::empty(),
        Some(&SockaddrIn6::from(datagram.client)),
    )?;
    Ok(())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_comes_from_the_query() {
        assert_eq!(wanted_size(Some("a=1&size=200")), 200);
        assert_eq!(wanted_size(Some("size=x")), 0);
        assert_eq!(wanted_size(None), 0);
    }

    #[test]
    fn padding_keeps_the_value() {
        let body = Bytes::from_static(b"{\"a\":1}");
        assert_eq!(padded(&body, 3), body);
        let long = padded(&body, 100);
        assert_eq!(long.len(), 100);
        let value: serde_json::Value = serde_json::from_slice(&long).unwrap();
        assert_eq!(value["a"], 1);
    }
}
