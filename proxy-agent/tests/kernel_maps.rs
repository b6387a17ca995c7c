//! The reconciler over real BPF maps beside the same one over the fake: what the fake knows of maps, the kernel must
//! confirm. The maps are made here, are not pinned and vanish with the test. Needs root; says so and does nothing
//! otherwise.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use proxy_agent::{
    dataplane::{Capacity, Dataplane, FakeMaps, KernelMaps},
    desired::{Facts, ServiceDesired, build_desired},
    model::{
        Endpoint, EndpointSlice, Family, NodeFacts, Protocol, Service, ServiceName, ServicePort, SlicePort,
        TrafficPolicy,
    },
    reconcile::{Dump, NodeAddress, Options, Reconciler},
};
use proxy_common::{
    abi::{Algorithm, EndpointSet, Iface, IfaceRole, names},
    net::{Ipv4, Ipv6},
};
use small_maps::create_by_name;

mod small_maps;

const SMALL: Capacity = Capacity {
    addrs: 64,
    services: 64,
    sets: 600,
    rings: 256,
    backends: 128,
    src_ranges: 16,
    ifaces: 8,
    port_names: 64,
};

/// The maps, and a second handle on SETS to look behind the memory mapping.
fn kernel_maps(test: &str, capacity: &Capacity) -> Option<(KernelMaps, MapData)> {
    if !nix::unistd::geteuid().is_root() {
        println!("{test}: not run, needs root");
        return None;
    }
    let mut sets_id = 0;
    let maps = KernelMaps::from_maps(|name| {
        let map = create_by_name(name, capacity)?;
        if name == names::SETS {
            sets_id = map.info().unwrap().id();
        }
        Some(map)
    });
    Some((maps.unwrap(), MapData::from_id(sets_id).unwrap()))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(number: u8, endpoints: u8) -> ServiceDesired {
    let name = ServiceName::new("default", format!("web-{number}"));
    let service = Service {
        name: name.clone(),
        created: Some(1),
        cluster_ips: vec![ip(&format!("10.96.0.{number}")), ip(&format!("fd00::{number}"))],
        external_ips: Vec::new(),
        load_balancer_ips: vec![ip(&format!("192.0.2.{number}")), ip(&format!("2001:db8::{number}"))],
        source_ranges: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8:1::/48".parse().unwrap()],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30000 + u16::from(number)),
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Local,
        affinity_timeout_s: None,
        health_check_node_port: None,
        traffic_distribution: None,
        algorithm: Algorithm::Random,
    };
    let slice = |family, prefix: &str| EndpointSlice {
        name: "slice".into(),
        service: name.clone(),
        family,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (1..=endpoints)
            .map(|last| Endpoint {
                address: ip(&format!("{prefix}{last}")),
                node: Some(if last % 2 == 0 { "here" } else { "there" }.into()),
                zone: None,
                zone_hints: Vec::new(),
                node_hints: Vec::new(),
                ready: true,
                serving: true,
                terminating: false,
                weight: 1,
            })
            .collect(),
        last_change: Default::default(),
    };
    let slices = [slice(Family::V4, &format!("10.244.{number}.")), slice(Family::V6, &format!("fd01:{number}::"))];
    let node = NodeFacts { name: "here".into(), zone: None };
    let facts = Facts { node: &node, is_direct: &|_| true, node_addresses: &[], external_ranges: &[] };
    build_desired(&service, slices.iter(), &facts)
}

/// The same events for both; returns how many writes succeeded.
fn events<D: Dataplane>(reconciler: &mut Reconciler<D>, now: Instant) -> usize {
    let iface = Iface {
        role: IfaceRole::Uplink,
        flags: 0,
        zero: [0; 2],
        mtu: 1500,
        addr_v4: Ipv4 { octets: [172, 16, 0, 1] },
        addr_v6: Ipv6 { octets: [0; 16] },
    };
    let mut applied =
        reconciler.set_node_addresses(&[NodeAddress { ip: ip("172.16.0.1"), nodeport: true }], now).applied;
    applied += reconciler.set_ifaces(BTreeMap::from([(2, iface)]), now).applied;
    applied += reconciler.set_service_cidrs(vec!["10.96.0.0/12".parse().unwrap()], now).applied;
    for (number, endpoints) in [(1, 4), (2, 0), (3, 2)] {
        let desired = service(number, endpoints);
        applied += reconciler.set_service(&desired.name.clone(), Some(desired), now).applied;
    }
    applied + reconciler.sources_synced(now).applied
}

fn changes<D: Dataplane>(reconciler: &mut Reconciler<D>, now: Instant) {
    for (step, (number, endpoints)) in [(1, 3), (2, 1), (3, 0), (1, 5)].into_iter().enumerate() {
        let desired = service(number, endpoints);
        let now = now + Duration::from_secs(2 * step as u64);
        assert!(reconciler.set_service(&desired.name.clone(), Some(desired), now).failed.is_empty());
    }
    reconciler.set_service(&ServiceName::new("default", "web-2"), None, now + Duration::from_secs(20));
}

#[test]
fn the_kernel_holds_what_the_fake_holds() {
    let Some((maps, sets)) = kernel_maps("the_kernel_holds_what_the_fake_holds", &SMALL) else { return };
    assert_eq!(maps.capacity(), SMALL);
    let now = Instant::now();
    let mut kernel = Reconciler::new(maps, Options::default(), now).unwrap();
    let mut fake = Reconciler::new(FakeMaps::with_capacity(SMALL), Options::default(), now).unwrap();
    assert_eq!(events(&mut kernel, now), events(&mut fake, now));
    assert_eq!(Dump::of(&kernel.dataplane().read_all().unwrap()), Dump::of(&fake.dataplane().actual));
    changes(&mut kernel, now);
    changes(&mut fake, now);
    let actual = kernel.dataplane().read_all().unwrap();
    assert_eq!(Dump::of(&actual), Dump::of(&fake.dataplane().actual));
    assert_eq!(actual.v4, fake.dataplane().actual.v4);
    assert_eq!(actual.v6, fake.dataplane().actual.v6);
    // The stores through the mapping are what programs read.
    let sets: aya::maps::Array<_, EndpointSet> = aya::maps::Map::Array(sets).try_into().unwrap();
    for (index, set) in (0u32..).zip(&actual.sets) {
        assert_eq!(sets.get(&index, 0).unwrap(), *set);
    }
    assert!(actual.sets.iter().any(|set| set.len > 0));
}

#[test]
fn a_restart_over_kernel_maps_writes_nothing() {
    let Some((maps, _)) = kernel_maps("a_restart_over_kernel_maps_writes_nothing", &SMALL) else { return };
    let now = Instant::now();
    let mut first = Reconciler::new(maps, Options::default(), now).unwrap();
    assert!(events(&mut first, now) > 0);
    let mut second = Reconciler::new(first.into_dataplane(), Options::default(), now).unwrap();
    assert_eq!(events(&mut second, now), 0);
}

/// Each map that the agent fills has room for two Services, and three come.
#[test]
fn each_full_map_names_itself_and_leaves_the_others_alone() {
    let limits = [
        ("ADDRS_V4", "addresses", Capacity { addrs: 5, ..SMALL }),
        ("SERVICES_V4", "services", Capacity { services: 6, ..SMALL }),
        ("SETS", "sets", Capacity { sets: 9, ..SMALL }),
        ("RINGS", "rings", Capacity { rings: 27, ..SMALL }),
        ("BACKENDS_V4", "backends", Capacity { backends: 10, ..SMALL }),
        ("SRC_RANGES_V4", "source-ranges", Capacity { src_ranges: 2, ..SMALL }),
        ("PORT_NAMES", "port-names", Capacity { port_names: 2, ..SMALL }),
    ];
    for (map, flag, capacity) in limits {
        let Some((maps, _)) = kernel_maps("each_full_map_names_itself", &capacity) else { return };
        let mut now = Instant::now();
        let mut reconciler = Reconciler::new(maps, Options::default(), now).unwrap();
        let node = [NodeAddress { ip: ip("172.16.0.1"), nodeport: true }];
        reconciler.set_node_addresses(&node, now);
        reconciler.sources_synced(now);
        let set = |reconciler: &mut Reconciler<KernelMaps>, number, endpoints| {
            let desired = service(number, endpoints);
            reconciler.set_service(&desired.name.clone(), Some(desired), now);
            Dump::of(&reconciler.dataplane().read_all().unwrap()).to_string()
        };
        set(&mut reconciler, 1, 4);
        let before = set(&mut reconciler, 2, 4);
        assert!(reconciler.status().failures.is_empty(), "{map}: {:?}", reconciler.status().failures);
        let after = set(&mut reconciler, 3, 4);
        let failures: Vec<_> = reconciler.status().failures.iter().collect();
        let [(subject, failure)] = failures[..] else { panic!("{map}: {failures:?}") };
        assert_eq!(subject.to_string(), "Service default/web-3");
        let text = failure.error.to_string();
        assert!(text.contains(&format!("map {map} is full (")), "{map}: {text}");
        assert!(text.contains(&format!("raise --{flag}-max")), "{map}: {text}");
        // What was there before is there as it was.
        for line in before.lines() {
            assert!(after.contains(line), "{map}: lost {line}");
        }
        // By itself, once there is room.
        reconciler.set_service(&ServiceName::new("default", "web-1"), None, now);
        for _ in 0..20 {
            now += Duration::from_secs(10);
            reconciler.retry(now);
        }
        assert!(reconciler.status().failures.is_empty(), "{map}: {:?}", reconciler.status().failures);
        let dump = Dump::of(&reconciler.dataplane().read_all().unwrap()).to_string();
        assert!(dump.contains("service 10.96.0.3:80/TCP") && !dump.contains("10.96.0.1:80/TCP"), "{map}:\n{dump}");
    }
}

#[test]
fn a_full_table_of_interfaces_names_itself() {
    let little = Capacity { ifaces: 2, ..SMALL };
    let Some((maps, _)) = kernel_maps("a_full_table_of_interfaces_names_itself", &little) else { return };
    let now = Instant::now();
    let mut reconciler = Reconciler::new(maps, Options::default(), now).unwrap();
    events(&mut reconciler, now);
    let none = Ipv6 { octets: [0; 16] };
    let iface = Iface {
        role: IfaceRole::Pod,
        flags: 0,
        zero: [0; 2],
        mtu: 1500,
        addr_v4: Ipv4 { octets: [172, 16, 0, 1] },
        addr_v6: none,
    };
    reconciler.set_ifaces(BTreeMap::from([(2, iface), (3, iface), (4, iface)]), now);
    let texts: Vec<String> = reconciler.status().failures.values().map(|it| it.error.to_string()).collect();
    assert!(
        texts.iter().any(|text| text.contains("map IFACES is full (2 entries); raise --interfaces-max")),
        "{texts:?}"
    );
    let later = now + Duration::from_secs(60);
    reconciler.set_ifaces(BTreeMap::from([(2, iface), (4, iface)]), later);
    reconciler.retry(later + Duration::from_secs(60));
    assert!(reconciler.status().failures.is_empty());
}

#[test]
fn maps_of_default_size_are_read_quickly() {
    let Some((maps, _)) = kernel_maps("maps_of_default_size_are_read_quickly", &Capacity::default()) else { return };
    let start = Instant::now();
    maps.read_all().unwrap();
    println!("reading all maps of default size took {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(10));
}
