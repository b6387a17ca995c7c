//! kube-proxy's nftables mode: the tables `ip kube-proxy` and `ip6 kube-proxy`, which are its alone.
//!
//! The kernel translates the packets of known connections only while some chain of type nat is there; with the last of a
//! family, every connection that kube-proxy translated would break. So if there is no other, an empty one takes its place in the
//! same transaction, in a table of our own, until no translated connection is left.

use std::collections::BTreeSet;

use super::{
    kernel_flows::{KernelFlow, kernel_flows},
    leftovers::{Action, Item, Kept, Plan, Step},
    programs::{ProgramError, ask, run},
};

const KUBE_PROXY: &str = "kube-proxy";
/// Name of our own table in either family.
const HANDOVER: &str = "weir-handover";
const FAMILIES: [&str; 2] = ["ip", "ip6"];

/// The parts of a listing that matter here.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    /// Whether there is a program nft that answered.
    pub(super) known: bool,
    /// Family and name.
    tables: BTreeSet<(String, String)>,
    /// Those with a chain of type nat.
    with_nat: BTreeSet<(String, String)>,
    /// Family, table and chain.
    pub(super) chains: BTreeSet<(String, String, String)>,
}

pub(super) fn look(plan: &mut Plan) -> Result<Ruleset, ProgramError> {
    let Some(listing) = ask("nft", &["list", "chains"])? else {
        plan.missing.push("nft is not installed: tables of nftables were not looked for".to_owned());
        return Ok(Ruleset::default());
    };
    let tables = ask("nft", &["list", "tables"])?.unwrap_or_default();
    let ruleset = parse(&tables, &listing);
    for family in FAMILIES {
        family_steps(plan, &ruleset, family);
    }
    Ok(ruleset)
}

fn family_steps(plan: &mut Plan, ruleset: &Ruleset, family: &'static str) {
    let has = |name: &str| ruleset.tables.contains(&(family.to_owned(), name.to_owned()));
    let nat_elsewhere = ruleset.has_other_nat(family) || legacy_nat(family);
    let handover = Item { kind: "table", name: format!("{family} {HANDOVER}"), ..item() };
    if has(KUBE_PROXY) {
        let mut input = String::new();
        if !nat_elsewhere {
            input = format!(
                "add table {family} {HANDOVER}\n\
                 add chain {family} {HANDOVER} nat {{ type nat hook postrouting priority srcnat ; }}\n"
            );
            plan.kept.push(Kept {
                item: handover,
                why: "new: without any nat chain the kernel translates no packet".into(),
            });
        }
        input.push_str(&format!("delete table {family} {KUBE_PROXY}\n"));
        let items = vec![Item { kind: "table", name: format!("{family} {KUBE_PROXY}"), ..item() }];
        plan.steps.push(Step { action: nft(input), items });
    } else if has(HANDOVER) {
        match kernel_flows() {
            _ if nat_elsewhere => plan.steps.push(handover_step(family, handover)),
            Ok(flows) if count(&flows, family) == 0 => plan.steps.push(handover_step(family, handover)),
            Ok(flows) => {
                let why = format!("the kernel still translates {} connections", count(&flows, family));
                plan.kept.push(Kept { item: handover, why });
            }
            Err(error) => {
                plan.kept.push(Kept { item: handover, why: format!("list the kernel's connections: {error}") })
            }
        }
    }
}

fn handover_step(family: &str, handover: Item) -> Step {
    Step { action: nft(format!("delete table {family} {HANDOVER}\n")), items: vec![handover] }
}

fn count(flows: &[KernelFlow], family: &str) -> usize {
    flows
        .iter()
        .filter(|flow| flow.is_translated() && flow.is_open() && flow.from.is_ipv4() == (family == "ip"))
        .count()
}

fn item() -> Item {
    Item { by: "nft".to_owned(), table: String::new(), kind: "table", name: String::new() }
}

fn nft(input: String) -> Action {
    Action::Program { name: "nft".to_owned(), args: vec!["-f", "-"], input }
}

/// Takes our own tables away, whatever is left of kube-proxy's connections. Returns how many there were.
pub fn remove_handover() -> Result<usize, ProgramError> {
    let Some(tables) = ask("nft", &["list", "tables"])? else { return Ok(0) };
    let ruleset = parse(&tables, "");
    let mut removed = 0;
    for family in FAMILIES {
        if ruleset.tables.contains(&(family.to_owned(), HANDOVER.to_owned())) {
            run("nft", &["delete", "table", family, HANDOVER], "")?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// True if iptables' own module has its nat table in this network namespace.
fn legacy_nat(family: &str) -> bool {
    let names = if family == "ip" { "/proc/net/ip_tables_names" } else { "/proc/net/ip6_tables_names" };
    std::fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == "nat"))
}

impl Ruleset {
    /// A chain of type nat that is neither kube-proxy's nor ours.
    fn has_other_nat(&self, family: &str) -> bool {
        let mut tables = self.with_nat.iter();
        tables.any(|(of, name)| (of == family || of == "inet") && name != KUBE_PROXY && name != HANDOVER)
    }
}

/// Of `nft list tables` and `nft list chains`.
fn parse(tables: &str, chains: &str) -> Ruleset {
    let mut ruleset = Ruleset { known: true, ..Ruleset::default() };
    for line in tables.lines() {
        if let ["table", family, name] = line.split_whitespace().collect::<Vec<_>>()[..] {
            ruleset.tables.insert((family.to_owned(), name.to_owned()));
        }
    }
    let mut table = (String::new(), String::new());
    for line in chains.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["table", family, name, "{"] => table = (family.to_owned(), name.to_owned()),
            ["chain", name, "{"] => {
                ruleset.chains.insert((table.0.clone(), table.1.clone(), name.to_owned()));
            }
            ["type", "nat", ..] => {
                ruleset.with_nat.insert(table.clone());
            }
            _ => {}
        }
    }
    ruleset
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAINS: &str = "table ip kube-proxy {\n\tchain nat-prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t}\n\
                          \tchain services {\n\t}\n}\ntable inet cni {\n\tchain post {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t}\n}\n";

    fn steps(tables: &str, chains: &str) -> Plan {
        let mut plan = Plan::default();
        let ruleset = parse(tables, chains);
        FAMILIES.into_iter().for_each(|family| family_steps(&mut plan, &ruleset, family));
        plan
    }

    fn input(step: &Step) -> &str {
        match &step.action {
            Action::Program { input, .. } => input,
            Action::RemoveLink(_) => panic!("{step:?}"),
        }
    }

    #[test]
    fn the_tables_go_and_others_stay() {
        let plan = steps("table ip kube-proxy\ntable inet cni\ntable ip6 kube-proxy\n", CHAINS);
        let names: Vec<_> = plan.items().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["ip kube-proxy", "ip6 kube-proxy"]);
        assert_eq!(input(&plan.steps[0]), "delete table ip kube-proxy\n", "the CNI has a nat chain in either family");
        assert!(plan.kept.is_empty());
    }

    #[test]
    fn the_last_nat_chain_is_replaced() {
        let only = CHAINS.split("table inet").next().unwrap();
        let plan = steps("table ip kube-proxy\n", only);
        let lines: Vec<_> = input(&plan.steps[0]).lines().collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("add table ip weir-handover"));
        assert!(lines[1].contains("type nat hook postrouting"));
        assert_eq!(lines[2], "delete table ip kube-proxy");
        assert_eq!(plan.kept[0].item.name, "ip weir-handover");
    }
}
