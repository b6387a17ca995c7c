//! Settings of the kernel's network stack that change what becomes of Service traffic.

use std::{fs, path::Path};

use super::Finding;
use crate::node::ports::PortRange;

const AREA: &str = "sysctls";
const SYSCTLS: &str = "/proc/sys";

pub(super) fn check(snat_ports: PortRange) -> Vec<Finding> {
    below(Path::new(SYSCTLS), snat_ports)
}

fn below(root: &Path, snat_ports: PortRange) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned());
    let is = |path: &str, value: &str| read(path).is_some_and(|text| text == value);
    let mut findings = Vec::new();
    if is("net/ipv4/ip_forward", "0") {
        findings.push(Finding::error(
            AREA,
            "net.ipv4.ip_forward is 0: packets from outside do not reach pods",
            "sysctl -w net.ipv4.ip_forward=1, and in /etc/sysctl.d",
        ));
    }
    if is("net/ipv6/conf/all/forwarding", "0") {
        findings.push(Finding::warning(
            AREA,
            "net.ipv6.conf.all.forwarding is 0: IPv6 packets from outside do not reach pods",
            "if the cluster has IPv6: sysctl -w net.ipv6.conf.all.forwarding=1, and in /etc/sysctl.d",
        ));
    }
    for path in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        if is(path, "0") {
            findings.push(Finding::warning(
                AREA,
                format!("{} is 0: filters do not see answers between two pods on one bridge", path.replace('/', ".")),
                "if filters on the node look at `ct state`: set it to 1 (docs/operations.md, Filters)",
            ));
        }
    }
    if is("net/ipv4/conf/all/route_localnet", "1") {
        findings.push(Finding::warning(
            AREA,
            "net.ipv4.conf.all.route_localnet is 1: kube-proxy sets it for NodePorts on 127.0.0.1, and neighbours can reach \
             sockets that listen there only",
            "Weir does not need it: sysctl -w net.ipv4.conf.all.route_localnet=0 once kube-proxy's rules are gone",
        ));
    }
    findings.extend(source_ports(root, read("net/ipv4/ip_local_port_range"), snat_ports));
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, format!("forwarding is on; source ports {snat_ports} are not used by Linux")));
    }
    findings
}

/// The agent reserves the part that overlaps, if it may write there.
fn source_ports(root: &Path, range: Option<String>, snat_ports: PortRange) -> Option<Finding> {
    let range = range?;
    let mut numbers = range.split_whitespace().map(|number| number.parse::<u16>().unwrap_or(0));
    let (low, high) = (numbers.next()?, numbers.next()?);
    if snat_ports.last < low || snat_ports.first > high {
        return None;
    }
    let overlap = format!("--snat-ports {snat_ports} overlaps with net.ipv4.ip_local_port_range {low}-{high}");
    let reserved = root.join("net/ipv4/ip_local_reserved_ports");
    if nix::unistd::access(&reserved, nix::unistd::AccessFlags::W_OK).is_ok() {
        return Some(Finding::ok(AREA, format!("{overlap}; the agent reserves its own in ip_local_reserved_ports")));
    }
    Some(Finding::warning(
        AREA,
        format!("{overlap}, and ip_local_reserved_ports cannot be written from here"),
        format!("sysctl -w net.ipv4.ip_local_reserved_ports={snat_ports} on the node, or choose other --snat-ports"),
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    fn levels(values: &[(&str, &str)]) -> Vec<(Level, String)> {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in values {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        let range = PortRange { first: 61000, last: 65535 };
        below(root.path(), range).into_iter().map(|finding| (finding.level, finding.found)).collect()
    }

    #[test]
    fn each_setting_has_its_finding() {
        let good = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/bridge/bridge-nf-call-iptables", "1"),
            ("net/ipv4/conf/all/route_localnet", "0"),
            ("net/ipv4/ip_local_port_range", "32768\t60999"),
        ];
        assert_eq!(levels(&good).len(), 1);
        assert_eq!(levels(&good)[0].0, Level::Ok);
        for (index, (value, level)) in [
            ("0", Level::Error),
            ("0", Level::Warning),
            ("0", Level::Warning),
            ("1", Level::Warning),
            ("32768\t62000", Level::Warning),
        ]
        .into_iter()
        .enumerate()
        {
            let mut values = good;
            values[index].1 = value;
            let found = levels(&values);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].0, level, "{found:?}");
        }
        // Without the module of bridges or IPv6 there is nothing to say of them.
        assert_eq!(levels(&good[..1]).len(), 1);
    }

    #[test]
    fn an_overlap_that_the_agent_can_mend_is_none() {
        let found = levels(&[("net/ipv4/ip_local_port_range", "1024 65535"), ("net/ipv4/ip_local_reserved_ports", "")]);
        assert!(found[0].0 == Level::Ok && found[0].1.contains("reserves"), "{found:?}");
    }
}
