//! ClusterIPs, nodePorts and health-check ports for Services that leave them to the API server.
//!
//! A manifest as one writes it for `kubectl apply` names none of them. Here each is found by hashing the
//! Service's name into the range and taking the next free place, so that the same files give the same
//! addresses on every start. What was given once stays while the Service lives, also when another Service
//! that would have come first appears later.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{self as core, ServiceSpec};

use crate::{ingest::parse_ip, model::Family};

/// The API server's default --service-node-port-range.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Places tried in one range: enough for any cluster, and it ends in a range of 2^64 addresses.
const MAX_HOSTS: u128 = 1 << 20;

/// Values given to keys, kept from one load to the next.
#[derive(Debug)]
struct Pool<K, V> {
    given: BTreeMap<K, V>,
}

/// Whose port: Service and port number, or `health` in place of the number.
type PortOwner = (String, &'static str);

#[derive(Debug)]
pub(super) struct Allocations {
    cidrs: Vec<IpNet>,
    addresses: Pool<(String, Family), IpAddr>,
    /// Ports of different protocols do not conflict.
    ports: Pool<PortOwner, (u16, &'static str)>,
}

impl<K: Ord + Clone, V: Ord + Copy> Pool<K, V> {
    /// Gives every key a value that is not taken: the one it had before, or else its first free candidate.
    /// Keys without any are left out of the result.
    fn assign<I: Iterator<Item = V>>(
        &mut self,
        wanted: &BTreeSet<K>,
        mut taken: BTreeSet<V>,
        candidates: impl Fn(&K) -> I,
    ) -> &BTreeMap<K, V> {
        self.given.retain(|key, value| wanted.contains(key) && taken.insert(*value));
        for key in wanted {
            if !self.given.contains_key(key)
                && let Some(free) = candidates(key).find(|value| !taken.contains(value))
            {
                taken.insert(free);
                self.given.insert(key.clone(), free);
            }
        }
        &self.given
    }
}

impl Allocations {
    pub(super) fn new(cidrs: Vec<IpNet>) -> Self {
        Self { cidrs, addresses: Pool { given: BTreeMap::new() }, ports: Pool { given: BTreeMap::new() } }
    }

    /// Fills in what is missing. Returns the names of Services that no free address is left for.
    pub(super) fn assign(&mut self, services: &mut [&mut core::Service]) -> Vec<String> {
        let without = self.assign_addresses(services);
        self.assign_ports(services);
        without
    }

    fn assign_addresses(&mut self, services: &mut [&mut core::Service]) -> Vec<String> {
        let mut wanted = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for service in services.iter() {
            let Some(spec) = &service.spec else { continue };
            taken.extend(explicit_addresses(spec));
            wanted.extend(missing_families(spec, &self.cidrs).into_iter().map(|family| (full_name(service), family)));
        }
        let cidrs = &self.cidrs;
        let given = self.addresses.assign(&wanted, taken, |(name, family)| {
            let (start, family) = (hash(name), *family);
            let of_family = cidrs.iter().filter(move |net| Family::of(net.addr()) == family);
            of_family.flat_map(move |net| hosts(*net, start))
        });
        let mut without = Vec::new();
        for service in services.iter_mut() {
            let name = full_name(service);
            let Some(spec) = &mut service.spec else { continue };
            for family in missing_families(spec, cidrs) {
                match given.get(&(name.clone(), family)) {
                    Some(address) => add_address(spec, *address),
                    None => without.push(name.clone()),
                }
            }
        }
        without
    }

    fn assign_ports(&mut self, services: &mut [&mut core::Service]) {
        let mut wanted = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for service in services.iter_mut() {
            let name = full_name(service);
            visit_ports(service, |owner, protocol, slot| match port_of(*slot) {
                Some(port) => {
                    taken.insert((port, protocol));
                }
                None => {
                    wanted.insert((format!("{name}:{owner}"), protocol));
                }
            });
        }
        let given = self.ports.assign(&wanted, taken, |(owner, protocol)| {
            let protocol = *protocol;
            let count = NODE_PORTS.end() - NODE_PORTS.start() + 1;
            // The remainder of a u16 is a u16.
            let first = (hash(owner) % u64::from(count)) as u16;
            (0..count).map(move |step| (NODE_PORTS.start() + (first + step) % count, protocol))
        });
        for service in services.iter_mut() {
            let name = full_name(service);
            visit_ports(service, |owner, protocol, slot| {
                if port_of(*slot).is_none()
                    && let Some((port, _)) = given.get(&(format!("{name}:{owner}"), protocol))
                {
                    *slot = Some(i32::from(*port));
                }
            });
        }
    }
}

fn full_name(service: &core::Service) -> String {
    let metadata = &service.metadata;
    format!("{}/{}", metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn explicit_addresses(spec: &ServiceSpec) -> impl Iterator<Item = IpAddr> {
    spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(|text| parse_ip(text))
}

/// The families that the Service should have an address of and has not.
fn missing_families(spec: &ServiceSpec, cidrs: &[IpNet]) -> Vec<Family> {
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if headless || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let has: Vec<Family> = explicit_addresses(spec).map(Family::of).collect();
    let named = spec.ip_families.iter().flatten().filter_map(|text| match text.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    });
    let mut wanted: Vec<Family> = named.collect();
    if wanted.is_empty() && has.is_empty() {
        wanted.extend(cidrs.first().map(|net| Family::of(net.addr())));
    }
    if matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack")) {
        wanted.extend(
            [Family::V4, Family::V6]
                .into_iter()
                .filter(|family| cidrs.iter().any(|net| Family::of(net.addr()) == *family)),
        );
    }
    let mut missing = Vec::new();
    for family in wanted {
        if !has.contains(&family) && !missing.contains(&family) {
            missing.push(family);
        }
    }
    missing
}

fn add_address(spec: &mut ServiceSpec, address: IpAddr) {
    if spec.cluster_ip.as_deref().unwrap_or_default().is_empty() {
        spec.cluster_ip = Some(address.to_string());
    }
    let all = spec.cluster_ips.get_or_insert_default();
    all.retain(|text| !text.is_empty());
    all.push(address.to_string());
}

/// Shows every port that the API server would allocate for this Service: who it is for, and its slot.
fn visit_ports(service: &mut core::Service, mut visit: impl FnMut(&str, &'static str, &mut Option<i32>)) {
    let Some(spec) = &mut service.spec else { return };
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let exposed = spec.type_.as_deref() == Some("NodePort")
        || (balanced && spec.allocate_load_balancer_node_ports != Some(false));
    for port in spec.ports.iter_mut().flatten().filter(|_| exposed) {
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => "UDP",
            Some("SCTP") => "SCTP",
            _ => "TCP",
        };
        visit(&port.port.to_string(), protocol, &mut port.node_port);
    }
    if balanced && spec.external_traffic_policy.as_deref() == Some("Local") {
        visit("health", "TCP", &mut spec.health_check_node_port);
    }
}

fn port_of(slot: Option<i32>) -> Option<u16> {
    slot.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

/// The addresses of a range, from the hashed place on, once around. The first address and the last of
/// an IPv4 range are left out, as the API server does.
fn hosts(net: IpNet, hash: u64) -> impl Iterator<Item = IpAddr> {
    let bits = u32::from(net.max_prefix_len() - net.prefix_len());
    let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX).min(MAX_HOSTS);
    let (skipped, count) = if size > 2 { (1, size - 2) } else { (0, size) };
    (0..count).map(move |step| {
        let place = skipped + (u128::from(hash) + step) % count;
        match net.network() {
            // Below MAX_HOSTS, and below the size of the range.
            IpAddr::V4(base) => IpAddr::from((u32::from(base) + place as u32).to_be_bytes()),
            IpAddr::V6(base) => IpAddr::from((u128::from(base) + place).to_be_bytes()),
        }
    })
}

/// FNV-1a: the same on every machine and in every version, which the standard library's does not promise.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> core::Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec}))
            .expect("a Service")
    }

    fn cidrs(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a CIDR")).collect()
    }

    fn assign(allocations: &mut Allocations, services: &mut [core::Service]) -> Vec<String> {
        allocations.assign(&mut services.iter_mut().collect::<Vec<_>>())
    }

    fn spec(service: &core::Service) -> &ServiceSpec {
        service.spec.as_ref().expect("a spec")
    }

    #[test]
    fn addresses_are_stable_distinct_and_spare_the_explicit_ones() {
        let mut allocations = Allocations::new(cidrs(&["10.96.0.0/29"]));
        let mut first = vec![
            service("a", json!({})),
            service("b", json!({"clusterIP": "10.96.0.3"})),
            service("c", json!({"clusterIP": ""})),
        ];
        assert!(assign(&mut allocations, &mut first).is_empty());
        let addresses: BTreeSet<_> = first.iter().map(|it| spec(it).cluster_ip.clone().expect("an address")).collect();
        assert_eq!(addresses.len(), 3);
        assert!(addresses.contains("10.96.0.3"));
        assert_eq!(spec(&first[0]).cluster_ips, Some(vec![spec(&first[0]).cluster_ip.clone().expect("an address")]));
        let mut more: Vec<_> = ["c", "a", "0", "1", "2"].iter().map(|name| service(name, json!({}))).collect();
        assert!(assign(&mut allocations, &mut more).is_empty());
        assert_eq!(spec(&more[1]).cluster_ip, spec(&first[0]).cluster_ip);
        assert_eq!(spec(&more[0]).cluster_ip, spec(&first[2]).cluster_ip);
        let mut too_many: Vec<_> = (0..7).map(|number| service(&number.to_string(), json!({}))).collect();
        assert_eq!(assign(&mut allocations, &mut too_many).len(), 1);
    }

    #[test]
    fn families_follow_the_policy() {
        let allocate = |wanted: Value| {
            let mut services = [service("web", wanted)];
            let failed = assign(&mut Allocations::new(cidrs(&["10.96.0.0/12", "fd00:96::/108"])), &mut services);
            assert!(failed.is_empty());
            let ips = spec(&services[0]).cluster_ips.clone().unwrap_or_default();
            ips.iter().map(|text| Family::of(parse_ip(text).expect("an address"))).collect::<Vec<_>>()
        };
        assert_eq!(allocate(json!({})), [Family::V4]);
        assert_eq!(allocate(json!({"ipFamilies": ["IPv6"]})), [Family::V6]);
        assert_eq!(allocate(json!({"ipFamilyPolicy": "PreferDualStack"})), [Family::V4, Family::V6]);
        assert_eq!(
            allocate(json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]})),
            [Family::V6, Family::V4]
        );
        let second =
            json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]});
        assert_eq!(allocate(second), [Family::V4, Family::V6]);
        assert_eq!(allocate(json!({"type": "ExternalName"})), []);
        let mut headless = [service("web", json!({"clusterIP": "None"}))];
        assign(&mut Allocations::new(cidrs(&["10.96.0.0/12"])), &mut headless);
        assert_eq!(spec(&headless[0]).cluster_ips, None);
    }

    #[test]
    fn node_ports_where_the_type_asks_for_them() {
        let ports =
            json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 80, "nodePort": 30080}]);
        let mut services = [
            service("a", json!({"type": "NodePort", "ports": ports})),
            service("b", json!({"type": "ClusterIP", "ports": ports})),
            service("c", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]})),
            service(
                "d",
                json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]}),
            ),
        ];
        assign(&mut Allocations::new(cidrs(&["10.96.0.0/12"])), &mut services);
        let node_ports = |index: usize| -> Vec<_> {
            spec(&services[index]).ports.iter().flatten().map(|port| port.node_port).collect()
        };
        let dns = node_ports(0)[0].expect("a port");
        assert!(NODE_PORTS.contains(&u16::try_from(dns).expect("a port")));
        assert_eq!(node_ports(0), [Some(dns), Some(dns), Some(30080)]);
        assert_eq!(node_ports(1), [None, None, Some(30080)]);
        assert!(node_ports(2)[0].is_some() && spec(&services[2]).health_check_node_port.is_some());
        assert_eq!(node_ports(3), [None]);
    }

    #[test]
    fn every_host_of_a_range_once() {
        for (net, count) in [("10.0.0.0/29", 6), ("10.0.0.4/32", 1), ("10.0.0.4/31", 2), ("fd00::/125", 6)] {
            let net: IpNet = net.parse().expect("a CIDR");
            let found: BTreeSet<_> = hosts(net, u64::MAX).collect();
            assert_eq!(found.len(), count, "{net}");
            assert!(found.iter().all(|address| net.contains(address)), "{net}");
        }
    }
}
