//! `weir-rig suite netns`: real agents, real sockets, in namespaces. What belongs here: anything that a
//! client, a pod or an operator can see from outside. Each test names the rules it shows as its kind.
//!
//! * `plaza`: the world shared by tests that change nothing; `paths`, `sockets` and `fragments` use it.
//! * `small`: a world of its own for each test of `flows`, `setup`, `fragments` and `icmp_errors`.
//! * modules `layouts` and `tap` beside this one: other layouts of nodes, and links that are TAP devices.

pub(super) mod flows;
mod fragments;
mod icmp_errors;
pub(super) mod paths;
mod plaza;
pub(super) mod setup;
pub(super) mod small;
mod sockets;

use std::{fmt::Write as _, sync::Arc};

use anyhow::{Result, bail};
use libtest_mimic::{Failed, Trial};

use crate::demo::{expect, paths::Path, stage::Stage};
use plaza::Plaza;

pub(super) fn tests() -> Result<Vec<Trial>> {
    let plaza = Arc::new(Plaza::default());
    let mut trials = Vec::new();
    for &(name, rules, test) in paths::TESTS {
        let plaza = Arc::clone(&plaza);
        trials.push(trial(name, rules, move || plaza.run(async |stage: &Stage| walk_all(stage, test).await)));
    }
    for &(name, rules, test) in sockets::TESTS.iter().chain(fragments::SHARED_TESTS) {
        let plaza = Arc::clone(&plaza);
        trials.push(trial(name, rules, move || plaza.run(async |stage: &Stage| test(stage).await)));
    }
    for &(name, rules, test) in
        flows::TESTS.iter().chain(setup::TESTS).chain(fragments::OWN_TESTS).chain(icmp_errors::OWN_TESTS)
    {
        trials.push(trial(name, rules, move || plaza::runtime()?.block_on(test())));
    }
    for &(name, rules, test) in super::layouts::TESTS.iter().chain(super::tap::TESTS) {
        trials.push(trial(name, rules, move || plaza::runtime()?.block_on(test())));
    }
    Ok(trials)
}

fn trial(name: &str, rules: &str, work: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let test = Trial::test(name, move || work().map_err(|error| Failed::from(format!("{error:#}"))));
    test.with_kind(format!("rules {rules}")).with_ignored_flag(!super::is_root())
}

/// Walks every path of a test before it fails, so that one run shows all that is wrong.
pub(super) async fn walk_all(stage: &Stage, paths: &[Path]) -> Result<()> {
    let mut complaints = String::new();
    for path in paths {
        let row = expect::walk(stage, path).await?;
        if let Some(complaint) = row.complaint {
            // Writing to a string does not fail.
            let _ = write!(
                complaints,
                "\n{}: {} -> {} {:?}: {complaint} (expected: {})",
                path.title, path.from, row.to, path.proto, row.expected
            );
        }
    }
    if complaints.is_empty() { Ok(()) } else { bail!("{complaints}") }
}
