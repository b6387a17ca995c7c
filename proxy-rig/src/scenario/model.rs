//! The executor without a kernel: objects through the agent's own code into a fake dataplane, packets through the decision
//! code of proxy-common.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use proxy_agent::{
    dataplane::{FakeMaps, Injection, MapFamily, frontend_of},
    model::Event,
};
use proxy_common::{
    abi::{Action, BackendState, Config, Reason},
    lb::{Env, Verdict, Work, decide, decide_error, pass_error},
    net::{ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, Family, Packet, ParseError, V4, V6, parse_packet, parse_quote},
};

use super::{
    control::Control,
    evict::Eviction,
    expect::Outcome,
    flows::flows_text,
    frame::ether_type,
    hop::{Hook, Hop},
    node::SimulatedNode,
    rewrite,
    run::Machine,
    tables::{Flows, ModelTables, RigFamily},
};

pub struct ModelMachine {
    name: &'static str,
    pub(super) node: SimulatedNode,
    pub(super) control: Control<FakeMaps>,
    pub(super) flows: Flows,
    config: Config,
    /// Ids depend on which writes failed; the connection tables hold some.
    same_ids: bool,
}

impl ModelMachine {
    pub fn new(node: SimulatedNode) -> Result<Self> {
        Self::with("model", node, FakeMaps::default(), true)
    }

    /// One in ten writes to the maps fails and is tried again.
    pub fn failing(node: SimulatedNode, seed: u64) -> Result<Self> {
        let maps = FakeMaps { injection: Injection::random(0.1, seed), ..FakeMaps::default() };
        Self::with("model with failing maps", node, maps, false)
    }

    fn with(name: &'static str, node: SimulatedNode, maps: FakeMaps, same_ids: bool) -> Result<Self> {
        let config = node.config();
        let control = Control::new(&node, maps)?;
        Ok(Self { name, node, control, flows: Flows::default(), config, same_ids })
    }

    pub(super) fn decide(&mut self, hop: &Hop) -> (Verdict, Vec<u8>) {
        match ether_type(&hop.frame) {
            Some(V4::ETHERTYPE) => self.decide_family::<V4>(hop),
            Some(V6::ETHERTYPE) => self.decide_family::<V6>(hop),
            Some(ETH_P_8021Q | ETH_P_8021AD) => (Verdict::pass(Reason::VlanTag), hop.frame.clone()),
            _ => (Verdict::pass(Reason::NotIp), hop.frame.clone()),
        }
    }

    fn decide_family<F: RigFamily>(&mut self, hop: &Hop) -> (Verdict, Vec<u8>) {
        let tables = ModelTables {
            config: self.config,
            programmed: self.control.actual(),
            flows: &self.flows,
            surroundings: self.node.surroundings(),
            packet_len: (hop.frame.len() - ETH_LEN) as u32,
        };
        let ifindex = self.node.index_of(&hop.place.interface).unwrap_or(0);
        let env = Env { ifindex, own: hop.place.own, probe: false };
        let mut frame = hop.frame.clone();
        let mut work = Work::<F>::new(Packet::EMPTY);
        match parse_packet(&frame[..], ETH_LEN, &mut work.packet) {
            Ok(()) => {}
            Err(ParseError::Malformed) => return (Verdict::pass(Reason::Malformed), frame),
            Err(ParseError::TooManyHeaders) => return (Verdict::pass(Reason::TooManyHeaders), frame),
        }
        let egress = hop.place.hook == Hook::Egress;
        if work.packet.icmp_error {
            let verdict = match parse_quote(&frame[..], &work.packet, &mut work.quote) {
                Some(_) => decide_error(&tables, &env, egress, &mut work),
                None => pass_error(&tables, egress, &work.packet),
            };
            if verdict.reason == Reason::IcmpError {
                rewrite::translate_error(&mut frame, &work);
            }
            return (verdict, frame);
        }
        let verdict = decide(&tables, &env, egress, &mut work);
        match verdict.action {
            Action::Drop => {}
            Action::Reply => match rewrite::refuse(&frame, &work.packet, too_long_for(&verdict, &work)) {
                Some(refusal) => frame = refusal,
                None => return (Verdict::drop(Reason::ReplyFailed), frame),
            },
            Action::Pass | Action::Redirect => rewrite::apply(&mut frame, &work.packet, &work.rewrite),
        }
        (verdict, frame)
    }

    fn backend_text(&self, hop: &Hop, id: u32) -> Option<String> {
        let actual = self.control.actual();
        match ether_type(&hop.frame) {
            Some(V6::ETHERTYPE) => backend_in_words::<V6>(actual, id),
            _ => backend_in_words::<V4>(actual, id),
        }
    }
}

/// The MTU of the link that the packet is too long for.
fn too_long_for<F: Family>(verdict: &Verdict, work: &Work<F>) -> Option<u32> {
    (verdict.reason == Reason::TooLong).then_some(work.rewrite.mtu)
}

/// `SERVICE-PORT ADDRESS:PORT`, or the number of a backend that is gone.
pub(super) fn backend_in_words<F: MapFamily>(actual: &proxy_agent::dataplane::Actual, id: u32) -> Option<String> {
    if id == 0 {
        return None;
    }
    let backend = F::tables(actual).backend(id);
    if matches!(backend.state, BackendState::Free) {
        return Some("gone".to_owned());
    }
    let name = actual.port_names.get(&backend.service).map(|name| {
        let end = name.text.iter().position(|byte| *byte == 0).unwrap_or(name.text.len());
        String::from_utf8_lossy(&name.text[..end]).into_owned()
    });
    let address = SocketAddr::new(F::to_ip(backend.addr), backend.port);
    Some(format!("{} {address}", name.unwrap_or_else(|| format!("service-port {}", backend.service))))
}

fn frontends_in_use(flows: &Flows, now_s: u32) -> BTreeSet<IpAddr> {
    fn of<F: RigFamily>(flows: &Flows, now_s: u32) -> BTreeSet<IpAddr> {
        let table = F::flows(flows).conntrack.borrow();
        table.iter().filter_map(|(key, flow)| frontend_of(key, flow, now_s)).collect()
    }
    of::<V4>(flows, now_s).into_iter().chain(of::<V6>(flows, now_s)).collect()
}

impl Machine for ModelMachine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn program(&mut self, events: &[Event]) -> Result<()> {
        self.control.program(events)
    }

    fn network(&mut self, change: &str) -> Result<()> {
        let (_, heard) = self.node.change(change)?;
        self.control.network(heard)
    }

    fn complaints(&self) -> Vec<String> {
        self.control.complaints()
    }

    fn advance(&mut self, seconds: u64) -> Result<()> {
        self.config.fixed_now_ns += seconds * 1_000_000_000;
        let in_use = frontends_in_use(&self.flows, (self.config.fixed_now_ns / 1_000_000_000) as u32);
        self.control.advance(seconds, &in_use)
    }

    fn evict(&mut self, eviction: &Eviction) -> Result<()> {
        self.evict_entry(eviction)
    }

    fn run(&mut self, hop: &Hop) -> Result<Option<Outcome>> {
        self.node.index_of(&hop.place.interface).with_context(|| format!("interface {}", hop.place.interface))?;
        let (verdict, frame) = self.decide(hop);
        Ok(Some(Outcome {
            action: verdict.action,
            reason: verdict.reason,
            interface: (verdict.action == Action::Redirect).then(|| self.node.name_of(verdict.ifindex)),
            backend: self.backend_text(hop, verdict.backend),
            frame,
        }))
    }

    fn dump(&mut self) -> Result<String> {
        self.control.dump()
    }

    fn flows(&mut self) -> Result<Option<String>> {
        Ok(self.same_ids.then(|| flows_text(&self.flows)))
    }
}
