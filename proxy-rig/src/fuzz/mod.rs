//! The packet fuzzer: random objects through the agent's code into the model and into real maps, then random packets through
//! the decision code and through the loaded programs. Bytes, verdict, counters and connection tables must be the same.
//! Called by `weir-rig fuzz` and by `weir-rig suite fuzz`.
//!
//! A round (objects, packets, objects that change, time that passes) depends on the seed and its number alone. What differs
//! is made small and written as a scenario file.

pub mod entry;
mod objects;
mod packets;
mod pair;
mod shrink;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use proxy_common::abi::{Action, REASON_SLOTS};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use self::{
    objects::SERVICES,
    packets::Packets,
    pair::{Act, Pair},
    shrink::{node_of, scenario_text, shrink},
};
use crate::scenario::{Hook, in_private_netns};

/// The nodes that packets go through, as in a scenario's `node:`.
pub const NODES: [(&str, &str); 4] = [
    ("plain", ""),
    ("few-snat-ports", "{snat-ports: 61000-61007}"),
    ("masquerade-all", "{masquerade-all: true, snat-ports: 61000-61063}"),
    (
        "udp-sockets",
        "{nodeport-addresses: [192.168.2.0/24, \"fd00:2::/64\"], udp-sockets: [{local: \"192.168.1.10:40001\", remote: \
         \"10.244.1.10:9376\"}, {local: \"[fd00:1::10]:40001\", remote: \"[fd00:244:1::10]:9376\"}]}",
    ),
];
/// The tables of a round stay far below their limits, where the kernel would begin to evict.
const PACKETS_OF_ROUND: u64 = 1500;
/// Counters and connection tables are compared after so many packets.
const BATCH: u64 = 300;

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Ends after so many packets at each of the hooks in question.
    pub packets: Option<u64>,
    /// Ends after this time.
    pub time: Option<Duration>,
    pub hook: Option<Hook>,
}

/// What a run did.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub rounds: u64,
    pub ingress: u64,
    pub egress: u64,
    /// Frames that the kernel's test run does not take; the model alone had them.
    pub model_only: u64,
    /// Packets that left changed, redirected or as an ICMP error.
    pub changed: u64,
    pub dropped: u64,
    /// Different reasons seen.
    pub reasons: usize,
    pub took: Duration,
}

impl Tally {
    fn enough(&self, options: &Options) -> bool {
        let counted = match options.hook {
            Some(Hook::Ingress) => self.ingress,
            Some(Hook::Egress) => self.egress,
            None => self.ingress.min(self.egress),
        };
        options.packets.is_some_and(|packets| counted >= packets) || options.time.is_some_and(|time| self.took >= time)
    }

    pub fn in_words(&self) -> String {
        let packets = self.ingress + self.egress;
        format!(
            "{} packets at ingress, {} at egress in {:.1} s ({:.0} a second), {} rounds; {} changed or answered, {} dropped, \
             {} reasons seen; {} cut frames through the model alone",
            self.ingress,
            self.egress,
            self.took.as_secs_f64(),
            packets as f64 / self.took.as_secs_f64().max(0.001),
            self.rounds,
            self.changed,
            self.dropped,
            self.reasons,
            self.model_only
        )
    }
}

/// A difference, with the scenario file that shows it.
#[derive(Clone, Debug)]
pub struct Finding {
    pub difference: String,
    pub file: Option<PathBuf>,
}

/// Fuzzes over one of [`NODES`] until the options say enough or something differs. Needs root.
pub fn run(node_text: &str, options: &Options) -> Result<(Tally, Option<Finding>)> {
    let node = node_of(node_text)?;
    in_private_netns(&node, || {
        let mut pair = Pair::new(&node)?;
        let start = Instant::now();
        let mut tally = Tally::default();
        let mut reasons = [false; REASON_SLOTS];
        while !tally.enough(options) {
            let round = Round::new(options, tally.rounds, &mut tally, &mut reasons);
            let (difference, acts) = round.play(&mut pair)?;
            tally.rounds += 1;
            tally.reasons = reasons.iter().filter(|seen| **seen).count();
            tally.took = start.elapsed();
            let Some(difference) = difference else { continue };
            let name = format!("seed {} round {}", options.seed, tally.rounds - 1);
            let Some((acts, difference)) = shrink(&mut pair, acts)? else {
                let difference = format!("{name}: {difference}\nnot seen again when the round was played once more");
                return Ok((tally, Some(Finding { difference, file: None })));
            };
            let text = scenario_text(node_text, &node, &acts, &format!("Found by the fuzzer, {name}."))?;
            let file = std::env::temp_dir().join(format!("fuzzed-{}-{}.yaml", options.seed, tally.rounds - 1));
            std::fs::write(&file, text).with_context(|| file.display().to_string())?;
            let difference = format!("{name}: {difference}\nshrunk to {} acts: {}", acts.len(), file.display());
            return Ok((tally, Some(Finding { difference, file: Some(file) })));
        }
        Ok((tally, None))
    })
}

struct Round<'a> {
    random: StdRng,
    packets: Packets,
    acts: Vec<Act>,
    tally: &'a mut Tally,
    reasons: &'a mut [bool; REASON_SLOTS],
}

impl<'a> Round<'a> {
    fn new(options: &Options, number: u64, tally: &'a mut Tally, reasons: &'a mut [bool; REASON_SLOTS]) -> Self {
        let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
        let random = StdRng::seed_from_u64(seed);
        Self { random, packets: Packets::new(options.hook), acts: Vec::new(), tally, reasons }
    }

    /// The first difference, and all that happened.
    fn play(mut self, pair: &mut Pair) -> Result<(Option<String>, Vec<Act>)> {
        pair.reset()?;
        let mut first = Vec::new();
        for number in 0..SERVICES {
            first.extend(objects::service(&mut self.random, number).into_iter().map(Act::Apply));
        }
        self.change(pair, first)?;
        let mut difference = pair.programmed()?;
        for nth in 1..=PACKETS_OF_ROUND {
            if difference.is_some() {
                break;
            }
            difference = self.packet(pair)?;
            if difference.is_none() && nth % BATCH == 0 {
                difference = pair.tables()?;
                self.meanwhile(pair)?;
            }
        }
        Ok((difference, self.acts))
    }

    fn change(&mut self, pair: &mut Pair, acts: Vec<Act>) -> Result<()> {
        pair.change(&acts)?;
        self.acts.extend(acts);
        Ok(())
    }

    fn packet(&mut self, pair: &mut Pair) -> Result<Option<String>> {
        let (place, frame) = self.packets.next(&mut self.random);
        let outcome = pair
            .packet(&place, &frame)
            .with_context(|| format!("{} {}", place.in_words(), crate::scenario::hex(&frame)))?;
        match place.hook {
            _ if matches!(outcome, Ok(None)) => {}
            Hook::Ingress => self.tally.ingress += 1,
            Hook::Egress => self.tally.egress += 1,
        }
        let raw = match outcome {
            Ok(Some(raw)) => raw,
            Ok(None) => {
                self.tally.model_only += 1;
                return Ok(None);
            }
            Err(difference) => {
                self.acts.push(Act::Packet(place, frame));
                return Ok(Some(difference));
            }
        };
        self.reasons[raw.reason as usize] = true;
        if raw.action == Action::Drop {
            self.tally.dropped += 1;
        } else {
            let changed = raw.frame != frame || raw.action != Action::Pass;
            self.tally.changed += u64::from(changed);
            // Most of what passes untouched is nobody's.
            if changed || self.random.random_bool(0.05) {
                self.packets.left(&mut self.random, raw.frame);
            }
        }
        self.acts.push(Act::Packet(place, frame));
        Ok(None)
    }

    /// Between two batches objects change, or time passes.
    fn meanwhile(&mut self, pair: &mut Pair) -> Result<()> {
        match self.random.random_range(0..4) {
            0 => {
                let seconds = *[1, 2, 5, 30, 121, 400, 4000, 90_000].choose(&mut self.random).unwrap_or(&1);
                pair.age(seconds)?;
                self.acts.push(Act::Age(seconds));
            }
            1 | 2 => {
                let number = self.random.random_range(0..SERVICES);
                let changed = objects::service(&mut self.random, number);
                self.change(pair, changed.into_iter().map(Act::Apply).collect())?;
            }
            _ => {
                let number = self.random.random_range(0..SERVICES);
                let gone =
                    *["Service/s#", "EndpointSlice/s#-4", "EndpointSlice/s#-6"].choose(&mut self.random).unwrap_or(&"");
                self.change(pair, vec![Act::Delete(gone.replace('#', &number.to_string()))])?;
            }
        }
        Ok(())
    }
}
