//! What `iptables-save` and `ip6tables-save` print, as far as the check needs it.

use std::{collections::BTreeMap, ops::RangeInclusive};

use ipnet::IpNet;

use super::{Base, Hook, OWN_CHAINS, Rule, Rules};

/// `program` is the one that printed it.
pub(super) fn parse(program: &str, text: &str) -> Rules {
    let family = program.trim_end_matches("-save");
    let mut rules = Rules::default();
    let mut table = Table::default();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table { name, ..Table::default() };
        } else if let Some(chain) = line.strip_prefix(':') {
            table.chain(family, chain);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            table.rules.push(rule);
        } else if line == "COMMIT" {
            table.finish(family, &mut rules);
        }
    }
    rules
}

#[derive(Default)]
struct Table<'a> {
    name: &'a str,
    bases: Vec<Base>,
    hooks: BTreeMap<&'a str, Vec<Hook>>,
    rules: Vec<&'a str>,
}

impl<'a> Table<'a> {
    /// `INPUT DROP [0:0]`, or `MINE - [0:0]`.
    fn chain(&mut self, family: &str, line: &'a str) {
        let mut words = line.split_whitespace();
        let (Some(name), Some(policy)) = (words.next(), words.next()) else { return };
        let Some(hook) = Hook::of(name).filter(|_| policy != "-") else { return };
        self.hooks.insert(name, vec![hook]);
        self.bases.push(Base { place: place(family, self.name, name), hook, drops: policy == "DROP" });
    }

    fn finish(&mut self, family: &str, into: &mut Rules) {
        let rules: Vec<Parsed<'_>> = self.rules.iter().filter_map(|text| Parsed::of(text)).collect();
        self.follow_jumps(&rules);
        into.bases.append(&mut self.bases);
        for rule in &rules {
            let Some(hooks) = self.hooks.get(rule.chain) else { continue };
            let own = rule.chain.starts_with(OWN_CHAINS) || rule.target.starts_with(OWN_CHAINS);
            if own || rule.destinations.is_empty() && rule.ports.is_empty() {
                continue;
            }
            into.rules.push(Rule {
                place: place(family, self.name, rule.chain),
                hooks: hooks.clone(),
                text: rule.text.to_owned(),
                destinations: rule.destinations.clone(),
                ports: rule.ports.clone(),
                accepts: matches!(rule.target, "ACCEPT" | "RETURN"),
            });
        }
        self.hooks.clear();
        self.rules.clear();
    }

    /// A chain is reached by the hooks of those that jump to it. There are at most as many rounds as chains.
    fn follow_jumps(&mut self, rules: &[Parsed<'a>]) {
        loop {
            let mut changed = false;
            for rule in rules {
                let from = self.hooks.get(rule.chain).cloned().unwrap_or_default();
                if from.is_empty() || rule.target.is_empty() {
                    continue;
                }
                let to = self.hooks.entry(rule.target).or_default();
                for hook in from.into_iter().filter(|hook| !to.contains(hook)).collect::<Vec<_>>() {
                    to.push(hook);
                    changed = true;
                }
            }
            if !changed {
                return;
            }
        }
    }
}

fn place(family: &str, table: &str, chain: &str) -> String {
    format!("{family} -t {table}, chain {chain}")
}

struct Parsed<'a> {
    chain: &'a str,
    text: &'a str,
    target: &'a str,
    destinations: Vec<IpNet>,
    ports: Vec<RangeInclusive<u16>>,
}

impl<'a> Parsed<'a> {
    fn of(text: &'a str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let mut parsed = Self { chain: words.first()?, text, target: "", destinations: vec![], ports: vec![] };
        for (at, pair) in words.windows(2).enumerate() {
            // What is excluded is not named.
            let negated = at > 0 && words[at - 1] == "!";
            match pair[0] {
                "-j" | "-g" => parsed.target = pair[1],
                "-d" | "--ctorigdst" if !negated => parsed.destinations.extend(net(pair[1])),
                "--dport" | "--dports" | "--ctorigdstport" if !negated => {
                    parsed.ports.extend(pair[1].split(',').filter_map(ports));
                }
                _ => {}
            }
        }
        Some(parsed)
    }
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)))
}

/// `80` or `30000:32767`.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::firewall::tests::frontends;

    const SAVED: &str = r#"# a comment
*raw
:PREROUTING ACCEPT [12:3456]
:OUTPUT ACCEPT [0:0]
:GUARD - [0:0]
:UNUSED - [0:0]
-A PREROUTING -i eth0 -p tcp -m tcp --dport 30080 -j DROP
-A PREROUTING -i eth0 -j GUARD
-A GUARD -d 10.96.0.0/12 -m comment --comment "no Services from outside" -j DROP
-A GUARD ! -d 10.97.0.1/32 -j RETURN
-A UNUSED -d 10.96.0.7/32 -j DROP
-A OUTPUT -d 10.96.0.1/32 -p tcp -j REJECT --reject-with tcp-reset
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m multiport --dports 80,30000:32767 -j ACCEPT
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -d 10.96.0.0/12 -j DROP
-A FORWARD -d 10.96.0.0/12 -j ACCEPT
COMMIT
"#;

    #[test]
    fn rules_that_no_longer_see_frontends() {
        let rules = parse("iptables-save", SAVED);
        let found: Vec<_> = rules.judge(&frontends()).into_iter().map(|finding| finding.found).collect();
        let starts = [
            "iptables -t raw, chain PREROUTING: `PREROUTING -i eth0 -p tcp -m tcp --dport 30080 -j DROP`: no longer",
            "iptables -t raw, chain GUARD: `GUARD -d 10.96.0.0/12 -m comment",
            "iptables -t raw, chain OUTPUT: `OUTPUT -d 10.96.0.1/32 -p tcp -j REJECT --reject-with tcp-reset`: no longer",
            "iptables -t filter, chain INPUT: `INPUT -p tcp -m multiport --dports 80,30000:32767 -j ACCEPT`: no longer",
            "iptables -t filter, chain FORWARD: the policy",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start) && !found.contains("10.97.0.1"), "{found}");
        }
    }

    #[test]
    fn garbage_is_nothing() {
        for text in [
            "",
            "COMMIT\n",
            "*\n:\n-A \nCOMMIT",
            "*nat\n:INPUT\n-A INPUT --dport\n-A INPUT -d x --dport y -j\nCOMMIT\n",
        ] {
            assert!(parse("iptables-save", text).judge(&frontends()).is_empty(), "{text:?}");
        }
    }
}
