//! Filters as CNIs and network policies write them, on the forward path of every node: by client address, by pod
//! address and by connection state, with everything else dropped; and a rule that masquerades what pods send out of
//! the cluster. All of it has to hold for translated traffic, too.

use anyhow::{Context, Result, ensure};

use super::{
    matrix::{self, Addressing},
    walk_all,
};
use crate::{
    demo::{
        paths::{Expect::TimedOut, Path, tcp, udp},
        stage::Stage,
    },
    world::{Host, Layout, PodLinks},
};

/// `client` may call pods and the host network's backend, `stranger` may not. Addresses by the rig's plan.
const POLICY: &str = "
table inet cni_policy {
  counter seen_invalid { }
  counter seen_replies { }
  chain forward {
    type filter hook forward priority filter; policy drop;
    meta l4proto ipv6-icmp accept
    ct state invalid counter name seen_invalid drop
    ct state established counter name seen_replies accept
    ct state new ip saddr { 172.18.0.101, 10.244.0.0/16, 172.18.0.11, 172.18.0.12 } ip daddr 10.244.0.0/16 meta l4proto { tcp, udp } th dport 8080 accept
    ct state new ip6 saddr { fd00:172:18::101, fd00:10:244::/48, fd00:172:18::11, fd00:172:18::12 } ip6 daddr fd00:10:244::/48 meta l4proto { tcp, udp } th dport 8080 accept
    ct state new ip saddr { 172.18.0.101, 10.244.0.0/16 } ip daddr 172.18.0.11 meta l4proto { tcp, udp } th dport 9100 accept
    ct state new ip6 saddr { fd00:172:18::101, fd00:10:244::/48 } ip6 daddr fd00:172:18::11 meta l4proto { tcp, udp } th dport 9100 accept
  }
}
";

const MASQUERADE: &str = "
table inet cni_nat {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    oifname \"veth*\" accept
    oifname { \"cni0\", \"vxlan.1\" } accept
    ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
    ip6 saddr fd00:10:244::/48 ip6 daddr != fd00:10:244::/48 masquerade
  }
}
";

const FORBIDDEN: &[Path] = &[
    tcp("a client that the policy does not name", "stranger", "node-1", 30083, TimedOut),
    udp("a client that the policy does not name", "stranger", "node-1/6", 30083, TimedOut),
    tcp("a client that the policy does not name", "stranger", "node-2/6", 30080, TimedOut),
];

pub(super) fn masquerade(node: &Host) -> Result<()> {
    node.nft(MASQUERADE)
}

/// Policy and masquerade rule on every node.
pub(super) fn install(stage: &Stage) -> Result<()> {
    for node in stage.world.nodes() {
        node.nft(POLICY)?;
        if !node.layout().overlay {
            masquerade(&node)?;
        }
    }
    Ok(())
}

/// The matrix behind the filters, the calls that they forbid, and what they counted.
pub(super) async fn check(stage: &Stage, layout: Layout, sources: &Addressing) -> Result<()> {
    walk_all(stage, &matrix::crossing(sources)).await?;
    // Without bridge-nf, Linux' connection tracking misses replies between ports of the bridge, and takes what
    // follows them for invalid. (kube-proxy cannot work at all in that setting.)
    if layout.pods != (PodLinks::Bridged { netfilter: false }) {
        walk_all(stage, &matrix::same_node(sources)).await?;
    }
    walk_all(stage, FORBIDDEN).await?;
    for node in stage.world.nodes() {
        let counters = node.run_program("nft", &["list", "counters", "table", "inet", "cni_policy"])?;
        let packets = |name: &str| -> Result<u64> {
            let after = counters.split(&format!("counter {name} {{")).nth(1).context("no such counter")?;
            Ok(after.split_whitespace().nth(1).context("no number")?.parse()?)
        };
        ensure!(packets("seen_replies")? > 0, "{}: no packet of an established flow was seen", node.name());
        ensure!(packets("seen_invalid")? == 0, "{}: invalid packets on the forward path:\n{counters}", node.name());
    }
    Ok(())
}
