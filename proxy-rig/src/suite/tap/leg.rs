//! A node with an uplink and a pod's link that are TAP devices. This process plays the client, the pod, and the node where the
//! other pod runs.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::Result;

use crate::{demo::stage::Stage, suite::netns::small, tap::Tap, world::Serve};

const SERVICES: &str = include_str!("services.yaml");
const UPLINK: &str = "tap-up";
const POD_LINK: &str = "tap-pod";

/// IPv4, IPv6.
type Pair = [&'static str; 2];
const NODE_ON_UPLINK: Pair = ["172.21.0.1", "fd00:172:21::1"];
const CLIENT: Pair = ["172.21.0.2", "fd00:172:21::2"];
const OTHER_NODE: Pair = ["172.21.0.3", "fd00:172:21::3"];
/// Somewhere between the client and the node.
pub(super) const ROUTER: Pair = ["172.21.0.9", "fd00:172:21::9"];
const POD: Pair = ["10.244.1.240", "fd00:10:244:1::240"];
const REMOTE_POD: Pair = ["10.244.2.240", "fd00:10:244:2::240"];
const TARGET_PORT: u16 = 8080;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Uplink,
    Pod,
}

/// Which source a backend has to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Client,
    /// The node's address on this side's link, and a port of its own.
    Node(Side),
}

/// One way of one family.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) title: &'static str,
    pub(super) from: Side,
    pub(super) to: Side,
    pub(super) client: IpAddr,
    pub(super) frontend: SocketAddr,
    pub(super) backend: SocketAddr,
    pub(super) source: Source,
}

pub(super) struct Leg {
    pub(super) uplink: Tap,
    pub(super) pod: Tap,
    pub(super) stage: Stage,
    next_port: AtomicU16,
}

impl Leg {
    pub(super) async fn start() -> Result<Self> {
        let mut stage = Stage::new("netns-tap")?;
        let node = stage.add_node("node-1", Serve::nothing()).await?;
        let (uplink, pod) = (Tap::create(&node, UPLINK)?, Tap::create(&node, POD_LINK)?);
        node.ip(&[
            format!("addr add {}/24 dev {UPLINK}", NODE_ON_UPLINK[0]),
            format!("addr add {}/64 dev {UPLINK} nodad", NODE_ON_UPLINK[1]),
        ])?;
        node.ip(&[uplink.neighbours(&[CLIENT, OTHER_NODE, ROUTER].concat()), pod.neighbours(&POD)].concat())?;
        node.ip(&[
            format!("route add {}/32 dev {POD_LINK}", POD[0]),
            format!("route add {}/128 dev {POD_LINK}", POD[1]),
            format!("route add 10.244.2.0/24 via {} dev {UPLINK}", OTHER_NODE[0]),
            format!("route add fd00:10:244:2::/64 via {} dev {UPLINK}", OTHER_NODE[1]),
        ])?;
        stage.cluster.put_file("services.yaml", SERVICES)?;
        let ranges = ["--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112"];
        stage.start_agents(&[&ranges[..], &["--uplink-interfaces", UPLINK]].concat()).await?;
        Ok(Self { uplink, pod, stage, next_port: AtomicU16::new(2_000) })
    }

    pub(super) fn tap(&self, side: Side) -> &Tap {
        match side {
            Side::Uplink => &self.uplink,
            Side::Pod => &self.pod,
        }
    }

    pub(super) fn set_offloads(&self, on: bool) -> Result<()> {
        self.uplink.set_offloads(on)?;
        self.pod.set_offloads(on)
    }

    /// A client's port that nobody had yet.
    pub(super) fn new_port(&self) -> u16 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }

    /// The source address that `source` stands for.
    pub(super) fn source(&self, way: &Way) -> Result<IpAddr> {
        Ok(match way.source {
            Source::Client => way.client,
            Source::Node(Side::Uplink) => ip(NODE_ON_UPLINK, way.client.is_ipv6())?,
            // The pod's link has no address: the node's primary one.
            Source::Node(Side::Pod) => self.node(way.client.is_ipv6())?,
        })
    }

    pub(super) fn node(&self, v6: bool) -> Result<IpAddr> {
        Ok(self.stage.node("node-1")?.addresses()[usize::from(v6)])
    }

    /// From the client outside to every kind of frontend of the Service `here` (or `elsewhere`).
    pub(super) fn ways_from_outside(&self, elsewhere: bool) -> Result<Vec<Way>> {
        let (title, number, to, source) = if elsewhere {
            ("a pod of another node", '2', Side::Uplink, Source::Node(Side::Uplink))
        } else {
            ("a pod of this node", '1', Side::Pod, Source::Client)
        };
        let mut ways = Vec::new();
        for v6 in [false, true] {
            let backend = SocketAddr::new(ip(if elsewhere { REMOTE_POD } else { POD }, v6)?, TARGET_PORT);
            let prefixes = if v6 { ["2001:db8:6::", "2001:db8:5::"] } else { ["203.0.113.", "198.51.100."] };
            let mut frontends = vec![SocketAddr::new(self.node(v6)?, if elsewhere { 30082 } else { small::NODE_PORT })];
            for prefix in prefixes {
                frontends.push(SocketAddr::new(format!("{prefix}{number}").parse()?, 80));
            }
            for frontend in frontends {
                let client = ip(CLIENT, v6)?;
                ways.push(Way { title, from: Side::Uplink, to, client, frontend, backend, source });
            }
        }
        Ok(ways)
    }

    /// From the pod to a pod of another node, and to itself.
    pub(super) fn ways_from_pod(&self) -> Result<Vec<Way>> {
        let mut ways = Vec::new();
        for v6 in [false, true] {
            let frontend = |last: u8| socket(["10.96.0.", "fd00:10:96::"][usize::from(v6)], last);
            let client = ip(POD, v6)?;
            let way = Way {
                title: "from a pod to another node",
                from: Side::Pod,
                to: Side::Uplink,
                client,
                frontend: frontend(2)?,
                backend: SocketAddr::new(ip(REMOTE_POD, v6)?, TARGET_PORT),
                source: Source::Client,
            };
            ways.push(Way {
                title: "from a pod to itself",
                to: Side::Pod,
                frontend: frontend(1)?,
                backend: SocketAddr::new(client, TARGET_PORT),
                source: Source::Node(Side::Pod),
                ..way
            });
            ways.push(way);
        }
        Ok(ways)
    }
}

pub(super) fn ip(pair: Pair, v6: bool) -> Result<IpAddr> {
    Ok(pair[usize::from(v6)].parse()?)
}

pub(super) fn socket(prefix: &str, last: u8) -> Result<SocketAddr> {
    Ok(SocketAddr::new(format!("{prefix}{last}").parse()?, 80))
}
