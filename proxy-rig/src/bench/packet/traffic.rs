//! The packets of `bench packet`: who sends them to whom, at which hook, and how the flows differ from one another.
//!
//! One Service with an endpoint on this node is called at its ClusterIP, 32 with one on another node each at their NodePorts
//! (the source ports towards one endpoint would not do for 65,536 flows).

use std::net::SocketAddr;

use anyhow::{Context, Result};
use proxy_agent::model::Event;
use proxy_common::{
    abi::Reason,
    bench::{Driver, Field, HEADERS_LEN},
};
use serde_json::{Value, json};

use crate::scenario::{Hook, NodeSpec, ObjectReader, PacketSpec, Place, build};

const VIP_PORT: u16 = 80;
const POD_PORT: u16 = 8080;
const FIRST_NODE_PORT: u16 = 30_000;
const FIRST_CLIENT_PORT: u16 = 1024;
const FIRST_SNAT_PORT: u16 = 61_000;
const REMOTE_ENDPOINTS: u32 = 32;
const FIRST_REMOTE: u32 = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    V4,
    V6,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// One step of a connection, at one hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Leg {
    /// To the ClusterIP, first packet and later ones; ingress of the client's interface.
    Open,
    Forward,
    /// Back from the endpoint on this node; egress of the client's interface.
    Accept,
    Reply,
    /// To a NodePort; ingress of the uplink.
    OpenNodePort,
    /// On to the endpoint on another node; egress of the uplink.
    OpenOut,
    Source,
    /// Back from there, after the source was translated back; egress of the uplink.
    AcceptOut,
    /// Later packets to a NodePort.
    ForwardNodePort,
    /// Back from there; ingress of the uplink.
    SnatReply,
    /// To a pod without a Service, and back.
    Elsewhere,
    BackElsewhere,
    /// By lo, from the node to itself: between loopback addresses, and between others.
    Loopback,
    NodeToItself,
}

/// How a field differs between flows: `(flow >> .0) & .1` is added.
type Vary = (u32, u32);
const SAME: Vary = (0, 0);
const CLIENT: Vary = (15, 0xffff);
const CLIENT_PORT: Vary = (0, 0x7fff);
const SERVER: Vary = (0, REMOTE_ENDPOINTS - 1);
const SNAT_PORT: Vary = (5, 0x7ff);

/// The packets of a leg.
pub(super) struct Traffic {
    pub(super) place: Place,
    pub(super) frame: Vec<u8>,
    /// What each of them must be counted as.
    pub(super) reason: Reason,
    /// Source, destination, source port, destination port.
    vary: [Vary; 4],
    spec: PacketSpec,
}

/// Which flow the next packet belongs to.
#[derive(Clone, Copy)]
pub(super) enum Order {
    /// Flow after flow, each once, from this one on.
    Once(u32),
    /// Over and over; a power of two.
    Among(u32),
}

impl Leg {
    pub(super) fn traffic(self, version: Version, protocol: Protocol) -> Result<Traffic> {
        let at = |v4: &str, v6: &str, port: u16| -> Result<SocketAddr> {
            let text = if version == Version::V4 { v4 } else { v6 };
            Ok(SocketAddr::new(text.parse().context("an address")?, port))
        };
        let client = at("198.18.0.0", "fd00:c::1:0", FIRST_CLIENT_PORT)?;
        let vip = at("10.96.0.10", "fd00:96::10", VIP_PORT)?;
        let pod = at("10.244.1.10", "fd00:244:1::10", POD_PORT)?;
        let other_pod = at("10.244.1.11", "fd00:244:1::11", POD_PORT)?;
        let node_port = at("192.168.1.10", "fd00:1::10", FIRST_NODE_PORT)?;
        let remote = at(&format!("10.244.2.{FIRST_REMOTE}"), &format!("fd00:244:2::{FIRST_REMOTE:x}"), POD_PORT)?;
        let snat = at("192.168.1.10", "fd00:1::10", FIRST_SNAT_PORT)?;

        let loopback = at("127.0.0.1", "::1", FIRST_CLIENT_PORT)?;
        // Ports that no Service has.
        let node = at("192.168.1.10", "fd00:1::10", 1)?;

        let there = [CLIENT, SAME, CLIENT_PORT, SAME];
        let back = [SAME, CLIENT, SAME, CLIENT_PORT];
        let (src, dst, flags, vary) = match self {
            Leg::Open => (client, vip, "syn", there),
            Leg::Forward => (client, vip, "ack", there),
            Leg::Accept => (pod, client, "synack", back),
            Leg::Reply => (pod, client, "ack", back),
            Leg::OpenNodePort => (client, node_port, "syn", [CLIENT, SAME, CLIENT_PORT, SERVER]),
            Leg::ForwardNodePort => (client, node_port, "ack", [CLIENT, SAME, CLIENT_PORT, SERVER]),
            Leg::AcceptOut => (remote, client, "synack", [SERVER, CLIENT, SAME, CLIENT_PORT]),
            Leg::OpenOut => (client, remote, "syn", [CLIENT, SERVER, CLIENT_PORT, SAME]),
            Leg::Source => (client, remote, "ack", [CLIENT, SERVER, CLIENT_PORT, SAME]),
            Leg::SnatReply => (remote, snat, "ack", [SERVER, SAME, SAME, SNAT_PORT]),
            Leg::Elsewhere => (client, other_pod, "ack", there),
            Leg::BackElsewhere => (other_pod, client, "ack", back),
            Leg::Loopback => (loopback, loopback, "ack", [SAME, SAME, CLIENT_PORT, SAME]),
            Leg::NodeToItself => (node, node, "ack", [SAME, SAME, CLIENT_PORT, SAME]),
        };
        let words =
            if protocol == Protocol::Tcp { format!("tcp {src} > {dst} {flags}") } else { format!("udp {src} > {dst}") };
        let mut spec: PacketSpec = words.parse()?;
        // Longer than the headers that are written anew, whatever they are.
        spec.extras.payload_len = 64;
        let frame = build(&spec);
        let place = Place { interface: self.interface().to_owned(), hook: self.hook(), own: self.is_own() };
        Ok(Traffic { place, frame, reason: self.reason(), vary, spec })
    }

    pub(super) fn hook(self) -> Hook {
        use Leg::{Accept, AcceptOut, BackElsewhere, Loopback, NodeToItself, OpenOut, Reply, Source};
        match self {
            Accept | Reply | OpenOut | Source | AcceptOut | BackElsewhere | Loopback | NodeToItself => Hook::Egress,
            _ => Hook::Ingress,
        }
    }

    fn interface(self) -> &'static str {
        match self {
            Leg::Open | Leg::Forward | Leg::Accept | Leg::Reply => "pod2",
            Leg::Loopback | Leg::NodeToItself => "lo",
            _ => "uplink",
        }
    }

    fn is_own(self) -> bool {
        matches!(self, Self::Loopback | Self::NodeToItself)
    }

    fn reason(self) -> Reason {
        match self {
            Leg::Open | Leg::OpenNodePort => Reason::NewFlow,
            Leg::Forward | Leg::ForwardNodePort => Reason::Forward,
            Leg::Accept | Leg::Reply | Leg::AcceptOut => Reason::Reply,
            Leg::OpenOut | Leg::Source => Reason::Snat,
            Leg::SnatReply => Reason::SnatReply,
            Leg::Elsewhere | Leg::Loopback => Reason::NotOurs,
            Leg::NodeToItself => Reason::NoFlow,
            Leg::BackElsewhere => Reason::NoTranslation,
        }
    }
}

/// One packet's addresses: low words and ports.
pub(super) struct FlowTuple {
    pub(super) src: SocketAddr,
    pub(super) dst: SocketAddr,
}

impl Traffic {
    pub(super) fn driver(&self, order: Order) -> Driver {
        let (next, wrap, scramble) = match order {
            Order::Once(first) => (first, u32::MAX, 1),
            Order::Among(flows) => (0, flows - 1, 0x9e37_79b1),
        };
        let mut headers = [0; HEADERS_LEN];
        headers.copy_from_slice(&self.frame[..HEADERS_LEN]);
        let field = |base: u32, (shift, mask): Vary| Field { base, shift, mask };
        let [src, dst, src_port, dst_port] = self.vary;
        Driver {
            next,
            wrap,
            scramble,
            made: 0,
            src: field(low_word(self.spec.src), src),
            dst: field(low_word(self.spec.dst), dst),
            src_port: field(self.spec.src.port().into(), src_port),
            dst_port: field(self.spec.dst.port().into(), dst_port),
            zero: [0; 2],
            headers,
        }
    }

    /// The tuple of one flow, as the driver makes it.
    pub(super) fn tuple(&self, flow: u32) -> FlowTuple {
        let add = |(shift, mask): Vary| (flow >> shift) & mask;
        let [src, dst, src_port, dst_port] = self.vary;
        FlowTuple {
            src: plus(self.spec.src, add(src), add(src_port)),
            dst: plus(self.spec.dst, add(dst), add(dst_port)),
        }
    }
}

fn low_word(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(address) => address.ip().to_bits(),
        SocketAddr::V6(address) => address.ip().to_bits() as u32,
    }
}

fn plus(address: SocketAddr, host: u32, port: u32) -> SocketAddr {
    let port = address.port().wrapping_add(port as u16);
    match address {
        SocketAddr::V4(address) => (std::net::Ipv4Addr::from_bits(address.ip().to_bits() + host), port).into(),
        SocketAddr::V6(address) => {
            (std::net::Ipv6Addr::from_bits(address.ip().to_bits() + u128::from(host)), port).into()
        }
    }
}

/// The node and its Services, as the agent hears of them.
pub(super) fn objects(spec: &NodeSpec, version: Version) -> Result<Vec<Event>> {
    let mut reader = ObjectReader::default();
    let mut events = reader.node_events(spec)?;
    let v6 = version == Version::V6;
    let (vip, pod) = if v6 { ("fd00:96::10", "fd00:244:1::10") } else { ("10.96.0.10", "10.244.1.10") };
    for object in service("local", vip, None, pod, "node-a", v6) {
        reader.object(object, &mut events)?;
    }
    for (n, node_port) in (0..REMOTE_ENDPOINTS).zip(FIRST_NODE_PORT..) {
        let host = FIRST_REMOTE + n;
        let (vip, pod) = match version {
            Version::V4 => (format!("10.96.1.{host}"), format!("10.244.2.{host}")),
            Version::V6 => (format!("fd00:96::1:{host:x}"), format!("fd00:244:2::{host:x}")),
        };
        for object in service(&format!("remote-{n}"), &vip, Some(node_port), &pod, "node-b", v6) {
            reader.object(object, &mut events)?;
        }
    }
    Ok(events)
}

/// A Service of both protocols, and its slice of one endpoint.
fn service(name: &str, vip: &str, node_port: Option<u16>, endpoint: &str, node: &str, v6: bool) -> [Value; 2] {
    let port = |protocol: &str| {
        let mut port = json!({"name": protocol, "protocol": protocol, "port": VIP_PORT, "targetPort": POD_PORT});
        if let Some(number) = node_port {
            port["nodePort"] = json!(number);
        }
        port
    };
    let kind = if node_port.is_some() { "NodePort" } else { "ClusterIP" };
    let family = if v6 { "IPv6" } else { "IPv4" };
    let slice_port = |protocol: &str| json!({"name": protocol, "protocol": protocol, "port": POD_PORT});
    [
        json!({
            "kind": "Service", "metadata": {"name": name},
            "spec": {"type": kind, "clusterIP": vip, "clusterIPs": [vip], "ipFamilies": [family],
                "ports": [port("TCP"), port("UDP")]},
        }),
        json!({
            "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": family, "ports": [slice_port("TCP"), slice_port("UDP")],
            "endpoints": [{"addresses": [endpoint], "nodeName": node, "conditions": {"ready": true}}],
        }),
    ]
}
