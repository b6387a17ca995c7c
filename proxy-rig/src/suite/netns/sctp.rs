//! SCTP associations of real sockets through a Service whose port is another than its endpoints'. Skipped where the kernel has no
//! SCTP sockets; `cargo xtask vmtest` runs it on kernels that have them.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::FutureExt;
use nix::sys::socket::{self, Backlog, SockaddrStorage};
use serde_json::json;

use super::{flows::OwnTest, small};
use crate::{demo::stage::Stage, world::Host};

pub(super) const TESTS: &[OwnTest] = &[("sctp_associations", "13, paths", || associations().boxed())];

/// Of the Service, and of its endpoints.
const PORT: u16 = 2905;
const NODE_PORT: u16 = 30905;
const TARGET: u16 = 5905;
const CLUSTER_IPS: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
/// In one chunk, in one packet, in several.
const SIZES: [usize; 3] = [1, 1000, 8000];
/// Each way so often: one of two backends stays out in one run of 2^7.
const ASSOCIATIONS: usize = 8;
/// Generous: the kernels of other machines are emulated.
const LIMIT: Duration = Duration::from_secs(20);

/// True if this kernel has SCTP sockets.
pub(in crate::suite) fn is_there() -> bool {
    open(false).is_ok()
}

async fn associations() -> Result<()> {
    let service = small::service(|service| {
        service["spec"]["ports"] = json!([
            {"name": "m3ua", "port": PORT, "targetPort": TARGET, "nodePort": NODE_PORT, "protocol": "SCTP"},
        ]);
    });
    let (stage, agents) = small::one_agent(service, &[]).await?;
    for pod in ["web-1", "web-2"] {
        let host = &stage.peer(pod)?.host;
        for address in host.addresses() {
            serve(host, SocketAddr::new(address, TARGET))?;
        }
    }
    for (family, cluster_ip) in CLUSTER_IPS.into_iter().enumerate() {
        let vip = super::sockets::socket(cluster_ip, PORT)?;
        let node = SocketAddr::new(stage.node("node-1")?.addresses()[family], NODE_PORT);
        for (from, to) in [("client", node), ("packet", vip), ("near", vip), ("node-1", vip)] {
            let mut backends = Vec::new();
            for _ in 0..ASSOCIATIONS {
                let backend = associate(&stage, from, to).with_context(|| format!("{from} -> {to}"))?;
                backends.push(backend);
            }
            backends.sort_unstable();
            backends.dedup();
            ensure!(backends.len() == 2, "{from} -> {to}: all {ASSOCIATIONS} by {backends:?}");
        }
    }
    drop(agents);
    Ok(())
}

/// Opens an association and asks three times. Returns the address of the pod that answered.
fn associate(stage: &Stage, from: &str, to: SocketAddr) -> Result<String> {
    let own = SocketAddr::new(stage.address(from, to.ip())?, 0);
    stage.peer(from)?.host.in_netns(|| {
        let socket = open(to.is_ipv6())?;
        // One path: else the kernel offers all its addresses to the other side.
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(own))?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to)).context("connecting")?;
        for size in SIZES {
            stream.write_all(&vec![b'x'; size])?;
            let mut answer = vec![0; size];
            stream.read_exact(&mut answer).with_context(|| format!("the answer to {size} bytes"))?;
            ensure!(answer.iter().all(|byte| *byte == b'x'), "another answer to {size} bytes");
        }
        stream.write_all(b"?")?;
        let mut backend = [0; 64];
        // One message is one read (RFC 6458 section 4.1.8).
        let len = stream.read(&mut backend).context("who is it")?;
        Ok(String::from_utf8_lossy(&backend[..len]).into_owned())
    })?
}

/// Sends back what comes, and its own address for a question mark.
fn serve(host: &Host, at: SocketAddr) -> Result<()> {
    let listener = host.in_netns(|| -> Result<TcpListener> {
        let socket = open(at.is_ipv6())?;
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(at))?;
        socket::listen(&socket, Backlog::new(16)?)?;
        Ok(TcpListener::from(socket))
    })??;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            thread::spawn(move || answer(stream, at));
        }
    });
    Ok(())
}

/// Errors of an association are seen by its client.
fn answer(mut stream: TcpStream, at: SocketAddr) -> io::Result<()> {
    let mut buffer = [0; 16_384];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            1 if buffer[0] == b'?' => return stream.write_all(at.ip().to_string().as_bytes()),
            len => stream.write_all(&buffer[..len])?,
        }
    }
}

/// A socket for one association at a time (RFC 6458 section 4).
fn open(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
