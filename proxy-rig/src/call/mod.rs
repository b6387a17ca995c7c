//! Calls that a process inside a host makes for its owner: the messages between both, and their results.
//!
//! `world::Actor` writes one [`Request`] per line to the process' standard input; the process
//! ([`process::run`], the hidden subcommand `pod-server`) answers with one [`Response`] per line,
//! in any order.

mod client;
mod flow;
pub mod process;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use crate::echo::Reply;

/// The first line that a process writes: it listens and takes calls.
pub const READY: &str = "ready";

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub id: u64,
    pub call: Call,
    pub options: Options,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Response {
    pub id: u64,
    pub result: CallResult,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Call {
    /// GET on a fresh connection.
    Http {
        to: SocketAddr,
    },
    /// One datagram and its answer on a fresh socket.
    Udp {
        to: SocketAddr,
    },
    /// A TCP connect without data.
    Connect {
        to: SocketAddr,
    },
    /// Opens a flow under a number that the owner chooses.
    Open {
        session: u64,
        proto: Proto,
        to: SocketAddr,
    },
    /// One request on an open flow; `to` only for unconnected UDP.
    Send {
        session: u64,
        to: Option<SocketAddr>,
    },
    /// Waits for a datagram or an error on an open UDP flow, without asking.
    Await {
        session: u64,
    },
    /// Connects the socket of an open UDP flow anew.
    Reconnect {
        session: u64,
        to: SocketAddr,
    },
    Close {
        session: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proto {
    Tcp,
    Udp,
}

/// How a call is made. The default is what an ordinary program does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    pub timeout_ms: u64,
    /// Bind to this address first.
    pub source_ip: Option<IpAddr>,
    /// Bind to this port first.
    pub source_port: Option<u16>,
    /// UDP: connect the socket (the default), or send to and receive from by address.
    pub connected: bool,
    /// Reach an IPv4 destination from an IPv6 socket by its mapped address.
    pub mapped: bool,
    /// UDP: length of the question, and so of the answer. TCP: length of the answer's body.
    pub size: usize,
    /// TCP: length that is added to the question.
    pub upload: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout_ms: 2000,
            source_ip: None,
            source_port: None,
            connected: true,
            mapped: false,
            size: 0,
            upload: 0,
        }
    }
}

impl Options {
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallResult {
    pub outcome: Outcome,
    /// What the program sees as its peer: `getpeername`, or the source address of the answer
    /// on an unconnected socket.
    pub peer: Option<SocketAddr>,
    /// The socket's own address.
    pub local: Option<SocketAddr>,
    pub elapsed: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Answered(Reply),
    /// Connected, nothing asked yet; also the result of opening and closing a flow.
    Connected,
    Refused,
    TimedOut,
    /// No route, or an ICMP error that says so.
    Unreachable,
    Reset,
    /// The socket was ended from outside (ECONNABORTED).
    Aborted,
    /// The other side closed without an answer.
    Closed,
    /// A cgroup program or a filter forbade it (EPERM).
    Denied,
    Failed(String),
}

impl CallResult {
    /// The answer, or an error that says what happened instead.
    pub fn answered(&self) -> Result<&Reply> {
        match &self.outcome {
            Outcome::Answered(reply) => Ok(reply),
            other => anyhow::bail!("not answered but {other:?} after {:?}", self.elapsed),
        }
    }

    /// Name of the pod that answered, if one did.
    pub fn pod(&self) -> Option<&str> {
        self.answered().ok().map(|reply| reply.pod.as_str())
    }
}

impl Outcome {
    fn from_io(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Self::Refused,
            Some(libc::ETIMEDOUT) => Self::TimedOut,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => Self::Unreachable,
            Some(libc::ECONNRESET | libc::EPIPE) => Self::Reset,
            Some(libc::ECONNABORTED) => Self::Aborted,
            Some(libc::EPERM | libc::EACCES) => Self::Denied,
            _ if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Anything that names an IP address: tests write literals, code has addresses.
pub trait ToIp {
    fn to_ip(self) -> Result<IpAddr>;
}

impl ToIp for &str {
    fn to_ip(self) -> Result<IpAddr> {
        self.parse().with_context(|| format!("IP address {self:?}"))
    }
}

impl ToIp for IpAddr {
    fn to_ip(self) -> Result<IpAddr> {
        Ok(self)
    }
}

impl ToIp for Ipv4Addr {
    fn to_ip(self) -> Result<IpAddr> {
        Ok(self.into())
    }
}

impl ToIp for Ipv6Addr {
    fn to_ip(self) -> Result<IpAddr> {
        Ok(self.into())
    }
}
