//! Filters of the host that see something else once Weir translates: before, packets passed PREROUTING with the frontend as their
//! destination; now they come to every hook of netfilter with the endpoint. Rules are read by `nft` and `iptables-save`, which
//! change nothing.

mod iptables;
mod nft;

use std::{io, ops::RangeInclusive, process::Command};

use ipnet::IpNet;

use super::{Finding, Frontends};

const AREA: &str = "firewall";
/// How many rules of a chain are named.
const NAMED: usize = 3;
const REWRITE: &str = "write the rule by endpoint: pod address and target port, in the forward path (docs/operations.md, Host firewalls); \
    or restrict the Service itself by loadBalancerSourceRanges, --nodeport-addresses or a NetworkPolicy";
const FORWARD: &str =
    "accept traffic to and from the pods' addresses there, if the CNI does not; kube-proxy's rules did so for its own";
/// Tables that are part of what is taken over, or our own.
const OWN_TABLES: [&str; 2] = ["kube-proxy", "weir-handover"];
/// Chains of kube-proxy, likewise.
const OWN_CHAINS: &str = "KUBE-";

/// Where packets meet a chain, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hook {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
}

impl Hook {
    fn of(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "ingress" => Self::Ingress,
            "prerouting" => Self::Prerouting,
            "input" => Self::Input,
            "forward" => Self::Forward,
            "output" => Self::Output,
            _ => return None,
        })
    }
}

/// A chain with a hook of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Base {
    /// For people: `table inet filter, chain input`.
    place: String,
    hook: Hook,
    drops: bool,
}

/// A rule that names destinations, in a chain that packets reach from `hooks`.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    place: String,
    hooks: Vec<Hook>,
    /// For people.
    text: String,
    /// Empty: any.
    destinations: Vec<IpNet>,
    ports: Vec<RangeInclusive<u16>>,
    accepts: bool,
}

#[derive(Debug, Default)]
struct Rules {
    bases: Vec<Base>,
    rules: Vec<Rule>,
}

pub(super) fn check(frontends: &Frontends) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut all = Rules::default();
    let mut by_iptables = false;
    for program in ["iptables-save", "ip6tables-save"] {
        match output(program, &[]) {
            Ok(Some(text)) => {
                by_iptables = true;
                all.add(iptables::parse(program, &text));
            }
            Ok(None) => {}
            Err(error) => findings.push(unreadable(program, &error)),
        }
    }
    match output("nft", &["-j", "list", "ruleset"]).map(|text| text.map(|text| nft::parse(&text, by_iptables))) {
        Ok(Some(Ok(rules))) => all.add(rules),
        Ok(Some(Err(error))) => findings.push(unreadable("nft", &error)),
        Ok(None) if by_iptables => {}
        Ok(None) => findings.push(Finding::warning(
            AREA,
            "neither nft nor iptables-save is installed here: filters were not looked at",
            "run the check on the node itself, or look for rules on Service addresses and NodePorts by hand",
        )),
        Err(error) => findings.push(unreadable("nft", &error)),
    }
    findings.extend(all.judge(frontends));
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, "no filter rule names a Service address or a NodePort"));
    }
    findings
}

fn unreadable(program: &str, error: &dyn std::fmt::Display) -> Finding {
    Finding::warning(AREA, format!("filters cannot be read by {program}: {error}"), "run the check as root")
}

/// `None` if the program is not there.
fn output(program: &str, args: &[&str]) -> io::Result<Option<String>> {
    let output = match Command::new(program).args(args).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        output => output?,
    };
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

impl Rules {
    fn add(&mut self, more: Self) {
        self.bases.extend(more.bases);
        self.rules.extend(more.rules);
    }

    fn judge(&self, frontends: &Frontends) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut by_place: Vec<(&str, Vec<&Rule>)> = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.names(frontends)) {
            match by_place.iter_mut().find(|(place, _)| *place == rule.place) {
                Some((_, rules)) => rules.push(rule),
                None => by_place.push((&rule.place, vec![rule])),
            }
        }
        for (place, rules) in by_place {
            let more = rules.len().saturating_sub(NAMED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let shown: Vec<_> = rules.iter().take(NAMED).map(|rule| format!("`{}`", rule.text)).collect();
            let found = format!(
                "{place}: {}{more}: no longer sees packets to Service addresses or NodePorts",
                shown.join(", ")
            );
            findings.push(Finding::warning(AREA, found, REWRITE));
        }
        for base in self.bases.iter().filter(|base| base.hook == Hook::Forward && base.drops) {
            findings.push(Finding::warning(
                AREA,
                format!("{}: the policy of the forward path is drop", base.place),
                FORWARD,
            ));
        }
        findings
    }
}

impl Rule {
    /// Packets of others come by ingress, prerouting and (to the node itself) input; the node's own by output. A rule about far
    /// more than frontends that accepts is not about them.
    fn names(&self, frontends: &Frontends) -> bool {
        if self.hooks.iter().all(|hook| *hook == Hook::Forward) {
            return false;
        }
        let single = |net: &IpNet| frontends.addresses.iter().any(|address| net.contains(address));
        let within = |net: &IpNet| frontends.ranges.iter().any(|range| range.contains(net));
        let around = |net: &IpNet| frontends.ranges.iter().any(|range| net.contains(range));
        let addressed = |net: &IpNet| {
            let narrow = within(net) || net.prefix_len() == net.max_prefix_len() && single(net);
            narrow || !self.accepts && net.prefix_len() > 0 && (around(net) || single(net))
        };
        if self.destinations.iter().any(addressed) {
            return true;
        }
        let (first, last) = (frontends.node_ports.start(), frontends.node_ports.end());
        let node_port = |ports: &RangeInclusive<u16>| {
            let inside = first <= ports.start() && ports.end() <= last;
            inside || !self.accepts && ports.start() <= last && first <= ports.end()
        };
        self.ports.iter().any(node_port)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    pub(super) fn frontends() -> Frontends {
        Frontends {
            ranges: vec!["10.96.0.0/12".parse().unwrap()],
            addresses: vec!["203.0.113.9".parse().unwrap()],
            node_ports: 30000..=32767,
        }
    }

    fn rule(destination: &str, ports: &[RangeInclusive<u16>], accepts: bool, hook: Hook) -> Rule {
        Rule {
            place: "table ip x, chain y".into(),
            hooks: vec![hook],
            text: "text".into(),
            destinations: (!destination.is_empty()).then(|| destination.parse().unwrap()).into_iter().collect(),
            ports: ports.to_vec(),
            accepts,
        }
    }

    #[test]
    fn which_rules_are_about_frontends() {
        let any = Hook::Prerouting;
        for (rule, expected) in [
            (rule("10.96.0.1/32", &[], false, any), true),
            (rule("10.96.0.0/16", &[], true, any), true),
            (rule("10.0.0.0/8", &[], false, any), true),
            (rule("10.0.0.0/8", &[], true, any), false),
            (rule("0.0.0.0/0", &[], false, any), false),
            (rule("192.168.0.0/16", &[], false, any), false),
            (rule("203.0.113.9/32", &[], true, any), true),
            (rule("", &[30080..=30080], false, Hook::Input), true),
            (rule("", &[30000..=32767], true, Hook::Input), true),
            (rule("", &[1024..=65535], false, Hook::Input), true),
            (rule("", &[1024..=65535], true, Hook::Input), false),
            (rule("", &[22..=22], false, Hook::Input), false),
            (rule("10.96.0.1/32", &[], false, Hook::Output), true),
            (rule("10.96.0.1/32", &[], false, Hook::Forward), false),
        ] {
            assert_eq!(rule.names(&frontends()), expected, "{rule:?}");
        }
    }

    #[test]
    fn one_finding_for_each_chain_and_each_forward_policy() {
        let node_port = || rule("", &[30080..=30080], false, Hook::Input);
        let base = |hook, drops| Base { place: "table ip filter, chain FORWARD".into(), hook, drops };
        let rules = Rules {
            bases: vec![base(Hook::Forward, true), base(Hook::Input, true), base(Hook::Forward, false)],
            rules: vec![node_port(), node_port(), node_port(), node_port()],
        };
        let findings = rules.judge(&frontends());
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[0].found.contains("and 1 more"), "{findings:?}");
        assert!(findings.iter().all(|finding| finding.level == Level::Warning));
    }
}
