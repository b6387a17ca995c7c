//! kube-proxy's iptables and IPVS modes: chains named KUBE-* in the tables nat, filter and mangle, and the jumps to them.
//!
//! Chains of that prefix belong to others, too: KUBE-FIREWALL, KUBE-KUBELET-CANARY and KUBE-IPTABLES-HINT to the kubelet,
//! KUBE-HOSTPORTS and KUBE-HP-* to container runtimes. So names are taken from a list: the one of `kube-proxy --cleanup`, which
//! leaves KUBE-FIREWALL alone as well.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    leftovers::{Action, Item, Kept, Plan, Step},
    nft::Ruleset,
    programs::{ProgramError, ask},
};

const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    MARK,
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    // IPVS mode.
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// One or more per Service.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-", "KUBE-EXT-"];
/// Sets the mark by which KUBE-POSTROUTING masquerades. Who jumps there needs both.
const MARK: &str = "KUBE-MARK-MASQ";
const MASQUERADE: &str = "KUBE-POSTROUTING";
const TABLES: [&str; 3] = ["nat", "filter", "mangle"];
const RESTORE_ARGS: [&str; 3] = ["--noflush", "--wait", "5"];

/// The programs of both families: two kinds, side by side or only one of them under its plain name.
const FAMILIES: [(&str, &str); 2] = [("iptables", "ip"), ("ip6tables", "ip6")];
const KINDS: [&str; 2] = ["-nft", "-legacy"];

pub(super) fn look(plan: &mut Plan, nft: &Ruleset) -> Result<(), ProgramError> {
    for (program, family) in FAMILIES {
        let mut found = Vec::new();
        for kind in KINDS {
            let name = format!("{program}{kind}");
            if let Some(saved) = ask(&format!("{name}-save"), &[])? {
                found.push((name, saved));
            }
        }
        if found.is_empty()
            && let Some(saved) = ask(&format!("{program}-save"), &[])?
        {
            found.push((program.to_owned(), saved));
        }
        if found.is_empty() {
            note_missing(plan, nft, program, family);
        }
        for (name, saved) in found {
            parse(&saved).iter().for_each(|table| table_step(plan, &name, table));
        }
    }
    Ok(())
}

/// Without the program, only a trace of kube-proxy's chains makes it missed.
fn note_missing(plan: &mut Plan, nft: &Ruleset, program: &str, family: &str) {
    let in_nft = nft.chains.iter().any(|(of, _, chain)| of == family && is_kube_proxys(chain));
    let names = format!("/proc/net/{}_tables_names", if family == "ip" { "ip" } else { "ip6" });
    let in_legacy = std::fs::read_to_string(names).is_ok_and(|names| !names.trim().is_empty());
    if in_nft || in_legacy || !nft.known {
        plan.missing.push(format!("{program}-save is not installed: rules of {program} were not looked for"));
    }
}

pub(super) fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// One table of iptables-save.
#[derive(Debug, Default)]
struct Table<'a> {
    name: &'a str,
    /// With a policy; user-defined ones have none.
    chains: BTreeMap<&'a str, Option<&'a str>>,
    rules: Vec<Rule<'a>>,
}

#[derive(Debug)]
struct Rule<'a> {
    chain: &'a str,
    target: Option<&'a str>,
    /// As it was printed after `-A `.
    text: &'a str,
}

fn parse(saved: &str) -> Vec<Table<'_>> {
    let mut tables: Vec<Table<'_>> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table { name, ..Table::default() });
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split_whitespace();
            if let Some(name) = words.next() {
                table.chains.insert(name, words.next().filter(|policy| *policy != "-"));
            }
        } else if let Some(text) = line.strip_prefix("-A ") {
            let words = words(text);
            let target = words.windows(2).find(|pair| matches!(pair[0], "-j" | "-g")).map(|pair| pair[1]);
            if let Some(chain) = words.first() {
                table.rules.push(Rule { chain, target, text });
            }
        }
    }
    tables.retain(|table| TABLES.contains(&table.name));
    tables
}

/// Words of a rule; what stands in quotes (a comment) is one word.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut quoted, mut escaped) = (None, false, false);
    for (at, byte) in text.bytes().enumerate() {
        if byte == b' ' && !quoted {
            words.extend(start.take().map(|start| &text[start..at]));
            continue;
        }
        start.get_or_insert(at);
        if byte == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = byte == b'\\' && !escaped;
    }
    words.extend(start.map(|start| &text[start..]));
    words
}

impl<'a> Table<'a> {
    fn is_builtin(&self, chain: &str) -> bool {
        self.chains.get(chain).is_some_and(Option::is_some)
    }

    /// kube-proxy's chains to which a chain of somebody else jumps, and what those need.
    fn needed_by_others(&self) -> BTreeMap<&'a str, &'a str> {
        let mut needed = BTreeMap::new();
        let foreign = |rule: &&Rule<'a>| !is_kube_proxys(rule.chain) && !self.is_builtin(rule.chain);
        for rule in self.rules.iter().filter(foreign) {
            if let Some(target) = rule.target.filter(|target| is_kube_proxys(target)) {
                needed.insert(target, rule.chain);
            }
        }
        loop {
            let before = needed.len();
            for rule in &self.rules {
                if let (Some(by), Some(target)) = (needed.get(rule.chain).copied(), rule.target)
                    && is_kube_proxys(target)
                {
                    needed.entry(target).or_insert(by);
                }
            }
            if let Some(by) = needed.get(MARK).copied() {
                needed.entry(MASQUERADE).or_insert(by);
            }
            if needed.len() == before {
                return needed;
            }
        }
    }
}

fn table_step(plan: &mut Plan, program: &str, table: &Table<'_>) {
    let item = |kind, name: String| Item { by: program.to_owned(), table: table.name.to_owned(), kind, name };
    let needed = table.needed_by_others();
    let goes = |chain: &str| is_kube_proxys(chain) && !needed.contains_key(chain);
    for (chain, by) in needed.iter().filter(|(chain, _)| table.chains.contains_key(*chain)) {
        plan.kept.push(Kept { item: item("chain", (*chain).to_owned()), why: format!("the chain {by} uses it") });
    }
    let (mut input, mut items) = (format!("*{}\n", table.name), Vec::new());
    for rule in table.rules.iter().filter(|rule| table.is_builtin(rule.chain)) {
        if let Some(target) = rule.target.filter(|target| goes(target)) {
            input.push_str(&format!("-D {}\n", rule.text));
            items.push(item("jump", format!("{} -> {target}", rule.chain)));
        }
    }
    let chains: BTreeSet<&str> = table.chains.keys().copied().filter(|chain| goes(chain)).collect();
    // All are emptied before the first goes: they jump to each other.
    chains.iter().for_each(|chain| input.push_str(&format!("-F {chain}\n")));
    chains.iter().for_each(|chain| input.push_str(&format!("-X {chain}\n")));
    items.extend(chains.iter().map(|chain| item("chain", (*chain).to_owned())));
    if items.is_empty() {
        return;
    }
    input.push_str("COMMIT\n");
    if chains.contains("KUBE-FORWARD") && table.chains.get("FORWARD") == Some(&Some("DROP")) {
        let note = "the policy of FORWARD is DROP: what is forwarded to pods now needs rules of another (the CNI's)";
        plan.notes.push(format!("{program}: {note}"));
    }
    let action = Action::Program { name: format!("{program}-restore"), args: RESTORE_ARGS.to_vec(), input };
    plan.steps.push(Step { action, items });
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-nft-save
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-HOSTPORTS - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m comment --comment \"not -j KUBE-SERVICES \\\" at all\" -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -j KUBE-SEP-A
-A KUBE-SEP-A -s 10.1.1.1/32 -j KUBE-MARK-MASQ
COMMIT
*filter
:FORWARD DROP [0:0]
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A INPUT -j KUBE-FIREWALL
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
COMMIT
";

    fn plan(saved: &str) -> Plan {
        let mut plan = Plan::default();
        parse(saved).iter().for_each(|table| table_step(&mut plan, "iptables-nft", table));
        plan
    }

    fn input(step: &Step) -> &str {
        match &step.action {
            Action::Program { input, .. } => input,
            Action::RemoveLink(_) => panic!("{step:?}"),
        }
    }

    #[test]
    fn kube_proxys_chains_and_jumps_go() {
        let plan = plan(SAVED);
        assert_eq!(
            input(&plan.steps[0]).lines().collect::<Vec<_>>(),
            [
                "*nat",
                "-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
                "-D POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
                "-F KUBE-MARK-MASQ",
                "-F KUBE-POSTROUTING",
                "-F KUBE-SEP-A",
                "-F KUBE-SERVICES",
                "-F KUBE-SVC-A",
                "-X KUBE-MARK-MASQ",
                "-X KUBE-POSTROUTING",
                "-X KUBE-SEP-A",
                "-X KUBE-SERVICES",
                "-X KUBE-SVC-A",
                "COMMIT",
            ]
        );
        let filter = "*filter\n-D FORWARD -j KUBE-FORWARD\n-F KUBE-FORWARD\n-X KUBE-FORWARD\nCOMMIT\n";
        assert_eq!(input(&plan.steps[1]), filter, "the kubelet's chain stays");
        assert_eq!(plan.steps.len(), 2, "kube-proxy has nothing in the table raw");
        assert_eq!((plan.kept.len(), plan.notes.len()), (0, 1), "{:?} {:?}", plan.kept, plan.notes);
    }

    #[test]
    fn what_others_jump_to_stays() {
        let used = SAVED.replace("-A KUBE-SERVICES", "-A KUBE-HOSTPORTS -p tcp -j KUBE-MARK-MASQ\n-A KUBE-SERVICES");
        let plan = plan(&used);
        let kept: Vec<_> = plan.kept.iter().map(|kept| kept.item.name.as_str()).collect();
        assert_eq!(kept, ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"]);
        let input = input(&plan.steps[0]);
        assert!(!input.contains("-j KUBE-POSTROUTING") && !input.contains("-X KUBE-MARK-MASQ"), "{input}");
        assert!(input.contains("-X KUBE-SEP-A"));
    }

    #[test]
    fn a_node_without_kube_proxy_has_nothing_to_do() {
        let foreign: String =
            SAVED.lines().filter(|line| !is_kube_proxys_line(line)).map(|line| format!("{line}\n")).collect();
        assert!(plan(&foreign).steps.is_empty());
    }

    fn is_kube_proxys_line(line: &str) -> bool {
        line.split([' ', ':', '"']).any(is_kube_proxys)
    }
}
