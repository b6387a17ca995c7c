//! One open flow: a socket, its addresses, and request-answer exchanges on it.

use std::{
    error::Error as _,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use axum::body::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::{Options, Outcome, Proto, Reply};

const MAX_DATAGRAM: usize = 65_536;

pub(super) struct Flow {
    pub(super) peer: Option<SocketAddr>,
    pub(super) local: Option<SocketAddr>,
    to: SocketAddr,
    socket: Socket,
}

enum Socket {
    Tcp(SendRequest<Empty<Bytes>>),
    Udp { socket: UdpSocket, connected: bool },
}

impl Flow {
    pub(super) async fn open(proto: Proto, to: SocketAddr, options: &Options) -> Result<Self, Outcome> {
        match proto {
            Proto::Tcp => Self::open_tcp(to, options).await,
            Proto::Udp => Self::open_udp(to, options).await.map_err(|error| Outcome::from_io(&error)),
        }
    }

    async fn open_tcp(to: SocketAddr, options: &Options) -> Result<Self, Outcome> {
        let stream = connect_tcp(to, options).await.map_err(|error| Outcome::from_io(&error))?;
        let (peer, local) = (stream.peer_addr().ok(), stream.local_addr().ok());
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| from_hyper(&error))?;
        // The sender reports the connection's errors; dropping it ends the connection.
        tokio::spawn(connection);
        Ok(Self { peer: peer.map(canonical), local: local.map(canonical), to, socket: Socket::Tcp(sender) })
    }

    async fn open_udp(to: SocketAddr, options: &Options) -> io::Result<Self> {
        let to = on_wire(to, options);
        let socket = UdpSocket::bind(source(to, options)).await?;
        if options.connected {
            socket.connect(to).await?;
        }
        Ok(Self {
            peer: socket.peer_addr().ok().map(canonical),
            local: socket.local_addr().ok().map(canonical),
            to,
            socket: Socket::Udp { socket, connected: options.connected },
        })
    }

    /// Waits for whatever happens to a UDP socket.
    pub(super) async fn wait(&mut self) -> Result<Reply, Outcome> {
        let Socket::Udp { socket, .. } = &self.socket else {
            return Err(Outcome::Failed("not a UDP flow".to_owned()));
        };
        let mut buffer = vec![0; MAX_DATAGRAM];
        let length = socket.recv(&mut buffer).await.map_err(|error| Outcome::from_io(&error))?;
        parse(&buffer[..length])
    }

    /// The same socket, as a resolver does it that keeps one for ever.
    pub(super) async fn reconnect(&mut self, to: SocketAddr, options: &Options) -> Result<(), Outcome> {
        let Socket::Udp { socket, .. } = &self.socket else {
            return Err(Outcome::Failed("not a UDP flow".to_owned()));
        };
        socket.connect(on_wire(to, options)).await.map_err(|error| Outcome::from_io(&error))?;
        self.peer = socket.peer_addr().ok().map(canonical);
        Ok(())
    }

    /// Sends a request and waits for its answer, without a time limit of its own.
    pub(super) async fn exchange(&mut self, to: Option<SocketAddr>, options: &Options) -> Result<Reply, Outcome> {
        match &mut self.socket {
            Socket::Tcp(sender) => get(sender, self.to, options).await,
            Socket::Udp { socket, connected } => {
                let to = to.map_or(self.to, |to| match self.to {
                    SocketAddr::V6(_) => as_v6(to),
                    SocketAddr::V4(_) => to,
                });
                let (reply, from) = ask(socket, (!*connected).then_some(to), options.size).await?;
                self.peer = Some(canonical(from));
                self.local = socket.local_addr().ok().map(canonical);
                Ok(reply)
            }
        }
    }
}

pub(super) async fn connect_tcp(to: SocketAddr, options: &Options) -> io::Result<TcpStream> {
    let to = on_wire(to, options);
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if options.source_ip.is_some() || options.source_port.is_some() {
        // Lets a test use one source port again at once.
        socket.set_reuseaddr(true)?;
        socket.bind(source(to, options))?;
    }
    socket.connect(to).await
}

async fn get(sender: &mut SendRequest<Empty<Bytes>>, to: SocketAddr, options: &Options) -> Result<Reply, Outcome> {
    let request = Request::get(format!("/?size={}&{}", options.size, "x".repeat(options.upload)))
        .header(header::HOST, to.to_string())
        .body(Empty::new())
        .map_err(|error| Outcome::Failed(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| from_hyper(&error))?;
    let status = response.status();
    let body = response.collect().await.map_err(|error| from_hyper(&error))?.to_bytes();
    if status != StatusCode::OK {
        return Err(Outcome::Failed(format!("HTTP status {status}")));
    }
    parse(&body)
}

/// Asks once. Answers that came too late for an earlier question are thrown away first.
async fn ask(socket: &UdpSocket, to: Option<SocketAddr>, size: usize) -> Result<(Reply, SocketAddr), Outcome> {
    let question = vec![b'?'; size.max(1)];
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        match socket.try_recv_from(&mut buffer) {
            Ok(_) => {}
            // The socket is connected no longer: an error that no program may miss.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Err(Outcome::Aborted),
            Err(_) => break,
        }
    }
    let exchange = async {
        match to {
            Some(to) => socket.send_to(&question, to).await?,
            None => socket.send(&question).await?,
        };
        match to {
            Some(_) => socket.recv_from(&mut buffer).await,
            None => {
                let length = socket.recv(&mut buffer).await?;
                Ok((length, socket.peer_addr()?))
            }
        }
    };
    let (length, from) = exchange.await.map_err(|error| Outcome::from_io(&error))?;
    Ok((parse(&buffer[..length])?, from))
}

fn parse(answer: &[u8]) -> Result<Reply, Outcome> {
    serde_json::from_slice(answer).map_err(|error| Outcome::Failed(format!("not an echo server's answer: {error}")))
}

/// The socket's own error lies below hyper's.
fn from_hyper(error: &hyper::Error) -> Outcome {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            return Outcome::from_io(error);
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return Outcome::Closed;
    }
    Outcome::Failed(error.to_string())
}

fn source(to: SocketAddr, options: &Options) -> SocketAddr {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let address = SocketAddr::new(options.source_ip.unwrap_or(any), options.source_port.unwrap_or(0));
    if to.is_ipv6() { as_v6(address) } else { address }
}

fn on_wire(to: SocketAddr, options: &Options) -> SocketAddr {
    if options.mapped { as_v6(to) } else { to }
}

fn as_v6(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
