//! The table against the type, the documentation and the command line; documents and flags against what they should give.

use std::{fs, path::Path};

use clap::{Args as _, FromArgMatches as _, Parser};

use super::{
    field::{Flag, Treatment},
    table::{FIELDS, MODES},
    *,
};
use crate::node::NodePortAddresses;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Every field of the type as of Kubernetes 1.36, written down from its definition and apart from the table.
const TYPE: &str = "
featureGates
clientConnection: kubeconfig acceptContentTypes contentType qps burst
logging: format flushFrequency verbosity vmodule
logging.options.text: splitStream infoBufferSize
logging.options.json: splitStream infoBufferSize
hostnameOverride bindAddress healthzBindAddress metricsBindAddress bindAddressHardFail enableProfiling
showHiddenMetricsForVersion mode
iptables: masqueradeBit masqueradeAll localhostNodePorts syncPeriod minSyncPeriod snatNodeInternalIP
ipvs: syncPeriod minSyncPeriod scheduler excludeCIDRs strictARP tcpTimeout tcpFinTimeout udpTimeout
nftables: masqueradeBit masqueradeAll syncPeriod minSyncPeriod
winkernel: networkName sourceVip enableDSR rootHnsEndpointName forwardHealthCheckVip
detectLocalMode
detectLocal: bridgeInterface interfaceNamePrefix
clusterCIDR nodePortAddresses oomScoreAdj
conntrack: maxPerCore min tcpEstablishedTimeout tcpCloseWaitTimeout tcpBeLiberal udpTimeout udpStreamTimeout
configSyncPeriod portRange windowsRunAsService
";

/// Every flag of kube-proxy 1.36 on Linux, likewise.
const FLAGS: &str = "
bind-address bind-address-hard-fail cleanup cluster-cidr config config-sync-period conntrack-max-per-core conntrack-min
conntrack-tcp-be-liberal conntrack-tcp-timeout-close-wait conntrack-tcp-timeout-established conntrack-udp-timeout
conntrack-udp-timeout-stream detect-local-mode feature-gates healthz-bind-address hostname-override init-only
iptables-localhost-nodeports iptables-masquerade-bit iptables-min-sync-period iptables-sync-period ipvs-exclude-cidrs
ipvs-min-sync-period ipvs-scheduler ipvs-strict-arp ipvs-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout
kube-api-burst kube-api-content-type kube-api-qps kubeconfig log-flush-frequency log-json-info-buffer-size
log-json-split-stream log-text-info-buffer-size log-text-split-stream logging-format masquerade-all master
metrics-bind-address nodeport-addresses oom-score-adj pod-bridge-interface pod-interface-name-prefix profiling proxy-mode
show-hidden-metrics-for-version v vmodule write-config-to healthz-port metrics-port
";

#[test]
fn every_field_of_the_type_has_a_row() {
    let mut paths = Vec::new();
    for line in TYPE.lines() {
        let (group, names) = match line.split_once(": ") {
            Some((group, names)) => (format!("{group}."), names),
            None => (String::new(), line),
        };
        paths.extend(names.split_whitespace().map(|name| format!("{group}{name}")));
    }
    for path in &paths {
        assert!(table::by_path(path).is_some(), "{path} has no row");
    }
    let of_older_versions = ["udpIdleTimeout", "logging.sanitization"];
    for field in FIELDS.iter().filter(|field| !field.path.is_empty() && !of_older_versions.contains(&field.path)) {
        assert!(paths.iter().any(|path| path == field.path), "{} is no field of the type", field.path);
    }
}

#[test]
fn every_flag_has_a_row_and_is_taken() {
    let command = crate::cli::AgentArgs::augment_args(clap::Command::new("agent"));
    command.clone().debug_assert();
    for name in FLAGS.split_whitespace() {
        assert!(FIELDS.iter().any(|field| field.flag.name() == Some(name)), "--{name} has no row");
        assert!(command.get_arguments().any(|arg| arg.get_long() == Some(name)), "--{name} is not taken");
    }
}

#[test]
fn rows_are_complete_and_unique() {
    for (index, field) in FIELDS.iter().enumerate() {
        assert!(!field.what.is_empty() && !field.what.ends_with('.'), "{field:?}");
        let same = |other: &&super::field::Field| {
            !field.path.is_empty() && other.path == field.path
                || field.flag.name().is_some() && other.flag == field.flag
        };
        assert_eq!(FIELDS[index + 1..].iter().find(same).map(|it| it.path), None, "{field:?}");
    }
}

#[test]
fn the_documentation_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = fs::read_to_string(&path).unwrap();
    let table = markdown::table();
    if std::env::var_os("WEIR_WRITE_DOCS").is_some() {
        let before = text.split("| field |").next().unwrap();
        let after = text.split_once("| field |").and_then(|(_, rest)| rest.split_once("\n\n")).unwrap().1;
        fs::write(&path, format!("{before}{table}\n{after}")).unwrap();
        return;
    }
    assert!(text.contains(&table), "docs/configuration.md is not up to date: run this test with WEIR_WRITE_DOCS=1");
}

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    flags: KubeProxyFlags,
}

fn flags(given: &[&str]) -> KubeProxyFlags {
    let command = KubeProxyFlags::augment_args(clap::Command::new("agent").no_binary_name(true));
    KubeProxyFlags::from_arg_matches(&command.try_get_matches_from(given).unwrap()).unwrap()
}

fn loaded_with(document: &str, given: &[&str], strict: bool) -> Result<(Settings, Vec<String>), String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), document).unwrap();
    let path = (!document.is_empty()).then(|| file.path());
    let said = |findings: Vec<Finding>| findings.iter().map(ToString::to_string).collect();
    match load(path, &flags(given), strict) {
        Ok((settings, findings)) => Ok((settings, said(findings))),
        Err(error) => Err(error.to_string().replace(&format!("{}: ", file.path().display()), "")),
    }
}

fn loaded(document: &str, given: &[&str]) -> (Settings, Vec<String>) {
    loaded_with(document, given, false).unwrap()
}

fn error(document: &str, given: &[&str]) -> String {
    loaded_with(document, given, false).unwrap_err()
}

fn all() -> NodePortAddresses {
    NodePortAddresses::Cidrs(Vec::new())
}

#[test]
fn kubeadms_configuration_gives_one_warning() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kube-proxy-config.yaml");
    let (settings, findings) = loaded_with(&fs::read_to_string(example).unwrap(), &[], true).unwrap();
    let expected = "line 22: clusterCIDR: 10.244.0.0/16 has no effect: pods of this node are told by the interface that leads to them";
    assert_eq!(findings, [expected]);
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    let expected = Settings { kubeconfig, node_ports: Some(all()), verbosity: Some(0), ..Settings::default() };
    assert_eq!(settings, expected);
}

#[test]
fn no_file_and_no_flag_says_nothing() {
    assert_eq!(loaded("", &[]), (Settings::default(), vec![]));
}

#[test]
fn an_empty_list_means_what_the_mode_says() {
    for (document, given, expected) in [
        ("mode: \"\"", "", Some(all())),
        ("mode: iptables", "", Some(all())),
        ("mode: ipvs", "", Some(all())),
        ("mode: nftables", "", Some(NodePortAddresses::Primary)),
        ("mode: nftables", "--proxy-mode=ipvs", Some(all())),
        ("mode: ipvs\nnodePortAddresses: [primary]", "", Some(NodePortAddresses::Primary)),
        ("nodePortAddresses: [10.0.0.0/8, primary]", "", Some("primary,10.0.0.0/8".parse().unwrap())),
        ("nodePortAddresses: [10.0.0.0/8]", "", Some("10.0.0.0/8".parse().unwrap())),
        ("mode: nftables\nnodePortAddresses: [all]", "", Some("0.0.0.0/0,::/0".parse().unwrap())),
        ("nodePortAddresses: [localhost]", "", Some("127.0.0.0/8,::1/128".parse().unwrap())),
        ("", "--proxy-mode=iptables", Some(all())),
        ("", "--proxy-mode=nftables", Some(NodePortAddresses::Primary)),
    ] {
        let document = if document.is_empty() { String::new() } else { format!("{HEAD}{document}\n") };
        let given: Vec<_> = given.split_whitespace().collect();
        assert_eq!(loaded(&document, &given).0.node_ports, expected, "{document:?} {given:?}");
    }
    for mode in MODES {
        assert!(loaded_with(&format!("{HEAD}mode: {mode}\n"), &[], false).is_ok(), "{mode}");
    }
}

#[test]
fn fields_that_are_honoured_or_translated() {
    let document = "bindAddressHardFail: true\nhostnameOverride: Node-7\nhealthzBindAddress: 10.0.0.1\nmetricsBindAddress: '[::]:9000'\noomScoreAdj: -999\n\
                    nftables: {masqueradeAll: true}\nmode: nftables\nlogging: {format: json, verbosity: 4}\n\
                    detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: vlan.pod}\n\
                    ipvs: {strictARP: true}\n";
    let (settings, findings) = loaded(&format!("{HEAD}{document}"), &[]);
    assert_eq!(findings, Vec::<String>::new());
    assert_eq!((settings.node_name.as_deref(), settings.bind_address_hard_fail), (Some("Node-7"), Some(true)));
    assert_eq!(settings.healthz, Some(Endpoint::Listen("10.0.0.1:10256".parse().unwrap())));
    assert_eq!(settings.metrics, Some(Endpoint::Listen("[::]:9000".parse().unwrap())));
    assert_eq!((settings.oom_score_adj, settings.masquerade_all), (Some(-999), Some(true)));
    assert_eq!((settings.log_json, settings.verbosity), (Some(true), Some(1)));
    assert!(settings.pod_interfaces.matches("vlan.pod3") && !settings.pod_interfaces.matches("vlan3"));
    let (settings, _) = loaded(&format!("{HEAD}bindAddress: '::'\n"), &["--healthz-port=0"]);
    assert_eq!(settings.healthz, Some(Endpoint::Disabled));
    assert_eq!(settings.metrics, Some(Endpoint::Listen("[::1]:10249".parse().unwrap())));
}

#[test]
fn every_row_without_meaning_warns() {
    for field in FIELDS.iter().filter(|field| field.treatment == Treatment::Warned && !field.path.is_empty()) {
        use super::field::Shape;
        let value = match field.shape {
            Shape::Bool => "true",
            Shape::Integer(..) | Shape::Quantity | Shape::Number => "7",
            Shape::Duration | Shape::DurationOrNanoseconds => "7s",
            Shape::Texts => "[10.0.0.0/8]",
            Shape::Gates => "{A: true}",
            Shape::Levels => "[{filePattern: a*, verbosity: 3}]",
            Shape::Choice(choices) => choices[0],
            _ => "\"10.0.0.0/8\"",
        };
        let nested = field.path.split('.').rev().fold(value.to_owned(), |inner, name| format!("{{{name}: {inner}}}"));
        let flow = nested.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap();
        let (_, findings) = loaded(&format!("{HEAD}{flow}\n"), &[]);
        let expected = format!("line 3: {}: ", field.path);
        assert!(findings.len() == 1 && findings[0].starts_with(&expected), "{flow}: {findings:?}");
        assert!(findings[0].ends_with(field.what), "{findings:?}");
    }
}

#[test]
fn warnings_of_translated_fields() {
    for (document, expected) in [
        ("mode: userspace", "mode: kube-proxy does not have"),
        ("iptables: {localhostNodePorts: false}", "iptables.localhostNodePorts: false has no effect"),
        ("nodePortAddresses: [localhost, 10.0.0.0/8]", "nodePortAddresses: localhost has no effect"),
        ("iptables: {masqueradeAll: true}\nmode: nftables", "iptables.masqueradeAll: true has no effect"),
        ("detectLocalMode: NodeCIDR", "detectLocalMode: NodeCIDR has no effect"),
        ("detectLocalMode: BridgeInterface", "detectLocalMode: BridgeInterface has no effect: detectLocal.bridge"),
    ] {
        let (_, findings) = loaded(&format!("{HEAD}{document}\n"), &[]);
        assert!(findings.len() == 1 && findings[0].contains(expected), "{document}: {findings:?}");
    }
}

#[test]
fn unknown_fields_are_warnings_or_errors() {
    let document = format!(
        "{HEAD}modee: ipvs\niptables: {{foo: 1}}\nlogging:\n  vmodule: [{{filePattern: a, verbosity: 1, x: 2}}]\n"
    );
    let (_, findings) = loaded(&document, &[]);
    let unknown: Vec<_> = findings.iter().filter(|it| it.ends_with("unknown field")).map(String::as_str).collect();
    let expected = [
        "line 3: modee: unknown field",
        "line 4: iptables.foo: unknown field",
        "line 6: logging.vmodule[0].x: unknown field",
    ];
    assert_eq!(unknown, expected);
    let error = loaded_with(&document, &[], true).unwrap_err();
    assert_eq!(error, "unknown fields: line 3: modee; line 4: iptables.foo; line 6: logging.vmodule[0].x");
}

#[test]
fn wrong_values_are_errors_that_say_where() {
    for (document, expected) in [
        ("mode: 7", "line 3: mode: expected one of iptables, ipvs, nftables, userspace, kernelspace, got 7"),
        ("mode: ebpf", "got \"ebpf\""),
        ("iptables:\n  masqueradeAll: yes", "line 4: iptables.masqueradeAll: expected true or false, got \"yes\""),
        ("iptables: [1]", "line 3: iptables: expected a mapping"),
        ("oomScoreAdj: 1001", "expected an integer from -1000 to 1000, got 1001"),
        ("conntrack: {min: -1}", "conntrack.min: expected an integer of at least 0, got -1"),
        ("iptables: {syncPeriod: 30}", "expected a duration such as \"30s\" or \"1h5m\", got 30"),
        ("nodePortAddresses: 10.0.0.0/8", "expected a list of texts, got \"10.0.0.0/8\""),
        ("nodePortAddresses: [10.0.0.0/33]", "line 3: nodePortAddresses: expected CIDRs"),
        ("featureGates: {A: 1}", "featureGates: expected names with true or false, got A: 1"),
        ("healthzBindAddress: somewhere", "expected IP:PORT"),
        ("hostnameOverride: 5\nbindAddress: x", "got 5; line 4: bindAddress: expected an IP address, got \"x\""),
    ] {
        let error = error(&format!("{HEAD}{document}\n"), &[]);
        assert!(error.contains(expected), "{document}: {error}");
    }
}

#[test]
fn a_kubeadm_daemon_sets_flags() {
    let given =
        ["--proxy-mode=nftables", "--cluster-cidr", "10.244.0.0/16", "--v=4", "--conntrack-min=131072", "--profiling"];
    let (settings, findings) = loaded("", &given);
    assert_eq!((settings.verbosity, settings.node_ports), (Some(1), Some(NodePortAddresses::Primary)));
    assert_eq!(findings.len(), 3, "{findings:?}");
    assert!(findings.iter().any(|it| it.starts_with("--cluster-cidr: 10.244.0.0/16 has no effect: ")), "{findings:?}");
    // A flag comes before the file, and a false one says nothing.
    let (settings, findings) =
        loaded(&format!("{HEAD}oomScoreAdj: 5\n"), &["--oom-score-adj=-7", "--logtostderr", "--cleanup=false"]);
    assert_eq!(settings.oom_score_adj, Some(-7));
    assert_eq!(findings, ["--logtostderr: true has no effect: all messages go to stderr"]);
    assert!(error("", &["--cleanup"]).contains("`weir cleanup` is a command"), "{}", error("", &["--cleanup"]));
    assert!(Flags::try_parse_from(["agent", "--proxy-mode=ebpf"]).is_err());
}

#[test]
fn weirs_own_flags_are_not_made_from_the_table() {
    let own = FIELDS.iter().filter(|field| matches!(field.flag, Flag::Weir(_))).count();
    assert!(own >= 6, "{own}");
}

#[test]
fn verbosity_counts_or_takes_a_number() {
    for (given, expected) in
        [(&[][..], None), (&["-v"], Some(1)), (&["-vv"], Some(2)), (&["-v=2"], Some(0)), (&["-v=6", "-v"], Some(2))]
    {
        let command = crate::cli::AgentArgs::augment_args(clap::Command::new("agent").no_binary_name(true));
        let matches = command.try_get_matches_from(given).unwrap();
        let given: Vec<_> = matches.get_many::<Verbosity>("verbose").into_iter().flatten().copied().collect();
        assert_eq!(Verbosity::of(&given), expected);
    }
}
