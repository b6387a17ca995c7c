//! Which changes cost which work, over maps that are plain collections.

use std::sync::Arc;

use proxy_common::abi::{Algorithm, BACKEND_DIRECT, IfaceRole};

use super::*;
use crate::{
    dataplane::FakeMaps,
    model::{
        Change, Endpoint, EndpointSlice, Family, Node, Protocol, Service, ServicePort, SlicePort, SourceKind,
        TrafficPolicy,
    },
    node::{Link, NodeNet, NodePortAddresses, RoleRules, Route, RouteKey},
    reconcile::Options,
};

fn state() -> State<FakeMaps> {
    let reconciler = Reconciler::new(FakeMaps::default(), Options::default(), Instant::now()).unwrap();
    let view = NodeView::new(RoleRules::default(), NodePortAddresses::Primary);
    State::new("node-a", view, reconciler, Settings::default(), Metrics::default())
}

fn service(name: &str, cluster_ip: &str) -> Event {
    Event::Service(Change::Applied(Service {
        name: ServiceName::new("default", name),
        created: None,
        cluster_ips: vec![cluster_ip.parse().unwrap()],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_timeout_s: None,
        health_check_node_port: None,
        traffic_distribution: None,
        algorithm: Algorithm::Random,
    }))
}

fn slice(service: &str, address: &str) -> Event {
    let here: Arc<str> = "node-a".into();
    Event::Slice(Change::Applied(EndpointSlice {
        name: service.into(),
        service: ServiceName::new("default", service),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![Endpoint {
            address: address.parse().unwrap(),
            node: Some(here),
            zone: None,
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
            ready: true,
            serving: true,
            terminating: false,
            weight: 1,
        }],
        last_change: Default::default(),
    }))
}

fn node() -> Event {
    Event::Node(Change::Applied(Node {
        name: "node-a".into(),
        internal_ips: vec!["192.0.2.1".parse().unwrap()],
        external_ips: Vec::new(),
        zone: None,
        deleting: false,
        leaving: false,
    }))
}

fn listed(state: &mut State<FakeMaps>) {
    for kind in [SourceKind::Services, SourceKind::Slices, SourceKind::Pods, SourceKind::Node] {
        state.on_event(Event::Synced(kind));
    }
}

fn uplink() -> NetChange {
    let mut net = NodeNet::default();
    net.apply(NetChange::Link(Link {
        index: 2,
        name: "eth0".into(),
        kind: None,
        mtu: 1500,
        up: true,
        loopback: false,
        ethernet: true,
    }));
    net.apply(NetChange::Address { link: 2, address: "192.0.2.1".parse().unwrap(), later: false });
    NetChange::All(Box::new(net))
}

#[test]
fn nothing_of_a_service_is_written_before_every_source_has_listed() {
    let mut state = state();
    let now = Instant::now();
    assert!(state.on_net(uplink()));
    assert!(state.on_event(service("web", "10.96.0.1")));
    state.on_event(Event::Synced(SourceKind::Services));
    assert!(!state.sync(now).first);
    assert!(state.reconciler.mirror().actual().v4.services.is_empty());
    assert_eq!(state.reconciler.mirror().actual().ifaces.len(), 1);
    listed(&mut state);
    assert!(state.sync(now).first);
    assert_eq!(state.reconciler.mirror().actual().v4.services.len(), 1);
    assert!(!state.sync(now).first, "only once");
}

#[test]
fn the_nodes_network_comes_before_the_services() {
    let mut state = state();
    state.on_event(service("web", "10.96.0.1"));
    listed(&mut state);
    let now = Instant::now();
    assert!(!state.sync(now).first);
    state.on_net(uplink());
    assert!(state.sync(now).first);
}

#[test]
fn a_restart_leaves_roles_alone_until_the_node_object_is_known() {
    let veth = |index: u32, name: &str| {
        let kind = Some("veth".into());
        NetChange::Link(Link { index, name: name.into(), kind, mtu: 1500, up: true, loopback: false, ethernet: true })
    };
    // Only the Node object tells that this one is an uplink.
    let mut net = NodeNet::default();
    net.apply(veth(2, "up0"));
    net.apply(NetChange::Address { link: 2, address: "192.0.2.1".parse().unwrap(), later: false });
    let all = NetChange::All(Box::new(net));
    let now = Instant::now();

    let mut first = state();
    first.on_net(all.clone());
    first.on_event(node());
    listed(&mut first);
    first.sync(now);
    let roles = |state: &State<FakeMaps>| -> Vec<_> {
        state.reconciler.mirror().actual().ifaces.values().map(|iface| iface.role).collect()
    };
    assert_eq!(roles(&first), [IfaceRole::Uplink]);

    let mut second = State::new(
        "node-a",
        NodeView::new(RoleRules::default(), NodePortAddresses::Primary),
        Reconciler::new(first.reconciler.into_dataplane(), Options::default(), now).unwrap(),
        Settings::default(),
        Metrics::default(),
    );
    second.on_net(all);
    assert_eq!(second.sync_node(now), 0);
    second.on_net(veth(7, "new"));
    assert_eq!(second.sync_node(now), 1);
    assert_eq!(roles(&second), [IfaceRole::Uplink, IfaceRole::Pod]);
    second.on_event(node());
    listed(&mut second);
    assert!(second.sync(now).first);
    assert_eq!(roles(&second), [IfaceRole::Uplink, IfaceRole::Pod]);
}

#[test]
fn a_pods_route_costs_work_for_its_services_only() {
    let mut state = state();
    let now = Instant::now();
    state.on_net(uplink());
    for event in [
        node(),
        service("web", "10.96.0.1"),
        slice("web", "10.244.1.5"),
        service("other", "10.96.0.2"),
        slice("other", "10.244.1.6"),
    ] {
        state.on_event(event);
    }
    listed(&mut state);
    state.sync(now);
    let direct = |state: &State<FakeMaps>| {
        let backends = &state.reconciler.mirror().actual().v4.backends;
        backends.iter().filter(|it| it.flags & BACKEND_DIRECT != 0).map(|it| it.addr.to_string()).collect::<Vec<_>>()
    };
    assert!(direct(&state).is_empty());

    let pod = Link {
        index: 5,
        name: "veth5".into(),
        kind: Some("veth".into()),
        mtu: 1500,
        up: true,
        loopback: false,
        ethernet: true,
    };
    let key = RouteKey { to: "10.244.1.5/32".parse().unwrap(), metric: 0 };
    assert!(state.on_net(NetChange::Link(pod)));
    assert!(state.on_net(NetChange::Route(Route { key, links: vec![5] })));
    state.sync_node(now);
    assert_eq!(state.stale.services, [ServiceName::new("default", "web")].into());
    assert!(!state.stale.node);
    state.sync(now);
    assert_eq!(direct(&state), ["10.244.1.5"]);

    state.on_net(NetChange::LinkGone(5));
    assert_eq!(state.take_gone(), [5]);
    state.sync(now);
    assert!(direct(&state).is_empty());
}
