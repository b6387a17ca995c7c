//! The two machines without words: what the fuzzer calls for each packet, and whole tables compared, emptied and aged.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aya::{
    Pod,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues},
};
use proxy_common::{
    abi::{Action, Flow, FlowKey, FragEntry, FragKey, REASON_SLOTS, Reason, SnatEntry, names},
    net::{Family, V4, V6},
};

use super::{
    hop::Hop,
    kernel::{FLOW_MAPS_V4, FLOW_MAPS_V6, KernelMachine, TC_ACT_REDIRECT, TC_ACT_SHOT, TCX_NEXT, shortest},
    model::ModelMachine,
    run::differences,
    tables::{Flows, FlowsOf, RigFamily},
};

/// What became of a packet, as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) action: Action,
    pub(crate) reason: Reason,
    /// Target of a redirect.
    pub(crate) ifindex: u32,
    pub(crate) backend: u32,
    /// As it leaves; of a drop, as it came.
    pub(crate) frame: Vec<u8>,
}

impl ModelMachine {
    pub(crate) fn run_raw(&mut self, hop: &Hop) -> Raw {
        let (verdict, frame) = self.decide(hop);
        Raw {
            action: verdict.action,
            reason: verdict.reason,
            ifindex: verdict.ifindex,
            backend: verdict.backend,
            frame,
        }
    }

    /// For the agent's code alone.
    pub(crate) fn pass_time(&mut self, seconds: u64) -> Result<()> {
        // Retired addresses stay: which connections are open is not what is compared here.
        let in_use = self.control.retired();
        self.control.advance(seconds, &in_use)
    }

    pub(crate) fn clear_flows(&mut self) {
        self.flows = Flows::default();
    }

    /// All that the tables remember happened `seconds` earlier. To the decision code, as if the clock had gone on.
    pub(crate) fn age_flows(&mut self, seconds: u32) {
        age(&self.flows.v4, seconds);
        age(&self.flows.v6, seconds);
        for value in self.flows.affinity.borrow_mut().values_mut() {
            value.last_used_s = value.last_used_s.saturating_sub(seconds);
        }
    }
}

fn age<F: Family>(flows: &FlowsOf<F>, seconds: u32) {
    for flow in flows.conntrack.borrow_mut().values_mut().chain(flows.new_flows.borrow_mut().values_mut()) {
        flow.last_seen_s = flow.last_seen_s.saturating_sub(seconds);
        flow.healed_s = flow.healed_s.saturating_sub(seconds);
    }
    for entry in flows.snat.borrow_mut().values_mut().chain(flows.new_snat.borrow_mut().values_mut()) {
        entry.last_seen_s = entry.last_seen_s.saturating_sub(seconds);
    }
    for entry in flows.frags.borrow_mut().values_mut() {
        entry.seen_s = entry.seen_s.saturating_sub(seconds);
    }
}

impl KernelMachine {
    /// Nothing if the kernel does not take the frame.
    pub(crate) fn run_raw(&mut self, hop: &Hop) -> Result<Option<Raw>> {
        if hop.frame.len() < shortest(&hop.frame) {
            return Ok(None);
        }
        let ifindex = self.node.index_of(&hop.place.interface).context("invariant: the node has the interface")?;
        let (returned, frame) = self.test_run(hop, ifindex)?;
        let verdict = self.verdict()?;
        let wanted = match verdict.action {
            Action::Pass => TCX_NEXT,
            Action::Drop => TC_ACT_SHOT,
            Action::Redirect | Action::Reply => TC_ACT_REDIRECT,
        };
        ensure!(returned == wanted, "returned {returned}, recorded {:?} ({})", verdict.action, verdict.reason.name());
        Ok(Some(Raw {
            action: verdict.action,
            reason: verdict.reason,
            ifindex: verdict.ifindex,
            backend: verdict.backend,
            frame: if verdict.action == Action::Drop { hop.frame.clone() } else { frame },
        }))
    }

    /// For the agent's code alone.
    pub(crate) fn pass_time(&mut self, seconds: u64) -> Result<()> {
        // Retired addresses stay: which connections are open is not what is compared here.
        let in_use = self.control.retired();
        self.control.advance(seconds, &in_use)
    }

    pub(crate) fn reason_counts(&self) -> Result<[u64; REASON_SLOTS]> {
        self.counters()
    }

    /// What differs from the tables of the model.
    pub(crate) fn compare_flows(&self, model: &ModelMachine) -> Result<Option<String>> {
        let flows = self.read_all_flows()?;
        if flows == model.flows {
            return Ok(None);
        }
        Ok(Some(differences(&super::flows::flows_text(&model.flows), &super::flows::flows_text(&flows))))
    }

    /// Makes the tables the same as the model's: entries that it lacks go, all others are written.
    pub(crate) fn copy_flows(&mut self, model: &ModelMachine) -> Result<()> {
        self.copy_family::<V4>(&model.flows.v4, &FLOW_MAPS_V4)?;
        self.copy_family::<V6>(&model.flows.v6, &FLOW_MAPS_V6)?;
        self.copy_array(names::CURSORS, self.actual().sets.len(), &model.flows.cursors.borrow())?;
        self.copy_map(names::AFFINITY, &model.flows.affinity.borrow())
    }

    fn copy_family<F: RigFamily>(
        &mut self,
        flows: &FlowsOf<F>,
        [conntrack, new_flows, snat, new_snat, frags]: &[&str; 5],
    ) -> Result<()>
    where
        FlowKey<F>: Pod,
        Flow<F>: Pod,
        SnatEntry<F>: Pod,
        FragKey<F>: Pod,
        FragEntry<F>: Pod,
    {
        self.copy_map(conntrack, &flows.conntrack.borrow())?;
        self.copy_map(new_flows, &flows.new_flows.borrow())?;
        self.copy_map(snat, &flows.snat.borrow())?;
        self.copy_map(new_snat, &flows.new_snat.borrow())?;
        self.copy_array(F::LOADS, F::tables(self.actual()).backends.len(), &flows.loads.borrow())?;
        self.copy_map(frags, &flows.frags.borrow())
    }

    fn copy_array<V: Pod + Default + PartialEq>(
        &mut self,
        name: &str,
        len: usize,
        wanted: &BTreeMap<u32, V>,
    ) -> Result<()> {
        let gone = self.read_used::<V>(name, len)?;
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut array: Array<&mut MapData, V> = map.try_into()?;
        for index in gone.keys().chain(wanted.keys()) {
            let value = wanted.get(index).copied().unwrap_or_default();
            array.set(*index, value, 0).with_context(|| format!("writing to {name}"))?;
        }
        Ok(())
    }

    fn copy_map<K: Pod + Ord, V: Pod>(&mut self, name: &str, wanted: &BTreeMap<K, V>) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map: HashMap<&mut MapData, K, V> = map.try_into()?;
        let gone: Vec<K> = map.keys().collect::<Result<_, _>>()?;
        for key in gone.iter().filter(|key| !wanted.contains_key(key)) {
            map.remove(key).with_context(|| format!("removing from {name}"))?;
        }
        for (key, value) in wanted {
            map.insert(key, value, 0).with_context(|| format!("writing to {name}"))?;
        }
        Ok(())
    }

    /// The kernel side's budget of ICMP errors is one of the real second; the clock of a round stands still.
    pub(crate) fn refill_error_budget(&mut self) -> Result<()> {
        let map = self.ebpf.map_mut("ICMP_BUDGET").context("no map ICMP_BUDGET")?;
        let mut budget: PerCpuArray<_, [u32; 2]> = map.try_into()?;
        let none = PerCpuValues::try_from(vec![[0; 2]; aya::util::nr_cpus().map_err(|(_, error)| error)?])?;
        budget.set(0, none, 0).context("ICMP_BUDGET")
    }
}
