//! A cluster of network namespaces: nodes, pods and outside clients, joined by one switch.
//!
//! Tests, demo and bench build one with [`World::new`], [`World::add_node`], [`Node::add_pod`] and
//! [`World::add_client`], then start processes inside with [`Host::start_actor`] and
//! [`Node::start_agent`]. Dropping the world removes everything; so does a signal; and what a
//! killed process leaves behind is removed when the next world starts (module `reap`).
//!
//! ```text
//!  client ──eth0──┐                         ┌──eth0── node-1 ──veth1-web──eth0── pod web
//!                 ├── bridge in the fabric ─┤
//!  client ──eth0──┘      namespace          └──eth0── node-2 ──...
//! ```
//!
//! Pods hang on their node as `Layout` says, by routed veth pairs (as drawn) or on a bridge; nodes reach
//! each other's pods through the fabric or through an overlay.
//!
//! Nothing is connected to the machine's own network. Addresses are listed in module `plan`.

mod actor;
mod agent;
mod binaries;
mod cgroup;
mod fabric;
mod host;
mod layout;
mod mounts;
mod netns;
mod node;
mod plan;
mod process;
pub mod reap;
mod run;

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, bail, ensure};

pub use actor::{Actor, Serve, Session};
pub use agent::{Agent, is_ready_line};
pub use binaries::{rig_binary, weir_binary, weir_next_binary};
pub use host::Host;
pub use layout::{Layout, PodLinks};
pub use netns::in_netns;
pub use node::{Node, Pod, PodPath};
pub use process::Placement;

use plan::{Addresses, Network};
use run::Run;

const FABRIC: &str = "fabric";

/// One run of the rig. Owns every namespace, cgroup, pin and process of the run.
pub struct World {
    run: Arc<Run>,
    layout: Layout,
    members: std::sync::Mutex<Members>,
}

#[derive(Default)]
struct Members {
    nodes: Vec<Node>,
    clients: Vec<Host>,
}

impl World {
    /// Removes what dead runs left behind, then makes an empty world: the fabric and nothing else.
    /// `tag` says in the registry whose world it is.
    pub fn new(tag: &str) -> Result<Self> {
        Self::with_layout(tag, Layout::default())
    }

    /// The same with another layout of nodes.
    pub fn with_layout(tag: &str, layout: Layout) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "namespaces need root");
        if let Err(error) = reap::reap_dead_runs() {
            // Names are unique, so this world can live beside what is left.
            eprintln!("removing what dead runs left behind: {error:#}");
        }
        let world = Self { run: Run::create(tag)?, layout, members: std::sync::Mutex::default() };
        world.build_fabric()?;
        Ok(world)
    }

    /// The short id that every name of this run carries.
    pub fn run_id(&self) -> &str {
        self.run.id()
    }

    /// Where logs and other files of the run lie; it goes with the world.
    pub fn run_dir(&self) -> &Path {
        self.run.dir()
    }

    /// Adds a node. Every earlier node and client learns the way to its pods, and it theirs.
    pub fn add_node(&self, name: &str) -> Result<Node> {
        let mut members = self.lock();
        self.check_name(&members, name)?;
        let index = u8::try_from(members.nodes.len() + 1).context("too many nodes")?;
        let addresses = Addresses::node(index)?;
        let node = Node::new(&self.run, name, index, &addresses, self.layout)?;
        self.join_fabric(&node, Network::First, "eth0", &addresses)?;
        node.become_router()?;
        if self.layout.second_uplink {
            self.join_fabric(&node, Network::Second, "eth1", &Addresses::node_on(Network::Second, index)?)?;
            node.route_second_uplink()?;
        }
        if !self.layout.overlay {
            netns::ip_batch(&self.run.netns_name(FABRIC), &plan::pod_routes(index, node.addresses()))?;
        }
        for other in &members.nodes {
            node.reach_pods_of(other)?;
            other.reach_pods_of(&node)?;
        }
        for client in &members.clients {
            self.show_pods(client, &node)?;
        }
        members.nodes.push(node.clone());
        Ok(node)
    }

    /// Adds a client outside the cluster. It has routes to the nodes and to the pods, no default route.
    pub fn add_client(&self, name: &str) -> Result<Host> {
        let mut members = self.lock();
        self.check_name(&members, name)?;
        let index = u8::try_from(members.clients.len() + 1).context("too many clients")?;
        let addresses = Addresses::client(index)?;
        let client = Host::client(&self.run, name, &addresses)?;
        self.join_fabric(&client, Network::First, "eth0", &addresses)?;
        for node in &members.nodes {
            self.show_pods(&client, node)?;
        }
        members.clients.push(client.clone());
        Ok(client)
    }

    /// The nodes so far, in the order in which they were added.
    pub fn nodes(&self) -> Vec<Node> {
        self.lock().nodes.clone()
    }

    /// The clients so far.
    pub fn clients(&self) -> Vec<Host> {
        self.lock().clients.clone()
    }

    /// Removes the world and reports what could not be removed; dropping it only prints that.
    pub fn close(self) -> Result<()> {
        self.run.remove()
    }

    /// Clients route to pods by themselves where the network between the nodes knows pods.
    fn show_pods(&self, client: &Host, node: &Node) -> Result<()> {
        if self.layout.overlay { Ok(()) } else { client.route_to_pods_of(node) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn check_name(&self, members: &Members, name: &str) -> Result<()> {
        let taken = name == FABRIC
            || members.nodes.iter().any(|n| n.name() == name)
            || members.clients.iter().any(|c| c.name() == name);
        if taken {
            bail!("the name {name} is taken in this world");
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = self.run.remove() {
            eprintln!("run {}: {error:#}", self.run.id());
        }
    }
}
