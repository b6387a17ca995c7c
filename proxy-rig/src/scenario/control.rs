//! The agent's way from events to maps, on a simulated node: snapshot, desired state, reconciler, dataplane. Both machines
//! use it, with another dataplane each.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use proxy_agent::{
    dataplane::{Actual, Dataplane},
    desired::{Facts, build_desired},
    model::{Event, NodeFacts, ServiceName, Snapshot},
    node::NodeView,
    reconcile::{Dump, NodeAddress, Options, Reconciler},
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
    /// The reconciler's clock: stands still between the events, goes on for retries and `advance`.
    now: Instant,
}

impl<D: Dataplane> Control<D> {
    pub(super) fn new(node: &SimulatedNode, dataplane: D) -> Result<Self> {
        let now = Instant::now();
        Ok(Self {
            snapshot: Snapshot::new(node.spec().name.as_str()),
            view: node.view()?,
            reconciler: Reconciler::new(dataplane, Options::default(), now)?,
            service_cidrs: node.spec().service_cidrs.clone(),
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
            touched.services.extend(self.snapshot.services().map(|service| service.name.clone()));
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

    pub(super) fn advance(&mut self, seconds: u64) -> Result<()> {
        self.now += Duration::from_secs(seconds);
        self.settle()
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

    fn update_node(&mut self) {
        let node_ips = self.snapshot.node().map(|node| node.internal_ips.clone()).unwrap_or_default();
        self.view.set_node_ips(node_ips);
        let addresses: Vec<NodeAddress> = self
            .view
            .addresses()
            .into_iter()
            .map(|(ip, flags)| NodeAddress { ip, nodeport: flags & ADDR_NODEPORT != 0 })
            .collect();
        self.reconciler.set_node_addresses(&addresses, self.now);
        self.reconciler.set_ifaces(self.view.ifaces(), self.now);
        self.reconciler.set_service_cidrs(self.service_cidrs.clone(), self.now);
    }

    fn update_service(&mut self, name: &ServiceName) {
        let node: NodeFacts = self.snapshot.node_facts();
        let node_addresses: Vec<IpAddr> = self.view.addresses().into_keys().collect();
        let is_direct = |address| self.view.is_direct(address);
        let facts = Facts { node: &node, is_direct: &is_direct, node_addresses: &node_addresses, external_ranges: &[] };
        let slices: Vec<_> = self.snapshot.slices_of(name).collect();
        let desired = self.snapshot.service(name).map(|service| build_desired(service, slices.iter().copied(), &facts));
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
