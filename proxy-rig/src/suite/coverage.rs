//! `weir-rig coverage`: which scenarios and which tests with real sockets show which rule. `docs/scenarios.md` is made by it, a
//! test below sees that the page is right, and `cargo xtask test` prints the counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};

use super::{agent, netns, scenario_dir};
use crate::scenario::Scenario;

/// What `rules:` may name (docs/rules.md), in the order of the table.
const RULES: [(&str, &str); 26] = [
    ("1", "what is looked at"),
    ("2", "service-ports and families"),
    ("3", "slices"),
    ("4", "conditions"),
    ("5", "duplicates"),
    ("6", "load balancer addresses and spellings"),
    ("7", "topology"),
    ("8", "the cluster set"),
    ("9", "the local set"),
    ("10", "what the policies govern"),
    ("11", "no endpoint: refused or dropped"),
    ("12", "unknown ports and addresses"),
    ("13", "exact frontends, then NodePorts"),
    ("14", "open flows stay"),
    ("15", "externalTrafficPolicy Local"),
    ("16", "source ranges"),
    ("17", "session affinity"),
    ("18", "hairpin"),
    ("19", "addresses of NodePorts"),
    ("20", "host ports"),
    ("schedulers", "algorithms and weights"),
    ("choices", "differences from kube-proxy"),
    ("bad-input", "malformed objects"),
    ("parsing", "what packets look like"),
    ("icmp", "ICMP errors"),
    ("paths", "ways through the node"),
];
/// The corpus and the tests with sockets never become smaller than this.
const FEWEST: (usize, usize) = (150, 40);

#[derive(Debug, clap::Args)]
pub struct CoverageArgs {
    /// Write docs/scenarios.md anew
    #[arg(long)]
    write: bool,
}

/// Names by rule.
#[derive(Default)]
struct Coverage {
    scenarios: BTreeMap<&'static str, BTreeSet<String>>,
    tests: BTreeMap<&'static str, BTreeSet<String>>,
    intents: BTreeMap<String, String>,
    test_names: BTreeSet<String>,
}

/// Prints how many scenarios and tests each rule has. Fails if one has none, or if the page is not right.
pub fn run(args: &CoverageArgs) -> Result<ExitCode> {
    let coverage = Coverage::collect()?;
    if args.write {
        fs::write(page_path(), coverage.page()).context("docs/scenarios.md")?;
    }
    println!("rule        scenarios  with sockets");
    for (rule, title) in RULES {
        println!(
            "{rule:<12}{:>9}  {:>12}  {title}",
            coverage.scenarios_of(rule).count(),
            coverage.tests_of(rule).count()
        );
    }
    println!("all         {:>9}  {:>12}", coverage.intents.len(), coverage.test_names.len());
    coverage.check()?;
    Ok(ExitCode::SUCCESS)
}

fn page_path() -> PathBuf {
    scenario_dir().join("../docs/scenarios.md")
}

/// The rule that a word of a `rules:` line names: `15a` is part of 15, `Choices` is `choices`.
fn rule_of(word: &str) -> Result<&'static str> {
    let word = word.trim().to_lowercase();
    let number = word.trim_end_matches(['a', 'b', 'c']);
    let known = RULES
        .into_iter()
        .map(|(rule, _)| rule)
        .find(|rule| *rule == word || (*rule == number && number.bytes().all(|byte| byte.is_ascii_digit())));
    known.with_context(|| format!("no rule and no topic is called {word:?} (docs/rules.md)"))
}

impl Coverage {
    fn collect() -> Result<Self> {
        let mut coverage = Self::default();
        for scenario in Scenario::read_all(&scenario_dir())? {
            for word in scenario.rules_text().split(',') {
                let rule = rule_of(word).with_context(|| scenario.name.clone())?;
                coverage.scenarios.entry(rule).or_default().insert(scenario.name.clone());
            }
            coverage.intents.insert(scenario.name.clone(), scenario.intent.trim().replace('\n', " "));
        }
        for (suite, trials) in [("netns", netns::tests()?), ("agent", agent::tests()?)] {
            for trial in trials {
                let name = format!("{suite} {}", trial.name());
                let words = trial.kind().trim_start_matches("rules ").to_owned();
                // Some are about no rule of a Service but about the rig, or packets as such.
                let rules: Vec<_> = words.split(',').filter_map(|word| rule_of(word).ok()).collect();
                for rule in &rules {
                    coverage.tests.entry(rule).or_default().insert(name.clone());
                }
                if !rules.is_empty() {
                    coverage.test_names.insert(name);
                }
            }
        }
        Ok(coverage)
    }

    fn scenarios_of(&self, rule: &str) -> impl Iterator<Item = &String> {
        self.scenarios.get(rule).into_iter().flatten()
    }

    fn tests_of(&self, rule: &str) -> impl Iterator<Item = &String> {
        self.tests.get(rule).into_iter().flatten()
    }

    fn check(&self) -> Result<()> {
        for (rule, _) in RULES {
            ensure!(self.scenarios_of(rule).next().is_some(), "no scenario shows rule {rule}");
        }
        ensure!(self.intents.len() >= FEWEST.0, "only {} scenarios", self.intents.len());
        ensure!(self.test_names.len() >= FEWEST.1, "only {} tests with sockets", self.test_names.len());
        let there = fs::read_to_string(page_path()).context("docs/scenarios.md")?;
        ensure!(there == self.page(), "docs/scenarios.md is stale: run `weir-rig coverage --write`");
        Ok(())
    }

    fn page(&self) -> String {
        let mut page = String::from(
            "# Rules and the scenarios that show them\n\n\
             Made by `weir-rig coverage --write`; `cargo xtask test` fails if it is stale or a rule is without a scenario. The rules\n\
             are those of [rules.md](rules.md). Scenarios lie in `scenarios/`, each is run by the model and through the loaded kernel\n\
             programs; tests with real sockets are run by `weir-rig suite netns NAME` and `suite agent NAME` ([testing.md](testing.md)).\n",
        );
        // Writing to a string does not fail.
        for (rule, title) in RULES {
            let _ = writeln!(page, "\n## {rule}: {title}\n");
            for name in self.scenarios_of(rule) {
                let _ = writeln!(page, "* {name}");
            }
            for name in self.tests_of(rule) {
                let _ = writeln!(page, "* sockets: {name}");
            }
        }
        let _ = writeln!(page, "\n## What each scenario shows\n");
        for (name, intent) in &self.intents {
            let _ = writeln!(page, "* **{name}**: {intent}");
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_scenario_and_the_page_is_right() {
        Coverage::collect().unwrap().check().unwrap();
    }

    #[test]
    fn words_of_rules_lines() {
        for (word, rule) in [("15a", "15"), (" 3", "3"), ("Choices", "choices"), ("bad-input", "bad-input")] {
            assert_eq!(rule_of(word).unwrap(), rule);
        }
        for word in ["", "23", "a", "icmpa"] {
            assert!(rule_of(word).is_err(), "{word:?}");
        }
    }
}
