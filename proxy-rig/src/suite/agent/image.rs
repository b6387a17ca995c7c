//! `weir-rig suite image`: the archive of `cargo xtask image`, unpacked and run as the manifests in `deploy/` say: root,
//! mounts, arguments, environment and capabilities are those of the DaemonSet, network and cgroup are a simulated node's. What
//! belongs here: anything that could be right in a build tree and wrong in a cluster. A world per test, about 2 s each.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::{BoxFuture, FutureExt};
use k8s_openapi::api::rbac::v1::ClusterRole;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::{
    control::{CLUSTER_IP, Control},
    health, trial,
};
use crate::{
    apiserver::{Config, Tls},
    call::{Options, Outcome, Proto},
    deploy::{
        container::{Bind, Container},
        directory,
        image::{Image, unpack},
        kustomize::render,
        pod,
    },
    world::{Agent, is_ready_line, rig_binary},
};

type Test = (&'static str, fn() -> BoxFuture<'static, Result<()>>);

const TESTS: &[Test] = &[
    ("the_binary_needs_nothing_but_itself", || alone().boxed()),
    ("serves_as_the_manifests_say", || as_deployed().boxed()),
    ("serves_with_the_configuration_of_kubeadm", || kubeadm().boxed()),
    ("an_update_starts_the_next_agent_beside_the_last", || update().boxed()),
    ("serves_with_the_capabilities_of_the_unprivileged_variant", || unprivileged().boxed()),
    ("each_of_these_capabilities_is_needed", || capabilities().boxed()),
    ("serves_manifests_from_a_directory", || from_directory().boxed()),
];

/// Where the archive is, beside this program or in WEIR_IMAGE.
const ARCHIVE: &str = "weir-image.tar";
/// Looked up in the container's /etc/hosts, as kubelet fills it in for pods on the host's network.
const SERVER_NAME: &str = "api.cluster.test";
/// Where the double serves HTTPS.
const TLS_PORT: u16 = 6444;
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Of the health endpoint, as in the probes.
const HEALTHZ_PORT: u16 = 10256;

pub(in crate::suite) fn tests() -> Vec<Trial> {
    TESTS.iter().map(|&(name, test)| trial(name, "deployment", test)).collect()
}

/// A world and the unpacked image, in which nothing runs yet.
struct Site {
    control: Control,
    image: Image,
    work: PathBuf,
}

impl Site {
    async fn new() -> Result<Self> {
        let control = Control::new(Config::default()).await?;
        let work = control.stage.world.run_dir().join("image");
        let image = unpack(&archive()?, &work.join("root"))?;
        fs::write(work.join("hosts"), format!("{} {SERVER_NAME}\n", Ipv4Addr::LOCALHOST)).context("hosts")?;
        let tls = Tls::new(&[SERVER_NAME])?;
        control.server.serve_tls(control.node.listen((Ipv4Addr::LOCALHOST, TLS_PORT).into())?, &tls)?;
        let account = work.join("account");
        fs::create_dir(&account).context("service account")?;
        fs::write(account.join("ca.crt"), &tls.ca).context("ca.crt")?;
        fs::write(account.join("token"), tls.token).context("token")?;
        fs::write(account.join("namespace"), "kube-system").context("namespace")?;
        Ok(Self { control, image, work })
    }

    /// What the manifests say, with the node's own places for pins and cgroups, and what kubelet adds. The cluster has the
    /// ConfigMap with the API server's address, which no Service serves.
    fn container(&self, variant: &Path) -> Result<Container> {
        let address = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "weir-api"},
            "data": {"KUBERNETES_SERVICE_HOST": SERVER_NAME, "KUBERNETES_SERVICE_PORT": TLS_PORT.to_string()},
        });
        self.container_with(variant, &[address])
    }

    fn container_with(&self, variant: &Path, others: &[Value]) -> Result<Container> {
        let node = &self.control.node;
        let mut container = pod::container(variant, &self.image, node.name(), &self.work, others)?;
        container.command.push(format!("--pin-root={}", node.pin_dir().display()));
        container.command.push(format!("--cgroup-root={}", node.cgroup_path().display()));
        for (name, target) in [("hosts", "/etc/hosts"), ("account", ACCOUNT)] {
            container.binds.push(Bind { source: self.work.join(name), target: target.into(), read_only: true });
        }
        Ok(container)
    }

    fn start(&self, container: &Container) -> Result<Agent> {
        Agent::spawn(&self.control.node, self.command(container)?)
    }

    /// To its end.
    fn run(&self, container: &Container) -> Result<Output> {
        self.command(container)?.output().context("running a container")
    }

    /// Another program in the same container, as by `kubectl exec`.
    fn exec(&self, container: &Container, args: &[&str]) -> Result<Output> {
        let mut container = container.clone();
        container.command = self.image.entrypoint.clone();
        container.command.extend(args.iter().map(|&arg| arg.to_owned()));
        container.command.push(format!("--pin-root={}", self.control.node.pin_dir().display()));
        self.run(&container)
    }

    /// `weir check` finds no error in the container of the agent, with its arguments.
    fn passes_the_check(&self, container: &Container) -> Result<()> {
        let mut container = container.clone();
        let agent = container.command.iter_mut().find(|word| *word == "agent").context("no agent")?;
        "check".clone_into(agent);
        let output = self.run(&container)?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "weir check: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn command(&self, container: &Container) -> Result<Command> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let spec = self.work.join(format!("container-{number}.json"));
        container.save(&spec)?;
        let mut command = self.control.node.command(rig_binary()?)?;
        command.arg("container").arg(spec);
        Ok(command)
    }

    /// What kubelet asks, at the pod's address, which is the node's.
    fn probes_succeed(&self) -> Result<()> {
        let to = SocketAddr::new(self.control.node.ipv4().into(), HEALTHZ_PORT);
        for path in ["/livez", "/healthz"] {
            let answer = health::get(&self.control.node, to, path)?;
            ensure!(answer.code == 200, "{path}: {answer:?}");
        }
        Ok(())
    }
}

/// `weir version` in a root that holds the binary alone: no loader, no library, no /proc.
async fn alone() -> Result<()> {
    let site = Site::new().await?;
    let command = [site.image.entrypoint.clone(), ["version", "-o", "json"].map(str::to_owned).to_vec()].concat();
    let container = Container { root: site.image.root.clone(), command, read_only_root: true, ..Container::default() };
    let output = site.run(&container)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    let version: serde_json::Value = serde_json::from_str(&text).context("JSON")?;
    ensure!(version["kernelPrograms"] == true, "no kernel programs are embedded: {version}");
    let wanted = format!("localhost/weir:{}", version["version"].as_str().unwrap_or_default());
    ensure!(site.image.name == wanted, "the image of {wanted} is called {}", site.image.name);
    let files: Vec<_> =
        fs::read_dir(&site.image.root)?.map(|entry| entry.map(|it| it.file_name())).collect::<Result<_, _>>()?;
    ensure!(files == ["weir"], "the image holds {files:?}");
    Ok(())
}

/// `kubectl apply -k deploy/`. The API server is known by a name and the CA of the service account, and asked for nothing that the
/// ClusterRole does not allow.
async fn as_deployed() -> Result<()> {
    let site = Site::new().await?;
    let container = site.container(&directory())?;
    ensure!(container.privileged && container.read_only_root, "{container:?}");
    site.passes_the_check(&container)?;
    let mut agent = site.start(&container)?;
    ready(&mut agent).await?;
    site.control.served_by(&["web-1", "web-2"], None).await?;
    site.probes_succeed()?;
    allowed(&site.control.server.requests())?;
    let status = site.exec(&container, &["status"])?;
    ensure!(status.status.success(), "weir status: {}", String::from_utf8_lossy(&status.stderr));
    ensure!(agent.terminate().await?.success(), "{}", agent.tail());
    // What the pod leaves behind works on.
    site.control.served_by(&["web-1", "web-2"], None).await
}

/// What kubeadm wrote for kube-proxy, with the address of this API server.
async fn kubeadm() -> Result<()> {
    let site = Site::new().await?;
    let text = fs::read_to_string(directory().join("../examples/kube-proxy-config.yaml")).context("the example")?;
    let text = text.replace("https://192.0.2.10:6443", &format!("https://{SERVER_NAME}:{TLS_PORT}"));
    let container = site.container_with(&variant("kubeadm"), &[serde_saphyr::from_str(&text)?])?;
    let mut agent = site.start(&container)?;
    ready(&mut agent).await?;
    site.control.served_by(&["web-1", "web-2"], None).await?;
    site.probes_succeed()?;
    ensure!(agent.terminate().await?.success(), "{}", agent.tail());
    Ok(())
}

/// maxSurge 1, maxUnavailable 0: the second pod of a node must become ready beside the first, which is ended then.
async fn update() -> Result<()> {
    let mut site = Site::new().await?;
    let container = site.container(&directory())?;
    let mut last = site.start(&container)?;
    ready(&mut last).await?;
    let mut next = site.start(&container)?;
    next.wait_for_line(Duration::from_secs(20), |line| line.contains("waiting as standby")).await?;
    // What the standby answers, the active agent writes down every second. The kernel hands each connection to one of the two.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for _ in 0..20 {
        site.probes_succeed()?;
    }
    ensure!(last.terminate().await?.success(), "{}", last.tail());
    ready(&mut next).await?;
    site.probes_succeed()?;
    site.control.stage.cluster.remove_pod("web-1");
    site.control.sync()?;
    site.control.served_by(&["web-2"], None).await
}

/// Every request is one of the role's verbs on one of its resources.
fn allowed(requests: &[String]) -> Result<()> {
    let role = render(&directory())?.into_iter().find(|object| object["kind"] == "ClusterRole");
    let role: ClusterRole = serde_json::from_value(role.context("no ClusterRole")?)?;
    ensure!(!requests.is_empty(), "nothing was asked for");
    for request in requests {
        let (verb, group, plural) = asked(request).with_context(|| request.clone())?;
        let has =
            |list: Option<&Vec<String>>, wanted: &str| list.is_some_and(|list| list.iter().any(|it| it == wanted));
        let covered = role.rules.iter().flatten().any(|rule| {
            has(rule.api_groups.as_ref(), group)
                && has(rule.resources.as_ref(), plural)
                && rule.verbs.iter().any(|allowed| allowed == verb)
        });
        ensure!(covered, "the ClusterRole does not allow to {verb} {plural} of {group:?}: {request}");
    }
    Ok(())
}

/// Verb, group and resource as RBAC sees `METHOD PATH?QUERY`. Objects by name are a `get`.
fn asked(request: &str) -> Option<(&'static str, &str, &str)> {
    let (method, uri) = request.split_once(' ')?;
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
    let (group, rest) = match steps.as_slice() {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let verb = match (method, rest.len()) {
        ("GET", 1) if query.contains("watch=") => "watch",
        ("GET", 1) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PATCH", _) => "patch",
        ("PUT", _) => "update",
        ("DELETE", _) => "delete",
        _ => return None,
    };
    Some((verb, group, *rest.first()?))
}

/// With a server that wants neither certificates nor credentials, of which the container has none.
async fn unprivileged() -> Result<()> {
    let site = Site::new().await?;
    let mut container = site.container(&variant("unprivileged"))?;
    container.binds.retain(|bind| bind.target != Path::new(ACCOUNT));
    container.command.push(format!("--master=http://{SERVER_NAME}:{}", site.control.server.address().port()));
    ensure!(!container.privileged && container.no_new_privileges, "{container:?}");
    site.passes_the_check(&container)?;
    let mut agent = site.start(&container)?;
    ready(&mut agent).await?;
    site.control.served_by(&["web-1", "web-2"], None).await?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).context("status of the agent")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?.trim();
    // NET_ADMIN 12, PERFMON 38, BPF 39.
    ensure!(u64::from_str_radix(effective, 16)? == 1 << 12 | 1 << 38 | 1 << 39, "the agent has {effective}");
    site.probes_succeed()?;
    ensure!(agent.terminate().await?.success(), "{}", agent.tail());
    Ok(())
}

/// Without one of them the agent ends with an error, and nothing is attached.
async fn capabilities() -> Result<()> {
    let site = Site::new().await?;
    let all = site.container(&variant("unprivileged"))?;
    for missing in &all.capabilities {
        let mut container = all.clone();
        container.capabilities.retain(|name| name != missing);
        let output = site.run(&container)?;
        let log = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "without CAP_{missing}: {log}");
        println!("without CAP_{missing}: {}", log.lines().rfind(|line| line.contains("agent:")).unwrap_or_default());
    }
    let options = Options { timeout_ms: 200, ..Options::default() };
    let result = site.control.stage.ask("near", Proto::Tcp, CLUSTER_IP, options).await?;
    ensure!(!matches!(result.outcome, Outcome::Answered(_)), "somebody serves: {result:?}");
    Ok(())
}

/// Without an API server, as for static pods: a directory of YAML is mounted.
async fn from_directory() -> Result<()> {
    let mut site = Site::new().await?;
    site.control.stage.cluster.publish()?;
    let mut container = site.container(&directory())?;
    let source = site.control.stage.cluster.dir().to_owned();
    container.binds.push(Bind { source, target: "/manifests".into(), read_only: true });
    container.command.push("--manifests=/manifests".to_owned());
    let mut agent = site.start(&container)?;
    ready(&mut agent).await?;
    site.control.served_by(&["web-1", "web-2"], None).await?;
    ensure!(agent.terminate().await?.success(), "{}", agent.tail());
    Ok(())
}

/// The rig's own limit is that of emulated machines.
async fn ready(agent: &mut Agent) -> Result<()> {
    agent.wait_for_line(Duration::from_secs(60), is_ready_line).await
}

fn variant(name: &str) -> PathBuf {
    directory().join("overlays").join(name)
}

fn archive() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WEIR_IMAGE") {
        return Ok(path.into());
    }
    let path = rig_binary()?.with_file_name(ARCHIVE);
    ensure!(path.is_file(), "no {}: `cargo xtask test --stage image` builds it, or set WEIR_IMAGE", path.display());
    Ok(path)
}
