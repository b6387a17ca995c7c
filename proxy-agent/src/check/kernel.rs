//! The kernel: its version, and what Weir's programs need, each tried for real. At the end the programs themselves are loaded
//! once, with small tables, and let go.

use std::{fmt::Debug, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
    util::KernelVersion,
};
use aya_obj::generated::bpf_attach_type::BPF_TCX_INGRESS;

use super::Finding;
use crate::{loader, object};

const AREA: &str = "kernel";
/// docs/kernels.md
const OLDEST: (u8, u8) = (6, 1);
const UPGRADE: &str = "use Linux 6.1 or later";
/// What is in the kernel's name for it, and its configuration.
const MAPS: [(&str, MapType); 5] = [
    ("hash", MapType::Hash),
    ("LRU hash", MapType::LruHash),
    ("array", MapType::Array),
    ("per-CPU array", MapType::PerCpuArray),
    ("LPM trie", MapType::LpmTrie),
];
const PROGRAMS: [(&str, ProgramType, &str); 3] = [
    ("tc", ProgramType::SchedClassifier, "CONFIG_NET_CLS_BPF, CONFIG_NET_SCH_INGRESS"),
    ("socket address", ProgramType::CgroupSockAddr, "CONFIG_CGROUP_BPF"),
    ("socket", ProgramType::CgroupSock, "CONFIG_CGROUP_BPF"),
];
/// Those that are younger than the program type itself.
const HELPERS: [(ProgramType, BpfHelper); 10] = [
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_loop),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_redirect_neigh),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_fib_lookup),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_sk_lookup_udp),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_skb_adjust_room),
    (ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_ktime_get_coarse_ns),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_socket_cookie),
    (ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval),
    (ProgramType::CgroupSock, BpfHelper::BPF_FUNC_get_socket_cookie),
];

pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![version()];
    let mut probes = Probes::default();
    for (name, kind) in MAPS {
        probes.take(&format!("maps of type {name}"), "CONFIG_BPF_SYSCALL", is_map_supported(kind));
    }
    for (name, kind, config) in PROGRAMS {
        probes.take(&format!("{name} programs"), config, is_program_supported(kind));
    }
    for (kind, helper) in HELPERS {
        let name = format!("{helper:?}").replace("BPF_FUNC_", "bpf_");
        probes.take(
            &format!("the helper {name} in {kind:?} programs"),
            "a newer kernel",
            is_helper_supported(kind, helper),
        );
    }
    findings.extend(probes.findings());
    findings.push(attachment());
    findings.push(btf());
    findings.push(trial());
    findings
}

fn version() -> Finding {
    match KernelVersion::current() {
        Ok(version) if version >= KernelVersion::new(OLDEST.0, OLDEST.1, 0) => {
            Finding::ok(AREA, format!("Linux {}", in_words(version)))
        }
        Ok(version) => Finding::error(AREA, format!("Linux {} is older than 6.1", in_words(version)), UPGRADE),
        Err(error) => Finding::warning(AREA, format!("the kernel's version cannot be read: {error}"), UPGRADE),
    }
}

fn in_words(version: KernelVersion) -> String {
    // It has no accessors; its code is that of the uapi macro KERNEL_VERSION.
    let code = version.code();
    format!("{}.{}.{}", code >> 16, code >> 8 & 0xff, code & 0xff)
}

#[derive(Default)]
struct Probes {
    there: usize,
    missing: Vec<Finding>,
    /// The first probe that could not be made.
    failed: Option<String>,
}

impl Probes {
    fn take(&mut self, what: &str, needs: &str, result: Result<bool, impl Debug>) {
        match result {
            Ok(true) => self.there += 1,
            Ok(false) => {
                let advice = format!("the kernel needs {needs}; docs/kernels.md lists what is tested");
                self.missing.push(Finding::error(AREA, format!("the kernel has no {what}"), advice));
            }
            Err(error) => {
                self.failed.get_or_insert_with(|| format!("{what} cannot be tried: {error:?}"));
            }
        }
    }

    fn findings(self) -> Vec<Finding> {
        let mut findings = self.missing;
        if let Some(failed) = self.failed {
            findings.push(Finding::error(AREA, failed, "run the check with the capabilities of the agent (as root)"));
        } else if findings.is_empty() {
            findings.push(Finding::ok(
                AREA,
                format!("{} map types, program types and helpers tried: all there", self.there),
            ));
        }
        findings
    }
}

/// The loopback interface, which every network namespace has, is asked for its chain.
fn attachment() -> Finding {
    const LOOPBACK: u32 = 1;
    match loader::sys::tcx_chain(LOOPBACK, BPF_TCX_INGRESS) {
        Ok(_) => Finding::ok(AREA, "tc programs are attached as tcx links"),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Finding::ok(AREA, "tc programs are attached as filters of a clsact qdisc (no tcx before 6.6)")
        }
        Err(error) => Finding::error(
            AREA,
            format!("the tcx chain of lo cannot be read: {error}"),
            "run the check with the capabilities of the agent (as root)",
        ),
    }
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Finding::ok(AREA, "the kernel has BTF");
    }
    // Weir's programs read no structures of the kernel's.
    Finding::ok(AREA, "the kernel has no BTF of its own (CONFIG_DEBUG_INFO_BTF), which Weir does not need")
}

fn trial() -> Finding {
    let object = match object::embedded() {
        Ok(object) => object,
        Err(error) => {
            return Finding::error(AREA, error.to_string(), "use a release of weir, or build as the README says");
        }
    };
    match loader::try_load(object) {
        Ok(programs) => Finding::ok(AREA, format!("the verifier takes all {programs} programs")),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Finding::error(
                AREA,
                format!("the kernel programs cannot be loaded: {first}"),
                "run the check as root; if it is, please report the kernel's version and the agent's log",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn probes_are_summed_up() {
        let mut probes = Probes::default();
        probes.take("a", "A", Ok::<_, String>(true));
        let all: Vec<_> = probes.findings();
        assert_eq!((all.len(), all[0].level), (1, Level::Ok));
        let mut probes = Probes::default();
        probes.take("a", "A", Ok::<_, String>(false));
        probes.take("b", "B", Err("refused"));
        probes.take("c", "C", Err("refused"));
        let all = probes.findings();
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all[0].found.contains("no a") && all[1].found.contains("b cannot be tried"), "{all:?}");
    }
}
