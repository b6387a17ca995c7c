//! Rules of kube-proxy's shape for the Service of this test, in the nftables mode and in the iptables mode, beside rules of
//! others: what `weir cleanup --kube-proxy` has to tell apart.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{NODE_PORT, SERVICE_IPS, VIPS};
use crate::world::Node;

/// Source ports that both proxies may choose. kube-proxy's masquerading takes any from 1024 on; here each is one of Weir's.
const PORTS: &str = "61000-61999";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Nftables,
    Iptables,
}

/// A filter of somebody else, which must outlive kube-proxy's rules. It has no chain of type nat.
const FOREIGN: &str = "
table inet others {
  counter seen { }
  chain forward { type filter hook forward priority filter; policy accept; counter name seen; }
}
";

/// The chains of the kubelet and of a container runtime.
const FOREIGN_IPTABLES: &str = "*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
*mangle
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-HOSTPORTS - [0:0]
-A PREROUTING -j KUBE-HOSTPORTS
COMMIT
";

impl Mode {
    /// kube-proxy's rules on a node, anew.
    pub(super) fn install(self, node: &Node, endpoints: &[[IpAddr; 2]]) -> Result<()> {
        for family in [0, 1] {
            let backends: Vec<IpAddr> = endpoints.iter().map(|both| both[family]).collect();
            let own = node.addresses()[family];
            match self {
                Self::Nftables => node.nft(&nftables(own, SERVICE_IPS[family], VIPS[family], &backends))?,
                Self::Iptables => {
                    restore(node, own, &iptables(own, SERVICE_IPS[family], VIPS[family], &backends))?;
                }
            }
        }
        Ok(())
    }

    /// What is there before kube-proxy.
    pub(super) fn install_foreign(self, node: &Node) -> Result<()> {
        match self {
            Self::Nftables => node.nft(FOREIGN),
            Self::Iptables => node.addresses().iter().try_for_each(|own| restore(node, *own, FOREIGN_IPTABLES)),
        }
    }

    /// Everything of others is there, nothing of kube-proxy's; as `nft` shows both.
    pub(super) fn only_foreign_is_left(self, node: &Node) -> Result<()> {
        let rules = node.run_program("nft", &["list", "ruleset"])?;
        let (foreign, own): (&[&str], &[&str]) = match self {
            Self::Nftables => (&["table inet others", "counter name \"seen\""], &["kube-proxy"]),
            Self::Iptables => (
                &["chain KUBE-FIREWALL", "jump KUBE-FIREWALL", "chain KUBE-KUBELET-CANARY", "jump KUBE-HOSTPORTS"],
                &["KUBE-SVC", "KUBE-SEP", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-FORWARD"],
            ),
        };
        for text in foreign {
            ensure!(rules.contains(text), "{}: {text:?} is gone:\n{rules}", node.name());
        }
        for text in own {
            ensure!(!rules.contains(text), "{}: {text:?} is still there:\n{rules}", node.name());
        }
        Ok(())
    }

    /// How many flows the rules translated.
    pub(super) fn translated(self, node: &Node) -> Result<u64> {
        let rules = node.run_program("nft", &["list", "ruleset"])?;
        let at = match self {
            Self::Nftables => "counter translated {",
            Self::Iptables => "chain KUBE-SVC-",
        };
        let mut sum = 0;
        for part in rules.split(at).skip(1) {
            let number = part.split("packets").nth(1).and_then(|rest| rest.split_whitespace().next());
            sum += number.and_then(|number| number.parse::<u64>().ok()).context("no counter")?;
        }
        Ok(sum)
    }
}

/// As kube-proxy lays it out: verdict maps by address and by NodePort, a chain per service-port and per endpoint, a mark for
/// what is to be masqueraded, and a check for ports of a ClusterIP that no Service has.
fn nftables(node: IpAddr, service: &str, vip: &str, backends: &[IpAddr]) -> String {
    let (ip, kind, pods) =
        if node.is_ipv4() { ("ip", "ipv4_addr", "10.244.0.0/16") } else { ("ip6", "ipv6_addr", "fd00:10:244::/48") };
    let mut chains = String::new();
    for proto in ["tcp", "udp"] {
        let choice: Vec<String> =
            (0..backends.len()).map(|number| format!("{number} : goto endpoint-{number}-{proto}")).collect();
        // Writing to a string does not fail.
        let _ = write!(
            chains,
            "chain external-{proto} {{ jump mark-for-masquerade; goto service-{proto}; }}
             chain service-{proto} {{
               {ip} daddr {service} {proto} dport 80 {ip} saddr != {pods} jump mark-for-masquerade
               counter name translated
               numgen random mod {} vmap {{ {} }}
             }}\n",
            backends.len(),
            choice.join(", ")
        );
        for (number, backend) in backends.iter().enumerate() {
            let to = std::net::SocketAddr::new(*backend, 8080);
            let _ = writeln!(
                chains,
                "chain endpoint-{number}-{proto} {{ {ip} saddr {backend} jump mark-for-masquerade; meta l4proto {proto} dnat to {to}; }}"
            );
        }
    }
    format!(
        "table {ip} kube-proxy {{
           comment \"rules for kube-proxy\"
           counter translated {{ }}
           set cluster-ips {{ type {kind}; elements = {{ {service} }} }}
           set nodeport-ips {{ type {kind}; elements = {{ {node} }} }}
           chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
           chain masquerading {{
             meta mark & 0x4000 == 0 return
             meta mark set meta mark xor 0x4000
             meta l4proto {{ tcp, udp }} masquerade to :{PORTS} fully-random
           }}
           {chains}
           map service-ips {{ type {kind} . inet_proto . inet_service : verdict; elements = {{
             {service} . tcp . 80 : goto service-tcp, {service} . udp . 80 : goto service-udp,
             {vip} . tcp . 80 : goto external-tcp, {vip} . udp . 80 : goto external-udp }} }}
           map service-nodeports {{ type inet_proto . inet_service : verdict; elements = {{
             tcp . {NODE_PORT} : goto external-tcp, udp . {NODE_PORT} : goto external-udp }} }}
           chain services {{
             {ip} daddr . meta l4proto . th dport vmap @service-ips
             {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
           }}
           chain cluster-ips-check {{ {ip} daddr @cluster-ips reject; }}
           chain filter-forward {{ type filter hook forward priority -110; ct state new jump cluster-ips-check; }}
           chain filter-output {{ type filter hook output priority -90; ct state new jump cluster-ips-check; }}
           chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
           chain nat-output {{ type nat hook output priority -100; jump services; }}
           chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
         }}\n"
    )
}

/// The same as chains of iptables.
fn iptables(node: IpAddr, service: &str, vip: &str, backends: &[IpAddr]) -> String {
    let pods = if node.is_ipv4() { "10.244.0.0/16" } else { "fd00:10:244::/48" };
    let (mut chains, mut rules) = (String::new(), String::new());
    for (proto, name) in [("tcp", "AAAA"), ("udp", "BBBB")] {
        let _ = write!(chains, ":KUBE-SVC-{name} - [0:0]\n:KUBE-EXT-{name} - [0:0]\n");
        let _ = write!(
            rules,
            "-A KUBE-SERVICES -d {service} -p {proto} -m {proto} --dport 80 -j KUBE-SVC-{name}
             -A KUBE-SERVICES -d {vip} -p {proto} -m {proto} --dport 80 -j KUBE-EXT-{name}
             -A KUBE-NODEPORTS -p {proto} -m {proto} --dport {NODE_PORT} -j KUBE-EXT-{name}
             -A KUBE-EXT-{name} -j KUBE-MARK-MASQ
             -A KUBE-EXT-{name} -j KUBE-SVC-{name}
             -A KUBE-SVC-{name} -m comment --comment \"all of it\"
             -A KUBE-SVC-{name} ! -s {pods} -d {service} -j KUBE-MARK-MASQ\n"
        );
        for (number, backend) in backends.iter().enumerate() {
            let (left, to) = (backends.len() - number, std::net::SocketAddr::new(*backend, 8080));
            let choice = if left == 1 {
                String::new()
            } else {
                format!("-m statistic --mode random --probability {} ", 1.0 / left as f64)
            };
            let _ = writeln!(chains, ":KUBE-SEP-{name}{number} - [0:0]");
            let _ = write!(
                rules,
                "-A KUBE-SVC-{name} {choice}-j KUBE-SEP-{name}{number}
                 -A KUBE-SEP-{name}{number} -s {backend} -j KUBE-MARK-MASQ
                 -A KUBE-SEP-{name}{number} -p {proto} -j DNAT --to-destination {to}\n"
            );
        }
    }
    let masquerade = |proto| format!("-A KUBE-POSTROUTING -p {proto} -j MASQUERADE --to-ports {PORTS} --random-fully");
    let text = format!(
        "*nat
         :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]
         {chains}
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
         {rules}
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
         {}\n{}
         COMMIT
         *filter
         :KUBE-FORWARD - [0:0]
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
         COMMIT
         *mangle
         :KUBE-PROXY-CANARY - [0:0]
         COMMIT\n",
        masquerade("tcp"),
        masquerade("udp"),
    );
    text.lines().map(|line| format!("{}\n", line.trim())).collect()
}

/// Whether this machine has the programs of the iptables mode.
pub(in crate::suite::netns) fn has_iptables() -> bool {
    Command::new("iptables-nft-restore").arg("--version").output().is_ok_and(|output| output.status.success())
}

fn restore(node: &Node, family: IpAddr, rules: &str) -> Result<()> {
    let program = if family.is_ipv4() { "iptables-nft-restore" } else { "ip6tables-nft-restore" };
    let mut command = node.command(program)?;
    command.arg("--noflush").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| program.to_owned())?;
    child.stdin.take().context("no input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} on {}: {message}\n{rules}", node.name());
    Ok(())
}
