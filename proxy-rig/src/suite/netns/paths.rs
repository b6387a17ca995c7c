//! Tests that are tables of paths through the shared world, in the form that the demo has too.

use crate::demo::paths::{
    Expect::{self, Refused, TimedOut},
    Path,
    Source::{Kept, KeptOn, Node},
    all, host, tcp, udp,
};

/// Name of the test, rules that it shows, paths.
pub(super) type PathTest = (&'static str, &'static str, &'static [Path]);

const WEB4: &str = "10.96.0.1";
const WEB6: &str = "fd00:10:96::1";
const WEB: &str = "default/web";

const fn web(target: u16) -> Expect {
    all(WEB, target, Kept)
}

const fn one() -> Expect {
    host("web-1", 8080, Kept)
}

/// web-1, reached through that node.
const fn one_through(node: &'static str) -> Expect {
    host("web-1", 8080, KeptOn(node))
}

pub(in crate::suite) const fn both(
    title: &'static str,
    from: &'static str,
    v4: &'static str,
    v6: &'static str,
    port: u16,
    expect: Expect,
) -> [Path; 4] {
    [
        tcp(title, from, v4, port, expect),
        tcp(title, from, v6, port, expect),
        udp(title, from, v4, port, expect),
        udp(title, from, v6, port, expect),
    ]
}

pub(super) const TESTS: &[PathTest] = &[
    ("cluster_ip_at_connect_time", "2, 8", &both("connect", "near", WEB4, WEB6, 80, web(8080))),
    ("cluster_ip_on_the_packet_path", "2, 8", &both("packet", "packet", WEB4, WEB6, 80, web(8080))),
    ("cluster_ip_from_a_pod_of_a_node_without_backend", "2, 8", &both("packet", "packet-3", WEB4, WEB6, 80, web(8080))),
    ("cluster_ip_from_a_node_with_a_backend", "2, 8", &both("node", "node-1", WEB4, WEB6, 80, web(8080))),
    ("cluster_ip_from_a_node_without_backend", "2, 8", &both("node", "node-3", WEB4, WEB6, 80, web(8080))),
    (
        "each_port_has_its_own_target",
        "2",
        &[
            tcp("connect", "near", WEB4, 81, web(8081)),
            tcp("packet", "packet", WEB6, 81, web(8081)),
            tcp("outside", "client", "node-3", 30081, all(WEB, 8081, KeptOn("node-3"))),
        ],
    ),
    (
        "node_port_over_both_nodes",
        "13",
        &both("outside", "client", "node-1", "node-1/6", 30080, all(WEB, 8080, KeptOn("node-1"))),
    ),
    (
        "node_port_keeps_the_client_of_a_local_backend",
        "13",
        &both("outside", "client", "node-1", "node-1/6", 30082, one_through("node-1")),
    ),
    (
        "node_port_to_a_remote_backend_comes_from_the_node",
        "13",
        &both("outside", "client", "node-2", "node-2/6", 30082, one_through("node-2")),
    ),
    ("node_port_from_a_pod_at_connect_time", "13", &both("pod", "near", "node-1", "node-1/6", 30082, one())),
    ("node_port_from_a_pod_of_the_node", "13", &both("pod", "packet", "node-1", "node-1/6", 30082, one())),
    ("node_port_from_a_pod_on_another_node", "13", &both("pod", "packet-2", "node-2", "node-2/6", 30082, one())),
    ("node_port_from_the_node_itself", "13", &both("node", "node-2", "node-2", "node-2/6", 30082, one())),
    ("node_port_at_the_nodes_loopback", "13, 19", &both("loopback", "node-3", "127.0.0.1", "::1", 30082, one())),
    (
        "loopback_of_a_pod_is_the_pods_own",
        "13",
        &[tcp("connect", "near", "127.0.0.1", 30082, Refused), tcp("packet", "packet", "::1", 30082, Refused)],
    ),
    (
        "load_balancer_from_outside",
        "6, 13",
        &[
            tcp("remote", "client", "203.0.113.2", 80, one_through("node-2")),
            udp("remote", "client", "203.0.113.2", 80, one_through("node-2")),
            tcp("local", "client", "2001:db8:6::2", 80, one_through("node-1")),
            udp("local", "client", "2001:db8:6::2", 80, one_through("node-1")),
        ],
    ),
    ("load_balancer_from_a_pod", "6", &both("connect", "near", "203.0.113.2", "2001:db8:6::2", 80, one())),
    ("load_balancer_on_the_packet_path", "6", &both("packet", "packet-3", "203.0.113.2", "2001:db8:6::2", 80, one())),
    ("load_balancer_from_a_node", "6", &both("node", "node-3", "203.0.113.2", "2001:db8:6::2", 80, one())),
    (
        "external_ip_from_outside",
        "13",
        &[
            tcp("local", "client", "198.51.100.2", 80, one_through("node-1")),
            udp("local", "client", "198.51.100.2", 80, one_through("node-1")),
            tcp("remote", "client", "2001:db8:5::2", 80, one_through("node-2")),
            udp("remote", "client", "2001:db8:5::2", 80, one_through("node-2")),
        ],
    ),
    ("external_ip_from_inside", "13", &both("connect", "near", "198.51.100.2", "2001:db8:5::2", 80, one())),
    (
        "policy_local_keeps_the_client",
        "9, 15c",
        &both("outside", "client", "node-1", "node-1/6", 30083, host("web-1", 8080, Kept)),
    ),
    (
        "policy_local_without_endpoint_drops",
        "11, 15c",
        &both("outside", "client", "node-3", "node-3/6", 30083, TimedOut),
    ),
    ("policy_local_from_a_pod_of_the_node", "15a", &both("pod", "packet-3", "node-3", "node-3/6", 30083, one())),
    ("policy_local_from_the_node", "15b", &both("loopback", "node-3", "127.0.0.1", "::1", 30083, one())),
    (
        "policy_local_at_the_load_balancer_address",
        "10, 15",
        &[
            tcp("outside", "client", "203.0.113.3", 80, host("web-1", 8080, Kept)),
            tcp("pod elsewhere", "packet-2", "203.0.113.3", 80, one()),
            tcp("cluster IP", "packet-3", "10.96.0.3", 80, one()),
        ],
    ),
    (
        "internal_policy_local",
        "10, 11",
        &[
            tcp("has one", "packet-2", "10.96.0.4", 80, host("web-2", 8080, Kept)),
            tcp("has one", "node-2", "fd00:10:96::4", 80, host("web-2", 8080, Kept)),
            tcp("has none", "packet-3", "10.96.0.4", 80, TimedOut),
        ],
    ),
    ("no_endpoint_refuses_at_connect_time", "11", &both("connect", "near", "10.96.0.5", "fd00:10:96::5", 80, Refused)),
    (
        "no_endpoint_refuses_on_the_packet_path",
        "11",
        &both("packet", "packet", "10.96.0.5", "fd00:10:96::5", 80, Refused),
    ),
    ("no_endpoint_refuses_on_the_node", "11", &both("node", "node-3", "10.96.0.5", "fd00:10:96::5", 80, Refused)),
    ("no_endpoint_refuses_at_the_node_port", "11", &both("outside", "client", "node-2", "node-2/6", 30085, Refused)),
    (
        "unknown_port_of_a_cluster_ip_is_refused",
        "12",
        &[
            tcp("connect", "near", WEB4, 99, Refused),
            tcp("packet", "packet", WEB4, 99, Refused),
            tcp("packet", "packet", WEB6, 99, Refused),
            udp("packet", "packet", WEB4, 99, Refused),
            tcp("node", "node-1", WEB6, 99, Refused),
        ],
    ),
    ("unallocated_cluster_ip_is_dropped", "12", &[tcp("packet", "packet", "10.96.0.99", 80, TimedOut)]),
    (
        "source_ranges",
        "16",
        &[
            tcp("inside the range", "client", "203.0.113.6", 80, all(WEB, 8080, KeptOn("node-1"))),
            tcp("outside of it", "stranger", "203.0.113.6", 80, TimedOut),
            tcp("a pod", "packet", "203.0.113.6", 80, TimedOut),
            tcp("a pod at connect time", "near", "203.0.113.6", 80, TimedOut),
            tcp("the NodePort has none", "stranger", "node-3", 30086, all(WEB, 8080, KeptOn("node-3"))),
            tcp("the cluster IP has none", "packet", "10.96.0.6", 80, web(8080)),
        ],
    ),
    (
        "hairpin_on_the_packet_path",
        "18",
        &both("hairpin", "self", "10.96.0.8", "fd00:10:96::8", 80, host("self", 8080, Node("node-1"))),
    ),
    (
        "hairpin_at_connect_time",
        "18",
        &[
            tcp("hairpin", "self-connect", "10.96.0.9", 80, host("self-connect", 8080, Kept)),
            tcp("hairpin", "self-connect", "fd00:10:96::9", 80, host("self-connect", 8080, Kept)),
        ],
    ),
    (
        "endpoint_outside_of_the_cluster",
        "3",
        &[
            tcp("connect", "near", "10.96.0.10", 80, host("database", 8080, Kept)),
            tcp("packet", "packet", "10.96.0.10", 80, host("database", 8080, Kept)),
            tcp("packet", "packet", "fd00:10:96::a", 80, host("database", 8080, Kept)),
            tcp("node", "node-2", "fd00:10:96::a", 80, host("database", 8080, Kept)),
            tcp("outside", "client", "node-3", 30090, host("database", 8080, Node("node-3"))),
        ],
    ),
    (
        "backend_on_the_host_network",
        "13",
        &[
            tcp("pod, connect", "near", "10.96.0.11", 80, host("node-2", 9100, Kept)),
            tcp("pod elsewhere", "packet", "10.96.0.11", 80, host("node-2", 9100, Kept)),
            tcp("pod of that node", "packet-2", "fd00:10:96::b", 80, host("node-2", 9100, Kept)),
            tcp("node", "node-1", "10.96.0.11", 80, host("node-2", 9100, Kept)),
            tcp("that node itself", "node-2", "10.96.0.11", 80, host("node-2", 9100, Kept)),
            tcp("outside, through another", "client", "node-1", 30091, host("node-2", 9100, Node("node-1"))),
            tcp("outside, at that node", "client", "node-2/6", 30091, host("node-2", 9100, Kept)),
        ],
    ),
    (
        "terminating_endpoints_serve_when_nobody_else_does",
        "8",
        &[
            tcp("connect", "near", "10.96.0.12", 80, host("leaving", 8080, Kept)),
            tcp("packet", "packet", "10.96.0.12", 80, host("leaving", 8080, Kept)),
        ],
    ),
];
