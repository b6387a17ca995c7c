//! kube-proxy's IPVS mode: its dummy interface, the virtual servers, and the sets that its iptables rules name.
//!
//! Only where that interface is. Then all virtual servers go, as by `kube-proxy --cleanup`: nothing tells one of kube-proxy's
//! from another's. IPVS keeps no translation without them, so connections through them are cut.

use super::{
    leftovers::{Action, Item, Plan, Step},
    programs::{ProgramError, ask},
};

const INTERFACE: &str = "kube-ipvs0";
const SERVERS: &str = "/proc/net/ip_vs";

pub(super) fn look(plan: &mut Plan) -> Result<(), ProgramError> {
    let Ok(index) = nix::net::if_::if_nametoindex(INTERFACE) else { return Ok(()) };
    let servers = parse(&std::fs::read_to_string(SERVERS).unwrap_or_default());
    if !servers.is_empty() {
        match ask("ipvsadm", &["--version"])? {
            None => {
                plan.missing.push(format!("ipvsadm is not installed: {} virtual servers of IPVS stay", servers.len()))
            }
            Some(_) => {
                let item = |name| Item { by: "ipvsadm".to_owned(), table: String::new(), kind: "server", name };
                let items = servers.into_iter().map(item).collect();
                let action =
                    Action::Program { name: "ipvsadm".to_owned(), args: vec!["--clear"], input: String::new() };
                plan.steps.push(Step { action, items });
            }
        }
    }
    let item = Item { by: "netlink".to_owned(), table: String::new(), kind: "interface", name: INTERFACE.to_owned() };
    plan.steps.push(Step { action: Action::RemoveLink(index), items: vec![item] });
    match ask("ipset", &["list", "-name"])? {
        None => plan.missing.push("ipset is not installed: sets named KUBE-* stay".to_owned()),
        Some(names) => plan.steps.extend(sets(&names)),
    }
    Ok(())
}

/// Protocol, address and port in hexadecimal, as the kernel prints them: enough to tell one from the other.
fn parse(listing: &str) -> Vec<String> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let protocol = words.next().filter(|word| matches!(*word, "TCP" | "UDP" | "SCTP"))?;
        Some(format!("{protocol} {}", words.next()?))
    };
    listing.lines().filter_map(server).collect()
}

fn sets(names: &str) -> Option<Step> {
    let names: Vec<&str> = names.lines().filter(|name| name.starts_with("KUBE-")).collect();
    let item =
        |name: &&str| Item { by: "ipset".to_owned(), table: String::new(), kind: "set", name: (*name).to_owned() };
    let input = names.iter().map(|name| format!("destroy {name}\n")).collect();
    let action = Action::Program { name: "ipset".to_owned(), args: vec!["restore"], input };
    (!names.is_empty()).then(|| Step { action, items: names.iter().map(item).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_sets() {
        let listing = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port\n\
                       TCP  0A600001:01BB rr\n  -> C0A80005:192B      Masq    1      0          0\nUDP  0A60000A:0035 rr\n";
        assert_eq!(parse(listing), ["TCP 0A600001:01BB", "UDP 0A60000A:0035"]);
        let step = sets("KUBE-CLUSTER-IP\nmine\nKUBE-6-LOOP-BACK\n").unwrap();
        let names: Vec<_> = step.items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["KUBE-CLUSTER-IP", "KUBE-6-LOOP-BACK"]);
        assert!(sets("mine\n").is_none());
    }
}
