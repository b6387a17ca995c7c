//! The programs of the kernel object and where each is attached.

use aya_obj::generated::bpf_attach_type::{
    self, BPF_CGROUP_INET_SOCK_RELEASE, BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET4_GETPEERNAME,
    BPF_CGROUP_INET6_CONNECT, BPF_CGROUP_INET6_GETPEERNAME, BPF_CGROUP_UDP4_RECVMSG, BPF_CGROUP_UDP4_SENDMSG,
    BPF_CGROUP_UDP6_RECVMSG, BPF_CGROUP_UDP6_SENDMSG, BPF_TCX_EGRESS, BPF_TCX_INGRESS,
};
use proxy_common::abi::LOOPBACK;

/// A program by name, and its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// In the object, in the kernel, and the file name of its pinned link.
    pub program: &'static str,
    pub attach_type: bpf_attach_type,
}

const fn hook(program: &'static str, attach_type: bpf_attach_type) -> Hook {
    Hook { program, attach_type }
}

impl Hook {
    /// Whether an interface is to carry this tc program. What leaves by lo enters by it as well: once is enough.
    pub(super) fn is_for(&self, index: u32) -> bool {
        index != LOOPBACK || self.attach_type == BPF_TCX_EGRESS
    }
}

/// On every interface; lo carries the second alone.
pub const TC_HOOKS: [Hook; 2] = [INGRESS, EGRESS];
pub(super) const INGRESS: Hook = hook("tc_ingress", BPF_TCX_INGRESS);
pub(super) const EGRESS: Hook = hook("tc_egress", BPF_TCX_EGRESS);

/// On the cgroup root.
pub const CGROUP_HOOKS: [Hook; 9] = [
    hook("connect4", BPF_CGROUP_INET4_CONNECT),
    hook("connect6", BPF_CGROUP_INET6_CONNECT),
    hook("sendmsg4", BPF_CGROUP_UDP4_SENDMSG),
    hook("sendmsg6", BPF_CGROUP_UDP6_SENDMSG),
    hook("recvmsg4", BPF_CGROUP_UDP4_RECVMSG),
    hook("recvmsg6", BPF_CGROUP_UDP6_RECVMSG),
    hook("getpeername4", BPF_CGROUP_INET4_GETPEERNAME),
    hook("getpeername6", BPF_CGROUP_INET6_GETPEERNAME),
    hook("sock_release", BPF_CGROUP_INET_SOCK_RELEASE),
];

/// Which sockets the connect-time hooks act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ConnectHooks {
    /// Sockets of pods and of the node.
    #[default]
    All,
    /// Sockets of the node's own network namespace only.
    Host,
    Off,
}
