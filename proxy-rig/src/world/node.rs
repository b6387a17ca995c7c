//! A simulated node and its pods: routed veth pairs, forwarding, the node's cgroups and pin directory.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    process::Output,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};

use super::{
    agent::Agent,
    binaries, cgroup,
    host::Host,
    layout::{Layout, PodLinks},
    netns,
    plan::{self, Addresses, Network},
    run::Run,
};

/// Child cgroups of a node, as a kubelet would have them: the host's own processes, and pods.
const HOST_CGROUP: &str = "host";
const PODS_CGROUP: &str = "pods";

/// Which hooks see the sockets of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPath {
    /// The pod's cgroup lies below the node's: its connects are translated at connect time.
    Connect,
    /// The pod's cgroup lies outside the node's: only its packets are seen.
    Packet,
}

/// A node. Dereferences to its own namespace; clones are the same node.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: Host,
    index: u8,
    layout: Layout,
    cgroup: PathBuf,
    pin_dir: PathBuf,
    pods: Mutex<Vec<Pod>>,
    /// Those that hang on the fabric.
    attached: Mutex<u8>,
}

/// A pod of a node. Dereferences to its namespace.
#[derive(Debug, Clone)]
pub struct Pod {
    host: Host,
    path: PodPath,
    ifname: String,
}

impl Node {
    pub(super) fn new(run: &Arc<Run>, name: &str, index: u8, addresses: &Addresses, layout: Layout) -> Result<Self> {
        let host = Host::new(run, name, Some(name), *addresses, &Path::new(name).join(HOST_CGROUP))?;
        let node = Self(Arc::new(Inner {
            host,
            index,
            layout,
            cgroup: run.cgroup().join(name),
            pin_dir: run.pins().join(name),
            pods: Mutex::default(),
            attached: Mutex::default(),
        }));
        cgroup::create(&node.0.cgroup.join(PODS_CGROUP))?;
        Ok(node)
    }

    /// Makes the namespace forward, with the fabric as its way out.
    pub(super) fn become_router(&self) -> Result<()> {
        netns::sysctls(
            self.netns(),
            &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv6/conf/default/forwarding", "1"),
            ],
        )?;
        self.ip(&[
            format!("route add default via {}", Network::First.gateway_v4()),
            format!("route add default via {}", Network::First.gateway_v6()),
        ])?;
        self.build_layout()
    }

    /// Adds a pod. Its name is unique in the world.
    pub fn add_pod(&self, name: &str, path: PodPath) -> Result<Pod> {
        let mut pods = self.0.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let index = u8::try_from(pods.len() + 1).context("too many pods")?;
        let ifname = netns::ifname(&format!("veth{index}-{name}"));
        let pod = self.make_pod(name, path, index, ifname)?;
        let macs = plan::pod_macs(self.0.index, index);
        match self.0.layout.pods {
            PodLinks::Routed => self.route_pod(&pod, &macs)?,
            PodLinks::Bridged { .. } => self.bridge_pod(&pod, &pod.ifname, &macs)?,
        }
        pods.push(pod.clone());
        Ok(pod)
    }

    /// A pod without links. Not among [`Node::pods`], because none of the node's interfaces leads to it.
    pub(super) fn add_attached_pod(&self, name: &str, path: PodPath) -> Result<Pod> {
        let mut attached = self.0.attached.lock().unwrap_or_else(PoisonError::into_inner);
        *attached += 1;
        self.make_pod(name, path, 200 + *attached, String::new())
    }

    fn make_pod(&self, name: &str, path: PodPath, index: u8, ifname: String) -> Result<Pod> {
        let addresses = Addresses::pod(self.0.index, index)?;
        let cgroup = match path {
            PodPath::Connect => Path::new(self.name()).join(PODS_CGROUP).join(name),
            PodPath::Packet => PathBuf::from(format!("{}-outside", self.name())).join(name),
        };
        let host = Host::new(self.run(), name, Some(self.name()), addresses, &cgroup)
            .with_context(|| format!("pod {name}"))?;
        Ok(Pod { host, path, ifname })
    }

    /// The routed layout: no subnet on the link, host routes on the node, and a gateway
    /// address in the pod that only its neighbour table knows.
    fn route_pod(&self, pod: &Pod, [node_mac, pod_mac]: &[String; 2]) -> Result<()> {
        let Pod { host, ifname, .. } = pod;
        let mtu = self.0.layout.pod_mtu();
        let [v4, v6] = host.addresses();
        self.ip(&[format!(
            "link add {ifname} mtu {mtu} address {node_mac} type veth peer name eth0 mtu {mtu} address {pod_mac} netns {}",
            host.netns()
        )])?;
        host.ip(&["link set lo up".into(), "link set eth0 up".into()])?;
        self.ip(&[
            format!("link set {ifname} up"),
            format!("neigh replace {v4} lladdr {pod_mac} dev {ifname} nud permanent"),
            format!("neigh replace {v6} lladdr {pod_mac} dev {ifname} nud permanent"),
            format!("route add {v4}/32 dev {ifname}"),
            format!("route add {v6}/128 dev {ifname}"),
        ])?;
        let (gateway4, gateway6) = (plan::POD_GATEWAY_V4, plan::POD_GATEWAY_V6);
        host.ip(&[
            format!("addr add {v4}/32 dev eth0"),
            format!("addr add {v6}/128 dev eth0 nodad"),
            format!("neigh replace {gateway4} lladdr {node_mac} dev eth0 nud permanent"),
            format!("neigh replace {gateway6} lladdr {node_mac} dev eth0 nud permanent"),
            format!("route add {gateway4}/32 dev eth0 scope link"),
            format!("route add default via {gateway4} dev eth0"),
            format!("route add default via {gateway6} dev eth0"),
        ])
    }

    /// The node's number, counted from 1; it appears in the addresses of its pods.
    pub fn index(&self) -> u8 {
        self.0.index
    }

    pub fn layout(&self) -> Layout {
        self.0.layout
    }

    /// The pods behind the node's own interfaces.
    pub fn pods(&self) -> Vec<Pod> {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cgroup that holds the node's processes and its connect-path pods: `--cgroup-root` of its agent.
    pub fn cgroup_path(&self) -> &Path {
        &self.0.cgroup
    }

    /// Where the node's agent pins: its `--pin-root`. The agent makes it.
    pub fn pin_dir(&self) -> &Path {
        &self.0.pin_dir
    }

    /// Starts `weir agent` on the node, told its name, cgroup and pin directory, with `args` added.
    pub fn start_agent(&self, args: &[&str]) -> Result<Agent> {
        self.start_agent_from(&binaries::weir_binary()?, args)
    }

    /// The same with another build of the agent.
    pub fn start_agent_from(&self, program: &Path, args: &[&str]) -> Result<Agent> {
        self.start_agent_with(program, args, &[])
    }

    /// The same with variables of its environment.
    pub fn start_agent_with(&self, program: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Agent> {
        Agent::start(self, program, args, env)
    }

    /// Runs another subcommand of `weir` on the node to its end, with the node's pin directory.
    pub fn weir(&self, subcommand: &str, args: &[&str]) -> Result<Output> {
        self.command(binaries::weir_binary()?)?
            .arg(subcommand)
            .arg("--pin-root")
            .arg(self.pin_dir())
            .args(args)
            .output()
            .with_context(|| format!("running weir {subcommand} on {}", self.name()))
    }

    /// Runs a program on the node to its end and returns what it printed; a failure shows both streams.
    pub fn run_program(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .command(program)?
            .args(args)
            .output()
            .with_context(|| format!("running {program} on {}", self.name()))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{program} on {}: {}\n{stdout}{stderr}", self.name(), output.status);
        }
        Ok(stdout)
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0.host
    }
}

impl Pod {
    pub fn path(&self) -> PodPath {
        self.path
    }

    /// The node's end of the pod's link; empty for a pod that hangs on the fabric.
    pub fn node_ifname(&self) -> &str {
        &self.ifname
    }
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}
