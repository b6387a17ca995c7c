//! Values to what the agent is told. Called by [`super::load`].

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;

use super::{
    ConfigError, Finding, Verbosity,
    read::{Place, Said, Values},
    value::{Value, bare_address},
};
use crate::node::{NodePortAddresses, Patterns};

const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// `None` everywhere: nobody said anything, Weir's defaults stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub kubeconfig: Option<PathBuf>,
    pub node_name: Option<String>,
    pub node_ports: Option<NodePortAddresses>,
    pub masquerade_all: Option<bool>,
    /// Where the health endpoints listen.
    pub healthz: Option<Endpoint>,
    pub metrics: Option<Endpoint>,
    pub bind_address_hard_fail: Option<bool>,
    pub oom_score_adj: Option<i32>,
    /// Beside those of `--pod-interfaces`.
    pub pod_interfaces: Patterns,
    pub log_json: Option<bool>,
    /// In `-v`s.
    pub verbosity: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Disabled,
    Listen(SocketAddr),
}

impl Endpoint {
    pub fn listens(self) -> Option<SocketAddr> {
        match self {
            Self::Disabled => None,
            Self::Listen(address) => Some(address),
        }
    }
}

/// `from_file`: kube-proxy's defaults hold for what the file leaves out where they differ from Weir's.
pub(super) fn translate(values: &Values, from_file: bool) -> Result<(Settings, Vec<Finding>), ConfigError> {
    let mut findings = Vec::new();
    let of = Lookup(values);
    let mode = of.text("mode");
    let settings = Settings {
        kubeconfig: of.text("clientConnection.kubeconfig").map(PathBuf::from),
        node_name: of.text("hostnameOverride").map(str::to_owned),
        node_ports: node_ports(&of, mode, from_file, &mut findings)?,
        masquerade_all: masquerade_all(&of, mode, &mut findings),
        healthz: endpoint(&of, "healthzBindAddress", "healthz-port", HEALTHZ_PORT, ["0.0.0.0", "::"]),
        metrics: endpoint(&of, "metricsBindAddress", "metrics-port", METRICS_PORT, ["127.0.0.1", "::1"]),
        bind_address_hard_fail: of.is_true("bindAddressHardFail").then_some(true),
        oom_score_adj: of.integer("oomScoreAdj").and_then(|value| i32::try_from(value).ok()),
        pod_interfaces: pod_interfaces(&of, &mut findings),
        log_json: of.text("logging.format").map(|format| format == "json"),
        verbosity: of
            .integer("logging.verbosity")
            .map(|level| Verbosity::from_klog(u32::try_from(level).unwrap_or(u32::MAX))),
    };
    if let Some(said) = values.get("mode").filter(|_| matches!(mode, Some("userspace" | "kernelspace"))) {
        findings.push(Finding::of(said, "mode", "kube-proxy does not have this mode on Linux; Weir has one mode"));
    }
    if let Some(said @ Said { value: Value::Bool(false), .. }) = values.get("iptables.localhostNodePorts") {
        let why =
            "false has no effect: sockets of the node's own network namespace reach NodePorts by 127.0.0.1 and ::1";
        findings.push(Finding::of(said, "iptables.localhostNodePorts", why));
    }
    Ok((settings, findings))
}

struct Lookup<'a>(&'a Values);

impl<'a> Lookup<'a> {
    /// Empty texts are none.
    fn text(&self, path: &str) -> Option<&'a str> {
        match &self.0.get(path)?.value {
            Value::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    fn texts(&self, path: &str) -> Option<(&'a Said, &'a [String])> {
        let said = self.0.get(path)?;
        match &said.value {
            Value::Texts(texts) if !texts.is_empty() => Some((said, texts)),
            _ => None,
        }
    }

    fn integer(&self, path: &str) -> Option<i64> {
        match self.0.get(path)?.value {
            Value::Integer(value) => Some(value),
            _ => None,
        }
    }

    fn is_true(&self, path: &str) -> bool {
        self.0.get(path).is_some_and(|said| said.value == Value::Bool(true))
    }
}

/// Rule of kube-proxy's modes: an empty list is all addresses, except with nftables.
fn node_ports(
    of: &Lookup<'_>,
    mode: Option<&str>,
    from_file: bool,
    findings: &mut Vec<Finding>,
) -> Result<Option<NodePortAddresses>, ConfigError> {
    const PATH: &str = "nodePortAddresses";
    let all = || NodePortAddresses::Cidrs(Vec::new());
    let Some((said, texts)) = of.texts(PATH) else {
        return Ok(match mode {
            None if !from_file => None,
            None | Some("iptables" | "ipvs") => Some(all()),
            Some(_) => Some(NodePortAddresses::Primary),
        });
    };
    let wrong = |got: &str| {
        let at = match said.place {
            Place::Line(line) => format!("line {line}: "),
            Place::Flag(_) => String::new(),
        };
        ConfigError::Values(vec![format!("{at}{PATH}: expected CIDRs, `primary`, `localhost` or `all`, got {got:?}")])
    };
    let (mut cidrs, mut primary) = (Vec::new(), false);
    for text in texts {
        match text.as_str() {
            "primary" => primary = true,
            "all" => cidrs.extend(["0.0.0.0/0", "::/0"].map(|all| all.parse::<IpNet>().expect("invariant: a CIDR"))),
            "localhost" => findings.push(Finding::of(
                said,
                PATH,
                "localhost has no effect: sockets of the node reach NodePorts by loopback addresses whatever the list says",
            )),
            cidr => cidrs.push(cidr.parse().map_err(|_| wrong(cidr))?),
        }
    }
    if !primary && cidrs.is_empty() {
        // `localhost` alone: no address but loopback. Ranges that no other address is in say so, for both families.
        cidrs.extend(["127.0.0.0/8", "::1/128"].map(|range| range.parse::<IpNet>().expect("invariant: a CIDR")));
    }
    Ok(Some(NodePortAddresses::of(primary, cidrs)))
}

fn masquerade_all(of: &Lookup<'_>, mode: Option<&str>, findings: &mut Vec<Finding>) -> Option<bool> {
    let (counts, other) = match mode {
        Some("nftables") => ("nftables.masqueradeAll", "iptables.masqueradeAll"),
        _ => ("iptables.masqueradeAll", "nftables.masqueradeAll"),
    };
    if of.is_true(other) && !of.is_true(counts) {
        let said = &of.0[other];
        findings.push(Finding::of(
            said,
            other,
            "true has no effect: it belongs to another mode than the one that is set",
        ));
    }
    of.is_true(counts).then_some(true)
}

/// `bindAddress` chooses the family of the defaults, as in kube-proxy. A port of 0 by the old flag disables.
fn endpoint(of: &Lookup<'_>, path: &str, port_flag: &str, port: u16, defaults: [&str; 2]) -> Option<Endpoint> {
    let flag_port = of.integer(port_flag);
    if flag_port == Some(0) {
        return Some(Endpoint::Disabled);
    }
    let port = flag_port.and_then(|port| u16::try_from(port).ok()).unwrap_or(port);
    if let Some(text) = of.text(path) {
        let listen = text.parse().ok().or_else(|| Some(SocketAddr::new(bare_address(text)?, port)));
        return listen.map(Endpoint::Listen);
    }
    let v6 = of.text("bindAddress").and_then(|text| text.parse::<IpAddr>().ok()).is_some_and(|ip| ip.is_ipv6());
    let default = defaults[usize::from(v6)].parse().expect("invariant: the constants are addresses");
    (v6 || flag_port.is_some()).then_some(Endpoint::Listen(SocketAddr::new(default, port)))
}

fn pod_interfaces(of: &Lookup<'_>, findings: &mut Vec<Finding>) -> Patterns {
    const MODE: &str = "detectLocalMode";
    let Some(said) = of.0.get(MODE).filter(|said| !said.value.is_zero()) else { return Patterns::default() };
    let (path, suffix) = match of.text(MODE) {
        Some("BridgeInterface") => ("detectLocal.bridgeInterface", ""),
        Some("InterfaceNamePrefix") => ("detectLocal.interfaceNamePrefix", "*"),
        _ => {
            findings.push(Finding::no_effect(
                said,
                MODE,
                "pods of this node are told by the interface that leads to them",
            ));
            return Patterns::default();
        }
    };
    match of.text(path) {
        Some(name) => Patterns::one(&format!("{name}{suffix}")),
        None => {
            findings.push(Finding::no_effect(said, MODE, &format!("{path} is empty")));
            Patterns::default()
        }
    }
}
