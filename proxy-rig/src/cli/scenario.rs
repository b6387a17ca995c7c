//! `weir-rig scenario FILE`: plays scenario files and prints the trace.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use proxy_rig::scenario::{KernelMachine, Machine, ModelMachine, Scenario, SimulatedNode, in_private_netns, play};

#[derive(Debug, clap::Args)]
pub(crate) struct ScenarioArgs {
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Without the kernel programs (needs no root)
    #[arg(long)]
    model_only: bool,
    /// Print the programmed maps at the end
    #[arg(long)]
    maps: bool,
}

pub(crate) fn run(args: &ScenarioArgs) -> Result<ExitCode> {
    let mut failed = false;
    let kernel = !args.model_only && nix::unistd::geteuid().is_root();
    if !kernel {
        println!("by the model alone");
    }
    for file in &args.files {
        let scenario = Scenario::read(file)?;
        println!("{} (rules {})\n{}", scenario.name, scenario.rules_text(), scenario.intent.trim());
        if let Err(error) = run_one(&scenario, kernel, args.maps) {
            println!("FAILED: {error:#}");
            failed = true;
        }
        println!();
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run_one(scenario: &Scenario, kernel: bool, maps: bool) -> Result<()> {
    let node = SimulatedNode::new(&scenario.node)?;
    let play = |mut machines: Vec<Box<dyn Machine>>| {
        let mut trace = String::new();
        let result = play(scenario, &mut machines, &mut trace);
        print!("{trace}");
        if maps {
            print!("{}", machines[0].dump()?);
        }
        result
    };
    let model = Box::new(ModelMachine::new(node.clone())?);
    if !kernel {
        return play(vec![model]);
    }
    in_private_netns(&node, || play(vec![model, Box::new(KernelMachine::new(node.clone())?)]))
}
