//! kube-proxy's nftables mode: the tables `ip kube-proxy` and `ip6 kube-proxy`, which are its alone.
//!
//! The kernel tracks and translates packets only while some rule or chain asks for it. If kube-proxy's were the last, every
//! connection that they translated would break with them. So a table of our own with an empty chain of type nat, whose only rule
//! asks for connection tracking, comes before anything goes, and stays until no connection needs it.

use std::collections::BTreeSet;

use super::{
    iptables,
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
    /// Family, table and chain.
    pub(super) chains: BTreeSet<(String, String, String)>,
}

pub(super) fn look(plan: &mut Plan) -> Result<Ruleset, ProgramError> {
    let Some(chains) = ask("nft", &["list", "chains"])? else {
        plan.missing.push("nft is not installed: tables of nftables were not looked for".to_owned());
        return Ok(Ruleset::default());
    };
    let tables = ask("nft", &["list", "tables"])?.unwrap_or_default();
    let ruleset = parse(&tables, &chains);
    for family in FAMILIES.into_iter().filter(|family| ruleset.has(family, KUBE_PROXY)) {
        let items = vec![Item { name: format!("{family} {KUBE_PROXY}"), ..item() }];
        plan.steps.push(Step { action: nft(format!("delete table {family} {KUBE_PROXY}\n")), items });
    }
    Ok(ruleset)
}

/// Our own table, once it is known what goes.
pub(super) fn hand_over(plan: &mut Plan, ruleset: &Ruleset) {
    for family in FAMILIES {
        let name = format!("{family} {HANDOVER}");
        let goes = |item: &Item| (family == "ip6") == (item.by.starts_with("ip6") || item.name.starts_with("ip6 "));
        if plan.items().any(goes) {
            if !ruleset.known {
                plan.notes.push(NO_HANDOVER.to_owned());
                return;
            }
            let input = format!(
                "add table {name}\nadd chain {name} nat {{ type nat hook postrouting priority srcnat ; }}\n\
                 flush chain {name} nat\nadd rule {name} nat ct state new accept\n"
            );
            plan.steps.insert(0, Step { action: nft(input), items: vec![] });
            let why = "so that the kernel goes on to translate the connections that kube-proxy translated".to_owned();
            plan.kept.push(Kept { item: Item { name, ..item() }, why });
        } else if ruleset.has(family, HANDOVER) {
            let item = Item { name: name.clone(), ..item() };
            match kernel_flows().map(|flows| count(&flows, family)) {
                Ok(0) => plan.steps.push(Step { action: nft(format!("delete table {name}\n")), items: vec![item] }),
                Ok(count) => {
                    plan.kept.push(Kept { item, why: format!("the kernel still translates {count} connections") });
                }
                Err(error) => plan.kept.push(Kept { item, why: format!("list the kernel's connections: {error}") }),
            }
        }
    }
}

const NO_HANDOVER: &str =
    "without nft, connections that kube-proxy translated live on only if rules of others track connections";

/// Connections to a Service, by all that the kernel knows: their destination changes.
fn count(flows: &[KernelFlow], family: &str) -> usize {
    let to_service = |flow: &&KernelFlow| flow.is_open() && flow.to != flow.answer_from;
    flows.iter().filter(to_service).filter(|flow| flow.from.is_ipv4() == (family == "ip")).count()
}

fn item() -> Item {
    Item { by: "nft".to_owned(), table: String::new(), kind: "table", name: String::new() }
}

fn nft(input: String) -> Action {
    Action::Program { name: "nft".to_owned(), args: vec!["-f", "-"], input }
}

/// Takes our own tables away, where kube-proxy's rules are back or the kernel translates nothing any more. Returns those
/// that stay.
pub fn remove_handover() -> Result<Vec<Kept>, ProgramError> {
    let mut kept = Vec::new();
    let Some(tables) = ask("nft", &["list", "tables"])? else { return Ok(kept) };
    if !tables.contains(HANDOVER) {
        return Ok(kept);
    }
    let ruleset = parse(&tables, &ask("nft", &["list", "chains"])?.unwrap_or_default());
    for family in FAMILIES.into_iter().filter(|family| ruleset.has(family, HANDOVER)) {
        let item = Item { name: format!("{family} {HANDOVER}"), ..item() };
        let kube_proxys = |(of, _, chain): &(String, String, String)| of == family && iptables::is_kube_proxys(chain);
        let is_back = ruleset.has(family, KUBE_PROXY) || ruleset.chains.iter().any(kube_proxys);
        match kernel_flows().map(|flows| count(&flows, family)) {
            Ok(count) if count > 0 && !is_back => {
                kept.push(Kept { item, why: format!("the kernel still translates {count} connections") });
            }
            _ => drop(run("nft", &["delete", "table", family, HANDOVER], "")?),
        }
    }
    Ok(kept)
}

impl Ruleset {
    fn has(&self, family: &str, table: &str) -> bool {
        self.tables.contains(&(family.to_owned(), table.to_owned()))
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
            _ => {}
        }
    }
    ruleset
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAINS: &str = "table ip kube-proxy {\n\tchain nat-prerouting {\n\t\ttype nat hook prerouting priority dstnat; policy \
                          accept;\n\t}\n\tchain services {\n\t}\n}\ntable inet cni {\n\tchain post {\n\t}\n}\n";

    #[test]
    fn listings() {
        let ruleset = parse("table ip kube-proxy\ntable inet cni\n", CHAINS);
        assert!(ruleset.has("ip", "kube-proxy") && ruleset.has("inet", "cni") && !ruleset.has("ip6", "kube-proxy"));
        let chains: Vec<_> = ruleset.chains.iter().map(|(_, table, chain)| format!("{table} {chain}")).collect();
        assert_eq!(chains, ["cni post", "kube-proxy nat-prerouting", "kube-proxy services"]);
    }

    #[test]
    fn our_table_comes_first_and_per_family() {
        let mut plan = Plan::default();
        let chain =
            Item { by: "ip6tables-nft".into(), table: "nat".into(), kind: "chain", name: "KUBE-SERVICES".into() };
        plan.steps.push(Step { action: nft(String::new()), items: vec![chain] });
        hand_over(&mut plan, &parse("", ""));
        let inputs: Vec<&str> = plan.steps.iter().map(input).collect();
        assert_eq!(inputs.len(), 2);
        assert!(inputs[0].starts_with("add table ip6 weir-handover\n"), "{inputs:?}");
        assert_eq!(plan.kept[0].item.name, "ip6 weir-handover");
        let mut unknown = Plan { kept: vec![], ..plan };
        hand_over(&mut unknown, &Ruleset::default());
        assert_eq!((unknown.kept.len(), unknown.notes.len()), (0, 1));
    }

    fn input(step: &Step) -> &str {
        match &step.action {
            Action::Program { input, .. } => input,
            Action::RemoveLink(_) => panic!("{step:?}"),
        }
    }
}
