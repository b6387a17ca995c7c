//! Takes capabilities away from the calling process for good. Called by `container` before it becomes the program.

use anyhow::{Context, Result};
use nix::errno::Errno;

/// By their numbers (include/uapi/linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What is not in the bounding set, no program has that root starts from here on. Names are without `CAP_`.
pub(super) fn keep_only(kept: &[String]) -> Result<()> {
    for name in kept {
        NAMES.iter().position(|known| known == name).with_context(|| format!("no capability {name}"))?;
    }
    for (number, name) in (0..).zip(NAMES) {
        if !kept.iter().any(|kept| kept == name) {
            drop_from_bounding_set(number).with_context(|| format!("dropping CAP_{name}"))?;
        }
    }
    Ok(())
}

/// Kernels older than a capability say EINVAL.
fn drop_from_bounding_set(number: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory of this process.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
    }
}
