//! Does the kernel forward as it should? For a Service of each family, the program that is attached says where a new flow would go.
//! The main loop asks, between two of its writes, so that nothing changes meanwhile.

use std::{collections::BTreeSet, net::SocketAddr, os::fd::AsFd as _, path::Path};

use proxy_common::{
    abi::{FrontendKind, IfaceRole, Service, ServiceKey},
    net::{TCP, UDP, V4, V6},
};
use serde::Serialize;

use super::frame::{destination, first_packet};
use crate::{
    dataplane::{Actual, MapFamily},
    loader::{Attacher, Expected, programs},
};

/// TCX_NEXT, and TC_ACT_UNSPEC in clsact: on with the packet.
const NEXT: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_REDIRECT: i32 = 7;

/// What the kernel said.
#[derive(Debug)]
pub struct Forwarding {
    pub(super) expected: Result<Expected, String>,
    pub(super) probes: Vec<Probe>,
}

/// One question and its answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Probe {
    family: &'static str,
    protocol: &'static str,
    frontend: String,
    interface: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Probe {
    /// None if the answer was right.
    pub(super) fn in_words(&self) -> Option<String> {
        let problem = self.problem.as_ref()?;
        Some(format!("a new {} flow to {} through {}: {problem}", self.protocol, self.frontend, self.interface))
    }
}

/// A frontend with endpoints, and all of these.
struct Question {
    frontend: SocketAddr,
    protocol: u8,
    endpoints: BTreeSet<SocketAddr>,
}

/// `turn` chooses another Service and interface each time. `cgroup`: where the connect hooks are, if anywhere.
pub fn ask(actual: &Actual, attacher: &Attacher, cgroup: Option<&Path>, turn: usize) -> Forwarding {
    let expected = attacher.expected(cgroup).map_err(|error| format!("the own programs cannot be read: {error}"));
    let count = attacher.ingress_interfaces().count();
    let mut probes = Vec::new();
    if let Some((index, name)) = attacher.ingress_interfaces().nth(turn % count.max(1)) {
        let v4 = question::<V4>(actual, index, turn).map(|question| ("IPv4", question));
        let v6 = question::<V6>(actual, index, turn).map(|question| ("IPv6", question));
        for (family, question) in v4.into_iter().chain(v6) {
            let answer = answer(attacher, index, &question);
            probes.push(Probe {
                family,
                protocol: if question.protocol == TCP { "TCP" } else { "UDP" },
                frontend: question.frontend.to_string(),
                interface: name.to_owned(),
                endpoint: answer.as_ref().ok().map(SocketAddr::to_string),
                problem: answer.err(),
            });
        }
    }
    Forwarding { expected, probes }
}

fn question<F: MapFamily>(actual: &Actual, ifindex: u32, turn: usize) -> Option<Question> {
    let is_pod = actual.ifaces.get(&ifindex).is_some_and(|iface| iface.role == IfaceRole::Pod);
    let set = |service: &Service| {
        let index = if is_pod { service.internal_set } else { service.external_set };
        actual.sets.get(index as usize).filter(|set| set.len > 0)
    };
    let usable = |(key, service): &(&ServiceKey<F>, &Service)| {
        service.kind == FrontendKind::ClusterIp && matches!(key.protocol, TCP | UDP) && set(service).is_some()
    };
    let services = || F::tables(actual).services.iter().filter(usable);
    let (key, service) = services().nth(turn % services().count().max(1))?;
    let set = set(service)?;
    let slots = actual.rings.iter().skip(set.start as usize).take(set.len as usize);
    let backends = slots.filter_map(|slot| F::tables(actual).backends.get(slot.backend as usize));
    Some(Question {
        frontend: SocketAddr::new(F::to_ip(key.addr), key.port),
        protocol: key.protocol,
        endpoints: backends.map(|backend| SocketAddr::new(F::to_ip(backend.addr), backend.port)).collect(),
    })
}

fn answer(attacher: &Attacher, ifindex: u32, question: &Question) -> Result<SocketAddr, String> {
    let program = attacher.attached_ingress(ifindex).map_err(|error| format!("the attached program: {error}"))?;
    let frame = first_packet(question.frontend, question.protocol);
    let (returned, frame) = programs::ask(program.as_fd(), ifindex, &frame)
        .map_err(|error| format!("the attached program does not run: {error}"))?;
    match returned {
        NEXT => {}
        TC_ACT_SHOT => return Err("dropped".to_owned()),
        TC_ACT_REDIRECT => return Err("refused, or sent elsewhere".to_owned()),
        other => return Err(format!("the program returned {other}")),
    }
    let to = destination(&frame, question.protocol)?;
    if to == question.frontend {
        return Err("passed untranslated".to_owned());
    }
    if question.endpoints.contains(&to) { Ok(to) } else { Err(format!("{to} is no endpoint of the Service")) }
}
