//! `weir check`: what stands in the way of an agent with these flags on this node, and what to do about it. Takes every flag of
//! `weir agent`, so that a DaemonSet's arguments can be tried as they are.

use std::{env, net::IpAddr, ops::RangeInclusive, path::Path};

use clap::Args;
use kube::config::Kubeconfig;
use serde::Serialize;

use super::{
    AgentArgs,
    agent::{SERVICE_RANGE, port_range},
    output::{Format, print_json},
    services, tables,
};
use crate::{
    agent::{AgentConfig, Source},
    check::{self, Cgroup, Finding, Frontends, Level, Wanted},
    kubeproxy,
    loader::ConnectHooks,
};

const CONFIGURATION: &str = "configuration";
const KUBECONFIG: &str =
    "name a kubeconfig by --kubeconfig or in the file of --config; in a pod the service account is used";

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    agent: Box<AgentArgs>,
    /// Warnings count as errors
    #[arg(long)]
    strict: bool,
    /// From which NodePorts are allocated; rules of the host's filters about them are looked for
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: RangeInclusive<u16>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    errors: usize,
    warnings: usize,
    findings: Vec<Finding>,
}

/// Fails if there are errors; with `--strict`, warnings.
pub(super) fn run(args: CheckArgs) -> anyhow::Result<()> {
    let (strict, output) = (args.strict, args.output);
    let report = Report::of(args.findings());
    match output {
        Format::Json => print_json(&report)?,
        Format::Table => report.print(),
    }
    if report.errors > 0 || strict && report.warnings > 0 {
        anyhow::bail!("not ready: {} errors, {} warnings", report.errors, report.warnings);
    }
    Ok(())
}

impl CheckArgs {
    fn findings(self) -> Vec<Finding> {
        let (settings, mut findings) = kube_proxys(&self.agent);
        let hooks = self.agent.connect_hooks;
        let mut config = match self.agent.config(settings) {
            Ok(config) => config,
            Err(error) => {
                findings.push(Finding::error(CONFIGURATION, format!("{error:#}"), "weir agent --help lists the flags"));
                return findings;
            }
        };
        findings.extend(source(&config.source));
        if findings.is_empty() {
            findings.push(Finding::ok(CONFIGURATION, format!("valid; the node's name is {}", config.node_name)));
        }
        if config.service_cidrs.is_empty() {
            config.service_cidrs.push(SERVICE_RANGE.parse().expect("invariant: the constant is a CIDR"));
        }
        let wanted = Wanted {
            cgroup: (hooks != ConnectHooks::Off).then(|| config.cgroup_root.clone().map_or(Cgroup::Root, Cgroup::At)),
            snat_ports: config.snat_ports,
            listens: [config.health.healthz, config.health.metrics].into_iter().flatten().collect(),
            frontends: frontends(&config, self.service_node_port_range),
            proc: config.sockets.host_proc.clone(),
            pin_root: config.pin_root,
        };
        findings.extend(check::host(&wanted));
        findings
    }
}

/// kube-proxy's file and flags. An unknown field is an error here.
fn kube_proxys(args: &AgentArgs) -> (kubeproxy::Settings, Vec<Finding>) {
    const FIELDS: &str = "docs/configuration.md lists every field and what becomes of it";
    match args.kube_proxys(false) {
        Ok((settings, found)) => {
            let finding = |it: kubeproxy::Finding| match it.unknown {
                true => Finding::error(CONFIGURATION, it.to_string(), FIELDS),
                false => Finding::warning(CONFIGURATION, it.to_string(), FIELDS),
            };
            (settings, found.into_iter().map(finding).collect())
        }
        Err(error) => (kubeproxy::Settings::default(), vec![Finding::error(CONFIGURATION, error.to_string(), FIELDS)]),
    }
}

fn source(source: &Source) -> Option<Finding> {
    match source {
        Source::Manifests(config) => (!config.path.exists()).then(|| {
            let found = format!("{} does not exist", config.path.display());
            Finding::error(CONFIGURATION, found, "--manifests names a directory or file of YAML")
        }),
        Source::Kubernetes(config) => match &config.kubeconfig {
            Some(path) => kubeconfig(path),
            None if config.master.is_some() || env::var_os("KUBERNETES_SERVICE_HOST").is_some() => None,
            None => Some(Finding::warning(CONFIGURATION, "no API server is named, and this is not a pod", KUBECONFIG)),
        },
    }
}

fn kubeconfig(path: &Path) -> Option<Finding> {
    if !path.exists() {
        let found = format!("the kubeconfig {} is not there (where this command runs)", path.display());
        return Some(Finding::warning(CONFIGURATION, found, KUBECONFIG));
    }
    let error = Kubeconfig::read_from(path).err()?;
    Some(Finding::error(CONFIGURATION, format!("the kubeconfig {}: {error}", path.display()), KUBECONFIG))
}

/// The ranges that were named, and each address that is programmed now.
fn frontends(config: &AgentConfig, node_ports: RangeInclusive<u16>) -> Frontends {
    let programmed = tables::pins(&config.pin_root).and_then(|pins| services::frontends(&pins)).unwrap_or_default();
    let addresses: Vec<IpAddr> = programmed.iter().filter_map(|row| row.address.as_ref()?.parse().ok()).collect();
    Frontends { ranges: config.service_cidrs.clone(), addresses, node_ports }
}

impl Report {
    fn of(findings: Vec<Finding>) -> Self {
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        Self { errors: count(Level::Error), warnings: count(Level::Warning), findings }
    }

    fn print(&self) {
        for finding in &self.findings {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Error => "error",
            };
            println!("{level:<8} {:<13} {}", finding.area, finding.found);
            if let Some(advice) = &finding.advice {
                println!("{:<22} -> {advice}", "");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_counted() {
        let findings = vec![Finding::ok("a", "x"), Finding::warning("b", "y", "z"), Finding::error("c", "y", "z")];
        let report = Report::of(findings);
        assert_eq!((report.errors, report.warnings), (1, 1));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][1]["level"], "warning");
        assert!(json["findings"][0].get("advice").is_none());
    }

    #[test]
    fn kubeconfigs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "clusters: 7\n").unwrap();
        assert_eq!(kubeconfig(file.path()).map(|it| it.level), Some(Level::Error));
        std::fs::write(file.path(), "apiVersion: v1\nkind: Config\nclusters: []\n").unwrap();
        assert_eq!(kubeconfig(file.path()), None);
        assert_eq!(kubeconfig(Path::new("/nonexistent")).map(|it| it.level), Some(Level::Warning));
    }
}
