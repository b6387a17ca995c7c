//! `weir-rig fuzz`: random packets, as many as asked for, over each kind of node.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::ValueEnum;
use proxy_rig::{
    fuzz::{NODES, Options, run as fuzz},
    scenario::Hook,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HookName {
    Ingress,
    Egress,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Packets at each hook, divided over the kinds of nodes
    #[arg(long, default_value_t = 100_000)]
    packets: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only packets at this hook (the flows of both need both)
    #[arg(long, value_enum)]
    hook: Option<HookName>,
    /// End after so many seconds on each node, also with fewer packets
    #[arg(long)]
    seconds: Option<u64>,
    /// Only this kind of node (part of its name)
    #[arg(long, default_value = "")]
    node: String,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let hook = args.hook.map(|hook| if hook == HookName::Ingress { Hook::Ingress } else { Hook::Egress });
    let nodes: Vec<_> = NODES.iter().filter(|(name, _)| name.contains(&args.node)).collect();
    let options = Options {
        seed: args.seed,
        packets: Some(args.packets.div_ceil(nodes.len().max(1) as u64)),
        time: args.seconds.map(Duration::from_secs),
        hook,
    };
    let mut failed = false;
    for (name, node) in nodes {
        let (tally, finding) = fuzz(node, &options)?;
        println!("{name}, seed {}: {}", args.seed, tally.in_words());
        if let Some(finding) = finding {
            println!("FAILED: {}", finding.difference);
            failed = true;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
