//! The agents of the world's nodes, which start, end, crash and change their version together.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxy_agent::fault::FaultPoint;

use crate::{
    demo::stage::Stage,
    world::{Agent, Node},
};

/// Machines of others are slow.
const DIES_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// Their reservation has to outlive every change, too.
pub(super) const SNAT_PORTS: &str = "40000-41999";

pub(super) struct Agents {
    nodes: Vec<Node>,
    manifests: String,
    running: Vec<Agent>,
    /// Which build they are of.
    pub(super) program: PathBuf,
    /// Beside those that every start has.
    pub(super) args: Vec<String>,
}

impl Agents {
    /// `manifests` is what they read.
    pub(super) fn of_dir(stage: &Stage, manifests: &Path, program: PathBuf) -> Self {
        let manifests = manifests.display().to_string();
        Self { nodes: stage.world.nodes(), manifests, running: Vec::new(), program, args: Vec::new() }
    }

    pub(super) fn spawn(&self, node: &Node, program: &Path, env: &[(&str, &str)]) -> Result<Agent> {
        let mut args = vec!["--manifests", &self.manifests, "--snat-ports", SNAT_PORTS];
        args.extend(self.args.iter().map(String::as_str));
        node.start_agent_with(program, &args, env)
    }

    /// Returns when all of them are ready.
    pub(super) async fn start(&mut self) -> Result<()> {
        for node in &self.nodes {
            self.running.push(self.spawn(node, &self.program, &[])?);
        }
        for agent in &mut self.running {
            agent.wait_ready().await?;
        }
        Ok(())
    }

    pub(super) async fn end(&mut self) -> Result<()> {
        for mut agent in self.running.drain(..) {
            agent.terminate().await?;
        }
        Ok(())
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        self.running.drain(..).try_for_each(|mut agent| agent.kill())
    }

    /// Agents of `program` start and die at the point, one on each node.
    pub(super) async fn die_at(&self, program: &Path, point: FaultPoint) -> Result<()> {
        self.die_on(&self.nodes, program, point).await
    }

    /// The same on one node; they take turns.
    pub(super) async fn one_dies_at(&self, number: usize, program: &Path, point: FaultPoint) -> Result<()> {
        let index = number % self.nodes.len();
        self.die_on(&self.nodes[index..=index], program, point).await
    }

    async fn die_on(&self, nodes: &[Node], program: &Path, point: FaultPoint) -> Result<()> {
        let env = [("WEIR_FAULT_POINT", point.name())];
        let mut dying = nodes.iter().map(|node| self.spawn(node, program, &env)).collect::<Result<Vec<_>>>()?;
        for agent in &mut dying {
            let started = tokio::time::Instant::now();
            while agent.is_running()? {
                let late = started.elapsed() > DIES_WITHIN;
                ensure!(!late, "an agent that should die at {point} goes on:\n{}", agent.tail());
                tokio::time::sleep(POLL).await;
            }
            let reached = agent.log_text().contains("fault point reached");
            ensure!(reached, "an agent ended before it came to {point}:\n{}", agent.tail());
        }
        Ok(())
    }

    /// A line of each agent's log.
    pub(super) fn logged(&self, text: &str) -> Result<()> {
        for agent in &self.running {
            ensure!(agent.log_text().contains(text), "no {text:?} in the log:\n{}", agent.tail());
        }
        Ok(())
    }

    /// On the first node: the next agent waits, and is ready within a second after the first one's end.
    pub(super) async fn change_by_standby(&mut self, crash: bool) -> Result<Duration> {
        let mut next = self.spawn(&self.nodes[0], &self.program, &[])?;
        next.wait_for_line(DIES_WITHIN, |line| line.contains("waiting as standby")).await?;
        let first = self.running.first_mut().context("no agent runs")?;
        let started = std::time::Instant::now();
        if crash {
            first.kill()?;
        } else {
            first.terminate().await?;
        }
        next.wait_for_line(Duration::from_secs(1), |line| line.contains("taking over")).await?;
        let took = started.elapsed();
        next.wait_ready().await?;
        self.running[0] = next;
        Ok(took)
    }
}
