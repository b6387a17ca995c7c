//! Holds docs/packets.md against the scenarios and the netns suite.

use std::collections::{BTreeMap, BTreeSet};

use super::{netns, scenario_dir};
use crate::scenario::Scenario;

const TABLE: &str = include_str!("../../../docs/packets.md");

/// The cells of each line of the tables.
fn lines() -> Vec<Vec<&'static str>> {
    let rows = TABLE.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    cells.filter(|cells| cells[0] != "what happens").collect()
}

/// What stands between backticks.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_scenario_is_there_and_goes_where_its_line_says() {
    let scenarios: BTreeMap<String, Scenario> =
        Scenario::read_all(&scenario_dir()).unwrap().into_iter().map(|it| (it.name.clone(), it)).collect();
    let mut faults = Vec::new();
    for line in lines() {
        let [what, places, named, _] = line[..] else { panic!("{line:?} is no line of four cells") };
        let mut reached = BTreeSet::new();
        for name in names(named) {
            match scenarios.get(name) {
                Some(scenario) => reached.extend(scenario.cells()),
                None => faults.push(format!("{what}: no scenario {name}")),
            }
        }
        let missing: Vec<&str> = places.split_whitespace().filter(|place| !reached.contains(*place)).collect();
        if !missing.is_empty() {
            faults.push(format!("{what}: no packet at {missing:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_test_is_there_and_no_line_is_empty() {
    let tests: BTreeSet<String> = netns::tests().unwrap().iter().map(|test| test.name().to_owned()).collect();
    let mut faults = Vec::new();
    for line in lines() {
        faults.extend(names(line[3]).filter(|name| !tests.contains(*name)).map(|name| format!("no test {name}")));
        if names(line[2]).chain(names(line[3])).next().is_none() {
            faults.push(format!("nothing shows that: {}", line[0]));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
