//! One namespace with its addresses and its place among the cgroups: what a node, a pod and a client have in common.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result};

use super::{
    actor::{Actor, Serve},
    cgroup, netns,
    node::Node,
    plan::{self, Addresses},
    process::Placement,
    run::Run,
};

/// Cgroup of the clients, below the run and beside the nodes: no agent attaches there.
const OUTSIDE: &str = "outside";

/// An address is usable at once, not after a second of probing; and a route stays what the
/// test made it, whatever a node on the way would advise.
const SYSCTLS: [(&str, &str); 8] = [
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// Cheap to clone; the namespace lives as long as the world.
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    /// The node whose pod or whose own namespace this is; none for clients.
    node: Option<String>,
    addresses: Addresses,
    placement: Placement,
    run: Arc<Run>,
}

impl Host {
    /// Makes the namespace and the cgroup; links and addresses are the caller's.
    pub(super) fn new(
        run: &Arc<Run>,
        name: &str,
        node: Option<&str>,
        addresses: Addresses,
        cgroup: &Path,
    ) -> Result<Self> {
        let cgroup = run.cgroup().join(cgroup);
        cgroup::create(&cgroup)?;
        let netns = run.netns_name(name);
        netns::add(&netns)?;
        // Before any interface exists, so that all of them inherit it.
        netns::sysctls(&netns, &SYSCTLS)?;
        Ok(Self {
            name: name.to_owned(),
            node: node.map(str::to_owned),
            addresses,
            placement: Placement { netns, cgroup },
            run: Arc::clone(run),
        })
    }

    pub(super) fn client(run: &Arc<Run>, name: &str, addresses: &Addresses) -> Result<Self> {
        Self::new(run, name, None, *addresses, Path::new(OUTSIDE))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node whose pod or whose own namespace this is; none for clients.
    pub fn node_name(&self) -> Option<&str> {
        self.node.as_deref()
    }

    pub fn ipv4(&self) -> Ipv4Addr {
        self.addresses.v4
    }

    pub fn ipv6(&self) -> Ipv6Addr {
        self.addresses.v6
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.addresses.v4.into(), self.addresses.v6.into()]
    }

    /// Name of the namespace, as `ip netns` knows it.
    pub fn netns(&self) -> &str {
        &self.placement.netns
    }

    /// Where processes of this host live.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    pub(super) fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// A command that will run inside this host, in its namespace and cgroup.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.placement.command(program)
    }

    /// Starts the resident process that serves and calls others. One host may have several.
    pub async fn start_actor(&self, serve: Serve) -> Result<Actor> {
        Actor::start(self, serve).await
    }

    /// Runs `work` on a thread inside the namespace (but in this process' cgroup).
    pub fn in_netns<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        netns::in_netns(self.netns(), work)
    }

    /// A listener inside the namespace for a server that runs in this process.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        self.in_netns(|| TcpListener::bind(address))?
            .with_context(|| format!("listening on {address} in {}", self.name))
    }

    /// Sets a sysctl of the namespace; the key is a path below /proc/sys.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        netns::sysctls(self.netns(), &[(key, value)])
    }

    /// Runs lines of `ip` inside the namespace.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        netns::ip_batch(self.netns(), lines)
    }

    /// Applies an nftables file inside the namespace.
    pub fn nft(&self, rules: &str) -> Result<()> {
        netns::nft(self.netns(), rules)
    }

    /// Gives `eth0` one more address, such as `192.0.2.42/32`.
    pub fn add_address(&self, cidr: &str) -> Result<()> {
        let nodad = if cidr.contains(':') { " nodad" } else { "" };
        self.ip(&[format!("addr add {cidr} dev eth0{nodad}")])
    }

    /// Adds or replaces a route.
    pub fn route(&self, cidr: &str, via: IpAddr) -> Result<()> {
        self.ip(&[format!("route replace {cidr} via {via}")])
    }

    /// Sends everything for `cidr` through `node`: a load balancer's choice of node, or the
    /// way from outside to a Service range. The family of `cidr` picks the node's address.
    pub fn route_via(&self, cidr: &str, node: &Node) -> Result<()> {
        let [v4, v6] = node.addresses();
        self.route(cidr, if cidr.contains(':') { v6 } else { v4 })
    }

    pub(super) fn route_to_pods_of(&self, node: &Node) -> Result<()> {
        self.ip(&plan::pod_routes(node.index(), node.addresses()))
    }
}
