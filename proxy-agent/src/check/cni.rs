//! Others that translate Services: CNIs with a Service implementation of their own, found by their programs in the kernel, their
//! pinned maps, and their processes.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::{Finding, Level};

const AREA: &str = "cni";
const BPFFS: &str = "/sys/fs/bpf";

/// How one of them is known, and what to do about it.
struct Other {
    name: &'static str,
    /// Beginnings of the names of its programs. Kernels keep 15 characters.
    programs: &'static [&'static str],
    /// Beginnings of file names of pinned maps, with the directory below the BPF file system.
    pins: &'static [(&'static str, &'static str)],
    process: Option<&'static str>,
    level: Level,
    what: &'static str,
    advice: &'static str,
}

/// The first entry that matches of each name counts.
const OTHERS: &[Other] = &[
    Other {
        name: "Cilium",
        programs: &["cil_sock4_conne", "cil_sock6_conne", "cil_sock4_sendm"],
        pins: &[("cilium/socketlb/links/cgroup", "cil_sock")],
        process: None,
        level: Level::Error,
        what: "Cilium translates Services at connect time (kube-proxy replacement or socket load balancing)",
        advice: "set kubeProxyReplacement=false and socketLB.enabled=false in Cilium, or do not install Weir",
    },
    Other {
        name: "Cilium",
        programs: &["cil_from_", "cil_to_"],
        pins: &[("tc/globals", "cilium_lb4_serv"), ("tc/globals", "cilium_lb6_serv"), ("cilium", "")],
        process: Some("cilium-agent"),
        level: Level::Warning,
        what: "Cilium is on this node; it translates Services of pods at tc if its kube-proxy replacement is on",
        advice: "set kubeProxyReplacement=false in Cilium; --tc-order says who comes first (docs/operations.md)",
    },
    Other {
        name: "Calico",
        programs: &["calico_connect", "cali_ctlb_", "cali_tc_", "calico_tc_"],
        pins: &[("tc/globals", "cali_v4_nat_fe"), ("tc/globals", "cali_v6_nat_fe"), ("calico", "")],
        process: None,
        level: Level::Error,
        what: "Calico's eBPF dataplane translates Services",
        advice: "set bpfEnabled: false in Calico's FelixConfiguration (linuxDataplane: Iptables or Nftables), or do not install Weir",
    },
    Other {
        name: "kube-router",
        programs: &[],
        pins: &[],
        process: Some("kube-router"),
        level: Level::Warning,
        what: "kube-router runs here; it translates Services by IPVS if --run-service-proxy is on",
        advice: "run it with --run-service-proxy=false",
    },
    Other {
        name: "OVN-Kubernetes",
        programs: &[],
        pins: &[],
        process: Some("ovnkube"),
        level: Level::Error,
        what: "OVN-Kubernetes runs here; its pods' traffic to Services is translated in Open vSwitch",
        advice: "Weir cannot take the place of its load balancers: do not install Weir",
    },
    Other {
        name: "Antrea",
        programs: &[],
        pins: &[],
        process: Some("antrea-agent"),
        level: Level::Warning,
        what: "Antrea runs here; AntreaProxy translates its pods' traffic to Services in Open vSwitch",
        advice: "disable the feature AntreaProxy",
    },
];

pub(super) fn check(proc: &Path) -> Vec<Finding> {
    let programs: Vec<String> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .collect();
    judge(&programs, Path::new(BPFFS), &processes(proc))
}

fn judge(programs: &[String], bpffs: &Path, processes: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut named = Vec::new();
    for other in OTHERS {
        if named.contains(&other.name) {
            continue;
        }
        if let Some(evidence) = other.evidence(programs, bpffs, processes) {
            named.push(other.name);
            findings.push(Finding {
                level: other.level,
                area: AREA,
                found: format!("{} ({evidence})", other.what),
                advice: Some(other.advice.to_owned()),
            });
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, "no other implementation of Services was found"));
    }
    findings
}

impl Other {
    fn evidence(&self, programs: &[String], bpffs: &Path, processes: &[String]) -> Option<String> {
        let program = programs.iter().find(|name| self.programs.iter().any(|start| name.starts_with(start)));
        if let Some(program) = program {
            return Some(format!("the program {program} is loaded"));
        }
        let pinned = |(dir, start): &(&str, &str)| {
            let dir = bpffs.join(dir);
            let names = fs::read_dir(&dir).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            let name = names.into_iter().find(|name| name.starts_with(start))?;
            Some(format!("{} is pinned", dir.join(name).display()))
        };
        if let Some(pin) = self.pins.iter().find_map(pinned) {
            return Some(pin);
        }
        let process = self.process?;
        processes.iter().any(|name| name == process).then(|| format!("the process {process} runs"))
    }
}

/// Names of the processes in the own network namespace.
fn processes(proc: &Path) -> Vec<String> {
    let Ok(own) = fs::metadata("/proc/thread-self/ns/net").map(|it| it.ino()) else { return Vec::new() };
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let of_process = |dir: std::path::PathBuf| {
        let here = fs::metadata(dir.join("ns/net")).is_ok_and(|it| it.ino() == own);
        here.then(|| fs::read_to_string(dir.join("comm")).ok()).flatten().map(|name| name.trim_end().to_owned())
    };
    entries.filter_map(|entry| of_process(entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(programs: &[&str], pins: &[&str], processes: &[&str]) -> Vec<(Level, String)> {
        let bpffs = tempfile::tempdir().unwrap();
        for pin in pins {
            let path = bpffs.path().join(pin);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let findings = judge(&texts(programs), bpffs.path(), &texts(processes));
        findings.into_iter().map(|finding| (finding.level, finding.found)).collect()
    }

    #[test]
    fn each_is_known_by_its_traces() {
        for (programs, pins, processes, level, name) in [
            (&["cil_sock4_conne"][..], &[][..], &["cilium-agent"][..], Level::Error, "Cilium"),
            (&[], &["cilium/socketlb/links/cgroup/cil_sock4_connect"], &[], Level::Error, "Cilium"),
            (&[], &["cilium/devices/eth0/links/cil_from_netdev"], &[], Level::Warning, "Cilium"),
            (&["cil_from_contai"], &[], &[], Level::Warning, "Cilium"),
            (&[], &["tc/globals/cilium_lb4_services_v2"], &[], Level::Warning, "Cilium"),
            (&["cali_tc_from_wl"], &[], &[], Level::Error, "Calico"),
            (&[], &["tc/globals/cali_v4_nat_fe3"], &[], Level::Error, "Calico"),
            (&[], &[], &["kube-router"], Level::Warning, "kube-router"),
            (&[], &[], &["ovnkube"], Level::Error, "OVN"),
            (&["tc_ingress", "sd_devices"], &["weir/v1/SETS"], &["kubelet"], Level::Ok, "no other"),
        ] {
            let found = found(programs, pins, processes);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0 == level && found[0].1.contains(name), "{found:?}");
        }
    }

    #[test]
    fn the_own_process_is_among_those_of_its_network_namespace() {
        assert!(!processes(Path::new("/proc")).is_empty());
        assert!(processes(Path::new("/nonexistent")).is_empty());
    }
}
