//! The paths that every layout has to carry. Sources that a backend sees depend on the layout: a node has other
//! addresses towards its bridge and on an overlay.

use crate::{
    demo::paths::{
        Path,
        Source::{self, ByNode, Kept, KeptOn, Node},
        all, host,
    },
    suite::netns::paths::both,
    world::{Layout, PodLinks},
};

const WEB: &str = "default/web";
pub(super) const WEB4: &str = "10.96.0.1";
pub(super) const WEB6: &str = "fd00:10:96::1";

const BRIDGE_1: [&str; 2] = ["10.244.1.254", "fd00:10:244:1::254"];
const OVERLAY_1: [&str; 2] = ["10.244.1.253", "fd00:10:244:1::253"];
const OVERLAY_2: [&str; 2] = ["10.244.2.253", "fd00:10:244:2::253"];

/// Who calls for a large answer, and where: TCP and UDP.
pub(super) const TRANSFERS: [(&str, &str, u16); 8] = [
    ("near", WEB4, 80),
    ("packet", WEB4, 80),
    ("packet", WEB6, 80),
    ("node-1", WEB6, 80),
    ("client", "node-1", 30080),
    ("client", "node-1/6", 30080),
    ("client", "node-2/6", 30080),
    ("client", "203.0.113.2", 80),
];

/// The sources that backends of a layout see.
pub(super) struct Addressing {
    hooks: bool,
    /// A socket of node-1.
    node: Source,
    /// A client outside, through that node.
    through_1: Source,
    through_2: Source,
    /// A pod of node-2, at an address that is no pod's.
    leaving_2: Source,
}

impl Addressing {
    /// `hooks`: whether a socket of a node is translated when it connects, and so chooses its source by the endpoint.
    /// `masqueraded`: whether what pods send out of the cluster is.
    pub(super) fn of(layout: Layout, hooks: bool, masqueraded: bool) -> Self {
        let bridged = matches!(layout.pods, PodLinks::Bridged { .. });
        let node = match (hooks && bridged, layout.overlay) {
            (false, false) => Kept,
            (true, false) => ByNode(&[("node-1", BRIDGE_1)]),
            // Linux takes the address that looks most like the endpoint's for a socket over IPv6.
            (false, true) if hooks => ByNode(&[("node-1", ["172.18.0.11", OVERLAY_1[1]]), ("node-2", OVERLAY_1)]),
            (false, true) => ByNode(&[("node-2", OVERLAY_1)]),
            (true, true) => ByNode(&[("node-1", BRIDGE_1), ("node-2", OVERLAY_1)]),
        };
        let (through_1, through_2) = if layout.overlay {
            (ByNode(&[("node-2", OVERLAY_1)]), ByNode(&[("node-1", OVERLAY_2)]))
        } else {
            (KeptOn("node-1"), KeptOn("node-2"))
        };
        let leaving_2 = if masqueraded { Node("node-2") } else { Kept };
        Self { hooks, node, through_1, through_2, leaving_2 }
    }
}

/// Paths that every filter lets pass.
pub(super) fn paths(sources: &Addressing) -> Vec<Path> {
    let mut paths = same_node(sources);
    paths.extend(crossing(sources));
    paths
}

/// Paths whose replies a bridge may carry past the filters of IP: caller and backend are pods of one node, and the
/// request is routed to the frontend.
pub(super) fn same_node(sources: &Addressing) -> Vec<Path> {
    let web = all(WEB, 8080, Kept);
    let mut paths = [
        both("packet path", "packet", WEB4, WEB6, 80, web),
        both("load balancer, from a pod", "packet", "203.0.113.2", "2001:db8:6::2", 80, web),
    ]
    .concat();
    if !sources.hooks {
        paths.extend(both("packet path", "near", WEB4, WEB6, 80, web));
    }
    paths
}

/// All other paths.
pub(super) fn crossing(sources: &Addressing) -> Vec<Path> {
    let web = |source| all(WEB, 8080, source);
    let mut paths = [
        both("node", "node-1", WEB4, WEB6, 80, web(sources.node)),
        both("NodePort", "client", "node-1", "node-1/6", 30080, web(sources.through_1)),
        both("NodePort", "client", "node-2", "node-2/6", 30080, web(sources.through_2)),
        both("load balancer", "client", "203.0.113.2", "2001:db8:6::2", 80, web(sources.through_1)),
        both("Local", "client", "node-1", "node-1/6", 30083, host("web-1", 8080, Kept)),
        both("Local", "client", "node-2", "node-2/6", 30083, host("web-2", 8080, Kept)),
        both("Local", "client", "203.0.113.3", "2001:db8:6::3", 80, host("web-1", 8080, Kept)),
        both("hairpin", "self", "10.96.0.8", "fd00:10:96::8", 80, host("self", 8080, Node("node-1"))),
        both("host backend, same node", "packet", "10.96.0.11", "fd00:10:96::b", 80, host("node-1", 9100, Kept)),
        both("host backend, same node", "near", "10.96.0.11", "fd00:10:96::b", 80, host("node-1", 9100, Kept)),
        both("host backend", "node-2", "10.96.0.11", "fd00:10:96::b", 80, host("node-1", 9100, Kept)),
        both("host backend", "web-2", "10.96.0.11", "fd00:10:96::b", 80, host("node-1", 9100, sources.leaving_2)),
        both("host backend", "client", "node-1", "node-1/6", 30091, host("node-1", 9100, Kept)),
        both("host backend", "client", "node-2", "node-2/6", 30091, host("node-1", 9100, Node("node-2"))),
    ]
    .concat();
    if sources.hooks {
        paths.extend(both("connect time", "near", WEB4, WEB6, 80, web(Kept)));
    }
    paths
}
