//! ICMP errors of routers between a client and a backend, as the client's socket gets them: Linux finds the socket by the
//! quoted packet, so an error arrives only if its quote is what the client sent.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::FutureExt;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};

use super::{
    flows::{OwnTest, settles},
    small::{self, NODE_2, NODE_PORT},
};
use crate::demo::stage::Stage;

pub(super) const OWN_TESTS: &[OwnTest] = &[
    ("time_exceeded_towards_a_remote_backend", "icmp", || time_exceeded().boxed()),
    ("path_mtu_towards_a_remote_backend", "icmp", || path_mtu().boxed()),
];

const SECOND: Duration = Duration::from_secs(1);
const MTU: usize = 1300;

/// Node-2 without a backend of its own, so that all its calls go to node-1.
async fn stage() -> Result<Stage> {
    let mut stage = small::start(&[]).await?;
    stage.cluster.remove_pod("web-2");
    stage.cluster.publish()?;
    settles(&stage, "client", NODE_2, |result| result.pod() == Some("web-1")).await?;
    Ok(stage)
}

fn node_ports(stage: &Stage) -> Result<[SocketAddr; 2]> {
    Ok(stage.node("node-2")?.addresses().map(|address| SocketAddr::new(address, NODE_PORT)))
}

async fn time_exceeded() -> Result<()> {
    let stage = stage().await?;
    let client = &stage.peer("client")?.host;
    for to in node_ports(&stage)? {
        let router = client.in_netns(|| {
            let socket = udp_to(to)?;
            match to {
                SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4Ttl, &1)?,
                SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6Ttl, &1)?,
            }
            socket.send(b"who is there?")?;
            error_from(&socket)
        })??;
        ensure!(router == to.ip(), "{to}: time exceeded came from {router}");
    }
    Ok(())
}

async fn path_mtu() -> Result<()> {
    let stage = stage().await?;
    let [v4, v6] = stage.node("node-1")?.addresses();
    let narrow = |cidr: &str, via: IpAddr| format!("route replace {cidr} via {via} mtu lock {MTU}");
    stage.node("node-2")?.ip(&[narrow("10.244.1.0/24", v4), narrow("fd00:10:244:1::/64", v6)])?;
    let client = &stage.peer("client")?.host;
    for to in node_ports(&stage)? {
        client.in_netns(|| {
            let socket = udp_to(to)?;
            let big = [b'x'; 1400];
            socket.send(&big)?;
            let router = error_from(&socket)?;
            ensure!(router == to.ip(), "{to}: \"too big\" came from {router}");
            // Now in fragments.
            socket.send(&big)?;
            let answer = socket.recv(&mut [0; 2000]).with_context(|| format!("{to}: the answer to fragments"))?;
            ensure!(answer >= big.len(), "{to}: {answer} bytes");
            Ok(())
        })??;
    }
    Ok(())
}

/// A connected socket that keeps the errors it gets.
fn udp_to(to: SocketAddr) -> Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(SECOND))?;
    match to {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
    }
    Ok(socket)
}

/// Waits for the next error of the socket; returns who sent it.
fn error_from(socket: &UdpSocket) -> Result<IpAddr> {
    let error = socket.recv(&mut [0; 2000]).err().context("an answer instead of an error")?;
    ensure!(error.kind() != io::ErrorKind::WouldBlock, "no error within a second");
    let (mut data, mut control) = ([0; 2000], [0; 512]);
    let mut buffers = [IoSliceMut::new(&mut data)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
    )
    .context("the socket's queue of errors")?;
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::Ipv4RecvErr(_, Some(from)) => {
                return Ok(IpAddr::from(u32::from_be(from.sin_addr.s_addr).to_be_bytes()));
            }
            ControlMessageOwned::Ipv6RecvErr(_, Some(from)) => return Ok(IpAddr::from(from.sin6_addr.s6_addr)),
            _ => {}
        }
    }
    anyhow::bail!("an error ({error}) that nobody sent")
}
