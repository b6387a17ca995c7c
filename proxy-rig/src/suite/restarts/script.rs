//! What happens to the agents while the flows are held.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use proxy_agent::fault::FaultPoint;

use super::{Part, Scene, agents::SNAT_PORTS, ways::extra};
use crate::{demo::cluster::Cluster, world::weir_next_binary};

const RESTARTS: usize = 10;

/// Points of a start that has nothing new to write.
const START: [FaultPoint; 11] = [
    FaultPoint::Locked,
    FaultPoint::UnfitMoved,
    FaultPoint::MapsMade,
    FaultPoint::ProgramsLoaded,
    FaultPoint::PortsReserved,
    FaultPoint::MapsRead,
    FaultPoint::IngressAttached,
    FaultPoint::EgressAttached,
    FaultPoint::OthersDetached,
    FaultPoint::CgroupAttached,
    FaultPoint::SourcesSynced,
];

/// Points of a sync that writes a new Service, in the order of the writes: each start comes a step further.
const ADDITION: [FaultPoint; 8] = [
    FaultPoint::BackendWritten,
    FaultPoint::RingWritten,
    FaultPoint::SetWritten,
    FaultPoint::NameWritten,
    FaultPoint::SourceRangeWritten,
    FaultPoint::ServiceWritten,
    FaultPoint::AddressWritten,
    FaultPoint::Pruned,
];

/// The same of one that removes it.
const REMOVAL: [FaultPoint; 4] =
    [FaultPoint::ServiceDeleted, FaultPoint::SourceRangeDeleted, FaultPoint::NameDeleted, FaultPoint::AddressDeleted];

/// Points of a move to another layout.
const MOVE: [FaultPoint; 12] = [
    FaultPoint::MapsMade,
    FaultPoint::TablesCopied,
    FaultPoint::FlowsCopied,
    FaultPoint::Migrating,
    FaultPoint::LinksTaken,
    FaultPoint::IngressAttached,
    FaultPoint::EgressAttached,
    FaultPoint::CgroupAttached,
    FaultPoint::CopiedAgain,
    FaultPoint::MigratingCleared,
    FaultPoint::OldMarked,
    FaultPoint::OldRemoved,
];

pub(super) async fn play(scene: &mut Scene<'_>, part: Part, cluster: &mut Cluster) -> Result<()> {
    match part {
        Part::Restarts => {
            restarts(scene).await?;
            standby(scene).await
        }
        Part::Crashes => {
            crashes_in_a_start(scene).await?;
            crashes_in_a_sync(scene, cluster).await
        }
        Part::Upgrades => {
            capacities(scene).await?;
            upgrades(scene).await?;
            crashes_in_an_upgrade(scene).await?;
            ports_are_reserved(scene)
        }
    }
}

fn ports_are_reserved(scene: &Scene<'_>) -> Result<()> {
    for node in scene.stage.world.nodes() {
        let reserved = node.run_program("cat", &["/proc/sys/net/ipv4/ip_local_reserved_ports"])?;
        ensure!(reserved.trim() == SNAT_PORTS, "reserved on {}: {reserved:?}", node.name());
    }
    Ok(())
}

async fn restarts(scene: &mut Scene<'_>) -> Result<()> {
    for _ in 0..RESTARTS {
        scene.agents.end().await?;
        scene.agents.start().await?;
        scene.agents.logged("writes=0")?;
    }
    scene.check("restart (SIGTERM)", RESTARTS).await?;
    for _ in 0..RESTARTS {
        scene.agents.kill()?;
        scene.agents.start().await?;
        scene.agents.logged("writes=0")?;
    }
    scene.check("restart (SIGKILL)", RESTARTS).await
}

async fn standby(scene: &mut Scene<'_>) -> Result<()> {
    for crash in [false, true] {
        let took = scene.agents.change_by_standby(crash).await?;
        println!("the standby took over {} ms after the end of the first (crash: {crash})", took.as_millis());
    }
    scene.check("standby takes over", 2).await
}

async fn crashes_in_a_start(scene: &mut Scene<'_>) -> Result<()> {
    scene.agents.end().await?;
    for (number, point) in START.into_iter().enumerate() {
        scene.agents.one_dies_at(number, &scene.agents.program, point).await?;
    }
    scene.agents.start().await?;
    scene.check("SIGKILL at a step of the start", START.len()).await
}

async fn crashes_in_a_sync(scene: &mut Scene<'_>, cluster: &mut Cluster) -> Result<()> {
    let nodes = scene.stage.world.nodes();
    scene.agents.end().await?;
    cluster.put_service(extra())?;
    cluster.publish()?;
    for node in &nodes {
        node.ip(&["link add later type veth peer name later-peer".into(), "link set later up".into()])?;
    }
    scene.agents.die_at(&scene.agents.program, FaultPoint::InterfaceWritten).await?;
    for point in ADDITION {
        scene.agents.die_at(&scene.agents.program, point).await?;
    }
    scene.agents.start().await?;
    scene.check("SIGKILL at a step of the sync (added)", 1 + ADDITION.len()).await?;
    scene.agents.end().await?;
    cluster.remove_service("default", "extra")?;
    cluster.publish()?;
    for node in &nodes {
        node.ip(&["link del later".into()])?;
    }
    scene.agents.die_at(&scene.agents.program, FaultPoint::InterfaceDeleted).await?;
    for point in REMOVAL {
        scene.agents.die_at(&scene.agents.program, point).await?;
    }
    scene.agents.args = vec!["--service-cluster-ip-range".to_owned(), "10.96.0.0/16,fd00:10:96::/112".to_owned()];
    scene.agents.die_at(&scene.agents.program, FaultPoint::SwitchesWritten).await?;
    scene.agents.start().await?;
    scene.check("SIGKILL at a step of the sync (removed)", 2 + REMOVAL.len()).await
}

async fn capacities(scene: &mut Scene<'_>) -> Result<()> {
    let args = scene.agents.args.clone();
    for entries in ["2000", "4000"] {
        scene.agents.end().await?;
        scene.agents.args = args.clone();
        scene.agents.args.extend(["--conntrack-max", entries, "--services-max", entries].map(str::to_owned));
        scene.agents.start().await?;
        scene.agents.logged("moved to the new tables")?;
        scene.agents.logged("writes=0")?;
    }
    scene.check("other capacities", 2).await
}

async fn upgrades(scene: &mut Scene<'_>) -> Result<()> {
    let (old, new) = (scene.agents.program.clone(), weir_next_binary()?);
    for program in [&new, &old, &new, &old] {
        change(scene, program, program == &old).await?;
        let kind = if program == &new { "upgrade" } else { "downgrade" };
        scene.check(kind, 1).await?;
    }
    Ok(())
}

/// One agent ends while the other build's waits as standby, or by a crash.
async fn change(scene: &mut Scene<'_>, program: &Path, crash: bool) -> Result<()> {
    if crash {
        scene.agents.kill()?;
    } else {
        scene.agents.end().await?;
    }
    scene.agents.program = program.to_owned();
    scene.agents.start().await.with_context(|| program.display().to_string())?;
    scene.agents.logged("moved to the new tables")?;
    scene.agents.logged("writes=0")
}

/// After a crash either build may come next: every second time the one that was there before.
async fn crashes_in_an_upgrade(scene: &mut Scene<'_>) -> Result<()> {
    let (mut current, mut other) = (scene.agents.program.clone(), weir_next_binary()?);
    for (number, point) in MOVE.into_iter().enumerate() {
        scene.agents.end().await?;
        // Two in a row on each node: up and down again.
        scene.agents.one_dies_at(number / 2, &other, point).await?;
        if number % 2 == 0 {
            std::mem::swap(&mut current, &mut other);
        }
        scene.agents.program = current.clone();
        scene.agents.start().await.with_context(|| format!("after a crash at {point}"))?;
        scene.agents.logged("writes=0").with_context(|| format!("after a crash at {point}"))?;
    }
    scene.check("SIGKILL at a step of an upgrade or downgrade", MOVE.len()).await
}
