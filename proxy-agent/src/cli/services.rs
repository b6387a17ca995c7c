//! `weir services` and `weir backends`: what stands in SERVICES, SETS, RINGS and BACKENDS, put together.

use std::collections::BTreeSet;

use proxy_common::{
    abi::{
        Algorithm, BACKEND_CLUSTER_SET, BACKEND_DIRECT, BACKEND_IS_LOCAL, BACKEND_LOCAL_SET, Backend, BackendState,
        EmptySet, FrontendKind, SERVICE_EXTERNAL_LOCAL, SERVICE_INTERNAL_LOCAL, SERVICE_SOURCE_RANGES, Service,
        ServiceKey, names,
    },
    net::{Address, V4, V6},
};
use serde::Serialize;

use super::{
    output::Row,
    tables::{PortNames, TableError, actual, element_of, protocol, socket},
};
use crate::{
    dataplane::{Actual, MapFamily},
    loader::Pins,
    reconcile::algorithm_name,
};

/// One frontend.
#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FrontendRow {
    pub(super) service: String,
    pub(super) kind: &'static str,
    /// `null` for NodePorts, which are served on several addresses.
    pub(super) address: Option<String>,
    pub(super) port: u16,
    pub(super) protocol: String,
    /// For clients on this node.
    pub(super) internal: SetRow,
    /// For all other clients.
    pub(super) external: SetRow,
    /// How new flows get an endpoint.
    pub(super) algorithm: &'static str,
    /// Session affinity timeout; 0 = none.
    pub(super) affinity_s: u32,
    /// Load balancer source ranges; clients outside of them are dropped.
    pub(super) source_ranges: Option<Vec<String>>,
}

#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetRow {
    pub(super) policy: &'static str,
    pub(super) endpoints: Vec<String>,
    /// What a client meets if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) verdict: Option<&'static str>,
}

/// How many endpoints a table cell shows.
const SHOWN: usize = 3;

impl SetRow {
    fn cell(&self) -> String {
        let local = if self.policy == "Local" { "local: " } else { "" };
        match (self.verdict, self.endpoints.len()) {
            (Some(verdict), _) => format!("{local}none ({verdict})"),
            (None, count) if count > SHOWN => {
                format!("{local}{} +{}", self.endpoints[..SHOWN].join(" "), count - SHOWN)
            }
            (None, _) => format!("{local}{}", self.endpoints.join(" ")),
        }
    }
}

impl Row for FrontendRow {
    const COLUMNS: &'static [&'static str] =
        &["SERVICE", "KIND", "FRONTEND", "FROM THIS NODE", "FROM OUTSIDE", "ALGORITHM", "AFFINITY", "SOURCE RANGES"];

    fn cells(&self) -> Vec<String> {
        let address = self.address.as_deref().unwrap_or("*");
        let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        vec![
            self.service.clone(),
            self.kind.to_owned(),
            format!("{address}:{}", self.port),
            self.internal.cell(),
            self.external.cell(),
            self.algorithm.to_owned(),
            if self.affinity_s == 0 { "-".to_owned() } else { format!("{} s", self.affinity_s) },
            self.source_ranges.as_ref().map_or_else(|| "-".to_owned(), |ranges| ranges.join(" ")),
        ]
    }
}

/// All frontends, by Service, kind and address.
pub(super) fn frontends(pins: &Pins) -> Result<Vec<FrontendRow>, TableError> {
    let (actual, names) = (actual(pins)?, PortNames::read(pins)?);
    let mut rows: Vec<_> = frontends_of::<V4>(&actual, &names);
    rows.extend(frontends_of::<V6>(&actual, &names));
    rows.sort();
    Ok(rows)
}

fn frontends_of<F: MapFamily>(actual: &Actual, names: &PortNames) -> Vec<FrontendRow> {
    let services = &F::tables(actual).services;
    services.iter().map(|(key, service)| frontend::<F>(actual, names, key, service)).collect()
}

fn frontend<F: MapFamily>(actual: &Actual, names: &PortNames, key: &ServiceKey<F>, service: &Service) -> FrontendRow {
    let ranges = F::tables(actual).source_ranges.iter().filter(|range| range.key.service == service.id);
    let ranges = ranges.map(|range| format!("{}/{}", range.key.client, range.prefix_len)).collect();
    FrontendRow {
        service: names.get(service.id),
        kind: match service.kind {
            FrontendKind::None => "-",
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::ExternalIp => "ExternalIP",
            FrontendKind::LoadBalancer => "LoadBalancer",
            FrontendKind::NodePort => "NodePort",
            FrontendKind::HostPort => "HostPort",
        },
        address: (key.addr != F::Addr::ZERO).then(|| key.addr.to_string()),
        port: key.port,
        protocol: protocol(key.protocol),
        internal: set::<F>(actual, service.internal_set, service.flags & SERVICE_INTERNAL_LOCAL != 0),
        external: set::<F>(actual, service.external_set, service.flags & SERVICE_EXTERNAL_LOCAL != 0),
        algorithm: algorithm_name(service.algorithm),
        affinity_s: service.affinity_s,
        source_ranges: (service.flags & SERVICE_SOURCE_RANGES != 0).then_some(ranges),
    }
}

fn set<F: MapFamily>(actual: &Actual, index: u32, local: bool) -> SetRow {
    let set = actual.set(index);
    let endpoint = |id: u32| {
        let backend = F::tables(actual).backend(id);
        socket(F::to_ip(backend.addr), backend.port)
    };
    let mut endpoints: Vec<_> = actual.ring(set).iter().map(|slot| endpoint(slot.backend)).collect();
    endpoints.sort();
    endpoints.dedup();
    let verdict = endpoints.is_empty().then(|| match set.when_empty() {
        EmptySet::Refuse => "refused",
        EmptySet::Drop => "dropped",
    });
    SetRow { policy: if local { "Local" } else { "Cluster" }, endpoints, verdict }
}

/// One endpoint of one service-port.
#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BackendRow {
    pub(super) service: String,
    pub(super) address: String,
    pub(super) id: u32,
    pub(super) generation: u32,
    /// Its node is this one.
    pub(super) local: bool,
    /// Its replies pass this node's programs, so the client's address is kept.
    pub(super) direct: bool,
    /// Sets that it is in; none for an endpoint that serves known flows only.
    pub(super) sets: Vec<&'static str>,
    /// Its share of new flows.
    pub(super) weight: u16,
    /// Open connections that this node sent there; counted for the algorithm lc only.
    pub(super) load: Option<u32>,
}

impl Row for BackendRow {
    const COLUMNS: &'static [&'static str] =
        &["SERVICE", "BACKEND", "ID", "GENERATION", "NODE", "CLIENT ADDRESS", "SETS", "WEIGHT", "LOAD"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.service.clone(),
            self.address.clone(),
            self.id.to_string(),
            self.generation.to_string(),
            if self.local { "this" } else { "other" }.to_owned(),
            if self.direct { "kept" } else { "translated" }.to_owned(),
            if self.sets.is_empty() { "-".to_owned() } else { self.sets.join(",") },
            self.weight.to_string(),
            self.load.map_or_else(|| "-".to_owned(), |load| load.to_string()),
        ]
    }
}

/// All serving endpoints, by Service and address.
pub(super) fn backends(pins: &Pins) -> Result<Vec<BackendRow>, TableError> {
    let (actual, names) = (actual(pins)?, PortNames::read(pins)?);
    let loads = [element_of(pins, names::LOADS_V4)?, element_of(pins, names::LOADS_V6)?];
    let mut rows = backends_of::<V4>(&actual, &names, &loads[0])?;
    rows.extend(backends_of::<V6>(&actual, &names, &loads[1])?);
    rows.sort();
    Ok(rows)
}

fn backends_of<F: MapFamily>(
    actual: &Actual,
    names: &PortNames,
    load: &dyn Fn(u32) -> Result<u32, TableError>,
) -> Result<Vec<BackendRow>, TableError> {
    let services = F::tables(actual).services.values();
    let counted: BTreeSet<u32> =
        services.filter(|it| it.algorithm == Algorithm::LeastConnections).map(|it| it.id).collect();
    let used = (0_u32..).zip(&F::tables(actual).backends).filter(|(_, backend)| backend.state == BackendState::Serving);
    let has = |flags: u8, bit: u8| flags & bit != 0;
    let row = |(id, backend): (u32, &Backend<F>)| {
        let load = counted.contains(&backend.service).then(|| load(id)).transpose()?;
        Ok(BackendRow {
            service: names.get(backend.service),
            address: socket(F::to_ip(backend.addr), backend.port),
            id,
            generation: backend.generation,
            local: has(backend.flags, BACKEND_IS_LOCAL),
            direct: has(backend.flags, BACKEND_DIRECT),
            sets: [(BACKEND_CLUSTER_SET, "cluster"), (BACKEND_LOCAL_SET, "local")]
                .into_iter()
                .filter_map(|(bit, name)| has(backend.flags, bit).then_some(name))
                .collect(),
            weight: backend.weight,
            // Below zero for a moment, while a correction overtakes the programs.
            load: load.map(|load| load.cast_signed().max(0).cast_unsigned()),
        })
    };
    used.map(row).collect()
}
