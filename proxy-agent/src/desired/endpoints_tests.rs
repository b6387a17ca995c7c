//! A table of cases for endpoint choice, and properties that hold for any endpoints.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::{ServiceName, SlicePort};

const READY: &str = "ready";
/// Terminating, still answering.
const DRAINING: &str = "draining";
/// Terminating and no longer answering.
const DEAD: &str = "dead";
/// publishNotReadyAddresses: reported ready while it terminates.
const PUBLISHED: &str = "published";

fn node() -> NodeFacts {
    NodeFacts { name: "here".into(), zone: Some("z1".into()) }
}

/// `10.0.0.N`, its state and, in free order, `@node`, `zone=..` hints and `node=..` hints.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split_whitespace();
    let number: u8 = words.next().and_then(|word| word.parse().ok()).expect("a number");
    let state = words.next().expect("a state");
    let mut endpoint = Endpoint {
        address: IpAddr::from([10, 0, 0, number]),
        node: None,
        zone: None,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
        ready: [READY, PUBLISHED].contains(&state),
        serving: [READY, DRAINING, PUBLISHED].contains(&state),
        terminating: [DRAINING, DEAD, PUBLISHED].contains(&state),
        weight: 1,
    };
    for word in words {
        if let Some(node) = word.strip_prefix('@') {
            endpoint.node = Some(node.into());
        } else if let Some(zone) = word.strip_prefix("zone=") {
            endpoint.zone_hints.push(zone.into());
        } else if let Some(node) = word.strip_prefix("node=") {
            endpoint.node_hints.push(node.into());
        } else {
            panic!("what is {word:?}?");
        }
    }
    endpoint
}

fn slice(name: &str, port: (&str, Protocol, u16), endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        name: name.into(),
        service: ServiceName::new("default", "web"),
        family: Family::V4,
        ports: vec![SlicePort { name: port.0.into(), protocol: port.1, port: port.2 }],
        endpoints,
        last_change: Default::default(),
    }
}

const HTTP: (&str, Protocol, u16) = ("http", Protocol::Tcp, 8080);

fn http_of(slices: &[EndpointSlice], node: &NodeFacts) -> PortEndpoints {
    endpoints_of_port(slices.iter(), "http", Protocol::Tcp, Family::V4, node)
}

/// Last bytes of the addresses that the indices mean.
fn numbers(found: &PortEndpoints, indices: &[usize]) -> Vec<u8> {
    indices.iter().map(|index| last_byte(&found.all[*index])).collect()
}

fn last_byte(endpoint: &PortEndpoint) -> u8 {
    match endpoint.address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    }
}

struct Case {
    name: &'static str,
    endpoints: &'static [&'static str],
    cluster: &'static [u8],
    local: &'static [u8],
    all: &'static [u8],
}

const CASES: &[Case] = &[
    Case { name: "none at all", endpoints: &[], cluster: &[], local: &[], all: &[] },
    Case {
        name: "local is told by node name",
        endpoints: &["1 ready @here", "2 ready @there", "3 ready"],
        cluster: &[1, 2, 3],
        local: &[1],
        all: &[1, 2, 3],
    },
    Case {
        name: "unready endpoints are nothing",
        endpoints: &["1 unready @here", "2 ready @there"],
        cluster: &[2],
        local: &[],
        all: &[2],
    },
    Case {
        name: "draining ones step back while any is ready",
        endpoints: &["1 draining @here", "2 ready @there"],
        cluster: &[2],
        local: &[1],
        all: &[1, 2],
    },
    Case {
        name: "all drain: they serve on, the dead do not",
        endpoints: &["1 draining @here", "2 draining @there", "3 dead @here"],
        cluster: &[1, 2],
        local: &[1],
        all: &[1, 2],
    },
    Case {
        name: "local ready wins over local draining",
        endpoints: &["1 draining @here", "2 ready @here"],
        cluster: &[2],
        local: &[2],
        all: &[1, 2],
    },
    Case {
        name: "ready while terminating is ready",
        endpoints: &["1 published @here", "2 ready @there", "3 draining @here"],
        cluster: &[1, 2],
        local: &[1],
        all: &[1, 2, 3],
    },
    Case {
        name: "zone hints narrow the cluster set only",
        endpoints: &["1 ready @here zone=z2", "2 ready @there zone=z1"],
        cluster: &[2],
        local: &[1],
        all: &[1, 2],
    },
    Case {
        name: "one missing zone hint switches zones off",
        endpoints: &["1 ready zone=z1", "2 ready zone=z2", "3 ready"],
        cluster: &[1, 2, 3],
        local: &[],
        all: &[1, 2, 3],
    },
    Case {
        name: "an unready endpoint without hints has no vote",
        endpoints: &["1 ready zone=z1", "2 ready zone=z2", "3 unready", "4 draining"],
        cluster: &[1],
        local: &[],
        all: &[1, 2, 4],
    },
    Case {
        name: "no hint for our zone: all",
        endpoints: &["1 ready zone=z2", "2 ready zone=z3"],
        cluster: &[1, 2],
        local: &[],
        all: &[1, 2],
    },
    Case {
        name: "an unready endpoint hinted to our zone does not make it usable",
        endpoints: &["1 ready zone=z2", "2 unready zone=z1"],
        cluster: &[1],
        local: &[],
        all: &[1],
    },
    Case {
        name: "several zones in a hint",
        endpoints: &["1 ready zone=z2 zone=z1", "2 ready zone=z2"],
        cluster: &[1],
        local: &[],
        all: &[1, 2],
    },
    Case {
        name: "node hints come before zone hints",
        endpoints: &["1 ready zone=z1 node=there", "2 ready zone=z2 node=here"],
        cluster: &[2],
        local: &[],
        all: &[1, 2],
    },
    Case {
        name: "incomplete node hints leave it to the zones",
        endpoints: &["1 ready zone=z1", "2 ready zone=z2 node=here"],
        cluster: &[1],
        local: &[],
        all: &[1, 2],
    },
    Case {
        name: "topology does not count among draining ones",
        endpoints: &["1 draining zone=z1", "2 draining zone=z2"],
        cluster: &[1, 2],
        local: &[],
        all: &[1, 2],
    },
];

#[test]
fn table() {
    for case in CASES {
        let endpoints = case.endpoints.iter().map(|text| endpoint(text)).collect();
        let found = http_of(&[slice("s", HTTP, endpoints)], &node());
        assert_eq!(numbers(&found, &found.cluster), case.cluster, "{}: cluster", case.name);
        assert_eq!(numbers(&found, &found.local), case.local, "{}: local", case.name);
        assert_eq!(found.all.iter().map(last_byte).collect::<Vec<_>>(), case.all, "{}: all", case.name);
    }
}

#[test]
fn a_node_without_a_zone_ignores_zone_hints() {
    let slices = [slice("s", HTTP, vec![endpoint("1 ready zone=z1"), endpoint("2 ready zone=z2")])];
    let found = http_of(&slices, &NodeFacts { name: "here".into(), zone: None });
    assert_eq!(numbers(&found, &found.cluster), [1, 2]);
}

#[test]
fn slices_are_united_and_may_differ_in_ports() {
    let slices = [
        slice("b", ("http", Protocol::Tcp, 9090), vec![endpoint("1 ready")]),
        slice("a", HTTP, vec![endpoint("3 ready"), endpoint("1 ready")]),
        slice("c", ("dns", Protocol::Udp, 53), vec![endpoint("4 ready")]),
        slice("d", ("http", Protocol::Udp, 8080), vec![endpoint("5 ready")]),
    ];
    let found = http_of(&slices, &node());
    let places: Vec<_> = found.all.iter().map(|it| (last_byte(it), it.port)).collect();
    assert_eq!(places, [(1, 8080), (1, 9090), (3, 8080)]);
    let dns = endpoints_of_port(slices.iter(), "dns", Protocol::Udp, Family::V4, &node());
    assert_eq!(numbers(&dns, &dns.cluster), [4]);
    let v6 = endpoints_of_port(slices.iter(), "http", Protocol::Tcp, Family::V6, &node());
    assert_eq!(v6, PortEndpoints::default());
}

#[test]
fn a_running_copy_wins_over_a_terminating_one_in_any_order() {
    for (first, second) in [("a", "b"), ("b", "a")] {
        let slices = [
            slice(first, HTTP, vec![endpoint("1 draining @there")]),
            slice(second, HTTP, vec![endpoint("1 ready @here")]),
        ];
        let found = http_of(&slices, &node());
        assert_eq!(found.all.len(), 1);
        assert!(found.all[0].local && !found.all[0].terminating);
        // An unready copy is running, too: the address is the new pod's, which does not serve yet.
        let slices = [
            slice(first, HTTP, vec![endpoint("1 draining @there")]),
            slice(second, HTTP, vec![endpoint("1 unready @here")]),
        ];
        assert_eq!(http_of(&slices, &node()).all, []);
    }
}

#[test]
fn between_running_copies_the_smaller_slice_name_wins() {
    let small = slice("a", HTTP, vec![endpoint("1 ready @here")]);
    let great = slice("b", HTTP, vec![endpoint("1 ready @there")]);
    for slices in [[small.clone(), great.clone()], [great, small]] {
        assert!(http_of(&slices, &node()).all[0].local);
    }
}

prop_compose! {
    fn any_endpoint()(
        number in 0u8..8,
        (ready, serving, terminating) in any::<(bool, bool, bool)>(),
        node in proptest::option::of(prop_oneof![Just("here"), Just("there")]),
        zones in proptest::collection::vec(prop_oneof![Just("z1"), Just("z2")], 0..3),
        nodes in proptest::collection::vec(prop_oneof![Just("here"), Just("there")], 0..2),
    ) -> Endpoint {
        Endpoint {
            address: IpAddr::from([10, 0, 0, number]),
            node: node.map(Into::into),
            zone: None,
            zone_hints: zones.into_iter().map(Into::into).collect(),
            node_hints: nodes.into_iter().map(Into::into).collect(),
            ready,
            serving,
            terminating,
            weight: 1,
        }
    }
}

proptest! {
    #[test]
    fn sets_are_subsets_sorted_and_independent_of_order(
        parts in proptest::collection::vec(proptest::collection::vec(any_endpoint(), 0..6), 0..4),
        zone in proptest::option::of(Just("z1")),
    ) {
        let node = NodeFacts { name: "here".into(), zone: zone.map(Into::into) };
        let mut slices: Vec<_> = parts
            .into_iter()
            .enumerate()
            .map(|(number, endpoints)| slice(&format!("s{number}"), HTTP, endpoints))
            .collect();
        let found = http_of(&slices, &node);
        prop_assert!(found.all.is_sorted_by_key(|it| (it.address, it.port)));
        prop_assert_eq!(found.all.iter().map(|it| (it.address, it.port)).collect::<BTreeSet<_>>().len(), found.all.len());
        prop_assert!(found.all.iter().all(|it| it.ready || it.serving));
        for index in found.cluster.iter().chain(&found.local) {
            let it = &found.all[*index];
            prop_assert!(it.ready || (it.serving && it.terminating));
        }
        prop_assert!(found.local.iter().all(|index| found.all[*index].local));
        prop_assert!(found.cluster.is_sorted() && found.local.is_sorted());
        // With a Ready endpoint anywhere there is always somewhere to go.
        prop_assert_eq!(found.cluster.is_empty(), !found.all.iter().any(|it| it.ready || it.terminating));
        slices.reverse();
        prop_assert_eq!(found, http_of(&slices, &node));
    }
}
