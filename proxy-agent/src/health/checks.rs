//! healthCheckNodePort: which Services have one, and how many endpoints each has on this node. Pure; the main loop collects.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use crate::model::{EndpointSlice, Family, Service, ServiceName};

/// What a load balancer asks about one Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCheck {
    pub port: u16,
    pub local_endpoints: u32,
}

pub type Checks = BTreeMap<ServiceName, ServiceCheck>;

impl ServiceCheck {
    /// None for a Service that nobody asks about.
    pub fn of<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>, node_name: &str) -> Option<Self> {
        let port = service.health_check_node_port?;
        Some(Self { port, local_endpoints: local_endpoints(slices, node_name) })
    }
}

/// Addresses of ready endpoints on this node, each once; those that terminate do not count. A pod with an address of each family
/// counts once, hence the greater number of the two.
fn local_endpoints<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, node_name: &str) -> u32 {
    let mut found: BTreeMap<Family, BTreeSet<IpAddr>> = BTreeMap::new();
    for slice in slices {
        let here = slice
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ready && !endpoint.terminating && endpoint.node.as_deref() == Some(node_name));
        found.entry(slice.family).or_default().extend(here.map(|endpoint| endpoint.address));
    }
    found.values().map(BTreeSet::len).max().map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
}

/// Who answers on which port. A port that two Services name stays with the one that has it; else the first by name gets it, and
/// the other is returned as refused.
pub(super) fn owners(
    checks: &Checks,
    before: &BTreeMap<u16, ServiceName>,
) -> (BTreeMap<u16, ServiceName>, Vec<(ServiceName, u16)>) {
    let mut owners = BTreeMap::new();
    let keeps = |(name, check): &(&ServiceName, &ServiceCheck)| before.get(&check.port) == Some(*name);
    let (kept, new): (Vec<_>, Vec<_>) = checks.iter().partition(keeps);
    let mut refused = Vec::new();
    for (name, check) in kept.into_iter().chain(new) {
        match owners.entry(check.port) {
            Entry::Vacant(free) => {
                free.insert(name.clone());
            }
            Entry::Occupied(_) => refused.push((name.clone(), check.port)),
        }
    }
    (owners, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoint;

    fn endpoint(address: &str, node: &str, ready: bool, terminating: bool) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            node: Some(node.into()),
            zone: None,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
            ready,
            serving: true,
            terminating,
            weight: 1,
        }
    }

    fn slice(name: &str, family: Family, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let service = ServiceName::new("default", "web");
        EndpointSlice {
            name: name.into(),
            service,
            family,
            ports: Vec::new(),
            endpoints,
            last_change: Default::default(),
        }
    }

    #[test]
    fn distinct_local_ready_addresses_count() {
        let slices = [
            slice(
                "a",
                Family::V4,
                vec![
                    endpoint("10.0.0.1", "here", true, false),
                    endpoint("10.0.0.2", "here", false, false),
                    endpoint("10.0.0.3", "here", true, true),
                    endpoint("10.0.0.4", "there", true, false),
                ],
            ),
            // The same pod under another port, and its other address.
            slice(
                "b",
                Family::V4,
                vec![endpoint("10.0.0.1", "here", true, false), endpoint("10.0.0.5", "here", true, false)],
            ),
            slice("c", Family::V6, vec![endpoint("fd00::1", "here", true, false)]),
        ];
        assert_eq!(local_endpoints(slices.iter(), "here"), 2);
        assert_eq!(local_endpoints(slices.iter(), "there"), 1);
        assert_eq!(local_endpoints(slices.iter(), "elsewhere"), 0);
    }

    #[test]
    fn a_port_stays_with_its_service() {
        let name = |name| ServiceName::new("default", name);
        let check = ServiceCheck { port: 32000, local_endpoints: 1 };
        let mut checks = Checks::from([(name("b"), check)]);
        let (before, refused) = owners(&checks, &BTreeMap::new());
        assert_eq!((before.get(&32000), refused.len()), (Some(&name("b")), 0));
        checks.insert(name("a"), check);
        let (now, refused) = owners(&checks, &before);
        assert_eq!((now, refused), (before, vec![(name("a"), 32000)]));
        checks.remove(&name("b"));
        assert_eq!(owners(&checks, &BTreeMap::new()).0.get(&32000), Some(&name("a")));
    }
}
