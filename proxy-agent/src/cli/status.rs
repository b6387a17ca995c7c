//! `weir status`: what is attached where, how full the maps are, what the counters say.

use std::{collections::BTreeMap, os::fd::AsFd};

use proxy_common::{
    abi::{self, BackendState, EmptySet, EndpointSet, Iface, IfaceRole, Reason, SocketEnding, names},
    net::Address,
};
use serde::Serialize;

use super::{
    chains::{Chains, chains},
    output::{Format, Row, print_json, table},
    tables::{TableError, actual, info, per_cpu},
};
use crate::{
    dataplane::Actual,
    loader::{CGROUP_HOOKS, Pins, WriterLock, sys},
    node::watch,
};

#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) pins: String,
    pub(super) abi_version: u32,
    /// Some process holds the writer's lock.
    pub(super) agent_running: bool,
    /// What becomes of connected UDP sockets whose endpoint left.
    pub(super) stale_sockets: &'static str,
    pub(super) interfaces: Vec<InterfaceRow>,
    pub(super) connect_hooks: Vec<HookRow>,
    pub(super) maps: Vec<MapRow>,
    pub(super) counters: Vec<CounterRow>,
}

#[derive(Debug, Serialize)]
pub(super) struct InterfaceRow {
    pub(super) index: u32,
    pub(super) name: String,
    /// From IFACES; `null` for interfaces that Weir leaves alone.
    pub(super) role: Option<&'static str>,
    pub(super) mtu: u32,
    pub(super) addresses: Vec<String>,
    /// Programs in the order in which they run, foreign ones included.
    pub(super) ingress: Vec<String>,
    pub(super) egress: Vec<String>,
}

impl Row for InterfaceRow {
    const COLUMNS: &'static [&'static str] =
        &["IFINDEX", "INTERFACE", "ROLE", "MTU", "SOURCE ADDRESS", "INGRESS", "EGRESS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.index.to_string(),
            self.name.clone(),
            self.role.unwrap_or("-").to_owned(),
            self.mtu.to_string(),
            list(&self.addresses),
            list(&self.ingress),
            list(&self.egress),
        ]
    }
}

#[derive(Debug, Serialize)]
pub(super) struct HookRow {
    pub(super) program: &'static str,
    pub(super) attached: bool,
    /// The cgroup's id, i.e. the inode number of its directory.
    pub(super) cgroup: Option<u64>,
    pub(super) program_id: Option<u32>,
}

impl Row for HookRow {
    const COLUMNS: &'static [&'static str] = &["CONNECT HOOK", "PROGRAM", "CGROUP"];

    fn cells(&self) -> Vec<String> {
        let cell = |value: Option<String>| value.unwrap_or_else(|| "not attached".to_owned());
        vec![
            self.program.to_owned(),
            cell(self.program_id.map(|id| id.to_string())),
            cell(self.cgroup.map(|id| format!("id {id}"))),
        ]
    }
}

#[derive(Debug, Serialize)]
pub(super) struct MapRow {
    pub(super) map: &'static str,
    pub(super) kind: String,
    /// In use; `null` for maps that are not a table.
    pub(super) entries: Option<usize>,
    pub(super) capacity: u32,
    pub(super) full: bool,
}

/// Free elements of an LRU map that each CPU may keep for itself (LOCAL_FREE_TARGET in the kernel's bpf_lru_list.c).
const LRU_FREE_PER_CPU: usize = 128;

impl Row for MapRow {
    const COLUMNS: &'static [&'static str] = &["MAP", "TYPE", "ENTRIES", "CAPACITY"];

    fn cells(&self) -> Vec<String> {
        let entries = self.entries.map_or_else(|| "-".to_owned(), |entries| entries.to_string());
        let entries = if self.full { format!("{entries} (full)") } else { entries };
        vec![self.map.to_owned(), self.kind.clone(), entries, self.capacity.to_string()]
    }
}

impl MapRow {
    fn new(map: &'static str, kind: String, entries: Option<usize>, capacity: u32) -> Self {
        let all = capacity as usize;
        let kept = if kind.contains("Lru") { LRU_FREE_PER_CPU * aya::util::nr_cpus().unwrap_or(1) } else { 0 };
        let full = entries.is_some_and(|entries| entries >= all.saturating_sub(kept).max(all / 2));
        Self { map, kind, entries, capacity, full }
    }

    /// What a full table means, in a sentence.
    fn warning(&self) -> Option<String> {
        let consequence = match self.map {
            _ if !self.full => return None,
            names::NEW_FLOWS_V4 | names::NEW_FLOWS_V6 | names::NEW_SNAT_V4 | names::NEW_SNAT_V6 => {
                "handshakes that take long may have to start again; established connections are not touched"
            }
            names::CONNTRACK_V4 | names::CONNTRACK_V6 | names::SNAT_V4 | names::SNAT_V6 => {
                "each new flow takes the place of the one that was idle for the longest time"
            }
            names::FRAGS_V4 | names::FRAGS_V6 => "datagrams whose fragments come slowly are lost",
            names::AFFINITY => "the clients not seen for the longest time are forgotten and choose again",
            names::SOCK_REVNAT_V4 | names::SOCK_REVNAT_V6 => {
                "the oldest translated sockets see their endpoint's address in place of the Service's"
            }
            names::SOCK_LOADS => "some sockets count for no endpoint of a Service with algorithm lc",
            _ => "no Service that needs more of it can be programmed; the others go on (see the agent's log)",
        };
        Some(format!("{} is full: {consequence}.", self.map))
    }
}

#[derive(Debug, Serialize)]
pub(super) struct CounterRow {
    pub(super) reason: &'static str,
    pub(super) count: u64,
    pub(super) text: &'static str,
}

impl Row for CounterRow {
    const COLUMNS: &'static [&'static str] = &["COUNT", "REASON", "MEANING"];

    fn cells(&self) -> Vec<String> {
        vec![self.count.to_string(), self.reason.to_owned(), self.text.to_owned()]
    }
}

fn list(texts: &[String]) -> String {
    if texts.is_empty() { "-".to_owned() } else { texts.join(" ") }
}

impl Status {
    pub(super) async fn read(pins: &Pins) -> anyhow::Result<Self> {
        let actual = actual(pins)?;
        Ok(Self {
            pins: pins.dir().display().to_string(),
            abi_version: abi::ABI_VERSION,
            agent_running: WriterLock::try_acquire(pins.root())?.is_none(),
            stale_sockets: stale_sockets(actual.switches.socket_ending),
            interfaces: interfaces(&actual).await?,
            connect_hooks: CGROUP_HOOKS.iter().map(|hook| connect_hook(pins, hook.program)).collect(),
            maps: names::PINNED.iter().map(|name| map(pins, &actual, name)).collect::<Result<_, _>>()?,
            counters: counters(pins)?,
        })
    }

    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        if format == Format::Json {
            return print_json(self);
        }
        let agent = if self.agent_running { "running" } else { "not running (the dataplane works without it)" };
        println!("pins: {}   map layout: {}   agent: {agent}", self.pins, self.abi_version);
        println!("connected UDP sockets whose endpoint left: {}\n", self.stale_sockets);
        println!("{}\n", table(&self.interfaces));
        println!("{}\n", table(&self.connect_hooks));
        println!("{}\n", table(&self.maps));
        for line in self.maps.iter().filter_map(MapRow::warning) {
            println!("{line}\n");
        }
        if self.counters.is_empty() {
            println!("No packet was counted yet.");
        } else {
            println!("{}", table(&self.counters));
        }
        Ok(())
    }
}

async fn interfaces(actual: &Actual) -> anyhow::Result<Vec<InterfaceRow>> {
    let net = watch::snapshot().await?;
    let mut found: BTreeMap<u32, Chains> = chains(net.links().map(|link| link.index)).await?;
    let row = |link: &crate::node::Link| {
        let Chains { ingress, egress } = found.remove(&link.index).unwrap_or_default();
        let iface = actual.ifaces.get(&link.index);
        InterfaceRow {
            index: link.index,
            name: link.name.clone(),
            role: iface.map(|iface| role(iface.role)),
            mtu: link.mtu,
            addresses: iface.map(addresses).unwrap_or_default(),
            ingress,
            egress,
        }
    };
    Ok(net.links().map(row).collect())
}

fn stale_sockets(ending: SocketEnding) -> &'static str {
    match ending {
        SocketEnding::Unknown => "no agent has said it yet",
        SocketEnding::On => "ended with an error",
        SocketEnding::OwnNamespaceOnly => {
            "ended on the node itself; those of pods cannot be found or entered and are steered anew (docs/privileges.md)"
        }
        SocketEnding::Off => "steered anew (--destroy-sockets=off)",
        SocketEnding::NotPermitted => "steered anew; the agent lacks CAP_NET_ADMIN to end them (docs/privileges.md)",
        SocketEnding::NotSupported => {
            "steered anew; the kernel lacks CONFIG_INET_DIAG_DESTROY or CONFIG_INET_UDP_DIAG to end them"
        }
    }
}

fn role(role: IfaceRole) -> &'static str {
    match role {
        IfaceRole::None => "none",
        IfaceRole::Pod => "pod",
        IfaceRole::Uplink => "uplink",
        IfaceRole::Overlay => "overlay",
    }
}

fn addresses(iface: &Iface) -> Vec<String> {
    let v4 = (iface.addr_v4 != Address::ZERO).then(|| iface.addr_v4.to_string());
    let v6 = (iface.addr_v6 != Address::ZERO).then(|| iface.addr_v6.to_string());
    v4.into_iter().chain(v6).collect()
}

fn connect_hook(pins: &Pins, program: &'static str) -> HookRow {
    let facts = sys::obj_get(&pins.link(program)).and_then(|link| sys::link_facts(link.as_fd())).ok();
    let cgroup = facts.and_then(|facts| match facts.target {
        sys::LinkTarget::Cgroup(id) if id != 0 => Some(id),
        _ => None,
    });
    HookRow { program, attached: cgroup.is_some(), cgroup, program_id: facts.map(|facts| facts.program) }
}

fn map(pins: &Pins, actual: &Actual, name: &'static str) -> Result<MapRow, TableError> {
    let (kind, capacity) = info(pins, name)?;
    let empty = [EndpointSet::empty(EmptySet::Refuse), EndpointSet::empty(EmptySet::Drop)];
    let serving = |state: BackendState| state == BackendState::Serving;
    let entries = match name {
        names::ADDRS_V4 => Some(actual.v4.addrs.len()),
        names::ADDRS_V6 => Some(actual.v6.addrs.len()),
        names::SERVICES_V4 => Some(actual.v4.services.len()),
        names::SERVICES_V6 => Some(actual.v6.services.len()),
        names::SETS => Some(actual.sets.iter().filter(|set| !empty.contains(set)).count()),
        names::RINGS => Some(actual.sets.iter().map(|set| set.len as usize).sum()),
        names::BACKENDS_V4 => Some(actual.v4.backends.iter().filter(|backend| serving(backend.state)).count()),
        names::BACKENDS_V6 => Some(actual.v6.backends.iter().filter(|backend| serving(backend.state)).count()),
        names::SRC_RANGES_V4 => Some(actual.v4.source_ranges.len()),
        names::SRC_RANGES_V6 => Some(actual.v6.source_ranges.len()),
        names::IFACES => Some(actual.ifaces.len()),
        names::PORT_NAMES => Some(actual.port_names.len()),
        names::SWITCHES | names::COUNTERS | names::VERDICT => None,
        _ => Some(super::dump::count(pins, name)?),
    };
    Ok(MapRow::new(name, format!("{kind:?}"), entries, capacity))
}

/// Counters that are not zero, summed over CPUs.
fn counters(pins: &Pins) -> Result<Vec<CounterRow>, TableError> {
    let sums = per_cpu::<u64>(pins, names::COUNTERS)?.into_iter().map(|values| values.iter().sum::<u64>());
    let row = |(number, count): (u32, u64)| {
        let reason = Reason::from_number(number)?;
        (count > 0).then(|| CounterRow { reason: reason.name(), count, text: reason.text() })
    };
    Ok((0..).zip(sums).filter_map(row).collect())
}
