//! Plays a scenario on one or more machines: the first gives the outcome, all others must agree. Called by the suites
//! and by `weir-rig scenario`.

use std::{collections::BTreeSet, fmt::Write, net::SocketAddr};

use anyhow::{Context, Result, anyhow, ensure};
use proxy_agent::model::{Event, SkipReason};

use super::{
    evict::Eviction,
    expect::Outcome,
    file::{PacketStep, Scenario, SinglePacket, Step, seconds},
    hop::{Hop, STAGES, journey_hop},
    objects::ObjectReader,
};

/// Something that programs maps and runs packets through them.
pub trait Machine {
    /// For messages.
    fn name(&self) -> &'static str;
    /// Takes over events, until everything is written.
    fn program(&mut self, events: &[Event]) -> Result<()>;
    /// `add INTERFACE CIDR` or `remove INTERFACE CIDR`.
    fn network(&mut self, change: &str) -> Result<()>;
    /// What Services and Pods ask for and do not get.
    fn complaints(&self) -> Vec<String>;
    fn advance(&mut self, seconds: u64) -> Result<()>;
    /// An entry of the connection tables goes.
    fn evict(&mut self, eviction: &Eviction) -> Result<()>;
    /// Nothing if the machine cannot run this packet.
    fn run(&mut self, hop: &Hop) -> Result<Option<Outcome>>;
    /// The programmed maps, sorted, ids written as names.
    fn dump(&mut self) -> Result<String>;
    /// The connection tables, sorted; nothing if they cannot be compared.
    fn flows(&mut self) -> Result<Option<String>>;
}

/// Plays `scenario` and tells in `trace` what happened.
pub fn play(scenario: &Scenario, machines: &mut [Box<dyn Machine + '_>], trace: &mut String) -> Result<()> {
    let mut reader = ObjectReader::default();
    let mut last = None;
    for machine in machines.iter_mut() {
        let events = reader.node_events(&scenario.node)?;
        machine.program(&events).with_context(|| machine.name())?;
    }
    for (number, step) in scenario.steps.iter().enumerate() {
        let _ = writeln!(
            trace,
            "step {}{}",
            number + 1,
            step.say.as_deref().map(|it| format!(": {it}")).unwrap_or_default()
        );
        play_step(step, &mut reader, machines, &mut last, trace).with_context(|| format!("step {}", number + 1))?;
    }
    Ok(())
}

fn play_step(
    step: &Step,
    reader: &mut ObjectReader,
    machines: &mut [Box<dyn Machine + '_>],
    last: &mut Option<Vec<u8>>,
    trace: &mut String,
) -> Result<()> {
    let events = reader.step_events(step)?;
    check_skips(step, &events)?;
    if !events.is_empty() {
        for machine in machines.iter_mut() {
            machine.program(&events).with_context(|| machine.name())?;
        }
    }
    for change in &step.network {
        for machine in machines.iter_mut() {
            machine.network(change).with_context(|| format!("{}: {change}", machine.name()))?;
        }
    }
    if let Some(advance) = &step.advance {
        let _ = writeln!(trace, "  the clock goes on by {advance}");
        for machine in machines.iter_mut() {
            machine.advance(seconds(advance)?).with_context(|| machine.name())?;
        }
    }
    for text in &step.evict {
        let _ = writeln!(trace, "  evicted: {text}");
        let eviction = Eviction::parse(text)?;
        for machine in machines.iter_mut() {
            machine.evict(&eviction).with_context(|| machine.name())?;
        }
    }
    for (number, packet) in step.packets.iter().enumerate() {
        let place = || format!("packet {}", number + 1);
        match packet {
            PacketStep::Packet(packet) => play_packet(packet, machines, last, trace).with_context(place)?,
            PacketStep::Journey { journey } => {
                *last = None;
                for stage in STAGES {
                    let hop = journey_hop(journey, stage, last.as_deref()).with_context(place)?;
                    let outcome =
                        play_hop(&hop, machines, trace).with_context(|| format!("{}, journey: {stage:?}", place()))?;
                    *last = Some(outcome.frame);
                }
            }
        }
    }
    for machine in machines.iter() {
        if let Some(wanted) = &step.complaints {
            check_texts("complaints", wanted, &machine.complaints()).with_context(|| machine.name())?;
        }
    }
    check_maps(step, machines)
}

/// What the objects lack is as the step says; a malformed one that no step speaks of is a typing error in the scenario.
fn check_skips(step: &Step, events: &[Event]) -> Result<()> {
    let skips = || {
        events.iter().flat_map(|event| match event {
            Event::Skipped(skips) => skips.as_slice(),
            _ => &[],
        })
    };
    let Some(wanted) = &step.skipped else {
        let malformed = skips().find(|skip| skip.reason == SkipReason::Malformed);
        return malformed.map_or(Ok(()), |skip| Err(anyhow!("{skip}")));
    };
    let texts: Vec<String> = skips().map(|skip| format!("{} {skip}", skip.reason.as_str())).collect();
    check_texts("skipped", wanted, &texts)
}

/// Each text found holds the one wanted in its place.
fn check_texts(what: &str, wanted: &[String], found: &[String]) -> Result<()> {
    let fits = wanted.len() == found.len() && wanted.iter().zip(found).all(|(part, text)| text.contains(part.as_str()));
    ensure!(fits, "{what}: expected {wanted:#?}, got {found:#?}");
    Ok(())
}

fn play_packet(
    packet: &SinglePacket,
    machines: &mut [Box<dyn Machine + '_>],
    last: &mut Option<Vec<u8>>,
    trace: &mut String,
) -> Result<()> {
    let mut taken = BTreeSet::new();
    for nth in 0..packet.repeat.unwrap_or(1) {
        let hop = Hop::of_packet(packet, last.as_deref(), nth)?;
        let outcome = play_hop(&hop, machines, trace)?;
        if let Some(backend) = outcome.backend.as_deref().and_then(|text| text.rsplit_once(' ')) {
            taken.insert(backend.1.parse::<SocketAddr>()?);
        }
        *last = Some(outcome.frame);
    }
    if let Some(wanted) = &packet.spread {
        let wanted: BTreeSet<SocketAddr> = wanted.iter().copied().collect();
        ensure!(taken == wanted, "expected the backends {wanted:?}, got {taken:?}");
    }
    Ok(())
}

fn play_hop(hop: &Hop, machines: &mut [Box<dyn Machine + '_>], trace: &mut String) -> Result<Outcome> {
    let mut first: Option<(Outcome, Option<String>)> = None;
    for machine in machines.iter_mut() {
        let name = machine.name();
        let Some(outcome) = machine.run(hop).with_context(|| format!("{name}: {}", hop.in_words()))? else { continue };
        let flows = machine.flows().context(name)?;
        let Some((expected, expected_flows)) = &first else {
            let _ = writeln!(trace, "  {:<70} {}", hop.in_words(), outcome.in_words());
            hop.check(&outcome).with_context(|| hop.in_words())?;
            first = Some((outcome, flows));
            continue;
        };
        ensure_equal(hop, expected, &outcome, name)?;
        if let (Some(expected), Some(flows)) = (expected_flows, &flows) {
            let place = hop.in_words();
            ensure!(
                expected == flows,
                "{name}: {place}: the connection tables differ\n{}",
                differences(expected, flows)
            );
        }
    }
    first.map(|(outcome, _)| outcome).ok_or_else(|| anyhow!("no machine to play on"))
}

fn ensure_equal(hop: &Hop, first: &Outcome, outcome: &Outcome, name: &str) -> Result<()> {
    if first == outcome {
        return Ok(());
    }
    let mut text =
        format!("{name} differs at {}: expected {}, got {}", hop.in_words(), first.in_words(), outcome.in_words());
    if first.frame != outcome.frame {
        let _ = write!(text, "\n  expected {}\n  got      {}", hex(&first.frame), hex(&outcome.frame));
    }
    Err(anyhow!(text))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn check_maps(step: &Step, machines: &mut [Box<dyn Machine + '_>]) -> Result<()> {
    let mut first: Option<String> = None;
    for machine in machines.iter_mut() {
        let name = machine.name();
        let dump = machine.dump().context(name)?;
        match &first {
            Some(first) => ensure!(*first == dump, "{name}: the maps differ\n{}", differences(first, &dump)),
            None => first = Some(dump),
        }
    }
    let dump = first.unwrap_or_default();
    if let Some(wanted) = &step.maps {
        ensure!(
            wanted.trim() == dump.trim(),
            "the maps are not as expected\n{}",
            differences(wanted.trim(), dump.trim())
        );
    }
    for line in &step.maps_include {
        ensure!(dump.lines().any(|it| it.trim() == line.trim()), "no line {line:?} in the maps\n{dump}");
    }
    for text in &step.maps_exclude {
        ensure!(!dump.contains(text.as_str()), "{text:?} stands in the maps\n{dump}");
    }
    Ok(())
}

/// The lines that only one of the texts has.
pub(super) fn differences(expected: &str, got: &str) -> String {
    let (left, right): (BTreeSet<&str>, BTreeSet<&str>) = (expected.lines().collect(), got.lines().collect());
    let mut text = String::new();
    for line in left.difference(&right) {
        let _ = writeln!(text, "- {line}");
    }
    for line in right.difference(&left) {
        let _ = writeln!(text, "+ {line}");
    }
    text
}
