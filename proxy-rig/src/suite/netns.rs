//! `weir-rig suite netns`: real agents, real sockets, in namespaces. What belongs here: anything that a
//! client, a pod or an operator can see from outside. Each test names the rules it shows as its kind.
//!
//! * `plaza`: the world shared by tests that change nothing; `paths`, `sockets` and `fragments` use it. Two more of it, with
//!   offloads on and off, run some of them again.
//! * `check`: `weir check` and kube-proxy's configuration, on a node each.
//! * `small`: a world of its own for each test of `flows`, `floods`, `vanished`, `setup`, `fragments`, `icmp_errors`, `own`,
//!   `schedulers` and `churn`.
//! * `takeover` too, beside rules of kube-proxy's shape; those of iptables where its programs are installed.
//! * `sctp` and `trunk` too; those of their tests that need SCTP sockets or VLAN devices are ignored where the kernel has none
//!   (`cargo xtask vmtest` has).
//! * modules `layouts`, `tap` and `restarts` beside this one: other layouts of nodes, links that are TAP devices, and flows that
//!   are held while the agents change. The last needs a second build of the agent, which `cargo xtask test` makes.

mod check;
mod churn;
mod floods;
pub(super) mod flows;
mod fragments;
mod icmp_errors;
mod objects;
mod own;
pub(super) mod paths;
mod plaza;
mod schedulers;
mod sctp;
pub(super) mod setup;
pub(super) mod small;
mod sockets;
mod takeover;
mod trunk;
mod vanished;

use std::{fmt::Write as _, sync::Arc};

use anyhow::{Result, bail};
use libtest_mimic::{Failed, Trial};

use crate::demo::{expect, paths::Path, stage::Stage};
use plaza::Plaza;

/// Tests of the shared world that run again with all offloads on, and with all of them off: the main ways of a packet.
const WITH_OFFLOADS: [&str; 14] = [
    "cluster_ip_on_the_packet_path",
    "cluster_ip_from_a_pod_of_a_node_without_backend",
    "node_port_keeps_the_client_of_a_local_backend",
    "node_port_to_a_remote_backend_comes_from_the_node",
    "node_port_from_a_pod_on_another_node",
    "load_balancer_from_outside",
    "load_balancer_on_the_packet_path",
    "external_ip_from_outside",
    "hairpin_on_the_packet_path",
    "backend_on_the_host_network",
    "no_endpoint_refuses_on_the_packet_path",
    "no_endpoint_refuses_at_the_node_port",
    "large_answers_through_every_path",
    "fragments_through_every_path",
];

pub(super) fn tests() -> Result<Vec<Trial>> {
    let mut trials = shared("", &Arc::new(Plaza::default()), |_| true);
    for (suffix, state) in [("_with_offloads_off", "off"), ("_with_offloads_on", "on")] {
        trials.extend(shared(suffix, &Arc::new(Plaza::with_offloads(state)), |name| WITH_OFFLOADS.contains(&name)));
    }
    for &(name, rules, test) in flows::TESTS
        .iter()
        .chain(vanished::TESTS)
        .chain(setup::TESTS)
        .chain(check::TESTS)
        .chain(fragments::OWN_TESTS)
        .chain(icmp_errors::OWN_TESTS)
        .chain(objects::TESTS)
        .chain(own::OWN_TESTS)
        .chain(schedulers::OWN_TESTS)
        .chain(churn::TESTS)
        .chain(floods::OWN_TESTS)
    {
        trials.push(trial(name, rules, move || plaza::runtime()?.block_on(test())));
    }
    for &(name, rules, test) in trunk::TESTS {
        trials.push(trial(name, rules, move || plaza::runtime()?.block_on(test())));
    }
    for (tests, possible) in [(sctp::TESTS, sctp::is_there()), (trunk::VLAN_TESTS, trunk::has_vlan_devices())] {
        for &(name, rules, test) in tests {
            let trial = trial(name, rules, move || plaza::runtime()?.block_on(test()));
            trials.push(trial.with_ignored_flag(!possible || !super::is_root()));
        }
    }
    for (tests, possible) in [(takeover::TESTS, true), (takeover::IPTABLES_TESTS, takeover::has_iptables())] {
        for &(name, rules, test) in tests {
            let trial = trial(name, rules, move || plaza::runtime()?.block_on(test()));
            trials.push(trial.with_ignored_flag(!possible || !super::is_root()));
        }
    }
    for &(name, rules, test) in super::restarts::TESTS {
        let trial = trial(name, rules, move || plaza::runtime()?.block_on(test()));
        trials.push(trial.with_ignored_flag(!super::restarts::are_possible() || !super::is_root()));
    }
    for &(name, rules, test) in super::layouts::TESTS.iter().chain(super::tap::TESTS) {
        trials.push(trial(name, rules, move || plaza::runtime()?.block_on(test())));
    }
    Ok(trials)
}

/// The tests of a shared world that are wanted.
fn shared(suffix: &str, plaza: &Arc<Plaza>, wanted: impl Fn(&str) -> bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for &(name, rules, test) in paths::TESTS.iter().filter(|test| wanted(test.0)) {
        let plaza = Arc::clone(plaza);
        let work = move || plaza.run(async |stage: &Stage| walk_all(stage, test).await);
        trials.push(trial(&format!("{name}{suffix}"), rules, work));
    }
    for &(name, rules, test) in sockets::TESTS.iter().chain(fragments::SHARED_TESTS).filter(|test| wanted(test.0)) {
        let plaza = Arc::clone(plaza);
        let work = move || plaza.run(async |stage: &Stage| test(stage).await);
        trials.push(trial(&format!("{name}{suffix}"), rules, work));
    }
    trials
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
