//! `weir flows`: CONNTRACK and SNAT, filtered by address.

use std::net::IpAddr;

use aya::Pod;
use ipnet::IpNet;
use proxy_common::{
    abi::{FLOW_HAIRPIN, FLOW_OWN, FLOW_SNAT, FLOW_UNCONFIRMED, Flow, FlowKey, FlowKind, FlowState, SnatEntry, names},
    net::{Address, V4, V6},
};
use serde::Serialize;

use super::{
    output::Row,
    tables::{PortNames, TableError, entries, protocol, socket},
};
use crate::{dataplane::MapFamily, loader::Pins};

/// An entry of CONNTRACK. A flow has two or three; the forward one tells everything.
#[derive(Debug, Serialize)]
pub(super) struct FlowRow {
    pub(super) kind: &'static str,
    pub(super) protocol: String,
    /// The packet's tuple at the hook.
    pub(super) from: String,
    pub(super) to: String,
    pub(super) frontend: String,
    pub(super) backend: String,
    /// What the backend sees; the client's own address if there is no SNAT.
    pub(super) source: Option<String>,
    pub(super) state: &'static str,
    pub(super) flags: Vec<&'static str>,
    pub(super) service: String,
    pub(super) idle_s: u32,
    #[serde(skip)]
    addresses: [IpAddr; 5],
}

impl Row for FlowRow {
    const COLUMNS: &'static [&'static str] =
        &["KIND", "PROTO", "FROM", "TO", "BACKEND", "SOURCE", "STATE", "FLAGS", "IDLE", "SERVICE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.kind.to_owned(),
            self.protocol.clone(),
            self.from.clone(),
            self.to.clone(),
            self.backend.clone(),
            self.source.clone().unwrap_or_else(|| "kept".to_owned()),
            self.state.to_owned(),
            if self.flags.is_empty() { "-".to_owned() } else { self.flags.join(",") },
            format!("{} s", self.idle_s),
            self.service.clone(),
        ]
    }
}

/// An entry of SNAT: a reply to one of our source ports -> the client.
#[derive(Debug, Serialize)]
pub(super) struct SnatRow {
    pub(super) protocol: String,
    pub(super) backend: String,
    pub(super) source: String,
    pub(super) client: String,
    pub(super) state: &'static str,
    pub(super) idle_s: u32,
    #[serde(skip)]
    addresses: [IpAddr; 3],
}

impl Row for SnatRow {
    const COLUMNS: &'static [&'static str] = &["PROTO", "BACKEND", "SOURCE", "CLIENT", "STATE", "IDLE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.clone(),
            self.backend.clone(),
            self.source.clone(),
            self.client.clone(),
            self.state.to_owned(),
            format!("{} s", self.idle_s),
        ]
    }
}

/// Which entries are wanted. Without addresses: all.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct FlowFilter {
    /// Only flows in which one of these addresses or CIDRs takes part.
    #[arg(value_name = "ADDRESS", value_parser = network)]
    pub(super) addresses: Vec<IpNet>,
    /// Also the entries for replies and for source translation.
    #[arg(long)]
    pub(super) all: bool,
}

fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_| address()).map_err(|_| format!("expected an address or a CIDR, got {text:?}"))
}

impl FlowFilter {
    fn admits(&self, addresses: &[IpAddr]) -> bool {
        self.addresses.is_empty()
            || addresses.iter().any(|address| self.addresses.iter().any(|net| net.contains(address)))
    }
}

/// Entries of CONNTRACK and NEW_FLOWS, least idle first.
pub(super) fn flows(pins: &Pins, filter: &FlowFilter) -> Result<Vec<FlowRow>, TableError> {
    let names = PortNames::read(pins)?;
    let mut rows = flows_of::<V4>(pins, names::CONNTRACK_V4, &names)?;
    rows.extend(flows_of::<V6>(pins, names::CONNTRACK_V6, &names)?);
    rows.extend(flows_of::<V4>(pins, names::NEW_FLOWS_V4, &names)?);
    rows.extend(flows_of::<V6>(pins, names::NEW_FLOWS_V6, &names)?);
    rows.retain(|row| (filter.all || row.kind == "forward") && filter.admits(&row.addresses));
    rows.sort_by(|a, b| (a.idle_s, &a.from, &a.to).cmp(&(b.idle_s, &b.from, &b.to)));
    Ok(rows)
}

/// Entries of SNAT and NEW_SNAT, least idle first.
pub(super) fn snat(pins: &Pins, filter: &FlowFilter) -> Result<Vec<SnatRow>, TableError> {
    let mut rows = snat_of::<V4>(pins, names::SNAT_V4)?;
    rows.extend(snat_of::<V6>(pins, names::SNAT_V6)?);
    rows.extend(snat_of::<V4>(pins, names::NEW_SNAT_V4)?);
    rows.extend(snat_of::<V6>(pins, names::NEW_SNAT_V6)?);
    rows.retain(|row| filter.admits(&row.addresses));
    rows.sort_by(|a, b| (a.idle_s, &a.source).cmp(&(b.idle_s, &b.source)));
    Ok(rows)
}

fn flows_of<F: MapFamily>(pins: &Pins, map: &str, names: &PortNames) -> Result<Vec<FlowRow>, TableError>
where
    FlowKey<F>: Pod,
    Flow<F>: Pod,
{
    let now = now_s();
    let row = |(key, flow): (FlowKey<F>, Flow<F>)| FlowRow {
        kind: match flow.kind {
            FlowKind::None => "none",
            FlowKind::Forward => "forward",
            FlowKind::Reply => "reply",
            FlowKind::Source => "source",
        },
        protocol: protocol(key.protocol),
        from: socket(F::to_ip(key.src), key.src_port),
        to: socket(F::to_ip(key.dst), key.dst_port),
        frontend: socket(F::to_ip(flow.frontend), flow.frontend_port),
        backend: socket(F::to_ip(flow.backend), flow.backend_port),
        source: (flow.source != F::Addr::ZERO).then(|| socket(F::to_ip(flow.source), flow.source_port)),
        state: state(flow.state),
        flags: [(FLOW_SNAT, "snat"), (FLOW_HAIRPIN, "hairpin"), (FLOW_OWN, "own"), (FLOW_UNCONFIRMED, "unconfirmed")]
            .into_iter()
            .filter_map(|(bit, name)| (flow.flags & bit != 0).then_some(name))
            .collect(),
        service: names.get(flow.service),
        idle_s: now.saturating_sub(flow.last_seen_s),
        addresses: [key.src, key.dst, flow.frontend, flow.backend, flow.source].map(F::to_ip),
    };
    Ok(entries::<FlowKey<F>, Flow<F>>(pins, map)?.into_iter().map(row).collect())
}

fn snat_of<F: MapFamily>(pins: &Pins, map: &str) -> Result<Vec<SnatRow>, TableError>
where
    FlowKey<F>: Pod,
    SnatEntry<F>: Pod,
{
    let now = now_s();
    let row = |(key, entry): (FlowKey<F>, SnatEntry<F>)| SnatRow {
        protocol: protocol(key.protocol),
        backend: socket(F::to_ip(key.src), key.src_port),
        source: socket(F::to_ip(key.dst), key.dst_port),
        client: socket(F::to_ip(entry.client), entry.client_port),
        state: state(entry.state),
        idle_s: now.saturating_sub(entry.last_seen_s),
        addresses: [key.src, key.dst, entry.client].map(F::to_ip),
    };
    Ok(entries::<FlowKey<F>, SnatEntry<F>>(pins, map)?.into_iter().map(row).collect())
}

fn state(state: FlowState) -> &'static str {
    match state {
        FlowState::None => "none",
        FlowState::New => "new",
        FlowState::Established => "established",
        FlowState::FinFromClient => "fin-from-client",
        FlowState::FinFromBackend => "fin-from-backend",
        FlowState::Closed => "closed",
    }
}

/// Seconds since boot, by the clock of the programs.
fn now_s() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec().try_into().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_addresses_and_networks() {
        let filter = |texts: &[&str]| FlowFilter {
            addresses: texts.iter().map(|text| network(text).unwrap()).collect(),
            all: false,
        };
        let flow: Vec<IpAddr> = ["192.0.2.1", "10.96.0.1", "fd00::1"].map(|text| text.parse().unwrap()).to_vec();
        assert!(filter(&[]).admits(&flow));
        assert!(filter(&["10.96.0.0/16"]).admits(&flow));
        assert!(filter(&["198.51.100.1", "fd00::1"]).admits(&flow));
        assert!(!filter(&["10.97.0.0/16"]).admits(&flow));
        assert!(network("host").is_err());
    }
}
