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
//! Nothing is connected to the machine's own network. Addresses are listed in module `plan`.

mod actor;
mod agent;
mod binaries;
mod cgroup;
mod host;
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
pub use binaries::{rig_binary, weir_binary};
pub use host::Host;
pub use netns::in_netns;
pub use node::{Node, Pod, PodPath};
pub use process::Placement;

use plan::Addresses;
use run::Run;

const FABRIC: &str = "fabric";
const BRIDGE: &str = "br0";

/// One run of the rig. Owns every namespace, cgroup, pin and process of the run.
pub struct World {
    run: Arc<Run>,
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
        ensure!(nix::unistd::geteuid().is_root(), "namespaces need root");
        if let Err(error) = reap::reap_dead_runs() {
            // Names are unique, so this world can live beside what is left.
            eprintln!("removing what dead runs left behind: {error:#}");
        }
        let world = Self { run: Run::create(tag)?, members: std::sync::Mutex::default() };
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
        let node = Node::new(&self.run, name, index, &addresses)?;
        self.join_fabric(&node, &format!("n{index}-{name}"))?;
        node.become_router()?;
        netns::ip_batch(&self.run.netns_name(FABRIC), &plan::pod_routes(index, node.addresses()))?;
        for other in &members.nodes {
            node.route_to_pods_of(other)?;
            other.route_to_pods_of(&node)?;
        }
        for client in &members.clients {
            client.route_to_pods_of(&node)?;
        }
        members.nodes.push(node.clone());
        Ok(node)
    }

    /// Adds a client outside the cluster. It has routes to the nodes and to the pods, no default route.
    pub fn add_client(&self, name: &str) -> Result<Host> {
        let mut members = self.lock();
        self.check_name(&members, name)?;
        let index = u8::try_from(members.clients.len() + 1).context("too many clients")?;
        let client = Host::client(&self.run, name, &Addresses::client(index)?)?;
        self.join_fabric(&client, &format!("c{index}-{name}"))?;
        for node in &members.nodes {
            client.route_to_pods_of(node)?;
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

    /// The switch. Its bridge is also the nodes' default gateway, one that answers
    /// "unreachable" to everything it does not know, as the edge of a closed network does.
    fn build_fabric(&self) -> Result<()> {
        let netns = self.run.netns_name(FABRIC);
        netns::add(&netns)?;
        netns::sysctls(
            &netns,
            &[
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv4/conf/all/send_redirects", "0"),
                ("net/ipv4/conf/default/send_redirects", "0"),
                ("net/ipv6/conf/all/forwarding", "1"),
            ],
        )?;
        netns::ip_batch(
            &netns,
            &[
                "link set lo up".into(),
                // Snooping would eat neighbour solicitations until the first report was seen.
                format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
                format!("link set {BRIDGE} up"),
                format!("addr add {}/{} dev {BRIDGE}", plan::GATEWAY_V4, plan::FABRIC_LEN_V4),
                format!("addr add {}/{} dev {BRIDGE} nodad", plan::GATEWAY_V6, plan::FABRIC_LEN_V6),
            ],
        )
    }

    fn join_fabric(&self, host: &Host, port: &str) -> Result<()> {
        let port = netns::ifname(port);
        netns::ip_batch(
            &self.run.netns_name(FABRIC),
            &[
                format!("link add {port} type veth peer name eth0 netns {}", host.netns()),
                format!("link set {port} master {BRIDGE} up"),
            ],
        )?;
        netns::ip_batch(
            host.netns(),
            &[
                "link set lo up".into(),
                "link set eth0 up".into(),
                format!("addr add {}/{} dev eth0", host.ipv4(), plan::FABRIC_LEN_V4),
                format!("addr add {}/{} dev eth0 nodad", host.ipv6(), plan::FABRIC_LEN_V6),
            ],
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = self.run.remove() {
            eprintln!("run {}: {error:#}", self.run.id());
        }
    }
}
