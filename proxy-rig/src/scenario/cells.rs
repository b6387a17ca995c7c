//! Through which hooks and in which families a scenario sends packets, as docs/packets.md names them. Called by the test of
//! that table.

use std::collections::BTreeSet;

use super::file::{PacketStep, Scenario};

impl Scenario {
    /// `in4`, `out6`, `own4` and so on.
    pub(crate) fn cells(&self) -> BTreeSet<String> {
        let mut cells = BTreeSet::new();
        let mut family = '4';
        for packet in self.steps.iter().flat_map(|step| &step.packets) {
            match packet {
                PacketStep::Journey { journey } => {
                    family = if journey.backend.is_ipv6() { '6' } else { '4' };
                    cells.extend([format!("in{family}"), format!("out{family}")]);
                }
                PacketStep::Packet(packet) => {
                    let words = packet.send.as_deref().unwrap_or_default();
                    // `that`, `reply` and `error` go on with the last packet.
                    if words.contains(" > ") {
                        family = if words.contains("::") { '6' } else { '4' };
                    }
                    let side = match packet.at.split_whitespace().skip(1).collect::<Vec<_>>()[..] {
                        ["ingress"] => "in",
                        ["egress"] => "out",
                        _ => "own",
                    };
                    cells.insert(format!("{side}{family}"));
                }
            }
        }
        cells
    }
}
