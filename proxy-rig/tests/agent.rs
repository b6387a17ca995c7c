//! Agents as processes: how the rig starts, watches and ends them. A script stands in for `weir`,
//! so that the real agent's faults do not show here. Needs root; says so and passes where it is not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use proxy_rig::world::{Node, World};

const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/stand-in-agent.sh");

/// None without root.
fn world_with_node() -> Option<(World, Node)> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces need root");
        return None;
    }
    let world = World::new("tests/agent").unwrap();
    let node = world.add_node("node-1").unwrap();
    Some((world, node))
}

#[tokio::test]
async fn an_agent_runs_inside_its_node() {
    let Some((world, node)) = world_with_node() else {
        return;
    };
    let mut agent = node.start_agent_from(STAND_IN.as_ref(), &["--one"]).unwrap();
    agent.wait_ready().await.unwrap();
    let log = agent.log_text();
    let flags = format!(
        "args agent --hostname-override node-1 --cgroup-root {} --pin-root {} --one",
        node.cgroup_path().display(),
        node.pin_dir().display()
    );
    assert!(log.contains(&flags), "{log}");
    assert!(log.contains(&format!("/weir-rig/{}/node-1/host\n", world.run_id())), "{log}");
    let inside = node.in_netns(|| fs::read_link("/proc/thread-self/ns/net")).unwrap().unwrap();
    assert!(log.contains(inside.to_str().unwrap()), "{log}");

    assert!(agent.is_running().unwrap());
    let status = agent.terminate().await.unwrap();
    assert!(status.success());
    assert!(agent.log_text().contains("ended in order"));
}

#[tokio::test]
async fn an_agent_that_ends_too_early_shows_its_log() {
    let Some((_world, node)) = world_with_node() else {
        return;
    };
    let mut agent = node.start_agent_from(STAND_IN.as_ref(), &["fail"]).unwrap();
    let error = format!("{:#}", agent.wait_ready().await.unwrap_err());
    assert!(error.contains("flag provided but not defined"), "{error}");
    let mut agent = node.start_agent_from(STAND_IN.as_ref(), &[]).unwrap();
    agent.wait_ready().await.unwrap();
    agent.kill().unwrap();
    assert!(!agent.is_running().unwrap());
}
