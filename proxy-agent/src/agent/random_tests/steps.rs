//! Steps of a sequence, and the world as it is after each: what an agent that starts there would see.

use std::{collections::BTreeMap, fmt, sync::Arc};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::objects::{Identity, Object};
use crate::node::{Link, NetChange, NodeNet, NodePortAddresses, NodeView, RoleRules, Route, RouteKey};

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// The object is there, or is another now.
    Apply(Arc<Object>),
    Delete(Arc<Object>),
    Net(NetChange),
    /// The watches list everything again.
    Relist,
    /// The sources have listed everything once.
    Listed,
    /// The agent brings the maps in line with what it heard.
    Sync,
    /// Milliseconds pass; what failed is tried again where that is due.
    Wait(u64),
    /// Another agent starts over the same maps, and lists.
    Restart,
}

/// What is the case.
#[derive(Clone, Debug)]
pub(super) struct World {
    objects: BTreeMap<Identity, Shown>,
    pub(super) net: NodeNet,
}

/// One object on the server.
#[derive(Clone, Debug)]
struct Shown {
    now: Arc<Object>,
    /// What counts, for an agent that has run since.
    readable: Option<Arc<Object>>,
}

/// The node has an uplink with an address of each family and the interface of a pod.
impl Default for World {
    fn default() -> Self {
        let mut net = NodeNet::default();
        net.apply(NetChange::Link(link(2, "eth0", None)));
        net.apply(NetChange::Link(link(3, "veth3", Some("veth"))));
        for address in ["192.0.2.1", "fd00:1::1"] {
            net.apply(address_change(2, address, true));
        }
        Self { objects: BTreeMap::new(), net }
    }
}

impl World {
    pub(super) fn step(&mut self, step: &Step) {
        match step {
            Step::Apply(object) => {
                let before = self.objects.remove(&object.identity).and_then(|shown| shown.readable);
                let readable = if object.read.is_readable() { Some(object.clone()) } else { before };
                self.objects.insert(object.identity, Shown { now: object.clone(), readable });
            }
            Step::Delete(object) => drop(self.objects.remove(&object.identity)),
            Step::Net(change) => drop(self.net.apply(change.clone())),
            // It has not seen what was there before.
            Step::Restart => {
                for shown in self.objects.values_mut() {
                    shown.readable = Some(shown.now.clone()).filter(|object| object.read.is_readable());
                }
            }
            Step::Relist | Step::Listed | Step::Sync | Step::Wait(_) => {}
        }
    }

    /// What a listing shows.
    pub(super) fn present(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values().map(|shown| &shown.now)
    }

    /// Of each object what counts.
    pub(super) fn last_readable(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values().filter_map(|shown| shown.readable.as_ref())
    }
}

/// Of an agent without flags, before it has heard of the node's network.
pub(super) fn view_of() -> NodeView {
    NodeView::new(RoleRules::default(), NodePortAddresses::Primary)
}

/// Objects for the sequences whose numbers lie near each other: to make and read them takes longer than to use them.
pub(super) struct Pool {
    number: u64,
    objects: Vec<Arc<Object>>,
}

impl Pool {
    /// Sequences that draw from one pool.
    const SHARED_BY: u64 = 500;
    const OBJECTS: usize = 400;

    /// That of this sequence.
    pub(super) fn of(sequence: u64) -> Self {
        let number = sequence / Self::SHARED_BY;
        let mut random = StdRng::seed_from_u64(number);
        let objects = (0..Self::OBJECTS).map(|_| Arc::new(Object::random(&mut random))).collect();
        Self { number, objects }
    }

    fn apply(&self, random: &mut StdRng, shown: &mut Vec<Arc<Object>>, wanted: impl Fn(&Object) -> bool) -> Step {
        let first = random.random_range(0..self.objects.len());
        let mut from_there = self.objects[first..].iter().chain(&self.objects);
        let object = from_there.find(|object| wanted(object)).expect("a pool has every kind").clone();
        shown.push(object.clone());
        Step::Apply(object)
    }

    pub(super) fn is_of(&self, sequence: u64) -> bool {
        self.number == sequence / Self::SHARED_BY
    }
}

/// So that there is something to change: each sequence begins with these.
const FIRST: [&str; 2] = ["Service", "EndpointSlice"];

/// Five to twelve changes, most of them followed by a look of the agent.
pub(super) fn random_steps(pool: &Pool, sequence: u64) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(sequence);
    let mut steps = Vec::new();
    let mut shown: Vec<Arc<Object>> = Vec::new();
    let changes = random.random_range(5..=12);
    let listed_at = random.random_range(0..3);
    for change in 0..changes {
        if change == listed_at {
            steps.push(Step::Listed);
        }
        steps.push(match FIRST.get(change) {
            Some(kind) => pool.apply(&mut random, &mut shown, |object| object.identity.0 == *kind),
            None => random_change(&mut random, pool, &mut shown),
        });
        if random.random_bool(0.75) {
            steps.push(Step::Sync);
        }
        if random.random_bool(0.3) {
            steps.push(Step::Wait(random.random_range(1..2500)));
        }
    }
    steps
}

fn random_change(random: &mut StdRng, pool: &Pool, shown: &mut Vec<Arc<Object>>) -> Step {
    match random.random_range(0..40) {
        0..4 if !shown.is_empty() => {
            let index = random.random_range(0..shown.len());
            Step::Delete(shown[index].clone())
        }
        // As it was before: labels and types toggle.
        4..8 if !shown.is_empty() => {
            let index = random.random_range(0..shown.len());
            Step::Apply(shown[index].clone())
        }
        8..11 => Step::Net(random_net(random)),
        11 => Step::Relist,
        12 => Step::Restart,
        _ => pool.apply(random, shown, |_| true),
    }
}

fn random_net(random: &mut StdRng) -> NetChange {
    let comes = random.random_bool(0.5);
    let addresses = ["192.0.2.1", "192.0.2.2", "80.1.1.1", "fd00:1::1", "2001:db8::1"];
    match random.random_range(0..4) {
        0 | 1 => address_change(2, addresses[random.random_range(0..addresses.len())], comes),
        2 => {
            let to = ["10.244.1.1/32", "10.244.1.0/24", "fd00:244::/64"][random.random_range(0..3)];
            let key = RouteKey { to: to.parse().expect("a range"), metric: 0 };
            if comes { NetChange::Route(Route { key, links: vec![3] }) } else { NetChange::RouteGone(key) }
        }
        _ if comes => NetChange::Link(link(3, "veth3", Some("veth"))),
        _ => NetChange::LinkGone(3),
    }
}

fn address_change(link: u32, address: &str, comes: bool) -> NetChange {
    let address = address.parse().expect("an address");
    if comes { NetChange::Address { link, address, later: false } } else { NetChange::AddressGone { link, address } }
}

fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    let kind = kind.map(Into::into);
    Link { index, name: name.into(), kind, mtu: 1500, up: true, loopback: false, ethernet: true }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Apply(object) => write!(f, "apply {} {}", object.identity.0, object.text),
            Step::Delete(object) => write!(f, "delete {:?}", object.identity),
            other => write!(f, "{other:?}"),
        }
    }
}
