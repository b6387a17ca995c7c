//! A TAP device whose far end is this process: packets as a virtual machine's device driver hands them over, with partial
//! checksums and larger than the link (virtio_net_hdr), which neither a veth pair nor BPF_PROG_TEST_RUN can show.
//!
//! * here: the device. [`packet`]: packets built and examined, every checksum summed up in full.
//!
//! Used by the end-to-end suite (`suite/netns/tap`).

pub(crate) mod packet;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, poll};

use crate::world::Node;
use packet::{Frame, VnetHeader};

/// linux/if_tun.h
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
/// Since Linux 6.2.
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

/// A frame of 64 KiB with its headers.
const MAX_FRAME: usize = 0x1_0100;
/// Longer than this no frame takes on this machine.
const LIMIT: Duration = Duration::from_secs(1);

/// Link addresses of the node's end and of the far end.
pub(crate) const NEAR_MAC: [u8; 6] = [0x0a, 0x7a, 0, 0, 0, 1];
pub(crate) const FAR_MAC: [u8; 6] = [0x0a, 0x7a, 0, 0, 0, 2];

/// The device goes when this is dropped.
pub(crate) struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Makes the device on the node, up and without addresses.
    pub(crate) fn create(node: &Node, name: &str) -> Result<Self> {
        // The device appears in the namespace in which the file was opened.
        let file = node.in_netns(|| open(name))?.with_context(|| format!("TAP device {name}"))?;
        node.ip(&[
            format!("link set {name} addrgenmode none"),
            format!("link set {name} address {} up", mac(NEAR_MAC)),
        ])?;
        Ok(Self { file, name: name.to_owned() })
    }

    /// Lines for `ip` that make `addresses` neighbours behind the device, without asking them.
    pub(crate) fn neighbours(&self, addresses: &[impl ToString]) -> Vec<String> {
        let line = |address: String| {
            format!("neigh replace {address} lladdr {} dev {} nud permanent", mac(FAR_MAC), self.name)
        };
        addresses.iter().map(|address| line(address.to_string())).collect()
    }

    /// Whether the far end takes partial checksums and packets larger than the link. If not, the kernel completes and cuts.
    pub(crate) fn set_offloads(&self, on: bool) -> Result<()> {
        let features = if on { TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO } else { 0 };
        // SAFETY: an ioctl that takes a number.
        let done = unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, features) };
        ensure!(done == 0, "TUNSETOFFLOAD {features:#x} of {}: {}", self.name, io::Error::last_os_error());
        Ok(())
    }

    pub(crate) fn send(&self, frame: &Frame) -> Result<()> {
        let bytes = [&frame.vnet.to_bytes()[..], &frame.bytes].concat();
        let written = (&self.file).write(&bytes).with_context(|| format!("sending {frame} by {}", self.name))?;
        ensure!(written == bytes.len(), "{written} of {} bytes sent by {}", bytes.len(), self.name);
        Ok(())
    }

    /// The next frame for which `wanted` has a value.
    pub(crate) fn receive<T>(&self, mut wanted: impl FnMut(Frame) -> Option<T>) -> Result<T> {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let frame = self.next(left)?.with_context(|| format!("nothing came out of {}", self.name))?;
            if let Some(value) = wanted(frame) {
                return Ok(value);
            }
        }
    }

    /// Throws away what came so far.
    pub(crate) fn drain(&self) -> Result<()> {
        while self.poll()?.is_some() {}
        Ok(())
    }

    /// A frame that is there already.
    pub(crate) fn poll(&self) -> Result<Option<Frame>> {
        self.next(Duration::ZERO)
    }

    fn next(&self, limit: Duration) -> Result<Option<Frame>> {
        let timeout = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        let mut descriptors = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, timeout).context("poll")? == 0 {
            return Ok(None);
        }
        let mut buffer = vec![0; VnetHeader::LEN + MAX_FRAME];
        let length = (&self.file).read(&mut buffer).with_context(|| format!("reading {}", self.name))?;
        ensure!(length >= VnetHeader::LEN, "{length} bytes from {}", self.name);
        let bytes = buffer[VnetHeader::LEN..length].to_vec();
        Ok(Some(Frame { vnet: VnetHeader::from_bytes(&buffer), bytes }))
    }
}

fn open(name: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    // SAFETY: a C struct of integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(name.len() < request.ifr_name.len(), "the name is too long");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    // SAFETY: `request` is what this ioctl reads and writes.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    ensure!(done == 0, "TUNSETIFF: {}", io::Error::last_os_error());
    Ok(file)
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}
