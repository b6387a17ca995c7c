//! The paths that the demo shows: who calls what, and what has to come of it. Data only; `expect` judges.
//! The end-to-end suite has tables of its own in the same form.

use crate::call::Proto;

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) title: &'static str,
    /// Name of the host that calls.
    pub(crate) from: &'static str,
    pub(crate) proto: Proto,
    /// An address, or the name of a host; `/6` after the name asks for its IPv6 address.
    pub(crate) to: &'static str,
    pub(crate) port: u16,
    pub(crate) expect: Expect,
}

/// What has to come of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expect {
    /// Each of these answers, nobody else does, and each sees the caller from the source named.
    Answer { who: Who, target: u16, source: Source },
    /// Connection refused at once.
    Refused,
    /// Silence.
    TimedOut,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Who {
    /// Every endpoint of the Service.
    All(&'static str),
    /// The endpoints of the Service on that node.
    On(&'static str, &'static str),
    /// That host.
    Host(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// The caller's own address.
    Kept,
    /// The caller's own address where the backend is on this node, this node's address otherwise.
    KeptOn(&'static str),
    /// This node's address.
    Node(&'static str),
    /// By the backend's node: one of its addresses for that purpose (IPv4, IPv6); the caller's own on other nodes.
    ByNode(&'static [(&'static str, [&'static str; 2])]),
}

pub(crate) const NGINX: &str = "default/my-nginx";
const APP: &str = "default/my-app-balanced";

const NGINX_V4: &str = "10.0.162.149";
const NGINX_V6: &str = "fd00:10::a295";
const DNS_V4: &str = "10.0.0.10";
const DNS_V6: &str = "fd00:10::a";
const BALANCER: &str = "192.0.2.127";

/// A path over TCP.
pub(crate) const fn tcp(title: &'static str, from: &'static str, to: &'static str, port: u16, expect: Expect) -> Path {
    Path { title, from, proto: Proto::Tcp, to, port, expect }
}

pub(crate) const fn udp(title: &'static str, from: &'static str, to: &'static str, port: u16, expect: Expect) -> Path {
    Path { title, from, proto: Proto::Udp, to, port, expect }
}

pub(crate) const fn all(service: &'static str, target: u16, source: Source) -> Expect {
    Expect::Answer { who: Who::All(service), target, source }
}

pub(crate) const fn host(name: &'static str, target: u16, source: Source) -> Expect {
    Expect::Answer { who: Who::Host(name), target, source }
}

pub(crate) const fn on(service: &'static str, node: &'static str, target: u16) -> Expect {
    Expect::Answer { who: Who::On(service, node), target, source: Source::Kept }
}

/// `curl` is a pod whose connects the node's hooks see, `legacy` one whose packets only are seen.
pub(crate) const PATHS: &[Path] = &[
    tcp("ClusterIP, connect time", "curl", NGINX_V4, 8080, all(NGINX, 80, Source::Kept)),
    tcp("ClusterIP, connect time", "curl", NGINX_V6, 8080, all(NGINX, 80, Source::Kept)),
    tcp("ClusterIP, packet path", "legacy", NGINX_V4, 443, all(NGINX, 443, Source::Kept)),
    tcp("ClusterIP, packet path", "legacy", NGINX_V6, 443, all(NGINX, 443, Source::Kept)),
    tcp("ClusterIP from a node", "node-3", NGINX_V4, 8080, all(NGINX, 80, Source::Kept)),
    tcp("ClusterIP from a node", "node-1", NGINX_V6, 8080, all(NGINX, 80, Source::Kept)),
    udp("ClusterIP UDP, connect time", "curl", DNS_V4, 53, host("dns-1", 53, Source::Kept)),
    udp("ClusterIP UDP, packet path", "legacy", DNS_V6, 53, host("dns-1", 53, Source::Kept)),
    udp("ClusterIP UDP from a node", "node-2", DNS_V4, 53, host("dns-1", 53, Source::Kept)),
    tcp("TCP on the UDP port's number", "curl", DNS_V6, 53, host("dns-1", 53, Source::Kept)),
    tcp("NodePort, local and remote", "outside", "node-1", 8080, all(NGINX, 80, Source::KeptOn("node-1"))),
    tcp("NodePort, local and remote", "outside", "node-2", 443, all(NGINX, 443, Source::KeptOn("node-2"))),
    tcp("NodePort, local and remote", "outside", "node-1/6", 443, all(NGINX, 443, Source::KeptOn("node-1"))),
    tcp("NodePort of another node", "outside", "node-3", 8080, all(NGINX, 80, Source::KeptOn("node-3"))),
    tcp("NodePort of another node", "outside", "node-3/6", 8080, all(NGINX, 80, Source::KeptOn("node-3"))),
    tcp("NodePort at loopback", "node-1", "127.0.0.1", 8080, all(NGINX, 80, Source::Kept)),
    tcp("NodePort at loopback", "node-3", "::1", 443, all(NGINX, 443, Source::Kept)),
    tcp("NodePort of its node, from a pod", "curl", "node-1", 8080, all(NGINX, 80, Source::Kept)),
    tcp("NodePort elsewhere, from a pod", "legacy", "node-2", 8080, all(NGINX, 80, Source::KeptOn("node-2"))),
    tcp("Load balancer, to its node", "outside", BALANCER, 8765, host("example-2", 9376, Source::KeptOn("node-1"))),
    tcp("Load balancer, port 80", "outside", BALANCER, 80, all(APP, 9376, Source::KeptOn("node-1"))),
    tcp("Load balancer VIP from a pod", "legacy", BALANCER, 8765, host("example-2", 9376, Source::Kept)),
    tcp("Fixed cluster IP", "curl", "10.0.171.239", 80, all(APP, 9376, Source::Kept)),
    tcp("External IP", "outside", "80.11.12.10", 80, all(APP, 9376, Source::KeptOn("node-2"))),
    tcp("External IP from a node", "node-3", "80.11.12.10", 80, all(APP, 9376, Source::Kept)),
    tcp("Named target port", "curl", "10.0.80.80", 80, host("proxy-1", 80, Source::Kept)),
    tcp("Two ports: http", "curl", "10.0.93.76", 80, all(APP, 9376, Source::Kept)),
    tcp("Two ports: https", "legacy", "10.0.93.76", 443, all(APP, 9377, Source::Kept)),
    tcp("Endpoint outside, connect time", "curl", "10.0.42.42", 80, host("database", 9376, Source::Kept)),
    tcp("Endpoint outside, packet path", "legacy", "10.0.42.42", 80, host("database", 9376, Source::Kept)),
    tcp("Policy Local", "outside", "node-1", 30007, on("default/my-app-local", "node-1", 9376)),
    tcp("Policy Local", "outside", "node-2/6", 30007, on("default/my-app-local", "node-2", 9376)),
    tcp("Policy Local, none here", "outside", "node-3", 30007, Expect::TimedOut),
    tcp("Policy Local, from the node", "node-3", "127.0.0.1", 30007, all("default/my-app-local", 9376, Source::Kept)),
    tcp("Hairpin, packet path", "example-2", "10.0.87.65", 8765, host("example-2", 9376, Source::Node("node-2"))),
    tcp("No endpoint, connect time", "curl", "10.0.99.99", 80, Expect::Refused),
    tcp("No endpoint, packet path", "legacy", "10.0.99.99", 80, Expect::Refused),
    tcp("No endpoint, NodePort", "outside", "node-1", 30099, Expect::Refused),
    tcp("Unknown port of a ClusterIP", "legacy", NGINX_V4, 81, Expect::Refused),
];

/// Services of the examples that must appear nowhere in the dataplane.
pub(crate) const NOT_PROGRAMMED: &[(&str, &str)] =
    &[("headless", "default/my-app-headless"), ("ExternalName", "prod/my-alias")];
