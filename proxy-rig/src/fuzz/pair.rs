//! The model and the loaded programs side by side: takes over what happens, one act after the other, and says what differs.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use proxy_common::abi::{Action, REASON_SLOTS, Reason};
use serde_json::Value;

use crate::scenario::{
    Hop, KernelMachine, Machine, ModelMachine, ObjectReader, Place, Raw, SimulatedNode, checksums_are_right, hex,
};

/// Ids of what went with a round are free again after this time.
const BETWEEN_ROUNDS_S: u64 = 100_000;

/// One thing that happens.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// An object appears or changes.
    Apply(Value),
    /// `Kind/name`.
    Delete(String),
    /// Seconds pass.
    Age(u32),
    Packet(Place, Vec<u8>),
}

pub(super) struct Pair {
    model: ModelMachine,
    kernel: KernelMachine,
    reader: ObjectReader,
    /// Objects that are there, as `Kind/name`.
    present: BTreeSet<String>,
    counts: [u64; REASON_SLOTS],
}

impl Pair {
    pub(super) fn new(node: &SimulatedNode) -> Result<Self> {
        let mut model = ModelMachine::new(node.clone())?;
        let mut kernel = KernelMachine::new(node.clone())?;
        let reader = ObjectReader::default();
        let events = reader.node_events(node.spec())?;
        model.program(&events)?;
        kernel.program(&events)?;
        let counts = kernel.reason_counts()?;
        Ok(Self { model, kernel, reader, present: BTreeSet::new(), counts })
    }

    /// No objects, no flows.
    pub(super) fn reset(&mut self) -> Result<()> {
        let all: Vec<Act> = std::mem::take(&mut self.present).into_iter().map(Act::Delete).collect();
        self.change(&all)?;
        self.model.pass_time(BETWEEN_ROUNDS_S)?;
        self.kernel.pass_time(BETWEEN_ROUNDS_S)?;
        self.model.clear_flows();
        self.kernel.copy_flows(&self.model)?;
        self.kernel.refill_error_budget()?;
        self.counts = self.kernel.reason_counts()?;
        Ok(())
    }

    /// Takes over objects that appear, change or go.
    pub(super) fn change(&mut self, acts: &[Act]) -> Result<()> {
        let mut events = Vec::new();
        for act in acts {
            match act {
                Act::Apply(object) => {
                    self.present.insert(name_of(object)?);
                    self.reader.object(object.clone(), &mut events)?;
                }
                Act::Delete(name) => {
                    self.present.remove(name);
                    events.push(crate::scenario::deletion(name)?);
                }
                Act::Age(_) | Act::Packet(..) => {}
            }
        }
        self.model.program(&events)?;
        self.kernel.program(&events)
    }

    pub(super) fn age(&mut self, seconds: u32) -> Result<()> {
        self.model.pass_time(u64::from(seconds))?;
        self.kernel.pass_time(u64::from(seconds))?;
        self.model.age_flows(seconds);
        self.kernel.copy_flows(&self.model)?;
        self.kernel.refill_error_budget()
    }

    /// What both say of a packet, if the kernel takes it; the inner error names a difference.
    pub(super) fn packet(&mut self, place: &Place, frame: &[u8]) -> Result<Result<Option<Raw>, String>> {
        let hop = Hop::bare(place.clone(), frame.to_vec());
        let Some(kernel) = self.kernel.run_raw(&hop)? else {
            // The kernel's test run takes no such frame; the model must survive it, without a trace.
            let model = self.model.run_raw(&hop);
            if model.action != Action::Pass || model.frame != frame {
                return Ok(Err(format!("a frame without network header: {}", in_words(&model))));
            }
            return Ok(Ok(None));
        };
        self.counts[kernel.reason as usize] += 1;
        let model = self.model.run_raw(&hop);
        if model != kernel {
            return Ok(Err(format!("model: {}\nkernel: {}", in_words(&model), in_words(&kernel))));
        }
        let wrong_checksum = kernel.frame != frame && checksums_are_right(frame) && !checksums_are_right(&kernel.frame);
        if wrong_checksum {
            return Ok(Err(format!("both leave a wrong checksum: {}", in_words(&kernel))));
        }
        Ok(Ok(Some(model)))
    }

    /// What differs in the counters and in the connection tables.
    pub(super) fn tables(&mut self) -> Result<Option<String>> {
        self.kernel.refill_error_budget()?;
        let counts = self.kernel.reason_counts()?;
        for reason in Reason::ALL {
            let (expected, got) = (self.counts[*reason as usize], counts[*reason as usize]);
            if expected != got {
                return Ok(Some(format!("counter {}: {expected} packets, counted {got}", reason.name())));
            }
        }
        Ok(self.kernel.compare_flows(&self.model)?.map(|text| format!("the connection tables differ\n{text}")))
    }

    /// What differs in the maps that the agent's code wrote.
    pub(super) fn programmed(&mut self) -> Result<Option<String>> {
        let (model, kernel) = (self.model.dump()?, self.kernel.dump()?);
        Ok((model != kernel).then(|| format!("the programmed maps differ\n{model}\n---\n{kernel}")))
    }

    /// Plays acts from nothing; the first difference.
    pub(super) fn play(&mut self, acts: &[Act]) -> Result<Option<String>> {
        self.reset()?;
        let mut rest = acts;
        while let Some(act) = rest.first() {
            let objects = rest.iter().take_while(|act| matches!(act, Act::Apply(_) | Act::Delete(_))).count();
            match act {
                Act::Age(seconds) => self.age(*seconds)?,
                Act::Packet(place, frame) => {
                    if let Err(difference) = self.packet(place, frame)? {
                        return Ok(Some(difference));
                    }
                }
                Act::Apply(_) | Act::Delete(_) => self.change(&rest[..objects])?,
            }
            rest = &rest[objects.max(1)..];
        }
        self.tables()
    }
}

fn name_of(object: &Value) -> Result<String> {
    let kind = object["kind"].as_str().context("an object without kind")?;
    let name = object["metadata"]["name"].as_str().context("an object without name")?;
    Ok(format!("{kind}/{name}"))
}

fn in_words(raw: &Raw) -> String {
    format!(
        "{:?} ({}) interface {} backend {} {}\n  {}",
        raw.action,
        raw.reason.name(),
        raw.ifindex,
        raw.backend,
        crate::scenario::describe(&raw.frame),
        hex(&raw.frame)
    )
}
