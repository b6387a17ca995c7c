//! `weir-rig bench packet`: nanoseconds that the loaded tc programs take for a packet, beside a floor program in the same run.
//!
//! BPF_PROG_TEST_RUN repeats a program over one packet, which a translation changes: the second run would see another packet.
//! So a driver program writes the next packet's headers each time and tail-calls the program; what the driver and the test run
//! cost is measured with a program that does nothing, and subtracted.

mod case;
mod measure;
mod probe;
mod report;
mod traffic;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use proxy_common::bench::FLOOR_STEPS;

use crate::{
    demo::progress::Progress,
    scenario::{NodeSpec, SimulatedNode, in_private_netns},
};

#[derive(Debug, clap::Args)]
pub struct PacketArgs {
    /// Runs of each program; the quickest counts
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=40))]
    runs: u32,
    /// What each step of the floor program costs, and nothing else
    #[arg(long)]
    floor_steps: bool,
    /// Only lines whose hook, packets, state and flows contain this text, e.g. "egress, IPv4"
    #[arg(long)]
    only: Option<String>,
    /// Write the figures and all runs to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Exit code 1 when a goal is missed.
pub(super) fn run(args: &PacketArgs) -> Result<ExitCode> {
    let object = probe::Object::read()?;
    let node = SimulatedNode::new(&NodeSpec::default())?;
    if args.floor_steps {
        for version in [traffic::Version::V4, traffic::Version::V6] {
            let steps = in_private_netns(&node, || measure::floor_steps(&object, &node, version, args.runs))?;
            println!("{version:?}");
            for (name, ns) in FLOOR_STEPS.iter().zip(steps) {
                println!("  {name:<28}{ns:>4} ns");
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = |case: &case::Case| {
        let name = format!("{}, {}", case.name(), case.flows.in_words());
        args.only.as_ref().is_none_or(|text| name.contains(text.as_str()))
    };
    let cases: Vec<_> = case::all().into_iter().filter(wanted).collect();
    ensure!(!cases.is_empty(), "no line contains {:?}", args.only.as_deref().unwrap_or_default());
    let progress = Progress::default();
    progress.start("measuring", cases.len());
    let mut figures = Vec::new();
    for case in cases {
        // Maps, links and the CPU it runs on are each line's own.
        let times = in_private_netns(&node, || measure::measure(&object, &node, &case, args.runs))
            .with_context(|| format!("{}, {} flows", case.name(), case.flows.in_words()))?;
        figures.push(report::Figure { case, times });
        progress.step();
    }
    progress.end();
    let met = report::show(&figures, args.json.as_deref())?;
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
