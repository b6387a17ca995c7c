//! `weir-rig suite image`: the archive of `cargo xtask image`, unpacked and run as the manifests in `deploy/` say: root,
//! mounts, arguments, environment and capabilities are those of the DaemonSet, network and cgroup are a simulated node's. What
//! belongs here: anything that could be right in a build tree and wrong in a cluster. A world per test, about 2 s each.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context, Result, ensure};
use futures::future::{BoxFuture, FutureExt};
use k8s_openapi::api::rbac::v1::ClusterRole;
use libtest_mimic::Trial;

use super::{
    control::{CLUSTER_IP, Control},
    trial,
};
use crate::{
    apiserver::Config,
    call::{Options, Outcome, Proto},
    deploy::{
        container::{Bind, Container},
        directory,
        image::{Image, unpack},
        kustomize::render,
        pod,
    },
    world::{Agent, rig_binary},
};

type Test = (&'static str, fn() -> BoxFuture<'static, Result<()>>);

const TESTS: &[Test] = &[
    ("the_binary_needs_nothing_but_itself", || alone().boxed()),
    ("serves_as_the_manifests_say", || as_deployed().boxed()),
    ("serves_with_the_capabilities_of_the_unprivileged_variant", || unprivileged().boxed()),
    ("each_of_these_capabilities_is_needed", || capabilities().boxed()),
    ("serves_manifests_from_a_directory", || from_directory().boxed()),
];

/// Where the archive is, beside this program or in WEIR_IMAGE.
const ARCHIVE: &str = "weir-image.tar";
/// Looked up in the container's /etc/hosts, as kubelet fills it in for pods on the host's network.
const SERVER_NAME: &str = "api.cluster.test";

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
        Ok(Self { control, image, work })
    }

    /// What the manifests say, with the node's own places for pins and cgroups, and what kubelet adds.
    fn container(&self, variant: &Path) -> Result<Container> {
        let mut container = pod::container(variant, &self.image, self.control.node.name(), &self.work)?;
        container.command.push(format!("--pin-root={}", self.control.node.pin_dir().display()));
        container.command.push(format!("--cgroup-root={}", self.control.node.cgroup_path().display()));
        let hosts = self.work.join("hosts");
        fs::write(&hosts, format!("{} {SERVER_NAME}\n", Ipv4Addr::LOCALHOST)).context("hosts")?;
        container.binds.push(Bind { source: hosts, target: "/etc/hosts".into(), read_only: true });
        Ok(container)
    }

    fn with_server(&self, mut container: Container) -> Container {
        let port = self.control.server.address().port();
        container.command.push(format!("--master=http://{SERVER_NAME}:{port}"));
        container
    }

    fn start(&self, container: &Container) -> Result<Agent> {
        Agent::spawn(&self.control.node, self.command(container)?)
    }

    /// To its end.
    fn run(&self, container: &Container) -> Result<Output> {
        self.command(container)?.output().context("running a container")
    }

    fn command(&self, container: &Container) -> Result<std::process::Command> {
        let spec = self.work.join("container.json");
        container.save(&spec)?;
        let mut command = self.control.node.command(rig_binary()?)?;
        command.arg("container").arg(spec);
        Ok(command)
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

/// `kubectl apply -k deploy/`. The API server is known by name, and asked for nothing that the ClusterRole does not allow.
async fn as_deployed() -> Result<()> {
    let site = Site::new().await?;
    let container = site.with_server(site.container(&directory())?);
    ensure!(container.privileged && container.read_only_root, "{container:?}");
    let mut agent = site.start(&container)?;
    agent.wait_ready().await?;
    site.control.served_by(&["web-1", "web-2"], None).await?;
    allowed(&site.control.server.requests())?;
    ensure!(agent.terminate().await?.success(), "{}", agent.tail());
    // What the pod leaves behind works on.
    site.control.served_by(&["web-1", "web-2"], None).await
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

async fn unprivileged() -> Result<()> {
    let site = Site::new().await?;
    let container = site.with_server(site.container(&variant("unprivileged"))?);
    ensure!(!container.privileged && container.no_new_privileges, "{container:?}");
    let mut agent = site.start(&container)?;
    agent.wait_ready().await?;
    site.control.served_by(&["web-1", "web-2"], None).await?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).context("status of the agent")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?.trim();
    // NET_ADMIN 12, PERFMON 38, BPF 39.
    ensure!(u64::from_str_radix(effective, 16)? == 1 << 12 | 1 << 38 | 1 << 39, "the agent has {effective}");
    ensure!(agent.terminate().await?.success(), "{}", agent.tail());
    Ok(())
}

/// Without one of them the agent ends with an error, and nothing is attached.
async fn capabilities() -> Result<()> {
    let site = Site::new().await?;
    let all = site.with_server(site.container(&variant("unprivileged"))?);
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
    agent.wait_ready().await?;
    site.control.served_by(&["web-1", "web-2"], None).await?;
    ensure!(agent.terminate().await?.success(), "{}", agent.tail());
    Ok(())
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
