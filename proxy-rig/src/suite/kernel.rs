//! Each scenario through the loaded kernel programs, beside the model; sets that are switched while packets read them; and what
//! schedulers count.

use anyhow::Result;
use libtest_mimic::Trial;

use super::{play_or_tell, root_trial, scenario_dir, schedulers, switching};
use crate::scenario::{KernelMachine, Machine, ModelMachine, Scenario, SimulatedNode, in_private_netns};

pub(super) fn tests() -> Result<Vec<Trial>> {
    let scenarios = Scenario::read_all(&scenario_dir())?;
    let mut tests: Vec<Trial> = scenarios
        .into_iter()
        .map(|scenario| {
            let name = scenario.name.clone();
            root_trial(&name, move || test(&scenario))
        })
        .collect();
    tests.extend(switching::tests());
    tests.extend(schedulers::tests());
    Ok(tests)
}

fn test(scenario: &Scenario) -> Result<()> {
    let node = SimulatedNode::new(&scenario.node)?;
    in_private_netns(&node, || {
        let mut machines: Vec<Box<dyn Machine>> =
            vec![Box::new(ModelMachine::new(node.clone())?), Box::new(KernelMachine::new(node.clone())?)];
        play_or_tell(scenario, &mut machines)
    })
}
