//! The reconciler over the fake maps. `behaviour`: one test per promise. `properties`: any Services in any order
//! with failing writes. Here: short ways to write Services down, and what must hold at any moment.

mod behaviour;
mod properties;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use proxy_common::{
    abi::{Algorithm, BackendState, EndpointSet},
    net::{V4, V6},
};

use super::{mirror::sets_of, *};
use crate::{
    dataplane::{Actual, FakeMaps, Injection, MapFamily},
    desired::{Facts, ServiceDesired, build_desired, build_host_ports},
    model::{
        Endpoint, EndpointSlice, Family, HostPort, NodeFacts, Pod, Protocol, Service, ServiceName, ServicePort,
        SlicePort, TrafficPolicy,
    },
};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A Service with a port `http` (80 -> 8080) and the endpoints that a test gives it.
#[derive(Clone, Debug)]
struct Spec {
    service: Service,
    /// Address and node; `~` in front of the node: it terminates.
    endpoints: Vec<(IpAddr, &'static str)>,
}

impl Spec {
    fn new(name: &str, cluster_ip: &str) -> Self {
        let service = Service {
            name: ServiceName::new("default", name),
            created: None,
            cluster_ips: vec![ip(cluster_ip)],
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_timeout_s: None,
            health_check_node_port: None,
            traffic_distribution: None,
            algorithm: Algorithm::Random,
        };
        Self { service, endpoints: Vec::new() }
    }

    fn endpoints(mut self, endpoints: &[(&str, &'static str)]) -> Self {
        self.endpoints = endpoints.iter().map(|(address, node)| (ip(address), *node)).collect();
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Service)) -> Self {
        change(&mut self.service);
        self
    }

    fn name(&self) -> ServiceName {
        self.service.name.clone()
    }

    fn slice(&self, family: Family) -> EndpointSlice {
        let endpoint = |(address, node): &(IpAddr, &'static str)| {
            let terminating = node.starts_with('~');
            Endpoint {
                address: *address,
                node: Some(node.trim_start_matches('~').into()),
                zone: None,
                zone_hints: Vec::new(),
                node_hints: Vec::new(),
                ready: !terminating,
                serving: true,
                terminating,
                weight: 1,
            }
        };
        let ports = self.service.ports.iter().map(|port| SlicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.port + 8000,
        });
        EndpointSlice {
            name: "slice".into(),
            service: self.name(),
            family,
            ports: ports.collect(),
            endpoints: self.endpoints.iter().filter(|(it, _)| Family::of(*it) == family).map(endpoint).collect(),
            last_change: Default::default(),
        }
    }

    fn desired(&self) -> ServiceDesired {
        let node = NodeFacts { name: "here".into(), zone: None };
        let facts = Facts { node: &node, is_direct: &|_| true, node_addresses: &[], external_ranges: &[] };
        let slices = [self.slice(Family::V4), self.slice(Family::V6)];
        build_desired(&self.service, slices.iter(), &facts)
    }
}

/// A reconciler, its clock, and what its BACKENDS held at the last check.
struct Bench {
    reconciler: Reconciler<FakeMaps>,
    now: Instant,
    seen: Actual,
}

impl Bench {
    /// Over these maps, before any source is synced.
    fn over(maps: FakeMaps) -> Self {
        let now = Instant::now();
        let seen = maps.actual.clone();
        let reconciler = Reconciler::new(maps, Options::default(), now).expect("the fake is readable");
        Self { reconciler, now, seen }
    }

    fn synced() -> Self {
        let mut bench = Self::over(FakeMaps::default());
        bench.reconciler.sources_synced(bench.now);
        bench
    }

    /// What another start of the agent finds.
    fn restart(&self) -> Self {
        let maps = FakeMaps { actual: self.actual().clone(), ..FakeMaps::default() };
        Self::over(maps)
    }

    fn set(&mut self, spec: &Spec) -> Report {
        self.now += Duration::from_secs(2);
        let report = self.reconciler.set_service(&spec.name(), Some(spec.desired()), self.now);
        self.check();
        report
    }

    fn delete(&mut self, spec: &Spec) -> Report {
        self.now += Duration::from_secs(2);
        let report = self.reconciler.set_service(&spec.name(), None, self.now);
        self.check();
        report
    }

    fn sync(&mut self) -> Report {
        let report = self.reconciler.sources_synced(self.now);
        self.check();
        report
    }

    /// Without failures from now on, until nothing is pending.
    fn settle(&mut self) {
        self.reconciler.dataplane_mut().injection = Injection::None;
        while let Some(at) = self.reconciler.next_retry() {
            self.now = self.now.max(at);
            self.reconciler.retry(self.now);
            self.check();
        }
    }

    /// No connection uses an address that is nobody's any more.
    fn end_connections(&mut self) {
        self.reconciler.remove_retired_addresses(&BTreeSet::new(), self.now, self.now);
        self.check();
    }

    fn actual(&self) -> &Actual {
        &self.reconciler.dataplane().actual
    }

    fn dump(&self) -> Vec<String> {
        Dump::of(self.actual()).lines
    }

    /// The writes since the last call.
    fn log(&mut self) -> Vec<String> {
        self.reconciler.dataplane_mut().log.drain(..).map(|op| op.to_string()).collect()
    }

    /// What must hold at any moment, whatever failed.
    fn check(&mut self) {
        let actual = &self.reconciler.dataplane().actual;
        assert_eq!(actual, self.reconciler.mirror().actual(), "the mirror is the maps");
        check_sets::<V4>(actual);
        check_sets::<V6>(actual);
        check_generations::<V4>(&self.seen, actual);
        check_generations::<V6>(&self.seen, actual);
        self.seen = actual.clone();
    }
}

/// Every frontend leads to serving backends of its own service-port, and no two sets share a part of RINGS.
fn check_sets<F: MapFamily>(actual: &Actual) {
    let mut ranges: BTreeMap<u32, (u32, EndpointSet)> = BTreeMap::new();
    for (key, value) in &F::tables(actual).services {
        assert!(actual.port_names.contains_key(&value.id), "{key:?} has no name");
        for (_, index) in sets_of(value) {
            let set = actual.set(index);
            assert_eq!(actual.ring(set).len(), set.len as usize);
            for slot in actual.ring(set) {
                let backend = F::tables(actual).backend(slot.backend);
                assert_eq!((slot.set, backend.service, backend.state), (index, value.id, BackendState::Serving));
            }
            if set.len > 0 {
                ranges.insert(set.start, (index, set));
            }
        }
    }
    let ranges: Vec<_> = ranges.into_values().collect();
    for pair in ranges.windows(2) {
        assert!(pair[0].1.start + pair[0].1.len <= pair[1].1.start, "{pair:?} overlap");
    }
}

/// A generation never goes back, and grows when a slot stops serving its endpoint.
fn check_generations<F: MapFamily>(before: &Actual, after: &Actual) {
    for (id, old) in (0u32..).zip(&F::tables(before).backends) {
        let new = F::tables(after).backend(id);
        let same = (old.addr, old.port, old.service, old.state) == (new.addr, new.port, new.service, new.state);
        assert!(new.generation >= old.generation);
        assert!(same || old.state == BackendState::Free || new.generation > old.generation, "{old:?} -> {new:?}");
    }
}
