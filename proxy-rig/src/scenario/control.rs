//! The agent's way from events to maps, on a simulated node: snapshot, desired state, reconciler, dataplane. Both machines
//! use it, with another dataplane each.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use proxy_agent::{
    dataplane::{Actual, Counted, Dataplane},
    desired::{Facts, build_desired, build_host_ports},
    model::{Event, NodeFacts, ServiceName, Snapshot},
    node::{NetChange, NodeView},
    reconcile::{Dump, MAGLEV_TABLE_SIZES, NodeAddress, Options, Reconciler},
};
use proxy_common::abi::ADDR_NODEPORT;

use super::node::SimulatedNode;

/// A failed write is tried again this often before the scenario fails. One write in ten fails; a Service has tens of writes.
const MAX_RETRIES: usize = 1000;

pub(crate) struct Control<D> {
    snapshot: Snapshot,
    view: NodeView,
    reconciler: Reconciler<D>,
    service_cidrs: Vec<ipnet::IpNet>,
    external_ranges: Vec<ipnet::IpNet>,
    /// The reconciler's clock: stands still between the events, goes on for retries and `advance`.
    now: Instant,
}

impl<D: Dataplane> Control<D> {
    pub(super) fn new(node: &SimulatedNode, dataplane: D) -> Result<Self> {
        let now = Instant::now();
        let mut options = Options { maglev_table_size: *MAGLEV_TABLE_SIZES.start(), ..Options::default() };
        if !node.spec().protected_node_ports.is_empty() {
            let ranges = node.spec().protected_node_ports.iter().map(|text| port_range(text));
            options.protected_node_ports = ranges.collect::<Result<_>>()?;
        }
        Ok(Self {
            snapshot: Snapshot::new(node.spec().name.as_str()),
            view: node.view()?,
            reconciler: Reconciler::new(dataplane, options, now)?,
            service_cidrs: node.spec().service_cidrs.clone(),
            external_ranges: node.spec().external_address_ranges.clone(),
            now,
        })
    }

    /// Takes over events as the agent's main loop does, then retries until everything is written.
    pub(crate) fn program(&mut self, events: &[Event]) -> Result<()> {
        let mut touched = proxy_agent::model::Touched::default();
        for event in events {
            touched.merge(self.snapshot.apply(event.clone()));
        }
        if touched.node {
            self.update_node();
            touched.services.extend(self.all_names());
        }
        if touched.service_cidrs {
            self.update_service_cidrs();
        }
        for name in &touched.services {
            self.update_service(name);
        }
        if self.snapshot.is_synced() {
            self.reconciler.sources_synced(self.now);
        }
        self.settle()
    }

    /// For real time: the reconciler's clock catches up.
    pub(crate) fn catch_up(&mut self) {
        self.now = self.now.max(Instant::now());
    }

    /// The node gets or loses an address.
    pub(super) fn network(&mut self, change: NetChange) -> Result<()> {
        self.view.apply(change);
        self.update_node();
        for name in self.all_names() {
            self.update_service(&name);
        }
        self.settle()
    }

    /// `in_use`: the addresses that connections use now; the agent looks for them now and then.
    pub(super) fn advance(&mut self, seconds: u64, in_use: &BTreeSet<IpAddr>) -> Result<()> {
        self.now += Duration::from_secs(seconds);
        // The agent looks again every half a minute; a write that fails succeeds some time.
        for _ in 0..MAX_RETRIES {
            self.reconciler.remove_retired_addresses(in_use, self.now, self.now);
            if self.reconciler.retired_addresses().all(|ip| in_use.contains(&ip)) {
                break;
            }
        }
        self.settle()
    }

    /// Addresses that wait for their connections to end.
    pub(super) fn retired(&self) -> BTreeSet<IpAddr> {
        self.reconciler.retired_addresses().collect()
    }

    /// What Services and Pods ask for and do not get.
    pub(super) fn complaints(&self) -> Vec<String> {
        let status = self.reconciler.status();
        let conflicts = status.conflicts.values().flatten().map(ToString::to_string);
        let warnings =
            status.warnings.iter().flat_map(|(name, list)| list.iter().map(move |it| format!("{name}: {it}")));
        conflicts.chain(warnings).collect()
    }

    fn all_names(&self) -> Vec<ServiceName> {
        let services = self.snapshot.services().map(|service| service.name.clone());
        services.chain(self.snapshot.pods().map(|pod| pod.name.clone())).collect()
    }

    pub(super) fn dump(&self) -> Result<String> {
        let found = Dump::of(&self.reconciler.dataplane().read_all()?);
        if Dump::of(self.actual()) != found {
            bail!("the reconciler remembers something else than what stands in the maps:\n{found}");
        }
        Ok(found.to_string())
    }

    /// What stands in the maps.
    pub(super) fn actual(&self) -> &Actual {
        self.reconciler.mirror().actual()
    }

    pub(super) fn counted(&self) -> Counted {
        self.reconciler.mirror().counted()
    }

    fn update_node(&mut self) {
        let node_ips = self.snapshot.node().map(|node| node.internal_ips.iter().chain(&node.external_ips).copied());
        let node_ips = node_ips.map(Iterator::collect).unwrap_or_default();
        self.view.set_node_ips(node_ips);
        let addresses: Vec<NodeAddress> = self
            .view
            .addresses()
            .into_iter()
            .map(|(ip, flags)| NodeAddress { ip, nodeport: flags & ADDR_NODEPORT != 0 })
            .collect();
        self.reconciler.set_node_addresses(&addresses, self.now);
        self.reconciler.set_ifaces(self.view.ifaces(), self.now);
    }

    fn update_service_cidrs(&mut self) {
        let named = Some(&self.service_cidrs).filter(|cidrs| !cidrs.is_empty()).cloned();
        if let Some(cidrs) = named.or_else(|| self.snapshot.service_cidrs()) {
            self.reconciler.set_service_cidrs(ipnet::IpNet::aggregate(&cidrs), self.now);
        }
    }

    fn update_service(&mut self, name: &ServiceName) {
        let node: NodeFacts = self.snapshot.node_facts();
        let node_addresses: Vec<IpAddr> = self.view.addresses().into_keys().collect();
        let is_direct = |address| self.view.is_direct(address);
        let facts = Facts {
            node: &node,
            is_direct: &is_direct,
            node_addresses: &node_addresses,
            external_ranges: &self.external_ranges,
        };
        let slices: Vec<_> = self.snapshot.slices_of(name).collect();
        let desired = self.snapshot.service(name).map(|service| build_desired(service, slices.iter().copied(), &facts));
        let desired = desired.or_else(|| self.snapshot.pod(name).map(|pod| build_host_ports(pod, &facts)));
        self.reconciler.set_service(name, desired, self.now);
    }

    fn settle(&mut self) -> Result<()> {
        for _ in 0..MAX_RETRIES {
            let Some(due) = self.reconciler.next_retry() else { return Ok(()) };
            self.now = self.now.max(due);
            self.reconciler.retry(self.now);
        }
        let failures = self.reconciler.status().failures;
        let (subject, failure) = failures.iter().next().context("something is to be retried, nothing failed")?;
        bail!("{subject:?} still fails: {failure:?}");
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Ok(first.parse().with_context(|| format!("port {text:?}"))?
        ..=last.parse().with_context(|| format!("port {text:?}"))?)
}
