//! [`Dump`]: the maps as sorted text with names in place of ids, one line per entry. Scenario files hold it, and
//! `weir dump` prints it. What depends on history (ids, ranges, generations) is left out.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use proxy_common::{
    abi::{
        ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODEPORT, ADDR_RETIRED, ADDR_VANISHED, Algorithm,
        BACKEND_CLUSTER_SET, BACKEND_DIRECT, BACKEND_IS_LOCAL, BACKEND_LOCAL_SET, Backend, BackendState, Cidr,
        EmptySet, FrontendKind, IFACE_STRICT, Iface, IfaceRole, SERVICE_SOURCE_RANGES, Service, ServiceKey,
    },
    net::{V4, V6},
};

use super::{claims::FrontendId, mirror::sets_of};
use crate::{
    dataplane::{Actual, MapFamily, port_name_text},
    desired::SetKind,
};

/// Lines in this order: addresses, frontends, backends, source ranges, interfaces, Service CIDRs; IPv4 first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    pub lines: Vec<String>,
}

impl Dump {
    #[must_use]
    pub fn of(actual: &Actual) -> Self {
        let names = Names(actual.port_names.iter().map(|(id, name)| (*id, port_name_text(name))).collect());
        let mut lines = Vec::new();
        addresses::<V4>(actual, &mut lines);
        addresses::<V6>(actual, &mut lines);
        services::<V4>(actual, &names, &mut lines);
        services::<V6>(actual, &names, &mut lines);
        backends::<V4>(actual, &names, &mut lines);
        backends::<V6>(actual, &names, &mut lines);
        source_ranges::<V4>(actual, &names, &mut lines);
        source_ranges::<V6>(actual, &names, &mut lines);
        lines.extend(actual.ifaces.iter().map(|(index, iface)| iface_line(*index, iface)));
        service_cidrs::<V4>(actual, &mut lines);
        service_cidrs::<V6>(actual, &mut lines);
        Self { lines }
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

struct Names(BTreeMap<u32, String>);

impl Names {
    fn of(&self, id: u32) -> String {
        self.0.get(&id).cloned().unwrap_or_else(|| format!("#{id}"))
    }
}

fn addresses<F: MapFamily>(actual: &Actual, lines: &mut Vec<String>) {
    let mut entries: Vec<_> = F::tables(actual).addrs.iter().collect();
    entries.sort_unstable_by_key(|(addr, _)| **addr);
    let flags = [
        (ADDR_CLUSTER_IP, "cluster-ip"),
        (ADDR_EXTERNAL, "external"),
        (ADDR_NODE, "node"),
        (ADDR_NODEPORT, "nodeport"),
        (ADDR_VANISHED, "vanished"),
        (ADDR_RETIRED, "retired"),
    ];
    lines.extend(entries.iter().map(|(addr, info)| format!("address {addr}{}", words(info.flags, &flags))));
}

fn services<F: MapFamily>(actual: &Actual, names: &Names, lines: &mut Vec<String>) {
    let mut entries: Vec<_> = F::tables(actual).services.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| **key);
    lines.extend(entries.iter().map(|(key, value)| service_line::<F>(actual, names, key, value)));
}

fn service_line<F: MapFamily>(actual: &Actual, names: &Names, key: &ServiceKey<F>, value: &Service) -> String {
    let [internal, external] = sets_of(value).map(|(kind, index)| set_text::<F>(actual, kind, index));
    let kind = kind_name(value.kind);
    let frontend = FrontendId::of::<F>(key);
    let mut line = format!("service {frontend} {kind} {} internal={internal} external={external}", names.of(value.id));
    if value.algorithm != Algorithm::Random {
        line += &format!(" algorithm={}", algorithm_name(value.algorithm));
    }
    if value.affinity_s != 0 {
        line += &format!(" affinity={}s", value.affinity_s);
    }
    if value.flags & SERVICE_SOURCE_RANGES != 0 {
        line += " source-ranges";
    }
    line
}

fn set_text<F: MapFamily>(actual: &Actual, kind: SetKind, index: u32) -> String {
    let kind = match kind {
        SetKind::Cluster => "cluster",
        SetKind::Local => "local",
    };
    let set = actual.set(index);
    if set.len == 0 {
        let verdict = if set.when_empty() == EmptySet::Drop { "drop" } else { "refuse" };
        return format!("{kind}[]{verdict}");
    }
    let mut slots: BTreeMap<(F::Addr, u16), (String, usize)> = BTreeMap::new();
    for slot in actual.ring(set) {
        let backend = F::tables(actual).backend(slot.backend);
        slots.entry((backend.addr, backend.port)).or_insert_with(|| (place::<F>(&backend), 0)).1 += 1;
    }
    // How often it stands in the ring, unless all stand there once.
    let text = |(place, times): &(String, usize)| if *times == 1 { place.clone() } else { format!("{place}*{times}") };
    format!("{kind}[{}]", slots.values().map(text).collect::<Vec<_>>().join(" "))
}

fn backends<F: MapFamily>(actual: &Actual, names: &Names, lines: &mut Vec<String>) {
    let mut entries: Vec<_> = F::tables(actual)
        .backends
        .iter()
        .filter(|it| it.state == BackendState::Serving)
        .map(|it| (names.of(it.service), it))
        .collect();
    entries.sort_by(|(a_name, a), (b_name, b)| (a_name, a.addr, a.port).cmp(&(b_name, b.addr, b.port)));
    let flags = [
        (BACKEND_IS_LOCAL, "local"),
        (BACKEND_DIRECT, "direct"),
        (BACKEND_CLUSTER_SET, "cluster"),
        (BACKEND_LOCAL_SET, "local-set"),
    ]
    .map(|(bit, word)| (u32::from(bit), word));
    let line = |(name, it): &(String, &Backend<F>)| {
        let weight = if it.weight == 1 { String::new() } else { format!(" weight={}", it.weight) };
        format!("backend {name} {}{}{weight}", place::<F>(it), words(u32::from(it.flags), &flags))
    };
    lines.extend(entries.iter().map(line));
}

fn source_ranges<F: MapFamily>(actual: &Actual, names: &Names, lines: &mut Vec<String>) {
    let mut entries: Vec<_> = F::tables(actual)
        .source_ranges
        .iter()
        .map(|it| (names.of(it.key.service), it.key.client, it.prefix_len))
        .collect();
    entries.sort();
    lines.extend(entries.iter().map(|(name, client, len)| format!("source-range {name} {client}/{len}")));
}

fn iface_line(index: u32, iface: &Iface) -> String {
    let role = match iface.role {
        IfaceRole::None => "none",
        IfaceRole::Pod => "pod",
        IfaceRole::Uplink => "uplink",
        IfaceRole::Overlay => "overlay",
    };
    let strict = if iface.flags & IFACE_STRICT != 0 { " strict" } else { "" };
    format!("interface {index} {role} mtu={} {} {}{strict}", iface.mtu, iface.addr_v4, iface.addr_v6)
}

fn service_cidrs<F: MapFamily>(actual: &Actual, lines: &mut Vec<String>) {
    let (cidrs, len) = F::service_cidrs(&actual.switches);
    let prefix = |cidr: &Cidr<F>| match F::to_ip(cidr.mask) {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    lines.extend(cidrs.iter().take(len as usize).map(|cidr| format!("service-cidr {}/{}", cidr.net, prefix(cidr))));
}

fn place<F: MapFamily>(backend: &Backend<F>) -> String {
    std::net::SocketAddr::new(F::to_ip(backend.addr), backend.port).to_string()
}

/// As in the annotation.
#[must_use]
pub fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Random => "random",
        Algorithm::RoundRobin => "rr",
        Algorithm::Maglev => "maglev",
        Algorithm::MaglevTuple => "maglev-5tuple",
        Algorithm::LeastConnections => "lc",
    }
}

fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::None => "none",
        FrontendKind::ClusterIp => "cluster-ip",
        FrontendKind::ExternalIp => "external-ip",
        FrontendKind::LoadBalancer => "load-balancer",
        FrontendKind::NodePort => "node-port",
        FrontendKind::HostPort => "host-port",
    }
}

fn words(flags: u32, known: &[(u32, &str)]) -> String {
    known.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, word)| format!(" {word}")).collect()
}
