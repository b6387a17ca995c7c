//! `weir agent`: flags, and what they mean together. Flags that kube-proxy has are named as there.

use std::{fs, ops::RangeInclusive, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, builder::NonEmptyStringValueParser};
use ipnet::IpNet;

use super::PinRoot;
use crate::{
    agent::{self, AgentConfig, Source},
    health::HealthArgs,
    kubeproxy::{self, KubeProxyFlags, Settings, Verbosity},
    loader::{Capacities, ConnectHooks, Placement, TcBackend, sys::Order},
    logging::{self, LogArgs, LogFormat},
    node::{NodePortAddresses, Patterns, RoleRules, ports::PortRange},
    reconcile::{MAGLEV_TABLE_SIZE, MAGLEV_TABLE_SIZES, is_prime},
    sockets::SocketsConfig,
    sources::{
        kubernetes::{KubernetesConfig, WATCH_TIMEOUT_S, Wanted},
        manifests::ManifestConfig,
    },
};

/// kube-proxy has no default; this is kubeadm's.
pub(super) const SERVICE_RANGE: &str = "10.96.0.0/12";

/// How many lines of the log the findings in kube-proxy's configuration take at most.
const CONFIGURATION_LINES: usize = 20;
/// What blocking tasks get at the end.
const END_GRACE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum DestroySockets {
    /// They see an error and connect anew
    #[default]
    On,
    /// Their packets are steered to another endpoint
    Off,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// A KubeProxyConfiguration, as kubeadm keeps it in the ConfigMap kube-proxy; flags come before it (docs/configuration.md)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unknown fields in the file of --config are an error
    #[arg(long, requires = "config")]
    strict_config: bool,
    /// Read Services, EndpointSlices and Nodes from the YAML files of a directory (or one file) instead of an API server
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "master"])]
    manifests: Option<PathBuf>,
    /// Kubeconfig of the API server; without it the pod's service account is used
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Address of the API server, in place of the one that the kubeconfig names
    #[arg(long, value_name = "URL")]
    master: Option<String>,
    /// The API server ends each watch after this many seconds and it is resumed; a dead connection is noticed 5 seconds later
    #[arg(long, value_name = "SECONDS", default_value_t = WATCH_TIMEOUT_S, value_parser = clap::value_parser!(u32).range(1..=290), hide_short_help = true)]
    watch_timeout: u32,
    /// Name of this node [default: the host name]
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = NonEmptyStringValueParser::new())]
    hostname_override: Option<String>,

    /// Where NodePorts are served: `primary` (the Node's own address per family), CIDRs, or both [default: primary]
    #[arg(long, value_name = "CIDR,...")]
    nodeport_addresses: Option<NodePortAddresses>,
    /// Ranges of ClusterIPs: an address in them that no Service has is dropped. With --manifests also where ClusterIPs are
    /// allocated, by default in 10.96.0.0/12 [default: the ServiceCIDR objects]
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    service_cluster_ip_range: Vec<IpNet>,
    /// External and load balancer addresses are accepted from these ranges only [default: all]
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    external_address_ranges: Vec<IpNet>,
    /// Ports of the node's own addresses that no Service may take
    #[arg(long, value_name = "PORT[-PORT],...", value_delimiter = ',', value_parser = port_range,
          default_value = "22,2379-2380,6443,10249,10250,10256")]
    protected_node_ports: Vec<RangeInclusive<u16>>,
    /// Serve the host ports of Pods of this node
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    host_ports: bool,
    /// Translate the source of all Service traffic, also that of pods of this node
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    masquerade_all: Option<bool>,
    /// Slots of the table of each endpoint set with algorithm maglev, a prime; all nodes must have the same
    #[arg(long, value_name = "PRIME", default_value_t = MAGLEV_TABLE_SIZE, value_parser = maglev_table_size)]
    maglev_table_size: u32,
    /// Source ports towards endpoints on other nodes, Weir's alone: reserved in net.ipv4.ip_local_reserved_ports where the kernel
    /// would use them
    #[arg(long, value_name = "FIRST-LAST", default_value = "61000-65535")]
    snat_ports: PortRange,

    /// Whose sockets are translated when they connect
    #[arg(long, value_enum, default_value_t)]
    pub(super) connect_hooks: ConnectHooks,
    /// Cgroup to attach to [default: the root of the cgroup2 hierarchy]
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// Connected UDP sockets whose endpoint left are ended (docs/privileges.md says what that needs)
    #[arg(long, value_enum, default_value_t)]
    destroy_sockets: DestroySockets,
    /// Where container runtimes keep the network namespaces of pods
    #[arg(long, value_name = "DIR,...", value_delimiter = ',', default_value = "/run/netns,/run/docker/netns")]
    netns_dirs: Vec<PathBuf>,
    /// The proc file system of the host; the network namespaces of its processes are looked through, too
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    host_proc: PathBuf,
    #[command(flatten)]
    pins: PinRoot,
    /// Where our tc programs go among those of others (docs/operations.md says what each sees)
    #[arg(long, value_enum, default_value_t)]
    tc_order: Order,
    /// How tc programs are attached
    #[arg(long, value_enum, default_value_t)]
    tc_attach: TcBackend,
    /// Interfaces that are left alone (names with * and ?)
    #[arg(long, value_name = "NAME,...", default_value = "")]
    exclude_interfaces: Patterns,
    /// Interfaces that lead to pods, beside those that are recognised
    #[arg(long, value_name = "NAME,...", default_value = "")]
    pod_interfaces: Patterns,
    /// Interfaces that lead out of the node, beside those that are recognised
    #[arg(long, value_name = "NAME,...", default_value = "")]
    uplink_interfaces: Patterns,

    /// Changes are collected for at most this many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10)]
    sync_delay: u64,
    #[command(flatten)]
    log: LogArgs,
    /// More messages; twice: every write to a map; three times: those of libraries, too. With a number: kube-proxy's levels
    #[arg(short, long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "",
          action = clap::ArgAction::Append)]
    verbose: Vec<Verbosity>,

    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    capacities: Capacities,
    #[command(flatten)]
    kube_proxy: KubeProxyFlags,
}

impl AgentArgs {
    pub fn run(self) -> anyhow::Result<()> {
        let (settings, findings) = self.kube_proxys(self.strict_config).context("configuration of kube-proxy")?;
        self.start_logging(&settings);
        // Every field is named, whatever the log's limit for one place is.
        for some in findings.chunks(findings.len().div_ceil(CONFIGURATION_LINES).max(1)) {
            let some: Vec<_> = some.iter().map(ToString::to_string).collect();
            tracing::warn!("configuration: {}", some.join("; "));
        }
        if let Some(score) = settings.oom_score_adj
            && let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string())
        {
            tracing::warn!(score, %error, "oomScoreAdj could not be set");
        }
        let config = self.config(settings)?;
        // Two threads: the sources' parsing never delays the main loop, and the agent stays small.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let result = runtime.block_on(agent::run(config)).context("agent");
        // A look at tables that is still going on holds up nobody.
        runtime.shutdown_timeout(END_GRACE);
        result
    }

    /// What its file and its flags say.
    pub(super) fn kube_proxys(
        &self,
        strict: bool,
    ) -> Result<(Settings, Vec<kubeproxy::Finding>), kubeproxy::ConfigError> {
        kubeproxy::load(self.config.as_deref(), &self.kube_proxy, strict)
    }

    /// A flag of our own comes before what kube-proxy's configuration says.
    pub(super) fn config(self, settings: Settings) -> anyhow::Result<AgentConfig> {
        let health = self.health.config(&settings)?;
        let node_name = match self.hostname_override.or(settings.node_name) {
            Some(name) => name,
            None => host_name()?,
        };
        let source = match self.manifests {
            Some(path) => {
                let default = || vec![SERVICE_RANGE.parse().expect("invariant: the constant is a CIDR")];
                let ranges = self.service_cluster_ip_range.clone();
                let config = ManifestConfig::new(path, if ranges.is_empty() { default() } else { ranges });
                Source::Manifests(ManifestConfig { host_ports: self.host_ports, ..config })
            }
            None => Source::Kubernetes(KubernetesConfig {
                kubeconfig: self.kubeconfig.or(settings.kubeconfig),
                master: self.master,
                wanted: Wanted {
                    pods: self.host_ports,
                    service_cidrs: self.service_cluster_ip_range.is_empty(),
                    watch_timeout_s: self.watch_timeout,
                },
            }),
        };
        Ok(AgentConfig {
            node_name: node_name.trim().to_lowercase(),
            source,
            node_ports: self.nodeport_addresses.or(settings.node_ports).unwrap_or_default(),
            roles: RoleRules {
                exclude: self.exclude_interfaces,
                pod: self.pod_interfaces.and(settings.pod_interfaces),
                uplink: self.uplink_interfaces,
            },
            service_cidrs: self.service_cluster_ip_range,
            external_ranges: self.external_address_ranges,
            protected_ports: self.protected_node_ports,
            masquerade_all: self.masquerade_all.or(settings.masquerade_all).unwrap_or_default(),
            maglev_table_size: self.maglev_table_size,
            snat_ports: self.snat_ports,
            connect_hooks: self.connect_hooks,
            cgroup_root: self.cgroup_root,
            pin_root: self.pins.pin_root,
            placement: Placement { backend: self.tc_attach, order: self.tc_order },
            capacities: self.capacities,
            sockets: SocketsConfig {
                destroy: self.destroy_sockets == DestroySockets::On,
                netns_dirs: self.netns_dirs,
                host_proc: self.host_proc,
            },
            health,
            sync_delay: Duration::from_millis(self.sync_delay),
        })
    }

    /// RUST_LOG, if set, decides instead of `-v`.
    /// What -v and kube-proxy's configuration say holds where neither --log-level nor the environment does.
    fn start_logging(&self, settings: &Settings) {
        let verbosity = match Verbosity::of(&self.verbose).or(settings.verbosity).unwrap_or_default() {
            0 => "info",
            1 => "debug",
            2 => "trace",
            _ => "trace,",
        };
        let format = if settings.log_json == Some(true) { LogFormat::Json } else { LogFormat::Text };
        logging::start(&self.log, format, verbosity);
    }
}

fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("read the host name")?;
    name.into_string().map_err(|name| anyhow::anyhow!("the host name is not UTF-8: {name:?}; give --hostname-override"))
}

pub(super) fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err(format!("expected a port or PORT-PORT, got {text:?}")),
    }
}

fn maglev_table_size(text: &str) -> Result<u32, String> {
    let size = text.parse().ok().filter(|size| MAGLEV_TABLE_SIZES.contains(size) && is_prime(*size));
    let expected = || format!("expected a prime from {} to {}", MAGLEV_TABLE_SIZES.start(), MAGLEV_TABLE_SIZES.end());
    size.ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maglev_table_sizes() {
        assert_eq!(maglev_table_size("65521"), Ok(65521));
        assert!(["65520", "13", "999983", "x"].into_iter().all(|text| maglev_table_size(text).is_err()));
    }

    #[test]
    fn port_ranges() {
        assert_eq!(port_range("22"), Ok(22..=22));
        assert_eq!(port_range("2379-2380"), Ok(2379..=2380));
        assert!(port_range("9-8").is_err() && port_range("x").is_err() && port_range("70000").is_err());
    }
}
