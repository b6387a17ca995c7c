//! Every field of KubeProxyConfiguration v1alpha1 and every flag of kube-proxy, with what Weir does about it. The only list of
//! them: decoding, warnings, the command line and docs/configuration.md all come from here.

use super::field::{
    Field,
    Flag::{self, KubeProxy, None as NoFlag, Weir},
    Shape::{self, *},
    Treatment::{self, *},
};

pub(super) const MODES: &[&str] = &["iptables", "ipvs", "nftables", "userspace", "kernelspace"];
pub(super) const LOCAL_MODES: &[&str] = &["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
const SCHEDULERS: &[&str] = &["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf"];
const UNSIGNED: Shape = Integer(0, i64::MAX);
const BIT: Shape = Integer(0, 31);

const fn row(path: &'static str, flag: Flag, shape: Shape, treatment: Treatment, what: &'static str) -> Field {
    Field { path, flag, shape, treatment, what }
}

const NO_RULES: &str =
    "there are no rules to be written anew; a change is applied when it comes (--sync-delay collects changes)";
const NO_MARK: &str = "packets are not marked";
const NO_IPVS: &str = "Weir keeps no state in IPVS";
const OWN_FLOWS: &str =
    "flows of Services are tracked in Weir's own table, not in the kernel's conntrack; its sysctls are left alone";
const NOT_WINDOWS: &str = "Windows only";
const BY_INTERFACE: &str = "pods of this node are told by the interface that leads to them";
const UNBUFFERED: &str = "the log is written line by line, without a buffer";
const WATCHES: &str = "the agent sends a few lists and watches, never bursts of queries";

/// In the order of the type, flags without a field last.
pub(super) static FIELDS: &[Field] = &[
    row("featureGates", KubeProxy("feature-gates"), Gates, Warned, "Weir has none of kube-proxy's feature gates"),
    row("clientConnection.kubeconfig", Weir("kubeconfig"), Text, Honoured, "empty: the pod's service account"),
    row("clientConnection.acceptContentTypes", NoFlag, Text, Warned, "Weir speaks JSON to the API server"),
    row(
        "clientConnection.contentType",
        KubeProxy("kube-api-content-type"),
        Text,
        Warned,
        "Weir speaks JSON to the API server",
    ),
    row("clientConnection.qps", KubeProxy("kube-api-qps"), Number, Warned, WATCHES),
    row("clientConnection.burst", KubeProxy("kube-api-burst"), UNSIGNED, Warned, WATCHES),
    row("logging.format", KubeProxy("logging-format"), Choice(&["text", "json"]), Translated, "`--log-format`"),
    row("logging.flushFrequency", KubeProxy("log-flush-frequency"), DurationOrNanoseconds, Warned, UNBUFFERED),
    row(
        "logging.verbosity",
        KubeProxy("v"),
        Integer(0, i32::MAX as i64),
        Translated,
        "0 to 3: no more than without it; 4 and 5: `-v`; 6 and 7: `-vv`; from 8 on: `-vvv`",
    ),
    row(
        "logging.vmodule",
        KubeProxy("vmodule"),
        Levels,
        Warned,
        "Weir has other source files; RUST_LOG sets levels by module",
    ),
    row(
        "logging.options.text.splitStream",
        KubeProxy("log-text-split-stream"),
        Bool,
        Warned,
        "all messages go to stderr",
    ),
    row("logging.options.text.infoBufferSize", KubeProxy("log-text-info-buffer-size"), Quantity, Warned, UNBUFFERED),
    row(
        "logging.options.json.splitStream",
        KubeProxy("log-json-split-stream"),
        Bool,
        Warned,
        "all messages go to stderr",
    ),
    row("logging.options.json.infoBufferSize", KubeProxy("log-json-info-buffer-size"), Quantity, Warned, UNBUFFERED),
    row("hostnameOverride", Weir("hostname-override"), Text, Honoured, "empty: the host name"),
    row(
        "bindAddress",
        KubeProxy("bind-address"),
        Address,
        Translated,
        "an IPv6 address makes `[::]:10256` and `[::1]:10249` the defaults of the next two; addresses for NodePorts come from the Node object",
    ),
    row("healthzBindAddress", Weir("healthz-bind-address"), AddressAndPort, Honoured, "empty: `0.0.0.0:10256`"),
    row("metricsBindAddress", Weir("metrics-bind-address"), AddressAndPort, Honoured, "empty: `127.0.0.1:10249`"),
    row(
        "bindAddressHardFail",
        Weir("bind-address-hard-fail"),
        Bool,
        Honoured,
        "else an address that cannot be bound is tried again every five seconds",
    ),
    row("enableProfiling", KubeProxy("profiling"), Bool, Warned, "Weir has no /debug/pprof"),
    row(
        "showHiddenMetricsForVersion",
        KubeProxy("show-hidden-metrics-for-version"),
        Text,
        Warned,
        "Weir has no hidden metrics",
    ),
    row(
        "mode",
        KubeProxy("proxy-mode"),
        Choice(MODES),
        Translated,
        "there is one mode; it says what an empty nodePortAddresses means, and which masqueradeAll counts",
    ),
    row("iptables.masqueradeBit", KubeProxy("iptables-masquerade-bit"), BIT, Warned, NO_MARK),
    row(
        "iptables.masqueradeAll",
        Weir("masquerade-all"),
        Bool,
        Honoured,
        "counts unless the mode is nftables; the flag counts in every mode",
    ),
    row(
        "iptables.localhostNodePorts",
        KubeProxy("iptables-localhost-nodeports"),
        Bool,
        Translated,
        "true is what Weir does anyhow, for sockets of the node's own network namespace and for both families; false is a warning",
    ),
    row(
        "iptables.snatNodeInternalIP",
        NoFlag,
        Bool,
        Warned,
        "the source is the node's address on the link towards the endpoint",
    ),
    row("iptables.syncPeriod", KubeProxy("iptables-sync-period"), Duration, Warned, NO_RULES),
    row("iptables.minSyncPeriod", KubeProxy("iptables-min-sync-period"), Duration, Warned, NO_RULES),
    row("ipvs.syncPeriod", KubeProxy("ipvs-sync-period"), Duration, Warned, NO_RULES),
    row("ipvs.minSyncPeriod", KubeProxy("ipvs-min-sync-period"), Duration, Warned, NO_RULES),
    row(
        "ipvs.scheduler",
        KubeProxy("ipvs-scheduler"),
        Choice(SCHEDULERS),
        Warned,
        "a Service chooses by its annotation `weir.dev/algorithm`, else endpoints are chosen at random",
    ),
    row("ipvs.excludeCIDRs", KubeProxy("ipvs-exclude-cidrs"), Texts, Warned, NO_IPVS),
    row(
        "ipvs.strictARP",
        KubeProxy("ipvs-strict-arp"),
        Bool,
        Honoured,
        "always so: Service addresses are on no interface, the node answers no ARP for them",
    ),
    row("ipvs.tcpTimeout", KubeProxy("ipvs-tcp-timeout"), Duration, Warned, NO_IPVS),
    row("ipvs.tcpFinTimeout", KubeProxy("ipvs-tcpfin-timeout"), Duration, Warned, NO_IPVS),
    row("ipvs.udpTimeout", KubeProxy("ipvs-udp-timeout"), Duration, Warned, NO_IPVS),
    row("nftables.masqueradeBit", NoFlag, BIT, Warned, NO_MARK),
    row("nftables.masqueradeAll", NoFlag, Bool, Honoured, "counts if the mode is nftables"),
    row("nftables.syncPeriod", NoFlag, Duration, Warned, NO_RULES),
    row("nftables.minSyncPeriod", NoFlag, Duration, Warned, NO_RULES),
    row("winkernel.networkName", NoFlag, Text, Warned, NOT_WINDOWS),
    row("winkernel.sourceVip", NoFlag, Text, Warned, NOT_WINDOWS),
    row("winkernel.enableDSR", NoFlag, Bool, Warned, NOT_WINDOWS),
    row("winkernel.rootHnsEndpointName", NoFlag, Text, Warned, NOT_WINDOWS),
    row("winkernel.forwardHealthCheckVip", NoFlag, Bool, Warned, NOT_WINDOWS),
    row(
        "detectLocalMode",
        KubeProxy("detect-local-mode"),
        Choice(LOCAL_MODES),
        Translated,
        "pods of this node are told by the interface that leads to them; with BridgeInterface or InterfaceNamePrefix the interfaces named are taken for such, other modes are a warning",
    ),
    row(
        "detectLocal.bridgeInterface",
        KubeProxy("pod-bridge-interface"),
        Text,
        Translated,
        "`--pod-interfaces`, with the mode BridgeInterface",
    ),
    row(
        "detectLocal.interfaceNamePrefix",
        KubeProxy("pod-interface-name-prefix"),
        Text,
        Translated,
        "`--pod-interfaces PREFIX*`, with the mode InterfaceNamePrefix",
    ),
    row("clusterCIDR", KubeProxy("cluster-cidr"), Text, Warned, BY_INTERFACE),
    row(
        "nodePortAddresses",
        Weir("nodeport-addresses"),
        Texts,
        Honoured,
        "empty: all addresses if the mode is empty, iptables or ipvs, else `primary`. `all` is understood; `localhost` is a warning: loopback is served to the node's own sockets, whatever the list says",
    ),
    row("oomScoreAdj", KubeProxy("oom-score-adj"), Integer(-1000, 1000), Honoured, "unset: left as it is"),
    row("conntrack.maxPerCore", KubeProxy("conntrack-max-per-core"), UNSIGNED, Warned, OWN_FLOWS),
    row("conntrack.min", KubeProxy("conntrack-min"), UNSIGNED, Warned, OWN_FLOWS),
    row("conntrack.tcpEstablishedTimeout", KubeProxy("conntrack-tcp-timeout-established"), Duration, Warned, OWN_FLOWS),
    row("conntrack.tcpCloseWaitTimeout", KubeProxy("conntrack-tcp-timeout-close-wait"), Duration, Warned, OWN_FLOWS),
    row("conntrack.tcpBeLiberal", KubeProxy("conntrack-tcp-be-liberal"), Bool, Warned, OWN_FLOWS),
    row("conntrack.udpTimeout", KubeProxy("conntrack-udp-timeout"), Duration, Warned, OWN_FLOWS),
    row("conntrack.udpStreamTimeout", KubeProxy("conntrack-udp-timeout-stream"), Duration, Warned, OWN_FLOWS),
    row(
        "configSyncPeriod",
        KubeProxy("config-sync-period"),
        Duration,
        Warned,
        "objects are watched; a watch that breaks is resumed or listed anew",
    ),
    row(
        "portRange",
        KubeProxy("proxy-port-range"),
        Text,
        Warned,
        "of the userspace mode, which kube-proxy has no more",
    ),
    row("windowsRunAsService", KubeProxy("windows-service"), Bool, Warned, NOT_WINDOWS),
    // Fields that v1alpha1 once had; older ConfigMaps still do.
    row(
        "udpIdleTimeout",
        KubeProxy("udp-timeout"),
        Duration,
        Warned,
        "of the userspace mode, which kube-proxy has no more",
    ),
    row("logging.sanitization", NoFlag, Bool, Warned, "Weir logs no secrets"),
    // Flags without a field.
    row("", Weir("config"), Text, Honoured, "this document"),
    row("", Weir("master"), Text, Honoured, "before what the kubeconfig says"),
    row("", KubeProxy("healthz-port"), Integer(0, 65535), Translated, "the port of healthzBindAddress"),
    row("", KubeProxy("metrics-port"), Integer(0, 65535), Translated, "the port of metricsBindAddress"),
    row("", KubeProxy("write-config-to"), Text, Refused, "docs/configuration.md lists the fields"),
    row("", KubeProxy("cleanup"), Bool, Refused, "`weir cleanup` is a command of its own"),
    row(
        "",
        KubeProxy("init-only"),
        Bool,
        Refused,
        "there is nothing to be initialised; docs/privileges.md says what the agent can do without",
    ),
    row("", KubeProxy("logtostderr"), Bool, Warned, "all messages go to stderr"),
    row("", KubeProxy("alsologtostderr"), Bool, Warned, "all messages go to stderr"),
];

/// The row of a path.
pub(super) fn by_path(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path && !path.is_empty())
}

/// Whether a path names a struct of the type, e.g. `logging.options`.
pub(super) fn is_group(path: &str) -> bool {
    let below = |field: &Field| field.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    FIELDS.iter().any(below)
}
