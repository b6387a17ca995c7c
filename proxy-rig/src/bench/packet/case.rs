//! What `bench packet` measures, line by line, and the goals.

use super::traffic::{Leg, Protocol, Version};

/// Flows of the larger case.
pub(super) const MANY: u32 = 65_536;
/// Nanoseconds, net of the test run, over one flow.
const ESTABLISHED_NS: f64 = 60.0;
const NEW_NS: f64 = 350.0;
const NOT_A_SERVICE_NS: f64 = 25.0;
/// Over MANY flows, to the floor over as many.
const FLOOR_RATIO: f64 = 1.3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flows {
    One,
    Many,
    /// A flow of its own for each packet; there is room in the tables.
    Fresh,
    /// The same, and each new entry takes the place of an old one.
    FreshInFullTable,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Goal {
    Nanoseconds(f64),
    FloorRatio(f64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) version: Version,
    pub(super) protocol: Protocol,
    pub(super) state: &'static str,
    /// Each is run once for each flow.
    pub(super) before: &'static [Leg],
    /// This is run for the same flows before each measurement (fresh flows only).
    pub(super) before_each: Option<Leg>,
    pub(super) measured: Leg,
    pub(super) flows: Flows,
    pub(super) goal: Goal,
}

struct Line {
    state: &'static str,
    before: &'static [Leg],
    before_each: Option<Leg>,
    measured: Leg,
    udp: bool,
    /// None: a new flow each.
    known_ns: Option<f64>,
}

const fn known(state: &'static str, before: &'static [Leg], measured: Leg, udp: bool) -> Line {
    Line { state, before, before_each: None, measured, udp, known_ns: Some(ESTABLISHED_NS) }
}
const fn new(state: &'static str, before_each: Option<Leg>, measured: Leg, udp: bool) -> Line {
    Line { state, before: &[], before_each, measured, udp, known_ns: None }
}
const fn other(state: &'static str, before: &'static [Leg], measured: Leg) -> Line {
    Line { state, before, before_each: None, measured, udp: false, known_ns: Some(NOT_A_SERVICE_NS) }
}

/// Both sides have answered: the flows stand where they stay.
const DIRECT: &[Leg] = &[Leg::Open, Leg::Accept, Leg::Forward];
/// The answer to our source port is told to the table between the second and the third.
const REMOTE: &[Leg] = &[Leg::OpenNodePort, Leg::OpenOut, Leg::AcceptOut, Leg::ForwardNodePort, Leg::Source];

const LINES: [Line; 11] = [
    known("established, to the endpoint", DIRECT, Leg::Forward, true),
    known("established, reply", DIRECT, Leg::Reply, true),
    known("established, out by SNAT", REMOTE, Leg::Source, false),
    // The entries are put into the table by hand: where the ports lie is Weir's choice.
    known("established, reply to SNAT", &[], Leg::SnatReply, false),
    new("new, to a ClusterIP", None, Leg::Open, true),
    new("new, to a NodePort, endpoint elsewhere", None, Leg::OpenNodePort, true),
    new("new, out by SNAT", Some(Leg::OpenNodePort), Leg::OpenOut, false),
    other("not a Service", DIRECT, Leg::Elsewhere),
    other("not a Service", DIRECT, Leg::BackElsewhere),
    other("lo, loopback addresses", &[], Leg::Loopback),
    other("lo, the node's address", &[], Leg::NodeToItself),
];

pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in [Version::V4, Version::V6] {
        for line in &LINES {
            let protocols = if line.udp { &[Protocol::Tcp, Protocol::Udp][..] } else { &[Protocol::Tcp] };
            for protocol in protocols {
                cases.extend(line.flows().map(|(flows, goal)| Case {
                    version,
                    protocol: *protocol,
                    state: line.state,
                    before: line.before,
                    before_each: line.before_each,
                    measured: line.measured,
                    flows,
                    goal,
                }));
            }
        }
    }
    cases
}

impl Line {
    fn flows(&self) -> impl Iterator<Item = (Flows, Goal)> {
        match self.known_ns {
            Some(ns) => [(Flows::One, Goal::Nanoseconds(ns)), (Flows::Many, Goal::FloorRatio(FLOOR_RATIO))],
            None => [Flows::Fresh, Flows::FreshInFullTable].map(|flows| (flows, Goal::Nanoseconds(NEW_NS))),
        }
        .into_iter()
    }
}

impl Case {
    /// For the floor by itself: nothing is made beforehand.
    pub(super) fn of_floor(version: Version) -> Self {
        Self {
            version,
            protocol: Protocol::Tcp,
            state: "floor",
            before: &[],
            before_each: None,
            measured: Leg::Forward,
            flows: Flows::One,
            goal: Goal::Nanoseconds(f64::INFINITY),
        }
    }

    /// `ingress, IPv4 TCP, established, reply`
    pub(super) fn name(&self) -> String {
        format!("{}, {}, {}", self.hook(), self.packets(), self.state)
    }

    pub(super) fn hook(&self) -> &'static str {
        match self.measured.hook() {
            crate::scenario::Hook::Ingress => "ingress",
            crate::scenario::Hook::Egress => "egress",
        }
    }

    pub(super) fn packets(&self) -> &'static str {
        match (self.version, self.protocol) {
            (Version::V4, Protocol::Tcp) => "IPv4 TCP",
            (Version::V4, Protocol::Udp) => "IPv4 UDP",
            (Version::V6, Protocol::Tcp) => "IPv6 TCP",
            (Version::V6, Protocol::Udp) => "IPv6 UDP",
        }
    }
}

impl Flows {
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Flows::One => "1",
            Flows::Many => "65,536",
            Flows::Fresh => "fresh",
            Flows::FreshInFullTable => "fresh, table full",
        }
    }
}
