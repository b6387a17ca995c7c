//! kube-proxy beside Weir: a process that runs, the ports that both want, and the rules that one left behind.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use super::{Finding, Wanted};
use crate::takeover::{self, Plan};

const AREA: &str = "kube-proxy";
/// How many of its traces are named.
const NAMED: usize = 4;
const STOP: &str = "end it on this node: kubectl -n kube-system patch daemonset kube-proxy -p \
    '{\"spec\":{\"template\":{\"spec\":{\"nodeSelector\":{\"kube-proxy\":\"off\"}}}}}' ends it on all nodes; k3s and RKE2 have it built in: \
    --disable-kube-proxy";
const CLEAN: &str =
    "established connections may still need them: when Weir runs, `weir cleanup --kube-proxy` removes them";

pub(super) fn check(wanted: &Wanted) -> Vec<Finding> {
    let mut findings = Vec::new();
    let running = takeover::kube_proxies(&wanted.proc);
    if let Some(id) = running.first() {
        findings.push(Finding::warning(
            AREA,
            format!("kube-proxy runs (process {id}): Weir comes first, and its rules are written in vain"),
            STOP,
        ));
    }
    for address in &wanted.listens {
        findings.extend(port(*address, &wanted.proc));
    }
    findings.extend(leftovers(!running.is_empty()));
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, "kube-proxy does not run, and has left nothing"));
    }
    findings
}

/// A process of Weir's that listens there is an agent at work.
fn port(address: SocketAddr, proc: &Path) -> Option<Finding> {
    let inode = listener(address)?;
    let owner = owner(inode, proc);
    if owner.as_deref() == Some("weir") {
        return None;
    }
    let by = owner.map_or_else(|| "another process".to_owned(), |name| format!("the process {name}"));
    Some(Finding::warning(
        AREA,
        format!("{by} listens on port {}: Weir's health endpoints ({address}) cannot", address.port()),
        "end it, or choose another address by --healthz-bind-address or --metrics-bind-address",
    ))
}

/// The inode of the listening socket that keeps `address` from being bound.
fn listener(address: SocketAddr) -> Option<u64> {
    let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"]
        .map(|path| fs::read_to_string(path).unwrap_or_default());
    let sockets = tables.iter().flat_map(|table| table.lines().filter_map(listening));
    let mut sockets = sockets.filter(|(at, _)| at.port() == address.port());
    let meets = |at: IpAddr| at == address.ip() || at.is_unspecified() || address.ip().is_unspecified();
    sockets.find(|(at, _)| meets(at.ip())).map(|(_, inode)| inode)
}

/// Address and inode of a line of /proc/net/tcp, if its socket listens.
fn listening(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let words: Vec<&str> = line.split_whitespace().collect();
    if *words.get(3)? != LISTEN {
        return None;
    }
    let (address, port) = words[1].split_once(':')?;
    let ip: IpAddr = match address.len() {
        // Words of 32 bits, each in the order of the host.
        8 => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes()).into(),
        32 => {
            let mut octets = [0; 16];
            for (word, octets) in octets.chunks_exact_mut(4).enumerate() {
                let value = u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok()?;
                octets.copy_from_slice(&value.to_ne_bytes());
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some((SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?), words.get(9)?.parse().ok()?))
}

fn owner(inode: u64, proc: &Path) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let holds = |dir: &Path| {
        let mut open = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        open.any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()))
    };
    let mut processes = fs::read_dir(proc).ok()?.flatten().map(|entry| entry.path());
    let dir = processes.find(|dir| holds(dir))?;
    Some(fs::read_to_string(dir.join("comm")).ok()?.trim_end().to_owned())
}

fn leftovers(running: bool) -> Vec<Finding> {
    let plan = match Plan::look() {
        Ok(plan) => plan,
        Err(error) => {
            let found = format!("rules of kube-proxy cannot be looked for: {error}");
            return vec![Finding::warning(
                AREA,
                found,
                "run the check as root, with nft and iptables-save in its PATH",
            )];
        }
    };
    let mut findings = Vec::new();
    let names: Vec<String> = plan.items().map(ToString::to_string).collect();
    if !names.is_empty() {
        let more = names.len().saturating_sub(NAMED);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let whose = if running { "rules of kube-proxy are in place" } else { "kube-proxy left rules behind" };
        findings.push(Finding::warning(AREA, format!("{whose}: {shown}{more}"), CLEAN));
    }
    for missing in plan.missing {
        findings.push(Finding::warning(AREA, missing, "install it on the node to be sure, or look by hand"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listening_socket_and_its_process_are_found() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        for wanted in [address, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())] {
            let found = port(wanted, Path::new("/proc")).unwrap().found;
            assert!(found.contains(&format!("listens on port {}", address.port())), "{found}");
        }
        assert_eq!(port(SocketAddr::new(Ipv4Addr::new(127, 0, 0, 9).into(), address.port()), Path::new("/proc")), None);
        let inode = listener(address).unwrap();
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(owner(inode, Path::new("/proc")).as_deref(), Some(own.trim_end()));
    }

    #[test]
    fn lines_of_proc_net_tcp() {
        let line = "   0: 0100007F:2809 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        assert_eq!(listening(line), Some(("127.0.0.1:10249".parse().unwrap(), 4711)));
        let line =
            "  1: 00000000000000000000000000000000:2810 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 99 1";
        assert_eq!(listening(line), Some(("[::]:10256".parse().unwrap(), 99)));
        assert_eq!(listening(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listening("  sl  local_address rem_address   st"), None);
    }
}
