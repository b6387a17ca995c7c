//! What a restart, a crash, an upgrade and a downgrade of the agents do to flows that are open meanwhile: nothing. Each test has one
//! world and one set of flows, which go through all of it, and prints a table at the end. Part of the netns suite.
//!
//! The version to upgrade to is `weir-next`, the same sources with another layout of the tables (feature `abi-next`), which
//! `cargo xtask test` builds.

mod agents;
mod attached;
mod held;
mod script;
mod ways;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, bail};
use futures::future::{FutureExt, try_join_all};

use self::{
    agents::Agents,
    attached::Watch,
    held::Held,
    ways::{WAYS, new_flows_work},
};
use super::netns::flows::OwnTest;
use crate::{call::Proto, demo::stage::Stage, world::weir_binary};

pub(super) const TESTS: &[OwnTest] = &[
    ("flows_outlive_restarts", "14, Choices", || test(Part::Restarts).boxed()),
    ("flows_outlive_crashes_at_every_step", "14, Choices", || test(Part::Crashes).boxed()),
    ("flows_outlive_upgrades_and_downgrades", "14, Choices", || test(Part::Upgrades).boxed()),
];

#[derive(Clone, Copy, Debug)]
enum Part {
    Restarts,
    Crashes,
    Upgrades,
}

/// Whether the second build is there.
pub(super) fn are_possible() -> bool {
    crate::world::weir_next_binary().is_ok()
}

/// Everything that a part of the script has at hand.
struct Scene<'a> {
    stage: &'a Stage,
    agents: Agents,
    held: &'a [Held<'a>],
    /// Opened at the beginning, and silent while something happens.
    silent: &'a [Held<'a>],
    rows: Vec<Row>,
}

/// A line of the table.
struct Row {
    kind: &'static str,
    times: usize,
    tcp: Seen,
    udp: Seen,
}

#[derive(Default)]
struct Seen {
    flows: usize,
    lost: usize,
    gap: Duration,
    answers: usize,
}

async fn test(part: Part) -> Result<()> {
    let mut stage = ways::start().await?;
    let mut cluster = stage.take_cluster();
    let mut agents = Agents::of_dir(&stage, cluster.dir(), weir_binary()?);
    agents.start().await?;
    let (mut held, mut silent) = (Vec::new(), Vec::new());
    for way in &WAYS {
        held.push(Held::open(&stage, way).await?);
        if way.proto == Proto::Tcp {
            silent.push(Held::open(&stage, way).await?);
        }
    }
    let watches = stage.world.nodes().iter().map(Watch::start).collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    let flows = try_join_all(held.iter().map(|flow| flow.run(&stop)));
    let mut scene = Scene { stage: &stage, agents, held: &held, silent: &silent, rows: Vec::new() };
    let script = async {
        let result = script::play(&mut scene, part, &mut cluster).await;
        stop.store(true, Ordering::Relaxed);
        result
    };
    let (flows, script) = futures::join!(flows, script);
    print(&scene.rows);
    flows?;
    script?;
    for watch in watches {
        println!("{}", watch.end()?);
    }
    Ok(())
}

impl Scene<'_> {
    /// After a part of the script: no flow was lost, and new ones work.
    async fn check(&mut self, kind: &'static str, times: usize) -> Result<()> {
        new_flows_work(self.stage, kind).await?;
        for flow in self.silent {
            flow.still_works().await?;
        }
        let (mut row, mut lost) = (Row { kind, times, tcp: Seen::default(), udp: Seen::default() }, Vec::new());
        for (flow, way) in self.held.iter().zip(&WAYS) {
            let report = flow.report();
            let seen = if way.proto == Proto::Tcp { &mut row.tcp } else { &mut row.udp };
            seen.flows += 1;
            seen.lost += usize::from(report.lost.is_some());
            seen.gap = seen.gap.max(report.gap);
            seen.answers += report.answers;
            lost.extend(report.lost);
        }
        self.rows.push(row);
        if lost.is_empty() { Ok(()) } else { bail!("{kind}: flows were lost:\n{}", lost.join("\n")) }
    }
}

fn print(rows: &[Row]) {
    println!(
        "\n| what | times | TCP flows | lost | longest gap (ms) | UDP flows | lost | longest gap (ms) | answers |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for Row { kind, times, tcp, udp } in rows {
        println!(
            "| {kind} | {times} | {} | {} | {} | {} | {} | {} | {} |",
            tcp.flows,
            tcp.lost,
            tcp.gap.as_millis(),
            udp.flows,
            udp.lost,
            udp.gap.as_millis(),
            tcp.answers + udp.answers
        );
    }
}
