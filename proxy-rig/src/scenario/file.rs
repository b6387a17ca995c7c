//! The scenario file: YAML to [`Scenario`]. docs/testing.md describes the format.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    #[serde(skip)]
    pub name: String,
    /// Numbers of the rules it shows, separated by commas.
    pub rules: Value,
    pub intent: String,
    #[serde(default)]
    pub node: NodeSpec,
    pub steps: Vec<Step>,
}

/// The node that the scenario plays on. What is not named is as in [`NodeSpec::default`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NodeSpec {
    pub name: String,
    pub zone: Option<String>,
    /// status.addresses of the Node object, type InternalIP.
    pub addresses: Vec<IpAddr>,
    /// CIDRs, or `primary`; nothing: the agent's default.
    pub nodeport_addresses: Vec<String>,
    pub interfaces: BTreeMap<String, InterfaceSpec>,
    /// None: the ServiceCIDR objects of the steps count.
    pub service_cidrs: Vec<IpNet>,
    pub external_address_ranges: Vec<IpNet>,
    /// `PORT` or `FIRST-LAST`; nothing: the agent's default.
    pub protected_node_ports: Vec<String>,
    /// Destination -> interface, for the node's own packets.
    pub routes: BTreeMap<IpNet, String>,
    /// Source ports that are Weir's alone, `first-last`.
    pub snat_ports: Option<String>,
    pub masquerade_all: bool,
    /// Connected UDP sockets of the node.
    #[serde(rename = "udp-sockets")]
    pub udp_sockets: Vec<SocketSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceSpec {
    pub role: Role,
    /// Addresses of the node on this link.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Pod,
    Uplink,
    Overlay,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketSpec {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// Everything in a step happens in the order of these fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// Printed in traces and messages.
    #[serde(default)]
    pub say: Option<String>,
    /// Kubernetes objects that appear or change.
    #[serde(default)]
    pub objects: Vec<Value>,
    /// EndpointSlices in short: name -> what is in it.
    #[serde(default)]
    pub slices: BTreeMap<String, SliceSpec>,
    /// `Kind/name` or `Kind/namespace/name`.
    #[serde(default)]
    pub delete: Vec<String>,
    /// Addresses that the node gets or loses: `add INTERFACE CIDR`, `remove INTERFACE CIDR`.
    #[serde(default)]
    pub network: Vec<String>,
    /// What is left out of this step's objects: each a part of `REASON OBJECT: FIELD: ...`, in order.
    #[serde(default)]
    pub skipped: Option<Vec<String>>,
    /// What a Service or Pod asks for and does not get, at the end of the step: each a part of the message.
    #[serde(default)]
    pub complaints: Option<Vec<String>>,
    /// The clock goes on: `130s`, `2m`, `3h`.
    #[serde(default)]
    pub advance: Option<String>,
    /// Entries that the connection tables lose: `forward|reply|source|snat PROTOCOL SRC > DST`.
    #[serde(default)]
    pub evict: Vec<String>,
    #[serde(default)]
    pub packets: Vec<PacketStep>,
    /// The whole dump of the programmed maps, sorted.
    #[serde(default)]
    pub maps: Option<String>,
    /// Lines that the dump must hold.
    #[serde(default)]
    pub maps_include: Vec<String>,
    /// Texts that no line of the dump may hold.
    #[serde(default)]
    pub maps_exclude: Vec<String>,
}

/// An EndpointSlice in short.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SliceSpec {
    /// The Service it belongs to; `namespace/name` if the namespace is not `default`.
    pub of: String,
    /// Port name -> number, or `number/udp`.
    pub ports: BTreeMap<String, Value>,
    /// `ADDRESS [NODE] [unready|terminating|draining] [zone=Z] [hint-zone=Z] [hint-node=N]`
    #[serde(default)]
    pub endpoints: Vec<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A packet at one hook, or a whole journey.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PacketStep {
    Journey { journey: JourneySpec },
    Packet(SinglePacket),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SinglePacket {
    /// `INTERFACE ingress`, `INTERFACE egress`, or `INTERFACE egress own` (made by a socket of the node).
    pub at: String,
    /// A packet in words; `that` (the packet as the last one left) or `reply` (its answer), with words to add.
    pub send: Option<String>,
    /// A frame as it is.
    pub hex: Option<String>,
    pub expect: String,
    pub reason: Option<String>,
    /// `SERVICE-PORT ADDRESS:PORT` of the verdict's backend.
    pub backend: Option<String>,
    /// Sent this many times, each from the next source port.
    pub repeat: Option<u16>,
    /// With `repeat`: exactly these backends (`ADDRESS:PORT`) were taken.
    pub spread: Option<Vec<SocketAddr>>,
}

/// A connection from the client's first packet to the reply: through both hooks on the way there and on the way back.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct JourneySpec {
    /// The client's first packet as in `send`; TCP begins with a SYN.
    pub client: String,
    /// Interface by which the client's packets come in.
    #[serde(default = "uplink")]
    pub from: String,
    /// Interface by which they leave towards the backend.
    #[serde(default = "pod")]
    pub to: String,
    pub backend: SocketAddr,
    /// The address that the backend sees; none: the client's own, port included.
    pub source: Option<IpAddr>,
    /// Interface that the reply is sent out of, if routing chose another than `from`.
    pub back_by: Option<String>,
}

fn uplink() -> String {
    "uplink".to_owned()
}

fn pod() -> String {
    "pod".to_owned()
}

impl Default for NodeSpec {
    fn default() -> Self {
        let net = |text: &str| text.parse::<IpNet>().expect("invariant: a CIDR");
        let link = |role, addresses: &[&str]| InterfaceSpec {
            role,
            addresses: addresses.iter().map(|text| net(text)).collect(),
        };
        Self {
            name: "node-a".to_owned(),
            zone: Some("zone-a".to_owned()),
            addresses: ["192.168.1.10", "fd00:1::10"].map(|text| text.parse().expect("invariant: an address")).to_vec(),
            nodeport_addresses: Vec::new(),
            interfaces: BTreeMap::from([
                ("uplink".to_owned(), link(Role::Uplink, &["192.168.1.10/24", "fd00:1::10/64"])),
                ("uplink2".to_owned(), link(Role::Uplink, &["192.168.2.10/24", "fd00:2::10/64"])),
                ("overlay".to_owned(), link(Role::Overlay, &["10.244.1.1/32", "fd00:244:1::1/128"])),
                ("pod".to_owned(), link(Role::Pod, &[])),
                ("pod2".to_owned(), link(Role::Pod, &[])),
            ]),
            service_cidrs: vec![net("10.96.0.0/12"), net("fd00:96::/112")],
            routes: BTreeMap::from([
                (net("10.244.1.10/32"), "pod".to_owned()),
                (net("10.244.1.11/32"), "pod2".to_owned()),
                (net("10.244.2.0/24"), "uplink".to_owned()),
                (net("fd00:244:1::10/128"), "pod".to_owned()),
                (net("fd00:244:1::11/128"), "pod2".to_owned()),
                (net("fd00:244:2::/64"), "uplink".to_owned()),
            ]),
            external_address_ranges: Vec::new(),
            protected_node_ports: Vec::new(),
            snat_ports: None,
            masquerade_all: false,
            udp_sockets: Vec::new(),
        }
    }
}

impl Scenario {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&name, &text).with_context(|| path.display().to_string())
    }

    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut scenario: Self = serde_saphyr::from_str(text)?;
        scenario.name = name.to_owned();
        ensure!(text.starts_with("rules:"), "the first line must be `rules: ...`");
        ensure!(!scenario.rules_text().is_empty(), "`rules:` names no rule");
        ensure!(!scenario.steps.is_empty(), "no steps");
        Ok(scenario)
    }

    pub fn rules_text(&self) -> String {
        match &self.rules {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }

    /// All scenario files below `dir`, by name.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let path = entry.with_context(|| dir.display().to_string())?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                paths.push(path);
            }
        }
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }
}

/// `130s`, `2m`, `3h` in seconds.
pub(super) fn seconds(text: &str) -> Result<u64> {
    let unit = text.chars().last().context("expected a duration")?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => anyhow::bail!("expected a duration as 130s, 2m or 3h, got {text:?}"),
    };
    let number: u64 = text[..text.len() - 1].parse().with_context(|| format!("duration {text:?}"))?;
    Ok(number * factor)
}
