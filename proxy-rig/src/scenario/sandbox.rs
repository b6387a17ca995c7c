//! A network namespace and a BPF file system of one thread alone: where the kernel machine runs. All of it goes with the
//! thread, also after a crash.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    unistd::Pid,
};

use super::node::{AddressChange, SimulatedNode};

const BPFFS: &str = "/sys/fs/bpf";

/// Runs `work` on a thread of its own that has the node's interfaces, addresses and routes, and runs on one CPU only (what
/// a program records, it records per CPU).
pub fn in_private_netns<T: Send>(node: &SimulatedNode, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("private mounts")?;
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).context("mounting a BPF file system")?;
            stay_on_this_cpu()?;
            make_links(node)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the thread of the scenario panicked"))?
    })
}

fn stay_on_this_cpu() -> Result<()> {
    let this = Pid::from_raw(0);
    let cpu = nix::sched::sched_getcpu().context("sched_getcpu")?;
    let allowed = sched_getaffinity(this).context("sched_getaffinity")?;
    let cpu = if allowed.is_set(cpu)? {
        Some(cpu)
    } else {
        (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true))
    };
    let mut only = CpuSet::new();
    only.set(cpu.context("no CPU is allowed")?)?;
    sched_setaffinity(this, &only).context("sched_setaffinity")
}

fn make_links(node: &SimulatedNode) -> Result<()> {
    // /proc/sys/net shows the namespace of the thread that opens it.
    for (key, value) in [("ipv4/conf/all/forwarding", "1"), ("ipv6/conf/all/forwarding", "1")] {
        let path = format!("/proc/sys/net/{key}");
        fs::write(&path, value).with_context(|| format!("{path} = {value}"))?;
    }
    let mut lines = vec!["link set lo up".to_owned()];
    for (name, interface) in &node.spec().interfaces {
        let index = node.index_of(name).context("invariant: every interface has an index")?;
        // veth, because not every kernel has dummy; the other end gives the carrier that routes need.
        lines.push(format!("link add {name} index {index} type veth peer name {name}-far"));
        lines.push(format!("link set {name} up"));
        lines.push(format!("link set {name}-far up"));
        for address in &interface.addresses {
            let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
            lines.push(format!("addr add {address} dev {name}{nodad}"));
        }
    }
    for (to, name) in &node.spec().routes {
        lines.push(format!("route replace {to} dev {name}"));
    }
    ip_batch(&lines)
}

/// The namespace's own interface gets or loses an address.
pub(super) fn change_address(change: &AddressChange) -> Result<()> {
    let AddressChange { add, interface, net } = change;
    let (verb, nodad) = (if *add { "add" } else { "del" }, if *add && net.addr().is_ipv6() { " nodad" } else { "" });
    ip_batch(&[format!("addr {verb} {net} dev {interface}{nodad}")])
}

fn ip_batch(lines: &[String]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (package iproute2)")?;
    let input = lines.join("\n");
    child.stdin.take().context("no pipe to ip")?.write_all(input.as_bytes()).context("writing to ip")?;
    let output = child.wait_with_output().context("waiting for ip")?;
    ensure!(output.status.success(), "ip -batch: {}\n{input}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
