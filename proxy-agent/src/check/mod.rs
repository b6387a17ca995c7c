//! Whether this node is ready for Weir: each area of the host looks at one thing and says what it found and what to do about it.
//! Nothing is changed. Called by `weir check`, which adds what it finds in the configuration.

mod cni;
mod firewall;
mod kernel;
mod kube_proxy;
mod mounts;
mod privileges;
mod sysctls;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
};

use ipnet::IpNet;
use serde::Serialize;

use crate::node::ports::PortRange;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Weir runs; something may not be as wanted.
    Warning,
    /// Weir does not run, or does not do its work.
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub area: &'static str,
    pub found: String,
    /// What to do about it; none if there is nothing to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    pub fn ok(area: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Ok, area, found: found.into(), advice: None }
    }

    pub fn warning(area: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warning, area, found: found.into(), advice: Some(advice.into()) }
    }

    pub fn error(area: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Error, area, found: found.into(), advice: Some(advice.into()) }
    }
}

/// What the host is held against.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub pin_root: PathBuf,
    /// None if no connect hooks are wanted.
    pub cgroup: Option<Cgroup>,
    pub snat_ports: PortRange,
    /// Where the agent will listen.
    pub listens: Vec<SocketAddr>,
    pub frontends: Frontends,
    /// The host's proc file system.
    pub proc: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// The root of the cgroup2 hierarchy.
    Root,
    At(PathBuf),
}

/// What filters of the host may be written about.
#[derive(Clone, Debug)]
pub struct Frontends {
    /// Ranges of Service addresses.
    pub ranges: Vec<IpNet>,
    /// Single ones, as far as they are known.
    pub addresses: Vec<IpAddr>,
    pub node_ports: RangeInclusive<u16>,
}

/// All areas, in the order in which an operator would mend them.
pub fn host(wanted: &Wanted) -> Vec<Finding> {
    let mut findings = privileges::check();
    findings.extend(kernel::check());
    findings.extend(mounts::check(&wanted.pin_root, wanted.cgroup.as_ref()));
    findings.extend(sysctls::check(wanted.snat_ports));
    findings.extend(kube_proxy::check(wanted));
    findings.extend(cni::check(&wanted.proc));
    findings.extend(firewall::check(&wanted.frontends));
    findings
}
