//! Capabilities, as docs/privileges.md explains them, and the user namespace.

use std::fs;

use super::Finding;

const AREA: &str = "privileges";
const DOCS: &str = "docs/privileges.md says what each is for";

/// Numbers of linux/capability.h.
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

pub(super) fn check() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut findings = capabilities(effective(&status));
    // One line that maps every id to itself: the first user namespace.
    if map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"] {
        findings.push(Finding::error(
            AREA,
            "this process runs in a user namespace, from which programs cannot be loaded",
            "run the agent as the host's root (no hostUsers: false, no rootless runtime)",
        ));
    }
    findings
}

fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
}

fn capabilities(effective: u64) -> Vec<Finding> {
    let has = |capability: u32| effective >> capability & 1 == 1;
    let mut findings = Vec::new();
    if !has(NET_ADMIN) {
        findings.push(Finding::error(AREA, "CAP_NET_ADMIN is missing: programs cannot be attached", DOCS));
    }
    if !(has(SYS_ADMIN) || has(BPF) && has(PERFMON)) {
        let missing = "CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN) are missing: programs and maps cannot be loaded";
        findings.push(Finding::error(AREA, missing, DOCS));
    }
    if !has(SYS_ADMIN) {
        let missing = "CAP_SYS_ADMIN is missing: no BPF file system can be mounted, and UDP sockets of pods whose endpoint left \
                       are steered anew, not ended";
        findings.push(Finding::warning(AREA, missing, DOCS));
    }
    if !has(SYS_PTRACE) {
        let missing =
            "CAP_SYS_PTRACE is missing: network namespaces are found by the runtime's mounts only (--netns-dirs)";
        findings.push(Finding::warning(AREA, missing, DOCS));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, "all capabilities are there"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    fn levels(capabilities_held: &[u32]) -> Vec<Level> {
        let effective = capabilities_held.iter().map(|bit| 1 << bit).sum();
        capabilities(effective).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(levels(&[NET_ADMIN, SYS_ADMIN, SYS_PTRACE]), [Level::Ok]);
        assert_eq!(levels(&[NET_ADMIN, BPF, PERFMON, SYS_PTRACE]), [Level::Warning]);
        assert_eq!(levels(&[NET_ADMIN, BPF]), [Level::Error, Level::Warning, Level::Warning]);
        assert_eq!(levels(&[SYS_ADMIN, SYS_PTRACE]), [Level::Error]);
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
    }
}
