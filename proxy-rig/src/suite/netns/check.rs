//! `weir check` on a node made for it: ready, beside another CNI, beside kube-proxy, with filters of the host. And an agent that
//! is told by kube-proxy's configuration. Each has a world of its own with one node (under a second each).

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use futures::future::FutureExt;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;

use super::{flows::OwnTest, small};
use crate::{
    call::{Options, Proto},
    world::{Node, World, weir_binary},
};

pub(super) const TESTS: &[OwnTest] = &[
    ("check_of_a_ready_node_and_beside_another_cni", "Choices", || ready().boxed()),
    ("check_finds_kube_proxy_and_what_it_left", "Choices", || kube_proxy().boxed()),
    ("check_finds_filters_that_no_longer_see_frontends", "Choices", || filters().boxed()),
    ("check_finds_what_is_wrong_in_the_configuration", "Choices", || configuration().boxed()),
    ("a_kube_proxy_configuration_is_honoured", "19, Choices", || honoured().boxed()),
];

/// Tables as kube-proxy's nftables mode makes them, with one Service.
const KUBE_PROXY: &str = "
table ip kube-proxy {
  map service-ips {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 10.96.0.1 . tcp . 443 : goto service-2QRHZV4L-default/kubernetes/tcp/https }
  }
  map service-nodeports {
    type inet_proto . inet_service : verdict
    elements = { tcp . 30080 : goto service-2QRHZV4L-default/kubernetes/tcp/https }
  }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local meta l4proto . th dport vmap @service-nodeports
  }
  chain service-2QRHZV4L-default/kubernetes/tcp/https { meta l4proto tcp dnat to 172.18.0.10:6443; }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
}
table ip6 kube-proxy {
  chain nat-prerouting { type nat hook prerouting priority dstnat; }
}
";

const FILTERS: &str = "
table inet host {
  set closed { type inet_service; flags interval; elements = { 30000-30100 } }
  chain from-outside { ip daddr 10.96.0.0/12 drop; }
  chain early {
    type filter hook prerouting priority raw;
    tcp dport @closed drop
    tcp dport 22 accept
    jump from-outside
  }
  chain forwarded { type filter hook forward priority filter; policy drop; ip daddr 10.96.0.10 accept; }
}
";

/// A node on which nothing stands in the way.
fn node(world: &World) -> Result<Node> {
    let node = world.add_node("node-1")?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        node.sysctl(key, "1")?;
    }
    Ok(node)
}

struct Checked {
    output: Output,
    report: Value,
}

impl Checked {
    fn of(output: Output) -> Result<Self> {
        let report = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the report of weir check: {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(Self { output, report })
    }

    /// Levels and texts of an area, `ok` left out.
    fn bad(&self, area: &str) -> Vec<String> {
        let findings = self.report["findings"].as_array().into_iter().flatten();
        let bad = findings.filter(|finding| finding["area"] == area && finding["level"] != "ok");
        bad.map(|finding| format!("{}: {}", text(&finding["level"]), text(&finding["found"]))).collect()
    }

    fn ensure(&self, area: &str, expected: &[&str]) -> Result<()> {
        let bad = self.bad(area);
        let all = bad.len() == expected.len() && bad.iter().zip(expected).all(|(found, part)| found.contains(part));
        ensure!(all, "{area}: expected {expected:?}, found {bad:#?}");
        Ok(())
    }

    fn code(&self) -> Option<i32> {
        self.output.status.code()
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn check(node: &Node, args: &[&str]) -> Result<Checked> {
    Checked::of(command(node, node.pin_dir(), args)?.output().context("running weir check")?)
}

fn command(node: &Node, pins: &Path, args: &[&str]) -> Result<Command> {
    let mut command = node.command(weir_binary()?)?;
    // The objects of a cluster are not looked at; the directory only has to be there.
    command.args(["check", "-o", "json", "--manifests", "/", "--cgroup-root"]).arg(node.cgroup_path());
    command.arg("--pin-root").arg(pins).args(args);
    Ok(command)
}

async fn ready() -> Result<()> {
    let world = World::new("check")?;
    let node = node(&world)?;
    let checked = check(&node, &["--strict"])?;
    ensure!(checked.code() == Some(0), "{:#}", checked.report);
    // Names in a BPF file system of its own, as another CNI's maps and links would have.
    for (name, level) in [
        ("tc/globals/cali_v4_nat_fe3", "error: Calico's eBPF dataplane"),
        ("cilium/socketlb/links/cgroup/cil_sock4_connect", "error: Cilium translates Services at connect time"),
        ("tc/globals/cilium_lb4_services_v2", "warning: Cilium is on this node"),
    ] {
        let checked = beside(&node, name)?;
        checked.ensure("cni", &[level])?;
        ensure!(checked.code() == Some(if level.starts_with("error") { 1 } else { 0 }), "{name}: {:?}", checked.output);
    }
    node.sysctl("net/ipv4/ip_forward", "0")?;
    let checked = check(&node, &[])?;
    checked.ensure("sysctls", &["error: net.ipv4.ip_forward is 0"])?;
    ensure!(checked.code() == Some(1), "{:?}", checked.output);
    world.close()
}

/// The command in a mount namespace of its own.
fn beside(node: &Node, name: &'static str) -> Result<Checked> {
    // In the BPF file system of its own there is no pin directory of the node's.
    let mut command = command(node, Path::new("/sys/fs/bpf/weir"), &[])?;
    let prepare = move || {
        let failed = |errno: nix::errno::Errno| std::io::Error::from(errno);
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(failed)?;
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), None::<&str>).map_err(failed)?;
        fs::create_dir_all(Path::new("/sys/fs/bpf").join(name))
    };
    // SAFETY: between fork and exec of a child that shares nothing with this process' other threads; it takes no lock that
    // they could hold but the allocator's, which the C library keeps usable in the child.
    unsafe { command.pre_exec(prepare) };
    Checked::of(command.output().context("running weir check in a mount namespace")?)
}

async fn kube_proxy() -> Result<()> {
    let world = World::new("check")?;
    let node = node(&world)?;
    node.nft(KUBE_PROXY)?;
    // A dummy device by kube-proxy; not every kernel of a test machine has those.
    node.ip(&["link add kube-ipvs0 type veth peer name kube-ipvs1".to_owned()])?;
    let checked = check(&node, &[])?;
    ensure!(checked.code() == Some(0), "warnings are no errors: {:#}", checked.report);
    let left = checked.bad("kube-proxy");
    let first = left.first().context("nothing was found")?;
    for part in ["kube-proxy left rules behind", "table ip kube-proxy", "table ip6 kube-proxy", "kube-ipvs0"] {
        ensure!(first.contains(part), "{part}: {left:#?}");
    }
    // Its own rules are no filters of the host.
    checked.ensure("firewall", &[])?;

    let program = world.run_dir().join("kube-proxy");
    fs::copy("/bin/sleep", &program).context("a program named kube-proxy")?;
    let mut running = node.command(&program)?.arg("60").spawn().context("starting it")?;
    let health: SocketAddr = "0.0.0.0:10256".parse()?;
    let socket = node.listen(health)?;
    let checked = check(&node, &["--strict"])?;
    let found = checked.bad("kube-proxy");
    running.kill().and_then(|()| running.wait()).context("ending it")?;
    drop(socket);
    for part in ["kube-proxy runs (process", "listens on port 10256", "rules of kube-proxy are in place"] {
        ensure!(found.iter().any(|found| found.contains(part)), "{part}: {found:#?}");
    }
    ensure!(checked.code() == Some(1), "warnings count with --strict");
    let elsewhere = check(&node, &["--healthz-bind-address", "0.0.0.0:10257"])?.bad("kube-proxy");
    ensure!(!elsewhere.iter().any(|found| found.contains("10256")), "{elsewhere:?}");
    world.close()
}

async fn filters() -> Result<()> {
    let world = World::new("check")?;
    let node = node(&world)?;
    node.nft(FILTERS)?;
    let expected = [
        "warning: table inet host, chain from-outside: `daddr 10.96.0.0/12 drop`: no longer sees",
        "warning: table inet host, chain early: `dport 30000-30100 drop`: no longer sees",
        "warning: table inet host, chain forwarded: the policy",
    ];
    check(&node, &[])?.ensure("firewall", &expected)?;
    // Another cluster's ranges.
    let others = ["--service-cluster-ip-range", "172.20.0.0/16", "--service-node-port-range", "31000-32767"];
    check(&node, &others)?.ensure("firewall", &expected[2..])?;
    let before = node.run_program("nft", &["list", "ruleset"])?;
    check(&node, &[])?;
    ensure!(node.run_program("nft", &["list", "ruleset"])? == before, "the check changed the rules");
    world.close()
}

async fn configuration() -> Result<()> {
    let world = World::new("check")?;
    let node = node(&world)?;
    let file = world.run_dir().join("config.conf");
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    for (rest, code, expected) in [
        ("mode: nftables\n", 0, &[][..]),
        (
            "mode: nftables\nclusterCIDR: 10.244.0.0/16\n",
            0,
            &["warning: line 4: clusterCIDR: 10.244.0.0/16 has no effect"][..],
        ),
        ("modee: nftables\n", 1, &["error: line 3: modee: unknown field"]),
        ("oomScoreAdj: high\n", 1, &["oomScoreAdj: expected an integer from -1000 to 1000, got \"high\""]),
    ] {
        fs::write(&file, format!("{head}{rest}")).context("writing the configuration")?;
        let name = file.to_str().context("a path in UTF-8")?;
        let checked = check(&node, &["--config", name])?;
        checked.ensure("configuration", expected)?;
        ensure!(checked.code() == Some(code), "{rest:?}: {:#}", checked.report);
        // The agent refuses what is an error here; unknown fields with --strict-config only.
        if code == 1 {
            let agent = node.weir("agent", &["--config", name, "--strict-config", "--manifests", "/"])?;
            ensure!(agent.status.code() == Some(1), "{rest:?}: {agent:?}");
        }
    }
    world.close()
}

/// Fields of every treatment, seen from outside.
async fn honoured() -> Result<()> {
    let directory = tempfile::tempdir().context("a directory for the configuration")?;
    let file = directory.path().join("config.conf");
    let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\noomScoreAdj: 321\n\
                  nftables: {masqueradeAll: true}\nlogging: {format: json}\nclusterCIDR: 10.244.0.0/16\nunknownField: 1\n\
                  nodePortAddresses: [172.18.0.99/32]\nhostnameOverride: not-this-one\n";
    fs::write(&file, config).context("writing the configuration")?;
    let name = file.to_str().context("a path in UTF-8")?;
    let (stage, agents) =
        small::one_agent(small::service(|_| {}), &["--config", name, "--connect-hooks", "off"]).await?;
    let agent = agents.get("node-1").context("an agent on node-1")?;
    let log = agent.log_text();
    let first = log.lines().next().unwrap_or_default();
    ensure!(serde_json::from_str::<Value>(first).is_ok(), "no JSON: {first}");
    for part in ["line 7: clusterCIDR: 10.244.0.0/16 has no effect", "line 8: unknownField: unknown field"] {
        ensure!(log.contains(part), "{part}: {log}");
    }
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", agent.pid())).context("oom_score_adj")?;
    ensure!(score.trim() == "321", "oom_score_adj is {score}");
    // Of a pod of this node only masqueradeAll hides the address.
    let node = stage.address("node-1", small::CLUSTER_IP.ip())?;
    for _ in 0..8 {
        let result = stage.ask("near", Proto::Tcp, small::CLUSTER_IP, Options::default()).await?;
        let reply = result.answered().context("near -> ClusterIP")?;
        ensure!(reply.client.ip() == node || reply.pod == "web-1", "seen as {}", reply.client);
        ensure!(reply.client.ip() != stage.address("near", node)?, "not masqueraded");
    }
    // The node's address is not among nodePortAddresses.
    let refused = stage.ask("client", Proto::Tcp, small::NODE_1, Options::default()).await?;
    ensure!(refused.answered().is_err(), "a NodePort on an address that is not listed: {refused:?}");
    Ok(())
}
