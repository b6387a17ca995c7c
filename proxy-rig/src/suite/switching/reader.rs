//! The reading side: one new connection after the other through tc_ingress, each looked at as it leaves.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};

use super::{GROUPS, Progress, SERVICES, VIPS};
use crate::scenario::{Hook, Hop, KernelMachine, PacketSpec, Place, TCX_NEXT, build};

/// Offsets in an IPv4 frame without options.
const SRC: usize = 26;
const DST: usize = 30;
const SRC_PORT: usize = 34;

pub(super) struct Reader<'a> {
    machine: &'a KernelMachine,
    hop: Hop,
    ifindex: u32,
    sent: u32,
}

/// What a run of the reader came to.
#[derive(Default)]
pub(super) struct Seen {
    packets: u64,
    /// Runs that lasted for so many switches that any endpoint would have been right.
    too_long: u64,
    /// Dropped, because the ring was reused under the reader twice.
    stale: u64,
    /// Runs during which a set was switched.
    overlapping: u64,
}

impl Seen {
    pub(super) fn report(&self, what: &str, switches: u64) {
        let Self { packets, too_long, stale, overlapping } = self;
        println!(
            "{switches} {what}: {packets} packets, {overlapping} during a switch, {stale} dropped as stale, {too_long} not judged"
        );
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(machine: &'a KernelMachine) -> Result<Self> {
        let place = Place { interface: "pod2".to_owned(), hook: Hook::Ingress, own: false };
        let packet: PacketSpec = "tcp 198.18.0.0:1024 > 10.96.0.20:80 syn".parse()?;
        let ifindex = machine.index_of(&place.interface)?;
        Ok(Self { machine, hop: Hop::bare(place, build(&packet)), ifindex, sent: 0 })
    }

    pub(super) fn run(mut self, progress: &Progress) -> Result<Seen> {
        let mut seen = Seen::default();
        // The first sets hold all groups.
        while !progress.ended.load(Ordering::Acquire) {
            let service = self.sent as usize % SERVICES.len();
            let first = progress.done[service].load(Ordering::SeqCst);
            let got = self.send(service)?;
            let last = progress.announced[service].load(Ordering::SeqCst);
            seen.packets += 1;
            let Some([_, owner, group, _]) = got else {
                seen.stale += 1;
                continue;
            };
            ensure!(usize::from(owner) == 100 + service, "a packet to {} went to {got:?}", SERVICES[service]);
            if first == 0 {
                continue;
            }
            seen.overlapping += u64::from(last > first);
            if last - first >= GROUPS - 1 {
                seen.too_long += 1;
            } else if !(first..=last).any(|n| n % GROUPS == u64::from(group)) {
                bail!("a packet went to {got:?}, but the sets of its time were {first} to {last} (modulo {GROUPS})");
            }
        }
        ensure!(seen.overlapping > 0, "no packet ran during a switch");
        ensure!(seen.too_long < seen.packets / 2, "{} of {} packets could not be judged", seen.too_long, seen.packets);
        Ok(seen)
    }

    /// A connection that was not there before. The endpoint's address; none if it was dropped as stale.
    pub(super) fn send(&mut self, service: usize) -> Result<Option<[u8; 4]>> {
        let [host, port] = [self.sent >> 15, 1024 + (self.sent & 0x7fff)];
        self.sent = self.sent.wrapping_add(1);
        let frame = &mut self.hop.frame;
        frame[SRC + 2..SRC + 4].copy_from_slice(&(host as u16).to_be_bytes());
        frame[SRC_PORT..SRC_PORT + 2].copy_from_slice(&(port as u16).to_be_bytes());
        frame[DST..DST + 4].copy_from_slice(&VIPS[service]);
        let (returned, frame) = self.machine.test_run(&self.hop, self.ifindex)?;
        if returned == TCX_NEXT {
            let bytes = frame.get(DST..DST + 4).context("a shorter frame came out")?;
            let endpoint: [u8; 4] = bytes.try_into().context("four bytes")?;
            ensure!(
                endpoint != VIPS[service],
                "a packet was not translated: {}",
                self.machine.verdict()?.reason.name()
            );
            return Ok(Some(endpoint));
        }
        let reason = self.machine.verdict()?.reason;
        ensure!(reason == proxy_common::abi::Reason::StaleRing, "a packet was dropped: {}", reason.name());
        Ok(None)
    }
}
