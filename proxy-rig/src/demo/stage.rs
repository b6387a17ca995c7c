//! A world with its objects, its processes and its agents under one roof.
//!
//! Used by the demo, the end-to-end suite and the bench: each adds its hosts, puts its Services into
//! the cluster and starts the agents.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::cluster::{Cluster, PodSpec};
use crate::{
    call::{CallResult, Options, Proto},
    world::{Actor, Agent, Host, Layout, Node, PodPath, Serve, World},
};

/// A host with the process that serves and calls for it.
pub struct Peer {
    pub host: Host,
    pub actor: Actor,
}

/// Fields drop in this order: agents and processes end before their namespaces go.
pub struct Stage {
    agents: BTreeMap<String, Agent>,
    peers: BTreeMap<String, Peer>,
    pub cluster: Cluster,
    pub world: World,
}

impl Stage {
    pub fn new(tag: &str) -> Result<Self> {
        Self::with_layout(tag, Layout::default())
    }

    pub fn with_layout(tag: &str, layout: Layout) -> Result<Self> {
        let world = World::with_layout(tag, layout)?;
        let cluster = Cluster::new(world.run_dir().join("manifests"))?;
        Ok(Self { agents: BTreeMap::new(), peers: BTreeMap::new(), cluster, world })
    }

    /// A node with a process of its own, and its Node object.
    pub async fn add_node(&mut self, name: &str, serve: Serve) -> Result<Node> {
        let node = self.world.add_node(name)?;
        self.cluster.add_node(&node);
        self.add_peer(Host::clone(&node), serve).await?;
        Ok(node)
    }

    pub async fn add_pod(
        &mut self,
        node: &Node,
        name: &str,
        path: PodPath,
        spec: &PodSpec<'_>,
        serve: Serve,
    ) -> Result<()> {
        let pod = node.add_pod(name, path)?;
        self.cluster.add_pod(&pod, spec);
        self.add_peer(Host::clone(&pod), serve).await
    }

    pub async fn add_client(&mut self, name: &str, serve: Serve) -> Result<Host> {
        let client = self.world.add_client(name)?;
        self.add_peer(client.clone(), serve).await?;
        Ok(client)
    }

    /// A pod that hangs on the fabric beside its node.
    pub async fn add_attached_pod(&mut self, node: &Node, name: &str, spec: &PodSpec<'_>, serve: Serve) -> Result<()> {
        let pod = self.world.add_attached_pod(node, name, PodPath::Packet)?;
        self.cluster.add_pod(&pod, spec);
        self.add_peer(Host::clone(&pod), serve).await
    }

    /// A client that reaches the nodes through gateways only.
    pub async fn add_far_client(&mut self, name: &str) -> Result<()> {
        let client = self.world.add_far_client(name)?;
        self.add_peer(client, Serve::nothing()).await
    }

    async fn add_peer(&mut self, host: Host, serve: Serve) -> Result<()> {
        let actor = host.start_actor(serve).await?;
        self.peers.insert(host.name().to_owned(), Peer { host, actor });
        Ok(())
    }

    /// Publishes the objects and starts an agent on every node; returns when all are ready.
    pub async fn start_agents(&mut self, args: &[&str]) -> Result<()> {
        for node in self.world.nodes() {
            self.start_agent(&node, args)?;
        }
        for agent in self.agents.values_mut() {
            agent.wait_ready().await?;
        }
        Ok(())
    }

    /// Starts the agent of one node, in place of the one that ran there, without waiting for it.
    pub fn start_agent(&mut self, node: &Node, args: &[&str]) -> Result<()> {
        self.cluster.publish()?;
        let manifests = self.cluster.dir().display().to_string();
        let mut all = vec!["--manifests", &manifests];
        all.extend(args);
        self.agents.insert(node.name().to_owned(), node.start_agent(&all)?);
        Ok(())
    }

    /// The running agents by node, for a test that ends them while flows are open.
    pub fn take_agents(&mut self) -> BTreeMap<String, Agent> {
        std::mem::take(&mut self.agents)
    }

    /// The objects, for a test that changes them while flows are open. An empty cluster stays here.
    pub fn take_cluster(&mut self) -> Cluster {
        std::mem::take(&mut self.cluster)
    }

    pub fn node(&self, name: &str) -> Result<Node> {
        self.world.nodes().into_iter().find(|node| node.name() == name).with_context(|| format!("no node {name}"))
    }

    pub fn peer(&self, name: &str) -> Result<&Peer> {
        self.peers.get(name).with_context(|| format!("no host {name}"))
    }

    pub fn actor(&self, name: &str) -> Result<&Actor> {
        Ok(&self.peer(name)?.actor)
    }

    /// The address of a host in the family of `like`.
    pub fn address(&self, name: &str, like: IpAddr) -> Result<IpAddr> {
        let [v4, v6] = self.peer(name)?.host.addresses();
        Ok(if like.is_ipv4() { v4 } else { v6 })
    }

    /// The host that has the address.
    pub fn owner_of(&self, ip: IpAddr) -> Option<&str> {
        self.peers.values().find(|peer| peer.host.addresses().contains(&ip)).map(|peer| peer.host.name())
    }

    /// Removes everything and reports what could not be removed; dropping the stage only prints that.
    pub fn close(self) -> Result<()> {
        let Self { agents, peers, cluster: _, world } = self;
        drop((agents, peers));
        world.close()
    }

    /// One request over a fresh socket.
    pub async fn ask(&self, from: &str, proto: Proto, to: SocketAddr, options: Options) -> Result<CallResult> {
        let actor = self.actor(from)?;
        match proto {
            Proto::Tcp => actor.http_with(to, options).await,
            Proto::Udp => actor.udp_with(to, options).await,
        }
    }

    /// Asks again until the result is as wanted; says how long that took.
    pub async fn ask_until(
        &self,
        from: &str,
        proto: Proto,
        to: SocketAddr,
        limit: Duration,
        wanted: impl Fn(&CallResult) -> bool,
    ) -> Result<Duration> {
        let started = Instant::now();
        let options = Options { timeout_ms: 200, ..Options::default() };
        loop {
            let result = self.ask(from, proto, to, options).await?;
            if wanted(&result) {
                return Ok(started.elapsed());
            }
            if started.elapsed() > limit {
                bail!("{from} -> {to}: still {:?} after {limit:?}", result.outcome);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
