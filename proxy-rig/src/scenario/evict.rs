//! Takes single entries out of the connection tables, as the kernel's LRU does when they are full. Called by run.rs for a
//! step's `evict`.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use proxy_agent::dataplane::MapFamily;
use proxy_common::{
    abi::{Flow, FlowKey, FlowKind, SnatEntry},
    net::{V4, V6},
};

use super::{
    kernel::{FLOW_MAPS_V4, FLOW_MAPS_V6, KernelMachine},
    model::ModelMachine,
    notation::TuplePattern,
    tables::{Flows, FlowsOf},
};

/// Which entry: `forward|reply|source|snat PROTOCOL SRC > DST`, the tuple being its key.
pub struct Eviction {
    text: String,
    /// None: in SNAT.
    kind: Option<FlowKind>,
    tuple: TuplePattern,
}

/// The entries that fit.
struct Found<F: MapFamily> {
    flows: Vec<FlowKey<F>>,
    snat: Vec<FlowKey<F>>,
}

impl Eviction {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (kind, tuple) = words.split_first().context("an empty eviction")?;
        let kind = match *kind {
            "forward" => Some(FlowKind::Forward),
            "reply" => Some(FlowKind::Reply),
            "source" => Some(FlowKind::Source),
            "snat" => None,
            _ => bail!("expected forward, reply, source or snat, got {text:?}"),
        };
        Ok(Self { text: text.to_owned(), kind, tuple: TuplePattern::parse(tuple)? })
    }

    fn fits<F: MapFamily>(&self, key: &FlowKey<F>) -> bool {
        let [src, dst] = [(key.src, key.src_port), (key.dst, key.dst_port)]
            .map(|(address, port)| SocketAddr::new(F::to_ip(address), port));
        self.tuple.matches(key.protocol, src, dst)
    }

    fn find<F: MapFamily>(&self, tables: &FlowsOf<F>) -> Found<F> {
        let (conntrack, new_flows) = (tables.conntrack.borrow(), tables.new_flows.borrow());
        let flows = conntrack.iter().chain(new_flows.iter());
        let flows = flows.filter(|(key, flow)| Some(flow.kind) == self.kind && self.fits(key)).map(|(key, _)| *key);
        let (snat, new_snat) = (tables.snat.borrow(), tables.new_snat.borrow());
        let entries = snat.keys().chain(new_snat.keys());
        let entries = entries.filter(|key| self.kind.is_none() && self.fits(key)).copied();
        Found { flows: flows.collect(), snat: entries.collect() }
    }

    /// A scenario names one entry that is there.
    fn find_one(&self, all: &Flows) -> Result<(Found<V4>, Found<V6>)> {
        let (v4, v6) = (self.find(&all.v4), self.find(&all.v6));
        let count = v4.flows.len() + v4.snat.len() + v6.flows.len() + v6.snat.len();
        ensure!(count == 1, "{count} entries fit {:?}\n{}", self.text, super::flows::flows_text(all));
        Ok((v4, v6))
    }
}

impl ModelMachine {
    pub(super) fn evict_entry(&mut self, eviction: &Eviction) -> Result<()> {
        let (v4, v6) = eviction.find_one(&self.flows)?;
        remove(&self.flows.v4, &v4);
        remove(&self.flows.v6, &v6);
        Ok(())
    }
}

fn remove<F: MapFamily>(tables: &FlowsOf<F>, gone: &Found<F>) {
    for key in &gone.flows {
        tables.conntrack.borrow_mut().remove(key);
        tables.new_flows.borrow_mut().remove(key);
    }
    for key in &gone.snat {
        tables.snat.borrow_mut().remove(key);
        tables.new_snat.borrow_mut().remove(key);
    }
}

impl KernelMachine {
    pub(super) fn evict_entry(&mut self, eviction: &Eviction) -> Result<()> {
        let (v4, v6) = eviction.find_one(&self.read_all_flows()?)?;
        self.remove_keys(&FLOW_MAPS_V4, &v4)?;
        self.remove_keys(&FLOW_MAPS_V6, &v6)
    }

    fn remove_keys<F: MapFamily>(
        &mut self,
        [conntrack, new_flows, snat, new_snat, _]: &[&str; 5],
        gone: &Found<F>,
    ) -> Result<()>
    where
        FlowKey<F>: Pod,
        Flow<F>: Pod,
        SnatEntry<F>: Pod,
    {
        for name in [conntrack, new_flows] {
            self.remove_from::<FlowKey<F>, Flow<F>>(name, &gone.flows)?;
        }
        for name in [snat, new_snat] {
            self.remove_from::<FlowKey<F>, SnatEntry<F>>(name, &gone.snat)?;
        }
        Ok(())
    }

    /// It is in one of two tables.
    fn remove_from<K: Pod, V: Pod>(&mut self, name: &str, keys: &[K]) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map: HashMap<&mut MapData, K, V> = map.try_into()?;
        for key in keys {
            if map.get(key, 0).is_ok() {
                map.remove(key).with_context(|| format!("removing from {name}"))?;
            }
        }
        Ok(())
    }
}
