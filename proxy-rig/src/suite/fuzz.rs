//! Random packets through the loaded programs, each kind of node for a part of a minute. `weir-rig fuzz --packets` runs more.

use std::time::Duration;

use anyhow::{Result, bail};
use libtest_mimic::Trial;

use super::root_trial;
use crate::fuzz::{NODES, Options, run};

/// Two of the nodes run at once; all together take a minute.
const TIME: Duration = Duration::from_secs(30);
const SEED: u64 = 1;

pub(super) fn tests() -> Vec<Trial> {
    NODES.iter().map(|(name, node)| root_trial(&format!("packets-{name}"), move || test(name, node))).collect()
}

fn test(name: &str, node: &str) -> Result<()> {
    let options = Options { seed: SEED, packets: None, time: Some(TIME), hook: None };
    let (tally, finding) = run(node, &options)?;
    println!("{name}, seed {SEED}: {}", tally.in_words());
    match finding {
        Some(finding) => bail!("{}", finding.difference),
        None => Ok(()),
    }
}
