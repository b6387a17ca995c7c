//! One test per promise of the reconciler.

use super::*;
use crate::dataplane::Capacity;
use proxy_common::{
    abi::{ADDR_VANISHED, Iface, IfaceRole, SocketEnding},
    net::{Address, Ipv4, Ipv6},
};

fn web() -> Spec {
    Spec::new("web", "10.96.0.10").endpoints(&[("10.244.1.2", "here"), ("10.244.2.3", "there")])
}

#[test]
fn a_service_in_the_maps() {
    let mut bench = Bench::synced();
    let spec = web().with(|service| {
        service.ports[0].node_port = Some(30080);
        service.load_balancer_ips = vec![ip("192.0.2.127")];
        service.source_ranges = vec!["10.0.0.0/8".parse().expect("a range")];
        service.external_policy = TrafficPolicy::Local;
        service.affinity_timeout_s = Some(60);
    });
    bench.set(&spec);
    let sets = "internal=cluster[10.244.1.2:8080 10.244.2.3:8080] external=local[10.244.1.2:8080] affinity=60s";
    assert_eq!(
        bench.dump(),
        [
            "address 10.96.0.10 cluster-ip".to_owned(),
            "address 192.0.2.127 external".to_owned(),
            format!("service nodeport:30080/TCP node-port default/web:http {sets}"),
            format!(
                "service 10.96.0.10:80/TCP cluster-ip default/web:http {}",
                sets.replace("external=local[10.244.1.2:8080]", "external=cluster[10.244.1.2:8080 10.244.2.3:8080]")
            ),
            format!("service 192.0.2.127:80/TCP load-balancer default/web:http {sets} source-ranges"),
            "backend default/web:http 10.244.1.2:8080 local direct cluster local-set".to_owned(),
            "backend default/web:http 10.244.2.3:8080 cluster".to_owned(),
            "source-range default/web:http 10.0.0.0/8".to_owned(),
        ]
    );
    bench.delete(&spec);
    bench.end_connections();
    assert_eq!(bench.dump(), Vec::<String>::new());
    assert!(bench.actual().port_names.is_empty());
}

#[test]
fn writes_go_from_the_inside_out_and_back() {
    let mut bench = Bench::synced();
    bench.set(&web());
    assert_eq!(
        bench.log(),
        [
            "put port name 1 = default/web:http",
            "put backend 1 = 10.244.1.2 port 8080",
            "put backend 2 = 10.244.2.3 port 8080",
            "write ring 0..2",
            "point set 1 at ring 0..2",
            "put frontend 10.96.0.10 port 80 protocol 6 = service-port 1",
            "put address 10.96.0.10 flags 0x1",
        ]
    );
    bench.delete(&web());
    assert_eq!(
        bench.log(),
        [
            "put address 10.96.0.10 flags 0x20",
            "delete frontend 10.96.0.10 port 80 protocol 6",
            "empty set 1 (Refuse)",
            "free backend 1 = 10.244.1.2 port 8080",
            "free backend 2 = 10.244.2.3 port 8080",
            "delete port name 1",
        ]
    );
}

#[test]
fn one_endpoint_costs_four_writes_among_a_thousand_services() {
    let mut bench = Bench::over(FakeMaps::default());
    let spec = |number: u32| {
        let [_, _, high, low] = number.to_be_bytes();
        let addresses: Vec<String> = (1..=20).map(|last| format!("10.{}.{low}.{last}", 128 + high)).collect();
        let endpoints: Vec<_> = addresses.iter().map(|address| (address.as_str(), "there")).collect();
        Spec::new(&format!("s{number}"), &format!("10.96.{high}.{low}")).endpoints(&endpoints)
    };
    for number in 0..1000 {
        let spec = spec(number).with(|service| service.ports[0].node_port = Some(30000 + number as u16));
        bench.reconciler.set_service(&spec.name(), Some(spec.desired()), bench.now);
    }
    bench.sync();
    assert_eq!(bench.actual().v4.services.len(), 2000);
    bench.log();
    let mut changed = spec(500).with(|service| service.ports[0].node_port = Some(30500));
    changed.endpoints[7].0 = ip("10.200.0.1");
    bench.set(&changed);
    let log = bench.log();
    assert_eq!(log.len(), 4, "{log:?}");
    assert!(log[0].starts_with("put backend") && log[0].contains("10.200.0.1"));
    assert!(log[1].starts_with("write ring"));
    assert!(log[2].starts_with("point set"));
    assert!(log[3].starts_with("free backend") && log[3].contains("10.129.244.8"));
}

#[test]
fn backends_in_any_order_are_kept() {
    let mut bench = Bench::synced();
    bench.set(&web());
    bench.log();
    let mut desired = web().desired();
    desired.ports[0].v4.backends.reverse();
    bench.reconciler.set_service(&desired.name.clone(), Some(desired), bench.now);
    bench.check();
    assert_eq!(bench.log(), ["write ring 2..4", "point set 1 at ring 2..4"]);
}

#[test]
fn changed_flags_keep_the_generation() {
    let mut bench = Bench::synced();
    bench.set(&web());
    bench.log();
    bench.set(&web().endpoints(&[("10.244.1.2", "there"), ("10.244.2.3", "there")]));
    assert_eq!(bench.log(), ["put backend 1 = 10.244.1.2 port 8080"]);
    assert_eq!(bench.actual().v4.backend(1).generation, 0);
    // It leaves and comes back: another generation, whatever slot it gets.
    bench.set(&web().endpoints(&[("10.244.2.3", "there")]));
    bench.set(&web());
    let back = bench.actual().v4.backends.iter().find(|it| it.addr.to_string() == "10.244.1.2").expect("it is back");
    assert_eq!((back.state, back.generation), (BackendState::Serving, 1));
}

#[test]
fn a_restart_with_unchanged_objects_writes_nothing() {
    let mut bench = Bench::synced();
    let node =
        [NodeAddress { ip: ip("172.16.0.1"), nodeport: true }, NodeAddress { ip: ip("10.96.0.10"), nodeport: false }];
    let iface =
        Iface { role: IfaceRole::Pod, flags: 0, zero: [0; 2], mtu: 1500, addr_v4: Ipv4::ZERO, addr_v6: Ipv6::ZERO };
    let facts = |bench: &mut Bench| {
        let now = bench.now;
        let cidrs = vec!["10.96.0.0/12".parse().expect("a range"), "fd00::/108".parse().expect("a range")];
        bench.reconciler.set_node_addresses(&node, now).applied
            + bench.reconciler.set_ifaces(BTreeMap::from([(3, iface)]), now).applied
            + bench.reconciler.set_service_cidrs(cidrs, now).applied
    };
    assert_eq!(facts(&mut bench), 4);
    let local = |service: &mut Service| {
        service.external_policy = TrafficPolicy::Local;
        service.ports[0].node_port = Some(30080);
        service.cluster_ips.push(ip("fd00::10"));
    };
    let dns = Spec::new("dns", "10.96.0.2").with(|service| service.ports[0].name = "".into());
    for spec in [web().with(local), dns.clone(), web()] {
        bench.set(&spec);
    }
    bench.delete(&dns);
    bench.set(&dns.clone().endpoints(&[("10.244.1.9", "here"), ("10.244.1.7", "there")]));
    bench.set(&web().with(local));
    let mut again = bench.restart();
    assert_eq!(facts(&mut again), 0);
    again.set(&dns.endpoints(&[("10.244.1.7", "there"), ("10.244.1.9", "here")]));
    again.set(&web().with(local).endpoints(&[("10.244.2.3", "there"), ("10.244.1.2", "here")]));
    assert_eq!(again.sync().applied, 0, "{:?}", again.log());
    assert_eq!(again.dump(), bench.dump());
}

#[test]
fn nothing_goes_before_all_sources_are_synced() {
    let mut bench = Bench::synced();
    bench.reconciler.set_node_addresses(&[NodeAddress { ip: ip("172.16.0.1"), nodeport: true }], bench.now);
    let other = Spec::new("other", "10.96.0.11").endpoints(&[("10.244.1.5", "here")]);
    bench.set(&web());
    bench.set(&other);
    let before = bench.dump();
    let mut again = bench.restart();
    again.reconciler.set_node_addresses(&[NodeAddress { ip: ip("172.16.0.2"), nodeport: false }], again.now);
    again.set(&web().endpoints(&[]));
    again.set(&web());
    again.delete(&other);
    let without_new_address = |it: &String| it != "address 172.16.0.2 node";
    assert_eq!(again.dump().into_iter().filter(without_new_address).collect::<Vec<_>>(), before);
    again.sync();
    assert!(again.dump().contains(&"address 172.16.0.1 retired".to_owned()));
    again.end_connections();
    assert!(again.dump().iter().all(|line| !line.contains("other") && !line.contains("10.96.0.11")));
    assert!(!again.dump().contains(&"address 172.16.0.1 node nodeport".to_owned()));
    assert!(again.dump().contains(&"address 172.16.0.2 node".to_owned()));
    assert_eq!(again.actual().port_names.len(), 1);
}

/// An address in a range that no Service has is dropped, and before the sync no Service has its address.
#[test]
fn service_ranges_come_after_the_services() {
    let mut bench = Bench::synced().restart();
    let range = "service-cidr 10.96.0.0/12".to_owned();
    bench.reconciler.set_service_cidrs(vec!["10.96.0.0/12".parse().expect("a range")], bench.now);
    bench.set(&web());
    assert!(!bench.dump().contains(&range));
    bench.sync();
    assert!(bench.dump().contains(&range));
    assert!(bench.dump().len() > 1, "the Service is there, too");
}

#[test]
fn a_retired_address_stays_for_its_connections() {
    let external = |service: &mut Service| service.external_ips = vec![ip("80.11.12.10")];
    let mut bench = Bench::synced();
    bench.reconciler.set_service_cidrs(vec!["10.96.0.0/12".parse().expect("a range")], bench.now);
    bench.set(&web().with(external));
    bench.set(&web());
    let retired = "address 80.11.12.10 retired".to_owned();
    assert!(bench.dump().contains(&retired));
    // A restart changes nothing, and in the Service CIDR nothing is retired.
    let mut again = bench.restart();
    again.reconciler.set_service_cidrs(vec!["10.96.0.0/12".parse().expect("a range")], again.now);
    again.set(&web());
    assert_eq!(again.sync().applied, 0, "{:?}", again.log());
    assert_eq!(again.reconciler.retired_addresses().collect::<Vec<_>>(), [ip("80.11.12.10")]);
    again.delete(&web());
    assert_eq!(again.dump(), [retired.clone(), "service-cidr 10.96.0.0/12".to_owned()]);
    // A look that began before it was retired tells nothing; one that finds a connection leaves it.
    let before = again.now - Duration::from_secs(3600);
    again.reconciler.remove_retired_addresses(&BTreeSet::new(), before, again.now);
    again.reconciler.remove_retired_addresses(&BTreeSet::from([ip("80.11.12.10")]), again.now, again.now);
    assert!(again.dump().contains(&retired));
    again.end_connections();
    assert!(!again.dump().contains(&retired));
    // It is somebody's again.
    bench.set(&web().with(external));
    assert!(bench.dump().contains(&"address 80.11.12.10 external".to_owned()));
    assert_eq!(bench.reconciler.retired_addresses().len(), 0);
}

#[test]
fn services_come_before_host_ports_whatever_their_age() {
    let facts = Facts {
        node: &NodeFacts { name: "here".into(), zone: None },
        is_direct: &|_| true,
        node_addresses: &[ip("172.16.0.1"), ip("172.16.0.2")],
        external_ranges: &[],
    };
    let pod = |name: &str, created| Pod {
        name: ServiceName::of_pod("default", name),
        created: Some(created),
        node: "here".into(),
        addresses: vec![ip("10.244.1.9")],
        host_ports: vec![HostPort { host_ip: None, host_port: 30080, protocol: Protocol::Tcp, port: 80 }],
    };
    let mut bench = Bench::synced();
    let nodes =
        [("172.16.0.1", true), ("172.16.0.2", false)].map(|(it, nodeport)| NodeAddress { ip: ip(it), nodeport });
    bench.reconciler.set_node_addresses(&nodes, bench.now);
    let set = |bench: &mut Bench, pod: &Pod| {
        let report = bench.reconciler.set_service(&pod.name, Some(build_host_ports(pod, &facts)), bench.now);
        bench.check();
        report.conflicts.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(set(&mut bench, &pod("a", 2)).is_empty());
    let owners = |bench: &Bench| -> Vec<String> {
        let lines = bench.dump().into_iter().filter(|line| line.contains(" host-port "));
        lines.map(|line| line.split(' ').skip(1).take(3).collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(owners(&bench).len(), 3, "two addresses and loopback: {:?}", owners(&bench));
    // The older of two Pods has it until it goes.
    let conflicts = set(&mut bench, &pod("b", 1));
    assert_eq!(conflicts.len(), 3, "{conflicts:?}");
    assert!(owners(&bench).iter().all(|line| line.ends_with("default/pod/b:80")));
    assert_eq!(bench.reconciler.status().conflicts[&pod("a", 2).name].len(), 3);
    bench.reconciler.set_service(&pod("b", 1).name, None, bench.now);
    // A NodePort wins where NodePorts are served, and on loopback.
    let node_port = web().with(|service| service.ports[0].node_port = Some(30080));
    bench.set(&node_port);
    assert_eq!(owners(&bench), ["172.16.0.2:30080/TCP host-port default/pod/a:80"]);
    let conflicts = &bench.reconciler.status().conflicts[&pod("a", 2).name];
    assert!(
        conflicts[0].to_string().ends_with("it belongs to default/web:http/TCP, and Services come before host ports")
    );
    let external = web().with(|service| {
        service.ports[0].port = 30080;
        service.external_ips = vec![ip("172.16.0.2")];
    });
    bench.set(&external);
    assert_eq!(owners(&bench).len(), 2);
    bench.delete(&external);
    assert_eq!(owners(&bench).len(), 3);
    assert!(bench.reconciler.status().conflicts.is_empty());
}

#[test]
fn the_older_service_wins_and_the_younger_takes_over() {
    let node_port = |service: &mut Service| service.ports[0].node_port = Some(30080);
    let old = Spec::new("b-old", "10.96.0.1").with(node_port).with(|service| service.created = Some(1));
    let young = Spec::new("a-young", "10.96.0.2").with(node_port).with(|service| service.created = Some(2));
    let owner =
        |bench: &Bench| bench.dump().iter().find(|line| line.contains("nodeport:30080")).expect("a frontend").clone();
    let mut bench = Bench::synced();
    bench.set(&young);
    assert!(owner(&bench).contains("a-young"));
    let report = bench.set(&old);
    assert!(owner(&bench).contains("b-old"));
    assert_eq!(
        report.conflicts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["default/a-young:http/TCP does not get nodeport:30080/TCP: it belongs to the older default/b-old:http/TCP"]
    );
    bench.delete(&old);
    assert!(owner(&bench).contains("a-young"));
    assert!(bench.reconciler.status().conflicts.is_empty());
}

#[test]
fn external_addresses_never_take_over_what_is_in_use() {
    let mut bench = Bench::synced();
    bench.reconciler.set_node_addresses(&[NodeAddress { ip: ip("172.16.0.1"), nodeport: true }], bench.now);
    let greedy = Spec::new("greedy", "10.96.0.1").with(|service| {
        service.created = Some(1);
        service.external_ips = vec![ip("10.96.0.10"), ip("10.244.1.2"), ip("172.16.0.1"), ip("80.11.12.10")];
        let ssh = ServicePort { name: "ssh".into(), protocol: Protocol::Tcp, port: 22, node_port: None };
        service.ports.push(ssh);
    });
    bench.set(&greedy);
    let external = |bench: &Bench| bench.dump().iter().filter(|it| it.contains("external-ip")).count();
    assert_eq!(external(&bench), 7, "ssh on the node address is protected");
    bench.set(&web());
    assert_eq!(external(&bench), 3);
    assert!(bench.dump().contains(&"address 10.96.0.10 cluster-ip".to_owned()));
    assert!(bench.dump().contains(&"address 172.16.0.1 external node nodeport".to_owned()));
    let reasons: Vec<String> =
        bench.reconciler.status().conflicts[&greedy.name()].iter().map(ToString::to_string).collect();
    assert_eq!(reasons.len(), 5);
    assert!(reasons.iter().any(|it| it.ends_with("the address is the ClusterIP of default/web")));
    assert!(reasons.iter().any(|it| it.ends_with("the address is an endpoint of default/web")));
    assert!(reasons.iter().any(|it| it.contains("172.16.0.1:22/TCP") && it.contains("protected")));
    bench.delete(&web());
    assert_eq!(external(&bench), 7);
}

#[test]
fn a_failed_write_waits_and_harms_no_other_service() {
    let mut bench = Bench::synced();
    bench.reconciler.dataplane_mut().injection = Injection::Nth(4);
    let report = bench.set(&web());
    assert_eq!((report.applied, report.failed.len()), (4, 1), "up to the ring, and the address");
    let other = Spec::new("other", "10.96.0.11").endpoints(&[("10.244.1.5", "here")]);
    assert!(bench.set(&other).failed.is_empty());
    let status = bench.reconciler.status();
    let failure = &status.failures[&Subject::Service(web().name())];
    assert_eq!(failure.error.to_string(), "write ring 0..2: failed because the test said so");
    assert_eq!(bench.reconciler.next_retry(), Some(failure.retry_at));
    bench.settle();
    assert!(bench.reconciler.status().failures.is_empty());
    let mut fresh = Bench::synced();
    fresh.set(&web());
    fresh.set(&other);
    assert_eq!(bench.dump(), fresh.dump());
}

#[test]
fn a_full_map_names_the_service_and_leaves_the_rest_alone() {
    let limits = Capacity { services: 1, backends: 4, ..Capacity::default() };
    let mut bench = Bench::over(FakeMaps::with_capacity(limits));
    bench.sync();
    bench.set(&web());
    let before = bench.dump();
    let other = Spec::new("other", "10.96.0.11").endpoints(&[("10.244.1.5", "here")]);
    let report = bench.set(&other);
    let text = report.failed[0].1.error.to_string();
    assert!(text.contains("map SERVICES_V4 is full (1 entries); raise --services-max"), "{text}");
    assert_eq!(report.failed[0].0.to_string(), "Service default/other");
    let big = Spec::new("big", "10.96.0.12").endpoints(&[("10.244.1.6", "here"), ("10.244.1.7", "here")]);
    let text = bench.set(&big).failed[0].1.error.to_string();
    assert_eq!(text, "add to default/big:http/TCP: map BACKENDS_V4 is full (4 entries); raise --backends-max");
    assert!(before.iter().all(|line| bench.dump().contains(line)));
    // There is room once the first is gone.
    bench.delete(&big);
    bench.delete(&web());
    bench.settle();
    assert!(bench.dump().iter().any(|line| line.starts_with("service 10.96.0.11:80/TCP")));
}

#[test]
fn udp_endpoints_that_leave_are_told_once() {
    let mut bench = Bench::synced();
    let dns = |endpoints: &[(&str, &'static str)]| {
        Spec::new("dns", "10.96.0.53").endpoints(endpoints).with(|service| service.ports[0].protocol = Protocol::Udp)
    };
    let both = dns(&[("10.244.1.2", "here"), ("10.244.2.3", "there")]);
    bench.set(&both);
    bench.set(&web());
    bench.set(&dns(&[("10.244.1.2", "here"), ("10.244.2.3", "~there")]));
    assert_eq!(bench.reconciler.take_retired(), [], "a draining endpoint still serves");
    bench.set(&dns(&[("10.244.1.2", "here")]));
    bench.set(&web().endpoints(&[]));
    assert_eq!(bench.reconciler.take_retired(), ["10.244.2.3:8080".parse().unwrap()], "and none of TCP");
    assert_eq!(bench.reconciler.take_retired(), []);
    bench.delete(&both);
    assert_eq!(bench.reconciler.take_retired(), ["10.244.1.2:8080".parse().unwrap()]);
    // While no agent ran.
    bench.set(&both);
    let mut restarted = bench.restart();
    restarted.sync();
    assert_eq!(restarted.reconciler.take_retired().len(), 2);
}

#[test]
fn vanished_addresses_last_over_a_restart_and_not_for_ever() {
    let mut bench = Bench::synced();
    bench.set(&web());
    bench.log();
    bench.reconciler.set_socket_ending(SocketEnding::Off, bench.now);
    bench.reconciler.steer_vanished([ip("10.244.1.2"), ip("10.96.0.10")], bench.now);
    let text = format!("flags {ADDR_VANISHED:#x}");
    assert_eq!(
        bench.log(),
        [
            "write switches",
            &format!("put address 10.96.0.10 flags {:#x}", ADDR_VANISHED | 1),
            &format!("put address 10.244.1.2 {text}")
        ]
    );
    let mut restarted = bench.restart();
    restarted.set(&web());
    restarted.reconciler.set_socket_ending(SocketEnding::Off, restarted.now);
    restarted.sync();
    assert_eq!(restarted.log(), Vec::<String>::new());
    restarted.settle();
    assert_eq!(restarted.log(), ["put address 10.96.0.10 flags 0x1", "delete address 10.244.1.2"]);
    assert_eq!(restarted.reconciler.next_retry(), None);
}
