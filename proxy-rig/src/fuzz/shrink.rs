//! A failure made small: acts are left out as long as it still fails; and written down as a scenario file.

use std::fmt::Write;

use anyhow::Result;
use proxy_common::abi::Action;

use super::pair::{Act, Pair};
use crate::scenario::{Expectation, Hop, Machine, ModelMachine, ObjectReader, Scenario, SimulatedNode, hex, tuple_of};

/// Tries; one of them takes as long as the acts that are left.
const TRIES: usize = 600;

/// The smallest list found that still shows a difference, with the difference; nothing if `acts` show none from the start.
pub(super) fn shrink(pair: &mut Pair, mut acts: Vec<Act>) -> Result<Option<(Vec<Act>, String)>> {
    let Some(mut difference) = pair.play(&acts)? else { return Ok(None) };
    let mut tries = 0;
    let mut size = acts.len().div_ceil(2);
    while size > 0 && tries < TRIES {
        let mut at = 0;
        let mut removed = false;
        while at < acts.len() && tries < TRIES {
            let mut fewer = acts.clone();
            fewer.drain(at..(at + size).min(acts.len()));
            tries += 1;
            match pair.play(&fewer)? {
                Some(text) => {
                    (acts, difference, removed) = (fewer, text, true);
                }
                None => at += size,
            }
        }
        if size == 1 && !removed {
            break;
        }
        size = if size == 1 { 1 } else { size / 2 };
    }
    Ok(Some((acts, difference)))
}

/// The acts as a scenario file; what is expected of the packets is what the model says.
pub(super) fn scenario_text(node_text: &str, node: &SimulatedNode, acts: &[Act], note: &str) -> Result<String> {
    let mut text = format!("rules: fuzzed\nintent: {}\n", serde_json::to_string(note)?);
    if !node_text.is_empty() {
        let _ = writeln!(text, "node: {node_text}");
    }
    text += "steps:\n";
    let mut model = ModelMachine::new(node.clone())?;
    let mut reader = ObjectReader::default();
    model.program(&reader.node_events(node.spec())?)?;
    // Within a step: objects, deletions, clock, packets.
    let rank = |act: &Act| match act {
        Act::Apply(_) => 1,
        Act::Delete(_) => 2,
        Act::Age(_) => 3,
        Act::Packet(..) => 4,
    };
    let mut last = 0;
    for act in acts {
        let rank = rank(act);
        let lead = if last == 0 || rank < last { "  - " } else { "    " };
        let header = if rank == last && rank != 3 { "" } else { lead };
        last = if rank == 3 && last == 3 { 0 } else { rank };
        let heading = |title: &str| if header.is_empty() { String::new() } else { format!("{header}{title}:\n") };
        match act {
            Act::Apply(object) => {
                text += &heading("objects");
                let _ = writeln!(text, "      - {object}");
                let mut events = Vec::new();
                reader.object(object.clone(), &mut events)?;
                model.program(&events)?;
            }
            Act::Delete(name) => {
                text += &heading("delete");
                let _ = writeln!(text, "      - {name}");
                model.program(&[crate::scenario::deletion(name)?])?;
            }
            Act::Age(seconds) => {
                let lead = if last == 0 { "  - " } else { lead };
                let _ = writeln!(text, "{lead}advance: {seconds}s");
                model.advance(u64::from(*seconds))?;
                last = 3;
            }
            Act::Packet(place, frame) => {
                text += &heading("packets");
                let hop = Hop::bare(place.clone(), frame.clone());
                let expect = expectation(&mut model, &hop)?;
                let (at, hex) = (place.in_words(), hex(frame));
                let _ = writeln!(text, "      - {{at: {at}, hex: \"{hex}\", expect: \"{expect}\"}}");
            }
        }
    }
    Ok(text)
}

fn expectation(model: &mut ModelMachine, hop: &Hop) -> Result<String> {
    let Some(outcome) = model.run(hop)? else { return Ok("pass".to_owned()) };
    let tuple = tuple_of(&outcome.frame).map(|(protocol, src, dst)| {
        let protocol = match protocol {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            132 => "sctp".to_owned(),
            other => format!("proto={other}"),
        };
        format!(" {protocol} {src} > {dst}")
    });
    let reason = outcome.reason.name();
    let text = match outcome.action {
        Action::Pass if outcome.frame == hop.frame => "pass".to_owned(),
        Action::Pass => format!("pass{}", tuple.unwrap_or_default()),
        Action::Redirect => {
            format!("redirect {}{}", outcome.interface.unwrap_or_default(), tuple.unwrap_or_default())
        }
        Action::Drop => format!("drop {reason}"),
        Action::Reply => format!("refuse {reason}"),
    };
    Expectation::parse(&text, None)?;
    Ok(text)
}

/// The node of a `node:` entry in one line of YAML.
pub(super) fn node_of(text: &str) -> Result<SimulatedNode> {
    let node = if text.is_empty() { "{}" } else { text };
    let scenario = format!("rules: fuzzed\nintent: node\nnode: {node}\nsteps: [{{}}]\n");
    SimulatedNode::new(&Scenario::parse("node", &scenario)?.node)
}
