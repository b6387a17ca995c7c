//! Each scenario without a kernel, once as it is and once with maps that fail.

use anyhow::Result;
use libtest_mimic::Trial;

use super::{play_or_tell, scenario_dir};
use crate::scenario::{Machine, ModelMachine, Scenario, SimulatedNode};

pub(super) fn tests() -> Result<Vec<Trial>> {
    let scenarios = Scenario::read_all(&scenario_dir())?;
    Ok(scenarios
        .into_iter()
        .map(|scenario| {
            Trial::test(scenario.name.clone(), move || test(&scenario).map_err(|error| format!("{error:#}").into()))
        })
        .collect())
}

fn test(scenario: &Scenario) -> Result<()> {
    let node = SimulatedNode::new(&scenario.node)?;
    let mut machines: Vec<Box<dyn Machine>> = vec![Box::new(ModelMachine::new(node.clone())?)];
    play_or_tell(scenario, &mut machines)?;
    // Ids may differ after a failed write; what is programmed, and what becomes of packets, may not.
    for seed in 0..3 {
        let mut machines: Vec<Box<dyn Machine>> =
            vec![Box::new(ModelMachine::new(node.clone())?), Box::new(ModelMachine::failing(node.clone(), seed)?)];
        play_or_tell(scenario, &mut machines)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_documentation_is_right() {
        let text = include_str!("../../../docs/testing.md");
        let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        test(&Scenario::parse("example", example).unwrap()).unwrap();
    }
}
