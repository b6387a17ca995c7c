//! The writing side: the reconciler's store, driven as the reconciler drives it, or the agent's whole way from objects on.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use proxy_agent::dataplane::{Dataplane, KernelMaps, MapOp};
use proxy_common::{
    abi::{EndpointSet, RingSlot, ServiceKey, capacity},
    net::TCP,
};

use super::{GROUPS, MEMBERS, Progress, SERVICES, VIPS, endpoint, first_events, members_of, nth_set, slice};
use crate::scenario::{Control, KernelMachine, ObjectReader};

/// A range rests this long before it is written again, as in the reconciler.
const GRACE: Duration = Duration::from_secs(1);
/// Behind the ranges of the machine's own reconciler.
const FIRST_SLOT: u32 = 8192;
/// Slots whose rest is watched together.
const CHUNK: u32 = 8192;
/// So that the ranges of one second of grace fit in the ring.
const RECONCILED_PER_SECOND: u64 = 4_000;

pub(super) struct SetWriter {
    maps: KernelMaps,
    /// Per Service: set, and backend ids by group and member.
    services: Vec<(u32, Vec<u32>)>,
    /// What each set points at.
    standing: [EndpointSet; 2],
    next_slot: u32,
    /// When each chunk was last left.
    left: Vec<Option<Instant>>,
}

impl SetWriter {
    pub(super) fn new(machine: &KernelMachine) -> Result<Self> {
        let v4 = &machine.actual().v4;
        let mut services = Vec::new();
        for (service, vip) in VIPS.iter().enumerate() {
            let key = ServiceKey { addr: std::net::Ipv4Addr::from(*vip).into(), port: 80, protocol: TCP, zero: 0 };
            let set = v4.services.get(&key).context("the Service is not in the maps")?.internal_set;
            let id_of = |(group, member)| {
                let address = std::net::Ipv4Addr::from(endpoint(service, group, member)).into();
                let id = v4.backends.iter().position(|backend| backend.addr == address);
                id.map(|id| id as u32).context("an endpoint is not in the maps")
            };
            services.push((set, (0..GROUPS).flat_map(members_of).map(id_of).collect::<Result<_>>()?));
        }
        let chunks = (capacity::RINGS as u32 - FIRST_SLOT) / CHUNK;
        Ok(Self {
            maps: machine.second_dataplane()?,
            services,
            standing: [EndpointSet { start: 0, len: 0 }; 2],
            next_slot: 0,
            left: vec![None; chunks as usize],
        })
    }

    /// Switches the two sets in turns: a new range, then the set's word.
    pub(super) fn switch(&mut self, progress: &Progress, times: u64) -> Result<()> {
        for switch in 0..times {
            if progress.ended.load(Ordering::Relaxed) {
                return Ok(());
            }
            let service = (switch % SERVICES.len() as u64) as usize;
            let nth = switch / SERVICES.len() as u64 + 1;
            let (set, ids) = &self.services[service];
            let set = *set;
            let slot = |(group, member)| RingSlot { backend: ids[(group * MEMBERS + member) as usize], set };
            let slots: Vec<RingSlot> = nth_set(nth).into_iter().map(slot).collect();
            let range = EndpointSet { start: self.take(slots.len() as u32), len: slots.len() as u32 };
            self.maps.apply(&MapOp::WriteRing { start: range.start, slots })?;
            progress.announced[service].store(nth, Ordering::SeqCst);
            self.maps.apply(&MapOp::WriteSet { index: set, set: range })?;
            progress.done[service].store(nth, Ordering::SeqCst);
            self.standing[service] = range;
        }
        Ok(())
    }

    /// A range that nobody has pointed at for the time of grace.
    fn take(&mut self, len: u32) -> u32 {
        let chunk_of = |slot: u32| (slot / CHUNK) as usize;
        if self.next_slot % CHUNK + len > CHUNK {
            self.next_slot += CHUNK - self.next_slot % CHUNK;
        }
        if chunk_of(self.next_slot) == self.left.len() {
            self.next_slot = 0;
        }
        if self.next_slot.is_multiple_of(CHUNK) {
            // The last two ranges of the chunk before may still stand; they are left within two switches.
            let chunk = chunk_of(self.next_slot);
            let before = if chunk == 0 { self.left.len() - 1 } else { chunk - 1 };
            self.left[before] = Some(Instant::now());
            if let Some(left) = self.left[chunk] {
                thread::sleep(GRACE.saturating_sub(left.elapsed()));
            }
        }
        let slot = self.next_slot;
        self.next_slot += len;
        FIRST_SLOT + slot
    }

    /// The first Service's set names slots of the second one's.
    pub(super) fn point_first_at_second(&mut self) -> Result<()> {
        Ok(self.maps.apply(&MapOp::WriteSet { index: self.services[0].0, set: self.standing[1] })?)
    }
}

/// The same by EndpointSlices that change, through snapshot, desired state and reconciler, in real time.
pub(super) fn program_switches(control: &mut Control<KernelMaps>, progress: &Progress, times: u64) -> Result<()> {
    let mut reader = ObjectReader::default();
    control.program(&first_events(&mut reader)?)?;
    let started = Instant::now();
    for switch in 0..times {
        if progress.ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        let service = (switch % SERVICES.len() as u64) as usize;
        let nth = switch / SERVICES.len() as u64 + 1;
        let mut events = Vec::new();
        reader.object(slice(service, &nth_set(nth)), &mut events)?;
        let due = Duration::from_secs(switch) / RECONCILED_PER_SECOND as u32;
        thread::sleep(due.saturating_sub(started.elapsed()));
        control.catch_up();
        progress.announced[service].store(nth, Ordering::SeqCst);
        control.program(&events)?;
        progress.done[service].store(nth, Ordering::SeqCst);
    }
    Ok(())
}
