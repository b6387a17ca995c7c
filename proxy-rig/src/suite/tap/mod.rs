//! A node whose links are TAP devices, with this process at their far ends: part of `weir-rig suite netns`. Packets go in as a
//! driver hands them over (checksums complete, partial or none; up to 64 KiB to be cut later), and every checksum of what comes
//! out is summed up in full. Each test runs with the devices' offloads on (what leaves is as partial and as large as what came)
//! and off (the kernel completes and cuts).
//!
//! * `leg`: the node, its devices and the ways through it; `flow`: one flow over one way.
//! * `errors`: refusals, and ICMP errors about translated packets; `own`: packets of the node's own sockets.

mod errors;
mod flow;
mod leg;
mod own;

use anyhow::{Context, Result};
use futures::future::FutureExt;

use super::netns::flows::OwnTest;
use crate::tap::packet::{TCP, UDP};
use flow::{Direction, Flow, Shape};
use leg::{Leg, Way};

pub(super) const TESTS: &[OwnTest] = &[
    ("tap_outside_to_a_pod_of_this_node", "13, paths", || outside(false).boxed()),
    ("tap_outside_to_a_pod_of_another_node", "13, paths", || outside(true).boxed()),
    ("tap_from_a_pod_to_another_node_and_to_itself", "13, 18, paths", || from_pod().boxed()),
    ("tap_refusals", "11, icmp", || errors::refusals().boxed()),
    ("tap_refusals_are_limited", "11, icmp", || errors::limit().boxed()),
    ("tap_icmp_errors_about_translated_packets", "icmp", || errors::translated().boxed()),
    ("tap_packets_of_the_nodes_own", "paths", || own::packets().boxed()),
];

const TCP_SHAPES: &[Shape] = &[Shape::Complete, Shape::Partial, Shape::Large, Shape::Largest];
const UDP_SHAPES: &[Shape] = &[
    Shape::Complete,
    Shape::Partial,
    Shape::NoChecksum,
    Shape::ZeroBefore,
    Shape::ZeroAfter,
    Shape::ZeroAfterPartial,
    Shape::Large,
];

async fn outside(elsewhere: bool) -> Result<()> {
    let leg = Leg::start().await?;
    let ways = leg.ways_from_outside(elsewhere)?;
    walk_all(&leg, &ways)
}

async fn from_pod() -> Result<()> {
    let leg = Leg::start().await?;
    let ways = leg.ways_from_pod()?;
    walk_all(&leg, &ways)
}

fn walk_all(leg: &Leg, ways: &[Way]) -> Result<()> {
    for offloads in [true, false] {
        leg.set_offloads(offloads)?;
        for way in ways {
            for (protocol, shapes) in [(TCP, TCP_SHAPES), (UDP, UDP_SHAPES)] {
                let context = || {
                    format!(
                        "{}, {} -> {}, protocol {protocol}, offloads {offloads}",
                        way.title, way.client, way.frontend
                    )
                };
                let mut flow = Flow::open(leg, way, protocol, offloads).with_context(context)?;
                for &shape in shapes {
                    if shape == Shape::NoChecksum && way.client.is_ipv6() {
                        continue;
                    }
                    for direction in [Direction::Forward, Direction::Back] {
                        flow.send(direction, shape)
                            .with_context(|| format!("{direction:?} {shape:?}"))
                            .with_context(context)?;
                    }
                }
            }
        }
    }
    Ok(())
}
